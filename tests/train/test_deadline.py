"""A run of minutes ends in time whatever its neighbours do, with its learning rate decayed, and resumes to the bit."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from forked import run_together
from kill_me import run_of

from nextword.data import Dataset
from nextword.plan import RunConfig
from nextword.train.callbacks import Callbacks, TrainStep
from nextword.train.deadline import Deadline, End, Times
from nextword.train.metrics import read_metrics
from nextword.train.run_clock import RunClock
from nextword.train.schedules import decayed, learning_rate, stretched
from nextword.train.trainer import Outcome, Trainer

MINUTE = 60.0
Pace = Callable[[float], float]  # seconds of the run -> seconds that a step takes then


@dataclass
class Simulated:
    """A run of a minute, second by second as it passes, without training.

    Every `every` steps something beside steps takes `beside` seconds; what follows the last step takes as long as
    `closing` steps.
    """

    pace: Pace
    steps: int = 1000  # planned
    decay: float | None = 0.2
    every: int = 100
    beside: float = 0.1
    closing: float = 10.0
    stops: tuple[int, ...] = ()  # steps after which the process is ended and started again
    ends: list[End] = field(default_factory=list)
    done: int = 0
    seconds: float = 0.0

    def run(self) -> Simulated:
        deadline, aside = Deadline(MINUTE, self.steps, self.decay), 0.0
        total = self.steps
        while self.done < total:
            if self.done in self.stops:
                deadline = Deadline(MINUTE, self.steps, self.decay)
                self.seconds += 0.5  # until the checkpoint is read
            self.seconds += self.pace(self.seconds)
            self.done += 1
            times = Times(self.seconds, aside, self.closing)
            deadline.passed(self.done, times)
            waits = self.decay is not None and not self.ends
            end = deadline.end(self.done, total, times, waits)
            if end is not None:
                self.ends.append(end)
                deadline.restart()
            if self.done % self.every == 0:
                self.seconds += self.beside
                aside += self.beside
            total = self.ends[-1].after if self.ends else total
            if waits and end is None:
                total = self.done + max(1, deadline.steps_left(self.done, times))
        self.seconds += self.closing * self.pace(self.seconds)
        return self

    @property
    def decay_share(self) -> float:
        """The share of the run's steps that decay the learning rate."""
        return 1 - self.ends[0].step / self.done


def busy(start: float, end: float = 1e9, pace: float = 0.06, factor: float = 2.0) -> Pace:
    """Steps of `pace` seconds, `factor` times that while a neighbour is busy."""
    return lambda seconds: pace * (factor if start <= seconds < end else 1.0)


def noisy(seed: int, share: float = 0.3) -> Pace:
    """Steps that vary, with bursts of half a second in which everything takes three times as long."""
    draw = random.Random(seed)
    bursts = [draw.uniform(0, MINUTE) for _ in range(12)]

    def pace(seconds: float) -> float:
        burst = any(start <= seconds < start + 0.5 for start in bursts)
        return 0.05 * draw.uniform(1 - share, 1 + share) * (3.0 if burst else 1.0)

    return pace


NEIGHBOURS = {
    "none": busy(1e9),
    "from the beginning": busy(0),
    "from the middle": busy(30),
    "until the middle": busy(0, 30),
    "from the decay's beginning": busy(48),
    "from within the decay": busy(54),
    "until the decay's beginning": busy(0, 48),
    "until within the decay": busy(0, 54),
    "in the last seconds": busy(57),
    "until the last seconds": busy(0, 57),
    "every other five seconds": lambda seconds: 0.06 * (2 if int(seconds / 5) % 2 else 1),
    "ever more": lambda seconds: 0.03 * (1 + seconds / 20),
    "ever less": lambda seconds: 0.12 - 0.001 * seconds,
    "one takes nearly everything": busy(30, factor=8.0),
    "one that took nearly everything leaves": busy(0, 30, factor=8.0),
}


