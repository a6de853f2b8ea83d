"""Two evaluations of the store, compared row by row: rows are paired by what they say, never by where they stood."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..base import UsageError
from .comparisons import Compared, Side, compared, paired
from .lines import line_name
from .store import Kept

_Line = dict[str, Any]


def compare_kept(first: Kept, second: Kept) -> list[Compared]:
    """Two kept evaluations, line by line, over the rows that both asked, clustered where either was.

    Raises UsageError where they share fewer than two rows, measure different things, group their rows differently, have
    no way of asking in common, or were kept before rows had digests.
    """
    places = [_places(kept) for kept in (first, second)]
    shared = [digest for digest in places[0] if digest in places[1]]
    if len(shared) < 2:
        rows = f"{len(shared)} row{'s' * (len(shared) != 1)}"
        raise UsageError(
            f"{first.name!r} and {second.name!r} share {rows}, and a comparison takes at least 2. Rows are paired by"
            " their content: compare evaluations of the same data"
        )
    if first.result["metric"] != second.result["metric"]:
        raise UsageError(
            f"{first.name!r} measured {first.result['metric']} and {second.name!r} {second.result['metric']}, which"
            " cannot be compared"
        )
    at = [[where[digest] for digest in shared] for where in places]
    groups, pairs, note = _groups(first, second, at), _pairs(first, second), _note(first, second, len(shared))
    primary = [not (a["baseline"] or b["baseline"]) for a, b in pairs]
    return [
        compared(
            _side(first, a), _side(second, b),
            paired(np.array(b["scores"])[:, :, at[1]], np.array(a["scores"])[:, :, at[0]]),
            groups, is_primary, primary.count(is_primary), note,
        )
        for (a, b), is_primary in zip(pairs, primary, strict=True)
    ]  # fmt: skip


def _places(kept: Kept) -> dict[str, int]:
    """The column of each row's scores, by the row's digest."""
    rows = kept.result.get("rows", ())
    if not rows or not all(row["digest"] for row in rows):
        raise UsageError(
            f"{kept.name!r} was kept by an older version, which did not note what its rows say. Run it again: its"
            " answers are in the store"
        )
    return {row["digest"]: number for number, row in enumerate(rows)}


def _groups(first: Kept, second: Kept, at: list[list[int]]) -> list[str] | None:
    """The groups of the shared rows, from the side that has them."""
    found = [
        [_group(kept.result["rows"][number]) for number in numbers]
        for kept, numbers in zip((first, second), at, strict=True)
        if kept.result["groups"] is not None
    ]
    if len(found) == 2 and not len(set(zip(*found, strict=True))) == len(set(found[0])) == len(set(found[1])):
        raise UsageError(
            f"{first.name!r} and {second.name!r} group the same rows differently, so that there is no one error to"
            " compare them by. Run one of them again with the other's --group"
        )
    return found[0] if found and len(set(found[0])) < len(found[0]) else None


def _group(row: dict[str, Any]) -> str:
    return row["place"] if row["group"] is None else f"group {row['group']}"


def _pairs(first: Kept, second: Kept) -> list[tuple[_Line, _Line]]:
    """Lines of the same shots and variant; of the same model or form where both sides have several."""
    keys = ["shots", "variant"] + [
        key
        for key in ("model", "form")
        if all(len({line[key] for line in kept.result["lines"]}) > 1 for kept in (first, second))
    ]
    pairs = [
        (a, b) for a in first.result["lines"] for b in second.result["lines"] if all(a[key] == b[key] for key in keys)
    ]
    if not pairs:
        names = " and ".join(keys)
        raise UsageError(f"{first.name!r} and {second.name!r} have no line with the same {names}")
    return pairs


def _note(first: Kept, second: Kept, shared: int) -> str:
    asked = [len(kept.result["rows"]) for kept in (first, second)]
    if asked == [shared, shared]:
        return ""
    return f". Compared over the {shared:,} rows both asked, of {asked[0]:,} and {asked[1]:,}"


def _side(kept: Kept, line: _Line) -> Side:
    name = line_name(line["shots"], line["variant"], line["one_set"])
    return f"{kept.name}, {line['form']}, {name}", line["one_set"], len(line["scores"])
