"""The loop: one trainer for every kind of model."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ..base import RunError, UsageError
from ..data import Dataset, Windows
from ..plan import RunConfig
from . import checkpoint as checkpoints
from . import compiling
from .distributed import choose_device, joined, share, this_process, total
from .evaluate import HeldOutLoss, evaluate
from .guard import Action, Guard
from .lora import merge_adapters
from .memory import PeakMemory
from .module import Placed, Training, new_model, place, prepare
from .optimizers import make_optimizer
from .schedules import learning_rate

MOST_REWINDS = 5


@dataclass(frozen=True)
class Options:
    """What does not change the numbers of a run: where it writes, how often, on what."""

    folder: Path
    device: str = "auto"
    threads: int | None = None
    checkpoint_every: int = 0  # steps; 0: at the end only
    keep: int = 2
    evaluate_every: int = 0  # steps; 0: at the end only
    evaluate_tokens: int = 100_000  # at the end; a fifth of them at other times
    sample_every: int = 0
    guard: Action = "stop"
    compile: bool = False


@dataclass(frozen=True)
class Step:
    """One step as it is written to metrics.jsonl. Losses in nats a token."""

    step: int
    loss: float
    learning_rate: float
    gradient_norm: float
    tokens: int  # of this step, over all processes
    seconds: float
    data_seconds: float  # of them, making the batch
    action: str = ""  # "skip" or "rewind" where the guard acted


class Observer(Protocol):
    """Hears what happens. Every method may do nothing."""

    def stepped(self, step: Step) -> None: ...
    def evaluated(self, step: int, loss: HeldOutLoss) -> None: ...
    def saved(self, step: int, folder: Path) -> None: ...
    def said(self, message: str) -> None: ...
    def sample(self, step: int, model: nn.Module) -> None: ...


class Silent:
    """An observer that does nothing."""

    def stepped(self, step: Step) -> None: ...
    def evaluated(self, step: int, loss: HeldOutLoss) -> None: ...
    def saved(self, step: int, folder: Path) -> None: ...
    def said(self, message: str) -> None: ...
    def sample(self, step: int, model: nn.Module) -> None: ...


@dataclass(frozen=True)
class Outcome:
    """What a run measured. Seconds are of training steps alone."""

    model: nn.Module
    steps: int
    seconds: float
    data_seconds: float
    tokens: int
    loss: float  # mean of the last steps
    heldout: HeldOutLoss | None
    peak_bytes: int
    threads: int
    interrupted: bool


@dataclass
class Progress:
    """What a checkpoint keeps beside the tensors."""

    step: int = 0
    skipped: int = 0  # batches passed over by rewinding: step + skipped is the position in the data
    rewinds: int = 0
    seconds: float = 0.0
    data_seconds: float = 0.0
    tokens: int = 0
    guard: list[float] = field(default_factory=list)


class Trainer:
    """Trains one model on one dataset as a `RunConfig` says. Used once: `Trainer(...).train()`.

    With the same configuration, data, threads and number of processes two runs give the same bits, interrupted or not.
    """

    def __init__(
        self, run: RunConfig, data: Dataset, options: Options, observer: Observer | None = None,
        start_from: nn.Module | None = None,
    ) -> None:  # fmt: skip
        self.run, self.data, self.options = run, data, options
        self.observer: Observer = observer or Silent()
        self.process = this_process()
        if not self.process.first:
            self.observer = Silent()
        self.device = choose_device(options.device, self.process)
        if options.threads and self.device.type == "cpu":
            torch.set_num_threads(options.threads)
        self._check()
        self.windows = Windows(data.train, run.context, run.seed, run.packing, run.across_documents)
        self._start_from = start_from
        self.progress = Progress()
        self.guard = Guard()
        self.interrupts, self.stopping = _Interrupts(), False

    def _check(self) -> None:
        run, world = self.run, self.process.world
        if run.devices != world:
            self.run = run = replace(run, devices=world)
        if run.batch % world:
            raise UsageError(f"a batch of {run.batch} rows does not divide among {world} processes")
        if run.carry_state and (run.model.kind == "transformer" or world > 1):
            what = "a transformer has no state to carry" if world == 1 else "carried state needs a single process"
            raise UsageError(f"{what}; train without carrying it")
        if run.optimizer == "muon" and run.shard == "fsdp" and world > 1:
            raise UsageError("Muon needs whole matrices; with --shard fsdp use adamw, or use --shard ddp")
        if self.options.compile:
            compiling.check(self.device, run.precision)

    def train(self, until: int | None = None) -> Outcome:
        """Train from the newest checkpoint, or from the beginning, to step `until` or the run's end.

        Ctrl-C ends it after the step under way, with a checkpoint; `Outcome.interrupted` then says so.
        """
        with joined(self.process, self.device):
            self._build()
            self._restore()
            with compiling.explained() if self.options.compile else nullcontext():
                return self._loop(min(until or self.run.steps, self.run.steps))

    def _build(self) -> None:
        run = self.run
        model = self._start_from if self._start_from is not None else new_model(run)
        prepare(model, run)
        self.model = model.to(self.device)
        self.training: nn.Module = share(Training(self.model, run.precision), run.shard, self.process, self.device)
        self.optimizer = make_optimizer(self.model, run)
        if self.options.compile:
            self.training.compile()
        self.carried: Any = self._fresh_state() if run.carry_state else None

    def _restore(self) -> None:
        found = checkpoints.newest(self._root, self.process, self.observer.said)
        if found is None:
            return
        checkpoints.load(found, self.model, self.optimizer, self._carried_tensors())
        self.progress = Progress(**found.progress)
        self.guard = Guard()
        self.guard.losses.extend(self.progress.guard)
        self.observer.said(f"resumed from step {found.step:,} of {self.run.steps:,}")

    @property
    def _root(self) -> Path:
        return self.options.folder / "checkpoints"

    def _loop(self, end: int) -> Outcome:
        self.training.train()
        interrupted, recent = False, list(self.guard.losses)[-20:]
        with PeakMemory(self.device) as peak, self.interrupts, self._metrics() as write:
            while self.progress.step < end and not self.stopping:
                step = self._step()
                write(step)
                recent = [*recent, step.loss][-20:]
                self.observer.stepped(step)
                self._now_and_then(end)
            interrupted = self.stopping and self.progress.step < end
            self._save_if_new()
        if self.run.lora and self.run.shard != "fsdp":
            merge_adapters(self.model)  # the loss at the end is of the model that is written
        heldout = None if interrupted else self._evaluate()
        done = self.progress
        return Outcome(
            self.model, done.step, done.seconds, done.data_seconds, done.tokens,
            sum(recent) / max(1, len(recent)), heldout, peak.bytes, torch.get_num_threads(), interrupted,
        )  # fmt: skip

    def _step(self) -> Step:
        began = time.perf_counter()
        run, position = self.run, self.progress.step + self.progress.skipped
        batch = place(self._batch(position), self.device)
        data_seconds = time.perf_counter() - began
        rate = learning_rate(run, self.progress.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if run.dropout:
            torch.manual_seed(_mixed(run.seed, position, self.process.rank))
        loss, counted = self._gradients(batch)
        norm = self._clip()
        step = Step(self.progress.step, loss, rate, norm, counted, 0.0, data_seconds)
        trouble = self.guard.trouble(loss, norm)
        if trouble is None:
            self.optimizer.step()
            self.progress.step += 1
        else:
            step = self._handle(trouble, step)
        self.optimizer.zero_grad(set_to_none=True)
        seconds = time.perf_counter() - began
        self.progress.seconds += seconds
        self.progress.data_seconds += data_seconds
        self.progress.tokens += counted
        return replace(step, seconds=seconds)

    def _batch(self, position: int) -> Any:
        process = self.process
        make = self.windows.sequential_batch if self.run.carry_state else self.windows.batch
        return make(position, self.run.batch, process.rank, process.world)

    def _gradients(self, batch: Placed) -> tuple[float, int]:
        """Mean loss over the tokens of all processes; gradients of it are left in the parameters."""
        counted = int(total([float(batch.counted)], self.process, self.device)[0])
        rows = batch.inputs.shape[0]
        size = min(self.run.micro_batch, rows)
        nats = torch.zeros((), device=self.device)
        for start in range(0, rows, size):
            last = start + size >= rows
            with self._synchronised(last):
                loss = self.training(batch.rows(start, min(start + size, rows)), self._state_of(start, size))
                (loss / max(1, counted)).backward()
            nats += loss.detach()
        if self.carried is not None:
            self.carried = [state.detach() for state in self.carried]
        nats_of_all, asked = total([float(nats), float(self.interrupts.asked)], self.process, self.device)
        self.stopping = asked > 0  # every process must end after the same step
        return nats_of_all / max(1, counted), counted

    def _synchronised(self, last: bool) -> Any:
        """Exchange gradients with the other processes after the last part of a batch only."""
        if last or self.process.world == 1:
            return nullcontext()
        waiting = getattr(self.training, "no_sync", None)
        return waiting() if waiting is not None else nullcontext()

    def _clip(self) -> float:
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        limit = self.run.clip if self.run.clip > 0 else math.inf
        norm: Any = nn.utils.clip_grad_norm_(parameters, limit)
        return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)

    def _handle(self, trouble: str, step: Step) -> Step:
        """A step that the guard refused. Its update is never applied."""
        action, where = self.options.guard, f"step {step.step:,}: {trouble}"
        if action == "skip":
            self.observer.said(f"{where}; its update is left out")
            self.progress.step += 1
            return replace(step, action="skip")
        found = checkpoints.newest(self._root, self.process) if action == "rewind" else None
        if found is None or self.progress.rewinds >= MOST_REWINDS:
            kept = f"; the last checkpoint is in {self._root}" if any(self._root.glob("step-*")) else ""
            raise RunError(
                f"{where}. A lower learning rate often helps; --guard skip leaves such steps out,"
                f" --guard rewind goes back to a checkpoint and past this part of the data{kept}"
            )
        passed = self.progress.step + self.progress.skipped + 1
        rewinds, seconds, tokens = self.progress.rewinds + 1, self.progress.seconds, self.progress.tokens
        checkpoints.load(found, self.model, self.optimizer, self._carried_tensors())
        self.progress = Progress(**found.progress)
        self.guard.losses.clear()
        self.guard.losses.extend(self.progress.guard)
        self.progress = replace(
            self.progress, skipped=passed - self.progress.step, rewinds=rewinds, seconds=seconds, tokens=tokens
        )
        self.observer.said(f"{where}; back to step {found.step:,}, going on after the data that led here")
        return replace(step, action="rewind")

    # ---- now and then

    def _now_and_then(self, end: int) -> None:
        step, options = self.progress.step, self.options
        if options.checkpoint_every and step % options.checkpoint_every == 0:
            self._save_if_new()
        if options.evaluate_every and step % options.evaluate_every == 0 and step < end:
            self._evaluate(self.options.evaluate_tokens // 5)
        if options.sample_every and step % options.sample_every == 0 and self.run.shard != "fsdp":
            self.model.eval()
            self.observer.sample(step, self.model)
            self.training.train()

    def _save_if_new(self) -> None:
        step = self.progress.step
        if (self._root / checkpoints.folder_name(step)).exists() or step == 0:
            return
        progress = vars(replace(self.progress, guard=list(self.guard.losses)))
        folder = checkpoints.save(
            self._root, step, self.model, self.optimizer, progress, self.process, self.options.keep,
            self._carried_tensors(),
        )  # fmt: skip
        self.observer.saved(step, folder)

    def _evaluate(self, tokens: int | None = None) -> HeldOutLoss:
        run, most = self.run, tokens or self.options.evaluate_tokens
        loss = evaluate(
            self.training, self.data.heldout, run.context, run.micro_batch, most, self.device,
            self.process,
        )  # fmt: skip
        if self.process.first:
            with (self.options.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": self.progress.step, "heldout": vars(loss)}) + "\n")
        self.observer.evaluated(self.progress.step, loss)
        return loss

    def _metrics(self) -> Any:
        return _MetricsFile(self.options.folder / "metrics.jsonl", self.process.first)

    # ---- carried state of recurrent nets, one for each micro-batch

    def _fresh_state(self) -> list[Any]:
        size, model = min(self.run.micro_batch, self.run.batch), self.model
        sizes = [min(size, self.run.batch - start) for start in range(0, self.run.batch, size)]
        return [model.new_state(rows) for rows in sizes]  # type: ignore[operator]

    def _state_of(self, start: int, size: int) -> Any:
        return None if self.carried is None else self.carried[start // size]

    def _carried_tensors(self) -> dict[str, Tensor] | None:
        if self.carried is None:
            return None
        found = {f"{number}.hidden": state.hidden for number, state in enumerate(self.carried)}
        cells = {f"{number}.cell": state.cell for number, state in enumerate(self.carried) if state.cell is not None}
        return found | cells


class _MetricsFile:
    """Appends a line a step; NaN stays visible as "nan"."""

    def __init__(self, path: Path, writes: bool) -> None:
        self.path, self.writes = path, writes

    def __enter__(self) -> Any:
        if self.writes:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = self.path.open("a", encoding="utf-8")
        return self.write

    def write(self, step: Step) -> None:
        if self.writes:
            values = {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in vars(step).items()}
            if not step.action:
                del values["action"]
            self.file.write(json.dumps(values) + "\n")
            self.file.flush()

    def __exit__(self, *error: object) -> None:
        if self.writes:
            self.file.close()


class _Interrupts:
    """Turns the first Ctrl-C (or SIGTERM) into a wish to stop after the step under way; a second one is immediate."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> _Interrupts:
        import signal
        import threading

        self._before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def _ask(self, number: int, frame: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def __exit__(self, *error: object) -> None:
        import signal

        for number, handler in self._before.items():
            signal.signal(number, handler)


def _mixed(seed: int, position: int, rank: int) -> int:
    """A seed for the dropout of one step on one process."""
    return int(np.random.SeedSequence([seed, position, rank]).generate_state(1, np.uint64)[0] >> 1)


def read_metrics(folder: Path) -> Iterator[dict[str, Any]]:
    """The lines of a run's metrics.jsonl, "nan" as NaN; a last line that was cut off is left out."""
    try:
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UsageError(f"{folder}: no metrics.jsonl there ({error.strerror}); is it a run's folder?") from None
    for line in lines:
        try:
            values = json.loads(line)
        except ValueError:
            continue
        yield {key: float(value) if value in ("nan", "inf", "-inf") else value for key, value in values.items()}


def last_step(folder: Path) -> int:
    """Steps that a run's metrics tell of."""
    try:
        return max((int(row["step"]) + 1 for row in read_metrics(folder) if "loss" in row), default=0)
    except UsageError:
        return 0
