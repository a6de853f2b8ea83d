"""Loss curves in the terminal, and training runs and studies as figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..base import UsageError
from ..base.units import format_bytes, format_seconds
from ..plots import Spec, mime_bundle
from ..plots.memory import memory
from ..plots.training import Curve, Estimate, Kind, context_study, loss_curves
from . import estimates
from .context_findings import sentences
from .context_results import KindResult, Study, TaskResult
from .run_dir import Measured, Prediction
from .watching import curve_of

_WIDTH, _HEIGHT = 72, 14  # of a curve in the terminal, characters
_NARROWEST = 16  # of its cells
_MARKS = "●○▲△■□"


def curve(folder: Path) -> Curve:
    """A run's losses against tokens; of a rewound run, only the steps that count."""
    found = curve_of(folder)
    points, evaluations = found.points, found.evaluations
    losses = [point.loss for point in points]
    return Curve(
        folder.name, [float(point.tokens) for point in points], losses, smoothed(losses),
        [float(each.tokens) for each in evaluations], [each.nats_per_token for each in evaluations],
    )  # fmt: skip


def curves_figure(folders: Sequence[Path]) -> Spec:
    """Loss against tokens of runs. Raises UsageError for one that has no steps yet."""
    curves = list(map(curve, folders))
    for folder, own in zip(folders, curves, strict=True):
        if not own.losses:
            raise UsageError(f"{folder} has no steps to plot yet")
    return loss_curves(curves)


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
    curves = [(own.tokens, own.means) for own in map(curve, folders) if own.losses]
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


def study_figure(study: Study) -> Spec:
    """A study of context: by position, by visible context, tasks, speed."""
    guesses = {_name(task): task.guess for kind in study.kinds for task in kind.tasks}
    return context_study([_kind(own) for own in study.kinds], guesses)


def study_bundle(study: Study) -> dict[str, Any]:
    """A study for notebooks: its figure, and its first finding as text."""
    return mime_bundle(sentences(study)[0], study_figure(study))


def _kind(own: KindResult) -> Kind:
    return Kind(
        own.kind,
        [_estimate(mean.at, mean.estimate) for mean in own.by_position],
        [_estimate(mean.at, mean.estimate) for mean in own.by_visible],
        own.useful,
        [_estimate(_name(task), task.accuracy) for task in own.tasks],
        [_estimate(f"{name} tokens", speed) for name, speed in own.tokens_per_second.items()],
    )


def _name(task: TaskResult) -> str:
    return f"{task.task} {task.size}"


def _estimate(at: float | str, own: estimates.Estimate) -> Estimate:
    return Estimate(at, own.mean, own.low, own.high)


def run_bundle(folder: Path, measured: Measured | None) -> dict[str, Any]:
    """A run for notebooks: its loss curves, and what was measured as text."""
    text = f"{folder}: " + ("not finished" if measured is None else _measured(measured))
    own = curve(folder)
    return mime_bundle(text, loss_curves([own]) if own.losses else None)


def _measured(own: Measured) -> str:
    loss = f"{own.nats_per_token:.3f} nats a token on held-out text"
    return f"{own.steps:,} steps, {own.tokens:,} tokens in {format_seconds(own.seconds)}, {loss}"


def plan_bundle(own: Prediction) -> dict[str, Any]:
    """The prediction of a run for notebooks: its memory by part, and its time and loss as text."""
    loss = f"{own.nats_per_token:.3f} [{own.low:.3f}, {own.high:.3f}] nats a token on held-out text"
    text = f"predicted: {format_bytes(own.memory)}, {format_seconds(own.seconds)}, {loss}"
    title = f"memory by formula: {format_bytes(sum(own.memory_parts.values()))}"
    return mime_bundle(text, memory([("", own.memory_parts)], {}, title))