@pytest.mark.parametrize("pace", NEIGHBOURS.values(), ids=NEIGHBOURS)
@pytest.mark.parametrize("planned", [300, 1000, 3000], ids=["slower than timed", "as timed", "faster than timed"])
@pytest.mark.parametrize("decay", [0.2, 0.1, None], ids=["wsd", "a short decay", "cosine"])
def test_a_minute_is_a_minute_whatever_the_neighbours_do(pace: Pace, planned: int, decay: float | None) -> None:
    run = Simulated(pace, planned, decay).run()
    assert run.seconds == pytest.approx(MINUTE, rel=0.05)
    assert len(run.ends) <= (8 if decay else 12)
    assert run.ends[-1].after == run.done if run.ends else run.done == planned


@pytest.mark.parametrize("seed", range(10))
def test_noise_and_bursts_do_not_matter(seed: int) -> None:
    run = Simulated(noisy(seed)).run()
    assert run.seconds == pytest.approx(MINUTE, rel=0.02)
    assert run.decay_share == pytest.approx(0.2, abs=0.06)
    assert len(run.ends) <= 8


def test_a_steady_run_decays_over_the_share_of_its_steps_and_its_end_is_set_once() -> None:
    run = Simulated(busy(1e9)).run()
    assert len(run.ends) == 1
    assert run.decay_share == pytest.approx(0.2, abs=0.005)
    assert run.seconds == pytest.approx(MINUTE, rel=0.005)


@pytest.mark.parametrize("pace", [0.5, 2.0, 6.0, 11.0, 25.0])
def test_a_run_of_few_slow_steps_ends_at_the_step_nearest_to_its_time(pace: float) -> None:
    run = Simulated(busy(1e9, pace=pace), steps=max(1, int(58 / pace)), every=1000, closing=0).run()
    assert abs(run.seconds - MINUTE) <= pace / 2 + 1e-9


@pytest.mark.parametrize("pace", NEIGHBOURS.values(), ids=NEIGHBOURS)
def test_sessions_add_up(pace: Pace) -> None:
    run = Simulated(pace, stops=(100, 300, 480, 700)).run()
    assert run.seconds == pytest.approx(MINUTE, rel=0.05)


def test_a_run_whose_time_is_over_still_cools_down() -> None:
    stalled = Simulated(lambda seconds: 100.0 if 20 < seconds < 21 else 0.05).run()
    (end,) = stalled.ends
    assert end.after - end.step == pytest.approx(0.025 * end.step, abs=1)


def test_a_long_evaluation_at_the_end_is_allowed_for() -> None:
    assert Simulated(busy(1e9), closing=300.0, beside=1.0).run().seconds == pytest.approx(MINUTE, rel=0.02)


# ---- the learning rate


def test_a_decay_is_linear_and_goes_on_from_where_it_is_when_the_end_moves() -> None:
    ends = (End(80, 120, 100), End(90, 100, 110))
    assert decayed(80, ends) == 0.0
    assert decayed(85, ends) == decayed(85, ends[:1]) == 0.25
    assert decayed(90, ends) == 0.5
    assert decayed(100, ends) == 0.75
    assert decayed(110, ends) == 1.0
    assert decayed(100, ends[:1]) == 1.0


def test_a_schedule_that_is_stretched_or_squeezed_goes_on_where_it_was_and_ends_where_it_would_have() -> None:
    ends = (End(10, 101, 41), End(20, 41, 31))
    assert stretched(9, ends) == 9
    assert stretched(10, ends) == 10
    assert stretched(20, ends[:1]) == stretched(20, ends) == 40  # a third of the way from 10 to 100
    assert stretched(25, ends) == 70  # half of what was left
    assert stretched(30, ends) == 100
    assert stretched(10, (End(10, 100, 11),)) == 99  # a single step gets the last rate
    assert stretched(110, (End(10, 111, 211),)) == 60  # halfway


RUN = run_of("gru", 300, 100).with_train(schedule="wsd", warmup_steps=10, learning_rate=1e-3, final_learning_rate=1e-4)


