"""Evaluates prompts: every condition of a grid on every item, each answer kept as it comes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from ..base import UsageError
from ..generate import LanguageModel
from . import calibration
from .answers import Answer
from .asking import Asker, Question, Seen, seconds_for, tokens_to_read
from .chatting import ChatTemplate, chat_forms
from .filters import apply
from .metrics import aggregate, score_text
from .shots import embed, nearest, repeated
from .store import Store
from .task import Encoded, Item, Task
from .trials import Beyond, Condition, Design, Neighbours, Place, Trial, content_free, scored_items, trials_of

Measure = Literal["auto", "raw", "chars", "bytes", "tokens", "pmi", "constrained"]
Calibrate = Literal["contextual", "batch"]
MEASURE_OF_METRIC = {"acc": "raw", "acc_norm": "chars", "acc_bytes": "bytes", "acc_mutual_info": "pmi"}


@dataclass(frozen=True)
class Settings:
    """How answers are scored. `measure` "auto" is what the task's first metric says."""

    measure: Measure = "auto"
    premise: str | None = None  # of pointwise mutual information; None takes the template's last words
    calibrate: tuple[Calibrate, ...] = ()
    beyond: Beyond = "refuse"
    chat_template: ChatTemplate | None = None  # None: "on" where there is a system message, "off" without one
    system: str | None = None  # message, in front of the task's description

    def __post_init__(self) -> None:
        if self.chat_template == "off" and self.system is not None:
            raise UsageError("--system is a message of the chat template, which --chat-template off leaves out")

    @property
    def chat(self) -> ChatTemplate:
        """Whether prompts are the model's chat template, filled, or raw text, or each in turn."""
        return self.chat_template or ("off" if self.system is None else "on")


@dataclass(frozen=True)
class Cell:
    """One condition and its answers, in the order of the items. `metrics` are the task's own, over all items."""

    condition: Condition
    answers: tuple[Answer, ...]
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def scores(self) -> np.ndarray:
        """The score of every item, (items,)."""
        return np.array([answer.values["score"] for answer in self.answers])


@dataclass(frozen=True)
class Cost:
    """What an evaluation takes: tokens read, tokens read without sharing (`alone`), the most that is written."""

    requests: int
    tokens: int
    alone: int
    written: int
    longest: int  # tokens of the longest prompt with its answer
    context: int | None
    seconds: float  # at speeds measured on this machine; 0 if none were
    known: int = 0  # requests that the store answers


@dataclass(frozen=True)
class Notes:
    """What a user should know of the data and the prompts."""

    reading: tuple[str, ...] = ()
    repeated: int = 0  # scored items that say the same as one of the pool
    apart: tuple[tuple[str, str], ...] = ()  # answers that do not begin a token: end of prompt and answer, as tokens
    short_of_shots: int = 0  # prompts that lost shots to fit
    chat: tuple[str, ...] = ()  # models measured without the chat template that they have, in words


@dataclass(frozen=True)
class Collected:
    """All answers of an evaluation, before statistics."""

    task: Task
    items: tuple[Item, ...]
    cells: tuple[Cell, ...]
    measure: str
    costs: tuple[Cost, ...]
    notes: Notes
    seconds: float
    read: int  # tokens that went through a model this time
    same_shots: bool = True  # a draw is one set for all items; not those of lm-eval's mode, nor the nearest ones


Progress = Callable[[int, int], None]  # tokens done, tokens in all


def measure_of(task: Task, settings: Settings) -> str:
    """The way of choosing that a task's first metric means, or that a user asked for."""
    if settings.measure != "auto":
        return settings.measure
    return MEASURE_OF_METRIC.get(task.metrics[0].name, "raw") if task.metrics else "raw"


