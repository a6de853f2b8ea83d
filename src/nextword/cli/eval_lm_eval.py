"""nextword eval --lm-eval TASK,...: tasks of lm-evaluation-harness on nextword's engine, with its own numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..base import UsageError
from ._console import emit_json, output
from ._options import DEFAULT_MODEL
from .plan_tables import plain_table

if TYPE_CHECKING:
    from ..evals.lm_eval_adapter import LMEvalResult

TAKEN = (
    "-m", "--shots", "--limit", "--chat-template", "--system", "--max-tokens", "--seed", "--include-path", "--out",
    "--dtype", "--device", "--json",
)  # fmt: skip
"""The options of `eval` that `--lm-eval` takes."""


def run(names: str, options: dict[str, Any], seed: int | None) -> None:
    """Run tasks and print their numbers. `options` are those of `eval`, `seed` is None if none was given.

    Raises UsageError for what lm_eval cannot do.
    """
    from ..evals.lm_eval_adapter import LMEvalOptions, run_tasks

    models, shots = options["models"] or (DEFAULT_MODEL,), options["shots"] or (None,)
    for option, values in (("--model", models), ("--shots", shots)):
        if len(values) > 1:
            raise UsageError(f"--lm-eval takes one {option}, not {len(values)}. Run it once for each")
    if models[0].startswith("openai:"):
        raise UsageError(
            "--lm-eval runs on nextword's own engine. For a served model use lm_eval's model local-completions"
        )
    if options["chat_template"] == "both":
        raise UsageError("--lm-eval takes --chat-template on or off, not both")
    tasks = [name for name in names.split(",") if name]
    if not tasks:
        raise UsageError("--lm-eval names no task. Name some, as arc_easy,hellaswag")
    settings = LMEvalOptions(
        num_fewshot=shots[0], limit=options["limit"], system=options["system"], max_tokens=options["max_tokens"],
        chat_template=options["chat_template"] == "on" or options["system"] is not None,
        include_path=options["include_path"], out=options["out"],
        **({} if seed is None else {"seed": seed}),
    )  # fmt: skip
    result = run_tasks(models[0], tasks, settings, options["dtype"], options["device"])
    if options["as_json"]:
        emit_json(result.to_dict())
    else:
        _print(result)


def _print(result: LMEvalResult) -> None:
    table = plain_table("task", "filter", "shots", "metric", "value", "± stderr", left=2)
    table.columns[3].justify = "left"
    for row in result.rows:
        shots = "" if row.num_fewshot is None else str(row.num_fewshot)
        stderr = "" if row.stderr is None else f"{row.stderr:.4f}"
        value = f"{row.value:.4f}" if isinstance(row.value, float) else str(row.value)
        table.add_row(row.task, row.filter, shots, row.metric, value, stderr)
    output().print(table)
