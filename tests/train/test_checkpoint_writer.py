"""Checkpoints that are written while training goes on."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from nextword.base import RunError
from nextword.train import checkpoint
from nextword.train.checkpoint import Writer, load, newest, stored
from nextword.train.distributed import Process


@pytest.fixture(autouse=True)
def group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Writer]:
    with Writer(tmp_path, Process(), 1, overlapped=True) as one:
        yield one


def learned() -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model and its optimizer after a step."""
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return model, optimizer


def before_completion(monkeypatch: pytest.MonkeyPatch, do: Callable[[int], Any]) -> None:
    """Have the writer call `do` with the step before it completes a checkpoint."""
    seal = checkpoint._seal

    def hook(folder: Path, state: dict[str, Any]) -> None:
        do(state["step"])
        seal(folder, state)

    monkeypatch.setattr(checkpoint, "_seal", hook)


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def test_a_checkpoint_holds_what_there_was_when_it_was_asked_for(
    writer: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()
    before_completion(monkeypatch, lambda step: released.wait(60))
    model, optimizer = learned()
    weight, moment = model.weight.detach().clone(), optimizer.state[model.weight]["exp_avg"].clone()
    writer.save(1, model, optimizer, {})
    writer.check()
    assert stored(tmp_path) == []
    for _ in range(3):
        optimizer.step()
    released.set()
    writer.finish()
    saved = newest(tmp_path, Process())
    assert saved is not None
    assert not torch.equal(model.weight, weight)
    load(saved, model, optimizer)
    assert torch.equal(model.weight, weight)
    assert torch.equal(optimizer.state[model.weight]["exp_avg"], moment)


def test_a_checkpoint_waits_for_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    happened: list[str] = []
    before_completion(monkeypatch, lambda step: happened.append(f"{step} completes"))
    with Writer(tmp_path, Process(), 1, True, lambda step, folder: happened.append(f"{folder.name} is")) as writer:
        for step in (1, 2, 3):
            writer.save(step, *learned(), {})
    assert happened == [
        "1 completes", "step-00000001 is", "2 completes", "step-00000002 is", "3 completes", "step-00000003 is"
    ]  # fmt: skip
    assert names(tmp_path) == ["step-00000003"]


def fail_with(error: BaseException) -> Callable[[int], None]:
    def fail(step: int) -> None:
        if step == 2:
            raise error

    return fail


def check_until_it_fails(writer: Writer) -> None:
    while True:
        writer.check()


def test_a_failure_stops_the_run_in_one_line_and_leaves_the_checkpoint_before(
    writer: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before_completion(monkeypatch, fail_with(OSError(errno.ENOSPC, "No space left on device")))
    writer.save(1, *learned(), {})
    writer.save(2, *learned(), {})
    said = r"could not be written \(no space left on device\); the last one is step-0+1\."
    with pytest.raises(RunError, match=said):
        check_until_it_fails(writer)
    assert names(tmp_path) == ["step-00000001"]


def test_another_failure_is_not_hidden_by_the_writers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before_completion(monkeypatch, fail_with(OSError(errno.ENOSPC, "No space left on device")))
    writer = Writer(tmp_path, Process(), 1, overlapped=True)

    def fail_while_writing() -> None:
        with writer:
            writer.save(2, *learned(), {})
            raise KeyError

    with pytest.raises(KeyError):
        fail_while_writing()
    assert names(tmp_path) == []
