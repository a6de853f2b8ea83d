"""Compiled matrix products: the same bits on every path, and nothing read or written beyond the arrays."""

from __future__ import annotations

import ctypes
import mmap
import os
import threading

import numpy as np
import pytest
from numpy.typing import NDArray
from quantized import QUANTIZED, activations, dequantized, random_rows

from nextword import native
from nextword.base import RunError
from nextword.native.matmul import TYPES, Matrix, Segment

pytestmark = pytest.mark.skipif(not native.available(), reason="the compiled kernels were not built")

FLOATS = ["f32", "f16", "bf16"]


def vectors(batch: int, width: int, seed: int = 1) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(batch, width)).astype(np.float32)


def matrix(type: str, rows: int, width: int) -> Matrix:
    return Matrix(width, [Segment(type, random_rows(type, rows, width))])


def bits(x: NDArray[np.float32]) -> NDArray[np.uint32]:
    return x.view(np.uint32)


@pytest.mark.parametrize("type", TYPES)
def test_a_row_gets_the_same_bits_whatever_the_batch_the_threads_and_the_instructions(
    kernels_restored: None, type: str
) -> None:
    weights, x = matrix(type, 203, 768), vectors(40, 768)
    native.limit_level("portable")
    expected = bits(weights.multiply(x))
    for level in native.LEVELS:
        native.limit_level(level)
        for threads in (1, 3):
            native.set_threads(threads)
            for batch in (1, 2, 3, 4, 5, 6, 7, 9, 16, 17, 40):
                np.testing.assert_array_equal(bits(weights.multiply(x[:batch])), expected[:batch], f"{level} {batch}")


@pytest.mark.parametrize("type", [*FLOATS, "q4_0", "q5_1", "q8_0", "mxfp4"])
@pytest.mark.parametrize("width", [32, 96, 288, 576])
def test_narrow_rows_get_the_bits_of_portable_code(instructions: str, type: str, width: int) -> None:
    weights, x = matrix(type, 11, width), vectors(14, width)
    native.limit_level("portable")
    expected = bits(weights.multiply(x))
    native.limit_level(instructions)
    for batch in (1, 4, 14):
        np.testing.assert_array_equal(bits(weights.multiply(x[:batch])), expected[:batch])


def test_float_sums_are_eight_by_column_and_then_a_tree(instructions: str) -> None:
    weight, x = vectors(5, 200, 7), vectors(1, 200, 8)
    sums = np.zeros((8, 5), np.float32)
    for column in range(200):  # a product of two float32 is exact in float64
        sums[column % 8] = (weight[:, column].astype(np.float64) * x[0, column] + sums[column % 8]).astype(np.float32)
    expected = ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]))
    np.testing.assert_array_equal(Matrix.from_float32(weight).multiply(x)[0], expected)


@pytest.mark.parametrize("type", QUANTIZED)
@pytest.mark.parametrize("byte", [0x00, 0x7F, 0x80, 0xFF, 0x0F, 0xF0])
def test_largest_integers_do_not_overflow_the_sums(instructions: str, type: str, byte: int) -> None:
    data = random_rows(type, 9, 256, byte=byte)
    x = np.full((6, 256), 127, np.float32)
    x[1] = -x[1]
    x[2, ::2] = -127
    x[3, 16:] = -127
    x[4, 32:] /= 15  # multipliers of 15 and 1
    weights = dequantized(type, data).astype(np.float64)
    rounded = activations(x)
    y = Matrix(256, [Segment(type, data)]).multiply(x)
    assert (np.abs(y - rounded @ weights.T) <= 1e-5 * (np.abs(rounded) @ np.abs(weights).T)).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("type", [*FLOATS, *QUANTIZED])
def test_a_nan_or_infinity_spoils_its_own_vector_and_no_other(instructions: str, type: str, bad: float) -> None:
    x = np.ones((20, 256), np.float32)
    x[1, 40] = bad
    for batch in (3, 20):
        y = matrix(type, 16, 256).multiply(x[:batch])
        assert not np.isfinite(y[1]).any()
        assert np.isfinite(y[[0, *range(2, batch)]]).all()


@pytest.mark.parametrize("type", ["q4_0", "q4_1", "q8_0", "q4_k", "q6_k"])
def test_a_nan_in_a_scale_spoils_its_own_row(instructions: str, type: str) -> None:
    data, at = random_rows(type, 20, 256), {"q6_k": 208}.get(type, 0)
    data[3, at : at + 2] = np.array([np.nan], np.float16).view(np.uint8)
    y = Matrix(256, [Segment(type, data)]).multiply(vectors(5, 256))
    assert np.isnan(y[:, 3]).all()
    assert np.isfinite(np.delete(y, 3, 1)).all()


