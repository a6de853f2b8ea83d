"""What TensorBoard, W&B and MLflow are given of a run, and that none of them can stop or delay it."""

from __future__ import annotations

import html
import json
import math
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from kill_me import run_of

from nextword.base import RunError, UsageError
from nextword.data import Dataset
from nextword.plan import RunConfig
from nextword.train import trackers
from nextword.train.callbacks import Callbacks
from nextword.train.run import RunResult, train_run
from nextword.train.run_dir import RunRecord
from nextword.train.trainer import Trainer

STEPS = 12


class Heard(Callbacks):
    """Keeps the messages and samples."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.samples: list[tuple[int, str]] = []

    def on_message(self, message: str) -> None:
        self.messages.append(message)

    def on_sample(self, step: int, text: str) -> None:
        self.samples.append((step, text))


class FakeWandb(ModuleType):
    """As much of W&B as is called, offline."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.__spec__ = ModuleSpec("wandb", None)
        self.begun: list[dict[str, Any]] = []
        self.rows: list[dict[str, Any]] = []
        self.ended: list[int] = []
        self.take: Callable[[dict[str, Any]], None] = self.rows.append
        self.url, self.dir = None, "run/wandb/offline-run/files"

    def setup(self) -> Any:
        return SimpleNamespace(settings=SimpleNamespace(mode="offline"))

    def Settings(self, **settings: Any) -> dict[str, Any]:
        return settings

    def Html(self, data: str, inject: bool) -> str:
        return data

    def init(self, **arguments: Any) -> FakeWandb:
        self.begun.append(arguments)
        return self

    def define_metric(self, name: str, step_metric: str) -> None:
        assert (name, step_metric) == ("*", "step")

    def log(self, row: dict[str, Any]) -> None:
        self.take(row)

    def finish(self, exit_code: int) -> None:
        self.ended.append(exit_code)


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def config_of(data: Dataset, *names: str) -> RunConfig:
    run = run_of("gru", data.vocabulary, STEPS)
    return run.with_run(log=names, checkpoint_every=5, evaluate_every=4, sample_every=6)


def train(data: Dataset, folder: Path, *names: str, heard: Callbacks | None = None, **how: Any) -> RunResult:
    return train_run(config_of(data, *names), data, folder, heard, **how)


def rows_of(folder: Path, key: str) -> list[dict[str, Any]]:
    return [row for row in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()) if key in row]


NUMBERS = ("loss", "learning_rate", "gradient_norm", "tokens_per_second", "share_of_peak")


def test_a_tracker_gets_what_is_in_the_metrics_and_a_resumed_run_goes_on_under_its_id(
    data: Dataset, tmp_path: Path, wandb: FakeWandb
) -> None:
    heard, folder = Heard(), tmp_path / "run"
    train(data, folder, "wandb", heard=heard, until=7)
    train(data, folder, "wandb", heard=heard)
    assert [begun["id"] for begun in wandb.begun] == [RunRecord.read(folder).id] * 2
    assert {begun["resume"] for begun in wandb.begun} == {"allow"}
    assert wandb.begun[0]["config"]["train"]["steps"] == STEPS
    steps = [
        {"step": row["step"], **{f"train/{name}": row[name] for name in NUMBERS}} for row in rows_of(folder, "loss")
    ]
    assert [row for row in wandb.rows if "train/loss" in row] == steps
    assert len(steps) == STEPS
    val = [{"step": row["step"], **{f"val/{name}": row["val"][name] for name in ("nats_per_token", "bits_per_byte")}}
           for row in rows_of(folder, "val")]  # fmt: skip
    assert [row for row in wandb.rows if "val/nats_per_token" in row] == val
    samples = [(row["step"], row["sample"]) for row in rows_of(folder, "sample")]
    assert [step for step, _ in samples] == [6, 12]
    assert [(row["step"], row["sample"]) for row in wandb.rows if "sample" in row] == [
        (step, f"<p>{html.escape(text)}</p>") for step, text in samples
    ]
    assert heard.samples == samples
    assert wandb.ended == [0, 0]
    assert "wandb: wandb sync run/wandb/offline-run" in heard.messages


def test_the_share_of_the_peak_is_that_of_the_report_step_by_step(data: Dataset, tmp_path: Path) -> None:
    measured = train(data, tmp_path / "run").measured
    rows = rows_of(tmp_path / "run", "loss")
    mean = sum(row["share_of_peak"] * row["seconds"] for row in rows) / sum(row["seconds"] for row in rows)
    assert measured is not None
    assert mean == pytest.approx(measured.share_of_peak, rel=1e-3)
    assert all(row["tokens_per_second"] == row["tokens"] / row["seconds"] for row in rows)