class Evaluation:
    """A grid on its way: `cost()` before the work, `run()` for the work."""

    def __init__(
        self,
        forms: Mapping[str, Task],
        models: Sequence[LanguageModel],
        design: Design,
        settings: Settings,
        store: Store,
    ) -> None:
        """`forms` are the same task in several forms, by name. Raises UsageError for what cannot be asked."""
        self.forms = chat_forms(forms, settings.chat, settings.system or "")
        self.models, self.design, self.settings, self.store = models, design, settings, store
        self.task = next(iter(self.forms.values()))
        _check(self.task, design, settings)
        _check_chat(self.task, models, settings)
        self.items = scored_items(self.task, design)
        self.measure = measure_of(self.task, settings)
        self.askers = [Asker(model, store) for model in models]
        self._prepared: dict[int, list[Question]] = {}
        self.notes = Notes(
            tuple(dict.fromkeys(note for task in self.forms.values() for note in task.notes)),
            len(repeated(self.task)) if max(design.shots) else 0,
            chat=_left_out(self.task, models, settings),
        )

    def questions(self, number: int) -> list[Question]:
        """All that model `number` is asked, rendered and tokenized once."""
        if number not in self._prepared:
            asker = self.askers[number]
            trials = [
                trial for name, task in self.forms.items()
                for trial in trials_of(task, asker.model.name, name, self.design, self.items, self._near(asker, task))
            ]  # fmt: skip
            made = asker.prepare(trials, self.items, self.settings.beyond)
            self._prepared[number] = made.questions
            apart = {(each.context[-1], each.continuation[0]) for each in made.apart}
            shown = tuple(
                (asker.model.tokenizer.token_text(last), asker.model.tokenizer.token_text(first))
                for last, first in sorted(apart)
            )
            self.notes = replace(
                self.notes, apart=self.notes.apart + shown, short_of_shots=self.notes.short_of_shots + made.beyond
            )
        return self._prepared[number]

    def cost(self, number: int = 0, timed: bool = True) -> Cost:
        """What model `number` has to do, and, if `timed`, how long it takes here, at speeds measured now."""
        questions, asker = self.questions(number), self.askers[number]
        encoded = list(dict.fromkeys(each for question in questions for each in question.encoded))
        writes = self.task.output == "generate_until"
        known = (
            self.store.texts(asker.key, [each.context for each in encoded], self.task.generation, self.design.seed)
            if writes
            else self.store.likelihoods(asker.key, encoded)
        )
        left = [each for place, each in enumerate(encoded) if place not in known]
        tokens = tokens_to_read(left)
        written = len(left) * self.task.generation.max_tokens * self.task.generation.repeats if writes else 0
        return Cost(
            requests=len(encoded),
            tokens=tokens,
            alone=sum(map(_size, left)),
            written=written,
            longest=max(map(_size, encoded)),
            context=asker.model.engine.model.longest,
            seconds=seconds_for(asker.model, tokens, written) if timed else 0.0,
            known=len(known),
        )

    def run(self, progress: Progress | None = None) -> Collected:
        """Ask everything that the store does not know."""
        began = time.perf_counter()
        costs = [self.cost(number, timed=False) for number in range(len(self.models))]
        total, done = sum(cost.tokens for cost in costs), 0

        def seen(tokens: int) -> None:
            nonlocal done
            done += tokens
            if progress is not None:
                progress(done, total)

        cells: list[Cell] = []
        for number, asker in enumerate(self.askers):
            cells += self._cells(asker, self.questions(number), seen)
        return Collected(
            self.task, self.items, tuple(cells), self.measure, tuple(costs), self.notes,
            time.perf_counter() - began, sum(asker.work.forwarded for asker in self.askers),
            not self.design.per_item and self.design.select != "similar",
        )  # fmt: skip

    def _cells(self, asker: Asker, questions: list[Question], seen: Seen) -> Iterator[Cell]:
        answers = self._answers(asker, questions, seen)
        by_condition: dict[Condition, list[Answer]] = {}
        for question, answer in zip(questions, answers, strict=True):
            by_condition.setdefault(question.trial.condition, []).append(answer)
        trials = {question.trial.condition: question.trial for question in questions}
        for condition, found in by_condition.items():
            cell = Cell(condition, tuple(found), aggregate(trials[condition].task, found))
            yield cell
            if condition.variant == "plain":
                yield from self._calibrated(asker, trials[condition], cell)

    def _answers(self, asker: Asker, questions: list[Question], seen: Seen) -> list[Answer]:
        if self.task.output == "multiple_choice":
            premise = self.settings.premise if self.settings.premise is not None else premise_of(self.task)
            return asker.choices(questions, self.measure, premise, seen)
        if self.task.output == "generate_until":
            return self._written(asker, questions, seen)
        return asker.likelihood_of_texts(questions, seen)

    def _written(self, asker: Asker, questions: list[Question], seen: Seen) -> list[Answer]:
        prompts = [question.encoded[0].context for question in questions]
        texts = asker.texts(prompts, self.task.generation, self.design.seed, seen)
        answers = []
        for question, prompt in zip(questions, prompts, strict=True):
            task, row = question.trial.task, question.item.values
            gold, values, first = task.form.gold(row), {}, None
            for chain in task.filters:
                left = apply(chain, texts[prompt], row)
                for metric in task.metrics:
                    value = score_text(metric, gold, left, row)
                    values[f"{metric.name},{chain.name}"] = value
                    first = (value, left) if first is None else first
            assert first is not None
            answers.append(
                Answer(
                    question.item, question.shots, question.asked, question.encoded, written=tuple(texts[prompt]),
                    gold=gold, prediction=first[1] if isinstance(first[1], str) else str(first[1]),
                    values={**values, "score": first[0]},
                )
            )  # fmt: skip
        return answers

    def _calibrated(self, asker: Asker, trial: Trial, cell: Cell) -> Iterator[Cell]:
        """The same likelihoods after each correction that was asked for."""
        for way in self._ways(trial):
            logprobs = np.array([answer.logprobs for answer in cell.answers])
            if way == "batch":
                scores = calibration.batch(logprobs)
            else:
                scores = calibration.contextual(
                    calibration.label_probabilities(logprobs), self._content_free(asker, trial)
                )
            answers = [answer.choosing(list(row), "score") for answer, row in zip(cell.answers, scores, strict=True)]
            yield Cell(replace(cell.condition, variant=way), tuple(answers))

    def _ways(self, trial: Trial) -> tuple[Calibrate, ...]:
        """The corrections that were asked for; calibrated zero-shot also as a baseline, where there are labels."""
        asked, task = self.settings.calibrate, trial.task
        if asked or trial.condition.shots or not self.design.baselines or task.output != "multiple_choice":
            return asked
        try:
            content_free(task, self.items[0], "")
        except UsageError:
            return ()
        return ("contextual",) if _same_labels(task) else ()

    def _content_free(self, asker: Asker, trial: Trial) -> list[list[float]]:
        """The labels' probabilities behind each input without content, shots before it."""
        rows = []
        for text in calibration.CONTENT_FREE:
            empty = content_free(trial.task, self.items[0], text)
            encoded = asker.encode(trial.task, trial.requests(_standing(empty, trial)))
            found = asker.likelihoods(encoded)
            rows.append([float(np.exp(found[each].logprob)) for each in encoded])
        return rows

    def _near(self, asker: Asker, task: Task) -> Neighbours | None:
        """For --select similar: each item's nearest in the pool, by the model's own states of their questions."""
        most = max(self.design.shots)
        if self.design.select != "similar" or most == 0:
            return None

        def vectors(items: Sequence[Item]) -> np.ndarray:
            texts = [task.form.asks(item.values)[0][0] for item in items]
            return embed(asker.model.engine.model, [tuple(asker.model.encode(text)) for text in texts])

        pool = [item for item in task.pool if item.place not in {each.place for each in self.items}]
        if most > len(pool):
            raise UsageError(f"{most} shots cannot be chosen from {len(pool)} examples. Ask for fewer, or give more")
        found = nearest(vectors(pool), vectors(self.items), most)
        return {item.place: tuple(pool[n] for n in row) for item, row in zip(self.items, found, strict=True)}


