"""Training runs to fit a law to: size, tokens and loss, from folders of runs or, by run_tables.py, from CSV."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ..base import UsageError, read_json
from .compute import flops
from .laws import Unit
from .parameters import parameters
from .run_config import RunConfig

RANGES = {"parameters": (1.0, 1e18), "tokens": (1.0, 1e21), "flops": (1.0, 1e40), "loss": (1e-4, 1e4)}  # of any run
Column = tuple[float, ...]


@dataclass(frozen=True)
class Runs:
    """The size, tokens and loss of each run, the loss in `unit`.

    The size is M = C / (6 D) where the FLOPs C are known, else N; `counts` has N as counted otherwise, by name.
    """

    parameters: Column
    tokens: Column
    losses: Column
    skipped: tuple[str, ...] = ()  # what was skipped, and why
    unit: Unit = "nats/token"
    counts: Mapping[str, Column] = field(default_factory=dict)
    kinds: tuple[str, ...] = ()  # transformer, lstm, ...; empty where it is not known

    def __post_init__(self) -> None:
        if not len(self.parameters) == len(self.tokens) == len(self.losses):
            raise UsageError("runs need as many sizes as tokens and losses")
        for name, values in (("parameters", self.parameters), ("tokens", self.tokens), ("loss", self.losses)):
            if bad := [value for value in values if not 0 < value < math.inf]:
                raise UsageError(f"a run has {name} {bad[0]}; it takes a number above 0")
            least, most = RANGES[name]
            if bad := [value for value in values if not least <= value <= most]:
                raise UsageError(f"a run has {name} {bad[0]:g}; it takes {least:g} to {most:g}")

    def __len__(self) -> int:
        return len(self.losses)

    @property
    def flops(self) -> Column:
        """C = 6 N D, or 6 M D, of each run."""
        return tuple(6 * n * d for n, d in zip(self.parameters, self.tokens, strict=True))

    @property
    def symbol(self) -> str:
        """What the size is called: M or N."""
        return "M" if self.counts else "N"

    def take(self, rows: Sequence[int]) -> Runs:
        """The given rows, in that order; rows may repeat."""
        parameters, tokens, losses = (taken(column, rows) for column in (self.parameters, self.tokens, self.losses))
        counts = {name: taken(column, rows) for name, column in self.counts.items()}
        return Runs(parameters, tokens, losses, self.skipped, self.unit, counts, taken(self.kinds, rows))

    def without_highest(self, count: int) -> Runs:
        """All but the `count` runs with the highest loss: early points that no law of this form fits."""
        if not 0 <= count < len(self):
            raise UsageError(f"of {len(self)} runs the {count} of highest loss cannot be left out")
        order = sorted(range(len(self)), key=lambda row: self.losses[row])[: len(self) - count]
        return self.take(sorted(order))


@dataclass(frozen=True)
class Optima:
    """The best run of each budget: its FLOPs, its sizes by name (N, D, ...), and its loss where that is known."""

    flops: Column
    sizes: Mapping[str, Column]
    losses: Column = ()
    skipped: tuple[str, ...] = ()
    unit: Unit = "nats/token"
    kinds: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.flops)

    def take(self, rows: Sequence[int]) -> Optima:
        """The given rows, in that order."""
        sizes = {name: taken(column, rows) for name, column in self.sizes.items()}
        losses, kinds = taken(self.losses, rows), taken(self.kinds, rows)
        return Optima(taken(self.flops, rows), sizes, losses, self.skipped, self.unit, kinds)


_Item = TypeVar("_Item")


def taken(column: tuple[_Item, ...], rows: Sequence[int]) -> tuple[_Item, ...]:
    """The given rows of a column, which may be empty."""
    return tuple(column[row] for row in rows) if column else ()


def by_kind(table: Runs | Optima) -> dict[str, Runs | Optima]:
    """The runs of each kind of model; all of them under "" where kinds are not known."""
    kinds = dict.fromkeys(table.kinds or [""])
    return {kind: table.take([row for row, each in enumerate(table.kinds) if each == kind]) if kind else table
            for kind in kinds}  # fmt: skip


def from_folders(paths: Sequence[Path]) -> Runs:
    """The runs in run folders of `nextword train`, or in folders of these; `skipped` lists the others.

    A run counts if it finished and was not fine-tuned. Its size is M, a sixth of its exact FLOPs a token; `counts` has
    all its parameters (total) and those that multiply (matrices). D is its tokens, the loss that on held-out text.
    Raises UsageError if no run counts, and for runs on different tokens, whose losses in nats per token are not
    comparable.
    """
    rows: list[tuple[Any, ...]] = []
    kinds: list[str] = []
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
            spec, counted = config.spec, parameters(config.spec)
            sizes = (flops(spec, config.train.context or None).per_token / 6, counted.total, counted.multiplying)
            rows.append((*sizes, measured.get("tokens"), measured.get("nats_per_token")))
            kinds.append(spec.kind)
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
    size, total, matrices, tokens, losses = (tuple(map(float, column)) for column in zip(*rows, strict=True))
    counts = {"total": total, "matrices": matrices}
    return Runs(size, tokens, losses, tuple(skipped), counts=counts, kinds=tuple(kinds))


def _run_folders(path: Path) -> list[Path]:
    """`path` if it is a run folder, otherwise the run folders directly in it."""
    if (path / "run.json").exists():
        return [path]
    return sorted(file.parent for file in path.glob("*/run.json"))
