"""Plots of plans, with matplotlib's file writers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..base import check_picture, save_picture
from ..base.pictures import BLUE, CYAN, GREEN, GREY, INK, ORANGE, PALE, PALETTE, PURPLE, RED, new_figure
from ..base.units import format_bytes, format_count
from .budget import BudgetPlan, surface
from .fit_search import Diagnosis
from .fitting import LawFit
from .hardware import Device
from .laws import law, optimum
from .training import Memory

_PARTS = {
    "weights": BLUE,
    "frozen weights": "#b8ccf2",
    "16-bit copies of weights": "#86a6e6",
    "master weights": ORANGE,
    "gradients": "#f0c68c",
    "optimizer states": GREEN,
    "activations": RED,
    "logits": PURPLE,
    "gathered layers": "#ecaaa6",
    "key-value cache": CYAN,
    "state": CYAN,
    "working space": "#eeca3b",
    "fragmentation": GREY,
    "runtime": PALE,
}
_NEAR = 0.15  # in log FLOPs; runs shown with an IsoFLOP curve
_APART = 1.0  # in log FLOPs, between two such curves

_SMALL: dict[str, Any] = {
    "fontsize": "x-small",
    "textcoords": "offset points",
    "va": "bottom",
    "bbox": {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5},
}


def draw_memory(memory: Memory, devices: Sequence[Device], title: str, path: Path) -> None:
    """Memory as one stacked bar against each device's line."""
    check_picture(path)
    figure, axes = new_figure(8, 2.8)
    _bar(axes, 0, memory, set())
    axes.set_title(f"{title}: {format_bytes(memory.total)}", loc="left")
    _device_lines(axes, devices, memory.total)
    axes.set_yticks([])
    axes.set_ylim(-0.5, 0.5)
    axes.set_xlabel("GB (1e9 bytes)")
    figure.legend(ncols=5, loc="outside lower left", frameon=False, fontsize="small")
    save_picture(figure, path)


def draw_remedies(plan: Diagnosis, title: str, path: Path, most: int = 6) -> None:
    """The requested run and its remedies, as stacked bars against the device's line."""
    rows = [("as requested", plan.memory)]
    for remedy in plan.remedies[:most]:
        result = "" if remedy.same_result else ", changes the result"
        rows.append((f"{remedy.name}\n{remedy.time:.2f}x the time{result}", remedy.memory))
    check_picture(path)
    figure, axes = new_figure(9, 1.6 + 0.55 * len(rows))
    seen: set[str] = set()
    for height, (_, memory) in enumerate(rows):
        _bar(axes, height, memory, seen)
    axes.set_title(title, loc="left")
    _device_lines(axes, [plan.device], max(memory.total for _, memory in rows))
    axes.set_yticks(range(len(rows)), [name for name, _ in rows], fontsize="small")
    axes.invert_yaxis()
    axes.set_xlabel("GB (1e9 bytes)")
    figure.legend(ncols=5, loc="outside lower left", frameon=False, fontsize="small")
    save_picture(figure, path)


def _bar(axes: Any, height: int, memory: Memory, seen: set[str]) -> None:
    """One bar; new parts are added to the legend."""
    left = 0.0
    for part in memory.parts:
        axes.barh(
            height, part.value / 1e9, left=left, color=_PARTS.get(part.name, GREY), edgecolor="white",
            label=None if part.name in seen else part.name, linewidth=0.5,
        )  # fmt: skip
        seen.add(part.name)
        left += part.value / 1e9


def _device_lines(axes: Any, devices: Sequence[Device], total: float) -> None:
    """Lines of devices; equal sizes share a label, and labels that would overlap go on separate lines."""
    sizes: dict[float, list[str]] = {}
    for device in sorted(devices, key=lambda device: device.memory):
        sizes.setdefault(device.memory / 1e9, []).append(device.name)
    widest = max([total / 1e9, *sizes])
    axes.set_xlim(0, 1.15 * widest)
    ends: list[float] = []  # of the last name on each line of names
    for memory, names in sizes.items():
        axes.axvline(memory, color=INK, linestyle="--", linewidth=1)
        text = f"{', '.join(names)} {memory:,.0f} GB"
        row = next((row for row, end in enumerate(ends) if end < memory), len(ends))
        ends[row : row + 1] = [memory + 0.0125 * len(text) * widest]
        axes.annotate(text, (memory, 1), xycoords=("data", "axes fraction"), xytext=(3, 3 + 11 * row),
                      textcoords="offset points", fontsize="small", va="bottom")  # fmt: skip
    axes.title.set_position((0, 1))
    axes.set_title(axes.get_title(loc="left"), loc="left", pad=8 + 11 * len(ends))


