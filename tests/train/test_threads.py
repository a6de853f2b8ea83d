"""The number of threads follows the load of the machine, and results do not."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from kill_me import run_of

from nextword import native
from nextword.data import Dataset
from nextword.train import trainer
from nextword.train.callbacks import Callbacks, TrainStep
from nextword.train.learner import Learner
from nextword.train.threads import LinuxLoad, ThreadFollower
from nextword.train.trainer import Trainer


@dataclass
class Machine:
    """Some cores, of which other programs keep `busy`; a step of eight core-seconds."""

    cores: int
    busy: int = 0
    waited: float = 0.0
    idle: float = 0.0

    def step(self, threads: int) -> float:
        """The slowest thread shares its core with another program if cores are short."""
        shared = threads > self.cores - self.busy
        seconds = 8 / threads * (2 if shared else 1)
        self.waited += seconds / 2 * shared
        self.idle += seconds * max(0, self.cores - self.busy - threads)
        return seconds

    def since(self) -> tuple[float, float]:
        found, self.waited, self.idle = (self.waited, self.idle), 0.0, 0.0
        return found


def run(follower: ThreadFollower, machine: Machine, steps: int) -> float:
    """Seconds of so many steps."""
    total = 0.0
    for _ in range(steps):
        seconds = machine.step(follower.next)
        total += seconds
        follower.ran(seconds)
    return total


def test_other_programs_come_and_go() -> None:
    machine = Machine(cores=2)
    follower = ThreadFollower([2, 1], 2, machine)
    run(follower, machine, 30)
    assert follower.threads == 2
    machine.busy = 1
    contested = run(follower, machine, 100)
    assert follower.threads == 2  # one thread takes as long as two that share a core
    assert contested < 1.05 * 100 * machine.step(2)
    machine.step = lambda threads: Machine.step(machine, threads) * (1.3 if threads == 2 else 1)  # type: ignore[method-assign]
    run(follower, machine, 200)
    assert follower.threads == 1
    machine.busy = 0
    del machine.step  # type: ignore[method-assign]
    run(follower, machine, 200)
    assert follower.threads == 2


def test_half_of_many_cores_is_tried_before_one() -> None:
    machine = Machine(cores=16, busy=9)
    follower = ThreadFollower([16, 8, 1], 16, machine)
    run(follower, machine, 100)
    assert follower.threads == 16  # 8 share cores too, and 1 is slower
    machine.busy = 4
    machine.step = lambda threads: Machine.step(machine, threads) * (2 if threads == 16 else 1)  # type: ignore[method-assign]
    run(follower, machine, 300)
    assert follower.threads == 8


def test_trials_that_do_not_help_become_rare() -> None:
    machine = Machine(cores=2, busy=1)
    follower, trials = ThreadFollower([2, 1], 2, machine), 0
    for _ in range(1000):
        trials += follower.next == 1
        follower.ran(machine.step(follower.next))
    assert 0 < trials < 40


def test_the_trial_of_a_forbidden_number_ends() -> None:
    machine = Machine(cores=2, busy=1)
    follower = ThreadFollower([2, 1], 2, machine)
    while follower.trial is None:
        follower.ran(machine.step(2))
    follower.forbid(1)
    assert follower.next == 2
    run(follower, machine, 50)
    assert follower.counts == [2]


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="counted by Linux only")
def test_waiting_for_a_core_is_counted() -> None:
    context, load = multiprocessing.get_context("spawn"), LinuxLoad()
    others = [context.Process(target=_keep_busy, daemon=True) for _ in range(2 * torch.get_num_threads())]
    for other in others:
        other.start()
    waited = 0.0
    for _ in range(200):  # until the others have started
        end = time.thread_time() + 0.05
        while time.thread_time() < end:
            pass
        waited, _ = load.since()
        if waited > 0.01:
            break
    for other in others:
        other.kill()
    assert waited > 0.01


def _keep_busy() -> None:
    while True:
        pass


# ---- in a run


class Heard(Callbacks):
    def __init__(self) -> None:
        self.threads: list[int] = []
        self.losses: list[float] = []
        self.said: list[str] = []

    def on_step(self, step: TrainStep) -> None:
        self.threads.append(torch.get_num_threads())
        self.losses.append(step.loss)

    def on_message(self, message: str) -> None:
        self.said.append(message)


class Following(ThreadFollower):
    """Changes to the other number of threads after every third step."""

    def ran(self, seconds: float) -> str:
        if self.trial is not None:
            self.threads, self.trial = self.trial, None
            return f"now {self.threads}"
        self._steps.append(seconds)
        if len(self._steps) % 3 == 0:
            self.trial = next((count for count in self.counts if count != self.threads), None)
        return ""


@pytest.fixture
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def trained(data: Dataset, folder: Path, follow: bool, dropout: float = 0.0) -> tuple[Heard, dict[str, torch.Tensor]]:
    heard = Heard()
    config = run_of("transformer", data.vocabulary, 12).with_run(threads=2, follow_load=follow)
    outcome = Trainer(config.with_train(dropout=dropout), data, folder, heard).train()
    return heard, outcome.model.state_dict()


@pytest.mark.usefixtures("_threads")
@pytest.mark.skipif(not native.available(), reason="the compiled kernels were not built")
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_run_that_follows_the_load_gives_the_same_bits(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dropout: float
) -> None:
    monkeypatch.setattr(trainer, "ThreadFollower", Following)
    monkeypatch.setattr(trainer, "thread_counts", lambda: [2, 1])
    followed, weights = trained(data, tmp_path / "followed", True, dropout)
    fixed, others = trained(data, tmp_path / "fixed", False, dropout)
    assert set(fixed.threads) == {2}
    assert set(followed.threads) == {1, 2}
    assert any("now 1" in said for said in followed.said)
    assert followed.losses == fixed.losses
    assert all(torch.equal(weights[name], others[name]) for name in others)


@pytest.mark.usefixtures("_threads")
def test_a_number_of_threads_with_other_results_is_never_used(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "ThreadFollower", Following)
    monkeypatch.setattr(trainer, "thread_counts", lambda: [2, 1])
    monkeypatch.setattr(Learner, "digest", lambda self, batch: str(torch.get_num_threads()).encode())
    heard, _ = trained(data, tmp_path / "run", True)
    assert set(heard.threads) == {2}
