"""What a user requires of an evaluation ("4 shots > 0 shots", at least .9), and whether its statistics say so."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..base import UsageError
from ..base.errors import closest
from .comparing import p_text
from .comparisons import Compared, Pair
from .errorbars import errors_of, estimate, is_binary, is_share, log_odds, with_interval
from .lines import Choice, Line, full_name, line_name, several
from .power import Power, items_needed, items_of_share, power_of, what_is_needed

Outcome = Literal["met", "not met", "undecided"]


@dataclass(frozen=True)
class Ask:
    """One requirement: `after` scores more than another configuration, or at least a number."""

    text: str
    after: Choice | None  # None: every configuration that the user named
    before: Choice | float


@dataclass(frozen=True)
class Requirement:
    """Whether a requirement is met. Only what the corrected comparison, or the 95% interval, shows counts as met."""

    text: str
    outcome: Outcome
    sentence: str


def names_of(choices: Sequence[Choice]) -> dict[str, Choice]:
    """The lines there will be, by name; one set of shots goes by the number of its shots too."""
    choices = list(dict.fromkeys(choices))
    differ = several(choices)
    return {
        full_name(model, form, line_name(shots, variant, False), differ): (model, form, shots, variant)
        for model, form, shots, variant in choices
    }


def asks_of(
    require: Sequence[str], at_least: float | None, names: Mapping[str, Choice], shares: bool = True
) -> tuple[Ask, ...]:
    """`--require` and `--at-least` as asks.

    Raises UsageError for a name that no line will have, and, where scores are `shares`, for a number that none can be.
    """
    found = [_ask(text, names) for text in require]
    if at_least is not None:
        if not math.isfinite(at_least):
            raise UsageError(f"--at-least is {at_least}; it must be a number, such as 0.9")
        found.append(Ask(f"--at-least {at_least:g}", None, at_least))
    for ask in found:
        if shares and isinstance(ask.before, float) and not 0 <= ask.before <= 1:
            raise UsageError(f"{ask.text}: scores lie between 0 and 1, so that {ask.before:g} decides nothing")
    return tuple(found)


def _ask(text: str, names: Mapping[str, Choice]) -> Ask:
    """Names may hold a '>' of their own, so that every one of the text is tried."""
    parts = text.split(">")
    halves = [(">".join(parts[:n]), ">".join(parts[n:])) for n in range(1, len(parts))]
    if not halves:
        raise UsageError(f'--require {text!r} has no ">". Write it as "4 shots > 0 shots" or "4 shots > 0.9"')
    for left, right in halves:
        after, before = names.get(_plain(left)), names.get(_plain(right), _number(right))
        if after is not None and before is not None:
            if after == before:
                raise UsageError(f"--require {text!r} compares a line with itself")
            return Ask(text, after, before)
    left, right = halves[0]
    unknown = left if _plain(left) not in names else right
    listed = ", ".join(map(repr, names))
    near = closest(_plain(unknown), names)
    raise UsageError(f"--require {text!r}: there will be no line {_plain(unknown)!r}.{near} The lines are {listed}")


def _plain(name: str) -> str:
    return " ".join(name.split()).replace("this one set of ", "")


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def pairs_asked(asks: Sequence[Ask]) -> list[Pair]:
    """The pairs that are to be compared, before and after."""
    return [(ask.before, ask.after) for ask in asks if ask.after is not None and not isinstance(ask.before, float)]


def judge(
    asks: Sequence[Ask], lines: Sequence[Line], compared: Mapping[Pair, Compared], groups: Sequence[str] | None
) -> tuple[Requirement, ...]:
    """Each ask by its comparison, which may stand the other way round, or by its lines' intervals."""
    found, differ = [], several([line.choice for line in lines])
    for ask in asks:
        if ask.after is None or isinstance(ask.before, float):
            assert isinstance(ask.before, float)
            chosen = [line for line in lines if (line.choice == ask.after if ask.after else line.variant == "plain")]
            found += [_by_interval(ask.text, ask.before, line, groups, differ) for line in chosen]
        else:
            pair, way = (ask.before, ask.after), 1
            if pair not in compared:
                pair, way = (ask.after, ask.before), -1
            caveats = {line.caveat for line in lines if line.choice in pair and line.caveat}
            found.append(_by_comparison(ask.text, compared[pair], way, caveats))
    return tuple(found)


def _by_comparison(text: str, found: Compared, way: int, caveats: set[str]) -> Requirement:
    each = found.comparison
    low, high = sorted((way * each.low, way * each.high))
    gap = f"{with_interval(way * each.difference, low, high, '+')}, p {p_text(found.p)}"
    outcome: Outcome = "undecided" if found.better is None else "met" if found.better == (way > 0) else "not met"
    more = ""
    if outcome == "undecided" and each.difference:
        more = f". To detect a true difference of this size, {what_is_needed(power_of(each), each.difference)}"
    return Requirement(text, outcome, _said(text, outcome, gap, caveats) + more)


def _by_interval(
    text: str, least: float, line: Line, groups: Sequence[str] | None, differ: tuple[bool, bool]
) -> Requirement:
    score = line.score
    outcome: Outcome = "met" if score.low >= least else "not met" if score.high < least else "undecided"
    name = full_name(line.model, line.form, line.name, differ)
    more = ""
    if outcome == "undecided" and score.value != least:
        more = f". If {score.value:.3f} is the true score, {_what_decides(line, least, groups)}"
    gap = f"{name} {with_interval(score.value, score.low, score.high)}"
    return Requirement(text, outcome, _said(text, outcome, gap, {line.caveat} - {""}) + more)


def _what_decides(line: Line, least: float, groups: Sequence[str] | None) -> str:
    """What tells a line's score from a number, in words: on the scale of its interval."""
    cube = np.array(line.scores)
    scores = cube.mean((0, 1))
    alone = estimate(scores, groups)
    power = Power(errors_of(alone.count, alone.standard_error, alone.freedom, line.spread, cube.shape))
    if not (is_share(cube) and 0 < least < 1):
        return what_is_needed(power, alone.value - least)
    if alone.value in (0, 1) or (groups is None and is_binary(scores)):  # Wilson's, over items or over groups
        each = alone.count / (alone.freedom + 1)
        return items_needed(math.ceil(each * items_of_share(alone.value, least)))
    return what_is_needed(power, (log_odds(alone.value) - log_odds(least)) * alone.value * (1 - alone.value))


def _said(text: str, outcome: Outcome, gap: str, caveats: set[str]) -> str:
    return ", ".join([f"{text}: {outcome}", *sorted(caveats)]) + f" ({gap})"
