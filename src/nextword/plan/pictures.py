"""Pictures of plans. matplotlib is imported when one is drawn, and only its file writers: no window is opened."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..base import RunError, UsageError
from ..base.units import format_count
from ..spec import ModelSpec
from .budget import Budget, surface
from .fitting import LawFit
from .hardware import Device
from .laws import law, optimum
from .remedies import Diagnosis
from .training import Memory, training_memory

_KINDS = (".svg", ".png", ".pdf")
_COLOURS = (
    "#4c78a8",
    "#9ecae9",
    "#f58518",
    "#ffbf79",
    "#54a24b",
    "#e45756",
    "#b279a2",
    "#bab0ac",
    "#72b7b2",
    "#ff9da6",
    "#eeca3b",
)


def _figure(path: Path, width: float, height: float) -> tuple[Any, Any]:
    if path.suffix.lower() not in _KINDS:
        raise UsageError(f"{path}: a picture's name ends in {', '.join(_KINDS)}")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError(f"pictures need matplotlib: pip install 'nextword[plot]' ({error})") from None
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Any, path: Path) -> None:
    """Write beside the target and rename, so that a picture is whole or not there."""
    part = path.with_name(f".{path.name}.part{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(part, dpi=150)
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise RunError(f"{path}: {error.strerror or error}; the picture is not written") from error


def draw_memory(memory: Memory, devices: Sequence[Device], title: str, path: Path) -> None:
    """Memory as one stacked bar against each device's line."""
    figure, axes = _figure(path, 8, 3.2)
    _bar(axes, 0, memory, labelled=True)
    _device_lines(axes, devices, memory.total)
    axes.set_yticks([])
    axes.set_ylim(-0.5, 0.75)
    axes.set_xlabel("GB (1e9 bytes)")
    axes.set_title(f"{title}: {memory.total / 1e9:,.3g} GB", loc="left")
    axes.legend(ncols=4, loc="upper left", bbox_to_anchor=(0, -0.28), frameon=False, fontsize="small")
    _save(figure, path)


def draw_remedies(spec: ModelSpec, found: Diagnosis, title: str, path: Path, most: int = 6) -> None:
    """The run as asked for and the ways to make it fit, as stacked bars against the device's line."""
    rows = [("as asked for", training_memory(spec, found.asked))]
    for remedy in found.remedies[:most]:
        names = " + ".join(change.name for change in remedy.changes)
        rows.append((f"{names}\n{remedy.time:.2f}x the time", training_memory(spec, remedy.run)))
    figure, axes = _figure(path, 9, 1.6 + 0.55 * len(rows))
    names_seen: set[str] = set()
    for height, (_, memory) in enumerate(rows):
        _bar(axes, height, memory, labelled=True, seen=names_seen)
    _device_lines(axes, [found.device], max(memory.total for _, memory in rows))
    axes.set_yticks(range(len(rows)), [name for name, _ in rows], fontsize="small")
    axes.invert_yaxis()
    axes.set_xlabel("GB (1e9 bytes)")
    axes.set_title(title, loc="left")
    figure.legend(ncols=5, loc="outside lower left", frameon=False, fontsize="small")
    _save(figure, path)


def _bar(axes: Any, height: int, memory: Memory, labelled: bool, seen: set[str] | None = None) -> None:
    left = 0.0
    seen = set() if seen is None else seen
    order = (
        "weights", "frozen weights", "master weights", "gradients", "optimizer states", "activations", "logits",
        "fragmentation", "key-value cache",
        "gathered layers", "working space",
    )  # fmt: skip
    for part in memory.parts:
        colour = _COLOURS[order.index(part.name) % len(_COLOURS)] if part.name in order else "#dddddd"
        label = part.name if labelled and part.name not in seen else None
        seen.add(part.name)
        axes.barh(height, part.value / 1e9, left=left, color=colour, label=label, edgecolor="white", linewidth=0.5)
        left += part.value / 1e9


def _device_lines(axes: Any, devices: Sequence[Device], total: float) -> None:
    """Lines of devices; equal sizes share one name, and names keep clear of each other."""
    sizes: dict[float, list[str]] = {}
    for device in devices:
        sizes.setdefault(device.memory, []).append(device.name)
    widest = max([total, *sizes]) / 1e9
    axes.set_xlim(0, 1.12 * widest)
    for memory, names in sizes.items():
        axes.axvline(memory / 1e9, color="#222222", linestyle="--", linewidth=1)
        text = f" {', '.join(names)} {memory / 1e9:,.0f} GB"
        axes.annotate(text, (memory / 1e9, 1), xycoords=("data", "axes fraction"), fontsize="small", va="top")


