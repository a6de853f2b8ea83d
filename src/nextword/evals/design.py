"""The design of an evaluation, how answers are scored, and checks of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from ..base import UsageError
from .task import Task

if TYPE_CHECKING:
    from .served import EvalModel

Overflow = Literal["error", "drop-shots"]
Sampler = Literal["random", "balanced", "first", "similar"]
ChoiceScoring = Literal["raw", "chars", "bytes", "tokens", "pmi", "constrained"]
Calibrate = Literal["contextual", "batch"]
ChatTemplate = Literal["off", "on", "both"]


def check_word(option: str, value: object, known: Any) -> None:
    """Raise UsageError for a value that is not in the Literal `known`."""
    if value not in get_args(known):
        raise UsageError(f"{option} {value!r} is not known. Known: {', '.join(get_args(known))}")


@dataclass(frozen=True)
class Condition:
    """A combination of the user's choices (model, template, shots) and random ones (seed, permutation)."""

    model: str
    template: str
    shots: int
    fewshot_seed: int = 0
    permutation: int = 0
    variant: str = "plain"  # or "random labels", "contextual", "batch"

    @property
    def choice(self) -> tuple[str, str, int, str]:
        """The user's choices."""
        return self.model, self.template, self.shots, self.variant


@dataclass(frozen=True)
class Design:
    """The conditions and items of an evaluation. Raises UsageError for invalid settings."""

    shots: tuple[int, ...] = (0,)
    fewshot_seeds: int = 5  # random sets of shots
    permutations: int = 1  # orders of each set
    sampler: Sampler = "random"
    seed: int = 0
    limit: int | None = None
    baselines: bool = True  # also shots with random labels, and calibrated zero-shot

    def __post_init__(self) -> None:
        check_word("--fewshot-sampler", self.sampler, Sampler)
        for name in ("fewshot_seeds", "permutations", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"--{name.replace('_', '-')} is {value}; it must be a whole number of at least 1")
        if not self.shots or min(self.shots) < 0 or len(set(self.shots)) < len(self.shots):
            raise UsageError(
                f"--shots is {list(self.shots)}; it takes distinct whole numbers of at least 0, such as 0,1,4"
            )

    @property
    def sets(self) -> int:
        """Sets of shots for each number of shots."""
        return 1 if self.sampler in ("first", "similar") else self.fewshot_seeds

    @property
    def shared_shots(self) -> bool:
        """Whether all items share a set of shots."""
        return self.sampler != "similar"


@dataclass(frozen=True)
class ScoringConfig:
    """How answers are scored. Raises UsageError for an unknown word, and for settings that exclude each other."""

    choice_scoring: ChoiceScoring = "raw"
    premise: str | None = None  # of pointwise mutual information; None: the template's last words
    calibrate: tuple[Calibrate, ...] = ()
    overflow: Overflow = "error"
    chat_template: ChatTemplate | None = None  # None: "on" with a system message, "off" without one
    system: str | None = None  # system message, before the task's description

    def __post_init__(self) -> None:
        check_word("--choice-scoring", self.choice_scoring, ChoiceScoring)
        check_word("--overflow", self.overflow, Overflow)
        check_word("--chat-template", self.chat, ChatTemplate)
        for method in self.calibrate:
            check_word("--calibrate", method, Calibrate)
            if self.calibrate.count(method) > 1:
                raise UsageError(f"--calibrate names {method} twice; name it once")
        if self.chat_template == "off" and self.system is not None:
            raise UsageError("--system needs the chat template. Leave out --chat-template off")

    @property
    def chat(self) -> ChatTemplate:
        """Whether prompts use the model's chat template, raw text, or both."""
        return self.chat_template or ("off" if self.system is None else "on")

    def premise_of(self, task: Task) -> str | None:
        """The premise that replaces the question in PMI scoring; None with other scoring."""
        if self.choice_scoring != "pmi":
            return None
        return task.format.template.last_words if self.premise is None else self.premise


def has_one_set_of_choices(task: Task) -> bool:
    """Whether all items have the same choices."""
    first = task.format.choices(task.items[0].values)
    return all(task.format.choices(item.values) == first for item in task.items)


def check_scoring(task: Task, design: Design, config: ScoringConfig) -> None:
    """Raise UsageError if the design or the scoring does not fit the task."""
    chooses, most = task.output == "multiple_choice", max(design.shots)
    if config.calibrate and not chooses:
        raise UsageError("--calibrate needs a choice among labels; this task has none")
    if config.calibrate and not has_one_set_of_choices(task):
        raise UsageError(f"{task.name}: its choices differ from item to item, so there are no labels to calibrate")
    if "contextual" in config.calibrate and most and not design.shared_shots:
        raise UsageError("contextual calibration needs one set of shots for all items. Use --calibrate batch")
    if config.choice_scoring != "raw" and not chooses:
        raise UsageError(f"--choice-scoring {config.choice_scoring} needs a choice among labels; this task has none")
    if config.premise is not None and config.choice_scoring != "pmi":
        raise UsageError("--premise is only used by pmi. Add --choice-scoring pmi")
    if most > len(task.fewshot_pool):
        raise UsageError(
            f"{most} shots cannot be drawn from {len(task.fewshot_pool)} examples. Use fewer, or give more with"
            " --shots-from"
        )


def check_chat(models: Sequence[EvalModel], config: ScoringConfig) -> None:
    """Raise UsageError for a model that cannot be prompted as a chat."""
    if config.chat == "off":
        return
    for model in models:
        if model.tokenizer.chat_template is None:
            raise UsageError(f"{model.name} has no chat template. Use --chat-template off, or another model")


def unused_chat_templates(models: Sequence[EvalModel], config: ScoringConfig) -> tuple[str, ...]:
    """Notes about models with a chat template that are prompted without it."""
    if config.chat != "off":
        return ()
    return tuple(
        f"{model.name} has a chat template but is prompted with raw text; --chat-template both compares the two"
        for model in models
        if model.tokenizer.chat_template
    )
