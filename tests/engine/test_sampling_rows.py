"""One call for all rows: against the earlier sampler, row for row, and to the bit whatever else is in the call."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ways import way  # noqa: F401

from nextword import native
from nextword.base import RunError
from nextword.engine.sampler import Draw, SampleRow, adjust, sample
from nextword.engine.sampling_params import ORDER, SamplingParams

sys.path.append(str(Path(__file__).parents[1] / "oracles"))
import plain_sampler as oracle

EVERY_WAY = pytest.mark.usefixtures("way")
COMPILED = pytest.mark.skipif(not native.available(), reason="the compiled kernels were not built")


def some_logits(rng: np.random.Generator, size: int) -> np.ndarray:
    z = rng.normal(size=size) * rng.choice([0.01, 1, 4, 40])
    kind = rng.choice(["plain", "plain", "ties", "flat", "holes", "peak"])
    if kind == "ties":
        z = np.round(z)
    elif kind == "flat":
        z[:] = rng.choice([0.0, -3e38, 7.0])
    elif kind == "holes":
        z[rng.random(size) < 0.5] = -np.inf
    elif kind == "peak":
        z[rng.integers(size)] += 30
    return z.astype(np.float32)


def some_settings(rng: np.random.Generator, size: int) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "temperature": float(rng.choice([0, 1, 1, 1, 0.7, 2.5, 1e-300, 1e300, 0.05, 20])),
        "top_k": int(rng.choice([0, 0, 1, 5, 40, 2000])),
        "top_p": float(rng.choice([1, 1, 0.9, 0.5, 0, 0.999, 0.01])),
        "min_p": float(rng.choice([0, 0, 0.05, 0.5, 1, 1e-6])),
    }
    if rng.random() < 0.3:
        settings |= {"order": tuple(rng.permutation(ORDER).tolist())}
    if rng.random() < 0.2:  # in its usual place: after others the earlier sampler may keep nothing at all
        settings |= {"typical_p": 0.5, "order": ORDER}
    if rng.random() < 0.3:
        bias = {int(rng.integers(size)): float(rng.choice([-np.inf, 3, -2]))}
        settings |= {"repetition_penalty": 1.3, "frequency_penalty": 0.4, "logit_bias": bias}
    return settings


def some_rows(seed: int) -> tuple[np.ndarray, list[SampleRow]]:
    rng = np.random.default_rng(seed)
    size, count = int(rng.choice([1, 2, 5, 17, 300, 1000, 5003])), 8
    rows = []
    for _ in range(count):
        tokens = rng.integers(0, size, 6).tolist()
        allowed = rng.integers(0, 2**32, -(-size // 32), dtype=np.uint32) if rng.random() < 0.3 else None
        uniform = float(rng.choice([0.0, rng.random(), rng.random(), 1 - 1e-9]))
        sampling = SamplingParams(**some_settings(rng, size))
        rows.append(SampleRow(sampling, uniform, tokens[:3], tokens[3:], allowed, int(rng.choice([0, 3, 50]))))
    return np.array([some_logits(rng, size) for _ in range(count)]), rows


def masked(z: np.ndarray, allowed: np.ndarray | None) -> np.ndarray:
    if allowed is None:
        return z
    return np.array([x if allowed[i // 32] >> (i % 32) & 1 else -np.inf for i, x in enumerate(z)])


def expected(raw: np.ndarray, row: SampleRow) -> tuple[int, np.ndarray, np.ndarray] | None:
    """By the earlier sampler: the token, all tokens' probabilities of being drawn, and ln p; None for an error."""
    z = masked(adjust(raw, row.sampling, row.prompt, row.generated), row.allowed)
    try:
        oracle._check_finite(raw)
        if row.sampling.greedy:
            token, _ = oracle.choose(z, row.sampling, 0, 0, 0)
            return token, (np.arange(z.size) == token).astype(float), oracle.log_softmax(raw)
        distribution = oracle.Distribution(z, row.sampling)
        token = distribution.pick(row.uniform)
        ids, p = distribution.probabilities()
    except RunError:
        return None
    drawn = np.zeros(z.size)
    drawn[ids] = p
    return token, drawn, oracle.log_softmax(raw)


