"""nextword plan train: memory line by line, FLOPs, time, price, and the rules of thumb beside them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..base import UsageError, units
from .plan_options import (
    COUNT,
    MONEY,
    Target,
    context_of,
    find_device,
    model_argument,
    output_options,
    target,
    training_options,
)

if TYPE_CHECKING:
    from rich.console import Console

    from ..plan import Device, Memory, Training
    from ..plan.training import Cost

_DEVICE = "h100"
_ADAPTING = 10e6  # tokens; adapters learn from some thousands of examples


@click.command(name="train")
@model_argument
@training_options
@click.option("--device", default=_DEVICE, show_default=True, metavar="NAME",
              help="A name, `this` (measured), or NAME=24GB,1TB/s,165TFLOP/s.")  # fmt: skip
@click.option(
    "--tokens", type=COUNT, default=None, metavar="N", help="To train on; default: 20 a parameter, 10M with --lora."
)
@click.option("--mfu", type=float, default=0.4, show_default=True, help="Assumed share of the device's peak.")
@click.option("--price", type=MONEY, default=None, metavar="$", help="Of a device for an hour.")
@output_options
def command(
    model: str | None, params: float | None, kind: str | None, device: str, tokens: float | None, mfu: float,
    price: float | None, explain: bool, as_json: bool, plot: Path | None, **setup: Any,
) -> None:  # fmt: skip
    """Memory of a training run line by line, its FLOPs, days and price, and rules of thumb beside them.

    \b
    Examples:
      nextword plan train llama-3-8b --device h100 --devices 8 --shard fsdp --context 4096
      nextword plan train --params 1B --batch 8 --context 2048 --recompute selective
      nextword plan train gpt2 --device this --precision fp32 --tokens 10M
      nextword plan train llama-3-8b --lora 16 --base nf4 --device rtx4090 --price 0.4
    """
    from ..plan.parameters import parameters
    from ..plan.training import cost, training_memory

    about, on = target(model, params, kind), find_device(device)
    run = training(about, setup, on)
    seen = tokens or (_ADAPTING if run.lora else 20.0 * parameters(about.spec).total)
    memory = training_memory(about.spec, run)
    price_of = cost(about.spec, run, seen, on.speed(run.precision), mfu, price)
    if as_json:
        from ._console import emit_json

        emit_json(_json(about, run, memory, price_of, on, seen))
    else:
        from ._console import output

        _print(about, run, memory, price_of, on, tokens is None and not run.lora, output())
        if explain:
            _explain(about, run, memory, price_of, output())
    if plot is not None:
        from ..plan.pictures import draw_memory

        draw_memory(memory, [on], f"{about.name} in training, batch {run.batch:,} x {run.context:,}", plot)


def training(about: Target, setup: dict[str, Any], on: Device) -> Training:
    """The options of `training_options` as a Training."""
    from ..plan.training import CPU_FRAGMENTATION, FRAGMENTATION, Training

    on_cpu = on.peak == on.peak_fp32
    if setup["lora_targets"] and not setup["lora"]:
        raise UsageError("--lora-targets says which matrices --lora adapts; give a rank, such as --lora 16")
    return Training(
        **{key: value for key, value in setup.items() if key not in ("context", "loss", "precision")},
        precision=setup["precision"] or ("fp32" if on_cpu else "mixed"),
        fragmentation=CPU_FRAGMENTATION if on_cpu else FRAGMENTATION,
        context=context_of(about.spec, setup["context"]),
        chunked_loss=setup["loss"] == "chunked",
        runtime=on.runtime,
    )


def setup_line(run: Training) -> str:
    """The run in words."""
    said = [f"batch {run.batch:,} x {run.context:,} tokens", run.optimizer, run.precision, f"recompute {run.recompute}"]
    if run.kernel == "plain":
        said.append("plain attention")
    if run.chunked_loss:
        said.append("chunked loss")
    if run.devices > 1:
        said.append(f"{run.devices:,} devices, {'no sharding' if run.shard == 'none' else run.shard}")
    if run.lora:
        beside = f" beside {', '.join(run.lora_targets)}" if run.lora_targets else ""
        said.append(f"LoRA of rank {run.lora}{beside} on {run.base}")
    return ", ".join(said)


def _print(
    about: Target, run: Training, memory: Memory, price: Cost, on: Device, tokens_by_rule: bool, console: Console
) -> None:
    from ..plan.fit_search import limits
    from ..plan.training import rules_of_thumb
    from .plan_tables import describe, parts_table, plain_table, shown

    console.print(describe(about))
    console.print(f"{setup_line(run)}\n")
    console.print(parts_table(f"memory on each {on.title}", memory.parts, console))
    left = on.memory - memory.total
    batch, context = limits(about.spec, run, on)
    if left >= 0:
        verdict = (
            f"fits in {units.format_bytes(on.memory)}, {units.format_bytes(left)} left;"
            f" largest batch {batch:,}, longest context {context:,}"
        )
    else:
        verdict = (
            f"does not fit in {units.format_bytes(on.memory)}: {units.format_bytes(-left)} short;"
            f" largest batch {batch:,}. What would make it fit: nextword plan fit"
        )
    console.print(f"{verdict}\n", style="green" if left >= 0 else "red")
    console.print(_compute_table(price, tokens_by_rule, on, run))
    console.print()
    table = plain_table("", "", "")
    table.show_header = False
    table.title, table.title_justify, table.title_style = "rules of thumb", "left", "bold"
    for rule in rules_of_thumb(about.spec, run.devices):
        table.add_row(f"  {rule.name}", shown(rule.value, rule.unit), f"{rule.value / memory.total:.2f} of the sum")
    console.print(table)


def _compute_table(price: Cost, tokens_by_rule: bool, on: Device, run: Training) -> Any:
    from .plan_tables import plain_table, shown

    counted = price.flops
    tokens = units.format_count(counted.tokens) + (" (20 a parameter)" if tokens_by_rule else "")
    table = plain_table("", "", right=False)
    table.show_header = False
    table.title, table.title_justify, table.title_style = "compute", "left", "bold"
    table.add_row("  tokens", tokens)
    table.add_row("  exact", f"{counted.total:.4g} FLOPs, {counted.per_token:.4g} a token of the model's own")
    table.add_row(
        f"  {counted.rule.name}",
        f"{counted.rule.value:.4g} FLOPs, {counted.rule.value / counted.total:.1%} of the exact",
    )
    mfu = price.seconds.inputs["mfu"]
    peak = units.format_flops(on.speed(run.precision)).replace("FLOPs", "FLOP/s")
    devices = f"{run.devices:,} x {on.name}" if run.devices > 1 else on.name
    table.add_row("  time", f"{shown(price.seconds.value, 's')} on {devices} at {mfu:.0%} of {peak} (assumed)")
    if price.money is not None:
        hours = units.format_count(price.device_hours.value)
        table.add_row("  price", f"{units.format_money(price.money.value)} for {hours} device hours")
    return table


def _explain(about: Target, run: Training, memory: Memory, price: Cost, console: Console) -> None:
    from ..plan.training import rules_of_thumb, saved_parts
    from .plan_tables import explain, parameter_figures

    console.print()
    explain("parameters", parameter_figures(about.spec), console)
    explain("memory", memory.parts, console)
    explain("activations", saved_parts(about.spec, run), console)
    explain("FLOPs", (*price.flops.parts, price.flops.rule), console)
    money = (price.money,) if price.money else ()
    explain("time", (price.seconds, price.device_hours, *money), console)
    explain("rules of thumb", rules_of_thumb(about.spec, run.devices), console)


def _json(about: Target, run: Training, memory: Memory, price: Cost, on: Device, tokens: float) -> dict[str, Any]:
    from dataclasses import asdict

    from ..plan.fit_search import limits
    from ..plan.training import rules_of_thumb, saved_parts
    from .plan_tables import device_json, figures_json, quantity, target_json

    batch, context = limits(about.spec, run, on)
    return {
        "model": target_json(about),
        "setup": asdict(run),
        "device": device_json(on),
        "memory": {
            "total": quantity(memory.total, "bytes"),
            "parts": figures_json(memory.parts),
            "activations": figures_json(saved_parts(about.spec, run)),
        },
        "fits": memory.total <= on.memory,
        "largest_batch": quantity(batch, "sequences"),
        "longest_context": quantity(context, "tokens"),
        "tokens": quantity(tokens, "tokens"),
        "flops": {
            "total": quantity(price.flops.total, "FLOPs"),
            "parts": figures_json(price.flops.parts),
            "rule": price.flops.rule.to_dict(),
        },
        "time": price.seconds.to_dict(),
        "device_hours": price.device_hours.to_dict(),
        "price": price.money.to_dict() if price.money else None,
        "rules_of_thumb": figures_json(rules_of_thumb(about.spec, run.devices)),
    }