def test_the_rate_stays_up_until_the_clock_says_so_and_then_goes_down_to_its_end() -> None:
    train = RUN.train
    assert learning_rate(train, 500, ()) == 1e-3  # five times the planned steps
    ends = (End(200, 100, 250),)
    assert [learning_rate(train, step, ends) for step in (4, 199, 200)] == pytest.approx([5e-4, 1e-3, 1e-3])
    assert learning_rate(train, 225, ends) == pytest.approx(5.5e-4)
    assert learning_rate(train, 249, ends) == pytest.approx(1e-4 + 9e-4 / 50)


def test_a_clock_that_decides_what_was_planned_gives_the_planned_schedule_to_the_bit() -> None:
    ends = (End(80, 100, 100),)
    assert [learning_rate(RUN.train, step, ends) for step in range(100)] == [
        learning_rate(RUN.train, step) for step in range(100)
    ]


def test_a_decay_that_begins_within_the_warm_up_begins_at_the_rate_reached() -> None:
    rates = [learning_rate(RUN.train, step, (End(4, 100, 10),)) for step in range(10)]
    assert rates[:5] == pytest.approx([1e-4, 2e-4, 3e-4, 4e-4, 5e-4])
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert rates[9] == pytest.approx(1e-4 + 4e-4 / 6)


def test_a_sessions_first_evaluation_is_slow_and_counts_only_until_there_is_another() -> None:
    seconds = [0.0]
    clock = RunClock(lambda: seconds[0])

    def evaluate(tokens: int, took: float) -> tuple[int, float]:
        start = seconds[0]
        seconds[0] += took
        clock.evaluated(start, tokens)
        return clock.spent.evaluated, clock.spent.evaluating

    assert evaluate(100, 9.0) == (100, 9.0)
    assert evaluate(100, 1.0) == (100, 1.0)
    assert evaluate(300, 3.0) == (400, 4.0)
    spent, clock = clock.spent, RunClock(lambda: seconds[0])
    clock.resume(spent)
    assert evaluate(100, 9.0) == (400, 4.0)
    assert evaluate(100, 1.0) == (500, 5.0)
    assert clock.spent.elapsed == 23.0


# ---- whole runs, on a clock of their own


class Clock(Callbacks):
    """A clock that a run's own steps move: each takes what `pace` says of the steps done."""

    def __init__(self, pace: Callable[[int], float]) -> None:
        self.seconds, self.pace = 0.0, pace
        self.lines, self.steps = list[str](), list[tuple[int, bool]]()

    def __call__(self) -> float:
        return self.seconds

    def on_step(self, step: TrainStep) -> None:
        self.seconds += self.pace(step.step)

    def on_message(self, message: str) -> None:
        self.lines.append(message)

    def on_steps_changed(self, steps: int, about: bool = False) -> None:
        self.steps.append((steps, about))


def config(kind: str, data: Dataset, schedule: str = "wsd") -> RunConfig:
    """A minute of 40 steps, as planned."""
    run = run_of(kind, data.vocabulary, 40).with_train(micro_batch=8, schedule=schedule, minutes=1.0)
    return run.with_run(evaluate_tokens=100)


def trained(run: RunConfig, data: Dataset, folder: Path, clock: Clock, until: int | None = None) -> Outcome:
    return Trainer(run, data, folder, clock, now=clock).train(until)


def losses(folder: Path) -> dict[int, tuple[float, float]]:
    return {row["step"]: (row["loss"], row["learning_rate"]) for row in read_metrics(folder) if "loss" in row}


