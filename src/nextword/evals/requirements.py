"""Requirements on an evaluation ("4 shots > 0 shots", at least .9), and judging them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..base import UsageError
from ..base.errors import closest
from .comparisons import Pair, PairedComparison
from .paired_tests import p_text
from .power import Power, items_needed, items_of_share, power_of, what_is_needed
from .result_rows import Choice, ResultRow, differing, full_name, full_names, row_name
from .statistics import errors_of, estimate, is_binary, is_share, log_odds, with_interval

Outcome = Literal["met", "not met", "undecided"]


@dataclass(frozen=True)
class Requirement:
    """A requirement: `after` scores higher than another configuration, or at least a number."""

    text: str
    after: Choice | None  # None: every configuration that the user named
    before: Choice | float


@dataclass(frozen=True)
class JudgedRequirement:
    """Whether a requirement is met, by the corrected comparison or the 95% interval."""

    text: str
    outcome: Outcome
    sentence: str


def names_of(choices: Sequence[Choice]) -> dict[str, Choice]:
    """The rows by name; one set of shots can also be named by its number of shots."""
    choices = list(dict.fromkeys(choices))
    differ = differing(choices)
    return {
        full_name(model, template, row_name(shots, variant, False), differ): (model, template, shots, variant)
        for model, template, shots, variant in choices
    }


def read_requirements(
    require: Sequence[str], at_least: float | None, names: Mapping[str, Choice]
) -> tuple[Requirement, ...]:
    """`--require` and `--at-least` as requirements.

    Raises UsageError for a name without a row, and for a number outside the scores' range.
    """
    requirements = [_read(text, names) for text in require]
    if at_least is not None:
        if not math.isfinite(at_least):
            raise UsageError(f"--at-least is {at_least}; it must be a number, such as 0.9")
        requirements.append(Requirement(f"--at-least {at_least:g}", None, at_least))
    for requirement in requirements:
        if isinstance(requirement.before, float) and not 0 <= requirement.before <= 1:
            raise UsageError(
                f"{requirement.text}: scores lie between 0 and 1, so {requirement.before:g} decides nothing"
            )
    return tuple(requirements)


def _read(text: str, names: Mapping[str, Choice]) -> Requirement:
    """Parse a requirement. Names may contain '>', so every one in the text is tried."""
    parts = text.split(">")
    halves = [(">".join(parts[:n]), ">".join(parts[n:])) for n in range(1, len(parts))]
    if not halves:
        raise UsageError(f'--require {text!r} has no ">". Write it as "4 shots > 0 shots" or "4 shots > 0.9"')
    for left, right in halves:
        after, before = names.get(_plain(left)), names.get(_plain(right), _number(right))
        if after is not None and before is not None:
            if after == before:
                raise UsageError(f"--require {text!r} compares a row with itself")
            return Requirement(text, after, before)
    left, right = halves[0]
    unknown = left if _plain(left) not in names else right
    listed = ", ".join(map(repr, names))
    near = closest(_plain(unknown), names)
    raise UsageError(f"--require {text!r}: there will be no row {_plain(unknown)!r}.{near} The rows are {listed}")


def _plain(name: str) -> str:
    return " ".join(name.split()).replace("this one set of ", "")


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def required_pairs(requirements: Sequence[Requirement]) -> list[Pair]:
    """The pairs to compare, before and after."""
    return [
        (requirement.before, requirement.after)
        for requirement in requirements
        if requirement.after is not None and not isinstance(requirement.before, float)
    ]


def judge(
    requirements: Sequence[Requirement],
    rows: Sequence[ResultRow],
    compared: Mapping[Pair, PairedComparison],
    groups: Sequence[str] | None,
) -> tuple[JudgedRequirement, ...]:
    """Judge each requirement by its comparison, which may be in reverse order, or by its rows' intervals."""
    judged, full = [], full_names(rows)
    for requirement in requirements:
        if requirement.after is None or isinstance(requirement.before, float):
            assert isinstance(requirement.before, float)
            chosen = [
                row
                for row in rows
                if (row.choice == requirement.after if requirement.after else row.variant == "plain")
            ]
            judged += [
                _by_interval(requirement.text, requirement.before, row, full[row.choice], groups) for row in chosen
            ]
        else:
            pair, way = (requirement.before, requirement.after), 1
            if pair not in compared:
                pair, way = (requirement.after, requirement.before), -1
            caveats = {row.caveat for row in rows if row.choice in pair and row.caveat}
            judged.append(_by_comparison(requirement.text, compared[pair], way, caveats))
    return tuple(judged)


def _by_comparison(text: str, pair: PairedComparison, way: int, caveats: set[str]) -> JudgedRequirement:
    own = pair.comparison
    low, high = sorted((way * own.low, way * own.high))
    gap = f"{with_interval(way * own.difference, low, high, '+')}, p {p_text(pair.p)}"
    outcome: Outcome = "undecided" if pair.better is None else "met" if pair.better == (way > 0) else "not met"
    more = ""
    if outcome == "undecided" and own.difference:
        more = f". To detect a true difference of this size, {what_is_needed(power_of(own), own.difference)}"
    return JudgedRequirement(text, outcome, _said(text, outcome, gap, caveats) + more)


def _by_interval(text: str, least: float, row: ResultRow, name: str, groups: Sequence[str] | None) -> JudgedRequirement:
    score = row.score
    outcome: Outcome = "met" if score.low >= least else "not met" if score.high < least else "undecided"
    more = ""
    if outcome == "undecided" and score.value != least:
        more = f". If {score.value:.3f} is the true score, {_what_decides(row, least, groups)}"
    gap = f"{name} {with_interval(score.value, score.low, score.high)}"
    return JudgedRequirement(text, outcome, _said(text, outcome, gap, {row.caveat} - {""}) + more)


def _what_decides(row: ResultRow, least: float, groups: Sequence[str] | None) -> str:
    """What is needed to distinguish a row's score from a number, in words, by the method of its interval."""
    cube = np.array(row.scores)
    scores = cube.mean((0, 1))
    alone = estimate(scores, groups)
    power = Power(errors_of(alone.count, alone.standard_error, alone.freedom, row.spread, cube.shape))
    if not (is_share(cube) and 0 < least < 1):
        return what_is_needed(power, alone.value - least)
    if alone.value in (0, 1) or (groups is None and is_binary(scores)):  # Wilson's, over items or over groups
        per_unit = alone.count / (alone.freedom + 1)
        return items_needed(math.ceil(per_unit * items_of_share(alone.value, least)))
    return what_is_needed(power, (log_odds(alone.value) - log_odds(least)) * alone.value * (1 - alone.value))


def _said(text: str, outcome: Outcome, gap: str, caveats: set[str]) -> str:
    return ", ".join([f"{text}: {outcome}", *sorted(caveats)]) + f" ({gap})"
