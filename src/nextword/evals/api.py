"""Evaluations from Python: one call from a task's name to numbers with error bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ..base import UsageError
from ..engine import LanguageModel, load
from .checking import checked
from .evaluation import Evaluation, Progress
from .opening import open_task
from .provenance import provenance
from .scorers import ScorerFunction, scored_by
from .settings import Settings
from .store import opened
from .summary import Result, summarise
from .table import TableSettings
from .task import Task
from .trials import Design


def evaluate(
    task: str | Path | Task,
    model: str | LanguageModel | Sequence[str | LanguageModel] = "smollm2-135m-instruct",
    *,
    shots: Sequence[int] | None = None,
    templates: Mapping[str, str] | None = None,
    design: Design | None = None,
    settings: Settings | None = None,
    table: TableSettings | None = None,
    scorer: str | ScorerFunction | None = None,
    store: Path | None = None,
    progress: Progress | None = None,
) -> Result:
    """Measure a task's prompts on one or several models.

    `task` is a shipped task's name, a lm-evaluation-harness file, a file of rows (with `templates` by name), or a Task.
    `table` says how rows become a task, or what is said in place of a task file's own. `design` says draws, orders,
    limits (`shots` overrides its own); `settings` how choices are scored; `scorer` how free answers are: a name of
    `scorers.NAMES`, or a function of the answer, the gold answer and the row that gives 0 to 1. With `store`, a file,
    answers are kept and an interrupted call goes on; without it nothing is.
    `progress(done, total)` is told of tokens read. `Result.table()` gives rows for pandas or polars.

    Raises UsageError for what cannot be asked, RunError where the disk is full.
    """
    wanted = shots if shots is not None else design.shots if design is not None else (0,)
    rows = replace(
        table or TableSettings(), hold_back=max(wanted, default=0) > 0, compat=design is not None and design.per_item
    )
    forms = {task.name: checked(task, rows)} if isinstance(task, Task) else open_task(str(task), templates or {}, rows)
    if scorer is not None:
        forms = scored_by(forms, scorer, design is not None and design.per_item)
    first = next(iter(forms.values()))
    counts = tuple(shots) if shots is not None else design.shots if design is not None else (first.shots,)
    plan = replace(design or Design(), shots=counts)
    given = [model] if isinstance(model, str | LanguageModel) else list(model)
    if not given:
        raise UsageError("which model? Name at least one")
    models = [each if isinstance(each, LanguageModel) else load(each) for each in given]
    with opened(store) as kept:
        evaluation = Evaluation(forms, models, plan, settings or Settings(), kept)
        collected, made = evaluation.run(progress), provenance(evaluation)
    return replace(summarise(collected, plan.seed), provenance=made)
