"""How the answers of an evaluation are scored, and what a task or a model cannot be asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ..base import UsageError
from ..generate import LanguageModel
from .chatting import ChatTemplate
from .metrics import MEASURE_OF
from .task import Task
from .trials import Design, Overflow

Measure = Literal["auto", "raw", "chars", "bytes", "tokens", "pmi", "constrained"]
Calibrate = Literal["contextual", "batch"]


@dataclass(frozen=True)
class Settings:
    """How answers are scored. `measure` "auto" is what the task's first metric says."""

    measure: Measure = "auto"
    premise: str | None = None  # of pointwise mutual information; None takes the template's last words
    calibrate: tuple[Calibrate, ...] = ()
    overflow: Overflow = "error"
    chat_template: ChatTemplate | None = None  # None: "on" where there is a system message, "off" without one
    system: str | None = None  # message, in front of the task's description

    def __post_init__(self) -> None:
        if self.chat_template == "off" and self.system is not None:
            raise UsageError("--system is a message of the chat template, which --chat-template off leaves out")

    @property
    def chat(self) -> ChatTemplate:
        """Whether prompts are the model's chat template, filled, or raw text, or each in turn."""
        return self.chat_template or ("off" if self.system is None else "on")


def measure_of(task: Task, settings: Settings) -> str:
    """The way of choosing that a task's first metric means, or that a user asked for."""
    if settings.measure != "auto":
        return settings.measure
    return MEASURE_OF.get(task.metrics[0].name, "raw") if task.metrics else "raw"


def needs_premise(task: Task, settings: Settings) -> bool:
    """Whether the measure, or a metric of the task, compares a choice with itself behind a premise."""
    if task.output != "multiple_choice":
        return False
    return "pmi" in {measure_of(task, settings), *(MEASURE_OF.get(metric.name) for metric in task.metrics)}


def same_labels(task: Task) -> bool:
    """Whether all items have the same choices."""
    first = list(task.form.choices(task.items[0].values))
    return all(list(task.form.choices(item.values)) == first for item in task.items)


def check_settings(task: Task, design: Design, settings: Settings) -> None:
    if settings.calibrate and task.output != "multiple_choice":
        raise UsageError("--calibrate corrects the choice among labels; this task has no labels")
    if settings.calibrate and not same_labels(task):
        raise UsageError(f"{task.name}: its choices differ from item to item, so that there are no labels to calibrate")
    if "contextual" in settings.calibrate and max(design.shots) and (design.select == "similar" or design.per_item):
        raise UsageError("contextual calibration needs one set of shots for all items. Use --calibrate batch")
    if settings.measure != "auto" and task.output != "multiple_choice":
        raise UsageError(f"--score {settings.measure} chooses among labels; this task has none")
    if settings.premise is not None and not needs_premise(task, settings):
        raise UsageError("--premise is what pmi compares with, and nothing here does. Add --score pmi")
    if settings.premise is not None and design.per_item:
        raise UsageError("--compat lm-eval compares a choice with itself behind nothing. Leave out --premise")
    if max(design.shots) and task.output == "loglikelihood_rolling":
        raise UsageError(f"{task.name} measures the likelihood of whole texts, which takes no shots. Use --shots 0")
    if max(design.shots) > len(task.pool):
        raise UsageError(
            f"{max(design.shots)} shots cannot be drawn from {len(task.pool)} examples. Ask for fewer, or give more"
            " with --shots-from"
        )


def check_chat(task: Task, models: Sequence[LanguageModel], settings: Settings) -> None:
    """Raises UsageError for a task or a model that cannot be asked as a chat."""
    if settings.chat == "off":
        return
    if task.output == "loglikelihood_rolling":
        raise UsageError(
            f"{task.name} measures the likelihood of whole texts, which are no chat. Use --chat-template off"
        )
    for model in models:
        if model.tokenizer.chat_template is None:
            raise UsageError(f"{model.name} has no chat template. Use --chat-template off, or another model")


def unused_chat_templates(task: Task, models: Sequence[LanguageModel], settings: Settings) -> tuple[str, ...]:
    """What to tell of models that have a chat template and are measured without it."""
    if settings.chat != "off" or task.output == "loglikelihood_rolling":
        return ()
    return tuple(
        f"{model.name} has a chat template and is measured without it; --chat-template both measures both ways"
        for model in models
        if model.tokenizer.chat_template is not None
    )
