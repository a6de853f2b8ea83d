"""SamplingParams, case for case: closed forms, a plain restatement as oracle, and draws that are counted."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare
from ways import way  # noqa: F401

from nextword.base import RunError, UsageError
from nextword.engine.sampler import Distribution, Draw, SampleRow, Uniforms, adjust, log_softmax, sample
from nextword.engine.sampling_params import SamplingParams

LOGITS = np.array([3.0, 2.0, 1.0], np.float32)
EVERY_WAY = pytest.mark.usefixtures("way")

# softmax([3, 2, 1] / T), from the closed form to eight places
TABLE = {
    0.25: (0.98169039, 0.01798029, 0.00032932),
    0.5: (0.86681333, 0.11731043, 0.01587624),
    1.0: (0.66524096, 0.24472847, 0.09003057),
    1.5: (0.56274169, 0.28892122, 0.14833710),
    2.0: (0.50648039, 0.30719589, 0.18632372),
    10.0: (0.36716540, 0.33222499, 0.30060961),
}


def drawn(logits: object, sampling: SamplingParams, uniform: float = 0.5, top: int = 0) -> Draw:
    """A token drawn from one row of logits."""
    [draw] = sample(np.array([logits], np.float32), [SampleRow(sampling, uniform, (), (), None, top)])
    if isinstance(draw, RunError):
        raise draw
    return draw


def probabilities(logits: object, **settings: object) -> np.ndarray:
    """Probability with which each token is drawn, in id order."""
    size = np.size(logits)  # type: ignore[arg-type]
    top = drawn(logits, SamplingParams(**settings), top=size).top  # type: ignore[arg-type]
    full = np.full(size, np.nan)
    full[[candidate.id for candidate in top]] = [candidate.sampled_prob for candidate in top]
    return full


def kept(logits: object, **settings: object) -> list[int]:
    return np.flatnonzero(probabilities(logits, **settings)).tolist()


@EVERY_WAY
@pytest.mark.parametrize("temperature", TABLE)
def test_temperature_gives_the_published_probabilities(temperature: float) -> None:
    np.testing.assert_allclose(probabilities(LOGITS, temperature=temperature), TABLE[temperature], atol=5e-9)


@EVERY_WAY
def test_a_huge_temperature_is_nearly_uniform() -> None:
    np.testing.assert_allclose(probabilities(LOGITS, temperature=1e6), 1 / 3, atol=3.4e-7)


@EVERY_WAY
@pytest.mark.parametrize("temperature", [1e-300, 5e-324, 1e-38])
def test_a_tiny_temperature_is_one_hot_without_a_warning(temperature: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(probabilities(LOGITS, temperature=temperature), [1, 0, 0])


@EVERY_WAY
def test_tokens_with_infinitely_low_logits_are_never_drawn_at_any_temperature() -> None:
    np.testing.assert_allclose(probabilities([3.0, -np.inf, 1.0], temperature=1e300), [0.5, 0, 0.5])


@EVERY_WAY
def test_temperature_zero_is_greedy_and_draws_nothing() -> None:
    for uniform in (0.0, 0.5, 1 - 2**-53):
        draw = drawn([1.0, 5.0, 5.0, 2.0], SamplingParams(temperature=0), uniform, top=2)
        assert (draw.token, draw.sampled_prob) == (1, 1.0)
        assert [(candidate.id, candidate.sampled_prob) for candidate in draw.top] == [(1, 1.0), (2, 0.0)]


@pytest.mark.parametrize("temperature", [-1.0, math.nan, math.inf, -math.inf])
def test_a_temperature_that_makes_no_sense_is_refused(temperature: float) -> None:
    with pytest.raises(UsageError, match="temperature"):
        SamplingParams(temperature=temperature)


@pytest.mark.parametrize(
    "settings",
    [
        {"top_p": 1.1},
        {"top_p": math.nan},
        {"top_k": -1},
        {"min_p": -0.1},
        {"typical_p": 2.0},
        {"repetition_penalty": 0.0},
        {"seed": -1},
        {"order": ("heat",)},
        {"order": ("top_k", "top_k")},
        {"logit_bias": {1: math.nan}},
        {"presence_penalty": math.inf},
    ],
)
def test_a_setting_outside_its_range_is_refused_by_name(settings: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=next(iter(settings))):
        SamplingParams(**settings)  # type: ignore[arg-type]


@EVERY_WAY
def test_temperature_comes_before_top_p_unless_asked_otherwise() -> None:
    assert kept(LOGITS, top_p=0.8, temperature=0.5) == [0]
    assert kept(LOGITS, top_p=0.8, temperature=0.5, order=("top_p", "temperature")) == [0, 1]


@EVERY_WAY
@pytest.mark.parametrize(("temperature", "first", "last"), [(0.5, 2, 4), (1.0, 4, 4), (2.0, 5, 4)])
def test_min_p_depends_on_the_order(temperature: float, first: int, last: int) -> None:
    z = np.log([0.5, 0.25, 0.15, 0.07, 0.03])
    assert len(kept(z, min_p=0.1, temperature=temperature)) == first
    assert len(kept(z, min_p=0.1, temperature=temperature, order=("min_p", "temperature"))) == last


@EVERY_WAY
def test_top_k_keeps_exactly_k_and_breaks_ties_by_id() -> None:
    assert kept([1.0, 1.0, 1.0, 0.0], top_k=2) == [0, 1]
    assert kept([0.0, 1.0, 1.0, 1.0], top_k=2) == [1, 2]
    assert kept(np.zeros(3000), top_k=2999) == list(range(2999))


@EVERY_WAY
def test_top_p_of_one_changes_nothing_bit_for_bit() -> None:
    z = np.random.default_rng(0).normal(size=1000) * 4
    np.testing.assert_array_equal(probabilities(z, top_p=1.0), probabilities(z))


@EVERY_WAY
def test_top_p_of_zero_still_keeps_the_likeliest_token() -> None:
    assert kept(LOGITS, top_p=0.0) == [0]


@EVERY_WAY
def test_typical_p_keeps_the_tokens_nearest_to_the_entropy() -> None:
    p = np.array([0.4, 0.3, 0.2, 0.1])
    entropy = -(p * np.log(p)).sum()  # 1.2799; surprises .916 1.204 1.609 2.303
    nearest = int(np.argmin(np.abs(-np.log(p) - entropy)))
    assert kept(np.log(p), typical_p=0.25) == [nearest]
    assert kept(np.log(p), typical_p=0.45) == [1, 2]


@EVERY_WAY
def test_what_typical_p_leaves_is_weighed_against_its_own_likeliest_token() -> None:
    z = np.log([0.4, 0.3, 0.2, 0.1])
    order = ("typical_p", "temperature", "min_p")  # token 0 goes first, and is not what min_p compares with
    assert kept(z, typical_p=0.45, temperature=1e-6, min_p=0.9, order=order) == [1]


def test_penalties_and_bias_act_on_raw_logits() -> None:
    z = np.array([2.0, -2.0, 1.0, 0.5])
    both = SamplingParams(repetition_penalty=2.0)
    np.testing.assert_allclose(adjust(z, both, [0], [1]), [1.0, -4.0, 1.0, 0.5])
    generated_only = SamplingParams(presence_penalty=0.5, frequency_penalty=0.25)
    np.testing.assert_allclose(adjust(z, generated_only, [0, 2], [3, 3]), [2.0, -2.0, 1.0, -0.5])
    biased = SamplingParams(logit_bias={2: 5.0, 0: -math.inf})
    np.testing.assert_allclose(adjust(z, biased, [], []), [-math.inf, -2.0, 6.0, 0.5])
    assert adjust(z, SamplingParams(temperature=0.3), [0], [1]) is z


def test_a_bias_beyond_the_vocabulary_is_refused() -> None:
    with pytest.raises(UsageError, match="token 9"):
        adjust(LOGITS, SamplingParams(logit_bias={9: 1.0}), [], [])


def restated(z: np.ndarray, top_k: int, top_p: float, min_p: float, temperature: float) -> np.ndarray:
    """The same rules the slow and obvious way: sort all, loop, renormalise after each."""
    order = sorted(range(z.size), key=lambda i: (-z[i], i))
    w = [math.exp((z[i] - z.max()) / temperature) for i in order]
    if top_k:
        order, w = order[:top_k], w[:top_k]
    if top_p < 1:
        total, mass, count = math.fsum(w), 0.0, 0
        while mass / total < top_p and count < len(w):
            mass += w[count]
            count += 1
        order, w = order[: max(count, 1)], w[: max(count, 1)]
    if min_p:
        order, w = zip(*[(i, x) for i, x in zip(order, w, strict=True) if x >= min_p * w[0]], strict=True)
    p = np.zeros(z.size)
    p[list(order)] = np.array(w) / math.fsum(w)
    return p


@EVERY_WAY
@pytest.mark.parametrize("seed", range(60))
def test_truncations_equal_the_plain_restatement(seed: int) -> None:
    rng = np.random.default_rng(seed)
    z = np.round(rng.normal(size=rng.integers(1, 400)) * rng.choice([0.0, 0.3, 4.0, 40.0]), 2).astype(np.float32)
    settings = {
        "top_k": int(rng.choice([0, 0, rng.integers(1, 50)])),
        "top_p": float(rng.choice([1.0, 0.999, 0.9, 0.5, 0.01])),
        "min_p": float(rng.choice([0.0, 0.01, 0.3])),
        "temperature": float(rng.choice([0.2, 1.0, 3.0])),
    }
    expected = restated(z.astype(float), **settings)  # type: ignore[arg-type]
    np.testing.assert_allclose(probabilities(z, **settings), expected, atol=1e-12)


def test_a_whole_distribution_is_all_that_can_be_drawn_likeliest_first() -> None:
    z = np.random.default_rng(1).normal(size=5000) * 6
    ids, p = Distribution(z, SamplingParams(temperature=2), whole=True).probabilities()
    np.testing.assert_array_equal(ids, np.argsort(-z, kind="stable"))
    np.testing.assert_allclose(p, np.exp(z[ids] / 2) / np.exp(z / 2).sum(), rtol=1e-12)


@given(st.floats(0.1, 5), st.floats(0.1, 5))
def test_entropy_does_not_fall_with_temperature(first: float, second: float) -> None:
    low, high = sorted((first, second))

    def entropy(temperature: float) -> float:
        p = probabilities(LOGITS, temperature=temperature)
        return float(-(p * np.log(p)).sum())

    assert entropy(high) >= entropy(low) - 1e-12


def test_log_softmax_sums_to_one_far_from_zero() -> None:
    np.testing.assert_allclose(np.exp(log_softmax(np.array([1e4, 1e4 - 1, -1e4]))).sum(), 1.0)


def test_a_draw_depends_on_seed_choice_and_position_and_nothing_else() -> None:
    numbers = {Uniforms(s, c).at(p) for s in range(4) for c in range(4) for p in range(64)}
    assert len(numbers) == 4 * 4 * 64
    assert all(0 <= u < 1 and (u * 2**53).is_integer() for u in numbers)


def test_random_numbers_do_not_depend_on_the_order_in_which_positions_are_asked_for() -> None:
    def alone(position: int) -> float:
        """The definition: the first word of Philox keyed by (seed, sample), counter = position."""
        key, counter = np.array([2**64 - 1, 3], np.uint64), np.array([position, 0, 0, 0], np.uint64)
        return float(np.random.Philox(key=key, counter=counter).random_raw() >> 11) * 2.0**-53

    uniforms = Uniforms(2**64 - 1, 3)
    for position in (0, 1, 255, 256, 257, 5, 100_000, 256, 511):
        assert uniforms.at(position) == alone(position)


def test_random_numbers_of_neighbouring_positions_are_uniform_and_independent() -> None:
    uniforms = Uniforms(0, 0)
    u = np.array([uniforms.at(p) for p in range(20_000)])
    assert chisquare(np.histogram(u, 100, (0, 1))[0]).pvalue > 1e-4
    assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 0.03


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_draws_fit_the_softmax_and_would_not_fit_a_temperature_5_percent_off(temperature: float) -> None:
    z = (np.random.default_rng(2).normal(size=(1, 20)) * 3).astype(np.float32)
    sampling, uniforms, count = SamplingParams(temperature=temperature), Uniforms(17, 0), 40_000
    rows = [SampleRow(sampling, uniforms.at(position), (), ()) for position in range(count)]
    tokens = [draw.token for draw in sample(z, rows, [0] * count) if isinstance(draw, Draw)]
    hits = np.bincount(tokens, minlength=z.size)

    def fit(heat: float) -> float:
        weights = np.exp((z[0].astype(float) - z.max()) / heat)
        expected = weights / weights.sum() * count
        bins = np.where(expected >= 5, np.arange(z.size), np.argmax(expected))  # the rare ones join the likeliest
        observed, wanted = np.bincount(bins, hits), np.bincount(bins, expected)
        return float(chisquare(observed[wanted > 0], wanted[wanted > 0]).pvalue)

    assert fit(temperature) > 1e-4
    assert fit(temperature * 1.05) < 1e-4


def test_the_tail_is_drawn_as_often_as_its_probability_says() -> None:
    z = np.zeros((1, 262_145), np.float32)
    z[0, 7] = 20.5
    uniforms, most = Uniforms(0, 0), 1 / (1 + 262_144 * math.exp(-20.5)) - 1e-9  # of the head's cumulative probability
    numbers = [u for position in range(100_000) if (u := uniforms.at(position)) >= most]  # below, it is the head
    rows = [SampleRow(SamplingParams(), u, (), ()) for u in [0.0, most, *numbers]]
    tokens = [draw.token for draw in sample(z, rows, [0] * len(rows)) if isinstance(draw, Draw)]
    assert tokens[:2] == [7, 7]
    assert 13 <= sum(token != 7 for token in tokens) <= 56  # 32.8 expected


@EVERY_WAY
def test_a_token_of_no_probability_is_never_drawn() -> None:
    for u in (0.0, 0.5, 1 - 2**-53):
        assert drawn([0.0, -2000.0, -np.inf], SamplingParams(), u).token == 0
