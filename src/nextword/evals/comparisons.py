"""Paired comparisons of configurations, with corrections by family, and their verdicts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .paired_tests import Comparison, compare, p_text
from .power import power_of, visible, what_is_needed
from .result_rows import ENOUGH_SEEDS, Choice, ResultRow, full_names
from .statistics import LEVEL, with_interval

Pair = tuple[Choice, Choice]  # before, after


@dataclass(frozen=True)
class PairedComparison:
    """Two configurations on the same items. `p` and interval are corrected for its family."""

    before: str
    after: str
    comparison: Comparison  # its interval is at `level`
    p: float  # times the comparisons of the family (Bonferroni), at most 1
    sentence: str
    primary: bool = True  # between configurations the user named; otherwise with a default baseline
    level: float = LEVEL  # .05 / the number of comparisons in the family
    visible: float | None = None  # the smallest difference it detects with 80% power
    groups: int | None = None  # number of clusters of the error
    note: str = ""  # which rows of two stored evaluations were compared

    @property
    def better(self) -> bool | None:
        """Whether `after` scores higher; None if the difference is not significant."""
        return None if self.p >= LEVEL else self.comparison.difference > 0


@dataclass(frozen=True)
class Family:
    """Comparisons that are corrected jointly."""

    primary: bool
    comparisons: int
    level: float
    sentence: str


def pairs_of(choices: Sequence[Choice], baselines: Container[Choice], asked: Sequence[Pair] = ()) -> dict[Pair, bool]:
    """The pairs to compare, before and after, and whether each is in the primary family.

    More shots with the fewest, calibrations with none, other templates and models with the first at the same shots, and
    the pairs in `asked`; a baseline in `asked` counts as named.
    """
    pairs: dict[Pair, bool] = {}
    first_model, first_template, *_ = choices[0]
    for choice in choices:
        model, template, shots, variant = choice
        plain = variant == "plain"
        fewest = min(count for *names, count, _ in choices if names == [model, template])
        others: list[Choice] = [(model, template, fewest if plain else shots, "plain")]
        if plain:
            others += [(model, first_template, shots, variant), (first_model, template, shots, variant)]
        for other in others:
            if other in choices and other != choice:
                pairs[other, choice] = not (other in baselines or choice in baselines)
    for before, after in asked:
        pairs[(after, before) if (after, before) in pairs else (before, after)] = True
    return pairs


def compare_pairs(
    pairs: Mapping[Pair, bool], rows: Sequence[ResultRow], groups: Sequence[str] | None
) -> tuple[PairedComparison, ...]:
    """All pairs, each corrected for its family."""
    by_choice, sizes = {row.choice: row for row in rows}, Counter(pairs.values())
    full = full_names(rows)
    comparisons = []
    for (before, after), primary in pairs.items():
        sides = [by_choice[choice] for choice in (before, after)]
        names: list[Side] = [(full[row.choice], row.one_set, row.seeds) for row in sides]
        scores = paired(np.array(sides[1].scores), np.array(sides[0].scores))
        comparisons.append(compared(names[0], names[1], scores, groups, primary, sizes[primary]))
    return tuple(comparisons)


Side = tuple[str, bool, int]  # name, whether it is one set of shots, seeds


def compared(
    before: Side, after: Side, scores: tuple[np.ndarray, np.ndarray], groups: Sequence[str] | None, primary: bool,
    family: int, note: str = "",
) -> PairedComparison:  # fmt: skip
    """One comparison of a family of `count`; `scores` are those of after and before."""
    level = LEVEL / family
    comparison = compare(*scores, groups, level)
    p = min(1.0, family * comparison.p)
    return PairedComparison(
        before[0], after[0], comparison, p,
        verdict(after[0], before[0], comparison, p) + _limits(before, after) + note, primary,
        level, visible(power_of(comparison)), None if groups is None else len(set(groups)), note,
    )  # fmt: skip


def paired(after: np.ndarray, before: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores (seeds, permutations, items) that can be subtracted: with the seeds that both have, or one.

    Different numbers of seeds are never averaged first: the difference would lose the error between seeds. Permutations
    are averaged if there are several seeds to carry their error.
    """
    after, before = _as_many(after, before, 0)
    several = max(len(after), len(before)) > 1
    if several and 1 not in (after.shape[1], before.shape[1]) and after.shape[1] != before.shape[1]:
        return after.mean(1, keepdims=True), before.mean(1, keepdims=True)
    return _as_many(after, before, 1)


def _as_many(after: np.ndarray, before: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    least = min(after.shape[axis], before.shape[axis])
    if least == 1:
        return after, before
    return after.take(range(least), axis), before.take(range(least), axis)


def families(comparisons: Sequence[PairedComparison]) -> tuple[Family, ...]:
    """The families of comparisons, each with its correction in words."""
    counts = {primary: sum(pair.primary is primary for pair in comparisons) for primary in (True, False)}
    return tuple(
        Family(primary, count, LEVEL / count, _family_sentence(primary, count))
        for primary, count in counts.items()
        if count
    )


def _family_sentence(primary: bool, count: int) -> str:
    what = f"{count} comparison{'s' * (count != 1)}" + " with baselines" * (not primary)
    if count == 1:
        return f"{what}: no correction, 95% interval"
    return f"{what}: p-values and intervals corrected together (Bonferroni; {1 - LEVEL / count:.1%} intervals)"


def verdict(after: str, before: str, comparison: Comparison, p: float) -> str:
    """Better, worse, or no significant difference, as a sentence. `p` is corrected."""
    items = f"{comparison.count:,} item{'s' * (comparison.count != 1)}"
    gap = f"{with_interval(comparison.difference, comparison.low, comparison.high, '+')}, p {p_text(p)}"
    if p < LEVEL:
        word = "better" if comparison.difference > 0 else "worse"
        return f"{after} is {word} than {before}: {gap}"
    if comparison.difference == 0:
        changed = f"{comparison.changed_share:.0%} changed"
        return f"{after} and {before} scored the same on these {items} ({changed})"
    return (
        f"no significant difference between {after} and {before} ({items}): {gap}. To detect a true difference of this"
        f" size, {what_is_needed(power_of(comparison), comparison.difference)}"
    )


def _limits(*sides: Side) -> str:
    """A caveat if a side has one set of shots, or few."""
    if any(one_set for _, one_set, _ in sides):
        return f". Another set may score differently: use --fewshot-seeds {ENOUGH_SEEDS} or more"
    few = [seeds for *_, seeds in sides if 1 < seeds < ENOUGH_SEEDS]
    return f". From {min(few)} few-shot seeds; use {ENOUGH_SEEDS} or more" if few else ""
