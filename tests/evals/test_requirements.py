"""What a user requires: met only when the statistics say so."""

from __future__ import annotations

import re

import numpy as np
import pytest
from scipy import stats
from test_summary import Cells, collected, right

from nextword.base import UsageError
from nextword.evals.requirements import JudgedRequirement, names_of, read_requirements
from nextword.evals.statistics import wilson
from nextword.evals.summary import summarise

CELLS = {
    (0,): right(0.4, 1, 1, 200), (1,): right(0.42, 5, 1, 200, seed=1), (4,): right(0.9, 5, 1, 200, seed=2),
    (4, "random labels"): right(0.42, 5, 1, 200, seed=3),
}  # fmt: skip


def judged(*require: str, at_least: float | None = None, results: Cells = CELLS) -> list[JudgedRequirement]:
    given = collected(results)
    names = names_of([result.condition.choice for result in given.conditions])
    return list(summarise(given, requirements=read_requirements(require, at_least, names)).requirements)


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("4 shots > 0 shots", "met"),
        ("0 shots > 4 shots", "not met"),
        ("1 shot > 0 shots", "undecided"),
        ("4 shots > 1 shot", "met"),  # not among the usual comparisons
        ("4 shots > 4 shots, random labels", "met"),
        ("this one set of 4 shots > 0 shots", "met"),
        ("4 shots > 0.8", "met"),
        ("4 shots > 0.99", "not met"),
        ("0 shots>.4", "undecided"),
    ],
)
def test_a_requirement_is_met_not_met_or_undecided(text: str, outcome: str) -> None:
    (found,) = judged(text)
    assert found.outcome == outcome
    assert found.sentence.startswith(f"{text}: {outcome}")
    if outcome == "undecided":
        assert "needed" in found.sentence


def test_the_correction_for_all_comparisons_decides() -> None:
    before = np.tile(np.repeat([1.0, 0.0], [40, 40]), (1, 1, 1))
    after = before.copy()
    after[0, 0, 40:47] = 1  # 7 better and 0 worse: p .0156
    results = {(0,): before, (4,): after}
    assert judged("4 shots > 0 shots", results=results)[0].outcome == "met"
    more = {**results, (8,): before, (16,): before, (32,): before}
    assert judged("4 shots > 0 shots", results=more)[0].outcome == "undecided"


def test_a_pair_asked_beside_the_usual_ones_costs_the_others_their_share_of_the_level() -> None:
    names = names_of([("model", "form", *choice) for choice in ((0, "plain"), (1, "plain"), (4, "plain"))])
    asks = read_requirements(["4 shots > 1 shot"], None, names)
    usual, asked = summarise(collected(CELLS)), summarise(collected(CELLS), requirements=asks)
    assert {each.level for each in usual.comparisons if each.primary} == {0.025}
    assert {each.level for each in asked.comparisons if each.primary} == {0.05 / 3}
    assert ("1 shot", "4 shots") in [(each.before, each.after) for each in asked.comparisons]


def test_at_least_speaks_of_every_line_that_was_named() -> None:
    found = judged(at_least=0.4)
    assert [each.outcome for each in found] == ["undecided", "undecided", "met"]
    assert ["0 shots" in found[0].sentence, "4 shots" in found[2].sentence] == [True, True]
    assert [each.outcome for each in judged(at_least=0.85)] == ["not met", "not met", "undecided"]
    assert len(found) == 3  # not of the baselines


def test_what_one_set_of_shots_meets_is_said_of_that_set() -> None:
    results = {(0,): right(0.4, 1, 1, 200), (4,): right(0.9, 1, 1, 200, seed=2)}
    for text in ("4 shots > 0 shots", "4 shots > 0.7"):
        (found,) = judged(text, results=results)
        assert found.sentence.startswith(f"{text}: met, with this one set of shots (")


def test_groups_make_a_requirement_harder() -> None:
    results = {(0,): right(0.5, 1, 1, 120)}
    names = names_of([("model", "form", 0, "plain")])
    groups = [str(n // 30) for n in range(120)]
    outcomes = [
        summarise(collected(results, of), requirements=read_requirements(["0 shots > .3"], None, names))
        .requirements[0]
        .outcome
        for of in (None, groups)
    ]
    assert outcomes == ["met", "undecided"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("4 shot > 0 shots", r"there will be no row '4 shot'. Did you mean 4 shots.*'0 shots', '4 shots'"),
        ("4 shots > 9 shots", "there will be no row '9 shots'"),
        ("4 shots", 'has no ">"'),
        ("4 shots > nan", "there will be no row 'nan'"),
        ("4 shots > 4 shots", "compares a row with itself"),
    ],
)
def test_what_no_line_will_be_called_is_refused_before_the_work(text: str, said: str) -> None:
    names = names_of([("model", "form", 0, "plain"), ("model", "form", 4, "plain")])
    with pytest.raises(UsageError, match=said):
        read_requirements([text], None, names)


def test_a_number_that_no_score_can_be_is_refused() -> None:
    names = names_of([("model", "form", 0, "plain")])
    for require, at_least in ((["0 shots > 90"], None), ([], 95.0), ([], -0.5)):
        with pytest.raises(UsageError, match=r"between 0 and 1, so .* decides nothing"):
            read_requirements(require, at_least, names)


def test_names_tell_forms_and_models_apart_and_may_hold_a_greater_than() -> None:
    choices = [("model", form, 4, "plain") for form in ("a > b", "c")]
    names = names_of(choices)
    assert list(names) == ["a > b, 4 shots", "c, 4 shots"]
    (ask,) = read_requirements(["a > b, 4 shots > c, 4 shots"], None, names)
    assert (ask.after, ask.before) == tuple(choices)


@pytest.mark.parametrize(
    ("right_ones", "count", "least"), [(57, 60, 0.9), (48, 60, 0.75), (59, 60, 0.92), (45, 60, 0.8), (20, 20, 0.9)]
)
def test_the_items_said_to_decide_a_score_do_so_four_times_in_five(right_ones: int, count: int, least: float) -> None:
    scores = np.repeat([1.0, 0.0], [right_ones, count - right_ones])[None, None]
    (found,) = judged(at_least=least, results={(0,): scores})
    assert found.outcome == "undecided"
    said = re.search(r"about ([\d,]+) items are needed", found.sentence)
    assert said is not None
    more, share = int(said[1].replace(",", "")), right_ones / count
    assert more > count
    bounds = np.array([wilson(n, more) for n in range(more + 1)])
    told = bounds[:, 0] >= least if share > least else bounds[:, 1] < least
    chance = float(stats.binom.pmf(np.arange(more + 1), more, share)[told].sum())
    assert chance == pytest.approx(1 if share == 1 else 0.8, abs=0.05)


def test_a_score_of_draws_that_is_undecided_takes_more_than_there_are() -> None:
    for share in (0.8, 0.9, 0.97, 1.0):
        scores = right(share, 5, 1, 40)
        line = summarise(collected({(4,): scores})).rows[0].score
        for least in np.linspace(line.low + 1e-6, min(line.high, 0.9999), 5):
            (found,) = judged(at_least=float(least), results={(4,): scores})
            said = re.search(r"about ([\d,]+) items are needed", found.sentence)
            assert said is None or int(said[1].replace(",", "")) > 40


def test_all_right_may_be_required() -> None:
    assert judged(at_least=1.0, results={(0,): np.ones((1, 1, 60))})[0].outcome == "undecided"
    assert judged(at_least=1.0, results={(0,): right(0.9, 1, 1, 60)})[0].outcome == "not met"
