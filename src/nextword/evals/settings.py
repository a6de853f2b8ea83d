"""How answers are scored, and the checks that a task, a model and the settings fit together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ..base import UsageError
from ..engine import LanguageModel
from .chatting import ChatTemplate
from .metrics import MEASURE_OF
from .task import Task
from .trials import Design, Overflow, check_word

Measure = Literal["auto", "raw", "chars", "bytes", "tokens", "pmi", "constrained"]
Calibrate = Literal["contextual", "batch"]


@dataclass(frozen=True)
class Settings:
    """How answers are scored. `measure` "auto" is what the task's first metric says.

    Raises UsageError for an unknown word, and for settings that exclude each other.
    """

    measure: Measure = "auto"
    premise: str | None = None  # of pointwise mutual information; None takes the template's last words
    calibrate: tuple[Calibrate, ...] = ()
    overflow: Overflow = "error"
    chat_template: ChatTemplate | None = None  # None: "on" where there is a system message, "off" without one
    system: str | None = None  # message, in front of the task's description

    def __post_init__(self) -> None:
        check_word("--score", self.measure, Measure)
        check_word("--overflow", self.overflow, Overflow)
        check_word("--chat-template", self.chat, ChatTemplate)
        for way in self.calibrate:
            check_word("--calibrate", way, Calibrate)
            if self.calibrate.count(way) > 1:
                raise UsageError(f"--calibrate names {way} twice; name it once")
        if self.chat_template == "off" and self.system is not None:
            raise UsageError("--system needs the chat template. Leave out --chat-template off")

    @property
    def chat(self) -> ChatTemplate:
        """Whether prompts use the model's chat template, raw text, or both."""
        return self.chat_template or ("off" if self.system is None else "on")


def measure_of(task: Task, settings: Settings) -> str:
    """The measure that a user asked for, or else that of the task's first metric."""
    if settings.measure != "auto":
        return settings.measure
    return MEASURE_OF.get(task.metrics[0].name, "raw") if task.metrics else "raw"


def needs_premise(task: Task, settings: Settings) -> bool:
    """Whether the measure, or a metric of the task, compares each choice with itself after a premise."""
    if task.output != "multiple_choice":
        return False
    return "pmi" in {measure_of(task, settings), *(MEASURE_OF.get(metric.name) for metric in task.metrics)}


def same_labels(task: Task) -> bool:
    """Whether all items have the same choices."""
    first = list(task.form.choices(task.items[0].values))
    return all(list(task.form.choices(item.values)) == first for item in task.items)


def check_settings(task: Task, design: Design, settings: Settings) -> None:
    """Raise UsageError where the design or the settings do not fit the task."""
    if settings.calibrate and task.output != "multiple_choice":
        raise UsageError("--calibrate needs a choice among labels; this task has none")
    if settings.calibrate and not same_labels(task):
        raise UsageError(f"{task.name}: its choices differ from item to item, so there are no labels to calibrate")
    if "contextual" in settings.calibrate and max(design.shots) and (design.select == "similar" or design.per_item):
        raise UsageError("contextual calibration needs one set of shots for all items. Use --calibrate batch")
    if settings.measure != "auto" and task.output != "multiple_choice":
        raise UsageError(f"--score {settings.measure} needs a choice among labels; this task has none")
    if settings.premise is not None and not needs_premise(task, settings):
        raise UsageError("--premise is only used by pmi. Add --score pmi")
    if settings.premise is not None and design.per_item:
        raise UsageError("--compat lm-eval uses an empty premise. Leave out --premise")
    if max(design.shots) and task.output == "loglikelihood_rolling":
        raise UsageError(f"{task.name} measures the likelihood of whole texts and takes no shots. Use --shots 0")
    if max(design.shots) > len(task.pool):
        raise UsageError(
            f"{max(design.shots)} shots cannot be drawn from {len(task.pool)} examples. Ask for fewer, or give more"
            " with --shots-from"
        )


def check_chat(task: Task, models: Sequence[LanguageModel], settings: Settings) -> None:
    """Raise UsageError for a task or a model that cannot be prompted as a chat."""
    if settings.chat == "off":
        return
    if task.output == "loglikelihood_rolling":
        raise UsageError(
            f"{task.name} measures the likelihood of whole texts, which cannot be a chat. Use --chat-template off"
        )
    for model in models:
        if model.tokenizer.chat_template is None:
            raise UsageError(f"{model.name} has no chat template. Use --chat-template off, or another model")


def unused_chat_templates(task: Task, models: Sequence[LanguageModel], settings: Settings) -> tuple[str, ...]:
    """Notes on models that have a chat template and are prompted without it."""
    if settings.chat != "off" or task.output == "loglikelihood_rolling":
        return ()
    return tuple(
        f"{model.name} has a chat template but is prompted with raw text; --chat-template both compares the two"
        for model in models
        if model.tokenizer.chat_template is not None
    )
