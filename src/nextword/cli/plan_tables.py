"""Plans as text for the terminal and as plain data: pure functions over the results of `nextword.plan`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ..base import units

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from ..plan import Device, Figure
    from ..spec import ModelSpec
    from .plan_options import Target

_BAR = 24  # characters
_FORMATS = {
    "bytes": units.format_bytes,
    "FLOPs": units.format_flops,
    "s": units.format_seconds,
    "$": units.format_money,
    "parameters": units.format_count,
    "tokens": units.format_count,
}


def shown(value: float, unit: str) -> str:
    """A value with its unit, about three digits."""
    if unit in _FORMATS:
        return _FORMATS[unit](value)
    if unit == "tokens/s":
        return f"{rate(value)} tokens/s"
    return f"{value:,.4g} {unit}".rstrip()


def rate(value: float) -> str:
    """Tokens a second: 0.42, 64.8, 1,234, 30.7 k."""
    return units.format_count(value) if value >= 1000 else f"{value:.3g}"


def plain_table(
    *columns: str,
    right: bool = True,
    left: int = 1,
    wraps: Sequence[int] | None = None,
    least: Sequence[tuple[int, ...]] = (),
    names: Sequence[int] = (0,),
) -> Table:
    """A table without lines; the first `left` columns are on the left, the others on the right.

    Columns at the places `wraps` hold text and go on in the next line; without `right`, all but the first do. Others
    are never broken: where the console is too narrow, the groups of columns in `least` are left out, the first of
    them first, and named below the table. Only if that is too little, those at the places `names` are shortened.
    """
    from ._table import FittingTable

    if wraps is None:
        wraps = () if right else range(1, len(columns))
    table = FittingTable(least, names)
    for number, name in enumerate(columns):
        justify: Any = "right" if right and number >= left else "left"
        table.add_column(name, justify=justify, no_wrap=number not in wraps, overflow="fold")
    return table


def parts_table(title: str, parts: Sequence[Figure], console: Console, last: str = "total") -> Table:
    """Lines with their size, share and a bar, and their sum."""
    from ._console import draws_unicode

    table = plain_table("", "", "", "", least=((3,),))
    table.show_header = False
    table.title, table.title_justify, table.title_style = title, "left", "bold"
    table.columns[3].justify = "left"
    whole = sum(part.value for part in parts)
    full, empty = ("█", "") if draws_unicode(console) else ("#", "")
    for part in parts:
        share = part.value / whole if whole else 0
        bar = full * max(1, round(_BAR * share)) if part.value else empty
        table.add_row(f"  {part.name}", shown(part.value, part.unit), f"{share:.1%}", bar)
    table.add_row(f"  {last}", shown(whole, parts[0].unit if parts else ""), "", "", style="bold")
    return table


def describe(target: Target) -> str:
    """One line about the model."""
    from ..plan.parameters import parameters

    spec, counted = target.spec, parameters(target.spec)
    active = f", {units.format_count(counted.active)} active" if counted.active < counted.total else ""
    note = f" ({target.note})" if target.note else ""
    return (
        f"{target.name}{note}: {counted.total:,} parameters{active}; {spec.layers} layers of width {spec.width:,},"
        f" vocabulary {spec.vocabulary:,}"
    )


def explain(title: str, figures: Iterable[Figure], console: Console) -> None:
    """Each number: formula, the formula with values, the value, the source."""
    console.print(title, style="bold")
    for figure in figures:
        unit = f" {figure.unit}" if figure.unit else ""
        console.print(f"  {figure.name} = {_exact(figure.value)}{unit}", soft_wrap=True)
        symbolic, filled = figure.symbolic(), figure.filled()
        if symbolic != filled:
            console.print(f"      = {symbolic}", style="dim", soft_wrap=True)
        console.print(f"      = {filled}", style="dim", soft_wrap=True)
        if figure.source:
            console.print(f"      {figure.source}", style="dim italic", soft_wrap=True)
    console.print()


def _exact(value: float) -> str:
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.6g}" if abs(value) < 1e12 else f"{value:.6g}"


def figures_json(figures: Iterable[Figure]) -> list[dict[str, Any]]:
    return [figure.to_dict() for figure in figures]


def target_json(target: Target) -> dict[str, Any]:
    """The model and its parameters."""
    from ..plan.parameters import parameters

    counted = parameters(target.spec)
    return {
        "name": target.name,
        "note": target.note or None,
        "spec": target.spec.to_dict(),
        "parameters": {
            "unit": "parameters",
            "total": counted.total,
            "active": counted.active,
            "multiplying": counted.multiplying,
            "non_embedding": counted.non_embedding,
            "parts": figures_json(counted.parts),
        },
        "stored": {"value": target.stored_bytes, "unit": "bytes"} if target.stored_bytes else None,
    }


def device_json(device: Device) -> dict[str, Any]:
    """A device with its units."""
    return {
        "name": device.name,
        "title": device.title,
        "memory": {"value": device.memory, "unit": "bytes"},
        "bandwidth": {"value": device.bandwidth, "unit": "bytes/s"},
        "peak": {"value": device.peak, "unit": "FLOP/s", "of": "dense 16-bit products; of a CPU float32"},
        "peak_fp32": {"value": device.peak_fp32, "unit": "FLOP/s"},
        "source": device.source,
    }


def quantity(value: float | None, unit: str) -> dict[str, Any]:
    """A number with its unit for JSON."""
    return {"value": value, "unit": unit}


def parameter_figures(spec: ModelSpec) -> list[Figure]:
    """Parts and tensors, for --explain."""
    from ..plan.parameters import parameters

    counted = parameters(spec)
    return [*counted.parts, *counted.tensors]
