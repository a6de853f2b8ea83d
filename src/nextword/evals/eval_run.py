"""Runs an evaluation: every condition on every item, storing each answer as it arrives."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ..base import UsageError
from . import calibration
from .chat_prompts import chat_variants
from .checks import warnings_of_shots
from .design import (
    Calibrate,
    Condition,
    Design,
    ScoringConfig,
    check_chat,
    check_scoring,
    has_one_set_of_choices,
    unused_chat_templates,
)
from .fewshot import nearest, repeated_items
from .grid import Neighbours, Trial, grid_warnings, scored_items, trials_of
from .results import Answer, Collected, ConditionResult, Cost, Notes, answer_text
from .runner import (
    ModelRunner,
    OnTokens,
    Preparation,
    Question,
    Writing,
    choose_written,
    constrained_writings,
    score_choices,
)
from .served import runner_for
from .store import Store
from .task import Encoded, Likelihood, Task

if TYPE_CHECKING:
    from .served import EvalModel

Progress = Callable[[int, int], None]  # tokens done, total tokens


class EvalRun:
    """A grid of conditions: `cost()` before the run, `run()` for the answers."""

    def __init__(
        self,
        tasks: Mapping[str, Task],
        models: Sequence[EvalModel],
        design: Design,
        config: ScoringConfig,
        store: Store,
        new_runner: Callable[[EvalModel, Store], ModelRunner] = runner_for,
    ) -> None:
        """`tasks` are the same task with several templates, by name. `new_runner` makes what runs a model's requests.

        Raises UsageError for an invalid evaluation.
        """
        self.tasks = chat_variants(tasks, config.chat, config.system or "")
        self.models, self.design, self.config, self.store = models, design, config, store
        self.task = next(iter(self.tasks.values()))
        check_scoring(self.task, design, config)
        check_chat(models, config)
        self.items = scored_items(self.task, design)
        self.runners = [new_runner(model, store) for model in models]
        if len({runner.key for runner in self.runners}) < len(models):
            raise UsageError("two of the models are the same and would give the same answers. Name each model once")
        self._prepared: dict[int, Preparation] = {}
        warnings = [line for task in self.tasks.values() for line in grid_warnings(task, design, self.items)]
        self.notes = Notes(
            tuple(dict.fromkeys(note for task in self.tasks.values() for note in task.notes)),
            repeated_items(self.task) if max(design.shots) else 0,
            warnings=tuple(dict.fromkeys(warnings)),
            chat=unused_chat_templates(models, config),
        )

    def questions(self, number: int) -> list[Question]:
        """The questions to model `number`: every item under every condition."""
        return self.prepared(number).questions

    def prepared(self, number: int) -> Preparation:
        """The questions to model `number`, rendered and tokenized once."""
        if number not in self._prepared:
            runner = self.runners[number]
            trials = [
                trial for name, task in self.tasks.items()
                for trial in trials_of(task, runner.model.name, name, self.design, self._neighbours(runner, task))
            ]  # fmt: skip
            embedded = runner.tokens_read
            preparation = runner.prepare(trials, self.items, self.config)
            preparation.embedded = embedded
            self._add_content_free(runner, preparation)
            self._prepared[number] = preparation
            self._note(runner, preparation.questions)
        return self._prepared[number]

    def _note(self, runner: ModelRunner, questions: Sequence[Question]) -> None:
        """Add notes about a model's prompts."""
        split = {
            (request.context[-1], request.continuation[0])
            for question in questions for request in question.encoded if request.split_token
        }  # fmt: skip
        token_text = runner.model.tokenizer.token_text
        warnings = warnings_of_shots((question.item, question.trial.shots_of(question.item)) for question in questions)
        self.notes = replace(
            self.notes,
            split_tokens=(
                *self.notes.split_tokens, *((token_text(last), token_text(first)) for last, first in sorted(split))
            ),
            short_of_shots=self.notes.short_of_shots + sum(question.dropped > 0 for question in questions),
            warnings=tuple(dict.fromkeys((*self.notes.warnings, *warnings))),
        )  # fmt: skip

    def conditions(self) -> list[Condition]:
        """All conditions, calibrations included."""
        conditions: list[Condition] = []
        for number in range(len(self.models)):
            trials = {question.trial.condition: question.trial for question in self.questions(number)}
            for condition, trial in trials.items():
                conditions += [
                    condition,
                    *(replace(condition, variant=method) for method in self._calibrations(trial)),
                ]
        return conditions

    def _add_content_free(self, runner: ModelRunner, preparation: Preparation) -> None:
        """Add the labels after content-free inputs, with the shots of each condition's prompts."""
        trials = {(question.trial.condition, question.dropped): question.trial for question in preparation.questions}
        for key, trial in trials.items():
            if "contextual" in self._calibrations(trial):
                empty = [
                    calibration.content_free_item(trial.task, self.items[0], text) for text in calibration.CONTENT_FREE
                ]
                preparation.content_free[key] = [
                    tuple(runner.encode(trial.task, trial.requests(item, key[1]))) for item in empty
                ]

    def _writings(self, runner: ModelRunner, questions: Sequence[Question]) -> list[Writing]:
        """The texts to generate: answers, or choices with constrained decoding."""
        if self.task.output == "generate_until":
            return [(question.encoded[0].context, self.task.generation) for question in questions]
        return constrained_writings(runner, questions) if self.config.choice_scoring == "constrained" else []

    def cost(self, number: int = 0, timed: bool = True) -> Cost:
        """The cost of model `number` and, if `timed`, its time on this machine, measured now."""
        preparation, runner = self.prepared(number), self.runners[number]
        asked = preparation.requests()
        writings = self._writings(runner, preparation.questions)
        to_write = runner.missing_texts(writings, self.design.seed)
        missing = runner.missing(asked) if self.task.output == "multiple_choice" else []
        to_score, of_prompts = runner.tokens_to_score(missing), runner.tokens_of_prompts(to_write)
        seconds = 0.0
        if timed:
            seconds = runner.seconds_to_score(missing, to_score) + runner.seconds_to_write(to_write, of_prompts)
        unanswered = len(missing) if self.task.output == "multiple_choice" else len(to_write)
        return Cost(
            requests=len(asked),
            tokens=preparation.embedded + to_score + of_prompts,
            alone=preparation.embedded + sum(map(_read_alone, missing)) + sum(len(prompt) for prompt, _ in to_write),
            generated=sum(generation.max_tokens for _, generation in to_write),
            longest=max(question.longest for question in preparation.questions),
            context=runner.context,
            unit=runner.unit,
            seconds=seconds,
            known=len(asked) - unanswered,
            embedded=preparation.embedded,
        )

    def run(self, progress: Progress | None = None, costs: Sequence[Cost] = ()) -> Collected:
        """Get all answers, from the store or the models. `costs`: from `cost` for every model, if known."""
        began = time.perf_counter()
        costs = costs or [self.cost(number, timed=False) for number in range(len(self.models))]
        total, done = sum(cost.tokens for cost in costs), sum(cost.embedded for cost in costs)

        def on_tokens(tokens: int) -> None:
            nonlocal done
            done += tokens
            if progress is not None:
                progress(done, total)

        conditions: list[ConditionResult] = []
        for number, runner in enumerate(self.runners):
            conditions += self._results(runner, self.prepared(number), on_tokens)
        return Collected(
            self.task, self.items, tuple(conditions), self.config.choice_scoring, tuple(costs), self.notes,
            time.perf_counter() - began, sum(runner.tokens_read for runner in self.runners),
            self.design.shared_shots, self.config.calibrate,
        )  # fmt: skip

    def _results(self, runner: ModelRunner, preparation: Preparation, on_tokens: OnTokens) -> Iterator[ConditionResult]:
        likelihoods = (
            runner.likelihoods(preparation.requests(), on_tokens) if self.task.output == "multiple_choice" else {}
        )
        answers = self._answers(runner, preparation.questions, likelihoods, on_tokens)
        by_condition: dict[Condition, list[tuple[Question, Answer]]] = {}
        for question, answer in zip(preparation.questions, answers, strict=True):
            by_condition.setdefault(question.trial.condition, []).append((question, answer))
        for condition, pairs in by_condition.items():
            questions, own = zip(*pairs, strict=True)
            yield ConditionResult(condition, own)
            for method in self._calibrations(questions[0].trial):
                yield self._calibrated(method, questions, own, preparation, likelihoods)

    def _answers(
        self, runner: ModelRunner, questions: Sequence[Question], likelihoods: Mapping[Encoded, Likelihood],
        on_tokens: OnTokens,
    ) -> list[Answer]:  # fmt: skip
        writings, scoring = self._writings(runner, questions), self.config.choice_scoring
        texts = runner.texts(writings, self.design.seed, on_tokens) if writings else {}
        if self.task.output == "multiple_choice":
            answers = score_choices(questions, likelihoods, "raw" if scoring == "constrained" else scoring)
            return choose_written(answers, writings, texts) if writings else answers
        return [
            answer_text(
                question.trial.task, question.item, question.shots, question.asked, question.encoded, texts[writing]
            )
            for question, writing in zip(questions, writings, strict=True)
        ]

    def _calibrated(
        self, method: Calibrate, questions: Sequence[Question], plain: Sequence[Answer], preparation: Preparation,
        likelihoods: Mapping[Encoded, Likelihood],
    ) -> ConditionResult:  # fmt: skip
        """The same likelihoods after calibration."""
        condition = questions[0].trial.condition
        logprobs = np.array([answer.logprobs for answer in plain])
        if method == "batch":
            scores = calibration.batch(logprobs)
        else:
            shares = calibration.label_probabilities(logprobs)
            content_free = {
                dropped: [[float(np.exp(likelihoods[request].logprob)) for request in row] for row in rows]
                for (own, dropped), rows in preparation.content_free.items() if own == condition
            }  # fmt: skip
            scores = np.vstack([
                calibration.contextual(share[None], content_free[question.dropped])
                for share, question in zip(shares, questions, strict=True)
            ])  # fmt: skip
        answers = tuple(answer.choosing(list(row)) for answer, row in zip(plain, scores, strict=True))
        return ConditionResult(replace(condition, variant=method), answers)

    def _calibrations(self, trial: Trial) -> tuple[Calibrate, ...]:
        """The requested calibrations, and calibrated zero-shot as a baseline if there are labels."""
        asked, task = self.config.calibrate, trial.task
        if trial.condition.variant != "plain":
            return ()
        if asked or trial.condition.shots or not self.design.baselines or task.output != "multiple_choice":
            return asked
        try:
            calibration.content_free_item(task, self.items[0], "")
        except UsageError:
            return ()
        return ("contextual",) if has_one_set_of_choices(task) else ()

    def _neighbours(self, runner: ModelRunner, task: Task) -> Neighbours | None:
        """For --fewshot-sampler similar: each item's nearest in the pool, by the model's embeddings."""
        most = max(self.design.shots)
        if self.design.sampler != "similar" or most == 0:
            return None
        scored = {item.row_id for item in self.items}
        pool = [shot for shot in task.fewshot_pool if shot.row_id not in scored]
        if most > len(pool):
            raise UsageError(f"{most} shots cannot be chosen from {len(pool)} examples. Use fewer, or give more")
        of_pool, of_items = (
            runner.embed([task.format.questions(item.values)[0][0] for item in items]) for items in (pool, self.items)
        )
        rows = nearest(of_pool, of_items, most)
        return {item.row_id: tuple(pool[index] for index in row) for item, row in zip(self.items, rows, strict=True)}


def _read_alone(request: Encoded) -> int:
    """Tokens to read for one request: the last of an answer is only predicted."""
    return len(request.context) + max(0, len(request.continuation) - 1)
