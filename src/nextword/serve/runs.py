"""The training runs of a folder, read as `nextword runs` reads them: listed, followed as they are written, and loaded.

A run is a folder directly in it, under the name that a listing shows. Nothing is written, and no link is followed.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from ..base import NextwordError, UsageError
from ..train.run_dir import RECORD, RunRecord
from ..train.watching import Curve, curve_of, measured_of, run_json, summary, thinned
from .errors import ApiError
from .requests import answer

if TYPE_CHECKING:
    from .call import Call

PREFIX = "runs/"  # of the model of a run
MOST_RUNS = 200
MOST_POINTS = 2000
_MOST_EVALUATIONS = 500
_MOST_SAMPLES, _LONGEST_SAMPLE = 100, 4000
_MODEL = ("config.json", "model.safetensors", "tokenizer.json")


class RunFolders:
    """The run folders directly in `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def names(self) -> list[str]:
        """Their names, the newest first."""
        try:
            with os.scandir(self.root) as entries:
                found = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        except OSError:
            return []
        aged = [(_recorded(self.root / name), name) for name in found if name.isprintable() and self._is_run(name)]
        return [name for _, name in sorted(aged, reverse=True)]

    def folder(self, name: str) -> Path:
        """The folder of a run. Raises ApiError unless a listing shows that name."""
        if name not in self.names():
            raise ApiError(404, f"unknown run {name[:80]!r}. GET /v1/runs lists them", "name")
        return self.root / name

    def models(self) -> list[str]:
        """The ids of runs whose model is there: `runs/NAME`."""
        return [PREFIX + name for name in self.names() if _has_model(self.root / name)]

    def model(self, id: str) -> Path | None:
        """The folder of the run's model with that id, if there is one."""
        name = id.removeprefix(PREFIX)
        alone = id.startswith(PREFIX) and name.isprintable() and name not in ("", ".", "..") and "/" not in name
        folder = self.root / name
        return folder if alone and self._is_run(name) and _has_model(folder) else None

    def _is_run(self, name: str) -> bool:
        """Whether it has a record and, at its top, no link that could lead elsewhere."""
        folder = self.root / name
        try:
            with os.scandir(folder) as entries:
                linked = folder.is_symlink() or any(entry.is_symlink() for entry in entries)
                return not linked and (folder / RECORD).is_file()
        except (OSError, ValueError):
            return False


def _recorded(folder: Path) -> float:
    try:
        return (folder / RECORD).stat().st_mtime
    except OSError:
        return 0.0


def written(folder: Path) -> float:
    """When the model in a run's folder was written; 0 if it has none."""
    try:
        return (folder / "model.safetensors").stat().st_mtime
    except OSError:
        return 0.0


def _has_model(folder: Path) -> bool:
    return all((folder / name).is_file() for name in _MODEL)


async def runs(call: Call, body: None) -> Response:
    """The training runs in the server's folder, the newest first."""
    return answer(await call.compute(lambda: _listing(call.service.models.runs)))


def _listing(folders: RunFolders) -> dict[str, Any]:
    names = folders.names()
    rows = [_row(folders.root / name) for name in names[:MOST_RUNS]]
    return {"folder": str(folders.root), "runs": rows, "left_out": len(names) - len(rows)}


def _row(folder: Path) -> dict[str, Any]:
    """A run in a line; `problem` if it cannot be read."""
    model = PREFIX + folder.name if _has_model(folder) else None
    try:
        return {"name": folder.name, "model": model, **summary(folder, RunRecord.read(folder))}
    except (NextwordError, OSError) as error:  # written by another version, damaged, or gone meanwhile
        return {"name": folder.name, "model": model, "problem": str(error)}


async def one_run(call: Call, body: None) -> Response:
    """One run: settings, predictions beside measurements, samples, and its curve, or with `after` what came since."""
    folders, after = call.service.models.runs, call.query("after") or ""
    return answer(await call.compute(lambda: _run(folders.folder(call.name), after)))


def _run(folder: Path, after: str) -> dict[str, Any]:
    try:
        record = RunRecord.read(folder)
        row, details = _row(folder), run_json(folder, record, measured_of(folder, record))
    except OSError as error:
        raise ApiError(404, f"{folder.name} cannot be read ({error.strerror})", "name") from None
    return row | details | _curve(folder, after)


def _curve(folder: Path, after: str) -> dict[str, Any]:
    """The curve as plain data of bounded size."""
    try:
        curve = curve_of(folder, after)
    except UsageError as error:
        if after:
            raise ApiError(400, str(error), "after") from None
        curve = Curve()  # it has not begun
    every = -(-len(curve.evaluations) // _MOST_EVALUATIONS) or 1
    samples = [{"step": step, "text": text[:_LONGEST_SAMPLE]} for step, text in curve.samples[-_MOST_SAMPLES:]]
    return {
        "place": curve.place, "whole": curve.whole, "latest": curve.latest, "samples": samples,
        "rejected": curve.rejected[-_MOST_SAMPLES:],
        "points": thinned(curve.points, MOST_POINTS), "evaluations": curve.evaluations[::-every][::-1],
    }  # fmt: skip
