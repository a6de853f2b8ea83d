"""Which examples stand in a prompt: drawn, balanced, reordered, relabelled, nearest; and which items are scored."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextword.base import UsageError
from nextword.evals.design import Design, Sampler
from nextword.evals.fewshot import nearest, permuted, repeated_items, sample_shots, with_random_answers
from nextword.evals.grid import scored_items, trials_of
from nextword.evals.task import Item, PromptFormat, Task
from nextword.evals.template import Template

LABELS = ("bad", "fine", "good")
FORM = PromptFormat(Template.parse("Text: {text}\nMood: {label}", "label"), "label", LABELS)
SEEDS = st.integers(0, 1000)
SAMPLERS: tuple[Sampler, ...] = ("random", "balanced", "first")


def items(split: str, count: int, start: int = 0) -> tuple[Item, ...]:
    """Two rows of three are "good"."""
    return tuple(
        Item(split, n, {"text": f"text {start + n}", "label": LABELS[n % 3] if n % 3 < 2 and n % 2 else "good"})
        for n in range(count)
    )


def task(pool: int = 60, scored: int = 30) -> Task:
    return Task("moods", items("test", scored, 1000), items("shots", pool), FORM)


def one_split(count: int = 40) -> Task:
    rows = items("test", count)
    return Task("moods", rows, rows, FORM)


@given(sampler=st.sampled_from(SAMPLERS), seed=SEEDS, number=st.integers(0, 4), count=st.integers(0, 59))
def test_more_shots_keep_those_before_them(sampler: Sampler, seed: int, number: int, count: int) -> None:
    fewer, whole = (sample_shots(task(), each, sampler, seed, number) for each in (count, 60))
    assert whole[:count] == fewer
    assert len({shot.row_id for shot in whole}) == 60


def test_a_few_shots_of_a_middling_pool_are_the_first_of_more() -> None:
    # random.sample takes another path for few of many than for more: its smaller samples need not begin its larger ones
    for seed in range(40):
        more = sample_shots(task(40), 8, "random", seed, 0)
        assert all(sample_shots(task(40), count, "random", seed, 0) == more[:count] for count in range(1, 8))


def test_draws_and_seeds_differ_and_first_is_the_file_s_order() -> None:
    assert sample_shots(task(), 8, "random", 0, 0) != sample_shots(task(), 8, "random", 0, 1)
    assert sample_shots(task(), 8, "random", 0, 0) != sample_shots(task(), 8, "random", 1, 0)
    assert [shot.index for shot in sample_shots(task(), 8, "first", 3, 2)] == list(range(8))


def test_every_example_is_drawn_as_often() -> None:
    seen = Counter(shot.index for seed in range(1500) for shot in sample_shots(task(30), 6, "random", seed, 0))
    expected = 1500 * 6 / 30
    chi_squared = sum((seen[n] - expected) ** 2 / expected for n in range(30))
    assert chi_squared < 58.3  # of 29 degrees of freedom: one seed in a thousand


@given(SEEDS, st.integers(0, 4), st.integers(0, 10))
def test_balanced_shots_have_every_label_equally_often(seed: int, number: int, rounds: int) -> None:
    counts = Counter(shot.values["label"] for shot in sample_shots(task(), 3 * rounds, "balanced", seed, number))
    assert counts == (dict.fromkeys(LABELS, rounds) if rounds else {})
    one_more = Counter(shot.values["label"] for shot in sample_shots(task(), 3 * rounds + 1, "balanced", seed, number))
    assert max(one_more.values()) == rounds + 1


def test_balanced_shots_go_on_when_a_label_runs_out() -> None:
    counts = Counter(shot.values["label"] for shot in sample_shots(task(), 60, "balanced", 0, 0))
    assert counts == Counter(item.values["label"] for item in task().fewshot_pool)


def test_no_label_always_comes_last_among_balanced_shots() -> None:
    last = Counter(sample_shots(task(), 6, "balanced", seed, 0)[-1].values["label"] for seed in range(300))
    assert min(last.values()) > 60
    assert len(last) == 3


def test_too_few_examples_are_told() -> None:
    with pytest.raises(UsageError, match="61 shots cannot be drawn from 60 examples"):
        sample_shots(task(), 61, "random", 0, 0)


@given(SEEDS, st.integers(0, 6), st.integers(0, 12))
def test_another_order_keeps_the_set(seed: int, permutation: int, count: int) -> None:
    shots = sample_shots(task(), count, "random", seed, 0)
    moved = permuted(shots, seed, permutation)
    assert sorted(shot.index for shot in moved) == sorted(shot.index for shot in shots)
    assert permutation or moved == shots
    assert moved == permuted(shots, seed, permutation)


def test_orders_differ() -> None:
    shots = sample_shots(task(), 8, "random", 0, 0)
    assert len({tuple(shot.index for shot in permuted(shots, 0, permutation)) for permutation in range(5)}) == 5


@given(SEEDS)
def test_random_labels_change_labels_and_nothing_else(seed: int) -> None:
    shots = sample_shots(task(), 12, "random", seed, 0)
    blind = with_random_answers(task(), shots, seed, 0)
    assert [shot.row_id for shot in blind] == [shot.row_id for shot in shots]
    assert [shot.values["text"] for shot in blind] == [shot.values["text"] for shot in shots]
    assert {shot.values["label"] for shot in blind} <= set(LABELS)
    assert blind == with_random_answers(task(), shots, seed, 0)


def test_random_labels_are_each_label_equally_often_whatever_the_true_one_and_new_in_each_draw() -> None:
    shots = sample_shots(task(), 8, "random", 0, 0)
    drawn = [with_random_answers(task(), shots, seed, number) for seed in range(200) for number in range(2)]
    for place, shot in enumerate(shots):
        seen = Counter(blind[place].values["label"] for blind in drawn)
        assert all(90 < seen[label] < 180 for label in LABELS), shot  # of 400
    words = [[shot.values["label"] for shot in blind] for blind in drawn]
    same = np.mean([one == other for one, other in zip(words[::2], words[1::2], strict=True)])
    assert same < 0.05


def test_random_labels_of_two_draws_of_an_evaluation_differ() -> None:
    design = Design(shots=(8,), fewshot_seeds=5)
    asked = task()
    blind = {
        tuple(shot.values["label"] for shot in trial.shots[None])
        for trial in trials_of(asked, "model", "template", design)
        if trial.condition.variant == "random labels"
    }
    assert len(blind) == 5


@given(sampler=st.sampled_from(SAMPLERS), seed=SEEDS, limit=st.none() | st.integers(1, 8))
def test_no_item_stands_among_its_own_shots_though_both_come_from_one_split(
    sampler: Sampler, seed: int, limit: int | None
) -> None:
    asked, design = (
        one_split(),
        Design(shots=(0, 4), fewshot_seeds=3, permutations=2, sampler=sampler, seed=seed, limit=limit),
    )
    chosen = scored_items(asked, design)
    assert chosen
    for trial in trials_of(asked, "model", "template", design):
        for item in chosen:
            assert item.row_id not in {shot.row_id for shot in trial.shots_of(item)}
            assert all(f"Text: {item.values['text']}\nMood: " not in each.context for each in trial.requests(item))


def test_all_examples_taken_for_shots_leaves_none_to_score() -> None:
    with pytest.raises(UsageError, match="none is left to score"):
        scored_items(one_split(8), Design(shots=(8,), fewshot_seeds=1))


def test_shots_of_other_rows_cost_no_item() -> None:
    assert scored_items(task(), Design(shots=(8,))) == task().items


def test_a_limit_takes_a_seeded_sample_in_the_file_s_order() -> None:
    def taken(seed: int) -> list[int]:
        return [item.index for item in scored_items(task(), Design(limit=10, seed=seed))]

    assert taken(0) == taken(0) == sorted(taken(0))
    assert taken(0) != taken(1)
    assert taken(0) != list(range(10))  # a file sorted by label would show one label only
    seen = Counter(index for seed in range(600) for index in taken(seed))
    assert all(140 < seen[n] < 260 for n in range(30))  # 200 each


@given(st.integers(0, 500), st.integers(1, 7))
def test_the_nearest_shots_are_those_of_the_smallest_angle_the_nearest_last(seed: int, count: int) -> None:
    generator = np.random.default_rng(seed)
    pool, scored = (generator.normal(size=(n, 5)) for n in (7, 4))
    pool, scored = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (pool, scored))
    found = nearest(pool, scored, count)
    assert found.shape == (4, count)
    for vector, row in zip(scored, found, strict=True):
        angles = [float(np.arccos(np.clip(sum(vector * other), -1, 1))) for other in pool]
        assert list(row) == sorted(range(7), key=lambda n: angles[n])[:count][::-1]


def test_questions_that_stand_in_the_pool_as_well_are_found_whatever_their_case_and_spaces() -> None:
    pool = (
        Item("shots", 0, {"text": "A  Joy", "label": "bad"}),
        Item("shots", 1, {"text": "a bore", "label": "bad"}),
    )
    scored = (
        Item("test", 0, {"text": "a joy ", "label": "good"}),
        Item("test", 1, {"text": "another", "label": "good"}),
    )
    found = repeated_items(Task("moods", scored, pool, FORM))
    assert found == 1


def test_a_row_of_one_split_does_not_repeat_itself_but_a_copy_of_it_does() -> None:
    assert repeated_items(one_split()) == 0
    rows = (*items("test", 5), Item("test", 5, {"text": "text 2", "label": "good"}))
    assert repeated_items(Task("moods", rows, rows, FORM)) == 2
