"""Experiment trackers: TensorBoard, Weights & Biases and MLflow. Each has a thread: none delays or stops a run."""

from __future__ import annotations

import html
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from queue import Empty, Full, Queue
from threading import Thread
from typing import NamedTuple, Protocol

from ..base import require
from ..plan.run_config import TrackerName
from .callbacks import CallbackList, Callbacks, TrainStep
from .evaluate import ValLoss
from .run_dir import RunRecord

_PROJECT = "nextword"  # in W&B, and MLflow's experiment, unless their own variables name another
_MOST_WAITING = 20_000  # rows; a tracker further behind is given up
_MOST_AT_ONCE = 150  # rows of at most six numbers: MLflow takes a thousand
_PATIENCE = 30.0  # seconds, at the end of a run
_HURRY = 3.0  # the same, if it was ended by Ctrl-C


class Row(NamedTuple):
    """What is known after a step."""

    step: int
    time: float  # seconds since 1970
    numbers: dict[str, float]
    sample: str = ""


class Tracker(Protocol):
    """Takes the rows of one session of a run, after construction with its record, folder and first step."""

    place: str  # where the run can be seen

    def write(self, rows: Sequence[Row]) -> None:
        """Take some rows."""

    def close(self, failed: bool) -> None:
        """The session is over."""


class TensorBoard:
    """Event files in the run's folder."""

    def __init__(self, record: RunRecord, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.place = f"tensorboard --logdir {folder / 'tensorboard'}"
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step)

    def write(self, rows: Sequence[Row]) -> None:
        for row in rows:
            for name, value in row.numbers.items():
                self._writer.add_scalar(name, value, row.step, row.time)
            if row.sample:
                self._writer.add_text("sample", row.sample, row.step, row.time)

    def close(self, failed: bool) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run of W&B with the run's own id, which resuming continues. Its environment variables apply."""

    def __init__(self, record: RunRecord, folder: Path, step: int) -> None:
        import wandb

        online = wandb.setup().settings.mode == "online"
        if online and not wandb.login(prompt=False, verify=False):
            raise RuntimeError("no API key: `wandb login` stores one, WANDB_MODE=offline needs none")
        self._html = wandb.Html
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT), dir=folder, id=record.id, resume="allow",
            name=folder.name, config=record.config.to_dict(), settings=wandb.Settings(
                console="off", silent=True, init_timeout=_PATIENCE, finish_timeout=_PATIENCE, finish_timeout_raises=True
            ),
        )  # fmt: skip
        self._run.define_metric("*", step_metric="step")  # a rewound run's steps repeat
        self.place = str(self._run.url) if online else f"wandb sync {Path(self._run.dir).parent}"

    def write(self, rows: Sequence[Row]) -> None:
        for row in rows:
            sample = {"sample": self._html(f"<p>{html.escape(row.sample)}</p>", inject=False)} if row.sample else {}
            self._run.log({"step": row.step, **row.numbers, **sample})

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class MLflow:
    """A run of MLflow, found again by a tag when it is resumed. Its environment variables apply."""

    def __init__(self, record: RunRecord, folder: Path, step: int) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self._metric, self._client = Metric, MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
        known = self._client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else self._client.create_experiment(name)
        same = self._client.search_runs([experiment], f"tags.`nextword.run` = '{record.id}'", max_results=1)
        if same:
            self._id = same[0].info.run_id
            self._client.update_run(self._id, "RUNNING")
        else:
            self._id = self._client.create_run(
                experiment, run_name=folder.name, tags={"nextword.run": record.id}
            ).info.run_id
            config = record.config.to_dict()
            settings = {f"{section}.{key}": value for section in config for key, value in config[section].items()}
            self._client.log_batch(self._id, params=[Param(key, str(value)) for key, value in settings.items()])
        self.place = f"{self._client.tracking_uri}, experiment {name}"

    def write(self, rows: Sequence[Row]) -> None:
        numbers = [(row, name, value) for row in rows for name, value in row.numbers.items()]
        if numbers:
            metrics = [self._metric(name, value, int(row.time * 1000), row.step) for row, name, value in numbers]
            self._client.log_batch(self._id, metrics)
        for row in rows:
            if row.sample:
                self._client.log_text(self._id, row.sample, f"samples/step-{row.step:08d}.txt")

    def close(self, failed: bool) -> None:
        self._client.set_terminated(self._id, "FAILED" if failed else "FINISHED")


