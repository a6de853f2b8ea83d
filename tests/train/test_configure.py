"""From a budget to a run: the batch asked for is the batch trained."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nextword.base import UsageError
from nextword.base.cores import cores
from nextword.data import Dataset
from nextword.plan import Device, RunConfig
from nextword.spec import ModelSpec
from nextword.train.pipeline import Request
from nextword.train.planning import Budget, changed, configure
from nextword.train.timing import StepTime
from nextword.train.trainer import Options, Trainer

HERE = Device("here", "a CPU", memory=8e9, bandwidth=1e10, peak=1e11, peak_fp32=1e11, runtime=0.0, source="made up")


def spec_of(kind: str, vocabulary: int = 300) -> ModelSpec:
    attention = {"heads": 2, "kv_heads": 1, "head_width": 16, "mlp_width": 48} if kind == "transformer" else {}
    return ModelSpec(kind=kind, vocabulary=vocabulary, width=32, layers=2, context=16, **attention)  # type: ignore[arg-type]


def configured(changes: dict[str, Any], world: int = 1, kind: str = "transformer", vocabulary: int = 300) -> RunConfig:
    run = configure(spec_of(kind, vocabulary), 1e9, HERE, world=world, tokens=5e4, changes={"steps": 6, **changes})
    return replace(run, precision="fp32")


def trained(run: RunConfig, data: Dataset, folder: Path) -> tuple[list[float], list[int], dict[str, torch.Tensor]]:
    outcome = Trainer(run, data, Options(folder, "cpu", threads=1, evaluate_tokens=64)).train()
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "loss" in row]
    return [row["loss"] for row in steps], [row["tokens"] for row in steps], outcome.model.state_dict()


@pytest.mark.parametrize(
    ("kind", "settings"),
    [("transformer", {}), ("transformer", {"across_documents": False}), ("lstm", {"carry_state": True})],
)
def test_a_batch_that_the_micro_batch_does_not_divide_trains_as_in_one_piece(
    kind: str, settings: dict[str, Any], data: Dataset, tmp_path: Path
) -> None:
    parts, whole = (
        configured({"batch": 7, "micro_batch": micro, **settings}, kind=kind, vocabulary=data.vocabulary)
        for micro in (4, 7)
    )
    losses, tokens, weights = trained(parts, data, tmp_path / "parts")
    expected, counted, wanted = trained(whole, data, tmp_path / "whole")
    assert tokens == counted
    assert max(tokens) <= 7 * 16
    assert losses == pytest.approx(expected, rel=1e-5)
    for name, tensor in wanted.items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "world", "batch", "micro", "accumulation"),
    [
        ({"batch": 7, "micro_batch": 4}, 1, 7, 4, 2),
        ({"batch": 7}, 1, 7, 2, 4),
        ({"batch": 1}, 1, 1, 1, 1),
        ({"batch": 14, "micro_batch": 4}, 2, 14, 4, 2),
        ({"batch": 6, "micro_batch": 3}, 2, 6, 3, 1),
    ],
)
def test_the_batch_asked_for_is_the_batch_of_the_run(
    changes: dict[str, int], world: int, batch: int, micro: int, accumulation: int
) -> None:
    run = configured(changes, world)
    assert (run.batch, run.micro_batch, run.accumulation) == (batch, micro, accumulation)
    assert run.tokens == 6 * batch * 16


def test_a_batch_left_to_the_planner_is_a_multiple_of_the_micro_batch_asked_for() -> None:
    run = configured({"micro_batch": 5})
    assert run.micro_batch == 5
    assert run.batch == 5 * run.accumulation


@pytest.mark.parametrize(
    ("changes", "world", "wanted"),
    [
        ({"batch": 7}, 2, "does not divide among 2 processes; give --batch 6 or 8"),
        ({"batch": 1}, 2, "give --batch 2"),
        ({"batch": 4, "micro_batch": 8}, 1, "give --micro-batch 4 or a larger --batch"),
        ({"batch": 8, "micro_batch": 8}, 2, "give --micro-batch 4 or a larger --batch"),
        ({"batch": 0}, 1, "batch 0: give a whole number at least 1"),
        ({"micro_batch": "4"}, 1, "micro_batch '4': give"),
        ({"steps": 0}, 1, "steps 0: give"),
        ({"batches": 3}, 1, "'batches' is not a setting"),
    ],
)
def test_rows_that_cannot_be_shared_out_as_asked_are_refused(changes: dict[str, Any], world: int, wanted: str) -> None:
    with pytest.raises(UsageError, match=wanted):
        configured(changes, world)


def test_another_micro_batch_leaves_a_planned_runs_batch_alone() -> None:
    run = changed(configured({"batch": 12, "micro_batch": 4}), {"micro_batch": 5, "seed": 3})
    assert (run.batch, run.micro_batch, run.accumulation, run.seed) == (12, 5, 3, 3)


def test_a_smaller_last_micro_batch_counts_by_its_rows_in_the_time_of_a_step() -> None:
    run = configured({"batch": 6, "micro_batch": 4})
    assert StepTime(1, micro_batch=2.0, update=0.5, precision="fp32").step(run) == pytest.approx(3.5)


@pytest.mark.parametrize(
    "bad",
    [{"holdout": float("nan")}, {"keep": 0}, {"vocabulary": 5}, {"context": 0}, {"lora": -1}, {"threads": 0},
     {"threads": 4 * cores() + 1}, {"changes": {"learning_rate": float("nan")}}, {"changes": {"seed": -1}},
     {"guard": "ignore"}, {"out": "a string"}, {"count": -1}, {"checkpoint_every": -1}],
)  # fmt: skip
def test_a_request_that_no_run_can_meet_is_refused_when_it_is_made(bad: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=": give "):
        Request(("text",), **bad)


@pytest.mark.parametrize("amount", [float("nan"), float("inf"), 0, -1, "20"])
@pytest.mark.parametrize("unit", ["seconds", "flops", "tokens"])
def test_a_budget_is_a_finite_number_above_zero(unit: str, amount: Any) -> None:
    with pytest.raises(UsageError, match=f"^{unit} .*: give a finite number above 0"):
        Budget(**{unit: amount})
