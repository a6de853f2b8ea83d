"""nextword eval runs: list, show and remove stored evaluations."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ._app import CommandGroup, Suggesting

if TYPE_CHECKING:
    from ..evals.store import Store

_SECTIONS = {  # the options of `eval` as its help groups them; those in no section come last
    "Task and prompts": ("models", "shots", "templates", "target", "labels", "generate", "group", "shots_from",
                         "description", "separator", "system", "chat_template", "limit", "skip_invalid", "as_list"),
    "Few-shot examples": ("fewshot_seeds", "permutations", "sampler", "seed", "overflow"),
    "lm-evaluation-harness": ("lm_eval", "include_path"),
    "Scoring": ("choice_scoring", "scorer", "premise", "calibrate", "no_baselines", "max_tokens"),
    "Statistics": ("power", "require", "at_least", "show_seeds"),
    "Output": ("dry_run", "report", "out", "as_json"),
    "Store": ("name", "store", "no_store", "compare"),
    "Model": ("dtype", "kv_dtype", "device", "threads", "concurrency", "timeout"),
}  # fmt: skip


class EvalGroup(CommandGroup):
    """The options of `eval` in sections."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        options = [option for option in self.get_params(ctx) if option.opts[0][0] == "-"]
        records = {option.name: option.get_help_record(ctx) for option in options}
        listed = {name for names in _SECTIONS.values() for name in names}
        for title, names in (*_SECTIONS.items(), ("Other options", [name for name in records if name not in listed])):
            if rows := [record for name in names if (record := records.get(name)) is not None]:
                with formatter.section(title):
                    formatter.write_dl(rows)
        self.format_commands(ctx, formatter)


_store_option = click.option(
    "--store", "path", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="FILE",
    help="Database of stored evaluations.  [default: in the cache]",
)  # fmt: skip


def _opened(path: Path | None) -> AbstractContextManager[Store]:
    from ..evals.store import default_path, opened

    return opened(path or default_path())


@click.group(name="runs", cls=Suggesting)
def runs() -> None:
    """List, show and remove stored evaluations.

    NAME is a name from the list, a unique prefix of one, or last, last~1, ... for the newest ones.

    \b
    Examples:
      nextword eval runs list
      nextword eval runs show last
      nextword eval runs remove last~1
    """


@runs.command(name="list")
@_store_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_runs(path: Path | None, as_json: bool) -> None:
    """List the stored evaluations, newest last."""
    from .eval_display import print_runs

    with _opened(path) as store:
        print_runs(store, as_json)


@runs.command(name="show")
@click.argument("name")
@_store_option
@click.option("--show-seeds", is_flag=True, help="Also print a row for each few-shot seed and permutation.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(name: str, path: Path | None, show_seeds: bool, as_json: bool) -> None:
    """Show an evaluation as it was first printed."""
    from ..evals.stored import result_of
    from ._console import emit_json
    from .eval_display import print_provenance, print_result

    with _opened(path) as store:
        stored = store.evaluation(name)
    if as_json:
        emit_json({"name": stored.name, "finished": stored.finished, **stored.result})
        return
    result = result_of(stored)
    print_result(result, stored.name, show_seeds=show_seeds)
    if result.provenance is not None:
        print_provenance(result.provenance)


@runs.command(name="remove")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@_store_option
def remove(names: tuple[str, ...], path: Path | None) -> None:
    """Remove evaluations. Their answers stay in the store, so running one again needs no model calls."""
    from ._console import messages

    with _opened(path) as store:
        removed = store.remove(names)
    messages().print(f"removed {', '.join(removed)}; the answers stay in the store")


def complete_task(context: click.Context, parameter: click.Parameter, typed: str) -> list[Any]:
    """Names of built-in tasks and subcommands that start with `typed`; files if none does."""
    from click.shell_completion import CompletionItem

    from ..evals.task_files import builtin_tasks

    known = {**builtin_tasks(), "runs": runs.get_short_help_str()}
    items = [CompletionItem(name, help=text) for name, text in known.items() if name.startswith(typed)]
    return items or [CompletionItem(typed, type="file")]
