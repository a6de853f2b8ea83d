"""Planned memory is what runs take, and a run's peak is its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from configs import config_of

from nextword.data import Dataset
from nextword.spec import ModelSpec
from nextword.train import memory
from nextword.train.memory import PeakMemory
from nextword.train.trainer import Trainer

CPU = torch.device("cpu")
MB = 1_000_000
RUNS = {
    "transformer": "--params 1M --context 128 --batch-size 16 --train-dtype fp32",
    "lstm": "--arch lstm --params 300k --context 64 --batch-size 32 --train-dtype fp32",
    "two micro-batches": "--params 300k --context 64 --batch-size 64 --train-dtype fp32 --set train.micro_batch=32",
}


def in_process(text: Path, folder: Path, options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "nextword", "train", str(text), "--steps", "4", *options.split(), "--json",
               "--out", str(folder / "run"), "--set", "data.tokenizer=bytes"]  # fmt: skip
    own = {"NEXTWORD_CACHE": str(folder / "cache"), "NEXTWORD_LEDGER": str(folder / "ledger")}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | own)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resident sizes are read as Linux has them")
def test_planned_memory_is_what_fresh_processes_take(text_folder: Path, tmp_path: Path) -> None:
    processes = {name: in_process(text_folder, tmp_path / name, options) for name, options in RUNS.items()}
    for name, process in processes.items():
        report = json.loads(process.communicate()[0])
        plan, measured = report["predicted"], report["measured"]["memory"]
        assert plan["memory_is"] == "probed"
        assert plan["memory"] == pytest.approx(measured, rel=0.05), name
        assert plan["formula_memory"] == pytest.approx(measured, rel=0.1), name


def take(size: int) -> None:
    torch.ones(size // 4)


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak cannot be reset here")
def test_the_peak_of_a_block_is_not_an_earlier_one_of_the_process() -> None:
    take(400 * MB)
    before = memory.resident_peak()
    with PeakMemory(CPU) as peak:
        take(100 * MB)
    assert peak.own
    assert peak.bytes < before - 200 * MB


def test_a_peak_that_cannot_be_reset_is_said_to_be_the_processs(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_RESET", tmp_path / "missing" / "clear_refs")
    take(400 * MB)
    with PeakMemory(CPU) as peak:
        take(MB)
    assert not peak.own
    spec = ModelSpec(kind="gru", vocabulary=data.vocabulary, width=16, layers=1, context=16)
    outcome = Trainer(config_of(spec, steps=2), data, tmp_path / "run").train()
    assert not outcome.peak_is_own
    with PeakMemory(CPU) as peak:
        take(2 * memory.resident_peak())
    assert peak.own
