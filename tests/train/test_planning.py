"""What is refused before steps are timed, and how steps are timed that would take too long."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nextword.base import UsageError
from nextword.plan import RunConfig, flops, run_for, shape_for
from nextword.plan import device as plan_device
from nextword.train import pipeline, planning
from nextword.train.timing import StepTime

PEAK = 1e11  # FLOP/s
CPU = torch.device("cpu")


def long_run(context: int) -> RunConfig:
    run = run_for(shape_for(100e3, context=context), 1e12, plan_device("h100"))
    return replace(run, batch=8, micro_batch=8, accumulation=1)


def step_flops(run: RunConfig) -> float:
    return flops(run.model, run.context).per_token * run.context * run.micro_batch


@pytest.mark.parametrize("context", [64, 1024, 100_000])
def test_steps_of_any_length_are_timed_in_bounded_work_and_scaled_by_their_flops(
    context: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed: list[RunConfig] = []

    def at_the_peak(run: RunConfig, device: torch.device, threads: int | None) -> StepTime:
        timed.append(run)
        return StepTime(1, step_flops(run) / PEAK, 0.0, "fp32")

    monkeypatch.setattr(planning, "time_steps", at_the_peak)
    found = planning.probe(long_run(context), CPU, 1, PEAK)
    assert step_flops(timed[0]) / PEAK <= 1.0
    assert found.micro_batch == pytest.approx(step_flops(long_run(context)) / PEAK)
    assert (timed[0] == long_run(context)) == (context < 100_000)


def test_a_step_longer_than_the_time_is_refused_with_both_times() -> None:
    with pytest.raises(UsageError, match=r"takes 10.0 min here, and the run is to take 60.0 s.*--context"):
        planning.fit_to_time(long_run(64), StepTime(1, 600.0, 0.0, "fp32"), 60.0)


def start(text: Path, tmp_path: Path, **wishes: Any) -> None:
    changes = {"steps": 2, **wishes.pop("changes", {})}
    request = pipeline.Request((str(text),), count=20e3, tokenizer="bytes", threads=1, changes=changes, **wishes)
    pipeline.start(request, tmp_path / "cache", lambda line: None)


@pytest.fixture
def _nothing_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "time_steps", lambda *_: pytest.fail("steps were timed"))
    monkeypatch.setattr(pipeline, "plan_device", lambda *_: plan_device("h100"))


@pytest.mark.usefixtures("_nothing_is_timed")
def test_too_little_text_and_memory_are_told_before_steps_are_timed(
    text_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="tokens"):
        start(text_folder, tmp_path, context=100_000)
    monkeypatch.setattr(pipeline, "free_memory", lambda: 1e6)
    with pytest.raises(UsageError, match=r"0\.0 GB are free"):
        start(text_folder, tmp_path, context=32)


@pytest.mark.usefixtures("_nothing_is_timed")
def test_a_place_that_cannot_be_written_is_told_before_the_text_is_read(
    text_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "find_sources", lambda *_: pytest.fail("the text was read"))
    (tmp_path / "file").write_text("x")
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UsageError, match="--out"):
            start(text_folder, tmp_path, out=out)
