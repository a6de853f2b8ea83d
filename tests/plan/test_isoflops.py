"""Runs at equal FLOPs: minima, exponents and frontiers against published figures, closed forms and counted coverage."""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import vega_lite
from cli_run import run
from nextword.base import UsageError
from nextword.base.distributions import student_quantile
from nextword.plan import Law, Optima, Runs, optimum, read_runs, read_table
from nextword.plan.isoflops import (
    cells,
    compute_at_equal_loss,
    form_budgets,
    isoflops,
    scaling_of_optima,
)
from nextword.plan.laws import EPOCH, HOFFMANN
from nextword.plan.plots import optima_figure, residual_figure, sweep_figure
from nextword.plan.sweep_checks import by_filter, check, law_of_cells, left_out, transient

SCALING = Path(__file__).parents[1] / "oracles" / "scaling"


def sweep(
    law: Law = EPOCH,
    *,
    budgets: int = 4,
    sizes: int = 5,
    step: float = 2,
    noise: float = 0.0,
    seed: int = 0,
    first=1e17,
) -> Runs:
    """Budgets √10 apart, each with sizes around its optimum."""
    draw, points = np.random.default_rng(seed), []
    for flops in first * 10 ** (np.arange(budgets) / 2):
        best = optimum(flops, law).parameters
        for size in best * step ** (np.arange(sizes) - (sizes - 1) / 2):
            points.append((size, flops / 6 / size, law.loss(size, flops / 6 / size) * math.exp(draw.normal(0, noise))))
    parameters, tokens, losses = zip(*points, strict=True)
    return Runs(parameters, tokens, losses)


def tuned() -> Optima:
    """The optima of Porian et al. 2024 on RefinedWeb with tuned rates."""
    table = read_table(SCALING / "porian_optima.csv")
    assert isinstance(table, Optima)
    return table


# ---- published figures


@pytest.mark.parametrize(
    ("count", "size", "data"), [("matmul", 0.5241, 0.4786), ("all", 0.3661, 0.4901), ("transformer", 0.6808, 0.3974)]
)
def test_the_way_parameters_are_counted_decides_the_exponent(count: str, size: float, data: float) -> None:
    table = read_table(SCALING / "nanochat_optima.csv", count)
    assert isinstance(table, Optima)
    found = scaling_of_optima(table)
    assert found.powers["N"].exponent == pytest.approx(size, abs=5e-5)
    assert found.powers["D"].exponent == pytest.approx(data, abs=5e-5)
    assert size in found.powers["N"].estimate.interval


@pytest.mark.parametrize(("reach", "bias"), [(2, -0.33), (4, -1.30), (8, -2.90), (16, -5.10)])
def test_parabolas_have_their_known_bias(reach: float, bias: float) -> None:
    """Without noise: 15 sizes from 1/reach to reach times the optimum, D_opt projected from 1e17..1e21 to 1e24."""
    points = []
    for flops in 10.0 ** np.arange(17, 22):
        best = optimum(flops, HOFFMANN).tokens
        points += [(flops / 6 / tokens, tokens) for tokens in best * np.geomspace(1 / reach, reach, 15)]
    sizes, tokens = zip(*points, strict=True)
    found = isoflops(Runs(sizes, tokens, tuple(map(HOFFMANN.loss, sizes, tokens))), window=math.inf, bootstrap=0)
    error = found.predict(1e24).sizes["D"].value / optimum(1e24, HOFFMANN).tokens - 1
    assert 100 * error == pytest.approx(bias, abs=0.006)


def test_the_optima_of_porian_et_al_have_their_exponent() -> None:
    assert scaling_of_optima(tuned()).powers["N"].exponent == pytest.approx(0.497, abs=5e-4)