@pytest.mark.parametrize("schedule", ["wsd", "cosine"])
@pytest.mark.parametrize("kind", ["transformer", "lstm"])
def test_a_run_ended_by_the_clock_resumes_to_the_bit(kind: str, schedule: str, data: Dataset, tmp_path: Path) -> None:
    run, busy = config(kind, data, schedule), lambda step: 3.0 if step >= 10 else 1.5
    clock = Clock(busy)
    whole = trained(run, data, tmp_path / "whole", clock)
    assert whole.complete
    assert whole.ends
    assert whole.steps == whole.ends[-1].after < 40
    assert clock.seconds == pytest.approx(60, rel=0.05)
    assert clock.steps[-1] == (whole.steps, False)
    rates = [rate for _, rate in losses(tmp_path / "whole").values()]
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert rates[-1] < 0.4 * rates[5]

    again = Clock(busy)
    for until in (whole.ends[-1].step + 1, whole.steps - 1, None):
        part = trained(run, data, tmp_path / "parts", again, until)
        assert part.complete == (until is None)
    assert part.ends == whole.ends
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, part.model.state_dict()[name]), name


def test_what_the_clock_decided_before_a_kill_holds_after_it(data: Dataset, tmp_path: Path) -> None:
    class Killed(Clock):
        def on_step(self, step: TrainStep) -> None:
            super().on_step(step)
            if step.step == 26:
                raise KeyboardInterrupt  # no checkpoint but that of the decision

    run = config("gru", data).with_run(checkpoint_every=0)
    killed = Killed(lambda step: 2.0)
    with pytest.raises(KeyboardInterrupt):
        trained(run, data, tmp_path, killed)
    (end,) = [row["end"] for row in read_metrics(tmp_path) if "end" in row]
    before = losses(tmp_path)
    after = trained(run, data, tmp_path, Clock(lambda step: 2.0))
    assert after.ends == (End(**end),)
    assert {step: losses(tmp_path)[step] for step in before} == before


def test_a_machine_that_gets_idle_makes_the_run_longer(data: Dataset, tmp_path: Path) -> None:
    clock = Clock(lambda step: 1.5 if step < 10 else 0.5)
    whole = trained(config("gru", data), data, tmp_path, clock)
    assert whole.steps > 60
    assert clock.seconds == pytest.approx(60, rel=0.05)
    assert (clock.steps[0], clock.steps[-1]) == ((40, True), (whole.steps, False))


def test_a_run_too_slow_for_its_warm_up_ends_in_time_and_says_so(data: Dataset, tmp_path: Path) -> None:
    clock = Clock(lambda step: 12.0)
    whole = trained(config("gru", data), data, tmp_path, clock)
    assert (whole.steps, clock.seconds) == (5, 60.0)
    assert "5 steps of warm-up did not fit" in clock.lines[-1]


def test_more_steps_given_on_resuming_replace_the_clock(data: Dataset, tmp_path: Path) -> None:
    from nextword.train.changes import Change

    run, clock = config("gru", data), Clock(lambda step: 3.0)
    ended = trained(run, data, tmp_path, clock)
    longer = Trainer(run, data, tmp_path, clock, changes=(Change(ended.steps, steps=30),), now=clock).train()
    assert (ended.steps, longer.steps, longer.ends) == (20, 30, ())
    planned = replace(run.train, steps=30, minutes=0.0)
    rates = [rate for _, rate in losses(tmp_path).values()]
    assert rates[20:] == [learning_rate(planned, step) for step in range(20, 30)]


def test_processes_whose_clocks_differ_decide_alike_by_the_mean(data: Dataset, tmp_path: Path) -> None:
    job = ["gru", str(tmp_path / "run"), str(data.folder), "100", "--shard", "ddp", "--clock", "--every", "1000"]
    assert run_together(2, job) == [0, 0]
    (end,) = [row["end"] for row in read_metrics(tmp_path / "run") if "end" in row]
    assert len(losses(tmp_path / "run")) == end["after"] == pytest.approx(60 / 1.5, abs=3)
    assert end["after"] - end["step"] == pytest.approx(8, abs=1)


def test_a_run_without_a_time_is_as_long_as_planned(data: Dataset, tmp_path: Path) -> None:
    run = run_of("gru", data.vocabulary, 12)
    assert trained(run, data, tmp_path, Clock(lambda step: 1000.0)).steps == 12
