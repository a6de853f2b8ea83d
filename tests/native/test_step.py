"""One compiled step through a model against the same layers written out in float64, on every instruction set."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nextword import native
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
}  # fmt: skip
LENGTHS = [0, 700, 7, 256]
CAPACITY = 768


@pytest.fixture(params=native.LEVELS)
def instructions(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set in turn; one that this processor lacks is left out."""
    native.limit(request.param)
    if native.level() != request.param:
        native.limit(None)
        pytest.skip(f"this processor has no {request.param}")
    yield request.param
    native.limit(None)


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def layers(spec: ModelSpec, packed: bool = False, precise: bool = False) -> list[native.LayerWeights]:
    """Random weights of everything that the spec has."""
    count = iter(range(10_000))

    def matrix(rows: int, width: int, bias: bool) -> native.MatrixWeights:
        weight = random(rows, width, seed=next(count)) / width**0.5
        held = native.PackedMatrix.pack_float(weight, precise) if packed else weight
        return native.MatrixWeights(held, random(rows, seed=next(count)) if bias else None)

    def norm(width: int, wanted: bool = True) -> native.NormWeights | None:
        if not wanted:
            return None
        bias = random(width, seed=next(count)) if spec.norm == "layer" and spec.norm_bias else None
        return native.NormWeights(1 + 0.2 * random(width, seed=next(count)), bias)

    mixed, keys = spec.heads * spec.head_width, spec.kv_heads * spec.head_width
    before, after = spec.norm_place != "after", spec.norm_place != "before"
    each = {"none": None, "head": (spec.head_width,) * 2, "full": (mixed, keys)}[spec.qk_norm]
    return [
        native.LayerWeights(
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
        )
        for _ in range(spec.layers)
    ]


def tables(spec: ModelSpec, rotary: int) -> native.Tables | None:
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
    weights: list[native.LayerWeights],
    x: Tensor,
    rope: tuple[native.Tables | None, native.Tables | None],
    before: list[tuple[Tensor, Tensor]],
    position: int,
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """The formulas for one token, in float64: what the layers leave, and each one's new key and value."""

    def product(matrix: native.MatrixWeights, v: Tensor) -> Tensor:
        bias = None if matrix.bias is None else matrix.bias.double()
        if isinstance(matrix.weight, Tensor):
            return F.linear(v, matrix.weight.double(), bias)
        return F.linear(rounded(v), matrix.weight.dequantize().double(), bias)

    def norm(weight: native.NormWeights | None, v: Tensor) -> Tensor:
        if weight is None:
            return v
        middle = v.mean(-1, keepdim=True) if spec.norm == "layer" else torch.zeros(1)
        spread = ((v - middle) ** 2).mean(-1, keepdim=True)
        scaled = (v - middle) / (spread + spec.norm_eps).sqrt() * weight.weight
        return scaled if weight.bias is None else scaled + weight.bias

    def heads_norm(weight: native.NormWeights | None, v: Tensor) -> Tensor:
        return norm(weight, v.flatten()).view_as(v) if spec.qk_norm == "full" else norm(weight, v)

    def turn(v: Tensor, table: native.Tables | None) -> Tensor:
        if table is None:
            return v
        cosine, sine = table[0][position].double(), table[1][position].double()
        half, rotary = len(cosine) // 2, len(cosine)
        a, b = v[:, :half], v[:, half:rotary]
        turned = (a * cosine[:half] - b * sine[half:], b * cosine[:half] + a * sine[half:], v[:, rotary:])
        return torch.cat(turned, -1)

    def mlp(layer: native.LayerWeights, v: Tensor) -> Tensor:
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
        table = rope[1 if window else 0]
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
        mixed = (scores.softmax(-1)[:, None] @ seen_values).flatten()
        attended = norm(layer.attention_post_norm, product(layer.out, mixed))
        read = x if spec.parallel else x + attended
        x = x + attended + norm(layer.mlp_post_norm, mlp(layer, norm(layer.mlp_norm, read)))
    return x, written


def cache(spec: ModelSpec, batch: int) -> tuple[list[Tensor], list[Tensor]]:
    shape = (batch, spec.kv_heads, CAPACITY, spec.head_width)
    return (
        [random(*shape, seed=200 + layer) for layer in range(spec.layers)],
        [random(*shape, seed=300 + layer) for layer in range(spec.layers)],
    )