@pytest.mark.parametrize(
    ("E", "gamma", "errors"),
    [
        (1.5, 0.0853, (-0.20, -0.16, -0.24, -0.28)),
        (1.8, 0.0972, (0.02, 0.19, 0.28, 0.43)),
        (2.1, 0.1129, (0.29, 0.64, 0.94, 1.33)),
    ],
)
def test_the_frontier_of_the_eight_lowest_budgets_predicts_the_four_highest(
    E: float, gamma: float, errors: tuple[float, ...]
) -> None:
    optima = tuned()
    frontier = scaling_of_optima(optima.take(range(8)), (E, E)).frontier
    assert frontier is not None
    assert frontier.gamma == pytest.approx(gamma, abs=5e-5)
    found = [100 * (frontier.loss(c) / loss - 1) for c, loss in zip(optima.flops[8:], optima.losses[8:], strict=True)]
    assert found == pytest.approx(errors, abs=0.006)


def test_e_left_free_is_not_identified_and_held_predicts_within_its_interval() -> None:
    optima = tuned()
    frontier = scaling_of_optima(optima.take(range(8))).frontier
    assert frontier is not None
    assert not frontier.identified
    assert frontier.to_dict()["free_E"]["value"] is None
    assert all(loss in frontier.estimate(c).interval for c, loss in zip(optima.flops, optima.losses, strict=True))


def test_parabolas_through_porian_et_als_runs_find_their_optima() -> None:
    """The authors interpolate and smooth, ours are parabolas over 10% of the loss: sizes differ by up to 20%."""
    found, optima = isoflops(read_runs(SCALING / "porian_isoflop_points.csv")), tuned()
    assert [minimum.problem for minimum in found.minima] == [""] * 12
    assert found.powers["N"].exponent == pytest.approx(0.497, abs=0.01)
    for minimum, size, loss in zip(found.minima, optima.sizes["N"], optima.losses, strict=True):
        assert minimum.size == pytest.approx(size, rel=0.2)
        assert minimum.loss == pytest.approx(loss, rel=0.004)


# ---- synthetic runs


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """95% stated; of 200 sweeps counted: the exponent, the loss of a run at ten times the compute, and the minima."""
    law, ahead, noise = EPOCH, 10**19.5, 0.003
    true, best = law.beta / (law.alpha + law.beta), optimum(ahead, law)
    counted = np.zeros(3)
    for seed in range(200):
        found = isoflops(sweep(law, noise=noise, seed=seed), bootstrap=500)
        assert found.frontier is not None
        measured = best.loss * math.exp(np.random.default_rng(1000 + seed).normal(0, noise))
        within = [optimum(each.flops, law).loss in each.loss_interval for each in found.minima]
        counted += (true in found.powers["N"].estimate.interval, measured in found.frontier.estimate(ahead).interval,
                    np.mean(within))  # fmt: skip
    exponent, loss, minima = counted / 200
    assert 0.90 <= exponent <= 0.98
    assert 0.90 <= minima <= 0.98
    assert loss >= 0.93  # E's range is in it


@pytest.mark.parametrize("budgets", [3, 4, 8])
def test_the_interval_of_a_line_through_optima_is_students(budgets: int) -> None:
    """What the bootstrap draws is Student's t of least squares, for few budgets too."""
    draw, flops = np.random.default_rng(0), 1e18 * 2.0 ** np.arange(budgets)
    sizes = 1e8 * (flops / 1e18) ** 0.5 * np.exp(draw.normal(0, 0.1, budgets))
    x, y = np.log(flops) - np.log(flops).mean(), np.log(sizes)
    slope = x @ y / (x @ x)
    residuals = y - y.mean() - slope * x
    error = math.sqrt(residuals @ residuals / (budgets - 2) / (x @ x))
    found = scaling_of_optima(Optima(tuple(flops), {"N": tuple(sizes)}), bootstrap=20_000).powers["N"].estimate
    reach = student_quantile(0.975, budgets - 2) * error
    assert found.value == pytest.approx(slope)
    assert (found.interval.low, found.interval.high) == pytest.approx((slope - reach, slope + reach), abs=0.05 * reach)


def test_exponents_of_m_and_d_sum_to_one_and_every_count_has_its_own() -> None:
    runs = sweep()
    counted = replace(runs, counts={"total": tuple(n + 1e7 for n in runs.parameters),
                                    "double": tuple(2 * n for n in runs.parameters)})  # fmt: skip
    powers = isoflops(counted).powers
    assert list(powers) == ["M", "D", "total", "double"]
    assert powers["M"].exponent + powers["D"].exponent == pytest.approx(1)
    assert powers["double"].exponent == pytest.approx(powers["M"].exponent)  # what multiplies moves only the constant
    assert powers["total"].exponent < powers["M"].exponent - 0.02
    assert powers["M"].at(1e18).value * powers["D"].at(1e18).value == pytest.approx(1e18 / 6)


