"""nextword eval --lm-eval: lm-evaluation-harness tasks on nextword's engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..base import UsageError
from ..weights.catalogue import DEFAULT_MODEL
from ._console import emit_json, output
from ._options import LOADING_OPTIONS, load_config
from ._table import plain_table

if TYPE_CHECKING:
    from ..evals.lm_eval_adapter import LMEvalOptions, LMEvalResult
    from .eval import Arguments

LM_EVAL_OPTIONS = (  # the options of `eval` that work with --lm-eval
    "-m", "--shots", "--limit", "--chat-template", "--system", "--max-tokens", "--seed", "--include-path", "--out",
    *LOADING_OPTIONS, "--json",
)  # fmt: skip


def run_lm_eval(arguments: Arguments, seeded: bool) -> None:
    """Run tasks and print their results. `seeded`: whether the user chose a seed; otherwise it is lm_eval's own.

    Raises UsageError for what lm_eval cannot do.
    """
    from ..evals.lm_eval_adapter import run_tasks

    models = arguments.models or (DEFAULT_MODEL,)
    for option, values in (("--model", models), ("--shots", arguments.shots or ())):
        if len(values) > 1:
            raise UsageError(f"--lm-eval takes one {option}, not {len(values)}. Run it once for each")
    if models[0].startswith("openai:"):
        raise UsageError(
            "--lm-eval runs on nextword's own engine. For a served model use lm_eval's model local-completions"
        )
    tasks = [name for name in str(arguments.lm_eval).split(",") if name]
    if not tasks:
        raise UsageError("--lm-eval names no task. Name some, such as arc_easy,hellaswag")
    result = run_tasks(models[0], tasks, _options(arguments, seeded), load_config(vars(arguments)))
    if arguments.as_json:
        emit_json(result.to_dict())
    else:
        _print(result)


def _options(arguments: Arguments, seeded: bool) -> LMEvalOptions:
    from ..evals.lm_eval_adapter import LMEvalOptions

    chat = arguments.scoring().chat
    if chat == "both":
        raise UsageError("--lm-eval takes --chat-template on or off, not both")
    return LMEvalOptions(
        None if arguments.shots is None else arguments.shots[0], arguments.limit, chat == "on", arguments.system,
        arguments.max_tokens, arguments.seed if seeded else LMEvalOptions.seed, arguments.include_path, arguments.out,
    )  # fmt: skip


def _print(result: LMEvalResult) -> None:
    table = plain_table("task", "filter", "shots", "metric", "value", "± stderr", left=2)
    table.columns[3].justify = "left"
    for row in result.rows:
        shots = "" if row.num_fewshot is None else str(row.num_fewshot)
        stderr = "" if row.stderr is None else f"{row.stderr:.4f}"
        value = f"{row.value:.4f}" if isinstance(row.value, float) else str(row.value)
        table.add_row(row.task, row.filter, shots, row.metric, value, stderr)
    output().print(table)