@pytest.mark.parametrize("name", SPECS)
def test_a_step_computes_what_the_formulas_say(instructions: str, name: str) -> None:
    spec = SPECS[name]
    weights, rope = layers(spec), (tables(spec, spec.head_width), tables(spec, 4))
    keys, values = cache(spec, len(LENGTHS))
    before = [(k.clone(), v.clone()) for k, v in zip(keys, values, strict=True)]
    x = random(len(LENGTHS), spec.width, seed=1)
    y = native.Step(spec, weights).run(x, rope, keys, values, LENGTHS)
    for row, position in enumerate(LENGTHS):
        old = [(k[row], v[row]) for k, v in before]
        expected, written = one_row(spec, weights, x[row], rope, old, position)
        torch.testing.assert_close(y[row].double(), expected, atol=3e-5, rtol=1e-5)
        for layer, (key, value) in enumerate(written):
            torch.testing.assert_close(keys[layer][row, :, position].double(), key, atol=2e-5, rtol=1e-5)
            torch.testing.assert_close(values[layer][row, :, position].double(), value, atol=2e-5, rtol=1e-5)
            keys[layer][row, :, position] = before[layer][0][row, :, position]
            values[layer][row, :, position] = before[layer][1][row, :, position]
    for layer, (k, v) in enumerate(before):  # and nothing else was written
        assert torch.equal(keys[layer], k)
        assert torch.equal(values[layer], v)


@pytest.mark.parametrize("packed", [False, True])
def test_a_row_gets_the_same_bits_alone_and_among_others(packed: bool) -> None:
    weights, rope = layers(LLAMA, packed), (tables(LLAMA, 16), tables(LLAMA, 16))
    step, (keys, values) = native.Step(LLAMA, weights), cache(LLAMA, len(LENGTHS))
    x = random(len(LENGTHS), LLAMA.width, seed=1)
    together = step.run(x, rope, keys, values, LENGTHS)
    for row, position in enumerate(LENGTHS):
        mine = [[part[row : row + 1].contiguous() for part in held] for held in (keys, values)]
        assert torch.equal(step.run(x[row : row + 1], rope, mine[0], mine[1], [position]), together[row : row + 1])


def test_packed_layers_equal_the_formulas_with_rounded_activations(instructions: str) -> None:
    weights = layers(LLAMA, packed=True)
    rope, (keys, values) = (tables(LLAMA, 16), None), cache(LLAMA, 1)
    before = [(k[0].clone(), v[0].clone()) for k, v in zip(keys, values, strict=True)]
    x = random(1, LLAMA.width, seed=1)
    expected, _ = one_row(LLAMA, weights, x[0], rope, before, 9)
    y = native.Step(LLAMA, weights).run(x, rope, keys, values, [9])
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
                if isinstance(matrix, native.MatrixWeights) and isinstance(matrix.weight, native.PackedMatrix)
            },
        )
        for layer in weights
    ]
    rope, (keys, values) = (tables(LLAMA, 16), None), cache(LLAMA, 1)
    before = [(k[0].clone(), v[0].clone()) for k, v in zip(keys, values, strict=True)]
    x = random(1, LLAMA.width, seed=1)
    expected, _ = one_row(LLAMA, floats, x[0], rope, before, 9)
    y = native.Step(LLAMA, weights).run(x, rope, keys, values, [9])
    torch.testing.assert_close(y[0].double(), expected, atol=1e-3, rtol=0)


def test_a_nan_stays_in_its_own_row() -> None:
    keys, values = cache(LLAMA, 2)
    x = random(2, LLAMA.width, seed=1)
    x[0, 3] = float("nan")
    y = native.Step(LLAMA, layers(LLAMA)).run(x, (None, None), keys, values, [300, 300])
    assert y[0].isnan().all()
    assert y[1].isfinite().all()


def test_a_copied_step_reads_the_copied_weights() -> None:
    weights = layers(LLAMA, packed=True)
    step, x = native.Step(LLAMA, weights), random(1, LLAMA.width, seed=1)
    keys, values = cache(LLAMA, 1)
    expected = step.run(x, (None, None), keys, values, [5])
    other = copy.deepcopy(step)
    for layer in weights:
        assert isinstance(layer.down.weight, native.PackedMatrix)
        layer.down.weight.data.zero_()
    assert torch.equal(other.run(x, (None, None), keys, values, [5]), expected)
    assert not torch.equal(step.run(x, (None, None), keys, values, [5]), expected)


def test_what_does_not_fit_is_refused_before_anything_is_read() -> None:
    step, x = native.Step(LLAMA, layers(LLAMA)), torch.zeros(1, LLAMA.width)
    keys, values = cache(LLAMA, 1)
    for length in (-1, CAPACITY):
        with pytest.raises(ValueError, match="leave no room"):
            step.run(x, (None, None), keys, values, [length])
    with pytest.raises(ValueError, match="layers"):
        step.run(x, (None, None), keys[:1], values, [0])
    with pytest.raises(ValueError, match="weight"):
        step.run(x, (None, None), keys, [values[0], values[1][:, :1]], [0])
    with pytest.raises(ValueError, match="does not fit"):
        step.run(torch.zeros(2, LLAMA.width), (None, None), keys, values, [0])
    short = tables(LLAMA, 16)
    assert short is not None
    with pytest.raises(ValueError, match="rotary"):
        step.run(x, ((short[0][:5], short[1][:5]), None), keys, values, [5])
    good = layers(LLAMA)
    with pytest.raises(ValueError, match="weight"):
        native.Step(LLAMA, [replace(good[0], out=good[0].up), good[1]])
    with pytest.raises(ValueError, match="layers"):
        native.Step(LLAMA, good[:1])
