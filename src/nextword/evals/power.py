"""Power analysis: detectable differences, and the items or seeds to detect a given one.

Everything uses the comparison's own error (items, groups, seeds), degrees of freedom and level, so that "these items
detect .1" and "more items alone would not help" are never both printed for one difference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ..base.distributions import BinomialTail, binomial_cdf, binomial_pmf
from .paired_tests import MCNEMAR, Comparison
from .statistics import LEVEL, Errors, normal, student

POWER = 0.8  # probability of detecting a true difference
_MOST = 1_000_000  # items
_MAX_SEEDS = 1_000
_CHANGED = 0.2  # assumed share of items whose score changes, before the run
_BETWEEN = 0.05  # assumed standard deviation of a difference between few-shot seeds, before the run


@dataclass(frozen=True)
class Needed:
    """Items at the present seeds, or seeds at the present items, that detect a difference with 80% power."""

    items: int | None  # None if more items alone would not
    seeds: int | None  # None without seeds, or if more of them alone would not


@dataclass(frozen=True)
class Power:
    """The power of a comparison. `changed` is the share of items that change, for McNemar's test only."""

    errors: Errors
    level: float = LEVEL
    changed: float | None = None
    most: float = math.inf  # largest possible difference

    def shows(self, difference: float, items: float, seeds: float) -> bool:
        """Whether a true `difference` would be detected with 80% power."""
        if self.changed is not None:
            return mcnemar_power(math.ceil(items), difference, self.changed, self.level) >= POWER
        return _visible(self.errors.scaled(items, seeds), self.level) <= difference


def power_of(comparison: Comparison) -> Power:
    """The power of a finished comparison, at its share of changed items (adding two items, one changed)."""
    changed = (
        (comparison.better + comparison.worse + 1) / (comparison.count + 2) if comparison.test == MCNEMAR else None
    )
    return Power(comparison.errors, comparison.level, changed, 1.0 if comparison.shares else math.inf)


def visible(power: Power) -> float | None:
    """The smallest difference detected with 80% power, at the present items and seeds; None if there is none."""
    if power.changed is None:
        smallest = _visible(power.errors, power.level)
        return smallest if math.isfinite(smallest) and smallest <= power.most else None
    low, high = 0.0, 1.0
    if not power.shows(high, power.errors.count, 1):
        return None
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (low, middle) if power.shows(middle, power.errors.count, 1) else (middle, high)
    return high


def _visible(errors: Errors, level: float) -> float:
    """(t at the level + t at the power) times the error (Miller eq. 10, with Student's quantiles)."""
    freedom = errors.freedom
    if freedom <= 0:
        return math.inf
    return (student(freedom, level) + student(freedom, 2 * (1 - POWER))) * errors.total


def needed(power: Power, difference: float) -> Needed:
    """Items, and seeds, that detect `difference` with 80% power. If both are None, more of both are needed."""
    errors, size = power.errors, abs(difference)
    items = _least(lambda n: power.shows(size, n, errors.seeds), errors.count, _MOST)
    seeds = None
    if errors.seeds_freedom and errors.unit == "few-shot seeds":
        seeds = _least(lambda n: power.shows(size, errors.count, n), errors.seeds, _MAX_SEEDS)
    return Needed(items, seeds)


def _least(shows: Callable[[int], bool], there: int, most: int) -> int | None:
    """The smallest number that detects it, starting from the present number."""
    low, high = 1, there
    while not shows(high):
        if high >= most:
            return None
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if shows(middle) else (middle, high)
    return high


def mcnemar_power(count: int, difference: float, changed: float, level: float = LEVEL) -> float:
    """Probability that McNemar's exact test detects a true `difference`, with the right sign, over `count` items.

    The number of changed items is binomial (`changed`, at least `difference`), and so is how many of them are better:
    exact, and below the normal approximation when few items change.
    """
    changed = min(1.0, max(changed, difference))
    if count < 1 or changed == 0:
        return 0.0
    middle, width = count * changed, 8 * math.sqrt(count * changed * (1 - changed)) + 8
    first, last = max(0, math.floor(middle - width)), min(count, math.ceil(middle + width))
    first = max(first, math.ceil(1 - math.log2(level)))  # fewer pairs are never significant, even if all agree
    detected = _detected(first, last, (1 - difference / changed) / 2, level)
    return math.fsum(binomial_pmf(pairs, count, changed) * chance for pairs, chance in detected)


