"""Runs and optima from CSV: which column is what, and one line for a cell that is missing or absurd."""

from __future__ import annotations

import csv
import io
import itertools
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..base import UsageError, read_text
from ..base.errors import closest
from .laws import Unit
from .runs import RANGES, Column, Optima, Runs, from_folders

_LARGEST = 64 << 20  # bytes of a CSV file
_COLUMNS = {  # accepted column names, reduced to letters and digits; of several the first in this order counts
    "parameters": ("n", "params", "parameters", "modelsize", "size", "nparams", "total", "ntotal", "paramstotal",
                   "activeparams", "activeparameters", "paramsactive", "paramsactiveprecise", "matrices", "nmatrices",
                   "paramsmatrices", "nonembedding", "nnonembedding", "paramsnonembedding"),
    "tokens": ("d", "tokens", "trainingtokens", "ntokens", "data"),
    "flops": ("c", "flops", "flop", "trainingflop", "trainingflops", "compute"),
    "bits": ("bpb", "bitsperbyte", "bitsabyte", "valbpb", "evalbpb", "testbpb", "finalbpb", "valbitsperbyte"),
    "loss": ("loss", "l", "finalloss", "validationloss", "valloss", "evalloss", "testloss", "natspertoken"),
    "kind": ("kind", "arch", "architecture"),
    "subset": ("subset", "experiment", "sweep", "count"),
}  # fmt: skip
_OF_OPTIMA = {"t": "tokens"} | {name: role for role in ("parameters", "tokens", "loss", "bits")
                                for name in _COLUMNS[role]}  # fmt: skip
_STARRED = re.compile(r"(.+?)(star|opt|optimal|optimum)")  # n_star, N_opt, tokens_optimal
_FAR = 30  # times 6 N D that the FLOPs may be off, embeddings and attention included
SAME = 1.02  # ratio of budgets that count as equal


def read_runs(path: Path, subset: str = "") -> Runs:
    """Runs from a folder of runs of `nextword train` (`from_folders`), or from a CSV file (`read_table`).

    Raises UsageError that names the file, the line and the problem.
    """
    table = read_table(path, subset)
    if isinstance(table, Optima):
        raise UsageError(f"{path} holds the optima of {len(table)} budgets; a law is fitted to all runs")
    return table


def read_table(path: Path, subset: str = "") -> Runs | Optima:
    """Runs or optima from a CSV file, or runs from a folder.

    Runs have a loss (in nats a token or bits a byte) and two of size, tokens and FLOPs; with all three, M = C / (6 D)
    is the size, and N is kept in `counts` where it differs. Optima have FLOPs and the best size, tokens or both:
    columns such as `n_star`, or one row a budget whose size and tokens rise. Raises UsageError that names the file, the
    line and the column.
    """
    if path.is_dir():
        if subset:
            raise UsageError(f"--subset {subset}: {path} is a folder of runs, without subsets")
        return from_folders([path])
    sheet = _Sheet.read(path).of_subset(subset)
    if sheet.starred:
        return sheet.optima()
    runs = sheet.runs()
    return sheet.optima() if _look_like_optima(sheet, runs) else runs


