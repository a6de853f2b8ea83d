"""nextword compare-context: where transformer, LSTM, GRU and RNN stop using what came before."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..base import UsageError
from ._options import PICTURE
from .plan_options import COUNT, duration_in

if TYPE_CHECKING:
    from ..train.context_study import Study


@click.command(name="compare-context")
@click.argument("data", nargs=-1)
@click.option("--minutes", type=duration_in("min"), default="10", show_default=True, metavar="TIME", help="In all.")
@click.option("--params", "count", type=COUNT, default="600k", show_default=True, metavar="N", help="Of every kind.")
@click.option("--context", type=click.IntRange(8, 4096), default=256, show_default=True, metavar="TOKENS")
@click.option("--vocabulary", type=click.IntRange(257), default=2048, show_default=True, metavar="V")
@click.option("--kinds", default="transformer,lstm,gru,rnn", show_default=True, metavar="LIST")
@click.option("--quick", is_flag=True, help="The smallest tasks alone.")
@click.option("--widths", is_flag=True, help="Also how wide each must be to recall more pairs: as long again.")
@click.option("--seed", type=int, default=0, show_default=True, metavar="N")
@click.option("--plot", type=PICTURE, metavar="FILE", help="Draw it.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    data: tuple[str, ...], minutes: float, count: float, context: int, vocabulary: int, kinds: str, quick: bool,
    widths: bool, seed: int, plot: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Train every kind alike on DATA, then measure what each of them remembers.

    Loss against the position in the context and against how much of it may be seen, on held-out text; copying over a
    delay and associative recall; memory for a distance; training speed against threads and length. The sentences
    say what was measured here, also where a recurrent net wins.

    \b
    Example:
      nextword compare-context books/ --minutes 10 --plot context.svg
    """
    if not data:
        raise UsageError("give the text to train on, such as: nextword compare-context books/ --minutes 10")
    from ..data import prepare
    from ..train.context_study import KINDS, study
    from ..train.pictures import draw_study
    from ..weights.catalogue import cache_folder
    from ._console import messages

    chosen = tuple(kind.strip() for kind in kinds.split(","))
    if unknown := [kind for kind in chosen if kind not in KINDS]:
        raise UsageError(f"kind {unknown[0]!r} is not known. Known: {', '.join(KINDS)}")

    def say(text: str) -> None:
        messages().print(text, style="dim")

    from ..train.session import data_folder

    folder = data_folder(cache_folder(), list(data), "bpe", vocabulary)
    dataset = prepare(list(data), folder, vocabulary=vocabulary)
    sizes = {"copy": (5,), "recall": (2,)} if quick else None
    found = study(dataset, minutes, context, count, chosen, sizes, seed, say, minutes if widths else 0.0)  # type: ignore[arg-type]
    if as_json:
        from dataclasses import asdict

        from ._console import emit_json

        units = {"loss": "nats/token", "state_bytes": "bytes", "tokens_per_second": "tokens/s"}
        emit_json({**asdict(found), "findings": found.findings(), "units": units})
    else:
        _print(found)
    if plot is not None:
        draw_study(found, plot)


def _print(found: Study) -> None:
    from ._console import output
    from .plan_tables import plain_table

    console = output()
    places = [each.at for each in found.kinds[0].by_position]
    console.print("held-out loss, nats a token, after so many tokens of context", style="bold")
    table = plain_table("", *(f"{place:,}" for place in places))
    for each in found.kinds:
        table.add_row(each.kind, *(f"{mean.mean:.2f}" for mean in each.by_position))
    console.print(table)
    console.print("\nloss of a token, given only the last so many", style="bold")
    table = plain_table("", *(f"{mean.at:,}" for mean in found.kinds[0].by_visible))
    for each in found.kinds:
        table.add_row(each.kind, *(f"{mean.mean:.2f}" for mean in each.by_visible))
    console.print(table)
    console.print("\nmade-up tasks, share of answers right", style="bold")
    names = [(result.task, result.size) for result in found.kinds[0].tasks]
    table = plain_table("", *(f"{task} {size}" for task, size in names))
    for each in found.kinds:
        table.add_row(each.kind, *(f"{result.accuracy:.0%}" for result in each.tasks))
    console.print(table)
    console.print()
    for sentence in found.findings():
        console.print(f"- {sentence}")
