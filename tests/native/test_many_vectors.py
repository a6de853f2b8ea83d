"""Many vectors at once, against the same vectors alone: the same bits, however they are shared out.

From 6 to 20 vectors on, by type, rows are unpacked for all of them (many_of in matmul.c).
"""

from __future__ import annotations

import numpy as np
import pytest
from quantized import QUANTIZED, SMALL_BLOCKS, random_rows

from nextword import native
from nextword.native.matmul import TYPES, Matrix, Segment

pytestmark = pytest.mark.skipif(not native.available(), reason="the compiled kernels were not built")


def vectors(batch: int, width: int) -> np.ndarray:
    """(batch, width): numbers of sizes that differ from block to block."""
    rng = np.random.default_rng(5)
    sizes = 10.0 ** rng.integers(-2, 2, (batch, (width + 31) // 32)).repeat(32, -1)[:, :width]
    return (rng.normal(size=(batch, width)) * sizes).astype(np.float32)


def alone(matrix: Matrix, x: np.ndarray) -> np.ndarray:
    return np.concatenate([matrix.multiply(vector[None]) for vector in x])


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize(("batch", "rows"), [(6, 33), (9, 70), (13, 8), (21, 17), (26, 1)])
def test_a_batch_gives_each_vector_what_it_gets_alone(instructions: str, type: str, batch: int, rows: int) -> None:
    matrix, x = Matrix(768, [Segment(type, random_rows(type, rows, 768))]), vectors(batch, 768)
    np.testing.assert_array_equal(matrix.multiply(x), alone(matrix, x))


@pytest.mark.parametrize("type", SMALL_BLOCKS)
def test_the_last_superblock_may_be_short(instructions: str, type: str) -> None:
    matrix, x = Matrix(352, [Segment(type, random_rows(type, 37, 352))]), vectors(25, 352)
    np.testing.assert_array_equal(matrix.multiply(x), alone(matrix, x))


@pytest.mark.parametrize("type", ["q4_k", "q6_k", "q8_0", "q4_1", "bf16"])
def test_a_long_prompt_gives_each_token_what_it_gets_alone(type: str) -> None:
    matrix, x = Matrix(256, [Segment(type, random_rows(type, 40, 256))]), vectors(521, 256)
    np.testing.assert_array_equal(matrix.multiply(x), alone(matrix, x))


@pytest.mark.parametrize("type", QUANTIZED)
def test_the_largest_activations_do_not_overflow(instructions: str, type: str) -> None:
    signs = np.where(np.random.default_rng(6).integers(0, 2, (24, 256)), 1, -1).astype(np.float32)
    signs[:2] = [[1], [-1]]
    matrix = Matrix(256, [Segment(type, random_rows(type, 48, 256))])
    np.testing.assert_array_equal(matrix.multiply(signs), alone(matrix, signs))


def test_a_nan_stays_in_its_vector() -> None:
    matrix, x = Matrix(512, [Segment("q4_k", random_rows("q4_k", 20, 512))]), vectors(14, 512)
    x[3, 300] = np.nan
    y = matrix.multiply(x)
    assert np.isnan(y[3]).all()
    assert np.isfinite(np.delete(y, 3, 0)).all()


def test_rows_may_lie_at_any_address() -> None:
    data, x = random_rows("q6_k", 19, 512), vectors(14, 512)
    moved = np.empty(data.size + 1, np.uint8)[1:].reshape(data.shape)
    moved[:] = data
    np.testing.assert_array_equal(
        Matrix(512, [Segment("q6_k", moved)]).multiply(x), Matrix(512, [Segment("q6_k", data)]).multiply(x)
    )
