"""Pictures: refused before the work if they cannot be drawn, written whole or not at all."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .errors import RunError, UsageError
from .files import atomic_write, check_writable

PICTURE_KINDS = (".svg", ".png", ".pdf")
_NO_MATPLOTLIB = "pictures need matplotlib. Install it with: pip install 'nextword[plot]'"


def check_picture(path: Path | str, what: str = "picture") -> None:
    """Raise UsageError unless a picture can be drawn to `path`. `what` names the option, such as "--plot"."""
    path = Path(path)
    if path.suffix.lower() not in PICTURE_KINDS:
        raise UsageError(f"{what} {path}: a picture's name ends in {', '.join(PICTURE_KINDS)}")
    if find_spec("matplotlib") is None:
        raise UsageError(_NO_MATPLOTLIB)
    check_writable(path, what)


def figure_class() -> Any:
    """matplotlib's Figure, which opens no window. Raises UsageError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError(_NO_MATPLOTLIB) from None
    return Figure


def save_picture(figure: Any, path: Path | str) -> None:
    """Write a figure as its name's ending says. Raises RunError where that fails."""
    path = Path(path)
    try:
        with atomic_write(path, "wb") as file:
            figure.savefig(file, format=path.suffix[1:].lower(), dpi=150, facecolor="white")
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error.strerror or error}); the picture is lost") from error
