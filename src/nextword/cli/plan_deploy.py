"""nextword plan deploy: what a model needs to be used, where it fits, how fast it can be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..base import units
from .plan_options import (
    Target,
    batch_option,
    context_of,
    context_option,
    find_devices,
    model_argument,
    output_options,
    target,
)

if TYPE_CHECKING:
    from rich.console import Console

    from ..plan import Device, Memory, Serving
    from ..plan.serving import Fit, Speed

    Row = tuple[Device, Memory, Fit, Speed]

_DEVICES = "rtx4090,a100,h100"


@click.command(name="deploy")
@model_argument
@batch_option
@context_option
@click.option("--precision", default=None, metavar="TYPE",
              help="Of the weights: fp32, bf16, int8, fp8, q8_0, q6_k, q5_k, q4_k, q4_0, q4_1, mxfp4, nf4, q3_k, q2_k."
              " Default: as the file stores them, else bf16.")  # fmt: skip
@click.option("--cache", default="bf16", show_default=True, metavar="TYPE", help="Of keys and values.")
@click.option("--device", "devices", default=_DEVICES, show_default=True, metavar="NAMES",
              help="Names with commas; `this` is measured; NAME=24GB,1TB/s,165TFLOP/s is your own.")  # fmt: skip
@output_options
def command(
    model: str | None, params: float | None, kind: str | None, batch: int, context: int | None, precision: str | None,
    cache: str, devices: str, explain: bool, as_json: bool, plot: Path | None,
) -> None:  # fmt: skip
    """Bytes of weights and cache, the largest batch and context that fit, and how fast it can be.

    MODEL is a name, a folder, a .gguf file or a config.json. Speeds are upper bounds: bandwidth for decoding, half of
    the peak arithmetic for prompts.

    \b
    Examples:
      nextword plan deploy llama-3-8b --context 8192 --device rtx4090,h100
      nextword plan deploy --params 70B --precision q4_k --device mine=48GB,1TB/s,200TFLOP/s
      nextword plan deploy smollm2-135m-instruct --device this --explain
    """
    from ..plan.serving import Serving, fit_on, serving_memory, speed

    about = target(model, params, kind)
    stored = about.stored_bytes if precision is None else None
    use = Serving(batch, context_of(about.spec, context), precision or "bf16", cache, stored,
                  about.expert_bits if stored else None)  # fmt: skip
    rows = []
    for on in find_devices(devices):
        there = replace(use, runtime=on.runtime)
        memory = serving_memory(about.spec, there)
        rows.append((on, memory, fit_on(about.spec, use, on), speed(about.spec, there, on)))
    if as_json:
        from ._console import emit_json

        emit_json(_json(about, use, rows))
    else:
        from ._console import output

        _print(about, use, rows, output())
        if explain:
            _explain(about, use, rows, output())
    if plot is not None:
        from ..plan.pictures import draw_memory

        shown = f"{about.name} in use, batch {use.batch:,}, context {use.context:,}"
        draw_memory(rows[0][1], [row[0] for row in rows], shown, plot)


def _print(about: Target, use: Serving, rows: list[Row], console: Console) -> None:
    from .plan_tables import describe, parts_table, plain_table, rate

    console.print(describe(about), soft_wrap=False)
    console.print()
    console.print(_precisions(about))
    console.print()
    as_stored = "as stored" if use.weight_bytes is not None else use.precision
    title = f"memory, {as_stored}, batch {use.batch:,}, context {use.context:,}"
    console.print(parts_table(title, rows[0][1].parts, console))
    console.print()
    table = plain_table("device", "memory", "fits", "largest batch", "longest context", "decode", "prefill",
                        least=((6,), (4,), (3,), (1,)))  # fmt: skip
    for on, _, fit, fast in rows:
        table.add_row(
            on.name,
            units.format_bytes(on.memory),
            "yes" if fit.fits else f"no: {units.format_bytes(-fit.headroom)} short",
            f"{fit.largest_batch:,}" if fit.largest_batch < 1 << 20 else "any",
            _context(fit.longest_context),
            f"≤ {rate(fast.decode.value)}" if fit.fits else "",
            rate(fast.prefill.value) if fit.fits else "",
        )
    console.print(table)
    console.print(
        f"\nLargest batch at context {use.context:,}; longest context at batch {use.batch:,}"
        f" (the model was made for {about.spec.context:,}). decode: tokens/s of the whole batch at most, by"
        f" {_bound(rows)}; prefill: tokens/s at half the peak.",
        style="dim",
    )
    for on, _, fit, _ in rows:
        if not fit.fits:
            console.print(f"! {_too_small(on, fit)}", style="yellow")


def _bound(rows: list[Row]) -> str:
    """What bounds decoding, of the first device that holds the model."""
    return next((fast.decode_bound for _, _, fit, fast in rows if fit.fits), rows[0][3].decode_bound)


def _too_small(on: Device, fit: Fit) -> str:
    short = f"{on.name} is {units.format_bytes(-fit.headroom)} short, so that no speed is given"
    if fit.devices_needed is None:
        return f"{short}; no number of them holds it"
    return f"{short}; {fit.devices_needed:,} hold it, weights, cache and working space split evenly among them"


def _context(longest: int) -> str:
    from ..plan.serving import LONGEST

    return f"{longest:,}" if longest < LONGEST else "any"


def _precisions(about: Target) -> Any:
    """Bytes of the weights at every precision, as many a line as fit."""
    from rich.columns import Columns

    from ..plan.serving import BITS, weight_bytes

    cells = [f"{name} {units.format_bytes(weight_bytes(about.spec, name).value)}" for name in BITS]
    if about.stored_bytes is not None:
        cells.insert(0, f"as stored {units.format_bytes(about.stored_bytes)}")
    return Columns(cells, padding=(0, 3), title=None)


def _explain(about: Target, use: Serving, rows: list[Row], console: Console) -> None:
    from .plan_tables import explain, parameter_figures

    console.print()
    explain("parameters", parameter_figures(about.spec), console)
    on, memory, _, fast = rows[0]
    explain(f"memory on {on.title}", memory.parts, console)
    for on, _, fit, fast in rows:
        if fit.fits:  # a device that does not hold the model has no speed
            explain(f"speed on {on.title} ({on.source})", (fast.decode, fast.prefill, fast.first_token), console)


def _json(about: Target, use: Serving, rows: list[Row]) -> dict[str, Any]:
    from ..plan.serving import BITS, weight_bytes
    from .plan_tables import device_json, figures_json, quantity, target_json

    return {
        "model": target_json(about),
        "batch": use.batch,
        "context": quantity(use.context, "tokens"),
        "precision": "as stored" if use.weight_bytes is not None else use.precision,
        "weights_at": {name: quantity(weight_bytes(about.spec, name).value, "bytes") for name in BITS},
        "devices": [
            {
                "device": device_json(on),
                "memory": {"total": quantity(memory.total, "bytes"), "parts": figures_json(memory.parts)},
                "fits": fit.fits,
                "headroom": quantity(fit.headroom, "bytes"),
                "devices_needed": 1 if fit.fits else fit.devices_needed,
                "largest_batch": quantity(fit.largest_batch, "sequences"),
                "longest_context": quantity(fit.longest_context, "tokens"),
                "decode": fast.decode.to_dict() | {"bound": fast.decode_bound} if fit.fits else None,
                "prefill": fast.prefill.to_dict() if fit.fits else None,
                "first_token": fast.first_token.to_dict() if fit.fits else None,
            }
            for on, memory, fit, fast in rows
        ],
    }
