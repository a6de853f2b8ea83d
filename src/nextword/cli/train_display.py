"""A training run on the terminal: the plan, live progress, predicted and measured."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..base import require, units
from ..plan import parameters
from ..spec import ModelSpec
from ..train.callbacks import Callbacks, TrainStep
from ._console import messages, output
from ._table import plain_table

if TYPE_CHECKING:
    from torch import nn

    from ..train.evaluate import ValLoss
    from ..train.pipeline import PreparedRun
    from ..train.run_dir import Measured, Prediction

_QUIET_SECONDS = 10.0  # between lines, without a terminal for a live one
_SAMPLE_TOKENS = 40


def shape_line(spec: ModelSpec) -> str:
    """A one-line summary of the model."""
    attention = f", {spec.heads} heads, MLP {spec.mlp_width:,}" if spec.kind == "transformer" else ""
    layers = f"{spec.layers} {'layer' if spec.layers == 1 else 'layers'}"
    return f"{spec.kind}: {layers}, width {spec.width:,}{attention}, vocabulary {spec.vocabulary:,}"


def _threads(count: int) -> str:
    return f"{count} {'thread' if count == 1 else 'threads'}"


def print_plan(run: PreparedRun) -> None:
    """Print the plan on standard output."""
    config, data, plan = run.record.config, run.data, run.record.prediction
    train, tokens, count = config.train, config.total_tokens, parameters(config.spec)
    table = plain_table("", "", right=False)
    table.show_header = False
    table.title, table.title_justify, table.title_style = "the plan", "left", "bold"
    table.add_row("  model", shape_line(config.spec))
    table.add_row("  parameters", f"{count.total:,} ({count.non_embedding:,} without embedding and head)")
    epochs = tokens / max(1, data.train.tokens)
    table.add_row("  text", f"{units.format_count(data.train.tokens)} tokens of {data.bytes_per_token:.2f} bytes"
                  f" ({units.format_count(data.val.tokens)} more held out)")  # fmt: skip
    table.add_row("  tokens", f"{tokens:,}: {train.steps:,} steps of {train.batch_size:,} x {train.context:,};"
                  f" {epochs:.2f} epochs, {tokens / count.total:.1f} a parameter")  # fmt: skip
    table.add_row("  learning", f"{train.optimizer}, {train.learning_rate:g} to {train.final_learning_rate:g}"
                  f" {train.schedule}, {train.dtype}, {_threads(config.run.threads)}")  # fmt: skip
    if plan is not None:
        table.add_row("  time", f"{units.format_seconds(plan.seconds)} at {units.format_rate(plan.tokens_per_second)}"
                      f" tokens/s, {plan.share_of_peak:.0%} of the peak")  # fmt: skip
        table.add_row("  memory", units.format_bytes(plan.memory))
        if not config.model.base:
            table.add_row("  loss", f"{plan.nats_per_token:.2f} nats a token ({plan.low:.2f} to {plan.high:.2f}:"
                          f" {plan.interval_is or 'assumed'}), {plan.bits_per_byte:.2f} bits a byte")  # fmt: skip
    table.add_row("  folder", str(run.folder))
    output().print(table)
    output().print()


def print_report(plan: Prediction | None, measured: Measured, folder: Path) -> None:
    """Print predicted and measured, side by side."""
    table = plain_table("", "predicted", "measured", "off by", least=((3,),))
    rows = [
        ("time", "seconds", units.format_seconds),
        ("tokens/s", "tokens_per_second", units.format_rate),
        ("share of peak", "share_of_peak", lambda value: f"{value:.1%}"),
        ("peak memory", "memory", units.format_bytes),
        ("held-out loss, nats a token", "nats_per_token", lambda value: f"{value:.4f}"),
        ("held-out loss, bits a byte", "bits_per_byte", lambda value: f"{value:.4f}"),
    ]
    for name, key, show in rows:
        value = getattr(measured, key)
        expected = getattr(plan, key) if plan is not None else None
        known = expected is not None and expected == expected
        off = f"{expected / value - 1:+.1%}" if known and value else ""
        error = f" ± {measured.error:.4f}" if key == "nats_per_token" and measured.error is not None else ""
        table.add_row(name, show(expected) if known else "", show(value) + error, off)
    if measured.nats_before is not None:
        table.add_row("held-out loss before training", "", f"{measured.nats_before:.4f}", "")
    console = output()
    console.print()
    console.print(table)
    if measured.error is not None:
        console.print(f"\n±: standard error over {measured.clusters:,} {measured.over}")
    if measured.peak:
        console.print(f"\nthe peak: {measured.peak / 1e9:,.0f} GFLOP/s, {measured.peak_is}", style="dim")
    console.print(
        f"\nmaking batches took {measured.data_share:.2%} of the time. The model is in {folder}:"
        f' nextword complete --model {folder} "..."'
    )


class Display(Callbacks):
    """Progress on standard error: a live line on a terminal, otherwise a line every few seconds.

    The first Ctrl-C (or SIGTERM) ends training after the current step, with a checkpoint; the second ends it at once.
    """

    def __init__(self, run: PreparedRun) -> None:
        from ..train.distributed import this_process

        process = this_process()
        self.run, self.first, self.alone = run, process.first, process.world == 1
        self.config = run.record.current
        self.steps = self.config.train.steps
        self.live = self.first and messages().is_terminal and not messages().is_dumb_terminal
        self.loss: float | None = None
        self.val_loss: float | None = None
        self.start = self.last_line = time.perf_counter()
        self.first_step = -1
        self.events = _Events(run.folder) if self.config.run.tensorboard and self.first else None
        self.interrupted = False
        self._handlers: dict[int, Any] = {}
        self._progress: Any = None

    def __enter__(self) -> Display:
        if self.live:
            from rich.progress import BarColumn, Progress, TextColumn

            self._progress = Progress(
                TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[status]}"),
                console=messages(), transient=True,
            )  # fmt: skip
            self._progress.start()
            self._task = self._progress.add_task("step 0", total=self.steps, status="")
        return self

    def __exit__(self, *error: object) -> None:
        self._restore_handlers()
        if self._progress is not None:
            self._progress.stop()
        if self.events is not None:
            self.events.close()

    # ---- Ctrl-C

    def on_start(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._handlers[number] = signal.signal(number, self._interrupt)

    def _interrupt(self, number: int, frame: object) -> None:
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True

    def on_end(self) -> None:
        if self.alone:  # else torchrun's SIGTERM could end this process before it has said which one was lost
            self._restore_handlers()

    def _restore_handlers(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()

    def should_stop(self) -> bool:
        return self.interrupted

    # ---- output

    def on_step(self, step: TrainStep) -> None:
        if self.first_step < 0:
            self.first_step, self.start = step.step, time.perf_counter() - step.seconds
        self.loss = step.loss if self.loss is None or self.loss != self.loss else 0.9 * self.loss + 0.1 * step.loss
        if self.events is not None:
            self.events.write(step.step, loss=step.loss, learning_rate=step.learning_rate, norm=step.gradient_norm)
        now = time.perf_counter()
        if self._progress is not None:
            self._progress.update(
                self._task, total=self.steps, completed=step.step + 1,
                description=f"step {step.step + 1:,}/{self.steps:,}", status=self._status(step, now),
            )  # fmt: skip
        elif now - self.last_line > _QUIET_SECONDS:
            self.last_line = now
            messages().print(f"step {step.step + 1:,}/{self.steps:,}: {self._status(step, now)}")

    def _status(self, step: TrainStep, now: float) -> str:
        a_step = (now - self.start) / (step.step + 1 - self.first_step)
        left = a_step * (self.steps - step.step - 1)
        parts = [f"loss {self.loss:.3f}"]
        if self.val_loss is not None:
            parts.append(f"held out {self.val_loss:.3f}")
        parts += [f"{units.format_rate(step.tokens / step.seconds)} tokens/s", f"{units.format_seconds(left)} left"]
        if (plan := self.run.record.expected) is not None:
            parts.append(f"of {units.format_seconds(plan.seconds)} planned")
        return ", ".join([*parts, units.format_bytes(_resident())])

    def on_evaluation(self, step: int, loss: ValLoss) -> None:
        self.val_loss = loss.nats_per_token
        if self.events is not None:
            self.events.write(step, val=loss.nats_per_token)
        error = f" ± {loss.error:.3f}" if loss.error is not None else ""
        messages().print(
            f"step {step:,}: held-out loss{' on a sample' if loss.sample else ''} {loss.nats_per_token:.4f}{error}"
            f" nats a token, {loss.bits_per_byte:.4f} bits a byte"
        )

    def on_steps_changed(self, steps: int) -> None:
        self.steps = steps

    def on_message(self, message: str) -> None:
        messages().print(message, style="yellow")

    def on_sample(self, step: int, model: nn.Module) -> None:
        from ..engine import Engine, Request, SamplingParams, StopConfig
        from ..text import tokenizer_from_folder
        from ..train.sampling import backend_of

        tokenizer, prompt = tokenizer_from_folder(self.run.folder), self.config.run.sample_prompt
        ids = tokenizer.encode(prompt) if prompt else [min(tokenizer.stop_ids, default=0)]
        context = self.config.train.context
        ids = ids[-max(1, context - _SAMPLE_TOKENS) :]
        stop = StopConfig(min(_SAMPLE_TOKENS, max(1, context - len(ids) - 1)))
        backend = backend_of(model)
        pages = -(-(len(ids) + _SAMPLE_TOKENS) // backend.page_size) + 2  # of a recurrent state, snapshots
        engine = Engine(backend, tokenizer, cache_bytes=pages * backend.page_bytes)  # the run's memory is measured
        tokens = engine.submit(Request(tuple(ids), SamplingParams(temperature=0.8, seed=0), stop))
        text = " ".join((prompt + "".join(token.text for token in tokens)).split())
        messages().print(f"step {step:,}: {text}", style="italic")


class _Events:
    """TensorBoard event files."""

    def __init__(self, folder: Path) -> None:
        require("tensorboard", "event files")
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder / "tensorboard"))

    def write(self, step: int, **values: float) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


def _resident() -> int:
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
    except (OSError, ValueError, IndexError):
        return 0
