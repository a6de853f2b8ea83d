"""Results as figures, with matplotlib (the extra `plot`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..base import check_picture, figure_class, save_picture
from ..base.pictures import GREY, INK, PALE, heat
from .display import bits, label, mass, percent, rows, visible
from .results import NextTokenDistribution

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def plot_next(distributions: Sequence[NextTokenDistribution], path: Path | str) -> None:
    """Write the next-token picture, one panel a temperature, to a .svg, .png or .pdf file.

    Raises UsageError for what cannot be drawn, RunError where the file cannot be written.
    """
    check_picture(path)
    save_picture(next_figure(distributions), path)


def next_figure(distributions: Sequence[NextTokenDistribution]) -> Figure:
    """The next-token picture as a matplotlib figure: bars on one scale, tokens down the side."""
    shown = rows(distributions)
    names = [*(visible(row.text) for row in shown), "others"]
    figure: Figure = figure_class()(figsize=(1.3 + 2.9 * len(distributions), 1.6 + 0.29 * len(names)))
    figure.set_layout_engine("constrained", h_pad=0.1, w_pad=0.08)
    panels = figure.subplots(1, len(distributions), sharey=True, squeeze=False)[0]
    full = max((share for row in shown for share in row.shares if share is not None), default=1.0)
    for place, (panel, distribution) in enumerate(zip(panels, distributions, strict=True)):
        shares = [row.shares[place] for row in shown]
        _panel(panel, distribution, shares, full)
    # parse_math: a dollar sign is a dollar sign, not the beginning of a formula
    panels[0].set_yticks(range(len(names)), names, fontsize=10, family="monospace", color=INK, parse_math=False)
    panels[0].get_yticklabels()[-1].set_color(GREY)
    panels[0].invert_yaxis()
    figure.suptitle(_title(distributions[0].prompt), fontsize=13, fontweight="bold", color=INK, x=0.02, ha="left")
    return figure


def _panel(panel: Axes, distribution: NextTokenDistribution, shares: Sequence[float | None], full: float) -> None:
    colour = heat(distribution.temperature)
    places = range(len(shares))
    panel.barh(places, [share or 0.0 for share in shares], height=0.72, color=colour)
    # 'others' may be far larger than any token: it is drawn up to the edge, and its number says the rest
    edge = full * 1.32
    panel.barh(
        [len(shares)],
        [min(distribution.tail_mass, edge)],
        height=0.72,
        color=PALE,
        hatch="////",
        edgecolor="white",
    )
    for place, share in zip(places, shares, strict=True):
        text = "·" if share is None else percent(share)
        panel.text((share or 0.0) + full * 0.02, place, text, va="center", fontsize=8.5, color=INK)
    inside = distribution.tail_mass > full
    panel.text(
        full * 0.02 + (0.0 if inside else distribution.tail_mass),
        len(shares),
        percent(distribution.tail_mass) + (" →" if distribution.tail_mass > edge else ""),
        va="center",
        fontsize=8.5,
        color=INK,
        bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none"} if inside else None,
    )
    panel.set_xlim(0, edge)
    panel.margins(y=0.02)
    panel.set_title(label(distribution), fontsize=12, fontweight="bold", color=colour, loc="left", pad=22)
    entropy = f"{bits(distribution.entropy):.2f} bits ({distribution.entropy:.2f} nats)"
    summary = f"{entropy}, 90% in {mass(distribution)}"
    panel.text(0, 1.015, summary, transform=panel.transAxes, fontsize=8, color=GREY, va="bottom")
    panel.set_xticks([])
    panel.tick_params(axis="y", length=0)
    for side in ("top", "right", "bottom"):
        panel.spines[side].set_visible(False)
    panel.spines["left"].set_color(GREY)


def _title(prompt: str) -> str:
    text = visible(prompt).replace("␣", " ")
    return text if len(text) <= 60 else "…" + text[-59:]
