"""An evaluation on a cluster: the answers of one machine to the last bit, also where workers and machines are lost."""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import nextword
from cli_run import run
from nextword.base import RunError
from nextword.base.cluster import attached
from nextword.engine import LoadConfig
from nextword.evals import cluster
from nextword.evals.runner import ModelRunner
from nextword.evals.store import Store, opened
from nextword.evals.task import Encoded, Generation
from ray_machines import Machines

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning"
)

DIFFERENT = ("provenance", "seconds", "read", "costs")  # neighbours in two blocks share no prefix


def requests(count: int) -> list[Encoded]:
    """Some continuations after each of several contexts, which share beginnings."""
    draw = random.Random(0)
    starts = [tuple(range(5, 5 + number)) for number in range(7)]
    contexts = [starts[number % 7] + tuple(draw.choices(range(256), k=number % 20 + 1)) for number in range(count)]
    return [Encoded(context, tuple(draw.choices(range(256), k=3))) for context in contexts for _ in range(2)]


def test_the_answers_are_those_of_one_machine_though_workers_and_a_machine_are_lost(
    machines: Machines, tiny_model: Callable[..., Path], reviews: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder = tiny_model()
    model = nextword.load(folder)
    with opened(None) as store:
        here = ModelRunner(model, store)
        with attached(machines.address) as ray:
            there = cluster.runners_on(ray, LoadConfig())(model, store)
            sampled_texts_are_equal(here, there)
            a_lost_worker_is_replaced(here, there, tmp_path, monkeypatch)
            a_block_that_kills_its_workers_is_given_up(there, monkeypatch)
            other_weights_are_refused(ray, model, tiny_model(seed=1), store)
            a_lost_machine_is_done_without(here, there, machines)
    the_command_prints_the_same(folder, reviews, machines.address, capsys)


def answers(runner: ModelRunner, asked: Sequence[Encoded]) -> dict[Encoded, Any]:
    return {request: found for scores, _ in runner.score(asked) for request, found in scores.items()}


def sampled_texts_are_equal(here: ModelRunner, there: ModelRunner) -> None:
    how = Generation(until=(), max_tokens=6, temperature=1.0)
    wanted = [(request.context, how) for request in requests(40)[::2]]
    texts, expected = ({writing: text for writing, text, _ in one.generate(wanted, 3)} for one in (there, here))
    assert texts == expected
    assert len(set(texts.values())) > 10


def a_lost_worker_is_replaced(
    here: ModelRunner, there: ModelRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    died, usual = tmp_path / "died", cluster._Actor

    class DiesOnce(usual):  # type: ignore[misc, valid-type]
        def score(self, block: Any) -> Any:
            if not died.exists():
                died.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return super().score(block)

    asked = requests(200)
    with monkeypatch.context() as patch:
        patch.setattr(cluster, "_Actor", DiesOnce)
        before = there.tokens_read
        assert answers(there, asked) == answers(here, asked)
    assert died.exists()
    assert there.tokens_read - before == there.tokens_to_score(asked)


def a_block_that_kills_its_workers_is_given_up(there: ModelRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    class Dies(cluster._Actor):
        def score(self, block: Any) -> Any:
            os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(cluster, "_Actor", Dies)
        with pytest.raises(RunError, match=r"a worker of the cluster failed \(.*The same command goes on"):
            answers(there, requests(4))


def other_weights_are_refused(ray: Any, model: Any, other: Path, store: Store) -> None:
    runner = cluster.runners_on(ray, LoadConfig())(model, store)
    monkey = pytest.MonkeyPatch()
    monkey.setattr(runner, "_name", str(other))
    with pytest.raises(RunError, match=r"of the cluster has other weights of .*Give it the same files"):
        answers(runner, requests(2))


def a_lost_machine_is_done_without(here: ModelRunner, there: ModelRunner, machines: Machines) -> None:
    asked, found = requests(300), {}
    for number, (scores, _) in enumerate(there.score(asked)):
        found |= scores
        if number == 20:
            machines.lose_second()
    assert found == answers(here, asked)


def the_command_prints_the_same(folder: Path, reviews: Path, address: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = ("eval", str(reviews), "-m", str(folder), "--template", "{text}: {label}", "--shots", "0,2", "--no-store",
            "--json")  # fmt: skip
    printed = []
    for more in ((), ("--cluster", address)):
        code, out, err = run(capsys, *line, *more)
        assert code == 0, err
        result = json.loads(out)
        printed.append({name: result[name] for name in result if name not in DIFFERENT})
    assert printed[0] == printed[1]
