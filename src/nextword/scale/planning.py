"""From a time or compute to the design of a sweep that it buys: budgets, sizes and batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from ..base import UsageError, units
from ..spec import ModelKind
from .design import EPOCHS, HOLD_OUT, SweepDesign

FEWEST_CELLS, FEWEST_SIZES = 6, 3
_SCAN_SHARE = 0.5  # of the lowest budget, for a run of the scans of learning rates
_APART = 2.0  # ratio of neighbouring budgets
_SIZES_APART = math.sqrt(2)  # so that five or six sizes of a budget lie within the ratios above
_FINE = 8  # steps of the smallest size to a factor of two
_ASIDE = 1.2  # ratio to the expected optimum that a size beside it has at least
_REACH = 2.0  # sizes from the expected optimum of the lowest budget divided by it to that of the top one times it
_LEAST_BATCH, _SMALL_BATCH = 256, 2048  # tokens a step; the second at most below _SMALL FLOPs
_SMALL = 1e13
_SEEDS = 2
_REPEATED, _CHECKED = 3e12, 1e13  # FLOPs of the top budget from which cells are run again: with other seeds, other rate
_HALVINGS = 20  # of the range of budgets: to a ten-thousandth
_ENDLESS = 10**15  # tokens of a text that limits nothing


def plan_design(
    cost: Callable[[SweepDesign], float], available: float, base: SweepDesign, sizes: Sequence[float] = (),
    unit: Callable[[float], str] = units.format_seconds,
) -> SweepDesign:  # fmt: skip
    """The design that costs what is `available`, with four budgets or, if they get too few cells, three.

    `base` has what does not depend on the budget; its sizes, budgets, batch and warm-up are replaced. Raises
    UsageError if six cells cannot be had, which says how much time, compute or text is needed.
    """
    for count in (4, 3):
        design = _largest(cost, available, base, sizes, count)
        if design is not None:
            return design
    raise UsageError(_lacking(cost, available, base, sizes, unit))


def _lacking(
    cost: Callable[[SweepDesign], float], available: float, base: SweepDesign, sizes: Sequence[float],
    unit: Callable[[float], str],
) -> str:  # fmt: skip
    """Why no design has enough cells: too little time or compute, sizes that do not suit it, or too little text."""
    endless = replace(base, unique_tokens=_ENDLESS)
    free = _largest(cost, available, endless, (), 3)
    if free is None:
        needed = _least(available, lambda budget: _largest(cost, budget, endless, (), 3) is not None)
        return (
            f"{unit(available)} buys fewer than the {FEWEST_CELLS} runs that a law needs (three budgets, each of"
            f" {base.least_steps:,} steps or more). Give about {unit(needed)}"
        )
    if sizes and _largest(cost, available, endless, sizes, 3) is None:
        low, high = (
            units.compact_count(free.expected(budget).parameters) for budget in (free.budgets[0], free.budgets[-1])
        )
        return (
            f"--sizes has fewer than {FEWEST_SIZES} that suit each budget: the best M is expected between {low} and"
            f" {high}. Give sizes around these"
        )
    tokens = _least(base.unique_tokens, lambda unique: _largest(
        cost, available, replace(base, unique_tokens=math.ceil(unique)), sizes, 3) is not None)  # fmt: skip
    return (
        f"too little text: {base.unique_tokens:,} tokens, seen at most {EPOCHS} times, give fewer than the"
        f" {FEWEST_CELLS} runs of {base.least_steps:,} steps that a law needs. Give about"
        f" {units.format_bytes(tokens * base.bytes_per_token)} of text"
    )


def _least(value: float, enough: Callable[[float], bool]) -> float:
    """About the least that is enough, which is more than `value`."""
    high = max(1.0, 2 * value)  # the time may be over
    while not enough(high):
        high *= 2
    low = high / 2
    for _ in range(4):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def design_of(top: float, count: int, base: SweepDesign, sizes: Sequence[float] = ()) -> SweepDesign:
    """A design of `count` budgets up to `top` FLOPs, with sizes on both sides of the expected optima."""
    budgets = tuple(top / _APART**number for number in reversed(range(count)))
    low, high = (base.expected(budget).parameters for budget in (budgets[0], budgets[-1]))
    low = 2 ** (round(_FINE * math.log2(low)) / _FINE)  # so that a search for a design meets few different shapes
    steps = round(math.log(high * _REACH / (low / _REACH), _SIZES_APART))
    chosen = tuple(sizes) or tuple(low / _REACH * _SIZES_APART**number for number in range(steps + 1))
    least_tokens = budgets[0] / (6 * _REACH * low)  # of the largest useful model of the lowest budget
    batch = max(1, _batch_tokens(budgets[0], least_tokens, base.least_steps) // base.context)
    batch = math.ceil(batch / base.processes) * base.processes
    design = replace(base, sizes=chosen, budgets=budgets, hold_out=HOLD_OUT * top, batch_size=batch)
    lowest = sorted(cell.size for cell in design.grid(design.kinds[0]) if cell.budget == budgets[0])
    scanned = tuple(dict.fromkeys((*lowest[:1], *lowest[:4][-1:])))  # up to three times apart
    return replace(
        design, warmup_steps=_warmup(design), scanned=scanned, scan_budget=budgets[0] * _SCAN_SHARE,
        seeds=_SEEDS if top >= _REPEATED else 0, half_rate=top >= _CHECKED,
    )  # fmt: skip


def _largest(
    cost: Callable[[SweepDesign], float], available: float, base: SweepDesign, sizes: Sequence[float], count: int
) -> SweepDesign | None:
    """The most expensive design within what is available; None if it has too few cells."""
    low, high = math.log(1e8), math.log(1e28)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if cost(design_of(math.exp(middle), count, base, sizes)) <= available:
            low = middle
        else:
            high = middle
    design = design_of(math.exp(low), count, base, sizes)
    return design if all(_enough(design, kind, bool(sizes)) for kind in design.kinds) else None


def _enough(design: SweepDesign, kind: ModelKind, given: bool) -> bool:
    """Six cells, and for every budget three sizes, some on each side of the expected optimum unless they were given."""
    cells = design.grid(kind)
    for budget in design.budgets:
        sizes = [cell.size for cell in cells if cell.budget == budget]
        best = design.expected(budget).parameters
        if len(sizes) < FEWEST_SIZES or not (given or min(sizes) * _ASIDE < best < max(sizes) / _ASIDE):
            return False
    return len(cells) >= FEWEST_CELLS


def _batch_tokens(budget: float, tokens: float, steps: int) -> int:
    """A power of two of tokens a step: small, since small runs need many updates; DeepSeek LLM's rule for large ones.

    2401.02954, section 3.1.
    """
    most = _SMALL_BATCH if budget < _SMALL else max(_SMALL_BATCH, 0.2920 * budget**0.3271)
    wanted = min(most, tokens / steps)
    return max(_LEAST_BATCH, 1 << int(math.log2(max(1.0, wanted))))


def _warmup(design: SweepDesign) -> int:
    """Tokens of the smallest model's size (Porian et al. 2024), at most a tenth of the shortest run, as steps."""
    cells = [cell for kind in design.kinds for cell in design.grid(kind)]
    if not cells:
        return 1
    tokens = min(min(cell.size for cell in cells), min(cell.tokens for cell in cells) / 10)
    return max(1, round(tokens / design.batch_tokens))


def check_text(design: SweepDesign, val_share: float) -> None:
    """Raise UsageError for too little text for the hold-out run, which sees the most."""
    if not design.hold_out:
        return
    seen = design.with_hold_out(HOLD_OUT).expected_hold_out(design.kinds[0]).tokens
    if seen > EPOCHS * design.unique_tokens:
        needed = seen / EPOCHS * design.bytes_per_token / (1 - val_share)
        raise UsageError(
            f"too little text: the hold-out run sees {units.format_count(seen)} tokens, and the text has"
            f" {units.format_count(design.unique_tokens)} to train on, which count {EPOCHS} times at most. Give"
            f" {units.format_bytes(needed)} of text, or a smaller budget"
        )