@EVERY_WAY
@pytest.mark.parametrize("seed", range(40))
def test_rows_equal_the_earlier_sampler_token_for_token(seed: int) -> None:
    logits, rows = some_rows(seed)
    for raw, row, draw in zip(logits, rows, sample(logits, rows), strict=True):
        wanted = expected(raw, row)
        if wanted is None:
            assert isinstance(draw, RunError)
            continue
        token, drawn, own = wanted
        assert isinstance(draw, Draw)
        assert draw.token == token
        assert draw.sampled_prob == pytest.approx(drawn[token], rel=1e-12)
        assert draw.logprob == pytest.approx(own[token], rel=1e-12, abs=1e-12)
        likeliest = np.argsort(-raw, kind="stable")[: row.top_logprobs]
        assert [top.id for top in draw.top] == likeliest.tolist()
        np.testing.assert_allclose([top.sampled_prob for top in draw.top], drawn[likeliest], rtol=1e-9, atol=1e-13)
        np.testing.assert_allclose([top.probability for top in draw.top], np.exp(own[likeliest]), rtol=1e-9)


def test_a_large_vocabulary_equals_the_earlier_sampler_from_a_peak_to_nearly_uniform() -> None:
    rng = np.random.default_rng(3)
    for spread in (0.1, 1, 3, 10):
        logits = (rng.normal(size=(6, 49_152)) * spread).astype(np.float32)
        for settings in ({}, {"temperature": 0.7, "top_p": 0.9}, {"temperature": 1.5, "min_p": 0.02}, {"top_k": 50}):
            rows = [SampleRow(SamplingParams(**settings), u, (), ()) for u in rng.random(6).tolist()]  # type: ignore[arg-type]
            draws = sample(logits, rows)
            for raw, row, draw in zip(logits, rows, draws, strict=True):
                assert isinstance(draw, Draw)
                assert draw.token == oracle.Distribution(raw, row.sampling).pick(row.uniform)


@EVERY_WAY
def test_neither_the_order_of_rows_nor_their_company_changes_a_bit() -> None:
    for seed in range(12):
        logits, rows = some_rows(seed)
        together = sample(logits, rows)
        alone = [sample(logits[i : i + 1], [row])[0] for i, row in enumerate(rows)]
        turned = sample(logits, rows[::-1], range(len(rows))[::-1])[::-1]
        assert list(map(repr, together)) == list(map(repr, alone)) == list(map(repr, turned))


@COMPILED
def test_instruction_sets_and_threads_give_the_same_bits(kernels_restored: None) -> None:
    def draws() -> list[str]:
        return [repr(draw) for seed in range(30) for draw in sample(*some_rows(seed))]

    default = draws()
    for threads in (1, 3):
        native.set_threads(threads)
        assert draws() == default
    for level in native.LEVELS:
        native.limit_level(level)
        assert draws() == default


@EVERY_WAY
def test_a_row_that_no_distribution_can_be_made_of_ends_alone() -> None:
    bad = [[1, np.nan, 0], [np.inf, 1, 0], [-np.inf] * 3, [np.nan] * 3]
    logits = np.array([[3, 2, 1], *bad, [1, 2, 3]], np.float32)
    for sampling in (
        SamplingParams(),
        SamplingParams(temperature=0),
        SamplingParams(typical_p=0.9),
        SamplingParams(logit_bias={0: 1.0}),
    ):
        first, *errors, last = sample(logits, [SampleRow(sampling, 0.0, (), (), None, 2)] * len(logits))
        assert isinstance(first, Draw)
        assert isinstance(last, Draw)
        for error in errors:
            assert isinstance(error, RunError)
            assert "NaN or no finite value" in str(error)
        assert len(set(map(id, errors))) == len(errors)  # each can be raised by itself


