"""nextword runs calibration: predicted and measured costs of past runs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import click

from ..base import units
from ..plan.small_runs import LEVEL, small_law
from .plan_options import WholeNumber

if TYPE_CHECKING:
    from ..train.calibration import Entry


@click.command(name="calibration", short_help="Past runs on this machine: predicted and measured.")
@click.option("--last", type=WholeNumber(1, 1 << 20), default=20, show_default=True, metavar="N", help="Runs to show.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with units.")
def command(last: int, as_json: bool) -> None:
    """Predictions and measurements of past runs on this machine, and how they correct the next plan.

    `nextword train` adds a line when a run ends. Corrections come from the last eight similar runs: same kind and
    precision, at least 300 steps, at most four times larger or smaller. The share of the peak is their median; the loss
    is that of the law of small runs, corrected by similar runs on the same text.
    `runs forget` removes a run.
    """
    from ..train import calibration

    here = [entry for entry in calibration.read() if entry.machine == calibration.machine()][-last:]
    memory, seconds = calibration.within_tolerance(here)
    if as_json:
        from ._console import emit_json

        emit_json(
            {
                "ledger": str(calibration.path()), "runs": [_row(entry) for entry in here],
                "loss_intervals": dict(zip(("held", "of"), calibration.coverage(here), strict=True)),
                "within_tolerance": {"memory": memory, "seconds": seconds, "of": len(here)},
                "tolerance": calibration.TOLERANCE,
                "corrections": _learnt(here),
            }
        )  # fmt: skip
        return
    from ._console import messages, output
    from ._table import plain_table

    if not here:
        messages().print("no run has finished on this machine yet. Start one: nextword train FOLDER --minutes 5")
        return
    table = plain_table("run", "parameters", "tokens", "time", "off by", "memory", "off by", "bits/byte", "off by",
                        "interval", least=((2,), (1,), (9,), (5, 6)))  # fmt: skip
    for entry, memory_error, time_error, loss_error in calibration.errors(here):
        table.add_row(
            entry.run.rsplit("/", 1)[-1], units.format_count(entry.parameters), units.format_count(entry.tokens),
            units.format_seconds(entry.measured_seconds), f"{time_error:+.1%}",
            units.format_bytes(entry.measured_memory), f"{memory_error:+.1%}",
            f"{entry.measured_bits:.3f}", f"{loss_error:+.1%}", _interval(entry),
        )  # fmt: skip
    console = output()
    console.print(table)
    console.print("\noff by: predicted / measured - 1, of the plan made before the run", style="dim")
    console.print(
        f"within {calibration.TOLERANCE:.0%} of the plan: memory in {memory} of {len(here)} runs, time in {seconds}"
    )
    held, of = calibration.coverage(here)
    if of:
        console.print(f"the loss was in its interval in {held} of {of} runs; {LEVEL:.0%} are expected")
    for learnt in _learnt(here):
        console.print(
            f"the next {learnt['kind']} ({learnt['precision']}) of about {units.format_count(learnt['parameters'])} on"
            f" the text of {learnt['run']}: {_share(learnt['share_of_peak'])}, {learnt['loss_factor']:.3f} times"
            f" the law's loss ({learnt['loss_low']:.3f} to {learnt['loss_high']:.3f}: {learnt['loss_interval_is']})"
        )


def _interval(entry: Entry) -> str:
    """The stated interval of the loss, marked if the loss was outside it."""
    if math.isnan(entry.low_bits):
        return ""
    return f"{entry.low_bits:.3f}–{entry.high_bits:.3f}{'' if entry.held else ' !'}"


def _share(share: float | None) -> str:
    return "no share of the peak known" if share is None else f"{share:.1%} of the measured peak"


def _row(entry: Entry) -> dict[str, object]:
    from dataclasses import asdict

    return asdict(entry) | {"units": {"memory": "bytes", "seconds": "s", "bits": "bits/byte", "peak": "FLOP/s"}}


def _learnt(here: list[Entry]) -> list[dict[str, Any]]:
    """The corrections for a run like the last one of each text, kind and precision."""
    from ..train import calibration

    found = []
    for last in {(entry.kind, entry.precision, entry.data): entry for entry in here}.values():
        known = calibration.correction(here, last.kind, last.precision, last.data, last.parameters, last.tokens)
        loss = small_law().factor(known.losses)
        found.append({
            "kind": last.kind,
            "precision": last.precision,
            "data": last.data,
            "parameters": last.parameters,
            "run": last.run.rsplit("/", 1)[-1],
            "runs": known.runs,
            "share_of_peak": known.share,
            "loss_factor": loss.value,
            "loss_low": loss.low,
            "loss_high": loss.high,
            "loss_interval_is": loss.basis,
        })  # fmt: skip
    return found
