"""The learning rates of small models against scans of sweeps: the minimum of a parabola through the best rates."""

from __future__ import annotations

import pytest

from nextword.plan import device, flops, run_for, shape_for
from nextword.plan.rates import small_rate
from nextword.plan.shape_search import recurrent_for

SCANS = [  # kind, M, tokens a step, best rate: benchmarks/small_runs.csv, and docs/decisions.md for the last two
    ("transformer", 23_040, 512, 0.0072), ("lstm", 22_800, 512, 0.036), ("gru", 22_572, 512, 0.0165),
    ("rnn", 22_820, 512, 0.0115), ("transformer", 132_000, 2048, 0.0045), ("transformer", 541_000, 2048, 0.0025),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "size", "batch", "best"), SCANS)
def test_the_rate_of_a_small_model_is_near_the_best_of_a_scan(kind: str, size: float, batch: int, best: float) -> None:
    assert 1 / 1.75 < small_rate(kind, size, batch) / best < 1.75  # type: ignore[arg-type]


def test_a_recurrent_model_of_any_size_has_its_kinds_rate_and_a_large_transformer_the_published_one() -> None:
    """DeepSeek LLM: .3118 C^-.125 (2401.02954, section 3.1)."""
    assert run_for(shape_for(124e6), 1e19, device("h100")).train.learning_rate == pytest.approx(0.00132, rel=0.02)
    small, large = (run_for(recurrent_for(count, "lstm"), 1e14, device("h100")).train for count in (1e5, 1e7))
    assert small.learning_rate > 2 * large.learning_rate > 0.006


def test_the_rate_grows_with_the_root_of_the_batch_up_to_what_was_tried() -> None:
    assert small_rate("rnn", 1e5, 2048) == pytest.approx(2 * small_rate("rnn", 1e5, 512))
    assert small_rate("rnn", 1e5, 1e6) == small_rate("rnn", 1e5, 8192)


def test_rates_of_transformers_do_not_jump_where_the_published_rule_takes_over() -> None:
    shapes = (shape_for(count, context=256) for count in (7e5, 1.3e6))
    below, above = (run_for(spec, 20 * flops(spec).per_token ** 2 / 6, device("h100")) for spec in shapes)
    assert flops(below.spec).per_token / 6 < 1e6 < flops(above.spec).per_token / 6
    assert 0.5 < above.train.learning_rate / below.train.learning_rate < 2