@EVERY_WAY
@pytest.mark.parametrize(
    "sampling", [SamplingParams(), SamplingParams(temperature=0), SamplingParams(top_k=2, typical_p=0.9)]
)
def test_only_allowed_tokens_are_drawn_and_ln_p_stays_the_models_own(sampling: SamplingParams) -> None:
    z = np.random.default_rng(4).normal(size=(1, 70)).astype(np.float32)
    allowed = np.array([1 << 3 | 1 << 31, 0, 1 << 5], np.uint32)  # 3, 31 and 69
    tokens = set()
    for uniform in np.linspace(0, 0.999, 20).tolist():
        [draw] = sample(z, [SampleRow(sampling, uniform, (), (), allowed, 70)])
        assert isinstance(draw, Draw)
        assert draw.logprob == pytest.approx(oracle.log_softmax(z[0])[draw.token], abs=1e-12)
        assert {top.id for top in draw.top if top.sampled_prob} <= {3, 31, 69}
        assert sum(top.sampled_prob for top in draw.top) == pytest.approx(1)
        tokens.add(draw.token)
    assert tokens <= {3, 31, 69}
    assert len(tokens) == (1 if sampling.greedy else 2 if sampling.top_k else 3)


@EVERY_WAY
def test_a_mask_that_ends_early_allows_nothing_behind_it_and_an_empty_one_is_an_error() -> None:
    z = np.arange(70, dtype=np.float32)[None]
    [draw] = sample(z, [SampleRow(SamplingParams(temperature=0), 0.0, (), (), np.array([2**32 - 1], np.uint32))])
    assert isinstance(draw, Draw)
    assert draw.token == 31
    assert isinstance(sample(z, [SampleRow(SamplingParams(), 0.5, (), (), np.zeros(3, np.uint32))])[0], RunError)


@EVERY_WAY
def test_alternatives_are_the_models_likeliest_with_the_probability_that_a_truncation_leaves_them() -> None:
    z = np.log(np.array([[0.1, 0.4, 0.3, 0.2]], np.float32))
    row = SampleRow(SamplingParams(top_k=2, logit_bias={3: 10.0}), 0.0, (), (), None, 3)  # draws from 3 and 1
    [draw] = sample(z, [row])
    assert isinstance(draw, Draw)
    assert [top.id for top in draw.top] == [1, 2, 3]
    np.testing.assert_allclose([top.probability for top in draw.top], [0.4, 0.3, 0.2], rtol=1e-6)
    heavy = 0.2 * np.exp(10)
    np.testing.assert_allclose(
        [top.sampled_prob for top in draw.top], [0.4 / (0.4 + heavy), 0, heavy / (0.4 + heavy)], rtol=1e-6
    )


@COMPILED
def test_the_kernels_refuse_memory_that_they_would_read_wrongly() -> None:
    from nextword.native import logits as kernels

    z, settings = np.zeros((2, 8), np.float32), np.zeros(1, kernels.SETTINGS)
    for logits, places, adjusted in (
        (z.astype(np.float64), [0], None),
        (z[:, ::2], [0], None),
        (z, [2], None),
        (z, [-1], None),
        (z, [0, 1], None),
        (z, [0], np.zeros(7)),
        (z, [0], np.zeros(8, np.int64)),
    ):
        with pytest.raises(ValueError):
            kernels.draw(logits, places, [adjusted], settings)  # type: ignore[arg-type]


def test_the_engine_and_its_sampler_need_no_torch() -> None:
    code = "import sys, nextword.engine.engine, nextword.engine.sampler, nextword.native as n; n.available()"
    subprocess.run([sys.executable, "-c", f"{code}; assert 'torch' not in sys.modules"], check=True)