@dataclass(frozen=True)
class _Sheet:
    """The rows of a CSV file with their line numbers, and the place of each role's columns."""

    path: Path
    heading: list[str]
    where: dict[str, list[int]]
    starred: bool
    rows: list[tuple[int, list[str]]]

    @classmethod
    def read(cls, path: Path) -> _Sheet:
        try:
            rows = list(csv.reader(io.StringIO(read_text(path, _LARGEST, "utf-8-sig"))))
        except (OSError, UnicodeError, csv.Error) as error:
            reason = str(getattr(error, "strerror", None) or error)
            raise UsageError(f"{path} cannot be read as CSV: {reason[:1].lower() + reason[1:]}") from None
        if not rows:
            raise UsageError(f"{path} is empty; a table of runs with a heading is expected")
        where, starred = _find_columns(rows[0], path)
        filled = [(line, row) for line, row in enumerate(rows[1:], 2) if any(cell.strip() for cell in row)]
        sheet = cls(path, [name.strip() for name in rows[0]], where, starred, filled)
        if "subset" in where and all(sheet.text(row, "subset").isdigit() for _, row in filled):
            del where["subset"]  # a number of something, such as a count
        return sheet

    def of_subset(self, wanted: str) -> _Sheet:
        """The rows of one subset; one must be named where there are several."""
        if "subset" not in self.where:
            if wanted:
                raise UsageError(f"--subset {wanted}: {self.path} has no column subset, experiment, sweep or count")
            return self
        found = list(dict.fromkeys(self.text(row, "subset") for _, row in self.rows))
        if not wanted and len(found) > 1:
            raise UsageError(f"{self.path} has {len(found)} subsets; choose one with --subset: {', '.join(found)}")
        if wanted and wanted not in found:
            raise UsageError(f"--subset {wanted!r} is not in {self.path}.{closest(wanted, found)} It has:"
                             f" {', '.join(found)}")  # fmt: skip
        rows = [(line, row) for line, row in self.rows if not wanted or self.text(row, "subset") == wanted]
        return replace(self, rows=rows)

    @property
    def loss(self) -> str:
        return next((role for role in ("bits", "loss") if role in self.where), "")

    @property
    def unit(self) -> Unit:
        return "bits/byte" if self.loss == "bits" else "nats/token"

    @property
    def kinds(self) -> tuple[str, ...]:
        return tuple(self.text(row, "kind") or "unknown" for _, row in self.rows) if "kind" in self.where else ()

    def text(self, row: list[str], role: str, number: int = 0) -> str:
        at = self.where[role][number]
        return row[at].strip() if at < len(row) else ""

    def column(self, role: str, number: int = 0) -> Column:
        """The numbers of a role's first or a later column."""
        heading, kind = self.heading[self.where[role][number]], "loss" if role == "bits" else role
        return tuple(self._number(self.text(row, role, number), heading, kind, line) for line, row in self.rows)

    def _number(self, text: str, heading: str, kind: str, line: int) -> float:
        what = f"{self.path}, line {line}: {heading}"
        try:
            value = float(text)
        except ValueError:
            raise UsageError(f"{what} {text!r} is not a number") from None
        if not 0 < value < math.inf:
            raise UsageError(f"{what} {text!r} must be above 0")
        _check_range(what, kind, value)
        return value

    def runs(self) -> Runs:
        """The rows as runs."""
        counts = {
            self.heading[at]: self.column("parameters", number)
            for number, at in enumerate(self.where.get("parameters", ()))
        }
        tokens = self.column("tokens") if "tokens" in self.where else None
        flops = self.column("flops") if "flops" in self.where else None
        sizes = next(iter(counts.values()), None)
        if flops is not None and tokens is not None:
            size = tuple(self._ratios("C / (6 D)", "parameters", flops, tokens))
            if sizes is not None:
                self._check_counts(size, sizes)
            counts = {name: count for name, count in counts.items() if not _equal(count, size)}
        else:
            assert sizes is not None, "_find_columns asks for two of the three"
            size, counts = sizes, dict(list(counts.items())[1:])
            tokens = tokens or tuple(self._ratios("C / (6 N)", "tokens", flops or (), size))
        return Runs(size, tokens, self.column(self.loss), (), self.unit, counts, self.kinds)

    def _ratios(self, what: str, kind: str, flops: Sequence[float], divisors: Sequence[float]) -> Iterator[float]:
        for (line, _), work, divisor in zip(self.rows, flops, divisors, strict=True):
            _check_range(f"{self.path}, line {line}: {what} =", kind, work / (6 * divisor))
            yield work / (6 * divisor)

    def _check_counts(self, sizes: Sequence[float], counts: Sequence[float]) -> None:
        names = [self.heading[self.where[role][0]] for role in ("flops", "parameters", "tokens")]
        for (line, _), size, count in zip(self.rows, sizes, counts, strict=True):
            if not 1 / _FAR < size / count < _FAR:
                raise UsageError(
                    f"{self.path}, line {line}: {names[0]} is {size / count:.2g} times 6 x {names[1]} x {names[2]}; one"
                    " of them is in other units"
                )

    def optima(self) -> Optima:
        """The rows as the optima of budgets; rows whose optimum is NaN are skipped."""
        roles = [role for role in ("parameters", "tokens", self.loss) if role in self.where]
        gaps = [line for line, row in self.rows if any(self.text(row, role).lower() == "nan" for role in roles)]
        kept = [(line, row) for line, row in self.rows if line not in gaps]
        sheet = replace(self, rows=kept)
        skipped = tuple(f"{self.path}, line {line}: its optimum is nan" for line in gaps)
        sizes = {name: sheet.column(role) for role, name in (("parameters", "N"), ("tokens", "D")) if role in roles}
        losses = sheet.column(self.loss) if self.loss else ()
        return Optima(sheet.column("flops"), sizes, losses, skipped, self.unit, sheet.kinds)


