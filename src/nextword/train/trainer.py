"""The training loop, for every kind of model."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..base import RunError, UsageError
from ..base.fields import from_plain
from ..data import Dataset, Windows
from ..models.parallel import check_tensor_parallel
from ..plan import RunConfig, flops
from ..plan.run_config import PLACEMENT
from . import checkpoint as checkpoints
from . import compile
from .callbacks import Callbacks, TrainStep
from .changes import Change, Settings
from .deadline import Deadline, End, Times
from .distributed import choose_device, joined, this_process, total
from .evaluate import ValLoss, bits_per_byte, evaluate, final_val_tokens, val_windows
from .forecast import History
from .learner import Learner
from .lora import merge_adapters
from .loss_guard import LossGuard
from .loss_module import Placed, new_model, place
from .memory import PeakMemory
from .metrics import METRICS, append_line, read_metrics, step_row
from .planning import check_batch
from .run_clock import RunClock, Spent
from .run_dir import differences, resume_command, writing
from .sampling import sample
from .schedules import decay_start, learning_rate
from .threads import ThreadFollower, thread_counts

MOST_REWINDS = 5
_LAST_STEPS = 20  # averaged for a report's training loss
_CHEAP = 8  # times as many tokens to train on as to evaluate: then that takes about 4% of the time
_FORECASTS = 50  # of a run's end, while it goes on
_NEWS = 0.02  # a change of the estimated number of steps by this share is told
_FORWARD = 1 / 3  # of a training step's time
_WRITING = 2.0  # times a checkpoint's seconds: the last one, and the model


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
    peak_is_own: bool  # whether it is the run's: see `PeakMemory.own`
    threads: int
    interrupted: bool
    complete: bool  # all steps are done
    ends: tuple[End, ...]  # that the clock set


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
    losses: tuple[float, ...] = ()  # remembered by the loss guard
    ends: tuple[End, ...] = ()  # that the clock set
    spent: Spent = field(default_factory=Spent)


class Trainer:
    """Trains one model on one dataset, in `folder`. Used once: `Trainer(...).train()`.

    With the same configuration, data, threads and number of processes, runs are bit-identical, interrupted or not.
    """

    def __init__(
        self, config: RunConfig, data: Dataset, folder: Path, callbacks: Callbacks | None = None,
        make_model: Callable[[bool], nn.Module] | None = None, changes: tuple[Change, ...] = (),
        now: Callable[[], float] = time.perf_counter,
    ) -> None:  # fmt: skip
        """`config` is the run's original configuration, `changes` those made since. `now`: seconds that pass.

        `make_model` builds the model of a fine-tuning run: with the base's weights or, if its argument is True, with
        any weights, to be replaced by a checkpoint's.
        """
        config.check_resolved()
        self.clock = RunClock(now)
        self.process = replace(this_process(), tensor=config.train.tensor_parallel)
        self.config = config.with_train(devices=self.process.world)
        self.data, self.folder, self.changes = data, folder, changes
        self.started = Settings(config.train.on_loss_spike, config.run.threads or None, config.train.steps)
        self.callbacks = callbacks or Callbacks()
        self.listener = self.callbacks if self.process.first else Callbacks()
        self.device = choose_device(config.run.device, self.process)
        self._check()
        train = self.config.train
        decay = train.decay_fraction if train.schedule == "wsd" else None
        self.windows = Windows(data.train, train.context, train.seed, train.packing, train.mask_documents)
        self._make_model = make_model or (lambda resumed: new_model(config))
        self._flops = flops(self.config.spec, train.context, lora=config.model.lora).per_token
        self.peak = 0.0  # FLOP/s of matrix products on a device, for `TrainStep.share_of_peak`; 0: not measured
        self._restored = self.stopping = False
        self._follower: ThreadFollower | None = None
        self._alike = {self.started.threads}  # numbers of threads with the same results
        self.deadline = Deadline(train.minutes * 60, train.steps, decay) if train.minutes else None
        self.history = History()
        self._estimated = self._told = train.steps  # while the clock has not set an end

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
            explained = compile.explained() if self.config.run.compile else nullcontext()
            with explained, PeakMemory(self.device) as self._peak:
                return self._loop(until or sys.maxsize)

    @property
    def steps(self) -> int:
        """The run's total number of steps; while its decay waits for the clock, an estimate, and more than are done."""
        ends = self._ends
        if self._waits:
            return max(self._estimated, self.progress.step + 1)
        return ends[-1].after if ends else self.started.after(self.changes).steps

    @property
    def requested_seconds(self) -> float:
        """The time that the run should take from its start to its end; 0: none was requested."""
        return 0.0 if self.deadline is None or self._ends is None else self.deadline.seconds

    @property
    def _ends(self) -> tuple[End, ...] | None:
        """What the clock has set; None without a time, or if a number of steps was requested on resuming."""
        requested = self.started.after(self.changes).steps != self.config.train.steps
        return None if self.deadline is None or requested else self.progress.ends

    @property
    def _waits(self) -> bool:
        """Whether the learning rate's decay is still to begin when the clock says so."""
        return self._ends == () and self.config.train.schedule == "wsd"

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
        self.clock.resume(self.progress.spent)
        if self.progress.step and self.process.first and (self.folder / METRICS).exists():
            for row in read_metrics(self.folder):
                self.history.add(row)
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
            self.progress = from_plain(Progress, checkpoint.progress)
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
        progress = replace(self.progress, losses=tuple(self.guard.losses), spent=self.clock.spent)
        with self.clock.saving():
            self._writer.save(
                step, self.model, self.learner.optimizer, asdict(progress), self.learner.state_tensors(),
                self._configuration(step),
            )  # fmt: skip
        self._saved = step

    # ---- steps

    def _loop(self, until: int) -> Outcome:
        interrupted = False
        self._follower = self._new_follower()  # now that the changes are known
        if self.process.first:
            self.folder.mkdir(parents=True, exist_ok=True)
        if self.progress.step:
            about = "about " * self._waits
            self.listener.on_message(f"resumed from step {self.progress.step:,} of {about}{self.steps:,}")
        if self.progress.step or self._waits:
            self.listener.on_steps_changed(self.steps, self._waits)
        self.callbacks.on_start()
        try:
            with self._writer:
                if self.config.model.base and self.progress.step == 0:
                    self._evaluate()  # the loss before fine-tuning
                while self.progress.step < min(until, self.steps) and not self.stopping:
                    step = self._step()
                    self._write(step_row(step))
                    self.listener.on_step(step)
                    if step.action == "stop":
                        self._writer.finish()
                        raise RunError(self._ways_to_continue(step))
                    if step.action != "rewind":
                        self._keep_time()
                    with self.clock.beside():
                        self._periodic(min(until, self.steps))
                        self._forecast()
                        self._writer.check()
                interrupted = self.stopping and self.progress.step < min(until, self.steps)
                self._save_if_new()
        finally:
            self.callbacks.on_end()
        if self.config.model.lora and not self.config.train.sharded:
            merge_adapters(self.model)  # the final loss is that of the written model
        val = None if interrupted else self._evaluate()
        done, losses = self.progress, list(self.guard.losses)[-_LAST_STEPS:]
        return Outcome(
            self.model, done.step, done.seconds, done.data_seconds, done.tokens,
            sum(losses) / len(losses) if losses else math.nan, val, max(done.memory, self._peak.so_far()),
            self._peak.own, torch.get_num_threads(), interrupted, done.step >= self.steps, self._ends or (),
        )  # fmt: skip

    # ---- time

    def _keep_time(self) -> None:
        """If the clock says so, begin the decay or move the run's end, with a checkpoint before the next step."""
        ends, done = self._ends, self.progress
        if ends is None or self.deadline is None:
            return
        times = self._times()
        self.deadline.passed(done.step, times)
        end = self.deadline.end(done.step, self.steps, times, self._waits)
        if end is None:
            self._estimate(times)
            return
        waited, done.ends = self._waits, (*ends, end)
        self.deadline.restart()
        with self.clock.beside():
            self._save_if_new()
            self._writer.finish()
        self._write({"step": done.step, "end": asdict(end)})
        self.listener.on_steps_changed(end.after)
        self.listener.on_message(_said(end, waited, self.config.train.warmup_steps or 0))

    def _times(self) -> Times:
        """What the run has taken so far, and what its last evaluation and files will take; equal in all processes."""
        spent, done = self.clock.spent, self.progress
        tokens = min(final_val_tokens(self.config), self.data.val.tokens)
        share = _FORWARD  # of the time of a token in training
        if spent.evaluated and done.seconds and done.tokens:
            share = (spent.evaluating / spent.evaluated) / (done.seconds / done.tokens)
        closing = share * tokens * done.step / max(1, done.tokens)
        sums = total([spent.elapsed, spent.beside, closing, _WRITING * spent.saving], self.process, self.device)
        return Times(*(value / self.process.readers for value in sums))

    def _estimate(self, times: Times) -> None:
        """While the decay waits, estimate the number of steps anew, and tell it if it is another one."""
        if self.deadline is None or not self._waits:
            return
        self._estimated = self.progress.step + self.deadline.steps_left(self.progress.step, times)
        if abs(self._estimated - self._told) > _NEWS * self._told:
            self._told = self._estimated
            self.listener.on_steps_changed(self._told, about=True)

    # ---- a step

    def _step(self) -> TrainStep:
        start = self.clock.now()
        position, settings = self.progress.step + self.progress.skipped, self._settings()
        train = replace(self.config.train, steps=settings.steps)
        process = self.process
        make_batch = self.windows.sequential_batch if train.stateful else self.windows.batch
        batch = place(make_batch(position, train.batch_size, process.reader, process.readers), self.device)
        data_seconds = self.clock.now() - start
        rate = learning_rate(train, self.progress.step, self._ends) * settings.learning_rate_scale
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
        seconds = self.clock.now() - start
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
            if self._wholly(step):
                self._evaluate()
        if run.sample_every and step % run.sample_every == 0 and not self.config.train.sharded:
            self._sample(step)

    def _forecast(self) -> None:
        """Now and then, forecast the held-out loss at the run's end; not in fine-tuning, whose curves are others."""
        step, steps = self.progress.step, self.steps
        if not self.process.first or self.config.model.base or step % max(1, steps // _FORECASTS) or step >= steps:
            return
        expected = self.history.forecast(self._later_rates(step, steps))
        if expected is not None:
            bits = bits_per_byte(expected.nats_per_token, self.data.val)
            row = {**vars(expected), "bits_per_byte": bits, "steps": steps, "about": self._waits}
            self._write({"step": step, "forecast": row})
            self.listener.on_forecast(step, expected)

    def _later_rates(self, step: int, steps: int) -> list[float]:
        """The learning rates of the steps to come, as far as they are known now."""
        settings, ends = self._settings(), self._ends
        if self._waits:
            begin = max(step, decay_start(steps, self.config.train.decay_fraction))
            ends = (End(begin, steps, steps),)
        train = replace(self.config.train, steps=settings.steps)
        return [learning_rate(train, later, ends) * settings.learning_rate_scale for later in range(step, steps)]

    def _wholly(self, step: int) -> bool:
        """Whether to evaluate as at the run's end: once, a quarter through, for the forecast of that, if cheap."""
        tokens, every = min(final_val_tokens(self.config), self.data.val.tokens), self.config.run.evaluate_every or 0
        once = step - every < self.config.train.steps / 4 <= step
        return once and not self.config.model.base and tokens <= self.config.total_tokens / _CHEAP

    def _sample(self, step: int) -> None:
        if self.process.first:
            prompt, context = self.config.run.sample_prompt, self.config.train.context
            text = sample(self.model.eval(), self.data.tokenizer(), prompt, context)
            self.learner.loss_module.train()
            self._write({"step": step, "sample": text})
            self.listener.on_sample(step, text)

    def _evaluate(self, tokens: int | None = None) -> ValLoss:
        """Evaluate on the fixed held-out set, or on a sample of at most `tokens`, limited for a short run."""
        start, stream, most = self.clock.now(), self.data.val, final_val_tokens(self.config)
        affordable = max(2000, self.config.total_tokens // 100)
        taken = most if tokens is None else min(tokens, affordable)
        sample = min(taken, stream.tokens) < min(most, stream.tokens)
        loss = evaluate(
            self.learner.loss_module, val_windows(stream, self.config, taken, sample), self.config.train.micro_batch,
            self.device, self.process, sample,
        )  # fmt: skip
        self.clock.evaluated(start, loss.tokens)
        self._write({"step": self.progress.step, "val": vars(loss)})
        self.listener.on_evaluation(self.progress.step, loss)
        return loss

    def _write(self, row: dict[str, Any]) -> None:
        """A line of metrics.jsonl."""
        if self.process.first:
            self.history.add(row)
            path = self.folder / METRICS
            with writing(path, f"continue: {resume_command(self.folder)}"):
                append_line(path, row)


def _said(end: End, begins: bool, warmup: int) -> str:
    """An end that the clock has set, in a line."""
    if not begins:
        return (
            f"step {end.step:,}: the pace has changed; the run now ends after {end.after:,} steps, not {end.before:,}"
        )
    early = f"; the machine is much slower than planned, and {warmup:,} steps of warm-up did not fit" * (
        end.step < warmup
    )
    return f"step {end.step:,}: the learning rate decays, and the run ends after {end.after:,} steps{early}"


def _dropout_seed(seed: int, position: int, rank: int) -> int:
    """A seed for the dropout of one step on one process."""
    return int(np.random.SeedSequence([seed, position, rank]).generate_state(1, np.uint64)[0] >> 1)