def draw_surface(found: Budget, path: Path) -> None:
    """The loss over size and data, lines of equal budget, and every law's optimum."""
    figure, axes = _figure(path, 7.5, 5.5)
    chosen = law(found.best.law)
    sizes, tokens, losses = surface(found.best, chosen)
    lines = axes.contour(sizes, tokens, losses, levels=18, cmap="viridis", linewidths=1)
    axes.clabel(lines, fmt="%.2f", fontsize="x-small")
    for factor, style in ((0.1, ":"), (1.0, "-"), (10.0, ":")):
        budget = found.best.budget * factor
        axes.plot(sizes, [budget / (6 * n) for n in sizes], color="#e45756", linestyle=style, linewidth=1.2)
        edge = budget / (6 * tokens[-1])
        if sizes[0] < edge < sizes[-1]:
            axes.annotate(f"{budget:.2g} FLOPs", (edge, tokens[-1]), fontsize="x-small", color="#e45756", va="bottom")
    for each, marker in zip(found.optima, "o^sDPX*", strict=False):
        if sizes[0] < each.parameters < sizes[-1] and tokens[0] < each.tokens < tokens[-1]:
            axes.plot(each.parameters, each.tokens, marker, color="#222222", label=each.law, markersize=6)
    axes.plot(found.choice.parameters, found.choice.tokens, "o", mfc="none", mec="#e45756", ms=12, label="the model")
    axes.set(xscale="log", yscale="log", xlim=(sizes[0], sizes[-1]), ylim=(tokens[0], tokens[-1]))
    axes.set(xlabel="parameters", ylabel="tokens")
    title = f"loss by {chosen.name}, nats a token; lines of {found.best.budget:.3g} FLOPs, a tenth and ten times"
    axes.set_title(title, loc="left", fontsize="medium", pad=16)
    axes.legend(frameon=False, fontsize="small", loc="lower left")
    _save(figure, path)


def draw_law(fit: LawFit, path: Path) -> None:
    """Loss against compute with the frontier, and IsoFLOP curves: loss against size at a few budgets."""
    import numpy as np

    figure, left = _figure(path, 11, 4.6)
    left.remove()
    left, right = figure.subplots(1, 2)
    sizes, flops, losses = (np.asarray(x) for x in (fit.runs.parameters, fit.runs.flops, fit.runs.losses))
    colours = np.log10(sizes)
    dots = left.scatter(flops, losses, c=colours, s=10, cmap="viridis")
    figure.colorbar(dots, ax=left, label="log10 of parameters")
    budgets = np.geomspace(flops.min(), 10 * flops.max(), 60)
    best = [optimum(float(c), fit.law) for c in budgets]
    left.plot(budgets, [each.loss for each in best], color="#e45756", label="efficient frontier")
    if fit.draws:
        spread = np.array([[optimum(float(c), draw).loss for c in budgets] for draw in fit.draws])
        low, high = np.quantile(spread, [0.025, 0.975], axis=0)
        left.fill_between(budgets, low, high, color="#e45756", alpha=0.2, linewidth=0, label="95%")
    left.set(xscale="log", xlabel="FLOPs (6ND)", ylabel="loss, nats a token")
    left.legend(frameon=False, fontsize="small")
    for number, budget in enumerate(np.geomspace(flops.min() * 2, flops.max(), 5)):
        _isoflop(right, fit, float(budget), _COLOURS[number * 2 % len(_COLOURS)])
    right.set(xscale="log", xlabel="parameters", ylabel="loss, nats a token", ylim=_limits(losses))
    right.legend(frameon=False, fontsize="x-small", title="IsoFLOP, optimum", title_fontsize="x-small")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def _isoflop(axes: Any, fit: LawFit, budget: float, colour: str) -> None:
    import numpy as np

    best = optimum(budget, fit.law)
    sizes = np.geomspace(best.parameters / 12, best.parameters * 12, 60)
    curve = [fit.law.loss(float(n), budget / (6 * float(n))) for n in sizes]
    axes.plot(sizes, curve, color=colour, label=f"{budget:.1e}: {format_count(best.parameters)}")
    axes.plot(best.parameters, best.loss, "o", color=colour, markersize=5)
    near = [(n, loss) for n, c, loss in zip(fit.runs.parameters, fit.runs.flops, fit.runs.losses, strict=True)
            if abs(np.log(c / budget)) < 0.3]  # fmt: skip
    axes.scatter([n for n, _ in near], [loss for _, loss in near], color=colour, s=10, alpha=0.6)


def _limits(losses: Any) -> tuple[float, float]:
    low, high = float(losses.min()), float(losses.max())
    return low - 0.05 * (high - low), high + 0.05 * (high - low)
