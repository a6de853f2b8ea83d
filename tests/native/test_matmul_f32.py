"""The compiled float32 product: its sums against float64, and its bits in every batch and with any threads."""

from __future__ import annotations

import ctypes
import math
import mmap
import os

import numpy as np
import pytest
import torch
from torch import Tensor

from nextword import native
from nextword.native.matmul import linear

pytestmark = pytest.mark.skipif(not native.available(), reason="the compiled kernels were not built")

ROWS = [1, 7, 8, 9, 16, 17, 31, 64, 203]
WIDTHS = [1, 3, 4, 63, 64, 65, 127, 130, 577]


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest, kernels_restored: None) -> int:
    native.set_threads(request.param)
    return int(request.param)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("rows", ROWS)
def test_a_vector_gets_the_same_bits_alone_and_among_up_to_300(threads: int, rows: int, width: int) -> None:
    weight, x = numbers(rows, width, seed=1), numbers(300, width, seed=2)
    alone = torch.cat([linear(vector, weight) for vector in x.split(1)])
    for batch in (2, 3, 4, 5, 6, 7, 8, 9, 13, 48, 49, 70, 129, 300):
        assert torch.equal(linear(x[:batch], weight), alone[:batch])


def test_every_batch_from_1_to_70_gives_the_same_bits(instructions: str) -> None:
    weight, x = numbers(37, 322, seed=3), numbers(70, 322, seed=4)
    alone = torch.cat([linear(vector, weight) for vector in x.split(1)])
    for batch in range(1, 71):
        assert torch.equal(linear(x[70 - batch :], weight), alone[70 - batch :])


@pytest.mark.parametrize("batch", [1, 8, 9, 64, 200])
@pytest.mark.parametrize("width", [1, 64, 130, 577, 1536])
def test_products_equal_float64(instructions: str, batch: int, width: int) -> None:
    weight, x = numbers(37, width, seed=5), numbers(batch, width, seed=6)
    error = (linear(x, weight).double() - x.double() @ weight.double().T).abs().max()
    assert error <= 1e-6 * math.sqrt(width) + 2e-7


def test_sums_are_taken_by_column_in_stretches_of_64() -> None:
    if native.level() == "portable":
        pytest.skip("without AVX2 sums are taken in double precision")
    weight, x = numbers(16, 200, seed=7).numpy(), numbers(1, 200, seed=8).numpy()
    total = np.zeros(16, np.float32)
    for start in range(0, 200, 64):
        partial = np.zeros(16, np.float32)
        for column in range(start, min(start + 64, 200)):  # a product of two float32 is exact in double
            product = weight[:, column].astype(np.float64) * x[0, column]
            partial = (product + partial).astype(np.float32)
        total = total + partial
    for batch in (1, 20):
        y = linear(torch.from_numpy(x).repeat(batch, 1), torch.from_numpy(weight))
        np.testing.assert_array_equal(y.numpy(), np.tile(total, (batch, 1)))


@pytest.mark.parametrize("batch", [3, 20])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_nan_or_infinity_reaches_its_own_vector_only(instructions: str, batch: int, bad: float) -> None:
    weight, x = numbers(17, 70, seed=9), numbers(batch, 70, seed=10)
    x[1, 69] = bad
    y = linear(x, weight)
    assert not y[1].isfinite().any()
    assert y[[0, *range(2, batch)]].isfinite().all()


@pytest.mark.parametrize("batch", [1, 20, 60])
def test_nothing_beyond_the_results_is_written(instructions: str, batch: int) -> None:
    weight, x = numbers(21, 66, seed=11), numbers(batch, 66, seed=12)
    room = torch.full((batch * 21 + 64,), 7.0)
    kernel = native.bindings.library()
    kernel.nw_multiply(0, 0, weight.data_ptr(), 21, 66, x.data_ptr(), batch, room.data_ptr())
    assert torch.equal(room[: batch * 21].view(batch, 21), linear(x, weight))
    assert (room[batch * 21 :] == 7).all()


def before_a_guard_page(values: Tensor) -> Tensor:
    """A copy of `values` that ends where memory ends: reading on is a crash."""
    size = values.numel() * 4
    pages = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, pages + mmap.PAGESIZE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(start + pages), mmap.PAGESIZE, 0) == 0
    copied = torch.frombuffer(memory, dtype=torch.float32, count=values.numel(), offset=pages - size).view(values.shape)
    return copied.copy_(values)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("batch", [1, 5, 8, 9, 60])
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (9, 3), (17, 66), (40, 64)])
def test_nothing_beyond_weights_and_vectors_is_read(rows: int, width: int, batch: int) -> None:
    child = os.fork()
    if child == 0:
        linear(before_a_guard_page(numbers(batch, width)), before_a_guard_page(numbers(rows, width)))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
