"""Figures: one palette, a check before long work, atomic writes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from .errors import RunError, UsageError
from .extras import require
from .files import atomic_write, check_writable

PICTURE_KINDS = (".svg", ".png", ".pdf")
BLUE, ORANGE, GREEN, RED, PURPLE, CYAN = PALETTE = ("#3b6fd4", "#e08a1e", "#3fa36b", "#d8453e", "#8e5bbd", "#2f9fbe")
GREY, PALE, INK = "#8a8f98", "#e6e8ec", "#23262b"
_HEAT = (BLUE, CYAN, GREEN, ORANGE, RED)  # temperatures 1/4, 1/2, 1, 2, 4


def check_picture(path: Path | str, what: str = "picture") -> None:
    """Raise UsageError unless a picture can be drawn to `path`. `what` names the option, such as "--plot"."""
    path = Path(path)
    if path.suffix.lower() not in PICTURE_KINDS:
        raise UsageError(f"{what} {path}: the name must end in {', '.join(PICTURE_KINDS)}")
    require("matplotlib", "pictures")
    check_writable(path, what)


def heat(temperature: float) -> str:
    """The colour of a temperature, from blue to red."""
    return _HEAT[0 if temperature <= 0 else min(max(round(math.log2(temperature)) + 2, 0), len(_HEAT) - 1)]


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Any, Any]:
    """A figure of the given size in inches, and its frameless axes: one, or an array of `rows` by `columns`."""
    figure = figure_class()(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns)
    for one in [axes] if rows * columns == 1 else axes.flat:
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes


def figure_class() -> Any:
    """matplotlib's Figure class, which opens no window. Raises UsageError without matplotlib."""
    require("matplotlib", "pictures")
    from matplotlib.figure import Figure

    return Figure


def save_picture(figure: Any, path: Path | str) -> None:
    """Write a figure in the format of its file extension. Raises RunError if that fails."""
    path = Path(path)
    try:
        with atomic_write(path, "wb") as file:
            figure.savefig(file, format=path.suffix[1:].lower(), dpi=150, facecolor="white")
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error.strerror or error}); the picture was not written") from error
