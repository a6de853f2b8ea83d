"""A training run on the terminal: the plan, live progress, predicted and measured."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..base import units
from ..plan import parameters
from ..spec import ModelSpec
from ..train.callbacks import Callbacks, TrainStep
from ._console import messages, output
from ._table import plain_table

if TYPE_CHECKING:
    from ..train.evaluate import ValLoss
    from ..train.forecast import Forecast
    from ..train.pipeline import PreparedRun
    from ..train.run_dir import Measured, Prediction

_QUIET_SECONDS = 10.0  # between lines, without a terminal for a live one
_SHORTEST_BAR, _WIDEST_BAR = 8, 60  # characters
_STOPPING = "stopping after this step, with a checkpoint; Ctrl-C again ends at once"


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
    about = "about " if train.minutes else ""  # until the clock has set its end
    table.add_row("  tokens", f"{about}{tokens:,}: {train.steps:,} steps of {train.batch_size:,} x {train.context:,};"
                  f" {epochs:.2f} epochs, {tokens / count.total:.1f} a parameter")  # fmt: skip
    table.add_row("  learning", f"{train.optimizer}, {train.learning_rate:g} to {train.final_learning_rate:g}"
                  f" {train.schedule}, {train.dtype}, {_threads(config.run.threads)}")  # fmt: skip
    if plan is not None:
        seconds = train.minutes * 60 or plan.seconds
        table.add_row("  time", f"{units.format_seconds(seconds)} at {units.format_rate(plan.tokens_per_second)}"
                      f" tokens/s, {plan.share_of_peak:.0%} of the peak")  # fmt: skip
        table.add_row("  memory", _memory(plan))
        if not config.model.base:
            table.add_row("  loss", f"{plan.nats_per_token:.2f} nats a token ({plan.low:.2f} to {plan.high:.2f}:"
                          f" {plan.interval_is or 'assumed'}), {plan.bits_per_byte:.2f} bits a byte")  # fmt: skip
    table.add_row("  folder", str(run.folder))
    output().print(table)
    output().print()


def _memory(plan: Prediction) -> str:
    formula = units.format_bytes(plan.formula_memory)
    if plan.memory_is == "formula":
        return f"{formula} by formula"
    return f"{units.format_bytes(plan.memory)} probed (formula {formula})"


def print_report(plan: Prediction | None, measured: Measured, folder: Path) -> None:
    """Print predicted and measured, side by side."""
    table = plain_table("", "predicted", "measured", "off by", least=((3,),))
    if requested := measured.requested_seconds:
        taken = measured.wall_seconds
        times = units.format_seconds(requested), units.format_seconds(taken)
        table.add_row("time (requested)", *times, f"{requested / taken - 1:+.1%}")
    rows = [
        ("time of the steps" if requested else "time", "seconds", units.format_seconds),
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
    if measured.ends:
        begun, last = measured.ends[0], measured.ends[-1]
        console.print(
            f"\nthe clock let the rate decay from step {begun.step:,} on and ended the run after {last.after:,}"
        )
    if measured.error is not None:
        console.print(f"\n±: standard error over {measured.clusters:,} {measured.over}")
    if measured.memory_is:
        console.print(f"\nthe peak memory is {measured.memory_is}", style="dim")
    if measured.peak:
        console.print(f"\nthe peak: {measured.peak / 1e9:,.0f} GFLOP/s, {measured.peak_is}", style="dim")
    console.print(
        f"\nmaking batches took {measured.data_share:.2%} of the time. The model is in {folder}:"
        f' nextword complete --model {folder} "..."'
    )


class Display(Callbacks):
    """Progress on standard error: live on a terminal, otherwise a line every few seconds.

    The first Ctrl-C (or SIGTERM) ends training after the current step, with a checkpoint; the second ends it at once.
    """

    def __init__(self, run: PreparedRun) -> None:
        from ..train.distributed import this_process

        process = this_process()
        self.plan, self.first, self.alone = run.record.expected, process.first, process.world == 1
        self.steps, self.about = run.record.current.train.steps, False  # an estimate
        self.requested = run.record.current.train.minutes * 60
        self.loss: float | None = None  # a running mean
        self.val_loss: float | None = None
        self.forecast: Forecast | None = None  # of the held-out loss at the end
        self.step: TrainStep | None = None  # the last one
        self.start = self.last_line = time.perf_counter()
        self.first_step = -1
        self.interrupted = False
        self._handlers: dict[int, Any] = {}
        self._live: Any = None

    def __enter__(self) -> Display:
        if self.first and messages().is_terminal and not messages().is_dumb_terminal:
            from rich.live import Live

            self._live = Live(get_renderable=self._shown, console=messages(), transient=True)
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._restore_handlers()
        if self._live is not None:
            self._live.stop()

    # ---- Ctrl-C

    def on_start(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._handlers[number] = signal.signal(number, self._interrupt)

    def _interrupt(self, number: int, frame: object) -> None:
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True
        if self.first and self._live is None:
            os.write(2, f"{_STOPPING}\n".encode())  # the signal may have come while a console was printing

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
        now = time.perf_counter()
        if self.first_step < 0:
            self.first_step, self.start = step.step, now - step.seconds
        self.step = step
        if not step.action:  # a rejected loss may be NaN
            self.loss = step.loss if self.loss is None else 0.9 * self.loss + 0.1 * step.loss
        if self._live is None and now - self.last_line > _QUIET_SECONDS:
            self.last_line = now
            parts = ", ".join([*self._measurements(step), self._time_left(step)])
            messages().print(f"{self._place(step)}: {parts}", soft_wrap=True)

    def _place(self, step: TrainStep) -> str:
        return f"step {step.step + 1:,}/{'about ' * self.about}{self.steps:,}"

    def _measurements(self, step: TrainStep) -> list[str]:
        parts = [f"loss {self.loss:.3f}"] if self.loss is not None else []
        if self.val_loss is not None:
            parts.append(f"held out {self.val_loss:.3f}")
        if self.forecast is not None:
            half = (self.forecast.high - self.forecast.low) / 2
            parts.append(f"forecast {self.forecast.nats_per_token:.3f} ± {half:.3f}")
        parts += [f"learning rate {step.learning_rate:.2e}", f"gradient norm {step.gradient_norm:.2f}",
                  f"{units.format_rate(step.tokens_per_second)} tokens/s"]  # fmt: skip
        if step.share_of_peak is not None:
            parts.append(f"{step.share_of_peak:.0%} of the peak")
        return [*parts, units.format_bytes(_resident())]

    def _time_left(self, step: TrainStep) -> str:
        a_step = (time.perf_counter() - self.start) / max(1, step.step + 1 - self.first_step)
        left = f"{units.format_seconds(a_step * max(0, self.steps - step.step - 1))} left"
        if self.requested:
            return f"{left} of {units.format_seconds(self.requested)}"
        return f"{left} of {units.format_seconds(self.plan.seconds)} planned" if self.plan is not None else left

    def _shown(self) -> Any:
        """What a terminal shows below the messages: a bar and the last step's numbers."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        if self.step is None:
            return Text("starting", style="dim")
        place, left, width = self._place(self.step), self._time_left(self.step), messages().width
        head = Table.grid(padding=(0, 1))
        room = width - len(place) - len(left) - 3
        bar = ProgressBar(self.steps, self.step.step + 1, width=min(room, _WIDEST_BAR))
        head.add_row(Text(place, style="bold"), *([bar] if room >= _SHORTEST_BAR else []), left)
        lines = [Text(line, style="dim") for line in packed(self._measurements(self.step), width)]
        stopping = [Text(_STOPPING, style="yellow")] if self.interrupted else []
        return Group(head, *lines, *stopping)

    def on_evaluation(self, step: int, loss: ValLoss) -> None:
        self.val_loss = loss.nats_per_token
        error = f" ± {loss.error:.3f}" if loss.error is not None else ""
        messages().print(
            f"step {step:,}: held-out {'sample' if loss.sample else 'loss'} {loss.nats_per_token:.4f}{error}"
            f" nats a token, {loss.bits_per_byte:.4f} bits a byte"
        )

    def on_forecast(self, step: int, forecast: Forecast) -> None:
        self.forecast = forecast

    def on_steps_changed(self, steps: int, about: bool = False) -> None:
        self.steps, self.about = steps, about

    def on_message(self, message: str) -> None:
        messages().print(message, style="yellow", soft_wrap=True)

    def on_sample(self, step: int, text: str) -> None:
        messages().print(f"step {step:,}, a sample: {text}", style="italic")


def packed(parts: Sequence[str], width: int, between: str = "   ") -> list[str]:
    """`parts` in lines of at most `width` characters, none broken unless it is wider."""
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + len(between) + len(part) <= width:
            lines[-1] += between + part
        else:
            lines.append(part)
    return lines


def _resident() -> int:
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
    except (OSError, ValueError, IndexError):
        return 0
