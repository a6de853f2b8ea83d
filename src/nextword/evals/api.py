"""Evaluations from Python: from a task's name to scores with error bars in one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..base import UsageError
from ..weights.catalogue import DEFAULT_MODEL
from .design import Design, ScoringConfig
from .eval_run import EvalRun, Progress
from .provenance import provenance
from .scorers import with_scorer
from .store import opened
from .summary import Result, summarise
from .task import ScorerFunction, Task
from .task_loader import TaskOptions, open_task

if TYPE_CHECKING:
    from ..engine import LanguageModel
    from .served import ServedModel


def evaluate(
    task: str | Path | Task,
    model: str | LanguageModel | ServedModel | Sequence[str | LanguageModel | ServedModel] = DEFAULT_MODEL,
    *,
    shots: Sequence[int] | None = None,
    templates: Mapping[str, str] | None = None,
    design: Design | None = None,
    scoring: ScoringConfig | None = None,
    options: TaskOptions | None = None,
    scorer: str | ScorerFunction | None = None,
    store: Path | None = None,
    progress: Progress | None = None,
) -> Result:
    """Evaluate a task's prompts on one or more models, including served ones ("openai:http://host:port/v1#name").

    `task` is a built-in task's name, a task file, a file of rows (with `templates` by name), or a Task. `options`
    override a task file. `design` has seeds, permutations and limits (`shots` overrides its own); `scoring`: how
    choices are scored; `scorer`: how generated answers are, a name in `scorers.NAMES` or a function (answer, gold
    answer, row) -> 0 to 1. With `store`, a file, answers are kept and an interrupted call resumes. `progress(done,
    total)` reports tokens read.

    Raises UsageError for an invalid evaluation, RunError if the disk is full.
    """
    from .served import open_model

    wanted = shots if shots is not None else design.shots if design is not None else None
    if isinstance(task, Task):
        tasks = {task.name: task}
    else:
        hold_back = None if wanted is None else max(wanted, default=0) > 0
        tasks = open_task(str(task), templates, replace(options or TaskOptions(), hold_back=hold_back))
    if scorer is not None:
        tasks = {name: with_scorer(own, scorer) for name, own in tasks.items()}
    first = next(iter(tasks.values()))
    plan = replace(design or Design(), shots=tuple(wanted) if wanted is not None else (first.shots,))
    given = list(model) if isinstance(model, Sequence) and not isinstance(model, str) else [model]
    if not given:
        raise UsageError("no model given. Name at least one")
    models = [open_model(name) if isinstance(name, str) else name for name in given]
    with opened(store) as answers:
        run = EvalRun(tasks, models, plan, scoring or ScoringConfig(), answers)
        collected = run.run(progress)
        return replace(summarise(collected, plan.seed), provenance=provenance(run))
