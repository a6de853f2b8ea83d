"""Fits of laws: what they recover, and what they refuse to say."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path

import pytest

from nextword.base import UsageError
from nextword.plan import Runs, fit_law, fit_methods, fitting, optimum, read_runs
from nextword.plan.budget import epoch_draws, prediction_interval
from nextword.plan.fitting import NAMES, believed, outlier_remark
from nextword.plan.laws import DATA_LIMITED, EPOCH, HOFFMANN, Law

ORACLES = Path(__file__).parents[1] / "oracles"


def grid(law: Law, sizes: int = 7, lengths: int = 6, noise: float = 0.0, seed: int = 0) -> Runs:
    draw = random.Random(seed)
    points = [(10 ** (7 + 0.5 * i), 10 ** (8.5 + 0.5 * j)) for i in range(sizes) for j in range(lengths)]
    losses = [law.loss(n, d) * math.exp(draw.gauss(0, noise)) for n, d in points]
    return Runs(tuple(n for n, _ in points), tuple(d for _, d in points), tuple(losses))


@pytest.mark.parametrize("method", ["huber", "nnls"])
@pytest.mark.parametrize("law", [EPOCH, HOFFMANN])
def test_a_law_without_noise_is_recovered(law: Law, method) -> None:
    fit = fit_law(grid(law), method, bootstrap=0, hold_out=False)
    for name in NAMES:
        assert getattr(fit.law, name) == pytest.approx(getattr(law, name), rel=1e-3), name
    assert not fit.unidentified


@pytest.mark.parametrize("method", ["huber", "nnls"])
def test_intervals_hold_the_truth_and_narrow_with_more_runs(method) -> None:
    few = fit_law(grid(EPOCH, 6, 5, noise=0.003), method, bootstrap=40, hold_out=False)
    many = fit_law(grid(EPOCH, 14, 12, noise=0.003, seed=1), method, bootstrap=40, hold_out=False)

    def width(fit) -> float:
        interval = fit.interval(lambda law: math.log(optimum(1e22, law).parameters))
        return interval.high - interval.low

    assert width(many) < width(few)
    assert math.log(optimum(1e22, EPOCH).parameters) in many.interval(
        lambda law: math.log(optimum(1e22, law).parameters)
    )


def test_the_runs_terms_sum_to_the_objective() -> None:
    fit = fit_law(grid(EPOCH, noise=0.01), bootstrap=0, hold_out=False)
    assert len(fit.terms) == len(fit.runs)
    assert fit.objective == pytest.approx(sum(fit.terms))
    assert min(fit.terms) >= 0


def test_the_largest_budgets_left_out_are_predicted() -> None:
    held = fit_law(grid(EPOCH, noise=0.003), bootstrap=0).held_out
    assert held is not None
    assert held.runs == 4
    assert abs(held.bias) < 0.01
    assert held.rms < 0.01


def test_the_same_seed_gives_the_same_intervals() -> None:
    runs = grid(EPOCH, noise=0.01)
    first, second, other = (fit_law(runs, bootstrap=10, hold_out=False, seed=seed) for seed in (3, 3, 4))
    assert first.intervals == second.intervals
    assert first.intervals != other.intervals


def scattered(count: int, law: Law = EPOCH, noise: float = 0.01) -> Runs:
    draw = random.Random(0)
    points = [(10 ** draw.uniform(7, 10), 10 ** draw.uniform(8.5, 11.5)) for _ in range(count)]
    losses = tuple(law.loss(n, d) * math.exp(draw.gauss(0, noise)) for n, d in points)
    return Runs(tuple(n for n, _ in points), tuple(d for _, d in points), losses)


def test_many_runs_are_fitted_whole_from_starts_of_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (fitting, fit_methods):
        monkeypatch.setattr(module, "MOST_RUNS", 100)
    fit = fit_law(scattered(100_000), "nnls", bootstrap=0, hold_out=False)  # 75 GB would a square of them take
    assert fit.law.loss(1e9, 2e10) == pytest.approx(EPOCH.loss(1e9, 2e10), rel=5e-4)
    assert len(fit.terms) == 100_000


def test_resampling_a_part_of_the_runs_gives_the_interval_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = scattered(1200)

    def width() -> float:
        fit = fit_law(runs, "nnls", bootstrap=40, hold_out=False)
        interval = fit.interval(lambda law: law.loss(1e9, 2e10))
        return interval.high - interval.low

    whole = width()
    for module in (fitting, fit_methods):
        monkeypatch.setattr(module, "MOST_RUNS", 300)
    assert width() == pytest.approx(whole, rel=0.5)  # by itself a quarter of the runs would give twice as much


def test_what_is_under_way_is_heard() -> None:
    heard: list[str] = []
    fit_law(grid(EPOCH), "nnls", bootstrap=3, hold_out=False, progress=heard.append)
    assert heard[0] == "nnls: fitting 42 runs"
    assert heard[-1] == "nnls: 3 of 3 resampled fits"


# ---- which fit to believe


def test_the_fit_that_predicts_larger_runs_better_is_believed() -> None:
    fits = [fit_law(grid(EPOCH, noise=0.01), method, bootstrap=0) for method in ("huber", "nnls")]
    best, why = believed(fits)
    errors = {fit.method: fit.held_out.ahead_rms for fit in fits if fit.held_out}
    assert errors[best.method] == min(errors.values())
    assert fits[0].held_out is not None
    assert fits[0].held_out.folds == 4
    assert all(f"{method} {error:.2%}" in why for method, error in errors.items())
    assert believed(fits[::-1])[0] is best


def test_a_fit_that_is_not_identified_is_not_believed_where_another_is() -> None:
    good = fit_law(grid(EPOCH, noise=0.01), "nnls", bootstrap=0)
    vague = replace(good, method="huber", unidentified={"alpha": "95% of resampled fits reach 0"})
    best, why = believed([vague, good])
    assert best is good
    assert "not identified by these runs: constants of huber" in why
    best, why = believed([vague, replace(vague, method="nnls")])
    assert "none gives an optimum" in why


def test_the_law_of_repeated_data_has_the_papers_unrounded_constants() -> None:
    """Muennighoff et al. 2023, appendix B: a 6.255414, b 7.3049974, e 0.6254804; printed as 521, 1488, 1.87."""
    logs = [math.log(value) for value in (DATA_LIMITED.A, DATA_LIMITED.B, DATA_LIMITED.E)]
    assert logs == pytest.approx([6.255414, 7.3049974, 0.6254804], rel=1e-12)
    assert (round(DATA_LIMITED.A), round(DATA_LIMITED.B), round(DATA_LIMITED.E, 2)) == (521, 1488, 1.87)


def test_too_few_runs_are_refused() -> None:
    with pytest.raises(UsageError, match="needs at least 8 runs, not 7"):
        fit_law(grid(EPOCH).take(range(7)))


def test_runs_of_one_size_do_not_identify_its_constants() -> None:
    runs = grid(EPOCH, 1, 12)
    with pytest.raises(UsageError, match="1 different sizes; A and alpha are not identified"):
        fit_law(runs)


def test_runs_of_one_length_do_not_identify_its_constants() -> None:
    with pytest.raises(UsageError, match="B and beta are not identified"):
        fit_law(grid(EPOCH, 12, 1))


@pytest.mark.parametrize("method", ["huber", "nnls"])
def test_size_and_data_that_grow_together_are_not_told_apart(method) -> None:
    sizes = [10 ** (7 + 0.25 * i) for i in range(14)]
    symmetric = Law("equal powers", 1.8, 400.0, 1500.0, 0.35, 0.35, "")
    runs = Runs(tuple(sizes), tuple(20 * n for n in sizes), tuple(symmetric.loss(n, 20 * n) for n in sizes))
    fit = fit_law(runs, method, bootstrap=0, hold_out=False)
    assert {"A", "B"} & set(fit.unidentified)


def test_losses_that_do_not_depend_on_size_do_not_identify_its_constants() -> None:
    flat = grid(Law("no size", 1.8, 1e-9, 2000.0, 0.35, 0.37, ""))
    assert {"A", "alpha"} <= set(fit_law(flat, bootstrap=0, hold_out=False).unidentified)


def test_noise_alone_identifies_no_powers() -> None:
    draw = random.Random(0)
    runs = grid(EPOCH)
    noise = Runs(runs.parameters, runs.tokens, tuple(draw.uniform(2, 4) for _ in runs.losses))
    assert fit_law(noise, bootstrap=40, hold_out=False).unidentified


def test_stored_draws_are_those_of_the_epoch_points() -> None:
    """src/nextword/plan/epoch_draws.json is what tests/oracles/make_epoch_draws.py makes."""
    runs = read_runs(ORACLES / "epoch_chinchilla.csv").without_highest(5)
    again = fit_law(runs, bootstrap=3, hold_out=False, seed=0).draws
    for stored, made in zip(epoch_draws(), again, strict=False):
        assert [getattr(stored, name) for name in NAMES] == pytest.approx(
            [getattr(made, name) for name in NAMES], rel=1e-4
        )


def test_prediction_intervals_hold_the_published_law_and_widen_away_from_the_runs() -> None:
    inside, outside = prediction_interval(1e9, 2e10), prediction_interval(1e12, 2e13)
    assert EPOCH.loss(1e9, 2e10) in inside
    assert EPOCH.loss(1e12, 2e13) in outside
    assert outside.high - outside.low > inside.high - inside.low


# ---- files


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("heading", ["N,D,loss", "Parameters,Training tokens,Loss", "n_params,tokens,val_loss"])
def test_columns_are_found_by_their_usual_names(tmp_path: Path, heading: str) -> None:
    assert read_runs(write(tmp_path / "runs.csv", f"{heading}\n1e9,2e10,2.5\n\n1e8,2e9,3.1\n")).tokens == (2e10, 2e9)


def test_tokens_follow_from_flops(tmp_path: Path) -> None:
    assert read_runs(write(tmp_path / "runs.csv", "params,flops,loss\n1e9,1.2e20,2.5\n")).tokens == (2e10,)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("x,y,z\n1,2,3\n", "no column for loss and two of parameters, tokens and flops; it has x, y, z"),
        ("N,D,loss\n1e9,2e10,x\n", "line 2: loss 'x' is not a number"),
        ("N,D,loss\n1e9,2e10,2\n1e9,-5,2\n", "line 3: D '-5' must be above 0"),
        ("N,D,loss\n1e9,2e10\n", "line 2: loss '' is not a number"),
        ("N,D,loss\n1e9,2e10,nan\n", "line 2: loss 'nan' must be above 0"),
        ("N,D,loss\n1e9,2e10,inf\n", "line 2: loss 'inf' must be above 0"),
        ("N,D,loss\n1e308,1e308,3\n", r"line 2: N 1e\+308 is out of range; runs have 1 to 1e\+18"),
        ("N,D,loss\n1e9,1e30,3\n", r"line 2: D 1e\+30 is out of range"),
        ("N,C,loss\n1e9,1e300,3\n", r"line 2: C 1e\+300 is out of range"),
        ("N,D,loss\n1e9,2e10,1e-300\n", "line 2: loss 1e-300 is out of range"),
    ],
)
def test_broken_tables_are_refused_by_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        read_runs(write(tmp_path / "runs.csv", text))


def test_files_that_are_no_table_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        read_runs(tmp_path / "absent.csv")
    (tmp_path / "binary.csv").write_bytes(bytes(range(256)))
    with pytest.raises(UsageError, match="cannot be read as CSV"):
        read_runs(tmp_path / "binary.csv")


def test_all_draws_are_stored() -> None:
    stored = json.loads((Path(__file__).parents[2] / "src/nextword/plan/epoch_draws.json").read_text())
    assert len(stored["draws"]) == len(epoch_draws()) == 200


def test_the_highest_losses_that_pull_a_fit_are_named_and_without_them_nothing_is_said() -> None:
    runs = read_runs(ORACLES / "epoch_chinchilla.csv")
    whole = fit_law(runs, bootstrap=0, hold_out=False)
    assert "--drop-highest 5" in outlier_remark(whole)[0]  # the five that Besiroglu et al. 2024 left out
    assert not outlier_remark(fit_law(runs.without_highest(5), bootstrap=0, hold_out=False))
