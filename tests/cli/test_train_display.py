"""The live view of a training run at several widths, its lines in a file, and what Ctrl-C says."""

from __future__ import annotations

import io
import signal
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from nextword.cli import train_display
from nextword.cli.train_display import Display, packed
from nextword.train.callbacks import TrainStep
from nextword.train.evaluate import ValLoss
from nextword.train.forecast import Forecast

STEP = TrainStep(41, 3.25, 1.5e-3, 0.42, 4096, 0.5, 0.01, share_of_peak=0.31)


@pytest.fixture
def display() -> Display:
    """A run of 1,000 steps that was planned to take 8 minutes, after step 42."""
    record: Any = SimpleNamespace(
        expected=SimpleNamespace(seconds=480.0), current=SimpleNamespace(train=SimpleNamespace(steps=1000, minutes=0.0))
    )
    made = Display(SimpleNamespace(record=record))  # type: ignore[arg-type]
    made.on_step(STEP)
    return made


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    stream = io.StringIO()
    console = Console(file=stream, width=60)
    monkeypatch.setattr(train_display, "messages", lambda: console)
    return stream


@pytest.mark.parametrize("width", [40, 60, 80, 140])
def test_a_terminal_of_any_width_shows_every_number_unbroken(
    width: int, display: Display, monkeypatch: pytest.MonkeyPatch
) -> None:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    display.on_step(replace(STEP, step=499))
    monkeypatch.setattr(train_display, "messages", lambda: console)
    with console.capture() as shown:
        console.print(display._shown())
    lines = shown.get().splitlines()
    assert max(map(len, lines)) <= width
    for part in ("step 500/1,000", "loss 3.250", "learning rate 1.50e-03", "gradient norm 0.42", "8,192 tokens/s",
                 "31% of the peak"):  # fmt: skip
        assert sum(part in line for line in lines) == 1
    assert "of 8.00 min planned" in " ".join(" ".join(lines).split())
    assert any("━" in line for line in lines) == (width > 40)


def test_steps_that_are_an_estimate_are_called_so(display: Display) -> None:
    display.on_steps_changed(1200, about=True)
    assert display._place(STEP) == "step 42/about 1,200"
    display.on_steps_changed(1100)
    assert display._place(STEP) == "step 42/1,100"


def test_the_forecast_of_the_end_is_shown_with_its_interval(display: Display) -> None:
    display.on_forecast(42, Forecast(2.5, 2.4, 2.6))
    assert "forecast 2.500 ± 0.100" in display._measurements(STEP)


def test_a_part_is_broken_only_if_it_is_wider_than_the_line() -> None:
    assert packed(["aa", "bbb", "c" * 12, "d"], 9) == ["aa   bbb", "c" * 12, "d"]
    assert packed([], 9) == []


def test_a_file_gets_one_line_with_the_same_numbers(
    display: Display, printed: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_display, "_QUIET_SECONDS", -1.0)
    display.on_evaluation(42, ValLoss(3.5, 1.25, 1000, sample=True))
    display.on_step(replace(STEP, step=42))
    assert "step 42: held-out sample 3.5000 nats a token, 1.2500 bits a byte" in " ".join(printed.getvalue().split())
    line = printed.getvalue().splitlines()[-1]
    assert line.startswith(
        "step 43/1,000: loss 3.250, held out 3.500, learning rate 1.50e-03, gradient norm 0.42, 8,192 t"
    )
    assert line.endswith("left of 8.00 min planned")


def test_a_rejected_step_does_not_spoil_the_running_loss(display: Display) -> None:
    display.on_step(replace(STEP, step=42, loss=float("nan"), action="skip", reason="the loss is nan"))
    assert display.loss == 3.25


def test_the_first_signal_says_what_it_does_and_the_second_ends_at_once(
    display: Display, capfd: pytest.CaptureFixture[str]
) -> None:
    display.on_start()
    try:
        assert not display.should_stop()
        signal.raise_signal(signal.SIGINT)
        assert display.should_stop()
        assert capfd.readouterr().err == "stopping after this step, with a checkpoint; Ctrl-C again ends at once\n"
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    finally:
        display.on_end()