def test_a_tracker_that_fails_is_said_once_and_the_run_has_the_same_bits(
    data: Dataset, tmp_path: Path, wandb: FakeWandb
) -> None:
    def fail(row: dict[str, Any]) -> None:
        if row["step"] == 3:
            raise ConnectionError("the network is gone\nand much more")

    heard, wandb.take = Heard(), fail
    tracked = train(data, tmp_path / "run", "wandb", heard=heard)
    assert tracked.measured is not None
    assert heard.messages.count("wandb: the network is gone; the run goes on without it") == 1
    assert sum("wandb" in message for message in heard.messages) == 2  # the other says where the run is shown
    alone = train(data, tmp_path / "alone")
    for ours, theirs in zip(tracked.model.parameters(), alone.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_tracker_that_hangs_does_not_delay_the_run(
    data: Dataset, tmp_path: Path, wandb: FakeWandb, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    monkeypatch.setattr(trackers, "_PATIENCE", 0.01)
    heard, wandb.take = Heard(), lambda row: go_on.wait(60) and None
    assert train(data, tmp_path / "run", "wandb", heard=heard).measured is not None
    assert heard.messages[-1] == "wandb: not all values were sent within 0 s"
    go_on.set()


def test_a_tracker_far_behind_is_given_up(
    data: Dataset, tmp_path: Path, wandb: FakeWandb, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    monkeypatch.setattr(trackers, "_PATIENCE", 0.01)
    monkeypatch.setattr(trackers, "_MOST_WAITING", 5)
    heard, wandb.take = Heard(), lambda row: go_on.wait(60) and None
    assert train(data, tmp_path / "run", "wandb", heard=heard).measured is not None
    assert heard.messages.count("wandb: it does not keep up; the run goes on without it") == 1
    go_on.set()


def test_a_tracker_learns_that_the_run_failed(
    data: Dataset, tmp_path: Path, wandb: FakeWandb, monkeypatch: pytest.MonkeyPatch
) -> None:
    gradients = Trainer._gradients
    monkeypatch.setattr(
        Trainer, "_gradients", lambda self, batch: (math.nan, gradients(self, batch)[1]) if self.progress.step == 4
        else gradients(self, batch),
    )  # fmt: skip
    with pytest.raises(RunError, match="step 4: the loss is nan"):
        train(data, tmp_path / "run", "wandb")
    assert wandb.ended == [1]
    assert [row["step"] for row in wandb.rows if "train/loss" in row] == [0, 1, 2, 3, 4]


def test_a_tracker_that_is_not_installed_is_refused_before_the_folder_is_made(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(UsageError, match=r"run\.log=mlflow needs mlflow. Install it: pip install 'nextword\[mlflow\]'"):
        train(data, tmp_path / "run", "mlflow")
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("ignore")  # MLflow's and SQLAlchemy's own
def test_mlflow_keeps_the_numbers_of_a_run_and_of_its_second_session_in_one(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "ours")
    monkeypatch.chdir(tmp_path)
    folder, heard = tmp_path / "run", Heard()
    train(data, folder, "mlflow", heard=heard, until=7)
    train(data, folder, "mlflow", heard=heard)
    assert not [message for message in heard.messages if "without it" in message]
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("ours").experiment_id])
    assert (run.info.run_name, run.info.status) == ("run", "FINISHED")
    assert run.data.params["train.steps"] == str(STEPS)
    for name in NUMBERS:
        found = [(each.step, each.value) for each in client.get_metric_history(run.info.run_id, f"train/{name}")]
        assert found == [(row["step"], row[name]) for row in rows_of(folder, "loss")]
    files = [artifact.path for artifact in client.list_artifacts(run.info.run_id, "samples")]
    assert files == ["samples/step-00000006.txt", "samples/step-00000012.txt"]


@pytest.mark.filterwarnings("ignore")  # W&B's own
def test_wandb_stores_a_run_without_a_network(data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    heard = Heard()
    record = RunRecord(config_of(data, "wandb"), str(data.folder), data.fingerprint)
    train_run(record.config, data, tmp_path / "run", heard, record=replace(record, id="b" * 32))
    assert [message.split(":")[0] for message in heard.messages] == ["wandb"]
    (file,) = (tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb")
    assert file.name == f"run-{'b' * 32}.wandb"
    for _ in range(200):  # W&B's own process writes it soon
        if b"train/gradient_norm" in file.read_bytes():
            return
        time.sleep(0.1)
    pytest.fail(f"{file} has no numbers")
