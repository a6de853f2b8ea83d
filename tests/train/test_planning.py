"""From a configuration to a run: what is asked for is trained, the rest is chosen, and what cannot be is refused."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from configs import config_of

import vega_lite
from nextword.base import UsageError
from nextword.base.cores import cores
from nextword.base.toml import to_toml
from nextword.data import Batch, Dataset
from nextword.plan import Device, RunConfig, flops, run_for, shape_for
from nextword.plan import device as plan_device
from nextword.plan.run_config import DataConfig, ModelConfig, RunSettings, TrainConfig
from nextword.plots import MIME
from nextword.spec import ModelSpec
from nextword.train import pipeline, timing
from nextword.train.metrics import read_metrics
from nextword.train.planning import Machine, fit_to_time, plan_run
from nextword.train.run_memory import Host
from nextword.train.timing import StepTime
from nextword.train.trainer import Trainer

HERE = Device("here", "a CPU", memory=8e9, bandwidth=1e10, peak=1e11, peak_fp32=1e11, runtime=0.0, source="made up")
PEAK = 1e11  # FLOP/s
CPU = torch.device("cpu")


def spec_of(kind: str, vocabulary: int = 300) -> ModelSpec:
    attention = {"heads": 2, "kv_heads": 1, "head_width": 16, "mlp_width": 48} if kind == "transformer" else {}
    return ModelSpec(kind=kind, vocabulary=vocabulary, width=32, layers=2, context=16, **attention)  # type: ignore[arg-type]


def planned(data: Dataset, kind: str = "transformer", world: int = 1, **train: Any) -> RunConfig:
    """A run of 6 steps of 16 tokens, unless something else is said."""
    settings = TrainConfig(**{"steps": 6, "context": 16, "dtype": "fp32", **train})
    run = RunSettings(device="cpu", threads=1, evaluate_tokens=64)
    config = RunConfig(ModelConfig(spec=spec_of(kind)), train=settings, run=run)
    return plan_run(config, data, Machine(HERE, world=world)).config


# ---- batches


def trained(config: RunConfig, data: Dataset, folder: Path) -> tuple[list[float], list[int], dict[str, torch.Tensor]]:
    outcome = Trainer(config, data, folder).train()
    steps = [row for row in read_metrics(folder) if "loss" in row]
    return [row["loss"] for row in steps], [row["tokens"] for row in steps], outcome.model.state_dict()


@pytest.mark.parametrize(
    ("kind", "settings"),
    [("transformer", {}), ("transformer", {"mask_documents": True}), ("lstm", {"stateful": True})],
)
def test_a_batch_that_the_micro_batch_does_not_divide_trains_as_in_one_piece(
    kind: str, settings: dict[str, Any], data: Dataset, tmp_path: Path
) -> None:
    parts, whole = (planned(data, kind, batch_size=7, micro_batch=micro, **settings) for micro in (4, 7))
    losses, tokens, weights = trained(parts, data, tmp_path / "parts")
    expected, counted, wanted = trained(whole, data, tmp_path / "whole")
    assert tokens == counted
    assert max(tokens) <= 7 * 16
    assert losses == pytest.approx(expected, rel=1e-5)
    near = 1e-4 if kind == "lstm" else 1e-5  # oneDNN rounds products of other rows otherwise, and Adam enlarges that
    for name, tensor in wanted.items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-4, atol=near)


@pytest.mark.parametrize(
    ("train", "world", "batch", "micro", "accumulation"),
    [
        ({"batch_size": 7, "micro_batch": 4}, 1, 7, 4, 2),
        ({"batch_size": 7}, 1, 7, 4, 2),
        ({"batch_size": 1}, 1, 1, 1, 1),
        ({"batch_size": 14, "micro_batch": 4}, 2, 14, 4, 2),
        ({"batch_size": 6, "micro_batch": 3}, 2, 6, 3, 1),
    ],
)
def test_the_batch_asked_for_is_the_batch_of_the_run(
    train: dict[str, int], world: int, batch: int, micro: int, accumulation: int, data: Dataset
) -> None:
    config = planned(data, world=world, **train)
    chosen = config.train
    assert (chosen.batch_size, chosen.micro_batch, chosen.accumulation) == (batch, micro, accumulation)
    assert config.total_tokens == 6 * batch * 16


def test_a_batch_left_to_the_planner_is_a_multiple_of_the_micro_batch_asked_for(data: Dataset) -> None:
    train = planned(data, micro_batch=5).train
    assert train.micro_batch == 5
    assert train.batch_size == 5 * train.accumulation


@pytest.mark.parametrize(
    ("train", "world", "wanted"),
    [
        ({"batch_size": 7}, 2, "batch_size 7: give a multiple of the 2 processes, such as 6 or 8"),
        ({"batch_size": 1}, 2, "such as 2"),
        ({"batch_size": 4, "micro_batch": 8}, 1, "micro_batch 8: give at most the 4 rows in the batch"),
        ({"batch_size": 8, "micro_batch": 8}, 2, "give at most the 4 rows of each of 2 processes in the batch"),
    ],
)
def test_rows_that_cannot_be_divided_as_asked_are_refused(
    train: dict[str, Any], world: int, wanted: str, data: Dataset
) -> None:
    with pytest.raises(UsageError, match=wanted):
        planned(data, world=world, **train)


# ---- plans


def test_a_plan_of_a_resolved_configuration_is_that_configuration(data: Dataset) -> None:
    config = RunConfig(train=TrainConfig(flops=1e10, dtype="fp32"), data=DataConfig(vocabulary=300))
    plan = plan_run(config, data, Machine(HERE))
    plan.config.check_resolved()
    again = plan_run(plan.config, data, Machine(HERE))
    assert again == plan
    assert RunConfig.from_dict(tomllib.loads(to_toml(plan.config.to_dict()))) == plan.config


def test_a_notebook_shows_a_plans_memory_time_and_loss(data: Dataset) -> None:
    plan = plan_run(RunConfig(train=TrainConfig(flops=1e10), data=DataConfig(vocabulary=300)), data, Machine(HERE))
    shown = plan._repr_mimebundle_()
    bar, _ = vega_lite.marks(shown[MIME], "bar")
    drawn = dict(zip(vega_lite.column(bar, "part"), vega_lite.column(bar, "gb"), strict=True))
    assert drawn == {part: own / 1e9 for part, own in plan.prediction.memory_parts.items()}
    assert f"{plan.prediction.nats_per_token:.3f} [" in shown["text/plain"]


def test_processes_on_cpus_are_planned_with_the_copy_that_their_checkpoints_are_written_from(data: Dataset) -> None:
    config = RunConfig(train=TrainConfig(steps=10, batch_size=4, dtype="fp32"), data=DataConfig(vocabulary=300))

    def parts(machine: Machine, **run: int) -> dict[str, float]:
        return plan_run(config.with_run(**run), data, machine).prediction.memory_parts

    two = parts(Machine(HERE, world=2))
    assert two["copy for checkpoints"] == two["weights"] + two["optimizer states"] > 0
    for others in (parts(Machine(HERE)), parts(Machine(HERE, world=2, host=Host(gpu=True))),
                   parts(Machine(HERE, world=2), checkpoint_every=0)):  # fmt: skip
        assert "copy for checkpoints" not in others


def test_a_budget_of_flops_is_spent(data: Dataset) -> None:
    config = plan_run(RunConfig(train=TrainConfig(flops=1e11)), data, Machine(HERE)).config
    spent = flops(config.spec, config.train.context, config.total_tokens).total
    assert spent == pytest.approx(1e11, rel=0.1)
    assert config.spec.vocabulary == data.vocabulary


def test_minutes_are_filled_with_steps_that_were_timed(data: Dataset) -> None:
    config = RunConfig(train=TrainConfig(minutes=10, batch_size=8, micro_batch=4), run=RunSettings(threads=2))
    plan = plan_run(config, data, Machine(HERE, step_time=StepTime(1, micro_batch=0.4, update=0.2)))
    assert plan.config.train.steps == int(600 * 0.97 / 1.0)
    assert plan.prediction.seconds == pytest.approx(600 * 0.97, rel=0.01)
    assert plan.config.run.threads == 2


def test_fine_tuning_without_the_shape_of_its_base_is_refused(data: Dataset) -> None:
    with pytest.raises(UsageError, match=r"model\.spec has to be that of model\.base"):
        plan_run(RunConfig(ModelConfig(base="smollm2-135m"), train=TrainConfig(steps=3)), data, Machine(HERE))


def test_a_run_that_is_not_resolved_is_not_trained(data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"train\.steps is not chosen yet"):
        Trainer(config_of(spec_of("gru"), steps=0), data, tmp_path)


def test_a_smaller_last_micro_batch_counts_by_its_rows_in_the_time_of_a_step(data: Dataset) -> None:
    train = planned(data, batch_size=6, micro_batch=4).train
    assert StepTime(1, micro_batch=2.0, update=0.5).step(train) == pytest.approx(3.5)


# ---- values that no run has


@pytest.mark.parametrize(
    ("kind", "bad"),
    [(DataConfig, {"val_fraction": float("nan")}), (RunSettings, {"keep_checkpoints": 0}),
     (DataConfig, {"vocabulary": 5}), (TrainConfig, {"context": -1}), (ModelConfig, {"lora": -1}),
     (RunSettings, {"threads": -1}), (RunSettings, {"threads": 4 * cores() + 1}),
     (TrainConfig, {"learning_rate": float("nan")}), (TrainConfig, {"seed": -1}),
     (TrainConfig, {"on_loss_spike": "ignore"}), (ModelConfig, {"params": -1}),
     (RunSettings, {"checkpoint_every": -1}), (TrainConfig, {"minutes": float("inf")}),
     (TrainConfig, {"flops": "1e12"}), (TrainConfig, {"tokens": -1}), (TrainConfig, {"minutes": 1, "flops": 1e12})],
)  # fmt: skip
def test_a_value_that_no_run_has_is_refused_when_the_configuration_is_made(kind: Any, bad: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=": give "):
        kind(**bad)


# ---- timing


def long_run(context: int) -> RunConfig:
    run = run_for(shape_for(100e3, context=context), 1e12, plan_device("h100"))
    return run.with_train(batch_size=8, micro_batch=8)


def step_flops(config: RunConfig) -> float:
    return flops(config.spec, config.train.context).per_token * config.train.context * config.train.micro_batch


@pytest.mark.parametrize("context", [64, 1024, 100_000])
def test_steps_of_any_length_are_timed_in_bounded_work_and_scaled_by_their_flops(
    context: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed: list[RunConfig] = []

    def at_the_peak(config: RunConfig, device: torch.device, threads: int | None, batch: Batch) -> StepTime:
        timed.append(config)
        return StepTime(1, step_flops(config) / PEAK, 0.0, memory=1e9)

    monkeypatch.setattr(timing, "time_steps", at_the_peak)
    tokens = np.zeros((8, context), np.int64)
    found = timing.time_part(long_run(context), Batch(tokens, tokens, None), CPU, 1, PEAK)
    assert step_flops(timed[0]) / PEAK <= 1.0
    assert found.micro_batch == pytest.approx(step_flops(long_run(context)) / PEAK)
    assert (timed[0] == long_run(context)) == (context < 100_000)
    missing = 8 * context - timed[0].train.micro_batch * timed[0].train.context
    assert found.memory >= 1e9 + 4 * missing * long_run(context).spec.width  # of the model's output alone


def test_a_step_longer_than_the_time_is_refused_with_both_times() -> None:
    train = replace(long_run(64).train, minutes=1.0)
    with pytest.raises(UsageError, match=r"takes 10.0 min here, and the budget is 60.0 s.*context"):
        fit_to_time(train, StepTime(1, 600.0, 0.0))


# ---- what is refused before steps are timed


def prepare(text: Path, tmp_path: Path, out: Path | None = None, **train: Any) -> None:
    config = RunConfig(
        ModelConfig(params=20e3), DataConfig(tokenizer="bytes"), TrainConfig(steps=2, **train), RunSettings(threads=1)
    )
    pipeline.prepare_run(config, [str(text)], out, tmp_path / "cache", lambda line: None)


@pytest.fixture
def _nothing_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "time_part", lambda *_: pytest.fail("steps were timed"))
    monkeypatch.setattr(pipeline, "plan_device", lambda *_: plan_device("h100"))


@pytest.mark.usefixtures("_nothing_is_timed")
def test_too_little_text_and_memory_are_told_before_steps_are_timed(
    text_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="tokens"):
        prepare(text_folder, tmp_path, context=100_000)
    monkeypatch.setattr(pipeline, "free_memory", lambda: 1e4)
    with pytest.raises(UsageError, match=r"0\.0 GB are free"):
        prepare(text_folder, tmp_path, context=32)


@pytest.mark.usefixtures("_nothing_is_timed")
def test_a_place_that_cannot_be_written_is_told_before_the_text_is_read(
    text_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "find_sources", lambda *_: pytest.fail("the text was read"))
    (tmp_path / "file").write_text("x")
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UsageError, match="--out"):
            prepare(text_folder, tmp_path, out=out)
