"""nextword compare-context: how much context each architecture uses."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from ..base import UsageError, require_torch
from ..plan.run_config import DataConfig
from ..plots import save
from ..train.context_findings import cell, percent, sentences
from ..train.context_results import Study
from ._console import emit_json, messages, output
from ._options import plot_option
from ._table import plain_table
from .plan_options import COUNT, VOCABULARY, WholeNumber, duration_in


@click.command(name="compare-context")
@click.argument("data", nargs=-1)
@click.option("--minutes", type=duration_in("min"), default="10", show_default=True, metavar="TIME", help="In all.")
@click.option("--params", "count", type=COUNT, default="600k", show_default=True, metavar="N", help="Of each model.")
@click.option("--context", type=WholeNumber(8, 4096), default=256, show_default=True, metavar="TOKENS")
@click.option("--vocabulary", type=VOCABULARY, default=2048, show_default=True, metavar="V")
@click.option("--kinds", default="transformer,lstm,gru,rnn", show_default=True, metavar="LIST")
@click.option("--quick", is_flag=True, help="Run only the smallest tasks.")
@click.option("--widths", is_flag=True, help="Also find the width each needs to recall more pairs; doubles the time.")
@click.option("--seed", type=int, default=0, show_default=True, metavar="N")
@plot_option("Draw it")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    data: tuple[str, ...], minutes: float, count: float, context: int, vocabulary: int, kinds: str, quick: bool,
    widths: bool, seed: int, plot: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Train every kind of model the same way on DATA, then measure how far back each remembers.

    Measures held-out loss by position and by visible context, copying over a delay, associative recall, memory over
    a distance, and training speed by threads and length. Every kind gets the same steps, three learning rates and
    three seeds. Every number has its 95% interval, and results from too little training are marked as such. Half of
    the time goes to the text, 40% to the tasks, 10% to the speed.

    \b
    Example:
      nextword compare-context books/ --minutes 10 --plot context.svg
    """
    if not data:
        raise UsageError("give the text to train on, such as: nextword compare-context books/ --minutes 10")
    require_torch("training")
    from ..data import prepare_in
    from ..train.context_study import KINDS, study
    from ..train.plots import study_figure
    from ..weights.catalogue import cache_folder

    chosen = tuple(kind.strip() for kind in kinds.split(","))
    if unknown := [kind for kind in chosen if kind not in KINDS]:
        raise UsageError(f"kind {unknown[0]!r} is not known. Known: {', '.join(KINDS)}")

    def log(text: str) -> None:
        messages().print(text, style="dim")

    dataset = prepare_in(cache_folder() / "data", list(data), DataConfig(vocabulary=vocabulary), log=log)
    sizes = {"copy": (5,), "recall": (2,)} if quick else None
    result = study(dataset, minutes, context, count, chosen, sizes, seed, log, widths)  # type: ignore[arg-type]
    if as_json:
        units = {"loss": "nats/token", "state_bytes": "bytes", "tokens_per_second": "tokens/s"}
        emit_json({**asdict(result), "findings": sentences(result), "units": units})
    else:
        _print(result)
    if plot is not None:
        save(study_figure(result), plot)


def _print(result: Study) -> None:
    console = output()
    console.print(
        f"{result.plan.text_steps:,} steps on the text and {result.plan.task_steps:,} on each task for every kind,"
        f" rate and seed; ± is the {result.confidence:.0%} interval over {len(result.seeds)} seeds and held-out text\n"
    )
    first, kinds = result.kinds[0], result.kinds
    tables = {
        "held-out loss, nats per token, by tokens of context before it": [
            (f"{mean.at:,}", [cell(model.by_position[n].estimate, 2) for model in kinds])
            for n, mean in enumerate(first.by_position)
        ],
        "loss of a token, given only the last N tokens": [
            (f"{mean.at:,} to {2 * mean.at - 1:,}", [cell(model.by_visible[n].estimate, 2) for model in kinds])
            for n, mean in enumerate(first.by_visible)
        ],
        "synthetic tasks, % of answers correct": [
            (f"{task.task} {task.size}", [percent(model.tasks[n].accuracy).replace(" ", "") for model in kinds])
            for n, task in enumerate(first.tasks)
        ],
        "training speed on one row, tokens/s, threads x length": [
            (name, [cell(model.tokens_per_second[name], 0) for model in kinds])
            for name in first.tokens_per_second
        ],
    }  # fmt: skip
    for title, rows in tables.items():
        _table(title, [model.kind for model in kinds], rows)
    for sentence in sentences(result):
        console.print(f"- {sentence}")


def _table(title: str, kinds: list[str], rows: list[tuple[str, list[str]]]) -> None:
    output().print(title, style="bold")
    table = plain_table("", *kinds)
    for name, cells in rows:
        table.add_row(name, *cells)
    output().print(table)
    output().print()
