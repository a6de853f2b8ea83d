"""The training loop, for every kind of model."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..base import RunError, UsageError
from ..base.units import format_seconds
from ..data import Dataset, Windows
from ..models.parallel import check_tensor_parallel
from ..plan import RunConfig, flops
from ..plan.run_config import PLACEMENT
from . import checkpoint as checkpoints
from . import compile
from .callbacks import Callbacks, TrainStep
from .changes import Change, Settings
from .deadline import LATE, Cut, Deadline, last_step_of, schedule_step
from .distributed import choose_device, joined, this_process, total
from .evaluate import ValLoss, evaluate, final_val_tokens, val_windows
from .learner import Learner
from .lora import merge_adapters
from .loss_guard import LossGuard
from .loss_module import Placed, new_model, place
from .memory import PeakMemory
from .metrics import METRICS, append_line, step_row
from .planning import check_batch
from .run_dir import differences, resume_command, writing
from .sampling import sample
from .schedules import learning_rate
from .threads import ThreadFollower, thread_counts

MOST_REWINDS = 5
_LAST_STEPS = 20  # averaged for a report's training loss


@dataclass(frozen=True)
class Outcome:
    """Measurements over all sessions of a run. Seconds count only training steps."""

    model: nn.Module
    steps: int
    seconds: float
    data_seconds: float
    tokens: int
    loss: float  # mean of the last steps without a loss spike
    val: ValLoss | None
    peak_bytes: int
    threads: int
    interrupted: bool
    complete: bool  # all steps are done, after shortening if any
    shortened: bool  # to end in time


@dataclass
class Progress:
    """A checkpoint's state besides tensors."""

    step: int = 0
    skipped: int = 0  # batches skipped by rewinding: step + skipped is the position in the data
    rewinds: int = 0
    seconds: float = 0.0
    data_seconds: float = 0.0
    tokens: int = 0
    memory: int = 0  # peak bytes over all sessions
    losses: list[float] = field(default_factory=list)  # remembered by the loss guard
    cuts: list[Cut] = field(default_factory=list)  # that shortened the run, to end in time


