"""A run that would end late is shortened with its learning rate falling to the end, and stays exact when it resumes."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from kill_me import run_of

from nextword.data import Dataset
from nextword.plan import RunConfig
from nextword.train import trainer as training
from nextword.train.callbacks import Callbacks, TrainStep
from nextword.train.deadline import LATE, Cut, Deadline, last_step_of, schedule_step
from nextword.train.metrics import read_metrics
from nextword.train.schedules import learning_rate
from nextword.train.trainer import Outcome, Trainer

STEPS, SLOW_FROM, SECONDS = 40, 10, 40.0


def cuts_of(paces: list[float], steps: int = 100, seconds: float = 100.0) -> list[Cut]:
    """The cuts that a run of these seconds a step gets."""
    deadline, cuts, elapsed = Deadline(seconds), list[Cut](), 0.0
    for step, pace in enumerate(paces, start=1):
        elapsed += pace
        if step < last_step_of(steps, cuts) and (cut := deadline.cut(step, last_step_of(steps, cuts), elapsed)):
            cuts.append(cut)
    return cuts


def test_a_run_on_time_or_a_little_late_is_left_as_it_is() -> None:
    assert cuts_of([1.0] * 100) == []
    assert cuts_of([1.15] * 100) == []


def test_one_slow_step_of_many_shortens_nothing() -> None:
    assert cuts_of([1.0] * 30 + [4.0] + [1.0] * 69) == []


def test_a_busy_moment_of_thousands_of_short_steps_shortens_nothing() -> None:
    assert cuts_of([0.05] * 20 + [0.01] * 9980, steps=10_000) == []
    assert cuts_of([0.01] * 300 + [0.05] * 20 + [0.01] * 9680, steps=10_000) == []


@pytest.mark.parametrize("pace", [1.5, 3.0, 10.0])
def test_a_slow_run_is_cut_once_to_end_by_the_limit(pace: float) -> None:
    (cut,) = cuts_of([pace] * 100)
    step, before, after = cut
    assert before == 100
    assert step < after
    assert 1.0 < after * pace / 100 <= LATE


def test_a_run_that_slows_down_again_is_cut_again() -> None:
    first, *others = cuts_of([2.0] * 30 + [6.0] * 70)
    assert others
    for before, after in pairwise([first, *others]):
        assert after[1] == before[2] > after[2]


def test_a_run_that_is_over_its_time_already_still_gets_some_steps_to_cool_down() -> None:
    step, _, after = cuts_of([0.1] * 400 + [1000.0] * 3, steps=1000)[0]
    assert after - step >= 0.05 * step


def test_a_schedule_that_was_cut_goes_on_where_it_was_and_ends_where_it_would_have_ended() -> None:
    cuts = [(10, 101, 41), (20, 41, 31)]
    assert schedule_step(9, cuts) == 9
    assert schedule_step(10, cuts) == 10
    assert schedule_step(20, cuts[:1]) == schedule_step(20, cuts) == 40  # a third of the way from 10 to 100
    assert schedule_step(25, cuts) == 70  # half of what was left
    assert schedule_step(30, cuts) == 100
    assert last_step_of(101, cuts) == 31


def test_a_cut_to_a_single_step_gives_it_the_last_rate() -> None:
    assert schedule_step(10, [(10, 100, 11)]) == 99


class Clock:
    """Seconds that pass as a run's steps look at it: twice `pace` in each, or `slow` from step `SLOW_FROM` on."""

    def __init__(self, slow: float) -> None:
        self.now, self.slow, self.step = 0.0, slow, 0

    def perf_counter(self) -> float:
        self.now += (self.slow if self.step >= SLOW_FROM else 1.0) / 2
        return self.now


class Heard(Callbacks):
    def __init__(self, clock: Clock) -> None:
        self.clock, self.lines = clock, list[str]()

    def on_step(self, step: TrainStep) -> None:
        self.clock.step = step.step + 1

    def on_message(self, message: str) -> None:
        self.lines.append(message)


def trained(
    run: RunConfig, data: Dataset, folder: Path, monkeypatch: pytest.MonkeyPatch, slow: float, until: int | None = None
) -> tuple[Outcome, list[str]]:
    clock = Clock(slow)
    heard = Heard(clock)
    monkeypatch.setattr(training, "time", clock)
    return Trainer(run.with_train(minutes=SECONDS / 60), data, folder, heard).train(until), heard.lines


def losses(folder: Path) -> dict[int, tuple[float, float]]:
    return {row["step"]: (row["loss"], row["learning_rate"]) for row in read_metrics(folder) if "loss" in row}


def test_a_run_on_a_machine_that_gets_busy_cools_down_in_time_and_resumes_to_the_bit(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of("gru", data.vocabulary, STEPS).with_train(micro_batch=8)
    whole, said = trained(run, data, tmp_path / "whole", monkeypatch, slow=3.0)
    assert whole.complete
    assert SLOW_FROM < whole.steps < STEPS
    assert SECONDS < whole.seconds <= LATE * SECONDS
    assert said
    assert f"ends after {whole.steps} steps" in said[-1]
    rates = [rate for _, rate in losses(tmp_path / "whole").values()]
    assert rates[:SLOW_FROM] == [learning_rate(run.train, step) for step in range(SLOW_FROM)]
    assert rates[-1] == learning_rate(run.train, STEPS - 1)
    assert rates == sorted(rates[:5]) + sorted(rates[5:], reverse=True)  # no leap on the way down

    half = whole.steps - 3
    first, _ = trained(run, data, tmp_path / "twice", monkeypatch, slow=3.0, until=half)
    assert not first.complete
    second, said = trained(run, data, tmp_path / "twice", monkeypatch, slow=0.01)  # idle again: the cut stays
    assert said == [f"resumed from step {half} of {whole.steps}"]
    assert second.complete
    assert losses(tmp_path / "twice") == losses(tmp_path / "whole")
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, second.model.state_dict()[name]), name


def test_a_run_without_a_time_is_never_cut(data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "time", Clock(1000.0))
    run = run_of("gru", data.vocabulary, 12)
    assert Trainer(run, data, tmp_path).train().steps == 12