def _look_like_optima(sheet: _Sheet, runs: Runs) -> bool:
    """Whether each C given has one row, and with C size and tokens rise, not in proportion, and the loss falls."""
    if not {"flops", "parameters", "tokens"} <= sheet.where.keys() or len(runs) < 3 or len(set(runs.kinds)) > 1:
        return False
    sizes = sheet.column("parameters")
    rows = sorted(zip(sheet.column("flops"), sizes, runs.tokens, runs.losses, strict=True))
    ratios = [tokens / size for _, size, tokens, _ in rows]
    return max(ratios) > 1.01 * min(ratios) and all(
        after[0] > SAME * before[0] and after[1] > before[1] and after[2] > before[2] and after[3] < before[3]
        for before, after in itertools.pairwise(rows)
    )


def _find_columns(heading: list[str], path: Path) -> tuple[dict[str, list[int]], bool]:
    """The places of each role's columns, and whether these are of optima."""
    plain = ["".join(letter for letter in cell.lower() if letter.isalnum()) for cell in heading]
    found = {role: [plain.index(name) for name in names if name in plain] for role, names in _COLUMNS.items()}
    starred: dict[str, list[int]] = {}
    for at, name in enumerate(plain):
        match = _STARRED.fullmatch(name)
        if match and (role := _OF_OPTIMA.get(match[1])):
            starred.setdefault(role, []).append(at)
    optima = "parameters" in starred or "tokens" in starred
    if optima:
        found |= {role: starred.get(role, []) for role in ("parameters", "tokens")}
        found |= {role: starred.get(role) or found[role] for role in ("loss", "bits")}
    where = {role: places for role, places in found.items() if places}
    if missing := _missing(where, optima):
        raise UsageError(
            f"{path} has no column for {' and '.join(missing)}; it has {', '.join(heading) or 'none'}."
            " Call them parameters (or N), tokens (or D), flops (or C), loss (nats a token) or bpb (bits a byte)"
        )
    return where, optima


def _missing(where: dict[str, list[int]], optima: bool) -> list[str]:
    if optima:
        return [] if "flops" in where else ["flops"]
    sizes = [role for role in ("parameters", "tokens", "flops") if role in where]
    missing = [] if "bits" in where or "loss" in where else ["loss"]
    if len(sizes) < 2:
        others = [role for role in ("parameters", "tokens", "flops") if role not in sizes]
        missing.append(" or ".join(others) if sizes else "two of parameters, tokens and flops")
    return missing


def _equal(one: Column, other: Column) -> bool:
    """Whether no value is more than a hundredth off."""
    return all(abs(left / right - 1) < 0.01 for left, right in zip(one, other, strict=True))


def _check_range(what: str, kind: str, value: float) -> None:
    least, most = RANGES[kind]
    if not least <= value <= most:
        raise UsageError(f"{what} {value:g} is out of range; runs have {least:g} to {most:g}")
