"""Training runs to fit a law to: size, tokens and loss, from CSV or run folders."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..base import UsageError, read_json, read_text
from .parameters import parameters
from .run_config import RunConfig

_LARGEST = 64 << 20  # bytes of a CSV file
_RANGES = {"parameters": (1.0, 1e18), "tokens": (1.0, 1e21), "flops": (1.0, 1e40), "loss": (1e-4, 1e4)}  # of any run
_COLUMNS = {  # accepted column names, reduced to letters and digits
    "parameters": ("n", "params", "parameters", "modelsize", "size", "nparams"),
    "tokens": ("d", "tokens", "trainingtokens", "ntokens", "data"),
    "flops": ("c", "flops", "flop", "trainingflop", "trainingflops", "compute"),
    "loss": ("loss", "l", "finalloss", "validationloss", "valloss", "evalloss"),
}


@dataclass(frozen=True)
class Runs:
    """N, D and the loss in nats a token of each run."""

    parameters: tuple[float, ...]
    tokens: tuple[float, ...]
    losses: tuple[float, ...]
    skipped: tuple[str, ...] = ()  # what was skipped, and why

    def __post_init__(self) -> None:
        if not len(self.parameters) == len(self.tokens) == len(self.losses):
            raise UsageError("runs need as many sizes as tokens and losses")
        for name, values in (("parameters", self.parameters), ("tokens", self.tokens), ("loss", self.losses)):
            if bad := [value for value in values if not 0 < value < math.inf]:
                raise UsageError(f"a run has {name} {bad[0]}; it takes a number above 0")
            least, most = _RANGES[name]
            if bad := [value for value in values if not least <= value <= most]:
                raise UsageError(f"a run has {name} {bad[0]:g}; it takes {least:g} to {most:g}")

    def __len__(self) -> int:
        return len(self.losses)

    @property
    def flops(self) -> tuple[float, ...]:
        """C = 6 N D of each run."""
        return tuple(6 * n * d for n, d in zip(self.parameters, self.tokens, strict=True))

    def take(self, rows: Sequence[int]) -> Runs:
        """The given rows, in that order; rows may repeat."""
        columns = (self.parameters, self.tokens, self.losses)
        parameters, tokens, losses = (tuple(column[row] for row in rows) for column in columns)
        return Runs(parameters, tokens, losses, self.skipped)

    def without_highest(self, count: int) -> Runs:
        """All but the `count` runs with the highest loss: early points that no law of this form fits."""
        if not 0 <= count < len(self):
            raise UsageError(f"of {len(self)} runs the {count} of highest loss cannot be left out")
        order = sorted(range(len(self)), key=lambda row: self.losses[row])[: len(self) - count]
        return self.take(sorted(order))


def from_folders(paths: Sequence[Path]) -> Runs:
    """The runs in run folders of `nextword train`, or in folders of these; `skipped` lists the others.

    A run counts if it finished and was not fine-tuned. N is all its parameters, D its tokens, the loss that on
    held-out text. Raises UsageError if no run counts, and for runs on different tokens, whose losses in nats per
    token are not comparable.
    """
    rows: list[tuple[Any, ...]] = []
    fingerprints: dict[str, Path] = {}
    skipped: list[str] = []
    for folder in [run for path in paths for run in _run_folders(path)]:
        record, config = read_json(folder / "run.json"), RunConfig.read(folder / "config.toml")
        if config.model.base:
            skipped.append(f"{folder} was fine-tuned")
        elif not (folder / "report.json").exists():
            skipped.append(f"{folder} is not finished")
        else:
            measured = read_json(folder / "report.json").get("measured") or {}
            rows.append((parameters(config.spec).total, measured.get("tokens"), measured.get("nats_per_token")))
            fingerprints.setdefault(str(record.get("fingerprint")), folder)
    if not rows:
        folders = ", ".join(map(str, paths))
        raise UsageError(f"{folders}: no run there to fit ({', '.join(skipped) or 'no run.json'})")
    if len(fingerprints) > 1:
        one, other, *_ = fingerprints.values()
        raise UsageError(
            f"{one} and {other} used different tokens, so their losses are not comparable. Give runs on one text with"
            " one tokenizer, such as --set data.vocabulary=4096 for all of them"
        )
    if bad := [row for row in rows if not all(isinstance(value, (int, float)) for value in row)]:
        raise UsageError(f"a report.json lacks tokens or nats_per_token: {bad[0]}")
    sizes, tokens, losses = (tuple(map(float, column)) for column in zip(*rows, strict=True))
    return Runs(sizes, tokens, losses, tuple(skipped))


def _run_folders(path: Path) -> list[Path]:
    """`path` if it is a run folder, otherwise the run folders directly in it."""
    if (path / "run.json").exists():
        return [path]
    return sorted(file.parent for file in path.glob("*/run.json"))


def read_runs(path: Path) -> Runs:
    """Runs from a CSV file with columns for the size, the loss, and the tokens or the FLOPs (then D = C / 6N).

    A folder holds runs of `nextword train` (`from_folders`).

    Raises UsageError that names the file, the line and the problem.
    """
    if path.is_dir():
        return from_folders([path])
    try:
        rows = list(csv.reader(io.StringIO(read_text(path, _LARGEST, "utf-8-sig"))))
    except (OSError, UnicodeError, csv.Error) as error:
        reason = str(getattr(error, "strerror", None) or error)
        reason = reason[:1].lower() + reason[1:]
        raise UsageError(f"{path} cannot be read as CSV: {reason}") from None
    if not rows:
        raise UsageError(f"{path} is empty; a table of runs with a heading is expected")
    where = _find_columns(rows[0], path)
    values = [_row(row, line, where, path) for line, row in enumerate(rows[1:], 2) if any(cell.strip() for cell in row)]
    sizes, tokens, losses = (tuple(value[column] for value in values) for column in range(3))
    return Runs(sizes, tokens, losses)


def _find_columns(heading: list[str], path: Path) -> dict[str, int]:
    plain = ["".join(letter for letter in cell.lower() if letter.isalnum()) for cell in heading]
    found = {
        kind: next(plain.index(name) for name in names if name in plain)
        for kind, names in _COLUMNS.items()
        if any(name in plain for name in names)
    }
    missing = [kind for kind in ("parameters", "loss") if kind not in found]
    if "tokens" not in found and "flops" not in found:
        missing.append("tokens or flops")
    if missing:
        raise UsageError(
            f"{path} has no column for {' and '.join(missing)}; it has {', '.join(heading) or 'none'}."
            " Call them parameters (or N), tokens (or D), flops (or C), loss"
        )
    return found


def _row(row: list[str], line: int, where: dict[str, int], path: Path) -> tuple[float, float, float]:
    def cell(kind: str) -> float:
        text = row[where[kind]] if where[kind] < len(row) else ""
        try:
            value = float(text)
        except ValueError:
            raise UsageError(f"{path}, line {line}: {kind} {text!r} is not a number") from None
        if not 0 < value < math.inf:
            raise UsageError(f"{path}, line {line}: {kind} {text!r} must be above 0")
        return value

    def checked(kind: str, value: float) -> float:
        least, most = _RANGES[kind]
        if not least <= value <= most:
            raise UsageError(f"{path}, line {line}: {kind} {value:g} is out of range; runs have {least:g} to {most:g}")
        return value

    size = checked("parameters", cell("parameters"))
    tokens = cell("tokens") if "tokens" in where else checked("flops", cell("flops")) / (6 * size)
    return size, checked("tokens", tokens), checked("loss", cell("loss"))
