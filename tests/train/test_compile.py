"""torch.compile changes no loss, and says in one line where it cannot or should not run."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from configs import config_of
from torch import nn

from nextword import native
from nextword.base import RunError, UsageError
from nextword.data import Dataset
from nextword.plan import RunConfig
from nextword.spec import ModelSpec
from nextword.train.metrics import read_metrics
from nextword.train.trainer import Trainer


def run_of(data: Dataset) -> RunConfig:
    spec = ModelSpec(kind="transformer", vocabulary=data.vocabulary, width=16, layers=1, context=8, heads=2, kv_heads=2,
                     head_width=8, mlp_width=32)  # fmt: skip
    return config_of(spec, context=8, batch_size=4, micro_batch=4, steps=3,
                     learning_rate=1e-2, final_learning_rate=1e-3, warmup_steps=1, dtype="amp")  # fmt: skip


def losses(run: RunConfig, data: Dataset, folder: Path, compiled: bool) -> list[float]:
    Trainer(run.with_run(compile=compiled, evaluate_tokens=64), data, folder).train()
    return [row["loss"] for row in read_metrics(folder) if "loss" in row]


def test_a_compiled_run_has_the_losses_of_one_that_is_not_and_is_quiet(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    recwarn: pytest.WarningsRecorder,
) -> None:  # fmt: skip
    compile = nn.Module.compile  # traced and differentiated all the same, but not written as C++, which takes a minute
    monkeypatch.setattr(nn.Module, "compile", lambda module: compile(module, backend="aot_eager"))
    plain = losses(run_of(data), data, tmp_path / "plain", False)
    compiled = losses(run_of(data), data, tmp_path / "compiled", True)
    assert compiled == pytest.approx(plain, rel=1e-3)
    assert compiled[-1] < compiled[0]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert not [each for each in recwarn if "dynamo" in each.filename]


def test_what_torchs_compiler_fails_with_is_one_line(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", (None, str(tmp_path / "no-such-compiler")))
    torch._dynamo.reset()
    with pytest.raises(RunError, match=r"torch\.compile failed .*no-such-compiler.*without run") as failed:
        losses(run_of(data).with_train(seed=1), data, tmp_path / "run", True)
    assert "\n" not in str(failed.value)


def test_compiling_is_refused_where_our_kernels_are_as_fast(data: Dataset, tmp_path: Path) -> None:
    if not native.available():
        pytest.skip("no compiled kernels here")
    with pytest.raises(UsageError, match="gains nothing"):
        losses(run_of(data).with_train(dtype="fp32"), data, tmp_path, True)
