"""Attention over pages against the formula in float64, and the same bits for a token in any company."""

from __future__ import annotations

from ctypes import Structure, addressof, c_float, c_int, c_int64, c_void_p
from dataclasses import dataclass, replace

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants
from numpy.typing import NDArray

from nextword import native
from nextword.native.bindings import library

pytestmark = [
    pytest.mark.skipif(not native.available(), reason="the compiled kernels were not built"),
    pytest.mark.usefixtures("kernels_restored"),
]

Floats = NDArray[np.float32]
Chunk = tuple[int, int, int]  # sequence, first position, end of the tokens that one call takes
KV_TYPES = {"float32": (0, 4.0), "float16": (1, 2.0), "q8_0": (8, 34 / 32)}  # code, bytes a number
LENGTHS = (530, 300, 37)
CAPACITY = 768


class PlacementStruct(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("positions", "sequences", "page_tables")),
        *((name, c_int64) for name in ("tokens", "table_width", "page_size")),
    )


class AttentionStruct(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("qkv", "cosine", "sine")),
        *((name, c_int64) for name in ("rope_width", "interleaved")),
        *((name, c_void_p) for name in ("keys", "values")),
        *((name, c_int64) for name in ("page_bytes", "kv_type")),
        ("at", c_void_p),
        *((name, c_int64) for name in ("heads", "kv_heads", "width", "window")),
        *((name, c_float) for name in ("scale", "softcap")),
        *((name, c_void_p) for name in ("sinks", "y")),
    )


