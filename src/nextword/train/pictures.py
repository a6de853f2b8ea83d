"""Loss curves: in the terminal, and with matplotlib (the extra `plot`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..base import UsageError, check_picture, save_picture
from ..base.pictures import GREY, PALETTE, new_figure
from .metrics import read_metrics

_WIDTH, _HEIGHT = 72, 14  # of a curve in the terminal, characters
_NARROWEST = 16  # of its cells
_MARKS = "●○▲△■□"


def curve(folder: Path) -> tuple[list[float], list[float], list[float], list[float]]:
    """Tokens and loss of each step that counts, and of each evaluation: a rewound run's earlier steps do not."""
    steps: dict[int, tuple[int, float]] = {}
    val: dict[int, float] = {}
    for row in read_metrics(folder):
        step = int(row["step"])
        if "val" in row:
            val[step] = row["val"]["nats_per_token"]
        elif "loss" in row:
            while steps and next(reversed(steps)) >= step:
                steps.popitem()
            steps[step] = (int(row["tokens"]), float(row["loss"]))
    seen, tokens, losses = 0, [], []
    at = {0: 0}
    for step in sorted(steps):
        seen += steps[step][0]
        tokens.append(float(seen))
        losses.append(steps[step][1])
        at[step + 1] = seen
    evaluated = [step for step in sorted(val) if step in at]
    return tokens, losses, [float(at[step]) for step in evaluated], [val[step] for step in evaluated]


def draw_curves(folders: Sequence[Path], path: Path) -> None:
    """Plot loss against tokens: faint per step, a line for the running mean, dots for held-out loss."""
    check_picture(path)
    figure, axes = new_figure(7.5, 4.4)
    lowest, highest = math.inf, 0.0
    for number, folder in enumerate(folders):
        tokens, losses, at, val = curve(folder)
        if not losses:
            raise UsageError(f"{folder} has no steps to plot yet")
        colour = PALETTE[number % len(PALETTE)]
        axes.plot(tokens, losses, color=colour, alpha=0.25, linewidth=0.8)
        axes.plot(tokens, smoothed(losses), color=colour, linewidth=1.6, label=folder.name)
        if val:
            axes.plot(at, val, "o", color=colour, markersize=4.5, markeredgecolor="white")
            axes.annotate(f"{val[-1]:.3f}", (at[-1], val[-1]), textcoords="offset points", xytext=(6, 0),
                          fontsize=8, color=colour, va="center")  # fmt: skip
        finite = [loss for loss in [*losses[len(losses) // 50 :], *val] if math.isfinite(loss)]
        lowest, highest = min([lowest, *finite]), max([highest, *finite])
    axes.set(xlabel="tokens seen", ylabel="loss, nats a token", ylim=(min(lowest, highest) - 0.1, highest + 0.1))
    axes.set_title("training loss (line: running mean) and held-out loss (dots)", loc="left", fontsize=10)
    axes.legend(frameon=False, fontsize=9)
    axes.margins(x=0.06)
    save_picture(figure, path)


def smoothed(losses: Sequence[float], share: float = 0.02) -> list[float]:
    """An exponential running mean over about `share` of the steps."""
    keep = 1 - 1 / max(1.0, share * len(losses))
    mean, weight, means = 0.0, 0.0, []
    for loss in losses:
        if math.isfinite(loss):
            mean, weight = keep * mean + (1 - keep) * loss, keep * weight + (1 - keep)
        means.append(mean / weight if weight else math.nan)
    return means


def terminal_curve(folders: Sequence[Path], width: int = 80) -> str:
    """The running means as text, one mark per run, at most `width` characters wide."""
    curves = [(tokens, smoothed(losses)) for tokens, losses, _, _ in map(curve, folders) if losses]
    if not curves:
        return "no steps yet"
    skip = [max(1, len(losses) // 50) for _, losses in curves]
    shown = [loss for (_, losses), n in zip(curves, skip, strict=True) for loss in losses[n - 1 :] if loss == loss]
    if not shown:
        return "no step with a finite loss yet"
    low, high = min(shown), max(shown)
    most = max(tokens[-1] for tokens, _ in curves)
    wide = max(_NARROWEST, min(_WIDTH, width - 9))  # behind the axis
    grid = [[" "] * wide for _ in range(_HEIGHT)]
    for number, (tokens, losses) in enumerate(curves):
        for place, loss in zip(tokens, losses, strict=True):
            if loss == loss and loss <= high:
                row = round((high - loss) / max(high - low, 1e-9) * (_HEIGHT - 1))
                grid[row][min(wide - 1, int(place / most * (wide - 1)))] = _MARKS[number % len(_MARKS)]
    lines = [f"{high - (high - low) * row / (_HEIGHT - 1):7.3f} ┤{''.join(cells)}" for row, cells in enumerate(grid)]
    legend = "   ".join(f"{_MARKS[n % len(_MARKS)]} {folder.name}" for n, folder in enumerate(folders))
    return "\n".join([*lines, f"{'':8}└{'─' * wide}", f"{'':9}0 to {most:,.0f} tokens   {legend}"])


def draw_study(study: Any, path: Path) -> None:
    """Plot a `context_study.Study` in four panels: by position, by visible context, tasks, speed."""
    check_picture(path)
    figure, panels = new_figure(10, 7, 2, 2)
    (position, visible), (tasks, speed) = panels
    names = [(result.task, result.size) for result in study.kinds[0].tasks]
    for number, model in enumerate(study.kinds):
        colour = PALETTE[number % len(PALETTE)]
        for axes, means in ((position, model.by_position), (visible, model.by_visible)):
            values = [m.estimate for m in means]
            axes.errorbar([m.at for m in means], [v.mean for v in values], [v.margin for v in values], color=colour,
                          marker="o", markersize=3, linewidth=1.3, capsize=2, label=model.kind)  # fmt: skip
        if model.useful:
            visible.axvline(model.useful, color=colour, linewidth=0.8, linestyle=":")
        shift = (number - (len(study.kinds) - 1) / 2) * 0.2
        _bars(tasks, [result.accuracy for result in model.tasks], shift, colour)
        _bars(speed, list(model.tokens_per_second.values()), shift, colour)
        labels = list(model.tokens_per_second)
        speed.set_xticks(range(len(labels)), [f"{label} tokens" for label in labels], fontsize=8)
    position.set(xscale="log", xlabel="tokens before it in the context", ylabel="nats a token")
    position.set_title("held-out loss by position (95% intervals)", loc="left", fontsize=10)
    position.legend(frameon=False, fontsize=9)
    visible.set(xscale="log", xlabel="visible tokens", ylabel="nats a token")
    visible.set_title("loss given only the last tokens; dotted: tokens beyond are useful", loc="left", fontsize=10)
    tasks.set(ylabel="answers right", ylim=(0, 1.05))
    tasks.set_xticks(range(len(names)), [f"{task} {size}" for task, size in names], fontsize=8)
    tasks.axhline(1 / 8, color=GREY, linewidth=0.8, linestyle=":")
    tasks.set_title("copying over a delay, recall of pairs; dotted: a guess", loc="left", fontsize=10)
    speed.set(ylabel="tokens a second")
    speed.set_title("training on one row: threads x length", loc="left", fontsize=10)
    save_picture(figure, path)


def _bars(axes: Any, values: Sequence[Any], shift: float, colour: str) -> None:
    """Estimates as bars with intervals, shifted from the ticks."""
    places = [place + shift for place in range(len(values))]
    margins = [value.margin for value in values]
    axes.bar(places, [value.mean for value in values], 0.18, color=colour, yerr=margins, capsize=2, ecolor="#555555")
