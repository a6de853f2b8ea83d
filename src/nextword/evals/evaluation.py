"""Runs an evaluation: every condition of a grid on every item, each answer stored as it arrives."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from ..base import UsageError
from ..engine import LanguageModel
from . import calibration, constrained
from .answers import Answer
from .asking import (
    Asker,
    Preparation,
    Question,
    Seen,
    choices,
    likelihood_of_texts,
    tokens_to_write,
)
from .chatting import chat_forms
from .checking import warnings_of_shots
from .collected import Cell, Collected, Cost, Notes
from .filters import apply
from .metrics import MEASURE_OF, aggregate, of_the_choice, score_text
from .settings import (
    Calibrate,
    Measure,
    Settings,
    check_chat,
    check_settings,
    measure_of,
    needs_premise,
    same_labels,
    unused_chat_templates,
)  # fmt: skip
from .shots import nearest, repeated
from .store import Store
from .task import Encoded, Generation, Item, Likelihood, Task
from .trials import Condition, Design, Neighbours, Trial, content_free, scored_items, told, trials_of

__all__ = [
    "Calibrate", "Cell", "Collected", "Cost", "Evaluation", "Measure", "Notes", "Progress", "Settings",
]  # fmt: skip

Progress = Callable[[int, int], None]  # tokens done, tokens in all


class Evaluation:
    """A grid of conditions: `cost()` before the run, `run()` for the answers."""

    def __init__(
        self,
        forms: Mapping[str, Task],
        models: Sequence[LanguageModel],
        design: Design,
        settings: Settings,
        store: Store,
    ) -> None:
        """`forms` are the same task with several templates, by name. Raises UsageError for what cannot be run."""
        self.forms = chat_forms(forms, settings.chat, settings.system or "")
        self.models, self.design, self.settings, self.store = models, design, settings, store
        self.task = next(iter(self.forms.values()))
        check_settings(self.task, design, settings)
        check_chat(self.task, models, settings)
        self.items = scored_items(self.task, design)
        self.measure = measure_of(self.task, settings)
        self.askers = [Asker(model, store) for model in models]
        if len({asker.key for asker in self.askers}) < len(models):
            raise UsageError("two of the models are the same and would give the same answers. Name each model once")
        self._prepared: dict[int, Preparation] = {}
        self.notes = Notes(
            tuple(dict.fromkeys(note for task in self.forms.values() for note in task.notes)),
            len(repeated(self.task)) if max(design.shots) else 0,
            warnings=tuple(dict.fromkeys(each for task in self.forms.values() for each in told(task, design))),
            chat=unused_chat_templates(self.task, models, settings),
        )

    def questions(self, number: int) -> list[Question]:
        """What model `number` is asked of every item under every condition."""
        return self.prepared(number).questions

    def prepared(self, number: int) -> Preparation:
        """All that model `number` is asked, rendered and tokenized once."""
        if number not in self._prepared:
            asker = self.askers[number]
            trials = [
                trial for name, task in self.forms.items()
                for trial in trials_of(task, asker.model.name, name, self.design, self.items, self._near(asker, task))
            ]  # fmt: skip
            embedded = asker.tokens_read
            made = asker.prepare(
                trials, self.items, self.settings.overflow, self.settings.premise,
                needs_premise(self.task, self.settings),
            )  # fmt: skip
            made.embedded = embedded
            self._add_content_free(asker, made)
            self._prepared[number] = made
            apart = {(each.context[-1], each.continuation[0]) for each in made.apart}
            shown = tuple(
                (asker.model.tokenizer.token_text(last), asker.model.tokenizer.token_text(first))
                for last, first in sorted(apart)
            )
            of_shots = warnings_of_shots((each.item, each.trial.shots_of(each.item)) for each in made.questions)
            self.notes = replace(
                self.notes, apart=self.notes.apart + shown, short_of_shots=self.notes.short_of_shots + made.shortened,
                warnings=tuple(dict.fromkeys((*self.notes.warnings, *of_shots))),
            )  # fmt: skip
        return self._prepared[number]

    @property
    def same_shots(self) -> bool:
        """Whether a draw is one set of shots for all items."""
        return not self.design.per_item and self.design.select != "similar"

    def conditions(self) -> list[Condition]:
        """All conditions there will be, corrections included."""
        found: list[Condition] = []
        for number in range(len(self.models)):
            for trial in {question.trial.condition: question.trial for question in self.questions(number)}.values():
                found += [trial.condition, *(replace(trial.condition, variant=way) for way in self._ways(trial))]
        return found

    def _add_content_free(self, asker: Asker, made: Preparation) -> None:
        """The labels after content-free inputs, with the shots that each condition has in its prompts."""
        trials = {(question.trial.condition, question.dropped): question.trial for question in made.questions}
        for key, trial in trials.items():
            if "contextual" in self._ways(trial):
                empty = [content_free(trial.task, self.items[0], text) for text in calibration.CONTENT_FREE]
                made.content_free[key] = [
                    tuple(asker.encode(trial.task, trial.requests(item, key[1]))) for item in empty
                ]

    @property
    def _writes(self) -> Generation | None:
        return self.task.generation if self.task.output == "generate_until" else None

    @property
    def _chooses(self) -> bool:
        """Whether the model writes its choice, besides being asked how probable each one is."""
        return self.measure == "constrained"

    def cost(self, number: int = 0, timed: bool = True) -> Cost:
        """What model `number` has to do, and, if `timed`, how long it takes here, at speeds measured now."""
        made, asker, writes = self.prepared(number), self.askers[number], self._writes
        asked = made.requests()
        missing = asker.missing(asked, writes, self.design.seed)
        tokens = asker.tokens(missing, writes)
        chosen = asker.unwritten(constrained.writings(asker, made.questions), self.design.seed) if self._chooses else []
        to_choose = asker.tokens_of_prompts(chosen)
        return Cost(
            requests=len(asked),
            tokens=made.embedded + tokens + to_choose,
            alone=made.embedded + sum(map(_read_alone, missing)) + sum(len(prompt) for prompt, _ in chosen),
            written=sum(each.max_tokens for _, each in chosen) if writes is None else tokens_to_write(missing, writes),
            longest=max(question.longest for question in made.questions),
            context=asker.context,
            seconds=self._seconds(asker, missing, tokens) + asker.seconds_to_write(chosen, to_choose) if timed else 0.0,
            known=len(asked) - len(missing),
            embedded=made.embedded,
        )

    def _seconds(self, asker: Asker, missing: Sequence[Encoded], tokens: int) -> float:
        """How long the model takes here for what is missing, from a part of that very work, timed."""
        if (writes := self._writes) is None:
            return asker.seconds_to_score(missing, tokens)
        return asker.seconds_to_write([(each.context, writes) for each in missing], tokens)

    def run(self, progress: Progress | None = None) -> Collected:
        """Ask everything that the store does not know."""
        began = time.perf_counter()
        costs = [self.cost(number, timed=False) for number in range(len(self.models))]
        total, done = sum(cost.tokens for cost in costs), sum(cost.embedded for cost in costs)

        def seen(tokens: int) -> None:
            nonlocal done
            done += tokens
            if progress is not None:
                progress(done, total)

        cells: list[Cell] = []
        for number, asker in enumerate(self.askers):
            cells += self._cells(asker, self.prepared(number), seen)
        return Collected(
            self.task, self.items, tuple(cells), self.measure, tuple(costs), self.notes,
            time.perf_counter() - began, sum(asker.tokens_read for asker in self.askers),
            self.same_shots, self.settings.calibrate,
        )  # fmt: skip

    def _cells(self, asker: Asker, made: Preparation, seen: Seen) -> Iterator[Cell]:
        found = {} if self._writes else asker.likelihoods(made.requests(), seen)
        answers = self._answers(asker, made.questions, found, seen)
        by_condition: dict[Condition, list[tuple[Question, Answer]]] = {}
        for question, answer in zip(made.questions, answers, strict=True):
            by_condition.setdefault(question.trial.condition, []).append((question, answer))
        for condition, pairs in by_condition.items():
            questions, own = zip(*pairs, strict=True)
            yield self._cell(condition, questions[0].trial.task, own)
            for way in self._ways(questions[0].trial):
                yield self._calibrated(way, questions, own, made, found)

    def _cell(self, condition: Condition, task: Task, answers: tuple[Answer, ...]) -> Cell:
        metrics, chosen = aggregate(task, answers), of_the_choice(task, answers) if answers[0].choices else {}
        if self.settings.measure == "auto":
            return Cell(condition, answers, metrics)
        if self.design.per_item:  # the harness's names keep their meaning, and what was asked for has its own
            own = {name: chosen["acc"] for name, measure in MEASURE_OF.items() if measure == self.measure}
            return Cell(condition, answers, {**metrics, **own})
        return Cell(condition, answers, {**metrics, **chosen}, of_the_choice=True)

    def _answers(
        self, asker: Asker, questions: Sequence[Question], found: Mapping[Encoded, Likelihood], seen: Seen
    ) -> list[Answer]:
        if self.task.output == "multiple_choice":
            answers = choices(questions, found, "raw" if self._chooses else self.measure)
            return constrained.choose(asker, questions, answers, self.design.seed, seen) if self._chooses else answers
        if self.task.output == "generate_until":
            return self._written(asker, questions, seen)
        return likelihood_of_texts(questions, found)

    def _written(self, asker: Asker, questions: Sequence[Question], seen: Seen) -> list[Answer]:
        prompts = [question.encoded[0].context for question in questions]
        texts = asker.texts([(prompt, self.task.generation) for prompt in prompts], self.design.seed, seen)
        answers = []
        for question, prompt in zip(questions, prompts, strict=True):
            task, row = question.trial.task, question.item.values
            gold, values, first = task.form.gold(row), {}, None
            written = texts[prompt, self.task.generation]
            for chain in task.filters:
                left = apply(chain, written, row)
                for metric in task.metrics:
                    value = score_text(metric, gold, left, row)
                    values[f"{metric.name},{chain.name}"] = value
                    first = (value, left) if first is None else first
            assert first is not None
            answers.append(
                Answer(
                    question.item, question.shots, question.asked, question.encoded, written=tuple(written),
                    gold=gold, prediction=first[1] if isinstance(first[1], str) else str(first[1]),
                    values={**values, "score": first[0]},
                )
            )  # fmt: skip
        return answers

    def _calibrated(
        self, way: Calibrate, questions: Sequence[Question], plain: Sequence[Answer], made: Preparation,
        found: Mapping[Encoded, Likelihood],
    ) -> Cell:  # fmt: skip
        """The same likelihoods after a correction."""
        condition, task = questions[0].trial.condition, questions[0].trial.task
        logprobs = np.array([answer.logprobs for answer in plain])
        if way == "batch":
            scores = calibration.batch(logprobs)
        else:
            shares = calibration.label_probabilities(logprobs)
            free = {
                dropped: [[float(np.exp(found[each].logprob)) for each in row] for row in rows]
                for (own, dropped), rows in made.content_free.items() if own == condition
            }  # fmt: skip
            scores = np.vstack(
                [
                    calibration.contextual(share[None], free[question.dropped])
                    for share, question in zip(shares, questions, strict=True)
                ]
            )
        answers = tuple(answer.choosing(list(row), "score") for answer, row in zip(plain, scores, strict=True))
        return Cell(replace(condition, variant=way), answers, of_the_choice(task, answers), of_the_choice=True)

    def _ways(self, trial: Trial) -> tuple[Calibrate, ...]:
        """The corrections that were asked for; calibrated zero-shot also as a baseline, where there are labels."""
        asked, task = self.settings.calibrate, trial.task
        if trial.condition.variant != "plain":
            return ()
        if asked or trial.condition.shots or not self.design.baselines or task.output != "multiple_choice":
            return asked
        try:
            content_free(task, self.items[0], "")
        except UsageError:
            return ()
        return ("contextual",) if same_labels(task) else ()

    def _near(self, asker: Asker, task: Task) -> Neighbours | None:
        """For --select similar: each item's nearest in the pool, by the model's own states of their questions."""
        most = max(self.design.shots)
        if self.design.select != "similar" or most == 0:
            return None

        def vectors(items: Sequence[Item]) -> np.ndarray:
            texts = [task.form.asks(item.values)[0][0] for item in items]
            return asker.embed(texts)

        pool = [item for item in task.pool if item.place not in {each.place for each in self.items}]
        if most > len(pool):
            raise UsageError(f"{most} shots cannot be chosen from {len(pool)} examples. Ask for fewer, or give more")
        found = nearest(vectors(pool), vectors(self.items), most)
        return {item.place: tuple(pool[n] for n in row) for item, row in zip(self.items, found, strict=True)}


def _read_alone(request: Encoded) -> int:
    """Tokens that are read for one request: the last of an answer is only predicted."""
    return len(request.context) + max(0, len(request.continuation) - 1)
