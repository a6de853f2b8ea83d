"""Evaluations from the store, and the comparison of two: rows are paired by content, never by position."""

from __future__ import annotations

import numpy as np

from ..base import UsageError
from ..base.fields import rebuilt
from .comparisons import Compared, Side, compared, paired
from .lines import Line, prefixes, several
from .store import Kept
from .summary import AskedRow, Result

Named = tuple[str, Result]


def result_of(kept: Kept) -> Result:
    """The result of a kept evaluation. Raises UsageError for one that an older nextword kept in another form."""
    try:
        found = rebuilt(Result, kept.result)
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"{kept.name!r} was stored by another version of nextword and cannot be read by this one ({error}). Run it"
            " again: its answers are in the store"
        ) from None
    assert isinstance(found, Result)
    return found


def compare_kept(first: Kept, second: Kept) -> list[Compared]:
    """Two kept evaluations, line by line, over the rows that both scored, clustered if either was.

    Raises UsageError where they share fewer than two rows, measure different things, group their rows differently, have
    no configuration in common, or were kept before rows had digests.
    """
    if first.name == second.name:
        raise UsageError(f"--compare names {first.name!r} twice; name two evaluations")
    sides = (first.name, result_of(first)), (second.name, result_of(second))
    places = [_places(*side) for side in sides]
    shared = [digest for digest in places[0] if digest in places[1]]
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
    at = [[where[digest] for digest in shared] for where in places]
    groups, pairs, note = _groups(*sides, at), _pairs(*sides), _note(*sides, len(shared))
    primary = [not (a.baseline or b.baseline) for a, b in pairs]
    return [
        compared(
            _side(first.name, a), _side(second.name, b),
            paired(np.array(b.scores)[:, :, at[1]], np.array(a.scores)[:, :, at[0]]),
            groups, is_primary, primary.count(is_primary), note + _draws_note(a, b),
        )
        for (a, b), is_primary in zip(pairs, primary, strict=True)
    ]  # fmt: skip


def _places(name: str, result: Result) -> dict[str, int]:
    """The column of each row's scores, by the row's digest."""
    if not result.rows or not all(row.digest for row in result.rows):
        raise UsageError(f"{name!r} was stored without digests of its rows. Run it again: its answers are in the store")
    return {row.digest: number for number, row in enumerate(result.rows)}


def _groups(first: Named, second: Named, at: list[list[int]]) -> list[str] | None:
    """The groups of the shared rows, from the side that has them."""
    found = [
        [_group(result.rows[number]) for number in numbers]
        for (_, result), numbers in zip((first, second), at, strict=True)
        if result.groups is not None
    ]
    if len(found) == 2 and not len(set(zip(*found, strict=True))) == len(set(found[0])) == len(set(found[1])):
        raise UsageError(
            f"{first[0]!r} and {second[0]!r} group the same rows differently, so there is no common standard"
            " error. Run one of them again with the other's --group"
        )
    return found[0] if found and len(set(found[0])) < len(found[0]) else None


def _group(row: AskedRow) -> str:
    return row.place if row.group is None else f"group {row.group}"


def _pairs(first: Named, second: Named) -> list[tuple[Line, Line]]:
    """Lines of the same shots and variant; of the same model or form where both sides have several."""
    lines = [result.lines for _, result in (first, second)]
    models, forms = (all(both) for both in zip(*(several(line.choice for line in each) for each in lines), strict=True))
    keys = ("shots", "variant", *prefixes("model", "form", (models, forms)))
    pairs = [(a, b) for a in lines[0] for b in lines[1] if all(getattr(a, key) == getattr(b, key) for key in keys)]
    if not pairs:
        raise UsageError(f"{first[0]!r} and {second[0]!r} have no line with the same {' and '.join(keys)}")
    return pairs


def _note(first: Named, second: Named, shared: int) -> str:
    asked = [len(result.rows) for _, result in (first, second)]
    if asked == [shared, shared]:
        return ""
    return f". Compared over the {shared:,} rows that both scored, of {asked[0]:,} and {asked[1]:,}"


def _draws_note(first: Line, second: Line) -> str:
    fewer, more = sorted((first.draws, second.draws))
    return f". Compared over the first {fewer} draws of shots of both" if 1 < fewer < more else ""


def _side(name: str, line: Line) -> Side:
    return f"{name}, {line.form}, {line.name}", line.one_set, line.draws