def test_the_flat_region_is_where_the_parabola_is_within_half_a_per_cent() -> None:
    minimum = isoflops(sweep(step=1.1), bootstrap=0).minima[1]
    for edge in (minimum.flat.low, minimum.flat.high):
        assert EPOCH.loss(edge, minimum.flops / 6 / edge) == pytest.approx(1.005 * minimum.loss, rel=2e-3)


def test_a_minimum_outside_the_sizes_is_not_bracketed_and_stays_out() -> None:
    runs = sweep(budgets=3)
    found = isoflops(runs.take([*range(2), *range(5, 15)]))
    assert found.minima[0].problem == "not bracketed: 2 sizes near the minimum; add sizes"
    assert found.powers["N"].exponent == isoflops(runs.take(range(5, 15))).powers["N"].exponent
    law, flops = EPOCH, 1e18
    best = optimum(flops, law).parameters
    for factors, said in (((1.5, 2, 3, 4), "add smaller sizes"), ((0.2, 0.3, 0.5, 0.7), "add larger sizes")):
        sizes = tuple(best * factor for factor in factors)
        tokens = tuple(flops / 6 / size for size in sizes)
        found = isoflops(Runs(sizes, tokens, tuple(map(law.loss, sizes, tokens))))
        assert found.minima[0].problem == f"not bracketed: {said}"
        assert not found.powers
        assert "at least 2 budgets, not 0" in found.problem


def test_runs_form_budgets_or_are_scattered() -> None:
    assert form_budgets(sweep())
    assert form_budgets(sweep(budgets=2, sizes=3))
    assert form_budgets(sweep(budgets=1))
    grid = [(n, d) for n in (1e6, 4e6, 2e7, 1e8) for d in (1e8, 5e8, 3e9, 2e10)]
    assert not form_budgets(Runs(tuple(n for n, _ in grid), tuple(d for _, d in grid), (3.0,) * 16))
    assert not form_budgets(read_runs(SCALING.parent / "epoch_chinchilla.csv"))
    sizes = 10 ** np.random.default_rng(0).uniform(6, 7, 5000)  # so dense that any budget has its runs
    assert not form_budgets(Runs(tuple(sizes), tuple(1e9 * sizes[::-1] / 1e7), (3.0,) * 5000))


def test_a_law_is_fitted_to_the_cells_near_their_minimum_at_usual_ratios_only() -> None:
    runs = sweep(sizes=9, step=2.5)
    kept = set(cells(runs))
    assert kept
    for row, (n, d, loss) in enumerate(zip(runs.parameters, runs.tokens, runs.losses, strict=True)):
        lowest = min(runs.losses[row - row % 9 : row - row % 9 + 9])
        assert (row in kept) == (3 <= d / n <= 300 and loss <= 1.1 * lowest)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_same_seed_gives_the_same_intervals(seed: int) -> None:
    runs = sweep(noise=0.003)
    again = isoflops(runs, seed=seed).to_dict()
    assert again == isoflops(runs, seed=seed).to_dict()
    assert again != isoflops(runs, seed=seed + 1).to_dict()


def test_e_above_the_losses_gives_no_frontier_but_the_exponents() -> None:
    runs = replace(sweep(), unit="bits/byte", losses=tuple(loss / 8 for loss in sweep().losses))
    found = isoflops(runs)
    assert found.frontier is None
    assert "E is held at 0.45 to 0.75 bits/byte, which is not below the lowest loss 0.3" in found.problem
    assert "N" in found.powers
    assert isoflops(runs, (0.2, 0.25)).frontier is not None


def test_a_loss_that_does_not_fall_with_compute_gives_no_frontier() -> None:
    found = scaling_of_optima(replace(tuned(), losses=tuned().losses[::-1]))
    assert (found.frontier, found.problem) == (None, "the loss at the minima does not fall with compute")


