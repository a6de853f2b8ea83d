"""Compares two stored evaluations, pairing rows by content."""

from __future__ import annotations

import numpy as np

from ..base import UsageError
from ..base.fields import rebuilt
from .comparisons import PairedComparison, Side, compared, paired
from .result_rows import ResultRow, differing, prefixes
from .store import Stored
from .summary import Result, ScoredRow

Named = tuple[str, Result]


def result_of(stored: Stored) -> Result:
    """The result of a stored evaluation. Raises UsageError for one in an older version's format."""
    try:
        result = rebuilt(Result, stored.result)
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"{stored.name!r} was stored by another version of nextword and cannot be read ({error}). Run"
            " it again: its answers are in the store"
        ) from None
    assert isinstance(result, Result)
    return result


def compare_stored(first: Stored, second: Stored) -> list[PairedComparison]:
    """Compare two stored evaluations, configuration by configuration, over the rows that both scored.

    Errors are clustered if either's were. Raises UsageError if they share fewer than two rows, use different metrics,
    group their rows differently, or have no common configuration.
    """
    if first.name == second.name:
        raise UsageError(f"--compare names {first.name!r} twice; name two evaluations")
    sides = (first.name, result_of(first)), (second.name, result_of(second))
    columns = [_columns(*side) for side in sides]
    shared = [digest for digest in columns[0] if digest in columns[1]]
    if len(shared) < 2:
        rows = f"{len(shared)} row{'s' * (len(shared) != 1)}"
        raise UsageError(
            f"{first.name!r} and {second.name!r} share {rows}; a comparison needs at least 2. Rows are paired by"
            " their content: compare evaluations of the same data"
        )
    metrics = [result.metric for _, result in sides]
    if metrics[0] != metrics[1]:
        raise UsageError(
            f"{first.name!r} measured {metrics[0]} and {second.name!r} {metrics[1]}, which cannot be compared"
        )
    at = [[own[digest] for digest in shared] for own in columns]
    groups, pairs, note = _groups(*sides, at), _pairs(*sides), _note(*sides, len(shared))
    primary = [not (a.baseline or b.baseline) for a, b in pairs]
    return [
        compared(
            _side(first.name, a), _side(second.name, b),
            paired(np.array(b.scores)[:, :, at[1]], np.array(a.scores)[:, :, at[0]]),
            groups, is_primary, primary.count(is_primary), note + _seeds_note(a, b),
        )
        for (a, b), is_primary in zip(pairs, primary, strict=True)
    ]  # fmt: skip


def _columns(name: str, result: Result) -> dict[str, int]:
    """The column of each row's scores, by the row's digest."""
    if not result.scored_rows or not all(row.digest for row in result.scored_rows):
        raise UsageError(f"{name!r} was stored without digests of its rows. Run it again: its answers are in the store")
    return {row.digest: number for number, row in enumerate(result.scored_rows)}


def _groups(first: Named, second: Named, at: list[list[int]]) -> list[str] | None:
    """The groups of the shared rows, from the evaluation that has them."""
    groups = [
        [_group(result.scored_rows[number]) for number in numbers]
        for (_, result), numbers in zip((first, second), at, strict=True)
        if result.groups is not None
    ]
    if len(groups) == 2 and not len(set(zip(*groups, strict=True))) == len(set(groups[0])) == len(set(groups[1])):
        raise UsageError(
            f"{first[0]!r} and {second[0]!r} group the same rows differently, so there is no common standard"
            " error. Run one of them again with the other's --group"
        )
    return groups[0] if groups and len(set(groups[0])) < len(groups[0]) else None


def _group(row: ScoredRow) -> str:
    return row.label if row.group is None else f"group {row.group}"


def _pairs(first: Named, second: Named) -> list[tuple[ResultRow, ResultRow]]:
    """Pairs of rows with the same shots and variant, and the same model or template if both have several."""
    rows = [result.rows for _, result in (first, second)]
    models, templates = (
        all(both) for both in zip(*(differing(row.choice for row in own) for own in rows), strict=True)
    )
    keys = ("shots", "variant", *prefixes("model", "template", (models, templates)))
    pairs = [(a, b) for a in rows[0] for b in rows[1] if all(getattr(a, key) == getattr(b, key) for key in keys)]
    if not pairs:
        raise UsageError(f"{first[0]!r} and {second[0]!r} have no row with the same {' and '.join(keys)}")
    return pairs


def _note(first: Named, second: Named, shared: int) -> str:
    scored = [len(result.scored_rows) for _, result in (first, second)]
    if scored == [shared, shared]:
        return ""
    return f". Compared over the {shared:,} rows that both scored, of {scored[0]:,} and {scored[1]:,}"


def _seeds_note(first: ResultRow, second: ResultRow) -> str:
    fewer, more = sorted((first.seeds, second.seeds))
    return f". Compared over the first {fewer} few-shot seeds of both" if 1 < fewer < more else ""


def _side(name: str, row: ResultRow) -> Side:
    return f"{name}, {row.template}, {row.name}", row.one_set, row.seeds
