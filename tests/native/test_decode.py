"""A compiled pass through the layers against the same layers in float64, on every instruction set."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nextword import native
from nextword.native.decode import (
    KVCache,
    LayerWeights,
    MatrixWeights,
    NormWeights,
    Placement,
    RopeTables,
    TransformerProgram,
)
from nextword.native.matmul import PackedMatrix
from nextword.spec import ModelSpec

pytestmark = pytest.mark.skipif(not native.available(), reason="the compiled kernels were not built")

LLAMA = ModelSpec("transformer", 50, 64, 2, 2048, heads=6, kv_heads=2, head_width=16, mlp_width=96)
SPECS = {
    "llama": LLAMA,
    "one key head, odd widths": replace(LLAMA, width=36, heads=11, kv_heads=1, head_width=6, mlp_width=50),
    "every head its own keys": replace(LLAMA, kv_heads=6),
    "many heads a group": replace(LLAMA, heads=20, kv_heads=1, head_width=8),
    "wide heads": replace(LLAMA, heads=2, kv_heads=1, head_width=136),
    "neox": replace(LLAMA, norm="layer", parallel=True, mlp="plain", activation="gelu", attention_bias=True,
                    attention_out_bias=True, mlp_bias=True),
    "gpt2": replace(LLAMA, norm="layer", mlp="plain", activation="gelu_tanh", attention_bias=True, position="none",
                    attention_out_bias=True, mlp_bias=True, norm_bias=False),
    "gemma": replace(LLAMA, norm_place="both", activation="gelu_tanh", attention_softcap=3.0, qk_norm="head",
                     windows=(5, 0), attention_scale=0.3),
    "olmo": replace(LLAMA, norm_place="after", qk_norm="full"),
    "long window": replace(LLAMA, windows=(300, 0)),
    "granite": replace(LLAMA, residual_scale=0.22),
    "scaled after norms": replace(LLAMA, residual_scale=0.22, norm_place="both"),
    "smollm3": replace(LLAMA, rope_layers=(True, False)),
    "sinks": replace(LLAMA, attention_sinks=True, windows=(5, 0)),
}  # fmt: skip
CAPACITY, PAGE = 768, 64
PLACES = [(0, 0), (1, 700), (2, 7), *((3, position) for position in range(240, 270)), (4, 256)]  # sequence, position


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def layers(spec: ModelSpec, packed: bool = False, precise: bool = False) -> list[LayerWeights]:
    """Random weights of everything that the spec has."""
    count = iter(range(10_000))

    def matrix(rows: int, width: int, bias: bool) -> MatrixWeights:
        weight = random(rows, width, seed=next(count)) / width**0.5
        held = PackedMatrix.pack_float(weight, precise) if packed else weight
        return MatrixWeights(held, random(rows, seed=next(count)) if bias else None)

    def norm(width: int, wanted: bool = True) -> NormWeights | None:
        if not wanted:
            return None
        bias = random(width, seed=next(count)) if spec.norm == "layer" and spec.norm_bias else None
        return NormWeights(1 + 0.2 * random(width, seed=next(count)), bias)

    mixed, keys = spec.heads * spec.head_width, spec.kv_heads * spec.head_width
    before, after = spec.norm_place != "after", spec.norm_place != "before"
    each = {"none": None, "head": (spec.head_width,) * 2, "full": (mixed, keys)}[spec.qk_norm]
    return [
        LayerWeights(
            qkv=matrix(mixed + 2 * keys, spec.width, spec.attention_bias),
            out=matrix(spec.width, mixed, spec.attention_out_bias),
            up=matrix(spec.mlp_width * (2 if spec.mlp == "gated" else 1), spec.width, spec.mlp_bias),
            down=matrix(spec.width, spec.mlp_width, spec.mlp_bias),
            attention_norm=norm(spec.width, before),
            attention_post_norm=norm(spec.width, after),
            mlp_norm=norm(spec.width, before),
            mlp_post_norm=norm(spec.width, after),
            query_norm=norm(each[0]) if each else None,
            key_norm=norm(each[1]) if each else None,
            sinks=3 * random(spec.heads, seed=next(count)) if spec.attention_sinks else None,
        )
        for _ in range(spec.layers)
    ]


def tables(spec: ModelSpec, rotary: int) -> RopeTables | None:
    if spec.position != "rotary":
        return None
    angles = torch.outer(torch.arange(CAPACITY).float(), random(rotary // 2, seed=77))
    cosine, sine = angles.cos(), angles.sin()
    return torch.cat((cosine, cosine), -1), torch.cat((-sine, sine), -1)


def rounded(x: Tensor) -> Tensor:
    """Activations as plain packed matrices see them: int8 times a scale, by blocks of 32."""
    blocks = x.view(-1, 32)
    scale = blocks.abs().amax(-1, keepdim=True) / 127
    return ((blocks / scale).round() * scale).flatten()


def one_row(
    spec: ModelSpec,
    weights: list[LayerWeights],
    x: Tensor,
    rope: tuple[RopeTables | None, RopeTables | None],
    before: list[tuple[Tensor, Tensor]],
    position: int,
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """The formulas for one token, in float64: what the layers leave, and each one's new key and value."""

    def product(matrix: MatrixWeights, v: Tensor) -> Tensor:
        bias = None if matrix.bias is None else matrix.bias.double()
        if isinstance(matrix.weight, Tensor):
            return F.linear(v, matrix.weight.double(), bias)
        return F.linear(rounded(v), matrix.weight.dequantize().double(), bias)

    def norm(weight: NormWeights | None, v: Tensor) -> Tensor:
        if weight is None:
            return v
        middle = v.mean(-1, keepdim=True) if spec.norm == "layer" else torch.zeros(1)
        spread = ((v - middle) ** 2).mean(-1, keepdim=True)
        scaled = (v - middle) / (spread + spec.norm_eps).sqrt() * weight.weight
        return scaled if weight.bias is None else scaled + weight.bias

    def heads_norm(weight: NormWeights | None, v: Tensor) -> Tensor:
        return norm(weight, v.flatten()).view_as(v) if spec.qk_norm == "full" else norm(weight, v)

    def turn(v: Tensor, table: RopeTables | None) -> Tensor:
        if table is None:
            return v
        cosine, sine = table[0][position].double(), table[1][position].double()
        half, rotary = len(cosine) // 2, len(cosine)
        a, b = v[:, :half], v[:, half:rotary]
        turned = (a * cosine[:half] - b * sine[half:], b * cosine[:half] + a * sine[half:], v[:, rotary:])
        return torch.cat(turned, -1)

    def mlp(layer: LayerWeights, v: Tensor) -> Tensor:
        inner = product(layer.up, v)
        gate = inner[: spec.mlp_width]
        kind = spec.activation
        active = F.silu(gate) if kind == "silu" else F.gelu(gate, approximate="tanh" if "tanh" in kind else "none")
        return product(layer.down, active * inner[spec.mlp_width :] if spec.mlp == "gated" else active)

    x = x.double()
    written = []
    group = spec.heads // spec.kv_heads
    for index, layer in enumerate(weights):
        window = spec.window(index)
        fused = product(layer.qkv, norm(layer.attention_norm, x)).view(-1, spec.head_width)
        queries, keys, values = fused.split((spec.heads, spec.kv_heads, spec.kv_heads))
        table = rope[1 if window else 0] if spec.has_rope(index) else None
        queries, keys = (
            turn(heads_norm(layer.query_norm, queries), table),
            turn(heads_norm(layer.key_norm, keys), table),
        )
        written.append((keys, values))
        first = max(0, position + 1 - window) if window else 0
        seen_keys, seen_values = (
            torch.cat((old[:, first:position].double(), new[:, None]), 1).repeat_interleave(group, 0)
            for old, new in zip(before[index], (keys, values), strict=True)
        )
        scores = (seen_keys @ queries[:, :, None])[..., 0] * (spec.attention_scale or spec.head_width**-0.5)
        if spec.attention_softcap:
            scores = spec.attention_softcap * torch.tanh(scores / spec.attention_softcap)
        if layer.sinks is not None:  # a score without a value
            scores = torch.cat((scores, layer.sinks[:, None]), -1)
        probs = scores.softmax(-1)[:, None, : seen_values.shape[1]]
        scale = spec.residual_scale or 1
        attended = scale * norm(layer.attention_post_norm, product(layer.out, (probs @ seen_values).flatten()))
        read = x if spec.parallel else x + attended
        x = x + attended + scale * norm(layer.mlp_post_norm, mlp(layer, norm(layer.mlp_norm, read)))
    return x, written


