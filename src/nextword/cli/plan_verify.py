"""nextword plan verify: what past runs on this machine were predicted to take, and what they took."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ..base import units

if TYPE_CHECKING:
    from ..train.ledger import Entry


@click.command(name="verify")
@click.option("--last", type=click.IntRange(1), default=20, show_default=True, metavar="N", help="Runs to show.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with units.")
def command(last: int, as_json: bool) -> None:
    """Predicted beside measured, run after run on this machine, and what that changes in the next plan.

    `nextword train` adds a line when a run ends. The corrections are medians over the last eight runs of a kind: bytes
    added to the formula, the share of the peak that was reached, and a factor on the predicted loss.
    """
    from ..train import ledger

    here = [entry for entry in ledger.read() if entry.machine == ledger.machine()][-last:]
    if as_json:
        from ._console import emit_json

        emit_json({"ledger": str(ledger.path()), "runs": [_row(entry) for entry in here], "corrections": _learnt(here)})
        return
    from ._console import messages, output
    from .plan_tables import plain_table

    if not here:
        messages().print("no run has ended on this machine yet. Begin one: nextword train FOLDER --minutes 5")
        return
    table = plain_table("run", "parameters", "tokens", "time", "off by", "memory", "off by", "bits/byte", "off by",
                        least=((2,), (1,), (5, 6)))  # fmt: skip
    for entry, memory, seconds, loss in ledger.errors(here):
        table.add_row(
            entry.run.rsplit("/", 1)[-1], units.format_count(entry.parameters), units.format_count(entry.tokens),
            units.format_seconds(entry.measured_seconds), f"{seconds:+.1%}", units.format_bytes(entry.measured_memory),
            f"{memory:+.1%}", f"{entry.measured_bits:.3f}", f"{loss:+.1%}",
        )  # fmt: skip
    console = output()
    console.print(table)
    console.print("\noff by: predicted / measured - 1, of the plan as it stood before the run", style="dim")
    for kind, learnt in _learnt(here).items():
        console.print(
            f"the next {kind}: {learnt['memory_bytes'] / 1e6:+,.0f} MB on the formula, {learnt['share_of_peak']:.1%} of"
            f" the measured peak, {learnt['loss_factor']:.3f} times the law's loss (from {learnt['runs']} runs)"
        )


def _row(entry: Entry) -> dict[str, object]:
    from dataclasses import asdict

    return asdict(entry) | {"units": {"memory": "bytes", "seconds": "s", "bits": "bits/byte", "peak": "FLOP/s"}}


def _learnt(here: list[Entry]) -> dict[str, dict[str, float]]:
    from ..train import ledger

    found = {}
    for kind, precision in dict.fromkeys((entry.kind, entry.precision) for entry in here):
        known = ledger.correction(here, kind, precision)
        found[f"{kind} ({precision})"] = {
            "runs": known.runs,
            "memory_bytes": known.memory,
            "share_of_peak": known.share or 0.0,
            "loss_factor": known.loss,
        }
    return found