def test_few_noisy_optima_give_wide_intervals_and_no_overflow() -> None:
    optima = Optima((1e15, 1.1e15, 1.2e15), {"N": (1e9, 1e6, 1e8)}, (3.0, 2.5, 2.9))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        predicted = scaling_of_optima(optima).predict(1e30).sizes["N"]
    assert 0 < predicted.interval.low < 1e-100
    assert predicted.interval.high > 1e100


def test_compute_at_equal_loss_is_the_ratio_of_frontiers() -> None:
    plain, worse = (
        scaling_of_optima(tuned()),
        scaling_of_optima(replace(tuned(), flops=tuple(4 * c for c in tuned().flops))),
    )
    assert plain.frontier is not None
    assert worse.frontier is not None
    factor = compute_at_equal_loss(plain.frontier, worse.frontier, 3.5)
    assert factor.value == pytest.approx(4)
    assert 4 in factor.interval


def test_two_optima_give_no_interval_and_are_refused() -> None:
    with pytest.raises(UsageError, match="at least 3 budgets, not 2"):
        scaling_of_optima(tuned().take([0, 1]))


def test_minima_that_scatter_about_the_frontier_widen_it() -> None:
    runs = sweep(budgets=6)
    factors = [1.02 if row // 5 % 2 else 0.98 for row in range(30)]  # each budget is off as a whole, its parabola exact
    scattered = replace(runs, losses=tuple(map(math.prod, zip(runs.losses, factors, strict=True))))
    plain, wide = (isoflops(each, (1.8, 1.8)).frontier for each in (runs, scattered))
    assert plain is not None
    assert wide is not None
    assert wide.noise == pytest.approx(0.02, rel=0.3)
    loss = wide.estimate(1e21)
    assert loss.interval.high - loss.interval.low > 4 * 0.02 * loss.value
    assert plain.noise < 0.005


# ---- checks


def test_the_largest_budget_is_predicted_from_the_others_only() -> None:
    runs = sweep(noise=0.002)
    found = left_out(runs)
    assert found is not None
    assert found.predicted.value == pytest.approx(found.measured, rel=0.01)
    worse = replace(runs, losses=(*runs.losses[:15], *(2 * loss for loss in runs.losses[15:])))
    other = left_out(worse)
    assert other is not None
    assert other.predicted == found.predicted
    assert other.measured == pytest.approx(2 * found.measured)


def test_other_choices_of_runs_are_shown() -> None:
    runs = sweep(noise=0.002)
    found, rest = by_filter(runs, 1e20), isoflops(runs.take(range(5, 20)), bootstrap=0).frontier
    assert rest is not None
    assert list(found) == ["runs within 5% of the lowest loss", "without the lowest budget"]
    assert found["without the lowest budget"] == rest.loss(1e20)


def test_a_transient_in_the_lowest_budget_is_found_with_its_effect() -> None:
    pytest.importorskip("scipy")
    runs = sweep(sizes=6, noise=0.001)
    assert transient(runs) is None
    # larger models suffer more from too few steps
    late = [loss * (1.02 + 0.004 * row) for row, loss in enumerate(runs.losses[:6])]
    found = transient(replace(runs, losses=(*late, *runs.losses[6:])))
    assert found is not None
    assert found.flops == pytest.approx(1e17)
    assert found.error > 0.02
    assert found.exponent > found.exponent_without + 0.02
    assert "transient: leave budget 1e+17 out" in found.text


def test_the_checks_of_a_sweep_are_together() -> None:
    found = check(sweep(budgets=2, sizes=3), 1e20, bootstrap=0)
    assert found.left_out is None  # one budget gives no frontier
    assert found.transient is None
    assert list(found.by_filter) == ["runs within 5% of the lowest loss"]  # one budget left gives no frontier


# ---- figures


def test_a_sweeps_figure_shows_its_minima_its_power_and_the_budget_left_out() -> None:
    runs = sweep(noise=0.002)
    found, checks = isoflops(runs), check(runs, 1e20)
    figure = sweep_figure(runs, found, checks.left_out)
    assert "loss, nats/token" in vega_lite.drawn(figure)
    parabolas, sizes, frontier = figure["concat"]
    minima = vega_lite.marks(parabolas, "point")[1]
    assert vega_lite.column(minima, "size") == [each.size for each in found.minima]
    assert vega_lite.column(minima, "low") == [each.size_interval.low for each in found.minima]
    (curve,) = vega_lite.marks(sizes, "line")
    assert vega_lite.column(curve, "value")[0] == found.powers["N"].at(found.minima[0].flops).value
    ring = vega_lite.marks(frontier, "point")[1]
    assert checks.left_out is not None
    assert vega_lite.column(ring, "value") == [checks.left_out.predicted.value]


def test_a_sweep_of_which_nothing_follows_still_has_a_figure() -> None:
    one = sweep(budgets=1)
    assert len(sweep_figure(one, isoflops(one))["concat"]) == 1
    unbracketed = sweep().take([row for row in range(20) if row % 5 > 2])
    vega_lite.drawn(sweep_figure(unbracketed, isoflops(unbracketed)))
    exact = isoflops(sweep(budgets=2, sizes=3))
    vega_lite.drawn(sweep_figure(sweep(budgets=2, sizes=3), exact))


def test_the_surface_shows_how_far_each_run_is_off_the_law() -> None:
    pytest.importorskip("scipy")
    runs = sweep(noise=0.002)
    by = law_of_cells(runs)
    assert by is not None
    figure = residual_figure(runs, isoflops(runs, bootstrap=0), by)
    vega_lite.drawn(figure)
    dots = vega_lite.marks(figure, "point")[-1]
    assert vega_lite.column(dots, "tokens") == list(runs.tokens)
    rows = zip(runs.parameters, runs.tokens, runs.losses, strict=True)
    assert vega_lite.column(dots, "error") == [loss / by.loss(n, d) - 1 for n, d, loss in rows]
    line = vega_lite.marks(figure, "line")[0]
    losses: dict[int, list[float]] = {}
    points = zip(*(vega_lite.column(line, name) for name in ("line", "size", "tokens")), strict=True)
    for number, n, d in points:
        losses.setdefault(number, []).append(by.loss(n, d))
    assert len(losses) > 5
    assert all(max(equal) - min(equal) < 1e-9 for equal in losses.values())


def test_optima_are_drawn_with_their_power_and_their_frontier() -> None:
    table = tuned()
    found = scaling_of_optima(table, bootstrap=100)
    sizes, frontier = optima_figure(table, found)["concat"]
    (dots,) = vega_lite.marks(sizes, "point")
    assert vega_lite.column(dots, "value") == sorted(table.sizes["N"])
    (dots,) = vega_lite.marks(frontier, "point")
    assert vega_lite.column(dots, "value") == sorted(table.losses, reverse=True)
    vega_lite.drawn(optima_figure(table, found))
    without = replace(table, losses=(), sizes={"D": table.sizes["D"]})
    (only,) = optima_figure(without, scaling_of_optima(without, bootstrap=0))["concat"]
    (dots,) = vega_lite.marks(only, "point")
    assert vega_lite.column(dots, "value") == sorted(table.sizes["D"])


def test_kinds_are_drawn_below_each_other_and_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = ["kind,N,D,loss"]
    for kind, times in (("transformer", 1.0), ("lstm", 1.1)):
        table = sweep(noise=0.001)
        rows += [f"{kind},{n},{d},{times * loss}"
                 for n, d, loss in zip(table.parameters, table.tokens, table.losses, strict=True)]  # fmt: skip
    (tmp_path / "runs.csv").write_text("\n".join(rows))
    figure = tmp_path / "kinds.json"
    command = ("plan", "laws", "--data", str(tmp_path / "runs.csv"), "--bootstrap", "20", "--method", "nnls")
    assert run(capsys, *command, "--plot", str(figure))[0] == 0
    drawn = json.loads(figure.read_text())
    vega_lite.drawn(drawn)
    transformer, lstm, kinds = drawn["vconcat"]
    assert [part["title"]["text"].split(":")[0] for part in (transformer, lstm)] == ["transformer", "lstm"]
    assert vega_lite.texts(drawn, "lines") == ["transformer", "lstm"]
    assert set(vega_lite.column(vega_lite.marks(kinds, "line")[0], "line")) == {0, 1}