class Trainer:
    """Trains one model on one dataset, in `folder`. Used once: `Trainer(...).train()`.

    With the same configuration, data, threads and number of processes, runs are bit-identical, interrupted or not.
    """

    def __init__(
        self, config: RunConfig, data: Dataset, folder: Path, callbacks: Callbacks | None = None,
        make_model: Callable[[bool], nn.Module] | None = None, changes: tuple[Change, ...] = (),
    ) -> None:  # fmt: skip
        """`config` is the run's original configuration, `changes` those made since.

        `make_model` builds the model of a fine-tuning run: with the base's weights or, if its argument is True, with
        any weights, to be replaced by a checkpoint's.
        """
        config.check_resolved()
        self.process = replace(this_process(), tensor=config.train.tensor_parallel)
        self.config = config.with_train(devices=self.process.world)
        self.data, self.folder, self.changes = data, folder, changes
        self.started = Settings(config.train.on_loss_spike, config.run.threads or None, config.train.steps)
        self.callbacks = callbacks or Callbacks()
        self.listener = self.callbacks if self.process.first else Callbacks()
        self.device = choose_device(config.run.device, self.process)
        self._check()
        train = self.config.train
        self.windows = Windows(data.train, train.context, train.seed, train.packing, train.mask_documents)
        self._make_model = make_model or (lambda resumed: new_model(config))
        self._flops = flops(self.config.spec, train.context, lora=config.model.lora).per_token
        self.peak = 0.0  # FLOP/s of matrix products on a device, for `TrainStep.share_of_peak`; 0: not measured
        self._restored = self.stopping = False
        self._follower: ThreadFollower | None = None
        self._alike = {self.started.threads}  # numbers of threads with the same results
        self.deadline = Deadline(train.minutes * 60 or None)

    def _check(self) -> None:
        train, world = self.config.train, self.process.world
        check_batch(train, world)
        if train.stateful and (self.config.spec.kind == "transformer" or world > 1):
            what = "a transformer has no state to carry" if world == 1 else "carried state needs a single process"
            raise UsageError(f"{what}; train without train.stateful")
        if train.optimizer in ("muon", "adafactor") and train.sharded:
            raise UsageError(
                f"{train.optimizer} needs whole matrices: use adamw, or train.shard=ddp without train.tensor_parallel"
            )
        check_tensor_parallel(self.config.spec, train.tensor_parallel)
        if train.tensor_parallel > 1 and (self.config.model.lora or self.config.run.compile):
            what = "LoRA" if self.config.model.lora else "run.compile"
            raise UsageError(f"{what} needs whole layers; train without train.tensor_parallel")
        if self.config.run.compile:
            compile.check(self.device, train.dtype)

    def _new_follower(self) -> ThreadFollower | None:
        """None where the number of threads is fixed. Recurrent models' sums depend on it."""
        threads = self.started.after(self.changes).threads
        follows = self.config.run.follow_load and threads == self.started.threads and self.process.world == 1
        if not follows or not threads or self.device.type != "cpu" or self.config.spec.kind != "transformer":
            return None
        return ThreadFollower(thread_counts(), threads)

    def train(self, until: int | None = None) -> Outcome:
        """Train from the newest checkpoint, or from the beginning, to step `until` or the run's end.

        If `callbacks.should_stop` returns True, it stops after the current step, with a checkpoint.
        """
        with joined(self.process, self.device):
            if not self._restored:
                self.restore()
            with compile.explained() if self.config.run.compile else nullcontext():
                return self._loop(until or self.steps)

    @property
    def steps(self) -> int:
        """The run's current total number of steps."""
        return last_step_of(self.started.after(self.changes).steps, self._cuts)

    @property
    def _cuts(self) -> list[Cut]:
        """The current cuts: none if a number of steps was requested on resuming."""
        return self.progress.cuts if self.started.after(self.changes).steps == self.config.train.steps else []

    # ---- checkpoints

    def restore(self) -> int:
        """Build the model, with the weights of the newest checkpoint if any; returns the next step.

        Raises RunError if all checkpoints are damaged, UsageError if its configuration differs.
        Called by `train`, or before it to know the step; with several processes, inside `joined`.
        """
        self._writer = checkpoints.Writer(
            self._root, self.process, self.config.run.keep_checkpoints, self.process.world > 1,
            self.listener.on_checkpoint,
        )  # fmt: skip
        self._load(self._newest())
        self._restored = True
        self._settings()
        return self.progress.step

    def _newest(self) -> checkpoints.Checkpoint | None:
        self._writer.finish()
        checkpoint = checkpoints.newest(self._root, self.process, self.listener.on_message)
        if checkpoint is not None and checkpoint.configuration:
            now = self._configuration(checkpoint.step)
            if different := differences(checkpoint.configuration, now, added=False):
                raise UsageError(
                    f"{checkpoint.folder} was trained with other settings than the run has now: {'; '.join(different)}."
                    " Restore config.toml and run.json; only what `runs resume` has an option for can"
                    " change"
                )
        return checkpoint

    def _configuration(self, step: int) -> dict[str, Any]:
        """Everything that determines the results after `step` steps, except the number of processes, as plain data."""
        config = self.config.to_dict()
        train = {name: value for name, value in config["train"].items() if name not in PLACEMENT}
        model = {name: config["model"][name] for name in ("spec", "base", "lora")}
        changes = [change.to_dict() for change in self.changes if change.step < step]
        values = {"model": model, "train": train, "run": {"threads": self.started.threads or 0}}
        return json.loads(json.dumps({**values, "data": self.data.fingerprint, "changes": changes}))  # type: ignore[no-any-return]

    def _load(self, checkpoint: checkpoints.Checkpoint | None) -> None:
        """Load model, optimizer and counters from `checkpoint`, or initialise them."""
        if not self._restored or checkpoint is None:
            self._build(resumed=checkpoint is not None)
        self.progress = Progress()
        if checkpoint is not None:
            checkpoints.load(checkpoint, self.model, self.learner.optimizer, self.learner.state_tensors())
            self.progress = Progress(**checkpoint.progress)
        self._saved = self.progress.step
        self.guard = LossGuard(self.config.spec.vocabulary)
        self.guard.losses.extend(self.progress.losses)

    def _build(self, resumed: bool) -> None:
        self.model = self._make_model(resumed)
        self.learner = Learner(self.config, self.model, self.device, self.process)
        if self.config.run.compile:
            self.learner.loss_module.compile()

    @property
    def _root(self) -> Path:
        return self.folder / "checkpoints"

    def _save_if_new(self) -> None:
        step = self.progress.step
        if step == self._saved:
            return
        self.progress.memory = max(self.progress.memory, self._peak.so_far())
        progress = vars(replace(self.progress, losses=list(self.guard.losses)))
        self._writer.save(
            step, self.model, self.learner.optimizer, progress, self.learner.state_tensors(), self._configuration(step)
        )
        self._saved = step

    # ---- steps

    def _loop(self, until: int) -> Outcome:
        interrupted, end = False, min(until, self.steps)
        self._follower = self._new_follower()  # now that the changes are known
        if self.process.first:
            self.folder.mkdir(parents=True, exist_ok=True)
        if self.progress.step:
            self.listener.on_message(f"resumed from step {self.progress.step:,} of {self.steps:,}")
            self.listener.on_steps_changed(self.steps)
        self.callbacks.on_start()
        try:
            with PeakMemory(self.device) as self._peak, self._writer:
                if self.config.model.base and self.progress.step == 0:
                    self._evaluate()  # the loss before fine-tuning
                while self.progress.step < end and not self.stopping:
                    step = self._step()
                    self._write(step_row(step))
                    self.listener.on_step(step)
                    if step.action == "stop":
                        self._writer.finish()
                        raise RunError(self._ways_to_continue(step))
                    if step.action != "rewind":
                        self._keep_deadline()
                    end = min(until, self.steps)
                    self._periodic(end)
                    self._writer.check()
                interrupted = self.stopping and self.progress.step < end
                self._save_if_new()
        finally:
            self.callbacks.on_end()
        if self.config.model.lora and not self.config.train.sharded:
            merge_adapters(self.model)  # the final loss is that of the written model
        val = None if interrupted else self._evaluate()
        done, losses = self.progress, list(self.guard.losses)[-_LAST_STEPS:]
        return Outcome(
            self.model, done.step, done.seconds, done.data_seconds, done.tokens,
            sum(losses) / len(losses) if losses else math.nan, val, max(done.memory, self._peak.bytes),
            torch.get_num_threads(), interrupted, done.step >= self.steps, bool(self._cuts),
        )  # fmt: skip

    def _keep_deadline(self) -> None:
        """Shorten a run that would end late. A checkpoint with the cut is written before the next step."""
        done, settings = self.progress, self.started.after(self.changes)
        if self.deadline.seconds is None or settings.steps != self.config.train.steps:
            return
        elapsed = total([done.seconds], self.process, self.device)[0] / self.process.readers  # the same everywhere
        cut = self.deadline.cut(done.step, self.steps, elapsed)
        if cut is None:
            return
        done.cuts = [*done.cuts, cut]
        self._save_if_new()
        self._writer.finish()
        self.listener.on_steps_changed(self.steps)
        self.listener.on_message(
            f"step {done.step:,}: training is slower than planned, and {cut[1]:,} steps would take more than {LATE:g}"
            f" times the requested {format_seconds(self.deadline.seconds)}. The run now ends after {cut[2]:,} steps,"
            " and the learning rate decays over the remaining ones"
        )

    def _step(self) -> TrainStep:
        start = time.perf_counter()
        position, settings = self.progress.step + self.progress.skipped, self._settings()
        train = replace(self.config.train, steps=settings.steps)
        process = self.process
        make_batch = self.windows.sequential_batch if train.stateful else self.windows.batch
        batch = place(make_batch(position, train.batch_size, process.reader, process.readers), self.device)
        data_seconds = time.perf_counter() - start
        rate = learning_rate(train, schedule_step(self.progress.step, self._cuts)) * settings.learning_rate_scale
        self.learner.set_learning_rate(rate)
        if self._follower is not None and self._follower.trial is not None:
            self._check_trial(batch, self._follower)
        if train.dropout:
            torch.manual_seed(_dropout_seed(train.seed, position, process.reader))
        loss, counted = self._gradients(batch)
        norm = self.learner.clip()
        step = TrainStep(self.progress.step, loss, rate, norm, counted, 0.0, data_seconds)
        trouble = self.guard.check(loss, norm)
        if trouble is None:
            self.learner.update()
            self.progress.step += 1
        else:
            step = self._handle(replace(step, reason=trouble), settings.on_loss_spike)
            self.learner.zero_grad()
        seconds = time.perf_counter() - start
        self.progress.seconds += seconds
        self.progress.data_seconds += data_seconds
        self.progress.tokens += counted
        if self._follower is not None and (said := self._follower.ran(seconds)):
            self.listener.on_message(f"step {step.step:,}: {said}")
        step = replace(step, seconds=seconds)
        reached = self._flops * step.tokens_per_second / process.world
        return replace(step, share_of_peak=reached / self.peak if self.peak else None)

    def _settings(self) -> Settings:
        """The settings at this step. Also sets the number of threads, which affects the last bits."""
        settings = self.started.after(self.changes, self.progress.step)
        threads = settings.threads if self._follower is None else self._follower.next
        if threads and self.device.type == "cpu" and torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        return settings

    def _check_trial(self, batch: Placed, follower: ThreadFollower) -> None:
        """Before other threads are used for the first time: let the batch's gradients be the same, to the bit."""
        trial, digests = follower.next, []
        if trial in self._alike:
            return
        for threads in (follower.threads, trial):
            torch.set_num_threads(threads)
            if self.config.train.dropout:
                torch.manual_seed(self.config.train.seed)
            digests.append(self.learner.digest(batch))
        if digests[0] == digests[1]:
            self._alike.add(trial)
        else:
            follower.forbid(trial)
            self._settings()

    def _gradients(self, batch: Any) -> tuple[float, int]:
        """Mean loss over the tokens of all processes; its gradients are stored in the parameters."""
        counted = int(total([float(batch.counted)], self.process, self.device)[0])
        nats = float(self.learner.backward(batch, counted))
        stop = float(self.callbacks.should_stop())
        nats, stop = total([nats, stop], self.process, self.device)
        self.stopping = stop > 0  # every process must stop after the same step
        return nats / max(1, counted), counted

    def _handle(self, step: TrainStep, action: str) -> TrainStep:
        """Handle a step rejected by the loss guard. Its update is never applied."""
        where = f"step {step.step:,}: {step.reason}"
        if action == "rewind" and self.progress.rewinds < MOST_REWINDS:
            self._rewind()
            self.listener.on_message(f"{where}; back to step {self.progress.step:,}, skipping the data that led here")
            return replace(step, action="rewind")
        if action == "skip":
            self.listener.on_message(f"{where}; its update is skipped")
            self.progress.step += 1
            return replace(step, action="skip")
        return replace(step, action="stop")

    def _rewind(self) -> None:
        """Go back to the newest checkpoint or the beginning, and continue with the data after this step's."""
        met = self.progress
        self._load(self._newest())
        self.progress = replace(
            self.progress, skipped=met.step + met.skipped + 1 - self.progress.step, rewinds=met.rewinds + 1,
            seconds=met.seconds, data_seconds=met.data_seconds, tokens=met.tokens, memory=met.memory,
        )  # fmt: skip

    def _ways_to_continue(self, step: TrainStep) -> str:
        """The problem with the loss, and the commands to continue."""
        settings, stored = self._settings(), checkpoints.stored(self._root)
        ways = {
            "--on-loss-spike skip": "skips the update of such a step",
            "--on-loss-spike rewind": "goes back to a checkpoint and skips the text that led here",
            f"--learning-rate-scale {settings.learning_rate_scale / 2:g}": "trains more slowly from there on",
        }
        if self.progress.rewinds >= MOST_REWINDS:
            del ways["--on-loss-spike rewind"]
        commands = ", ".join(f"`{resume_command(self.folder, way)}` {what}" for way, what in ways.items())
        kept = f"the last checkpoint is {stored[-1].name}" if stored else "there is no checkpoint yet"
        return f"step {step.step:,}: {step.reason}; {kept}. To continue, {commands}"

    # ---- periodic work

    def _periodic(self, end: int) -> None:
        """Checkpoint, evaluate and sample at the intervals in `config.run`."""
        step, run = self.progress.step, self.config.run
        if run.checkpoint_every and step % run.checkpoint_every == 0:
            self._save_if_new()
        if run.evaluate_every and step % run.evaluate_every == 0 and step < end:
            self._evaluate(final_val_tokens(self.config) // 5)
        if run.sample_every and step % run.sample_every == 0 and not self.config.train.sharded:
            self._sample(step)

    def _sample(self, step: int) -> None:
        if self.process.first:
            prompt, context = self.config.run.sample_prompt, self.config.train.context
            text = sample(self.model.eval(), self.data.tokenizer(), prompt, context)
            self.learner.loss_module.train()
            self._write({"step": step, "sample": text})
            self.listener.on_sample(step, text)

    def _evaluate(self, tokens: int | None = None) -> ValLoss:
        """Evaluate on the fixed held-out set, or on a sample of at most `tokens`, limited for a short run."""
        stream, most = self.data.val, final_val_tokens(self.config)
        affordable = max(2000, self.config.total_tokens // 100)
        taken = most if tokens is None else min(tokens, affordable)
        loss = evaluate(
            self.learner.loss_module, val_windows(stream, self.config, taken), self.config.train.micro_batch,
            self.device, self.process, sample=min(taken, stream.tokens) < min(most, stream.tokens),
        )  # fmt: skip
        self._write({"step": self.progress.step, "val": vars(loss)})
        self.listener.on_evaluation(self.progress.step, loss)
        return loss

    def _write(self, row: dict[str, Any]) -> None:
        """A line of metrics.jsonl."""
        if self.process.first:
            path = self.folder / METRICS
            with writing(path, f"continue: {resume_command(self.folder)}"):
                append_line(path, row)


def _dropout_seed(seed: int, position: int, rank: int) -> int:
    """A seed for the dropout of one step on one process."""
    return int(np.random.SeedSequence([seed, position, rank]).generate_state(1, np.uint64)[0] >> 1)
