"""nextword plan budget: the best model for a budget of compute, time or money."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from ..base import UsageError, units
from ..plan import BudgetPlan, Device, parameters, questions
from ..plots import save
from ._console import as_shown
from ._options import OUTPUT_FILE
from ._sections import Section, emit, facts, formulas, line, warning
from ._table import plain_table
from .plan_options import (
    COUNT,
    FLOPS,
    MONEY,
    devices_option,
    duration_in,
    find_device,
    law_option,
    mfu_option,
    output_options,
    price_option,
)


@click.command(name="budget")
@click.option("--flops", type=FLOPS, default=None, metavar="C", help="Compute: 1e21, 300 EFLOP, 10 PF-days.")
@click.option("--minutes", type=duration_in("min"), default=None, metavar="TIME", help="Time on the devices.")
@click.option("--hours", type=duration_in("h"), default=None, metavar="TIME")
@click.option("--days", type=duration_in("d"), default=None, metavar="TIME")
@click.option("--dollars", type=MONEY, default=None, metavar="$", help="Money, with --price.")
@price_option
@devices_option(note=" Default: h100; this for --minutes.")
@mfu_option
@law_option
@click.option("--tokens-available", type=COUNT, default=None, metavar="D", help="Unique tokens available.")
@click.option("--inference-tokens", type=COUNT, default=None, metavar="D", help="Tokens to process in deployment.")
@click.option("--out", type=OUTPUT_FILE, default=None, metavar="FILE",
              help="Write a configuration for nextword train --config.")  # fmt: skip
@output_options
def command(
    devices: tuple[int, Device] | None, out: Path | None, explain: bool, as_json: bool, plot: Path | None,
    **budget: Any,
) -> None:  # fmt: skip
    """The optimal parameters and tokens for a budget by every law, the loss, and a concrete model to train.

    The budget is --flops, or a time on --devices, or --dollars with --price per hour.

    \b
    Examples:
      nextword plan budget --flops 5.76e23
      nextword plan budget --devices 8xh100 --days 3 --tokens-available 50B
      nextword plan budget --dollars 500 --devices h100 --price 2.5
      nextword plan budget --minutes 30 --devices this --out run.toml
    """
    plan = questions.budget(devices, find_device, **budget)
    emit(plan, lambda: _sections(plan), as_json=as_json, explain=explain)
    if out is not None:
        _write(plan, out, as_json)
    if plot is not None:
        from ..plan.plots import surface_figure

        save(surface_figure(plan), plot)


def _write(plan: BudgetPlan, out: Path, quiet: bool) -> None:
    if plan.concrete.run is None:
        raise UsageError(f"no run can be written to {out}: {plan.warnings[-1]}")
    plan.concrete.run.write(out)
    if not quiet:
        click.echo(as_shown(f"\nwrote {out}"))


def _sections(plan: BudgetPlan) -> Iterator[Section]:
    best, flat, interval = plan.best, plan.flat, plan.interval
    budget = f"budget: {plan.flops.value:.4g} FLOPs = {plan.flops.filled()}\n"
    yield Section(line(budget, "bold").body, "budget", (plan.flops,))
    yield _optima(plan)
    for optimum in plan.optima:
        note = f" ({optimum.note})" if optimum.note else ""
        yield formulas(f"optimum by {optimum.law}{note}", (*optimum.figures, *optimum.loss_parts))
    yield line(
        f"\nloss by {best.law}: {best.loss:.3f} nats a token, 95% interval {interval.low:.3f} to {interval.high:.3f}"
        " (of the law's constants; other text and tokenizers differ by more). A law without a loss of its own is"
        " judged by epoch's.",
        "dim",
    )
    yield line(
        f"flat: {units.format_count(flat.smallest)} to {units.format_count(flat.largest)} parameters are within"
        f" {flat.tolerance:.1%} of that loss; half the size costs {flat.half_costs:.2%}, double"
        f" {flat.double_costs:.2%}",
        "dim",
    )
    yield from map(warning, plan.warnings)
    if plan.plain_limited is not None and plan.limited is not None:
        yield formulas("the optimum on the available tokens", plan.plain_limited.figures)
        yield formulas("the best for the available tokens", plan.limited.figures)
    if plan.aware is not None:
        yield formulas("the cheapest for training and inference", plan.aware.figures)
    yield from _concrete(plan)


def _optima(plan: BudgetPlan) -> Section:
    table = plain_table("by", "parameters", "tokens", "a parameter", "loss")
    for optimum in plan.optima:
        ratio = f"{optimum.ratio:,.1f}" if optimum.ratio < 1e4 else f"{optimum.ratio:.2g}"
        table.add_row(
            optimum.law + "*" * (optimum.law == plan.best.law), units.format_count(optimum.parameters),
            units.format_count(optimum.tokens), ratio, f"{optimum.loss:.3f}",
            style="dim" if optimum.law == "kaplan" else "",
        )  # fmt: skip
    return Section(table)


def _concrete(plan: BudgetPlan) -> Iterator[Section]:
    concrete, choice, device = plan.concrete, plan.choice, plan.device
    spec, run = concrete.model, concrete.run
    if spec is None:
        return
    counted = parameters(spec)
    rows = [
        ("parameters", f"{counted.total:,}"),
        ("shape", f"{spec.layers} layers, width {spec.width:,}, {spec.heads} heads ({spec.kv_heads} for keys and"
         f" values), MLP {spec.mlp_width:,}"),
        ("text", f"vocabulary {spec.vocabulary:,}, context {spec.context:,}"),
        ("predicted loss", f"{choice.loss:.3f} nats a token ({choice.interval.low:.3f} to {choice.interval.high:.3f})"),
    ]  # fmt: skip
    if run is not None and concrete.memory is not None and concrete.time is not None and device is not None:
        memory, time = units.format_bytes(concrete.memory.total), units.format_seconds(concrete.time.value)
        share = f"assumed share {concrete.time.inputs['mfu']:.0%} of the peak"
        train = run.train
        rows += [
            ("tokens", f"{run.total_tokens:,} in {train.steps:,} steps of {train.batch_size:,} x {train.context:,}"),
            ("a device", f"{train.micro_batch:,} sequences at a time, {train.accumulation:,} times a step;"
             f" {train.dtype}, {train.shard if train.devices > 1 else 'one device'}"),
            ("learning rate", f"{train.learning_rate:g} to {train.final_learning_rate:g}, {train.schedule},"
             f" {train.warmup_steps:,} steps of warm-up"),
            ("memory", f"{memory} of {units.format_bytes(device.memory)} on {device.title}"),
            ("time", f"{time} on {train.devices:,} x {device.name}, {share}"),
        ]  # fmt: skip
        yield formulas("its memory", concrete.memory.parts)
        yield formulas("its time", (concrete.time,))
    yield line("")
    yield facts(f"a model: {choice.reason}", rows, [*counted.parts, *counted.tensors])
