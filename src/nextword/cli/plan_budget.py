"""nextword plan budget: the best model and data that compute, time or money buys."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..base import UsageError, units
from ._console import as_shown
from ._options import OUTPUT_FILE
from .plan_options import COUNT, FLOPS, MONEY, duration_in, find_device, output_options

if TYPE_CHECKING:
    from rich.console import Console

    from ..plan import Budget, Device, Figure


@click.command(name="budget")
@click.option("--flops", type=FLOPS, default=None, metavar="C", help="Compute: 1e21, 300 EFLOP, 10 PF-days.")
@click.option("--minutes", type=duration_in("min"), default=None, metavar="TIME", help="Time on the devices.")
@click.option("--hours", type=duration_in("h"), default=None, metavar="TIME")
@click.option("--days", type=duration_in("d"), default=None, metavar="TIME")
@click.option("--dollars", type=MONEY, default=None, metavar="$", help="Money, with --price.")
@click.option("--price", type=MONEY, default=None, metavar="$", help="Of a device for an hour.")
@click.option(
    "--devices",
    "--device",
    "devices",
    default=None,
    metavar="NAME",
    help="h100, 8xh100, `this` (measured), NAME=24GB,1TB/s,165TFLOP/s. Default: h100; this for --minutes.",
)
@click.option("--mfu", type=float, default=0.4, show_default=True, help="Assumed share of the devices' peak.")
@click.option("--law", default="epoch", show_default=True, metavar="NAME", help="Whose optimum becomes the model.")
@click.option("--tokens-available", type=COUNT, default=None, metavar="D", help="Different tokens at hand.")
@click.option("--inference-tokens", type=COUNT, default=None, metavar="D", help="Tokens it will read and write in use.")
@click.option(
    "--out",
    type=OUTPUT_FILE,
    default=None,
    metavar="FILE",
    help="Write the model and its training as JSON for the trainer.",
)
@output_options
def command(
    flops: float | None, minutes: float | None, hours: float | None, days: float | None, dollars: float | None,
    price: float | None, devices: str | None, mfu: float, law: str, tokens_available: float | None,
    inference_tokens: float | None, out: Path | None, explain: bool, as_json: bool, plot: Path | None,
) -> None:  # fmt: skip
    """Parameters and tokens that spend a budget best, by every law; the loss; and a model to train.

    The budget is --flops, or a time on --devices, or --dollars at --price an hour.

    \b
    Examples:
      nextword plan budget --flops 5.76e23
      nextword plan budget --devices 8xh100 --days 3 --tokens-available 50B
      nextword plan budget --dollars 500 --device h100 --price 2.5
      nextword plan budget --minutes 30 --device this --out run.toml
    """
    seconds = _only_one(flops, {"--minutes": minutes, "--hours": hours, "--days": days}, dollars, price)
    count, on = _devices(devices or ("this" if minutes is not None else "h100"))
    if not 0 < mfu <= 1:
        raise UsageError(f"--mfu is a share between 0 and 1, not {mfu}")
    from ..plan.budget import budget_from, plan_budget

    work = budget_from(
        compute=flops, seconds=seconds, dollars=dollars, price=price, device=on, devices=count, mfu=mfu
    )  # fmt: skip
    found = plan_budget(
        work, by=law, device=on, devices=count, mfu=mfu, tokens_available=tokens_available,
        inference_tokens=inference_tokens,
    )  # fmt: skip
    if as_json:
        from ._console import emit_json

        emit_json(_json(found))
    else:
        from ._console import output

        _print(found, output())
        if explain:
            _explain(found, output())
    if out is not None:
        _write(found, out, as_json)
    if plot is not None:
        from ..plan.pictures import draw_surface

        draw_surface(found, plot)


def _only_one(
    flops: float | None, times: dict[str, float | None], dollars: float | None, price: float | None
) -> float | None:
    """The time given, if it is the budget. Raises UsageError unless exactly one budget is given."""
    given = [name for name, value in {"--flops": flops, **times, "--dollars": dollars}.items() if value is not None]
    if len(given) != 1:
        what = "no budget is given" if not given else f"{' and '.join(given)} are budgets of their own"
        raise UsageError(f"{what}; give one of --flops, --minutes, --hours, --days, --dollars (with --price)")
    if dollars is not None and price is None:
        raise UsageError("--dollars needs the price of a device for an hour, such as --price 2.5")
    return next((value for value in times.values() if value is not None), None)


def _devices(text: str) -> tuple[int, Device]:
    from ..plan.hardware import split_count

    count, name = split_count(text)
    return count, find_device(name)


def _write(found: Budget, out: Path, quiet: bool) -> None:
    if found.run is None:
        raise UsageError(f"there is no concrete run to write to {out}: {found.warnings[-1]}")
    found.run.write(out)
    if not quiet:
        click.echo(as_shown(f"\nwrote {out}"))


def _print(found: Budget, console: Console) -> None:
    from .plan_tables import plain_table

    best = found.best
    console.print(f"budget: {found.flops.value:.4g} FLOPs = {found.flops.filled()}\n", style="bold")
    table = plain_table("by", "parameters", "tokens", "a parameter", "loss")
    for each in found.optima:
        star = "*" if each.law == best.law else ""
        ratio = f"{each.ratio:,.1f}" if each.ratio < 1e4 else f"{each.ratio:.2g}"
        table.add_row(
            each.law + star, units.format_count(each.parameters), units.format_count(each.tokens), ratio,
            f"{each.loss:.3f}", style="dim" if each.law == "kaplan" else "",
        )  # fmt: skip
    console.print(table)
    flat = found.flat
    console.print(
        f"\nloss by {best.law}: {best.loss:.3f} nats a token, 95% interval {found.interval.low:.3f} to"
        f" {found.interval.high:.3f} (of the law's constants; other text and tokenizers differ by more). A law without"
        " a loss of its own is judged by epoch's.",
        style="dim",
    )
    console.print(
        f"flat: {units.format_count(flat.smallest)} to {units.format_count(flat.largest)} parameters are within"
        f" {flat.tolerance:.1%} of that loss; half the size costs {flat.half_costs:.2%}, double"
        f" {flat.double_costs:.2%}",
        style="dim",
    )
    for warning in found.warnings:
        console.print(f"! {warning}", style="yellow")
    _print_model(found, console)


def _print_model(found: Budget, console: Console) -> None:
    from ..plan.parameters import parameters
    from .plan_tables import plain_table, shown

    spec, run = found.model, found.run
    if spec is None:
        return
    table = plain_table("", "", right=False)
    table.show_header = False
    console.print(f"\na model: {found.choice.reason}", style="bold")
    table.add_row("  parameters", f"{parameters(spec).total:,}")
    table.add_row("  shape", f"{spec.layers} layers, width {spec.width:,}, {spec.heads} heads"
                  f" ({spec.kv_heads} for keys and values), MLP {spec.mlp_width:,}")  # fmt: skip
    table.add_row("  text", f"vocabulary {spec.vocabulary:,}, context {spec.context:,}")
    low, high = found.choice.interval.low, found.choice.interval.high
    table.add_row("  predicted loss", f"{found.choice.loss:.3f} nats a token ({low:.3f} to {high:.3f})")
    if run is not None and found.memory is not None and found.time is not None and found.device is not None:
        train = run.train
        rows = f"{train.batch_size:,} x {train.context:,}"
        table.add_row("  tokens", f"{run.total_tokens:,} in {train.steps:,} steps of {rows}")
        table.add_row("  a device", f"{train.micro_batch:,} sequences at a time, {train.accumulation:,} times a step;"
                      f" {train.dtype}, {train.shard if train.devices > 1 else 'one device'}")  # fmt: skip
        table.add_row("  learning rate", f"{train.learning_rate:g} to {train.final_learning_rate:g}, {train.schedule},"
                      f" {train.warmup_steps:,} steps of warm-up")  # fmt: skip
        memory = units.format_bytes(found.memory.total)
        table.add_row("  memory", f"{memory} of {units.format_bytes(found.device.memory)} on {found.device.title}")
        share = f"assumed share {found.time.inputs['mfu']:.0%} of the peak"
        table.add_row("  time", f"{shown(found.time.value, 's')} on {train.devices:,} x {found.device.name}, {share}")
    console.print(table)


def _explain(found: Budget, console: Console) -> None:
    from .plan_tables import explain, parameter_figures

    console.print()
    explain("budget", (found.flops,), console)
    for each in found.optima:
        explain(f"optimum by {each.law}" + (f" ({each.note})" if each.note else ""),
                (*each.figures, *each.loss_parts), console)  # fmt: skip
    for title, figures in _limits(found).items():
        explain(title.replace("_", " "), figures, console)
    if found.model is not None:
        explain("the model's parameters", parameter_figures(found.model), console)
    if found.memory is not None and found.time is not None:
        explain("its memory", found.memory.parts, console)
        explain("its time", (found.time,), console)


def _limits(found: Budget) -> dict[str, tuple[Figure, ...]]:
    """The figures behind the choices that little data or much use ask for, by their names in JSON."""
    from ..plan.data_constraints import aware_figures, limited_figures
    from ..plan.laws import law

    shown = {}
    if found.limited is not None:
        shown["data_limited"] = limited_figures(found.limited)
    if found.aware is not None:
        use = found.aware.inference / (2 * found.aware.parameters)
        shown["inference_aware"] = aware_figures(found.aware, use, law(found.best.law))
    return shown


def _json(found: Budget) -> dict[str, Any]:
    from dataclasses import asdict

    from .plan_tables import device_json, figures_json, quantity

    return {
        "budget": found.flops.to_dict(),
        "optima": [
            {
                "law": each.law,
                "parameters": quantity(each.parameters, "parameters"),
                "tokens": quantity(each.tokens, "tokens"),
                "loss": quantity(each.loss, "nats/token"),
                "loss_parts": figures_json(each.loss_parts),
                "figures": figures_json(each.figures),
                "note": each.note or None,
            }
            for each in found.optima
        ],
        "chosen_law": found.best.law,
        "loss_interval": {**asdict(found.interval), "unit": "nats/token", "level": 0.95},
        "flat_region": {**asdict(found.flat), "unit": "parameters"},
        "data_limited": {**asdict(found.limited), "unit": "tokens"} if found.limited else None,
        "inference_aware": {**asdict(found.aware), "unit": "FLOPs"} if found.aware else None,
        "limits": {name: figures_json(figures) for name, figures in _limits(found).items()},
        "choice": {**asdict(found.choice), "unit": "parameters, tokens, nats/token"},
        "run": found.run.to_dict() if found.run else None,
        "memory": {"total": quantity(found.memory.total, "bytes"), "parts": figures_json(found.memory.parts)}
        if found.memory
        else None,
        "time": found.time.to_dict() if found.time else None,
        "device": device_json(found.device) if found.device else None,
        "devices": found.devices,
        "warnings": list(found.warnings),
    }
