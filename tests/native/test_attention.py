"""The same bits for a token however its sequence is cut into calls, mixed with others and laid out in pages."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants
from torch import Tensor

from nextword import native
from nextword.native.decode import KVCache, LayerWeights, MatrixWeights, NormWeights, Placement, TransformerProgram
from nextword.native.matmul import PackedMatrix
from nextword.spec import ModelSpec

pytestmark = [
    pytest.mark.skipif(not native.available(), reason="the compiled kernels were not built"),
    pytest.mark.usefixtures("kernels_restored"),
]

LENGTHS = (530, 300, 37)
Pass = list[tuple[int, int, int]]  # sequence, first position, end of the tokens that one call takes
NO_TURN = (None, None)


def numbers(*shape: int, seed: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape, np.float32))


def matrix(kind: str, rows: int, width: int, seed: int) -> MatrixWeights:
    weight = numbers(rows, width, seed=seed) / width**0.5
    if kind == "float32":
        return MatrixWeights(weight)
    blocks = quants.quantize(weight.numpy(), GGMLQuantizationType[kind.upper()])
    return MatrixWeights(PackedMatrix.pack(kind, blocks, width))  # type: ignore[arg-type]


def program(spec: ModelSpec, kind: str) -> TransformerProgram:
    inner, attended = spec.mlp_width, spec.heads * spec.head_width
    return TransformerProgram(
        spec,
        [
            LayerWeights(
                qkv=matrix(kind, attended + 2 * spec.kv_heads * spec.head_width, spec.width, 10 * layer),
                out=matrix(kind, spec.width, attended, 10 * layer + 1),
                up=matrix(kind, 2 * inner, spec.width, 10 * layer + 2),
                down=matrix(kind, spec.width, inner, 10 * layer + 3),
                attention_norm=NormWeights(1 + 0.2 * numbers(spec.width, seed=10 * layer + 4)),
                mlp_norm=NormWeights(1 + 0.2 * numbers(spec.width, seed=10 * layer + 5)),
            )
            for layer in range(spec.layers)
        ],
    )


def run(
    program: TransformerProgram, inputs: list[Tensor], passes: list[Pass], page_size: int, seed: int
) -> list[Tensor]:
    """What every token of the sequences `inputs` gets, over shuffled pages that begin as NaN."""
    spec = program.spec
    width = -(-max(map(len, inputs)) // page_size)
    page_ids = np.random.default_rng(seed).permutation(len(inputs) * width).astype(np.int32)
    shape = (len(page_ids), spec.kv_heads, page_size, spec.head_width)
    keys, values = ([torch.full(shape, float("nan")) for _ in range(spec.layers)] for _ in range(2))
    pool = KVCache(spec, keys, values)
    outputs = [torch.full_like(x, float("nan")) for x in inputs]
    for chunks in passes:
        x = torch.cat([inputs[sequence][first:end] for sequence, first, end in chunks])
        placement = Placement(
            np.concatenate([np.arange(first, end) for _, first, end in chunks]),
            np.concatenate([np.full(end - first, sequence) for sequence, first, end in chunks]),
            page_ids.reshape(-1, width),
        )
        y = program.forward(x, NO_TURN, pool, placement)
        for (sequence, first, end), rows in zip(
            chunks, y.split([end - first for _, first, end in chunks]), strict=True
        ):
            outputs[sequence][first:end] = rows
    return outputs


def random_passes(lengths: tuple[int, ...], seed: int) -> list[Pass]:
    """Each call takes a few tokens, one or many, of some of the sequences that are not done, in any order."""
    rng, done, passes = np.random.default_rng(seed), [0] * len(lengths), []
    while any(start < length for start, length in zip(done, lengths, strict=True)):
        chunks = []
        for sequence in rng.permutation(len(lengths)).tolist():
            first = done[sequence]
            end = min(lengths[sequence], first + int(rng.choice([0, 1, 5, 16, 90, 257])))
            if first < end:
                chunks.append((sequence, first, end))
                done[sequence] = end
        if chunks:
            passes.append(chunks)
    return passes


@pytest.mark.parametrize("kind", ["float32", "q4_1", "q8_0"])
@pytest.mark.parametrize(("heads", "kv_heads", "head_width", "windows"), [(6, 2, 16, (0, 100)), (4, 1, 24, (0, 0))])
def test_a_token_gets_the_same_bits_in_any_schedule(
    kind: str, heads: int, kv_heads: int, head_width: int, windows: tuple[int, ...]
) -> None:
    spec = ModelSpec(
        "transformer", 10, 96, 2, 1024, heads=heads, kv_heads=kv_heads, head_width=head_width, mlp_width=64,
        windows=windows,
    )  # fmt: skip
    layers = program(spec, kind)
    inputs = [numbers(length, spec.width, seed=length) for length in LENGTHS]
    native.set_threads(1)
    whole = run(layers, inputs, [[(sequence, 0, length)] for sequence, length in enumerate(LENGTHS)], 256, 0)
    assert all(y.isfinite().all() for y in whole)
    one_by_one = [
        [(sequence, position, position + 1) for sequence, length in enumerate(LENGTHS) if position < length]
        for position in range(max(LENGTHS))
    ]
    schedules = [random_passes(LENGTHS, seed) for seed in range(4)]
    for passes, page_size, threads in zip(
        [*schedules, one_by_one, one_by_one], (16, 32, 64, 256, 24, 128), (2, 1, 2, 2, 1, 2), strict=True
    ):
        native.set_threads(threads)
        for got, wanted in zip(run(layers, inputs, passes, page_size, page_size), whole, strict=True):
            assert torch.equal(got, wanted)


def test_memory_for_parts_is_bounded_and_changes_no_bits() -> None:
    """64 query heads over a long context need several rounds, and strips of fewer than 16 tokens."""
    spec = ModelSpec("transformer", 10, 32, 1, 1 << 17, heads=64, kv_heads=1, head_width=128, mlp_width=32)
    layers, length, page_size = program(spec, "float32"), 70_000, 256
    width = -(-length // page_size)
    pages = numbers(4, 1, page_size, 128, seed=1)
    placement = Placement(np.arange(length - 12, length), np.zeros(12, np.int64), np.zeros((1, width), np.int32))
    placement.page_tables[0] = np.arange(width) % 3
    placement.page_tables[0, (length - 12) // page_size :] = 3
    x = numbers(12, spec.width, seed=2)
    together = layers.forward(x, NO_TURN, KVCache(spec, [pages.clone()], [pages.clone()]), placement)
    pool = KVCache(spec, [pages.clone()], [pages.clone()])
    for token in range(12):
        alone = Placement(
            placement.positions[token : token + 1], placement.sequences[token : token + 1], placement.page_tables
        )
        assert torch.equal(layers.forward(x[token : token + 1], NO_TURN, pool, alone)[0], together[token])


# From the kernels of the version before there were pages (commit 9bde5fe), with products that are exact, so that
# only the arithmetic of attention shows.
KNOWN = {
    (64, None): "5d118dd95566dd99",
    (64, 20.0): "45345bdbc2d8fa4f",
    (80, None): "2cd07739f969d5ac",
    (16, None): "6f9a9ffbe27c41bd",
}


@pytest.mark.parametrize("level", ["avx2", "avx512-vnni"])
@pytest.mark.parametrize(("head_width", "softcap"), KNOWN)
def test_decoding_gives_the_bits_of_the_contiguous_cache(level: str, head_width: int, softcap: float | None) -> None:
    native.limit_level(level)
    if native.level() != level:
        pytest.skip(f"this processor has no {level}")
    width, page_size, pages = 6 * head_width, 64, 12
    spec = ModelSpec(
        "transformer", 10, width, 1, 1024, heads=6, kv_heads=2, head_width=head_width, mlp_width=8,
        attention_softcap=softcap,
    )  # fmt: skip
    each_number = MatrixWeights(torch.eye(width).repeat(2, 1)[: 10 * head_width].contiguous())
    layer = LayerWeights(
        qkv=each_number,
        out=MatrixWeights(torch.eye(width)),
        up=MatrixWeights(torch.zeros(16, width)),
        down=MatrixWeights(torch.zeros(width, 8)),
    )
    keys, values = (
        numbers(5, 2, pages, page_size, head_width, seed=seed).transpose(1, 2).flatten(0, 1).contiguous()
        for seed in (2, 3)
    )
    y = TransformerProgram(spec, [layer]).forward(
        numbers(5, width, seed=1),
        ((numbers(768, head_width, seed=4), numbers(768, head_width, seed=5)), None),
        KVCache(spec, [keys], [values]),
        Placement(np.array([0, 7, 255, 256, 700]), np.arange(5), np.arange(5 * pages, dtype=np.int32).reshape(5, -1)),
    )
    assert hashlib.sha256(y.numpy().tobytes()).hexdigest()[:16] == KNOWN[head_width, softcap]