@dataclass(frozen=True)
class Case:
    heads: int = 6
    kv_heads: int = 2
    width: int = 32
    window: int = 0
    softcap: float = 0.0
    sinks: bool = False
    rope_width: int = 0
    interleaved: bool = False

    def sink_logits(self) -> Floats | None:
        return 3 * numbers(self.heads, seed=5) if self.sinks else None

    def rope(self) -> tuple[Floats, Floats] | tuple[None, None]:
        """cos and signed sin, (CAPACITY, rope_width)."""
        if not self.rope_width:
            return None, None
        angles = numbers(CAPACITY, self.rope_width // 2, seed=77)
        return np.tile(np.cos(angles), 2), np.concatenate((-np.sin(angles), np.sin(angles)), -1)

    def tokens(self, count: int, seed: int) -> Floats:
        return numbers(count, self.heads + 2 * self.kv_heads, self.width, seed=seed)


CASES = {
    "grouped queries": Case(),
    "all rotated": Case(rope_width=32),
    "some rotated, in pairs": Case(rope_width=16, interleaved=True),
    "own keys": Case(heads=2, width=64),
    "pairs": Case(heads=4, width=96),
    "fours": Case(heads=8, width=64),
    "fives": Case(heads=10, width=64),
    "sevens": Case(heads=7, kv_heads=1, width=64),
    "many queries a key": Case(heads=71, kv_heads=1, width=64),
    "wide heads": Case(heads=2, kv_heads=1, width=544),
    "window": Case(window=100),
    "short window": Case(window=5),
    "capped": Case(softcap=3.0),
    "sinks": Case(sinks=True, window=300),
}
ODD = {"odd width": Case(heads=11, kv_heads=1, width=6), "wide odd width": Case(width=84)}


def numbers(*shape: int, seed: int) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


class Cache:
    """Pages in random order that begin as NaN, and calls over them."""

    def __init__(self, case: Case, kv_type: str, sequences: int, page_size: int = 64, seed: int = 0) -> None:
        self.case, self.page_size, width = case, page_size, -(-CAPACITY // page_size)
        pages = np.random.default_rng(seed).permutation(sequences * width).astype(np.int32)
        self.tables = pages.reshape(sequences, width)
        self.code, size = KV_TYPES[kv_type]
        self.page_bytes = int(case.kv_heads * page_size * case.width * size)
        shape = len(pages) * self.page_bytes
        self.keys, self.values = np.full(shape, 0xFF, np.uint8), np.full(shape, 0xFF, np.uint8)

    def attend(self, qkv: Floats, sequences: NDArray[np.int64], positions: NDArray[np.int64]) -> Floats:
        """`qkv` (tokens, heads + 2 kv_heads, width) → (tokens, heads, width)."""
        case, qkv, y = self.case, qkv.copy(), np.full((len(qkv), self.case.heads, self.case.width), np.nan, np.float32)
        tables = self.tables
        at = PlacementStruct(
            pointer(positions), pointer(sequences), pointer(tables), len(qkv), tables.shape[1], self.page_size
        )
        cosine, sine = case.rope()
        sinks = case.sink_logits()
        struct = AttentionStruct(
            pointer(qkv), pointer(cosine), pointer(sine), case.rope_width, case.interleaved,
            pointer(self.keys), pointer(self.values), self.page_bytes, self.code, addressof(at),
            case.heads, case.kv_heads, case.width, case.window, case.width**-0.5, case.softcap,
            pointer(sinks), pointer(y),
        )  # fmt: skip
        function = library().nw_attend
        function.restype, function.argtypes = c_int, [c_void_p]
        assert function(addressof(struct)) == 0
        return y

    def run(self, tokens: list[Floats], chunks: list[Chunk]) -> list[Floats]:
        """One call over some tokens of some sequences; the results of each chunk."""
        qkv = np.concatenate([tokens[sequence][first:end] for sequence, first, end in chunks])
        positions = np.concatenate([np.arange(first, end) for _, first, end in chunks])
        sequences = np.concatenate([np.full(end - first, sequence) for sequence, first, end in chunks])
        y = self.attend(qkv, sequences, positions)
        return np.split(y, np.cumsum([end - first for _, first, end in chunks])[:-1])


def pointer(array: NDArray[np.generic] | None) -> int | None:
    return None if array is None else array.ctypes.data


def rotated(case: Case, x: NDArray[np.float64]) -> NDArray[np.float64]:
    """`x` (tokens, heads, width) with its pairs turned by the angles of positions 0, 1, ..."""
    cosine, sine = case.rope()
    if cosine is None or sine is None:
        return x
    half, y = case.rope_width // 2, x.copy()
    step = 2 if case.interleaved else 1
    low = slice(0, case.rope_width if case.interleaved else half, step)
    high = slice(1 if case.interleaved else half, case.rope_width, step)
    turn, lift = cosine[: len(x), None, :half], sine[: len(x), None, half:]
    y[..., low], y[..., high] = x[..., low] * turn - x[..., high] * lift, x[..., high] * turn + x[..., low] * lift
    return y


def stored(kv_type: str, x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keys or values as a cache of that type holds them."""
    if kv_type == "q8_0":
        blocks = x.astype(np.float32).reshape(-1, 32)
        scale = (np.abs(blocks).max(-1, keepdims=True) / np.float32(127)).astype(np.float16).astype(np.float32)
        return (scale * np.rint(blocks * (1 / scale))).astype(np.float64).reshape(x.shape)
    return x.astype(kv_type).astype(np.float64)


def formula(case: Case, kv_type: str, qkv: Floats) -> NDArray[np.float64]:
    """What every token of one sequence gets, (tokens, heads, width)."""
    keys_from, values_from = case.heads, case.heads + case.kv_heads
    x = qkv.astype(np.float64)
    queries, keys = rotated(case, x[:, :keys_from]), stored(kv_type, rotated(case, x[:, keys_from:values_from]))
    group = case.heads // case.kv_heads
    keys, values = keys.repeat(group, 1), stored(kv_type, x[:, values_from:]).repeat(group, 1)
    scores = np.einsum("qhi,khi->hqk", queries, keys) * case.width**-0.5
    if case.softcap:
        scores = case.softcap * np.tanh(scores / case.softcap)
    distance = np.arange(len(x))[:, None] - np.arange(len(x))
    scores = np.where((distance < 0) | (distance >= (case.window or len(x))), -np.inf, scores)
    sinks = case.sink_logits()
    largest = scores.max(-1, keepdims=True) if sinks is None else np.maximum(scores.max(-1), sinks[:, None])[..., None]
    weights = np.exp(scores - largest)
    total = weights.sum(-1, keepdims=True)
    if sinks is not None:
        total += np.exp(sinks[:, None, None] - largest)
    return np.einsum("hqk,khi->qhi", weights / total, values)


def assert_near(got: Floats, wanted: NDArray[np.float64], kv_type: str) -> None:
    # a rotated key between two numbers of the cache may go either way in float32
    tolerance = {"float32": 2e-5, "float16": 1e-3, "q8_0": 5e-3}
    np.testing.assert_allclose(got, wanted, atol=tolerance[kv_type], rtol=1e-4)


@pytest.mark.parametrize("kv_type", KV_TYPES)
@pytest.mark.parametrize("name", CASES)
def test_chunks_and_single_tokens_get_what_the_formula_says(name: str, kv_type: str) -> None:
    case = CASES[name]
    cache, qkv = Cache(case, kv_type, 1), case.tokens(290, seed=1)
    expected = formula(case, kv_type, qkv)
    chunks: list[Chunk] = [(0, 0, 1), (0, 1, 9), (0, 9, 250), (0, 250, 289), (0, 289, 290)]
    got = np.concatenate([cache.run([qkv], [chunk])[0] for chunk in chunks])
    assert_near(got, expected, kv_type)


@pytest.mark.parametrize("kv_type", ["float32", "float16"])
@pytest.mark.parametrize("name", ODD)
def test_heads_of_odd_width_get_what_the_formula_says(name: str, kv_type: str) -> None:
    case = ODD[name]
    qkv = case.tokens(70, seed=1)
    cache = Cache(case, kv_type, 1)
    got = np.concatenate([cache.run([qkv], [(0, 0, 69)])[0], cache.run([qkv], [(0, 69, 70)])[0]])
    assert_near(got, formula(case, kv_type, qkv), kv_type)


def random_passes(seed: int) -> list[list[Chunk]]:
    """Each call takes a few tokens, one or many, of some of the sequences that are not done, in any order."""
    rng, done, passes = np.random.default_rng(seed), [0] * len(LENGTHS), []
    while any(start < length for start, length in zip(done, LENGTHS, strict=True)):
        chunks = []
        for sequence in rng.permutation(len(LENGTHS)).tolist():
            first = done[sequence]
            end = min(LENGTHS[sequence], first + int(rng.choice([0, 1, 5, 16, 90, 257])))
            if first < end:
                chunks.append((sequence, first, end))
                done[sequence] = end
        if chunks:
            passes.append(chunks)
    return passes


@pytest.mark.parametrize("kv_type", KV_TYPES)
@pytest.mark.parametrize("name", ["grouped queries", "window", "sevens"])
def test_a_token_gets_the_same_bits_in_any_schedule(name: str, kv_type: str) -> None:
    case = CASES[name]
    tokens = [case.tokens(length, seed=length) for length in LENGTHS]
    native.set_threads(1)
    whole = Cache(case, kv_type, len(LENGTHS), 256).run(
        tokens, [(sequence, 0, length) for sequence, length in enumerate(LENGTHS)]
    )
    assert all(np.isfinite(y).all() for y in whole)
    one_by_one = [
        [(sequence, position, position + 1) for sequence, length in enumerate(LENGTHS) if position < length]
        for position in range(max(LENGTHS))
    ]
    schedules = [*(random_passes(seed) for seed in range(4)), one_by_one, one_by_one]
    for passes, page_size, threads in zip(schedules, (16, 32, 64, 256, 24, 128), (2, 1, 3, 2, 1, 2), strict=True):
        native.set_threads(threads)
        cache = Cache(case, kv_type, len(LENGTHS), page_size, seed=page_size)
        for chunks in passes:
            for (sequence, first, end), y in zip(chunks, cache.run(tokens, chunks), strict=True):
                assert np.array_equal(y, whole[sequence][first:end])


@pytest.mark.parametrize("kv_type", KV_TYPES)
@pytest.mark.parametrize("name", ["some rotated, in pairs", "capped", "sinks", "fives"])
def test_every_instruction_set_gives_the_same_bits(name: str, kv_type: str) -> None:
    case, results = CASES[name], []
    qkv = case.tokens(40, seed=3)
    for level in native.LEVELS:
        native.limit_level(level)
        cache = Cache(case, kv_type, 1)
        results.append([cache.run([qkv], [chunk])[0] for chunk in ((0, 0, 39), (0, 39, 40))])
        results[-1] += [cache.keys, cache.values]
    for other in results[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("kv_type", KV_TYPES)
def test_memory_for_partial_results_is_bounded_and_changes_no_bits(kv_type: str) -> None:
    """64 query heads over a long context need several rounds, and blocks of fewer tokens."""
    case, length, page_size = Case(heads=64, kv_heads=1, width=128), 70_000, 256
    cache = Cache(case, kv_type, 1, page_size)
    qkv, pages = case.tokens(4 * page_size, seed=1), np.arange(CAPACITY // page_size)
    cache.tables = pages[None].astype(np.int32)
    cache.run([qkv], [(0, 0, CAPACITY)])
    cache.tables = (np.arange(-(-length // page_size))[None] % 2).astype(np.int32)  # the same pages over and over
    cache.tables[0, (length - 12) // page_size :] = 2
    native.set_threads(2)
    positions, sequences = np.arange(length - 12, length), np.zeros(12, np.int64)
    together = cache.attend(qkv[:12], sequences, positions)
    for token in range(12):
        alone = slice(token, token + 1)
        assert np.array_equal(cache.attend(qkv[alone], sequences[alone], positions[alone])[0], together[token])


@pytest.mark.parametrize("kv_type", KV_TYPES)
@pytest.mark.parametrize("head", [0, 6, 8], ids=["query", "key", "value"])
def test_a_nan_stays_in_its_own_sequence_and_behind_itself(instructions: str, kv_type: str, head: int) -> None:
    case = Case()
    tokens = [case.tokens(20, seed=1), case.tokens(20, seed=2)]
    tokens[0][7, head, 3] = np.nan
    first, other = Cache(case, kv_type, 2).run(tokens, [(0, 0, 20), (1, 0, 20)])
    assert np.isfinite(other).all()
    assert np.isfinite(first[:7]).all()
    assert np.isnan(first[7]).any()
    if head:
        assert np.isnan(first[7:, :3]).any(-1).all()  # those of the same key head


def test_float16_holds_its_largest_number_in_place_of_larger_ones(instructions: str) -> None:
    case = Case(heads=1, kv_heads=1)
    qkv = case.tokens(1, seed=1)
    qkv[0, 2, :2] = 1e6, -1e6
    y = Cache(case, "float16", 1).run([qkv], [(0, 0, 1)])[0]
    assert y[0, 0, :2].tolist() == [65504, -65504]


def test_q8_0_rows_are_those_of_gguf(instructions: str) -> None:
    case = replace(Case(), heads=1, kv_heads=1)
    cache, qkv = Cache(case, "q8_0", 1, CAPACITY), case.tokens(1, seed=1)
    cache.run([qkv], [(0, 0, 1)])
    row = cache.values[:34]
    rounded = quants.dequantize(row, GGMLQuantizationType.Q8_0)
    scale = np.abs(qkv[0, 2]).max() / 127
    np.testing.assert_allclose(rounded, qkv[0, 2], atol=0.51 * scale)
    assert np.abs(row[2:].view(np.int8)).max() == 127