def _detected(first: int, last: int, worse: float, level: float) -> Iterator[tuple[int, float]]:
    """For each number of changed items, the probability of a significant count of worse ones (`worse` of all)."""
    if first > last:
        return
    rarer = _largest(first, level)
    fair, true = BinomialTail(rarer, first, 0.5), BinomialTail(rarer, first, worse)
    for pairs in range(first, last + 1):
        if 2 * (fair.below + fair.next_mass) < level:
            fair.add_success()
            true.add_success()
        yield pairs, true.below
        fair.add_trial()
        true.add_trial()


def _largest(pairs: int, level: float) -> int:
    """The largest significant count of the rarer kind: twice its probability under a fair coin is below the level."""
    low, high = 0, pairs
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if 2 * binomial_cdf(middle, pairs, 0.5) < level else (low, middle)
    return low


def items_of_share(share: float, other: float, level: float = LEVEL) -> float:
    """Items whose Wilson interval excludes `other` with 80% probability if `share` is the true share.

    ((z of the level √(other (1 - other)) + z of the power √(share (1 - share))) / (share - other))², as in Fleiss 1981,
    section 2.2: Wilson's interval contains what the test of one share does not reject.
    """
    under, true = (math.sqrt(each * (1 - each)) for each in (other, share))
    return float(((normal(level) * under + normal(2 * (1 - POWER)) * true) / (share - other)) ** 2)


def items_needed(count: int) -> str:
    """In words."""
    return f"about {count:,} items are needed"


def what_is_needed(power: Power, difference: float) -> str:
    """The items that detect a difference with 80% power, or the seeds if they dominate the error, in words."""
    need, unit = needed(power, difference), power.errors.unit
    if need.items is not None:
        return items_needed(need.items)
    if unit == "permutations":
        return "more permutations or other sets of shots are needed; more items alone would not help"
    if need.seeds is not None:
        return f"about {need.seeds:,} few-shot seeds are needed; more items alone would not help"
    if power.errors.seeds_freedom:
        return "more items and more few-shot seeds are needed"
    return f"more than {_MOST:,} items are needed"


def power_sentence(power: Power, difference: float) -> str:
    """What is needed to detect `difference`, and the smallest detectable one now, as a sentence."""
    errors, smallest = power.errors, visible(power)
    sets = f" and {errors.seeds} {errors.unit}" if errors.seeds_freedom else ""
    shown = "cannot detect any difference" if smallest is None else f"can detect one of {smallest:.3f} or more"
    return (
        f"to detect a true difference of {difference:g} in 80% of runs, {what_is_needed(power, difference)}. These"
        f" {errors.count:,} items{sets} {shown}"
    )


@dataclass(frozen=True)
class Planned:
    """What a comparison can detect, before the run, under the assumptions in `sentence`."""

    difference: float
    visible: float | None  # None if nothing is detectable
    items: int | None  # needed to detect `difference`
    changed: float  # assumed share of items that change
    between: float  # assumed standard deviation of the difference between few-shot seeds
    comparisons: int
    level: float
    sentence: str


def planned_power(
    difference: float, items: int, groups: int | None, seeds: int, comparisons: int, one_set: bool = False
) -> Planned:
    """What `items` in `groups`, with `seeds` sets of shots, would detect, at .05 over all `comparisons`.

    The share of items whose score changes and the standard deviation of the difference between seeds are assumptions,
    stated in the sentence. Items of a group are assumed to change together. `one_set`: all items share the one seed.
    """
    changed, level = max(_CHANGED, difference), LEVEL / max(1, comparisons)
    units = groups if groups is not None else items
    of_seeds = _BETWEEN / math.sqrt(seeds) if seeds > 1 else 0.0
    error = math.sqrt(changed - difference**2) / math.sqrt(units)
    errors = Errors(items, error, units - 1, seeds, of_seeds, of_seeds, seeds - 1)
    power = Power(errors, level, None if groups is not None or seeds > 1 else changed, 1.0)
    assumed = [f"{changed:.0%} of the items change"]
    if seeds > 1:
        assumed.append(f"the difference has a standard deviation of {_BETWEEN:g} between few-shot seeds")
    if one_set:
        assumed.append("conclusions are about this one set of shots")
    if groups is not None:
        assumed.append(f"items of a group change together ({groups:,} groups)")
    together = (
        ("no comparison yet", "one comparison")[comparisons]
        if comparisons < 2
        else (f"{comparisons} comparisons corrected together")
    )
    sentence = f"{power_sentence(power, difference)}. Assumed: {', '.join(assumed)}; {together}"
    least = needed(power, difference).items
    return Planned(difference, visible(power), least, changed, _BETWEEN, comparisons, level, sentence)