def _same_labels(task: Task) -> bool:
    """Whether all items have the same choices."""
    first = list(task.form.choices(task.items[0].values))
    return all(list(task.form.choices(item.values)) == first for item in task.items)


def _size(request: Encoded) -> int:
    return len(request.context) + len(request.continuation)


def _standing(item: Item, trial: Trial) -> Item:
    """An item whose shots can be looked up."""
    if None in trial.shots:
        return item
    first: Place = next(place for place in trial.shots if place is not None)
    return replace(item, split=first[0], index=first[1])


def premise_of(task: Task) -> str:
    """What a template says between its last gap and the answer: the domain, for pointwise mutual information."""
    template = getattr(task.form, "template", None)
    if template is None:
        return ""
    return str(template.parts[2 * template.names.index("output")]).strip()


def _check(task: Task, design: Design, settings: Settings) -> None:
    if settings.calibrate and task.output != "multiple_choice":
        raise UsageError("--calibrate corrects the choice among labels; this task has no labels")
    if settings.calibrate and design.select == "similar" and "contextual" in settings.calibrate:
        raise UsageError("contextual calibration needs one set of shots for all items. Use --calibrate batch")
    if settings.measure != "auto" and task.output != "multiple_choice":
        raise UsageError(f"--score {settings.measure} chooses among labels; this task has none")
    if max(design.shots) and task.output == "loglikelihood_rolling":
        raise UsageError(f"{task.name} measures the likelihood of whole texts, which takes no shots. Use --shots 0")
    if max(design.shots) > len(task.pool):
        raise UsageError(
            f"{max(design.shots)} shots cannot be drawn from {len(task.pool)} examples. Ask for fewer, or give more"
            " with --shots-from"
        )


def _check_chat(task: Task, models: Sequence[LanguageModel], settings: Settings) -> None:
    """Raises UsageError for a task or a model that cannot be asked as a chat."""
    if settings.chat == "off":
        return
    if task.output == "loglikelihood_rolling":
        raise UsageError(
            f"{task.name} measures the likelihood of whole texts, which are no chat. Use --chat-template off"
        )
    if measure_of(task, settings) == "pmi":
        raise UsageError("pmi compares with a premise, which is no chat. Use another --score, or --chat-template off")
    for model in models:
        if model.tokenizer.chat_template is None:
            raise UsageError(f"{model.name} has no chat template. Use --chat-template off, or another model")


def _left_out(task: Task, models: Sequence[LanguageModel], settings: Settings) -> tuple[str, ...]:
    """What to tell of models that have a chat template and are measured without it."""
    if settings.chat != "off" or task.output == "loglikelihood_rolling":
        return ()
    return tuple(
        f"{model.name} has a chat template and is measured without it; --chat-template both measures both ways"
        for model in models
        if model.tokenizer.chat_template is not None
    )
