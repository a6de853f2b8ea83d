"""nextword plan fit: the cheapest change that makes a training run fit on a device."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from ..base import units
from ..plan import Device, Diagnosis, questions
from ..plan.figure import plain
from ..plan.fit_search import Change, Remedy
from ..plan.questions import PlannedModel
from ..plots import save
from ..spec import ModelKind
from ._plan_model import model_sections, planned_model
from ._sections import Section, emit, formulas, line
from ._table import plain_table
from .plan_options import devices_option, model_argument, output_options, training_options
from .plan_train import setup_line

_SHOWN = 8


@click.command(name="fit")
@model_argument
@training_options
@devices_option(note=" Several: sharding is considered too.", required=True)
@output_options
def command(
    model: str | None, params: float | None, arch: ModelKind | None, devices: tuple[int, Device], explain: bool,
    as_json: bool, plot: Path | None, **setup: Any,
) -> None:  # fmt: skip
    """The cheapest changes that make a training run fit on a device, ranked by their cost in time.

    Changes that leave the trained model the same come first.

    \b
    Examples:
      nextword plan fit --params 1B --devices rtx4090 --micro-batch 16 --context 2048
      nextword plan fit llama-3-8b --devices 8xh100
    """
    about = planned_model(model, params, arch)
    plan = questions.fit(about, devices, **setup)
    emit({"model": about, **plain(plan)}, lambda: _sections(about, plan), as_json=as_json, explain=explain)
    if plot is not None:
        from ..plan.plots import remedies_figure

        save(remedies_figure(plan, f"{about.name} on {plan.device.title}"), plot)


def _sections(about: PlannedModel, plan: Diagnosis) -> Iterator[Section]:
    description, *_ = model_sections(about)
    yield description
    yield setup_line(plan.setup)
    yield line("")
    needed, room = units.format_bytes(plan.memory.total), units.format_bytes(plan.device.memory)
    as_asked = formulas("memory as requested", plan.memory.parts)
    if plan.fits:
        yield line(f"fits: {needed} of {room} on {plan.device.title}", "green")
        yield line(f"largest batch {plan.largest_batch:,}, longest context {plan.longest_context:,}")
        yield as_asked
        return
    short = units.format_bytes(plan.memory.total - plan.device.memory)
    yield line(f"does not fit: {needed} needed, {room} on {plan.device.title}: {short} short\n", "red")
    yield as_asked
    if not plan.remedies:
        yield from _no_remedy(plan)
        return
    yield _table(plan.remedies[:_SHOWN])
    yield line("\ntime: relative to the requested run; FLOPs are counted, other costs assumed (--explain)", "dim")
    for remedy in plan.remedies[:_SHOWN]:
        yield formulas(f"{remedy.name}: {'; '.join(map(_why, remedy.changes))}", remedy.memory.parts)


def _why(change: Change) -> str:
    return change.why + (f" (assumed {change.time:.2f}x the time)" if change.time != 1 else "")


def _no_remedy(plan: Diagnosis) -> Iterator[Section]:
    if plan.closest is not None:
        least = units.format_bytes(plan.closest.memory.total)
        yield line(f"nothing makes it fit. The least is {least}: {plan.closest.name}")
    if plan.devices_needed:
        count, name = plan.devices_needed, plan.device.name
        yield line(f"{count:,} such devices hold it with FSDP and full recomputation: --devices {count}x{name}")
    else:
        yield line("even 4,096 such devices with FSDP and full recomputation do not hold it: shorten --context")


def _table(remedies: tuple[Remedy, ...]) -> Section:
    table = plain_table("changes", "memory", "time", "result", wraps=(0,), least=((3,),))
    for remedy in remedies:
        table.add_row(
            remedy.name,
            units.format_bytes(remedy.memory.total),
            f"{remedy.time:.2f}x",
            "the same" if remedy.same_result else "changes",
            style="" if remedy.same_result else "dim",
        )
    return Section(table)