def stored(spec: ModelSpec, sequences: int) -> tuple[list[Tensor], list[Tensor]]:
    """Keys and values of every layer, (sequences, kv_heads, CAPACITY, head_width)."""
    shape = (sequences, spec.kv_heads, CAPACITY, spec.head_width)
    return (
        [random(*shape, seed=200 + layer) for layer in range(spec.layers)],
        [random(*shape, seed=300 + layer) for layer in range(spec.layers)],
    )


def pool_of(spec: ModelSpec, keys: list[Tensor], values: list[Tensor]) -> KVCache:
    """The same in pages, those of a sequence one after the other; keys of eight positions lie side by side."""
    shape = (-1, spec.kv_heads, CAPACITY // PAGE, PAGE, spec.head_width)
    pages = [
        [part.view(shape).transpose(1, 2).flatten(0, 1).contiguous() for part in layers] for layers in (keys, values)
    ]
    page = (PAGE // 8, 8, spec.head_width)
    pages[0] = [part.unflatten(2, page[:2]).transpose(-1, -2).contiguous().view(part.shape) for part in pages[0]]
    return KVCache(spec, *pages)


def placed(*places: tuple[int, int]) -> Placement:
    sequences, positions = np.array(places).T.copy()
    tables = np.arange((sequences.max() + 1) * (CAPACITY // PAGE), dtype=np.int32)
    return Placement(positions, sequences, tables.reshape(-1, CAPACITY // PAGE))


@pytest.mark.parametrize("name", SPECS)
def test_a_pass_computes_what_the_formulas_say(instructions: str, name: str) -> None:
    spec = SPECS[name]
    weights, rope = layers(spec), (tables(spec, spec.head_width), tables(spec, 4))
    keys, values = stored(spec, 5)
    pool = pool_of(spec, keys, values)
    x = random(len(PLACES), spec.width, seed=1)
    y = TransformerProgram(spec, weights).forward(x, rope, pool, placed(*PLACES))
    for token, (sequence, position) in enumerate(PLACES):
        old = [(k[sequence], v[sequence]) for k, v in zip(keys, values, strict=True)]
        expected, written = one_row(spec, weights, x[token], rope, old, position)
        torch.testing.assert_close(y[token].double(), expected, atol=5e-5, rtol=1e-5)
        for layer, (key, value) in enumerate(written):  # which the next token of the chunk reads
            keys[layer][sequence, :, position], values[layer][sequence, :, position] = key, value
    expected_pool = pool_of(spec, keys, values)
    for got, wanted in zip((*pool.keys, *pool.values), (*expected_pool.keys, *expected_pool.values), strict=True):
        torch.testing.assert_close(got, wanted, atol=3e-5, rtol=1e-5)
        assert (got != wanted).sum() <= len(PLACES) * spec.kv_heads * spec.head_width  # nothing else was written


def test_packed_layers_equal_the_formulas_with_rounded_activations(instructions: str) -> None:
    weights = layers(LLAMA, packed=True)
    rope, (keys, values) = (tables(LLAMA, 16), None), stored(LLAMA, 1)
    x = random(1, LLAMA.width, seed=1)
    old = [(k[0], v[0]) for k, v in zip(keys, values, strict=True)]
    expected, _ = one_row(LLAMA, weights, x[0], rope, old, 9)
    y = TransformerProgram(LLAMA, weights).forward(x, rope, pool_of(LLAMA, keys, values), placed((0, 9)))
    # an activation between two integers may go the other way in float32: 1/254 of its block's largest
    torch.testing.assert_close(y[0].double(), expected, atol=5e-3, rtol=0)


def test_precise_packed_layers_equal_the_formulas_in_float64(instructions: str) -> None:
    weights = layers(LLAMA, packed=True, precise=True)
    floats = [
        replace(
            layer,
            **{
                name: replace(matrix, weight=matrix.weight.dequantize())
                for name, matrix in vars(layer).items()
                if isinstance(matrix, MatrixWeights) and isinstance(matrix.weight, PackedMatrix)
            },
        )
        for layer in weights
    ]
    rope, (keys, values) = (tables(LLAMA, 16), None), stored(LLAMA, 1)
    x = random(1, LLAMA.width, seed=1)
    old = [(k[0], v[0]) for k, v in zip(keys, values, strict=True)]
    expected, _ = one_row(LLAMA, floats, x[0], rope, old, 9)
    y = TransformerProgram(LLAMA, weights).forward(x, rope, pool_of(LLAMA, keys, values), placed((0, 9)))
    torch.testing.assert_close(y[0].double(), expected, atol=1e-3, rtol=0)


def test_a_nan_stays_in_its_own_sequence_and_behind_itself(instructions: str) -> None:
    places = [*((0, position) for position in range(300, 306)), (1, 300)]
    x = random(len(places), LLAMA.width, seed=1)
    x[3, 3] = float("nan")
    pool = pool_of(LLAMA, *stored(LLAMA, 2))
    y = TransformerProgram(LLAMA, layers(LLAMA)).forward(x, (None, None), pool, placed(*places))
    assert y[3:6].isnan().all()
    assert y[[0, 1, 2, 6]].isfinite().all()


def test_a_copied_program_reads_the_copied_weights() -> None:
    weights = layers(LLAMA, packed=True)
    program, x = TransformerProgram(LLAMA, weights), random(1, LLAMA.width, seed=1)
    rest = ((None, None), pool_of(LLAMA, *stored(LLAMA, 1)), placed((0, 5)))
    expected = program.forward(x, *rest)
    other = copy.deepcopy(program)
    for layer in weights:
        assert isinstance(layer.down.weight, PackedMatrix)
        layer.down.weight.data.zero_()
    assert torch.equal(other.forward(x, *rest), expected)
    assert not torch.equal(program.forward(x, *rest), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positions": np.array([-1])}, "position"),
        ({"positions": np.array([CAPACITY])}, "position"),
        ({"positions": np.array([5], np.int32)}, "int64"),
        ({"positions": np.arange(4)[::2]}, "contiguous|tokens"),
        ({"positions": np.array([], np.int64)}, "at least one"),
        ({"sequences": np.array([1])}, "sequence"),
        ({"sequences": np.array([-1])}, "sequence"),
        ({"sequences": np.array([0, 0])}, "sequence numbers"),
        ({"page_tables": np.array([[12] * 12], np.int32)}, "page outside"),
        ({"page_tables": np.array([[-1] * 12], np.int32)}, "page outside"),
        ({"page_tables": np.arange(12)[None]}, "int32"),
        ({"page_tables": np.zeros((12, 1), np.int32).T[:, ::2]}, "contiguous"),
        ({"page_tables": np.zeros((0, 12), np.int32)}, "sequence"),
    ],
)
def test_a_placement_that_leaves_the_pool_is_refused(change: dict[str, np.ndarray], message: str) -> None:
    program, pool = TransformerProgram(LLAMA, layers(LLAMA)), pool_of(LLAMA, *stored(LLAMA, 1))
    with pytest.raises(ValueError, match=message):
        program.forward(torch.zeros(1, LLAMA.width), (None, None), pool, replace(placed((0, 5)), **change))


def test_pages_that_no_token_needs_may_be_missing() -> None:
    program, pool = TransformerProgram(LLAMA, layers(LLAMA)), pool_of(LLAMA, *stored(LLAMA, 1))
    tables, x = np.array([[3, 1, *[-1] * 10]], np.int32), random(1, LLAMA.width, seed=1)
    y = program.forward(x, (None, None), pool, replace(placed((0, 2 * PAGE - 1)), page_tables=tables))
    assert y.isfinite().all()
    with pytest.raises(ValueError, match="page outside"):
        program.forward(x, (None, None), pool, replace(placed((0, 2 * PAGE)), page_tables=tables))


def test_shapes_that_do_not_fit_are_refused() -> None:
    good, (keys, values) = layers(LLAMA), stored(LLAMA, 1)
    program, pool, x = TransformerProgram(LLAMA, good), pool_of(LLAMA, keys, values), torch.zeros(1, LLAMA.width)
    with pytest.raises(ValueError, match="does not fit"):
        program.forward(torch.zeros(2, LLAMA.width), (None, None), pool, placed((0, 5)))
    short = tables(LLAMA, 16)
    assert short is not None
    with pytest.raises(ValueError, match="rotary"):
        program.forward(x, ((short[0][:5], short[1][:5]), None), pool, placed((0, 5)))
    other = replace(LLAMA, kv_heads=6)
    with pytest.raises(ValueError, match="another model"):
        program.forward(x, (None, None), pool_of(other, *stored(other, 1)), placed((0, 5)))
    with pytest.raises(ValueError, match="layers"):
        KVCache(LLAMA, keys[:1], values)
    with pytest.raises(ValueError, match="weight"):
        KVCache(LLAMA, keys, [values[0], values[1][:, :1]])
    with pytest.raises(ValueError, match="multiple of 8"):
        KVCache(LLAMA, [part[:, :, :12] for part in keys], values)
    with pytest.raises(ValueError, match="weight"):
        TransformerProgram(LLAMA, [replace(good[0], out=good[0].up), good[1]])
    with pytest.raises(ValueError, match="layers"):
        TransformerProgram(LLAMA, good[:1])
    with pytest.raises(ValueError, match="sinks"):
        TransformerProgram(LLAMA, [replace(good[0], sinks=torch.zeros(6)), good[1]])
    with pytest.raises(ValueError, match="sinks"):
        TransformerProgram(replace(LLAMA, attention_sinks=True), good)
