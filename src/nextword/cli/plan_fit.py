"""nextword plan fit: the cheapest change that makes a training run fit on a device."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..base import units
from .plan_options import Target, find_device, model_argument, output_options, target, training_options
from .plan_train import setup_line, training

if TYPE_CHECKING:
    from rich.console import Console

    from ..plan import Device, Diagnosis
    from ..plan.fit_search import Remedy

_SHOWN = 8


@click.command(name="fit")
@model_argument
@training_options
@click.option("--device", required=True, metavar="NAME",
              help="A name, `this` (measured), or NAME=24GB,1TB/s,165TFLOP/s.")  # fmt: skip
@output_options
def command(
    model: str | None, params: float | None, kind: str | None, device: str, explain: bool, as_json: bool,
    plot: Path | None, **setup: Any,
) -> None:  # fmt: skip
    """The cheapest changes that make a training run fit on a device, ranked, each with its cost in time.

    First come those after which the same model is learned. --devices above 1 offers sharding over them.

    \b
    Examples:
      nextword plan fit --params 1B --device rtx4090 --batch 16 --context 2048
      nextword plan fit llama-3-8b --device h100 --devices 8
    """
    from ..plan.fit_search import diagnose

    about, on = target(model, params, kind), find_device(device)
    run = training(about, setup, on)
    found = diagnose(about.spec, run, on)
    if as_json:
        from ._console import emit_json

        emit_json(_json(about, found, on))
    else:
        from ._console import output

        _print(about, found, on, output())
        if explain:
            _explain(about, found, output())
    if plot is not None:
        from ..plan.pictures import draw_remedies

        draw_remedies(about.spec, found, f"{about.name} on {on.title}", plot)


def _print(about: Target, found: Diagnosis, on: Device, console: Console) -> None:
    from .plan_tables import describe

    console.print(describe(about))
    console.print(f"{setup_line(found.asked)}\n")
    needed, room = units.format_bytes(found.needed), units.format_bytes(on.memory)
    if found.fits:
        console.print(f"fits: {needed} of {room} on {on.title}", style="green")
        console.print(f"largest batch {found.largest_batch:,}, longest context {found.longest_context:,}")
        return
    short = units.format_bytes(found.needed - on.memory)
    console.print(f"does not fit: {needed} needed, {room} on {on.title}: {short} short\n", style="red")
    if found.remedies:
        console.print(_table(found.remedies[:_SHOWN]))
        console.print(
            "\ntime: relative to the run as asked for; FLOPs are counted, other costs assumed (--explain)", style="dim"
        )
        return
    if found.closest is not None:
        names = " + ".join(change.name for change in found.closest.changes)
        console.print(f"nothing makes it fit. The least is {units.format_bytes(found.closest.needed)}: {names}")
    count = found.devices_needed
    if count:
        console.print(f"{count:,} such devices hold it with FSDP and full recomputation: --devices {count}")
    else:
        console.print("even 4,096 such devices with FSDP and full recomputation do not hold it: shorten --context")


def _table(remedies: tuple[Remedy, ...]) -> Any:
    from .plan_tables import plain_table

    table = plain_table("changes", "memory", "time", "learns", wraps=(0,), least=((3,),))
    for remedy in remedies:
        table.add_row(
            " + ".join(change.name for change in remedy.changes),
            units.format_bytes(remedy.needed),
            f"{remedy.time:.2f}x",
            "the same" if remedy.same_result else "otherwise",
            style="" if remedy.same_result else "dim",
        )
    return table


def _explain(about: Target, found: Diagnosis, console: Console) -> None:
    from ..plan.training import training_memory
    from .plan_tables import explain

    console.print()
    explain("memory as asked for", training_memory(about.spec, found.asked).parts, console)
    for remedy in found.remedies[:_SHOWN]:
        for change in remedy.changes:
            assumed = f"; assumed {change.time:.2f}x the time" if change.time != 1 else ""
            console.print(f"  {change.name}: {change.why}{assumed}", style="dim", soft_wrap=True)
        explain(
            " + ".join(change.name for change in remedy.changes),
            training_memory(about.spec, remedy.run).parts,
            console,
        )


def _json(about: Target, found: Diagnosis, on: Device) -> dict[str, Any]:
    from dataclasses import asdict

    from ..plan.training import training_memory
    from .plan_tables import device_json, figures_json, quantity, target_json

    def remedy_json(remedy: Remedy) -> dict[str, Any]:
        return {
            "changes": [asdict(change) for change in remedy.changes],
            "setup": asdict(remedy.run),
            "memory": quantity(remedy.needed, "bytes"),
            "parts": figures_json(training_memory(about.spec, remedy.run).parts),
            "time": quantity(remedy.time, "times the run as asked for"),
            "same_result": remedy.same_result,
        }

    return {
        "model": target_json(about),
        "device": device_json(on),
        "setup": asdict(found.asked),
        "memory": {
            "total": quantity(found.needed, "bytes"),
            "parts": figures_json(training_memory(about.spec, found.asked).parts),
        },
        "fits": found.fits,
        "largest_batch": quantity(found.largest_batch, "sequences"),
        "longest_context": quantity(found.longest_context, "tokens"),
        "remedies": [remedy_json(remedy) for remedy in found.remedies],
        "least": remedy_json(found.closest) if found.closest else None,
        "devices_needed": found.devices_needed,
    }
