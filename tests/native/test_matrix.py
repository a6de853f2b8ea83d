"""Matrices as GGUF files store them, against gguf's dequantizer and float64 products."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants
from quantized import QUANTIZED, activations, dequantized, random_rows

from nextword import native
from nextword.native.matmul import TYPES, Matrix, Segment

pytestmark = pytest.mark.skipif(not native.available(), reason="the compiled kernels were not built")


@pytest.mark.parametrize("type", TYPES)
def test_weights_are_those_of_gguf_bit_for_bit(type: str) -> None:
    data = random_rows(type, 7, 1024)
    floats = Matrix(1024, [Segment(type, data)]).dequantize()
    np.testing.assert_array_equal(floats.view(np.uint32), dequantized(type, data).view(np.uint32))


def test_every_float16_is_read_as_gguf_reads_it() -> None:
    halves = np.arange(1 << 16, dtype=np.uint16)
    blocks = np.full((halves.size, 18), 0x97, np.uint8)  # nibbles 7 and 9: -1 and 1
    blocks[:, :2] = halves.view(np.uint8).reshape(-1, 2)
    floats = Matrix(32, [Segment("q4_0", blocks)]).dequantize()
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(floats, quants.dequantize(blocks, GGMLQuantizationType.Q4_0))


def test_every_exponent_of_mxfp4_is_read_as_gguf_reads_it() -> None:
    blocks = np.tile(np.arange(17, dtype=np.uint8) * 17, (256, 1))
    blocks[:, 0] = np.arange(256)
    floats = Matrix(32, [Segment("mxfp4", blocks)]).dequantize()
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(floats.view(np.uint32), dequantized("mxfp4", blocks).view(np.uint32))


@pytest.mark.parametrize("type", QUANTIZED)
@pytest.mark.parametrize("batch", [1, 2, 3, 5, 9, 20])
def test_products_are_those_of_the_weights_and_the_rounded_activations(
    instructions: str, type: str, batch: int
) -> None:
    data = random_rows(type, 37, 768)
    x = np.random.default_rng(1).normal(size=(batch, 768)).astype(np.float32) * 3
    y = Matrix(768, [Segment(type, data)]).multiply(x)
    weights = dequantized(type, data).astype(np.float64)
    expected, size = activations(x) @ weights.T, np.abs(activations(x)) @ np.abs(weights).T
    assert (np.abs(y - expected) <= 3e-6 * size).all()


@pytest.mark.parametrize("type", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("batch", [1, 2, 3, 5, 9, 20])
@pytest.mark.parametrize("width", [1, 8, 63, 130])
def test_products_of_floats_are_those_of_float64(instructions: str, type: str, batch: int, width: int) -> None:
    data = random_rows(type, 37, width)
    x = np.random.default_rng(1).normal(size=(batch, width)).astype(np.float32)
    y = Matrix(width, [Segment(type, data)]).multiply(x)
    np.testing.assert_allclose(
        y, x.astype(np.float64) @ dequantized(type, data).T.astype(np.float64), rtol=0, atol=2e-5
    )


def test_segments_of_any_types_lie_on_top_of_each_other() -> None:
    segments = [Segment(type, random_rows(type, 5 + i, 256)) for i, type in enumerate(TYPES)]
    bias = np.random.default_rng(2).normal(size=sum(s.rows for s in segments)).astype(np.float32)
    x = np.random.default_rng(3).normal(size=(3, 256)).astype(np.float32)
    alone = np.concatenate([Matrix(256, [s]).multiply(x) for s in segments], -1)
    whole = Matrix(256, segments, bias)
    np.testing.assert_array_equal(whole.multiply(x), alone + bias)
    np.testing.assert_array_equal(whole.dequantize(), np.concatenate([Matrix(256, [s]).dequantize() for s in segments]))
