"""A run's end is forecast from its curve: exact where the curve is what the model says, with intervals that hold."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kill_me import run_of

from nextword.data import Dataset
from nextword.train.callbacks import Callbacks
from nextword.train.forecast import Forecast, History, forecast
from nextword.train.metrics import last_forecast, read_metrics
from nextword.train.trainer import Trainer

CURVES = json.loads((Path(__file__).parent / "data" / "curves.json").read_text())
STEPS = 2000


def rates(decay: float = 0.2) -> np.ndarray[Any, Any]:
    """Warm-up of 50 steps, then 1e-3, then down to nothing over the last steps."""
    step = np.arange(STEPS)
    return 1e-3 * np.minimum(np.minimum(1.0, (step + 1) / 50), (STEPS - step) / (decay * STEPS))


def power_law(slope: float = -0.12, annealing: float = 0.04) -> np.ndarray[Any, Any]:
    """A loss that falls as a power of the summed rates, and with the rate."""
    speed = rates() / 1e-3
    return np.exp(2.0 + slope * np.log(np.cumsum(speed) + 10) + annealing * speed)


def at(share: float, losses: np.ndarray[Any, Any], held_out: float = 1.05) -> Forecast:
    """The forecast after a share of the steps, with evaluations of a held-out text that is `held_out` times as hard."""
    done = int(share * STEPS)
    evaluations = [(step, held_out * losses[step - 1], 0) for step in range(200, done + 1, 200)]
    expected = forecast(losses[:done], rates()[:done], rates()[done:], evaluations)
    assert expected is not None
    return expected


@pytest.mark.parametrize("share", [0.5, 0.7, 0.9])
@pytest.mark.parametrize("slope", [-0.25, -0.12, -0.05])
def test_a_curve_that_is_a_power_law_is_forecast_to_its_end(share: float, slope: float) -> None:
    losses = power_law(slope)
    expected = at(share, losses)
    assert expected.nats_per_token == pytest.approx(1.05 * losses[-1], rel=0.02)
    assert expected.low < 1.05 * losses[-1] < expected.high


def test_noise_of_single_steps_matters_little() -> None:
    noisy = power_law() * np.exp(np.random.default_rng(0).normal(0, 0.05, STEPS))
    smooth = at(0.5, power_law()).nats_per_token
    done = STEPS // 2
    evaluations = [(step, 1.05 * power_law()[step - 1], 0) for step in range(200, done + 1, 200)]
    expected = forecast(noisy[:done], rates()[:done], rates()[done:], evaluations)
    assert expected is not None
    assert expected.nats_per_token == pytest.approx(smooth, rel=0.02)


def test_the_interval_narrows_as_the_end_comes_near() -> None:
    widths = [expected.high / expected.low for expected in (at(share, power_law()) for share in (0.3, 0.6, 0.95))]
    assert widths == sorted(widths, reverse=True)


def test_what_a_sample_is_off_is_learned_from_one_whole_evaluation() -> None:
    losses = power_law()
    done, hard = STEPS // 2, 1.08  # of the sample
    samples = [(step, hard * losses[step - 1], 1) for step in range(200, done + 1, 200)]
    whole = (500, losses[499], 0)
    alone, both = (
        forecast(losses[:done], rates()[:done], rates()[done:], known) for known in (samples, [*samples, whole])
    )
    assert alone is not None
    assert both is not None
    assert both.nats_per_token == pytest.approx(losses[-1], rel=0.02)
    assert both.high / both.low < alone.high / alone.low


def test_steps_that_were_rejected_are_left_out() -> None:
    losses = power_law()
    whole = at(0.5, losses).nats_per_token
    losses[[700, 800]] = math.nan
    assert at(0.5, losses).nats_per_token == pytest.approx(whole, rel=1e-3)


def test_there_is_no_forecast_of_a_curve_that_has_hardly_begun() -> None:
    assert forecast([3.0] * 20, [1e-3] * 20, [1e-3] * 500, []) is None
    assert forecast([], [], [1e-3], []) is None


def known(curve: dict[str, Any], share: float) -> Forecast:
    counts, logs, speeds = zip(*curve["groups"], strict=True)
    losses, speed = np.repeat(np.exp(logs), counts), np.repeat(speeds, counts)
    done = int(share * len(losses))
    expected = forecast(losses[:done], speed[:done], speed[done:], [e for e in curve["evaluations"] if e[0] <= done])
    assert expected is not None
    return expected


@pytest.mark.parametrize("share", [1 / 3, 1 / 2, 2 / 3, 0.9])
def test_the_stated_interval_holds_for_real_runs(share: float) -> None:
    inside = [e.low <= curve["final"] <= e.high for curve in CURVES for e in [known(curve, share)]]
    assert len(CURVES) >= 12
    assert np.mean(inside) >= 0.8


# ---- a run


def test_a_history_forgets_what_was_done_again() -> None:
    history = History()
    for step in (0, 1, 2, 3):
        history.add({"step": step, "loss": float(step), "learning_rate": 0.1})
        history.add({"step": step + 1, "val": {"nats_per_token": 2.0, "sample": True}})
    history.add({"step": 2, "loss": "nan", "learning_rate": 0.2, "action": "skip"})
    assert history.losses[:2] == [0.0, 1.0]
    assert math.isnan(history.losses[2])
    assert history.rates == [0.1, 0.1, 0.2]
    assert list(history.evaluations) == [(1, True), (2, True)]


class Heard(Callbacks):
    def __init__(self) -> None:
        self.forecasts: dict[int, Forecast] = {}

    def on_forecast(self, step: int, forecast: Forecast) -> None:
        self.forecasts[step] = forecast


def test_a_run_tells_and_writes_down_what_it_expects_also_when_resumed(data: Dataset, tmp_path: Path) -> None:
    run = run_of("gru", data.vocabulary, 120).with_run(evaluate_every=20, evaluate_tokens=200)
    whole, first, second = Heard(), Heard(), Heard()
    Trainer(run, data, tmp_path / "whole", whole).train()
    Trainer(run, data, tmp_path / "parts", first).train(90)
    Trainer(run, data, tmp_path / "parts", second).train()
    assert len(whole.forecasts) >= 10
    assert min(whole.forecasts) >= 60
    assert list(first.forecasts | second.forecasts) == list(whole.forecasts)
    assert first.forecasts == {step: whole.forecasts[step] for step in first.forecasts}
    written = [row for row in read_metrics(tmp_path / "whole") if "forecast" in row]
    assert [row["step"] for row in written] == list(whole.forecasts)
    last = last_forecast(tmp_path / "whole")
    assert last is not None
    assert last["nats_per_token"] == whole.forecasts[last["step"]].nats_per_token
    assert (last["steps"], last["about"]) == (120, False)