def draw_surface(plan: BudgetPlan, path: Path) -> None:
    """The loss over size and data, lines of equal budget, and every law's optimum."""
    check_picture(path)
    figure, axes = new_figure(7.5, 5.5)
    chosen = law(plan.best.law)
    sizes, tokens, losses = surface(plan.best, chosen)
    axes.set(xscale="log", yscale="log", xlim=(sizes[0], sizes[-1]), ylim=(tokens[0], tokens[-1]))
    axes.set(xlabel="parameters", ylabel="tokens")
    lines = axes.contour(sizes, tokens, losses, levels=18, cmap="viridis", linewidths=0.8, alpha=0.7)
    axes.clabel(lines, fmt="%.2f", fontsize="x-small")
    for factor, style in ((0.1, ":"), (1.0, "-"), (10.0, ":")):
        budget = plan.best.budget * factor
        axes.plot(sizes, [budget / (6 * n) for n in sizes], color=RED, linestyle=style, linewidth=1.2)
        at = 8 * plan.best.parameters
        axes.annotate(f"{budget:.2g} FLOPs", (at, budget / (6 * at)), color=RED, xytext=(4, 2), **_SMALL)
    if plan.limited is not None:
        axes.axhline(plan.limited.unique, color=INK, linestyle="--", linewidth=0.8)
        text = f"{format_count(plan.limited.unique)} different tokens; above the line they repeat"
        axes.annotate(text, (sizes[0], plan.limited.unique), xytext=(4, 3), **_SMALL)
    _optima(axes, plan, (sizes[0], sizes[-1]), (tokens[0], tokens[-1]))
    title = f"loss by {chosen.name} if no token repeats, nats a token; red: equal compute"
    axes.set_title(title, loc="left", fontsize="medium")
    axes.legend(frameon=True, framealpha=0.9, edgecolor="none", fontsize="small", loc="lower left")
    save_picture(figure, path)


def _optima(axes: Any, plan: BudgetPlan, sizes: tuple[float, float], tokens: tuple[float, float]) -> None:
    """A mark for each law, larger ones below so that marks of agreeing laws stay visible."""
    for number, (best, marker) in enumerate(zip(plan.optima, "o^sDPX*", strict=False)):
        if sizes[0] < best.parameters < sizes[1] and tokens[0] < best.tokens < tokens[1]:
            axes.plot(best.parameters, best.tokens, marker, color=PALETTE[number % len(PALETTE)], label=best.law,
                      markersize=11 - 0.7 * number, markeredgecolor="white", markeredgewidth=0.4, ls="")  # fmt: skip
    axes.plot(plan.choice.parameters, plan.choice.tokens, "o", mfc="none", mec=INK, ms=16, label="the model")


def draw_law(fit: LawFit, path: Path) -> None:
    """Loss against compute with the frontier, and IsoFLOP curves: loss against size at a few budgets."""
    import numpy as np

    check_picture(path)
    figure, (left, right) = new_figure(11, 4.6, 1, 2)
    sizes, flops, losses = (np.asarray(x) for x in (fit.runs.parameters, fit.runs.flops, fit.runs.losses))
    colours = np.log10(sizes)
    dots = left.scatter(flops, losses, c=colours, s=10, cmap="viridis")
    figure.colorbar(dots, ax=left, label="log10 of parameters")
    budgets = np.geomspace(flops.min(), 10 * flops.max(), 60)
    best = [optimum(float(c), fit.law) for c in budgets]
    left.plot(budgets, [point.loss for point in best], color=RED, label="efficient frontier")
    if fit.draws:
        spread = np.array([[optimum(float(c), draw).loss for c in budgets] for draw in fit.draws])
        low, high = np.quantile(spread, [0.025, 0.975], axis=0)
        left.fill_between(budgets, low, high, color=RED, alpha=0.2, linewidth=0, label="95%")
    left.set(xscale="log", xlabel="FLOPs (6ND)", ylabel="loss, nats a token")
    left.set_title(f"{len(fit.runs)} runs and the law fitted to them ({fit.method})", loc="left", fontsize="medium")
    left.legend(frameon=False, fontsize="small")
    for number, budget in enumerate(_busiest(fit.runs.flops)):
        _isoflop(right, fit, budget, PALETTE[number % len(PALETTE)])
    right.set(xscale="log", xlabel="parameters", ylabel="loss, nats a token", ylim=_limits(losses))
    right.set_title("equal compute: the law, and runs within 15% of it", loc="left", fontsize="medium")
    right.legend(frameon=False, fontsize="x-small", title="FLOPs: optimum", title_fontsize="x-small")
    save_picture(figure, path)


def _busiest(flops: Sequence[float], count: int = 5) -> list[float]:
    """At most `count` well separated budgets with the most runs nearby."""
    import numpy as np

    logs = np.log(np.asarray(flops))
    distance = np.abs(logs[:, None] - logs)
    near = (distance < _NEAR).sum(axis=1)
    chosen: list[float] = []
    while len(chosen) < count and near.max() > 0:
        row = int(near.argmax())
        chosen.append(float(flops[row]))
        near[distance[row] < _APART] = 0
    return sorted(chosen)


def _isoflop(axes: Any, fit: LawFit, budget: float, colour: str) -> None:
    import numpy as np

    best = optimum(budget, fit.law)
    sizes = np.geomspace(best.parameters / 12, best.parameters * 12, 60)
    curve = [fit.law.loss(float(n), budget / (6 * float(n))) for n in sizes]
    axes.plot(sizes, curve, color=colour, label=f"{budget:.1e}: {format_count(best.parameters)}")
    axes.plot(best.parameters, best.loss, "o", color=colour, markersize=5)
    near = [(n, loss) for n, c, loss in zip(fit.runs.parameters, fit.runs.flops, fit.runs.losses, strict=True)
            if abs(np.log(c / budget)) < _NEAR]  # fmt: skip
    axes.scatter([n for n, _ in near], [loss for _, loss in near], color=colour, s=10, alpha=0.6)


def _limits(losses: Any) -> tuple[float, float]:
    low, high = float(losses.min()), float(losses.max())
    return low - 0.05 * (high - low), high + 0.05 * (high - low)
