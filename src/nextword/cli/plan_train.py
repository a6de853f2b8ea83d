"""nextword plan train: memory line by line, FLOPs, time, price, and rules of thumb for comparison."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from ..base import units
from ..plan import Device, Training, questions
from ..plan.figure import plain
from ..plan.laws import TOKENS_A_PARAMETER
from ..plan.questions import PlannedModel
from ..plan.training import TrainingPlan
from ..plots import save
from ..spec import ModelKind
from ._plan_model import model_sections, planned_model
from ._sections import Section, bars, emit, facts, formulas, line
from .plan_options import (
    COUNT,
    devices_option,
    mfu_option,
    model_argument,
    output_options,
    price_option,
    training_options,
)


@click.command(name="train")
@model_argument
@training_options
@devices_option("h100")
@click.option(
    "--tokens", type=COUNT, default=None, metavar="N", help="To train on; default: 20 per parameter, 10M with --lora."
)
@mfu_option
@price_option
@output_options
def command(
    model: str | None, params: float | None, arch: ModelKind | None, devices: tuple[int, Device], tokens: float | None,
    mfu: float, price: float | None, explain: bool, as_json: bool, plot: Path | None, **setup: Any,
) -> None:  # fmt: skip
    """Memory of a training run line by line, its FLOPs, days and price, and rules of thumb for comparison.

    \b
    Examples:
      nextword plan train llama-3-8b --devices 8xh100 --shard fsdp --context 4096
      nextword plan train --params 1B --micro-batch 8 --context 2048 --recompute selective
      nextword plan train gpt2 --devices this --train-dtype fp32 --tokens 10M
      nextword plan train llama-3-8b --lora 16 --base nf4 --devices rtx4090 --price 0.4
    """
    about = planned_model(model, params, arch)
    plan = questions.train(about, devices, tokens=tokens, mfu=mfu, price=price, **setup)
    by_rule = tokens is None and not plan.setup.lora
    emit({"model": about, **plain(plan)}, lambda: _sections(about, plan, by_rule), as_json=as_json, explain=explain)
    if plot is not None:
        from ..plan.plots import memory_figure

        title = f"{about.name} in training, batch {plan.setup.batch:,} x {plan.setup.context:,}"
        save(memory_figure(plan.memory, [plan.device], title), plot)


def setup_line(run: Training) -> Section:
    """A one-line summary of the run."""
    words = [f"batch {run.batch:,} x {run.context:,} tokens", run.optimizer, run.precision]
    words.append(f"recompute {run.recompute}")
    if run.kernel == "plain":
        words.append("plain attention")
    if run.chunked_loss:
        words.append("chunked loss")
    if run.devices > 1:
        words.append(f"{run.devices:,} devices, {'no sharding' if run.shard == 'none' else run.shard}")
    if run.lora:
        targets = f" on {', '.join(run.lora_targets)}" if run.lora_targets else ""
        words.append(f"LoRA of rank {run.lora}{targets}, weights in {run.base}")
    return line(", ".join(words))


def _sections(about: PlannedModel, plan: TrainingPlan, tokens_by_rule: bool) -> Iterator[Section]:
    yield from model_sections(about)
    yield setup_line(plan.setup)
    yield line("")
    yield bars(f"memory on each {plan.device.title}", plan.memory.parts)
    yield _verdict(plan)
    yield line("")
    yield formulas("activations", plan.activations)
    yield _compute(plan, tokens_by_rule)
    yield line("")
    total = plan.memory.total
    yield facts(
        "rules of thumb",
        [(rule.name, units.format_quantity(rule.value, rule.unit), f"{rule.value / total:.2f} of the sum")
         for rule in plan.rules],
        plan.rules,
    )  # fmt: skip


def _verdict(plan: TrainingPlan) -> Section:
    room, left = units.format_bytes(plan.device.memory), plan.device.memory - plan.memory.total
    if plan.fits:
        text = (
            f"fits in {room}, {units.format_bytes(left)} left;"
            f" largest batch {plan.largest_batch:,}, longest context {plan.longest_context:,}"
        )
        return line(text, "green")
    text = (
        f"does not fit in {room}: {units.format_bytes(-left)} short; largest batch {plan.largest_batch:,}."
        " What would make it fit: nextword plan fit"
    )
    return line(text, "red")


def _compute(plan: TrainingPlan, tokens_by_rule: bool) -> Section:
    cost, run, device = plan.cost, plan.setup, plan.device
    flops, mfu = cost.flops, cost.seconds.inputs["mfu"]
    by_rule = f" ({TOKENS_A_PARAMETER} a parameter)" if tokens_by_rule else ""
    peak = units.format_flops(device.speed(run.precision)).replace("FLOPs", "FLOP/s")
    devices = f"{run.devices:,} x {device.name}" if run.devices > 1 else device.name
    rows = [
        ("tokens", units.format_count(flops.tokens) + by_rule),
        ("exact", f"{flops.total:.4g} FLOPs, {flops.per_token:.4g} a token of the model's own"),
        (flops.rule.name, f"{flops.rule.value:.4g} FLOPs, {flops.rule.value / flops.total:.1%} of the exact"),
        ("time", f"{units.format_seconds(cost.seconds.value)} on {devices} at {mfu:.0%} of {peak} (assumed)"),
    ]
    figures = [*flops.parts, flops.rule, cost.seconds, cost.device_hours]
    if cost.money is not None:
        hours = units.format_count(cost.device_hours.value)
        rows.append(("price", f"{units.format_money(cost.money.value)} for {hours} device hours"))
        figures.append(cost.money)
    return facts("compute", rows, figures)