def test_zeros_and_the_smallest_numbers_give_zero(instructions: str) -> None:
    weights = matrix("q4_1", 16, 64)
    np.testing.assert_array_equal(weights.multiply(np.zeros((2, 64), np.float32)), np.zeros((2, 16)))
    for number in (1e-40, 1e35):
        assert np.isfinite(weights.multiply(np.full((1, 64), number, np.float32))).all()


def before_a_guard_page(values: NDArray[np.generic]) -> NDArray[np.generic]:
    """A copy of `values` that ends where memory ends: reading on is a crash."""
    pages = -(-values.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, pages + mmap.PAGESIZE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(start + pages), mmap.PAGESIZE, 0) == 0
    copied = np.frombuffer(memory, values.dtype, values.size, pages - values.nbytes).reshape(values.shape)
    copied[...] = values
    return copied


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("type", TYPES)
def test_nothing_beyond_weights_and_vectors_is_read(instructions: str, type: str) -> None:
    child = os.fork()
    if child == 0:  # the end of a row is not aligned
        for width in (256, 3, 66) if type in FLOATS else (256, 768):
            data = before_a_guard_page(random_rows(type, 9, width))
            for batch in (1, 5, 20):
                weights = Matrix(width, [Segment(type, data)])  # type: ignore[arg-type]
                weights.multiply(before_a_guard_page(vectors(batch, width)))  # type: ignore[arg-type]
                weights.embed(np.array([8]))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("type", TYPES)
def test_weights_at_any_address_are_read(instructions: str, type: str) -> None:
    data, x = random_rows(type, 19, 256), vectors(3, 256)
    expected = Matrix(256, [Segment(type, data)]).multiply(x)
    room = np.zeros(data.nbytes + 64, np.uint8)
    for shift in (1, 6, 63):
        moved = room[shift : shift + data.nbytes].reshape(data.shape)
        moved[:] = data
        np.testing.assert_array_equal(Matrix(256, [Segment(type, moved)]).multiply(x), expected)


def test_a_product_is_added_where_that_is_wanted_and_nothing_beyond_is_written(instructions: str) -> None:
    for type in ("q4_k", "q8_0", "f32"):
        weights, x = matrix(type, 21, 256), vectors(9, 256)
        y = weights.multiply(x)
        room = np.full(9 * 21 + 64, 7, np.float32)
        arguments = ctypes.byref(weights.struct), x.ctypes.data, 9, room.ctypes.data, 1
        assert native.bindings.library().nw_multiply(*arguments) == 0
        np.testing.assert_array_equal(room[: 9 * 21].reshape(9, 21), y + 7)
        assert (room[9 * 21 :] == 7).all()


def test_what_does_not_fit_is_refused_before_anything_is_read() -> None:
    data = random_rows("q8_0", 8, 64)
    weights = Matrix(64, [Segment("q8_0", data)])
    for x in (np.zeros((1, 32), np.float32), np.zeros((1, 64)), np.zeros(64, np.float32)):
        with pytest.raises(ValueError, match=r"float32 \(batch, 64\)"):
            weights.multiply(x)
    for id in (-1, 8):
        with pytest.raises(IndexError, match="0 to 7"):
            weights.embed(np.array([id]))
    with pytest.raises(ValueError, match="has 68 bytes, not 67"):
        Matrix(64, [Segment("q8_0", np.ascontiguousarray(data[:, :-1]))])
    with pytest.raises(ValueError, match="contiguous"):
        Matrix(64, [Segment("q8_0", np.asfortranarray(data))])
    with pytest.raises(ValueError, match="whole blocks of q4_k"):
        Matrix(64, [Segment("q4_k", data)])
    with pytest.raises(ValueError, match="do not read iq1_s"):
        Matrix(64, [Segment("iq1_s", data)])
    with pytest.raises(ValueError, match=r"float32 \(8,\)"):
        Matrix(64, [Segment("q8_0", data)], np.zeros(7, np.float32))


def test_nothing_times_a_matrix_is_nothing() -> None:
    weights = matrix("q4_1", 8, 64)
    assert weights.multiply(np.zeros((0, 64), np.float32)).shape == (0, 8)
    assert weights.embed(np.zeros(0, np.int64)).shape == (0, 64)


def test_without_the_kernels_a_matrix_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native.bindings, "find_library", lambda: None)
    assert not native.available()
    with pytest.raises(RunError, match="C compiler"):
        matrix("q8_0", 8, 64)


def test_threads_of_python_may_multiply_at_once() -> None:
    weights, x = matrix("q4_1", 512, 576), vectors(4, 576)
    expected, wrong = weights.multiply(x), []

    def work() -> None:
        for _ in range(200):
            if not np.array_equal(weights.multiply(x), expected):
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_can_multiply() -> None:
    weights, x = matrix("q4_1", 512, 576), vectors(1, 576)
    expected = weights.multiply(x)
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(weights.multiply(x), expected) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    np.testing.assert_array_equal(weights.multiply(x), expected)
