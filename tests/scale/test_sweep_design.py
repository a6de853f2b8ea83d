"""Which runs a sweep makes, and what is equal in them."""

from __future__ import annotations

import math

import pytest

from nextword.base import UsageError
from nextword.base.fields import from_plain
from nextword.plan import flops
from nextword.scale.create import flops_of
from nextword.scale.design import (
    DECAY,
    EPOCHS,
    HOLD_OUT,
    LEAST_STEPS,
    SweepDesign,
    planned,
    trained_steps,
)
from nextword.scale.planning import check_text, design_of, plan_design

BASE = SweepDesign(
    kinds=("transformer",), sizes=(), budgets=(), hold_out=0.0, vocabulary=1024, context=128, batch_size=1,
    warmup_steps=1, unique_tokens=4_000_000, bytes_per_token=2.7,
)  # fmt: skip


@pytest.mark.parametrize("top", [1e12, 1e13, 1e15])
def test_every_cell_may_enter_a_fit(top: float) -> None:
    base = from_plain(SweepDesign, BASE.to_dict() | {"unique_tokens": 100 * BASE.unique_tokens})
    design = design_of(top, 4, base)
    cells = design.grid("transformer")
    assert len(cells) > 12
    for cell in cells:
        assert 3 <= cell.tokens / cell.size <= 300
        assert cell.steps >= LEAST_STEPS
        assert cell.tokens <= EPOCHS * design.unique_tokens
        exact = flops(cell.spec, design.context, cell.tokens).total
        assert cell.flops == pytest.approx(exact)  # C = 6 M D, attention and head included
        assert exact == pytest.approx(cell.budget, rel=0.006)  # cells of a budget are compared at equal FLOPs
    assert design.warmup_steps * design.batch_tokens <= min(cell.size for cell in cells) * 1.1
    assert design.warmup_steps <= min(cell.steps for cell in cells) / 9


def test_each_budget_has_five_sizes_or_more_on_both_sides_of_the_expected_optimum() -> None:
    design = design_of(1e13, 4, from_plain(SweepDesign, BASE.to_dict() | {"unique_tokens": 10**9}))
    for budget in design.budgets:
        sizes = [cell.size for cell in design.grid("transformer") if cell.budget == budget]
        assert len(sizes) >= 5
        assert min(sizes) < design.expected(budget).parameters < max(sizes)


def test_cells_are_run_by_budget_and_the_nearest_to_the_expected_optimum_first() -> None:
    design = design_of(1e13, 4, BASE)
    cells = design.grid("transformer")
    assert [cell.budget for cell in cells] == sorted(cell.budget for cell in cells)
    for budget in design.budgets:
        off = [abs(math.log(cell.size / design.expected(budget).parameters))
               for cell in cells if cell.budget == budget]  # fmt: skip
        assert off == sorted(off)


def test_a_trunk_for_each_size_saves_what_branches_share() -> None:
    """By Hägele et al. 2024: (1 - s) D_max + s ΣD_j of a size instead of ΣD_j."""
    design = design_of(1e13, 4, from_plain(SweepDesign, BASE.to_dict() | {"unique_tokens": 10**9}))
    cells = design.grid("transformer")
    for size in {cell.size for cell in cells}:
        own = [cell for cell in cells if cell.size == size]
        trained = sum(steps for _, steps in trained_steps(own))
        budgets = [cell.steps for cell in own]
        assert trained == pytest.approx((1 - DECAY) * max(budgets) + DECAY * sum(budgets), abs=len(own))


def test_the_hold_out_run_is_at_least_four_times_the_top_budget() -> None:
    for top in (1e12, 3.3e13):
        design = design_of(top, 4, BASE)
        assert design.expected_hold_out("transformer").flops >= HOLD_OUT * top == HOLD_OUT * max(design.budgets)


@pytest.mark.parametrize("available", [5e13, 5e14])
def test_a_design_spends_what_is_available(available: float) -> None:
    base = from_plain(SweepDesign, BASE.to_dict() | {"unique_tokens": 10**9, "kinds": ["transformer", "lstm"]})
    design = plan_design(flops_of, available, base)
    assert 0.9 * available < flops_of(design) <= available
    roles = [cell.role for cell, _ in planned(design)]
    assert roles.count("hold-out") == 1
    assert roles.count("rate") == 4 * 5  # two sizes of two kinds
    assert {cell.kind for cell, _ in planned(design)} == {"transformer", "lstm"}


def test_too_small_a_budget_says_how_much_six_cells_take() -> None:
    with pytest.raises(UsageError, match=r"fewer than the 6 runs that a law needs .* Give about"):
        plan_design(flops_of, 1e11, BASE)


def test_too_little_text_says_how_much_is_needed() -> None:
    small = from_plain(SweepDesign, BASE.to_dict() | {"unique_tokens": 100_000})
    with pytest.raises(UsageError, match=r"too little text: the hold-out run sees .* Give .*MB of text"):
        check_text(design_of(1e13, 4, small), 0.05)
    check_text(design_of(1e13, 4, BASE), 0.05)


@pytest.mark.parametrize("tokens", [4_000, 400_000])
def test_text_too_small_for_six_runs_says_how_much_they_take(tokens: int) -> None:
    small = from_plain(SweepDesign, BASE.to_dict() | {"unique_tokens": tokens})
    with pytest.raises(UsageError, match=rf"too little text: {tokens:,} tokens, .* Give about .* MB of text") as error:
        plan_design(flops_of, 2e13, small)
    asked = float(str(error.value).split("Give about ")[1].split(" MB")[0]) * 1e6 / BASE.bytes_per_token
    enough = from_plain(SweepDesign, BASE.to_dict() | {"unique_tokens": round(1.01 * asked)})
    assert len(plan_design(flops_of, 2e13, enough).grid("transformer")) >= 6
    with pytest.raises(UsageError, match="too little text"):
        plan_design(flops_of, 2e13, from_plain(SweepDesign, BASE.to_dict() | {"unique_tokens": round(asked / 2)}))


def test_sizes_far_from_the_best_ones_say_where_these_are_expected() -> None:
    with pytest.raises(
        UsageError, match=r"--sizes has fewer than 3 that suit .* expected between 4.*k and 1.*k\. Give"
    ):
        plan_design(flops_of, 2e13, BASE, (1e7, 2e7, 4e7))


def test_widening_adds_cells_and_changes_none() -> None:
    design = design_of(1e13, 4, from_plain(SweepDesign, BASE.to_dict() | {"unique_tokens": 10**9}))
    wider = design.widened(budgets=(4e13,), sizes=(50e3,))
    cells = {cell.name: cell for cell in design.grid("transformer")}
    more = {cell.name: cell for cell in wider.grid("transformer")}
    assert set(cells) < set(more)
    assert all(more[name] == cell for name, cell in cells.items())
    assert wider.calibration("transformer") == design.calibration("transformer")
    assert {cell.budget for cell in more.values()} == {*design.budgets, 4e13}


def test_a_design_survives_json() -> None:
    design = design_of(1e13, 3, BASE)
    assert from_plain(SweepDesign, design.to_dict()) == design