_TRACKERS: dict[TrackerName, Callable[[RunRecord, Path, int], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
}


def check_installed(names: Sequence[TrackerName]) -> None:
    """Raise UsageError, naming the extra, for a tracker whose package is not installed."""
    for name in names:
        require(name, f"run.log={name}")


class _Feed(Callbacks):
    """Feeds one tracker in a thread, and says once if it fails."""

    def __init__(self, name: TrackerName, record: RunRecord, folder: Path, listener: Callbacks) -> None:
        self.name, self.record, self.folder, self.listener = name, record, folder, listener
        self.rows: Queue[Row | None] = Queue(_MOST_WAITING)
        self.thread = Thread(target=self._run, name=name, daemon=True)
        self.failed = False  # the session of the run
        self.news: list[str] = []  # from the thread, not said yet
        self.lost = False

    def on_start(self) -> None:
        try:
            import_module(self.name)  # here, since the time of the first steps is measured
        except Exception as error:
            self._lose(_reason(error))

    def on_step(self, step: TrainStep) -> None:
        values = {"loss": step.loss, "learning_rate": step.learning_rate, "gradient_norm": step.gradient_norm,
                  "tokens_per_second": step.tokens_per_second, "share_of_peak": step.share_of_peak}  # fmt: skip
        self._put(step.step, {f"train/{name}": value for name, value in values.items() if value is not None})

    def on_evaluation(self, step: int, loss: ValLoss) -> None:
        self._put(step, {"val/nats_per_token": loss.nats_per_token, "val/bits_per_byte": loss.bits_per_byte})

    def on_sample(self, step: int, text: str) -> None:
        self._put(step, {}, text)

    def close(self, failed: bool, patience: float) -> None:
        """Wait until the tracker has all rows, for at most `patience` seconds."""
        self.failed = failed
        if self.thread.ident is not None:
            self._offer(None)
            self.thread.join(patience)
            if self.thread.is_alive():
                self.news.append(f"not all values were sent within {patience:.0f} s")
            self._tell()

    def _put(self, step: int, numbers: dict[str, float], sample: str = "") -> None:
        self._offer(Row(step, time.time(), numbers, sample))
        if self.thread.ident is None:
            self.thread.start()
        self._tell()

    def _offer(self, row: Row | None) -> None:
        if not self.lost:
            try:
                self.rows.put_nowait(row)
            except Full:
                self._lose("it does not keep up")

    def _tell(self) -> None:
        while self.news:
            self.listener.on_message(f"{self.name}: {self.news.pop(0)}")

    def _lose(self, reason: str) -> None:
        self.lost = True
        self.news.append(f"{reason}; the run goes on without it")

    def _run(self) -> None:
        """Hand the rows over until the session ends, or the tracker fails."""
        try:
            rows, over = self._waiting()
            tracker = _TRACKERS[self.name](self.record, self.folder, rows[0].step)
            self.news.append(tracker.place)
            tracker.write(rows)
            while not over:
                rows, over = self._waiting()
                tracker.write(rows)
            tracker.close(self.failed)
        except BaseException as error:  # whatever a tracker raises, only its thread ends
            self._lose(_reason(error))

    def _waiting(self) -> tuple[list[Row], bool]:
        """The next rows, and whether the session ends after them."""
        rows = [self.rows.get()]
        while rows[-1] is not None and len(rows) < _MOST_AT_ONCE:
            try:
                rows.append(self.rows.get_nowait())
            except Empty:
                break
        return [row for row in rows if row is not None], rows[-1] is None


def _reason(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextmanager
def tracked(record: RunRecord, folder: Path, callbacks: Callbacks) -> Iterator[Callbacks]:
    """`callbacks` together with those that feed the run's trackers, which are closed at the end."""
    feeds = [_Feed(name, record, folder, callbacks) for name in record.config.run.log]
    try:
        yield CallbackList([callbacks, *feeds]) if feeds else callbacks
    except BaseException as error:
        for feed in feeds:
            feed.close(True, _PATIENCE if isinstance(error, Exception) else _HURRY)
        raise
    for feed in feeds:
        feed.close(False, _PATIENCE)
