"""Two evaluations of the store: what is compared, over which rows, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from scipy.special import expit
from test_summary import collected, right

from nextword.base import UsageError
from nextword.evals.comparisons import paired
from nextword.evals.paired_tests import compare
from nextword.evals.results import Collected
from nextword.evals.store import Stored
from nextword.evals.stored import compare_stored
from nextword.evals.summary import summarise


def kept(name: str, given: Collected) -> Stored:
    """As it comes back from the store."""
    return Stored(name, 0.0, json.loads(json.dumps(summarise(given).to_dict())))


def copies(share: float, seed: int) -> np.ndarray:
    """40 reviews × 5 copies: a review's copies are answered alike."""
    return np.repeat(right(share, 1, 1, 40, seed=seed), 5, axis=2)


GROUPS = [str(n // 5) for n in range(200)]


def test_groups_are_kept_and_a_stored_pair_is_as_unsure_as_one_run() -> None:
    before, after = copies(0.5, 1), copies(0.75, 2)
    together = summarise(collected({(0,): before, (0, "plain", "model", "second"): after}, GROUPS)).comparisons[0]
    one, other = kept("one", collected({(0,): before}, GROUPS)), kept("other", collected({(0,): after}, GROUPS))
    (found,) = compare_stored(one, other)
    assert (found.comparison.p, found.comparison.low) == (together.comparison.p, together.comparison.low)
    assert found.groups == 40
    (half,) = compare_stored(one, kept("other", collected({(0,): after})))  # one side alone knew the groups
    assert half.comparison == found.comparison
    (neither,) = compare_stored(kept("one", collected({(0,): before})), kept("other", collected({(0,): after})))
    assert neither.comparison.standard_error < 0.6 * found.comparison.standard_error
    other_names = kept("other", collected({(0,): after}, [f"shop {name}" for name in GROUPS]))
    assert compare_stored(one, other_names)[0].comparison == found.comparison
    otherwise = kept("other", collected({(0,): after}, [str(n // 4) for n in range(200)]))
    with pytest.raises(UsageError, match="'one' and 'other' group the same rows differently"):
        compare_stored(one, otherwise)


def test_rows_are_paired_by_what_they_say_whatever_the_file_and_their_order() -> None:
    scores, order = right(0.6, 1, 1, 50), np.random.default_rng(0).permutation(50)
    one = kept("one", collected({(0,): scores}))
    moved = kept("moved", collected({(0,): scores[:, :, order]}, name="another file", rows=list(order)))
    (found,) = compare_stored(one, moved)
    assert found.comparison.changed_share == 0
    assert found.note == ""


def test_rows_that_only_one_asked_are_left_out_and_told() -> None:
    one = kept("one", collected({(0,): right(0.6, 1, 1, 60)}))
    other = kept("other", collected({(0,): right(0.6, 1, 1, 50, seed=1)}, rows=list(range(20, 70))))
    (found,) = compare_stored(one, other)
    assert found.comparison.count == 40
    assert found.note.endswith("over the 40 rows that both scored, of 60 and 50")
    assert found.sentence.endswith(found.note)


def test_other_data_other_metrics_and_old_results_are_refused_by_name() -> None:
    def pair(**changed: Any) -> tuple[Stored, Stored]:
        one, other = (kept(name, collected({(0,): right(0.6, 1, 1, 20)})) for name in ("one", "other"))
        return one, Stored("other", 0.0, other.result | changed)

    apart = kept("other", collected({(0,): right(0.6, 1, 1, 20)}, rows=list(range(19, 39))))
    with pytest.raises(UsageError, match=r"'one' and 'other' share 1 row;.*paired by their content"):
        compare_stored(pair()[0], apart)
    with pytest.raises(UsageError, match="'one' measured accuracy and 'other' exact_match"):
        compare_stored(*pair(metric="exact_match"))
    old = Stored("other", 0.0, {"places": ["test 0"], "task": "quiz"})
    with pytest.raises(UsageError, match=r"'other' was stored by another version.*Run it again"):
        compare_stored(pair()[0], old)
    nameless = [row | {"digest": ""} for row in pair()[1].result["scored_rows"]]
    with pytest.raises(UsageError, match="'other' was stored without digests of its rows"):
        compare_stored(*pair(scored_rows=nameless))
    with pytest.raises(UsageError, match="have no row with the same shots and variant"):
        compare_stored(pair()[0], kept("other", collected({(4,): right(0.6, 5, 1, 20)})))


def test_lines_match_by_shots_and_by_form_where_both_have_several() -> None:
    two = {(0, "plain", "model", form): right(0.6, 1, 1, 40, seed=seed) for seed, form in enumerate("xy")}
    one_form = {(0, "plain", "model", "z"): right(0.6, 1, 1, 40, seed=5)}
    assert [
        (each.before, each.after) for each in compare_stored(kept("a", collected(two)), kept("b", collected(two)))
    ] == [
        ("a, x, 0 shots", "b, x, 0 shots"),
        ("a, y, 0 shots", "b, y, 0 shots"),
    ]
    assert len(compare_stored(kept("a", collected(two)), kept("b", collected(one_form)))) == 2


def test_one_set_of_shots_stays_one_set_in_the_store() -> None:
    one, five = kept("a", collected({(4,): right(0.4, 1, 1, 90)})), kept("b", collected({(4,): right(0.9, 5, 1, 90)}))
    (found,) = compare_stored(one, five)
    assert found.before == "a, form, this one set of 4 shots"
    assert found.sentence.endswith("Another set may score differently: use --fewshot-seeds 5 or more")


def test_a_stored_baseline_takes_nothing_from_what_was_named() -> None:
    results = {(0,): right(0.5, 1, 1, 60), (4,): right(0.7, 5, 1, 60), (4, "random labels"): right(0.5, 5, 1, 60)}
    found = compare_stored(kept("a", collected(results)), kept("b", collected(results)))
    assert [(each.primary, each.level) for each in found] == [(True, 0.025), (True, 0.025), (False, 0.05)]


def test_other_numbers_of_draws_keep_the_error_that_draws_add() -> None:
    generator, runs, alarms = np.random.default_rng(5), 300, 0
    for _ in range(runs):
        own = generator.normal(0, 1, 80)
        sides = [
            (generator.random((seeds, 1, 80)) < expit(own + generator.normal(0, 0.7, (seeds, 1, 1)))).astype(float)
            for seeds in (5, 10)
        ]
        alarms += compare(*paired(*sides)).p < 0.05
    assert alarms / runs < 0.09  # .46 where the seeds of each were averaged first
    one, other = (kept(name, collected({(4,): right(0.6, n, 1, 40)})) for name, n in (("a", 5), ("b", 8)))
    (found,) = compare_stored(one, other)
    assert found.comparison.seeds == 5
    assert found.sentence.endswith("Compared over the first 5 few-shot seeds of both")
    (alone,) = compare_stored(one, kept("b", collected({(4,): right(0.6, 1, 1, 40)})))
    assert alone.note == ""


def test_orders_of_other_numbers_are_averaged_only_where_draws_carry_their_error() -> None:
    cube = np.random.default_rng(6).random((4, 3, 20))
    many, few = paired(cube, cube[:, :2])
    assert (many.shape, few.shape) == ((4, 1, 20), (4, 1, 20))
    many, few = paired(cube[:1], cube[:1, :2])
    assert np.array_equal(many, few)
    assert many.shape == (1, 2, 20)


def test_an_evaluation_is_not_compared_with_itself() -> None:
    one = kept("one", collected({(0,): right(0.6, 1, 1, 60)}))
    with pytest.raises(UsageError, match="--compare names 'one' twice"):
        compare_stored(one, one)
