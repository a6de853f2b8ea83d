"""Folders of training runs, written without training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nextword.plan.run_config import ModelConfig, RunConfig, RunSettings, TrainConfig
from nextword.spec import ModelSpec
from nextword.train.metrics import METRICS, append_line
from nextword.train.run_dir import Measured, Prediction, RunRecord, write_report

PREDICTION = Prediction(
    memory=2e8, seconds=20.0, tokens_per_second=400.0, share_of_peak=0.5, nats_per_token=3.0, low=2.5, high=3.5,
    bits_per_byte=1.5, memory_parts={"weights": 1e6}, interval_is="assumed", peak=1e11,
)  # fmt: skip


def begin_run(folder: Path, steps: int = 10, width: int = 16, **train: Any) -> Path:
    """A run of an LSTM that has not made a step."""
    spec = ModelSpec(kind="lstm", vocabulary=257, width=width, layers=2, context=8)
    settings: dict[str, Any] = {"context": 8, "batch_size": 4, "micro_batch": 4, "steps": steps, "dtype": "fp32"}
    config = RunConfig(
        ModelConfig(spec=spec), train=TrainConfig(**settings | train), run=RunSettings(device="cpu", threads=1)
    )
    folder.mkdir(parents=True)
    RunRecord(config, "data", "fingerprint", prediction=PREDICTION).write(folder)
    return folder


def add_step(folder: Path, step: int, loss: float, **more: Any) -> None:
    row = {"step": step, "loss": loss, "learning_rate": 1e-3, "gradient_norm": 1.0, "tokens": 32, "seconds": 0.5,
           "data_seconds": 0.0, "tokens_per_second": 64.0, "share_of_peak": 0.4, **more}  # fmt: skip
    append_line(folder / METRICS, row)


def add_evaluation(folder: Path, step: int, nats: float) -> None:
    append_line(
        folder / METRICS, {"step": step, "val": {"nats_per_token": nats, "bits_per_byte": nats / 2, "error": 0.1}}
    )


def add_forecast(folder: Path, step: int, nats: float, steps: int = 10, about: bool = False) -> None:
    row = {"nats_per_token": nats, "low": nats - 0.1, "high": nats + 0.1, "bits_per_byte": nats / 2}
    append_line(folder / METRICS, {"step": step, "forecast": {**row, "steps": steps, "about": about}})


def add_sample(folder: Path, step: int, text: str) -> None:
    append_line(folder / METRICS, {"step": step, "sample": text})


def finish_run(folder: Path, steps: int = 10) -> None:
    measured = Measured(
        memory=2.2e8, seconds=5.0, tokens=32 * steps, tokens_per_second=64.0, share_of_peak=0.4, data_share=0.0,
        train_loss=2.0, nats_per_token=2.1, bits_per_byte=1.05, threads=1, error=0.1, clusters=5, steps=steps,
    )  # fmt: skip
    write_report(folder, PREDICTION, measured)
