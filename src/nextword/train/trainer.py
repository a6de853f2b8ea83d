"""The loop: one trainer for every kind of model."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ..base import RunError, UsageError, read_text
from ..base.cores import check_threads
from ..base.fields import Within, check_fields
from ..base.units import format_seconds
from ..data import Dataset, Windows
from ..plan import RunConfig
from ..spec import Positive
from . import checkpoint as checkpoints
from . import compile
from .changes import Change, Settings
from .deadline import LATE, Cut, Deadline, last_step_of, place_in_schedule
from .distributed import choose_device, joined, share, this_process, total
from .evaluate import MOST, HeldOutLoss, evaluate, heldout_windows
from .lora import merge_adapters
from .loss_guard import Action, Guard
from .loss_module import Placed, Training, new_model, place, prepare
from .memory import PeakMemory
from .optimizers import make_optimizer
from .run_dir import append_line, differences, resume_command, writing
from .schedules import learning_rate

MOST_REWINDS = 5
Whole = Annotated[int, Within(least=0)]
_LAST_STEPS = 20  # whose mean is the training loss of a report


@dataclass(frozen=True)
class Options:
    """What does not change the numbers of a run: where it writes, how often, on what."""

    folder: Path
    device: str = "auto"
    threads: Annotated[int, Within(least=1)] | None = None
    checkpoint_every: Whole = 0  # steps; 0: at the end only
    keep: Annotated[int, Within(least=1)] = 2
    evaluate_every: Whole = 0  # steps; 0: at the end only
    evaluate_tokens: Annotated[int, Within(least=1)] = MOST  # at the end, at most; a fifth of them at other times
    sample_every: Whole = 0
    guard: Action = "stop"
    compile: bool = False
    seconds: Positive | None = None  # of training that were asked for: a run that would end far later is shortened

    def __post_init__(self) -> None:
        check_fields(self)
        check_threads(self.threads)


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
    action: str = ""  # "stop", "skip" or "rewind" where the guard acted
    reason: str = ""  # what it saw


class Observer(Protocol):
    """Hears what happens. Every method may do nothing."""

    def stepped(self, step: Step) -> None: ...
    def evaluated(self, step: int, loss: HeldOutLoss) -> None: ...
    def saved(self, step: int, folder: Path) -> None: ...
    def shortened(self, steps: int) -> None: ...
    def said(self, message: str) -> None: ...
    def sample(self, step: int, model: nn.Module) -> None: ...


class Silent:
    """An observer that does nothing."""

    def stepped(self, *what: Any, **named: Any) -> None: ...

    evaluated = saved = shortened = said = sample = stepped


@dataclass(frozen=True)
class Outcome:
    """What a run measured, over all its sessions. Seconds are of training steps alone."""

    model: nn.Module
    steps: int
    seconds: float
    data_seconds: float
    tokens: int
    loss: float  # mean of the last steps that the guard found sound
    heldout: HeldOutLoss | None
    peak_bytes: int
    threads: int
    interrupted: bool
    complete: bool  # all steps of the run are done, or all that a shortened one has
    shortened: bool  # to end in time


@dataclass
class Progress:
    """What a checkpoint keeps beside the tensors."""

    step: int = 0
    skipped: int = 0  # batches passed over by rewinding: step + skipped is the position in the data
    rewinds: int = 0
    seconds: float = 0.0
    data_seconds: float = 0.0
    tokens: int = 0
    memory: int = 0  # bytes at most, of all sessions
    guard: list[float] = field(default_factory=list)
    cuts: list[Cut] = field(default_factory=list)  # by which the run was shortened, to end in time


class Trainer:
    """Trains one model on one dataset as a `RunConfig` says. Used once: `Trainer(...).train()`.

    With the same configuration, data, threads and number of processes two runs give the same bits, interrupted or not.
    """

    def __init__(
        self, run: RunConfig, data: Dataset, options: Options, observer: Observer | None = None,
        make: Callable[[bool], nn.Module] | None = None, origin: str = "", changes: tuple[Change, ...] = (),
    ) -> None:  # fmt: skip
        """`run` and `options` are as the run was begun, `changes` what it took on since.

        `make` gives the model if it is not a fresh one: with the weights of `origin`, or if its argument is True with
        any weights, as those of a checkpoint follow.
        """
        self.run, self.data, self.options = run, data, options
        self.begun, self.changes = Settings(options.guard, options.threads, run.steps), changes
        self.observer: Observer = observer or Silent()
        self.process = this_process()
        if not self.process.first:
            self.observer = Silent()
        self.device = choose_device(options.device, self.process)
        self._check()
        self.windows = Windows(data.train, run.context, run.seed, run.packing, run.across_documents)
        self._make, self.origin = make, origin
        self._restored = False
        self.interrupts, self.stopping = _Interrupts(), False
        self.deadline = Deadline(options.seconds)

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
            compile.check(self.device, run.precision)

    def train(self, until: int | None = None) -> Outcome:
        """Train from the newest checkpoint, or from the beginning, to step `until` or the run's end.

        Ctrl-C ends it after the step under way, with a checkpoint; `Outcome.interrupted` then says so.
        """
        with joined(self.process, self.device):
            if not self._restored:
                self.restore()
            with compile.explained() if self.options.compile else nullcontext():
                return self._loop(until or self.steps)

    @property
    def steps(self) -> int:
        """Steps of the whole run, as it is planned by now."""
        return last_step_of(self.begun.after(self.changes).steps, self._cuts)

    @property
    def _cuts(self) -> list[Cut]:
        """The cuts in force: none where a number of steps was asked for when the run was resumed."""
        return self.progress.cuts if self.begun.after(self.changes).steps == self.run.steps else []

    def restore(self) -> int:
        """Build the model, with the weights of the newest checkpoint if there is one; the step that comes next.

        Raises RunError if there are checkpoints and none is sound, UsageError if it is of another configuration.
        Called by `train`, and before it by who wants to know the step; of many processes inside `joined`.
        """
        self._from(self._newest())
        self._restored = True
        self._settings()
        if step := self.progress.step:
            self.observer.said(f"resumed from step {step:,} of {self.steps:,}")
            self.observer.shortened(self.steps)
        return self.progress.step

    def _newest(self) -> checkpoints.Checkpoint | None:
        found = checkpoints.newest(self._root, self.process, self.observer.said)
        if found is not None and found.configuration:
            now = self._configuration(found.step)
            if different := differences(found.configuration, now, added=False):
                raise UsageError(
                    f"{found.folder} was trained with other settings than run.json has now: {'; '.join(different)}."
                    " Put run.json back as it was; only what `runs resume` has an option for can change"
                )
        return found

    def _configuration(self, step: int) -> dict[str, Any]:
        """What the numbers after `step` steps follow from, however many processes made them; as JSON gives it back."""
        run = self.run.to_dict()
        for name in ("devices", "shard"):
            del run["training"][name]
        changes = [change.to_dict() for change in self.changes if change.step < step]
        begun = {"guard": self.begun.guard, "threads": self.begun.threads, "origin": self.origin}
        whole = {"run": run, "data": self.data.fingerprint, "begun": begun, "changes": changes}
        return json.loads(json.dumps(whole))  # type: ignore[no-any-return]

    def _from(self, checkpoint: checkpoints.Checkpoint | None) -> None:
        """The model, the optimizer and all that is counted as `checkpoint` holds them, or as before the first step."""
        if not self._restored or checkpoint is None:
            self._build(begun=checkpoint is not None)
        self.progress = Progress()
        if checkpoint is not None:
            checkpoints.load(checkpoint, self.model, self.optimizer, self._carried_tensors())
            self.progress = Progress(**checkpoint.progress)
        self._saved = self.progress.step
        self.guard = Guard(self.run.model.vocabulary)
        self.guard.losses.extend(self.progress.guard)

    def _build(self, begun: bool = False) -> None:
        run = self.run
        model: Any = new_model(run) if self._make is None else self._make(begun)
        self.model = model.to(self.device)
        prepare(self.model, run, self.options.compile)
        self.training: nn.Module = share(Training(self.model, run.precision), run.shard, self.process, self.device)
        self.training.train()
        self.optimizer = make_optimizer(self.model, run)
        if self.options.compile:
            self.training.compile()
        self.carried: Any = self._fresh_state() if run.carry_state else None

    @property
    def _root(self) -> Path:
        return self.options.folder / "checkpoints"

    def _loop(self, until: int) -> Outcome:
        interrupted, end = False, min(until, self.steps)
        with PeakMemory(self.device) as self._peak, self.interrupts:
            if self.origin and self.progress.step == 0:
                self._evaluate()  # what fine-tuning begins from
            while self.progress.step < end and not self.stopping:
                step = self._step()
                self._write(_plain(step))
                if step.action == "stop":
                    raise RunError(self._ways_on(step))
                self.observer.stepped(step)
                if step.action != "rewind":
                    self._keep_deadline()
                end = min(until, self.steps)
                self._now_and_then(end)
            interrupted = self.stopping and self.progress.step < end
            self._save_if_new()
        if self.run.lora and self.run.shard != "fsdp":
            merge_adapters(self.model)  # the loss at the end is of the model that is written
        heldout = None if interrupted else self._evaluate()
        done, sound = self.progress, list(self.guard.losses)[-_LAST_STEPS:]
        return Outcome(
            self.model, done.step, done.seconds, done.data_seconds, done.tokens,
            sum(sound) / len(sound) if sound else math.nan, heldout, max(done.memory, self._peak.bytes),
            torch.get_num_threads(), interrupted, done.step >= self.steps, bool(self._cuts),
        )  # fmt: skip

    def _keep_deadline(self) -> None:
        """Shorten a run that would end late. The checkpoint that tells of it is written before the next step."""
        done, settings = self.progress, self.begun.after(self.changes)
        if self.options.seconds is None or settings.steps != self.run.steps:
            return
        elapsed = total([done.seconds], self.process, self.device)[0] / self.process.world  # the same on every process
        cut = self.deadline.cut(done.step, self.steps, elapsed)
        if cut is None:
            return
        done.cuts = [*done.cuts, cut]
        self._save_if_new()
        self.observer.shortened(self.steps)
        self.observer.said(
            f"step {done.step:,}: training is slower than planned, and {cut[1]:,} steps would take more than {LATE:g}"
            f" times the {format_seconds(self.options.seconds)} asked for. The run now ends after {cut[2]:,} steps,"
            " and the learning rate decays over those that are left"
        )

    def _step(self) -> Step:
        began = time.perf_counter()
        position, settings = self.progress.step + self.progress.skipped, self._settings()
        run = self.run if settings.steps == self.run.steps else replace(self.run, steps=settings.steps)
        batch = place(self._batch(position), self.device)
        data_seconds = time.perf_counter() - began
        rate = learning_rate(run, place_in_schedule(self.progress.step, self._cuts)) * settings.learning_rate_scale
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
            step = self._handle(replace(step, reason=trouble), settings.guard)
        self.optimizer.zero_grad(set_to_none=True)
        seconds = time.perf_counter() - began
        self.progress.seconds += seconds
        self.progress.data_seconds += data_seconds
        self.progress.tokens += counted
        return replace(step, seconds=seconds)

    def _settings(self) -> Settings:
        """What is in force at this step. The number of threads, on which the last bits depend, is set with it."""
        settings = self.begun.after(self.changes, self.progress.step)
        if settings.threads and self.device.type == "cpu" and torch.get_num_threads() != settings.threads:
            torch.set_num_threads(settings.threads)
        return settings

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

    def _handle(self, step: Step, action: Action) -> Step:
        """A step that the guard refused. Its update is never applied."""
        where = f"step {step.step:,}: {step.reason}"
        if action == "rewind" and self.progress.rewinds < MOST_REWINDS:
            self._rewind()
            self.observer.said(f"{where}; back to step {self.progress.step:,}, going on after the data that led here")
            return replace(step, action="rewind")
        if action == "skip":
            self.observer.said(f"{where}; its update is left out")
            self.progress.step += 1
            return replace(step, action="skip")
        return replace(step, action="stop")

    def _rewind(self) -> None:
        """Back to the newest checkpoint or the beginning, and on with the data after this step's."""
        met = self.progress
        self._from(self._newest())
        self.progress = replace(
            self.progress, skipped=met.step + met.skipped + 1 - self.progress.step, rewinds=met.rewinds + 1,
            seconds=met.seconds, data_seconds=met.data_seconds, tokens=met.tokens, memory=met.memory,
        )  # fmt: skip

    def _ways_on(self, step: Step) -> str:
        """What the guard saw, and each command that goes on from there."""
        settings, there = self._settings(), checkpoints.stored(self._root)
        ways = {
            "--guard skip": "leaves out the update of such a step",
            "--guard rewind": "goes back to a checkpoint and skips the text that led here",
            f"--learning-rate-scale {settings.learning_rate_scale / 2:g}": "trains more slowly from there on",
        }
        if self.progress.rewinds >= MOST_REWINDS:
            del ways["--guard rewind"]
        said = ", ".join(f"`{resume_command(self.options.folder, way)}` {what}" for way, what in ways.items())
        kept = f"the last checkpoint is {there[-1].name}" if there else "there is no checkpoint yet"
        return f"step {step.step:,}: {step.reason}; {kept}. To go on, {said}"

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
        if step == self._saved:
            return
        self.progress.memory = max(self.progress.memory, self._peak.so_far())
        progress = vars(replace(self.progress, guard=list(self.guard.losses)))
        folder = checkpoints.save(
            self._root, step, self.model, self.optimizer, progress, self.process, self.options.keep,
            self._carried_tensors(), self._configuration(step),
        )  # fmt: skip
        self._saved = step
        self.observer.saved(step, folder)

    def _evaluate(self, tokens: int | None = None) -> HeldOutLoss:
        """On all of the fixed held-out set; or on a sample of at most `tokens`, and of what a short run can afford."""
        run, stream, most = self.run, self.data.heldout, self.options.evaluate_tokens
        affordable = max(2000, run.tokens // 100)
        taken = most if tokens is None else min(tokens, affordable)
        loss = evaluate(
            self.training, heldout_windows(stream, run, taken), run.micro_batch, self.device, self.process,
            sample=min(taken, stream.tokens) < min(most, stream.tokens),
        )  # fmt: skip
        self._write({"step": self.progress.step, "heldout": vars(loss)})
        self.observer.evaluated(self.progress.step, loss)
        return loss

    def _write(self, row: dict[str, Any]) -> None:
        """A line of metrics.jsonl."""
        if self.process.first:
            path = self.options.folder / "metrics.jsonl"
            with writing(path, f"go on: {resume_command(self.options.folder)}"):
                path.parent.mkdir(parents=True, exist_ok=True)
                append_line(path, row)

    # ---- carried state of recurrent nets, one for each micro-batch

    def _fresh_state(self) -> list[Any]:
        size, model = min(self.run.micro_batch, self.run.batch), self.model
        sizes = [min(size, self.run.batch - start) for start in range(0, self.run.batch, size)]
        return [model.new_state(rows) for rows in sizes]

    def _state_of(self, start: int, size: int) -> Any:
        return None if self.carried is None else self.carried[start // size]

    def _carried_tensors(self) -> dict[str, Tensor] | None:
        if self.carried is None:
            return None
        found = {f"{number}.hidden": state.hidden for number, state in enumerate(self.carried)}
        cells = {f"{number}.cell": state.cell for number, state in enumerate(self.carried) if state.cell is not None}
        return found | cells


def _plain(step: Step) -> dict[str, Any]:
    """A step as a line of metrics.jsonl; NaN stays visible as "nan"."""
    values = {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in vars(step).items()}
    return {name: value for name, value in values.items() if value != ""}


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
        lines = read_text(folder / "metrics.jsonl", 4 << 30).splitlines()
    except OSError as error:
        raise UsageError(f"{folder}: no metrics.jsonl there ({error.strerror}); is it a run's folder?") from None
    for line in lines:
        try:
            values = json.loads(line)
        except ValueError:
            continue
        if not isinstance(values, dict):
            continue
        yield {key: float(value) if value in ("nan", "inf", "-inf") else value for key, value in values.items()}


def last_step(folder: Path) -> int:
    """Steps that a run has done, by the last line of its metrics."""
    return progress_of(folder)[0]


def progress_of(folder: Path) -> tuple[int, bool]:
    """Steps that a run has done, and whether the guard stopped it after them, by the last line of its metrics."""
    try:
        row = next((row for row in reversed(list(read_metrics(folder))) if "loss" in row), None)
    except UsageError:
        row = None
    if row is None:
        return 0, False
    action = row.get("action")
    return int(row["step"]) + (action not in ("stop", "rewind")), action == "stop"
