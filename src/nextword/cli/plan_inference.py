"""nextword plan inference: memory, devices that fit, and speed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
from rich.columns import Columns

from ..base import units
from ..plan import questions
from ..plan.figure import plain
from ..plan.hardware import split_names
from ..plan.questions import PlannedModel
from ..plan.serving import BITS, LONGEST, InferencePlan, OnDevice
from ..plots import save
from ..spec import ModelKind
from ._plan_model import model_sections, planned_model
from ._sections import Section, bars, emit, formulas, line, warning
from ._table import plain_table
from .plan_options import ROWS, context_option, find_device, model_argument, output_options


@click.command(name="inference")
@model_argument
@click.option("--batch-size", type=ROWS, default=1, show_default=True, metavar="N", help="Sequences at a time.")
@context_option
@click.option("--dtype", default=None, metavar="TYPE",
              help=f"Type of the weights: {', '.join(BITS)}. Default: as the file stores them, else bf16.")  # fmt: skip
@click.option("--kv-dtype", default="bf16", show_default=True, metavar="TYPE", help="Type of keys and values.")
@click.option("--devices", default="rtx4090,a100,h100", show_default=True, metavar="NAMES",
              help="Comma-separated names; `this` is measured; NAME=24GB,1TB/s,165TFLOP/s defines one.")  # fmt: skip
@output_options
def command(
    model: str | None, params: float | None, arch: ModelKind | None, batch_size: int, context: int | None,
    dtype: str | None, kv_dtype: str, devices: str, explain: bool, as_json: bool, plot: Path | None,
) -> None:  # fmt: skip
    """Memory for weights and cache, the largest batch and context that fit, and speed.

    MODEL is a name, a folder, a .gguf file or a config.json. Speeds are upper bounds: bandwidth for decoding, half of
    the peak arithmetic for prompts.

    \b
    Examples:
      nextword plan inference llama-3-8b --context 8192 --devices rtx4090,h100
      nextword plan inference --params 70B --dtype q4_k --devices mine=48GB,1TB/s,200TFLOP/s
      nextword plan inference smollm2-135m-instruct --devices this --explain
    """
    about = planned_model(model, params, arch)
    plan = questions.inference(about, [find_device(name) for name in split_names(devices)], batch_size=batch_size,
                               context=context, dtype=dtype, kv_dtype=kv_dtype)  # fmt: skip
    emit({"model": about, **plain(plan)}, lambda: _sections(about, plan), as_json=as_json, explain=explain)
    if plot is not None:
        from ..plan.plots import memory_figure

        title = f"{about.name} in use, batch {plan.use.batch:,}, context {plan.use.context:,}"
        save(memory_figure(plan.devices[0].memory, [row.device for row in plan.devices], title), plot)


def _sections(about: PlannedModel, plan: InferencePlan) -> Iterator[Section]:
    use, first = plan.use, plan.devices[0]
    yield from model_sections(about)
    yield line("")
    sizes = [f"{name} {units.format_bytes(weights.value)}" for name, weights in plan.weights.items()]
    if about.stored_bytes is not None:
        sizes.insert(0, f"as stored {units.format_bytes(about.stored_bytes)}")
    yield Section(Columns(sizes, padding=(0, 3)))
    yield line("")
    dtype = "as stored" if use.weight_bytes is not None else use.dtype
    yield bars(f"memory, {dtype}, batch {use.batch:,}, context {use.context:,}", first.memory.parts)
    yield line("")
    yield _device_table(plan.devices)
    bound = next((row.speed.decode_bound for row in plan.devices if row.speed), "")
    speeds = f" decode: tokens/s of the whole batch at most, by {bound}; prefill: tokens/s at half the peak."
    yield line(
        f"\nLargest batch at context {use.context:,}; longest context at batch {use.batch:,}"
        f" (the model was made for {about.spec.context:,}).{speeds if bound else ''}",
        "dim",
    )
    for row in plan.devices:
        if row.speed is None:
            yield warning(_too_small(row))
        else:
            figures = (row.speed.decode, row.speed.prefill, row.speed.first_token)
            yield formulas(f"speed on {row.device.title} ({row.device.source})", figures)


def _device_table(rows: tuple[OnDevice, ...]) -> Section:
    table = plain_table("device", "memory", "fits", "largest batch", "longest context", "decode", "prefill",
                        least=((6,), (4,), (3,), (1,)))  # fmt: skip
    for row in rows:
        fit, fast = row.fit, row.speed
        table.add_row(
            row.device.name,
            units.format_bytes(row.device.memory),
            "yes" if fit.fits else f"no: {units.format_bytes(-fit.headroom)} short",
            f"{fit.largest_batch:,}" if fit.largest_batch < 1 << 20 else "any",
            f"{fit.longest_context:,}" if fit.longest_context < LONGEST else "any",
            f"≤ {units.format_rate(fast.decode.value)}" if fast else "",
            units.format_rate(fast.prefill.value) if fast else "",
        )
    return Section(table)


def _too_small(row: OnDevice) -> str:
    short = f"{row.device.name} is {units.format_bytes(-row.fit.headroom)} short, so no speed is given"
    if row.fit.devices_needed is None:
        return f"{short}; no number of them holds it"
    return f"{short}; {row.fit.devices_needed:,} of them hold it, with weights, cache and working space split evenly"
