"""Packed products of every tile of vectors and every place of a row, against portable C and exact integers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants

from nextword import native
from nextword.native.matmul import PackedMatrix, QuantType

TYPES = {
    "q4_0": GGMLQuantizationType.Q4_0,
    "q4_1": GGMLQuantizationType.Q4_1,
    "q8_0": GGMLQuantizationType.Q8_0,
}
pytestmark = pytest.mark.skipif(not native.available(), reason="the compiled kernels were not built")


def matrix(kind: QuantType, rows: int, width: int, precise: bool) -> PackedMatrix:
    weights = np.random.default_rng(rows + width).normal(size=(rows, width)).astype(np.float32)
    return PackedMatrix.pack(kind, quants.quantize(weights, TYPES[kind]), width, precise)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("precise", [False, True])
@pytest.mark.parametrize(("rows", "width"), [(3, 32), (16, 96), (203, 576), (333, 1536)])
def test_every_number_of_vectors_gets_the_bits_of_portable_code(
    instructions: str, kind: QuantType, precise: bool, rows: int, width: int
) -> None:
    # 203 and 333 rows are 26 and 42 groups of eight, the last one incomplete, in several chunks of work
    weights = matrix(kind, rows, width, precise)
    x = torch.randn(14, width, generator=torch.Generator().manual_seed(7))
    native.limit_level("portable")
    expected = weights.matmul(x)
    native.limit_level(instructions)
    for batch in range(1, 15):
        assert torch.equal(weights.matmul(x[:batch]), expected[:batch]), batch


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("precise", [False, True])
def test_a_last_group_without_a_partner_gets_the_same_bits(instructions: str, kind: QuantType, precise: bool) -> None:
    weights, longer = (matrix(kind, 208, 64, precise) for _ in range(2))
    weights.rows = 8 * 25  # an odd number of groups: the last one is multiplied alone
    x = torch.randn(7, 64, generator=torch.Generator().manual_seed(8))
    for batch in range(1, 8):
        assert torch.equal(weights.matmul(x[:batch]), longer.matmul(x[:batch])[:, :200]), batch


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("precise", [False, True])
def test_sixteen_rows_and_four_vectors_of_largest_numbers_are_exact(
    instructions: str, kind: QuantType, precise: bool
) -> None:
    size, head = {"q4_0": (18, 2), "q4_1": (20, 4), "q8_0": (34, 2)}[kind]
    most = 254.0 * 127 if precise else 127.0
    blocks = np.zeros((16, size), np.uint8)
    blocks[:, :2] = np.array([1.0], np.float16).view(np.uint8)
    blocks[:, head:] = np.array([0x00, 0x7F, 0x80, 0xFF] * 4, np.uint8)[:, None]
    signs = torch.ones(4, 32)
    signs[1] = -1
    signs[2, ::2] = -1
    signs[3, 16:] = -1
    y = PackedMatrix.pack(kind, blocks, 32, precise).matmul(most * signs)
    floats = torch.from_numpy(quants.dequantize(blocks, TYPES[kind])).double()
    assert torch.equal(y.double(), most * signs.double() @ floats.T)  # all below 2^24


@pytest.mark.parametrize("threads", [2, 5])
def test_the_chunks_of_several_threads_cover_every_row(instructions: str, threads: int) -> None:
    weights = matrix("q4_1", 1000, 576, False)
    x = torch.randn(9, 576, generator=torch.Generator().manual_seed(9))
    native.set_threads(1)
    expected = weights.matmul(x)
    native.set_threads(threads)
    assert torch.equal(weights.matmul(x), expected)
