"""A long run that starts from a short one's trunk is, to the bit, the run trained from its beginning."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import pytest
from configs import config_of

from nextword.data import Dataset
from nextword.plan import RunConfig
from nextword.spec import ModelKind, ModelSpec
from nextword.train.branches import shared_steps, start_from
from nextword.train.metrics import read_metrics
from nextword.train.run import train_run

SHORT, LONG = 20, 50


def spec_of(kind: ModelKind, vocabulary: int) -> ModelSpec:
    attention = {"heads": 2, "kv_heads": 2, "head_width": 8, "mlp_width": 32} if kind == "transformer" else {}
    return ModelSpec(kind=kind, vocabulary=vocabulary, width=16, layers=2, context=32, tied=True, **attention)  # type: ignore[arg-type]


def run_of(kind: ModelKind, data: Dataset, steps: int, **train: object) -> RunConfig:
    wsd = {"schedule": "wsd", "decay_fraction": 0.2, "final_learning_rate": 0.0, "warmup_steps": 5}
    config = config_of(spec_of(kind, data.vocabulary), steps=steps, **{**wsd, **train})
    return config.with_run(checkpoint_every=steps // 10, keep_checkpoints=5, evaluate_every=0, sample_every=0)


def losses(folder: Path) -> list[bytes]:
    return [struct.pack("<d", row["loss"]) for row in read_metrics(folder) if "loss" in row]


@pytest.mark.parametrize("kind", ["transformer", "lstm"])
def test_a_branch_is_the_straight_run(kind: ModelKind, data: Dataset, tmp_path: Path) -> None:
    short, long = run_of(kind, data, SHORT), run_of(kind, data, LONG)
    trunk, straight, branch = (tmp_path / name for name in ("trunk", "straight", "branch"))
    train_run(short, data, trunk)
    measured = train_run(long, data, straight).measured
    assert start_from(trunk, branch, long) == 16  # 20 steps, of which the last 4 decay
    branched = train_run(long, data, branch).measured
    assert measured is not None
    assert branched is not None
    assert branched.nats_per_token == measured.nats_per_token
    assert losses(branch) == losses(straight)
    assert len(losses(branch)) == LONG
    assert (branch / "model.safetensors").read_bytes() == (straight / "model.safetensors").read_bytes()


def test_only_runs_that_differ_in_length_share_a_trunk(data: Dataset, tmp_path: Path) -> None:
    short, long = run_of("gru", data, SHORT), run_of("gru", data, LONG)
    assert shared_steps(short, long) == shared_steps(long, short) == 16
    for other in (
        long.with_train(learning_rate=2e-3), long.with_train(warmup_steps=6), long.with_train(schedule="cosine"),
        long.with_train(seed=1), long.with_run(threads=2),
        replace(long, model=run_of("lstm", data, LONG).model),
    ):  # fmt: skip
        assert shared_steps(short, other) == 0
    assert start_from(tmp_path / "absent", tmp_path / "branch", long) == 0
    assert not (tmp_path / "branch").exists()
