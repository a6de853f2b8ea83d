"""Compiled kernels against gguf's dequantizer, float64 and torch, on every instruction set here."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gguf import GGMLQuantizationType, quants

from nextword import native
from nextword.native.library import loaded

TYPES = {
    "q4_0": GGMLQuantizationType.Q4_0,
    "q4_1": GGMLQuantizationType.Q4_1,
    "q8_0": GGMLQuantizationType.Q8_0,
}
LEVELS = {"portable": 0, "avx2": 1, "avx512-vnni": 2}

pytestmark = pytest.mark.skipif(not native.available(), reason="the compiled kernels were not built")


@pytest.fixture(params=LEVELS)
def instructions(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set in turn; one that this processor lacks is left out."""
    loaded().nw_force_level(LEVELS[request.param])
    if native.level() != request.param:
        loaded().nw_force_level(-1)
        pytest.skip(f"this processor has no {request.param}")
    yield request.param
    loaded().nw_force_level(-1)


def stored(kind: str, rows: int, width: int, seed: int = 0) -> tuple[np.ndarray, torch.Tensor]:
    """GGUF blocks of a random matrix, and what they stand for by the gguf package."""
    weights = np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)
    raw = quants.quantize(weights, TYPES[kind])
    return raw, torch.from_numpy(quants.dequantize(raw, TYPES[kind]))


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("rows", [1, 8, 203])
def test_packed_weights_are_the_stored_ones_bit_for_bit(instructions: str, kind: str, rows: int) -> None:
    raw, floats = stored(kind, rows, 96)
    matrix = native.PackedMatrix.pack(kind, raw, 96)  # type: ignore[arg-type]
    assert torch.equal(matrix.dequantize(), floats)
    assert torch.equal(matrix.dequantize(rows // 2, rows), floats[rows // 2 :])
    ids = torch.tensor([[rows - 1, 0], [0, rows // 2]])
    assert torch.equal(matrix.rows_at(ids), floats[ids])


def test_minus_eight_times_every_finite_half_is_exact() -> None:
    halves = np.arange(1 << 16, dtype=np.uint16)
    values = halves.view(np.float16).astype(np.float32)
    halves = halves[np.isfinite(values) & (np.abs(values) <= 8188)]
    blocks = np.zeros((halves.size, 18), np.uint8)
    blocks[:, :2] = halves.view(np.uint8).reshape(-1, 2)
    floats = native.PackedMatrix.pack("q4_0", blocks, 32).dequantize()  # nibbles of zero stand for -8
    np.testing.assert_array_equal(floats[:, 0].numpy(), -8 * halves.view(np.float16).astype(np.float32))


def rounded(x: torch.Tensor) -> torch.Tensor:
    """Activations as the kernels see them: int8 times a scale, by blocks of 32."""
    blocks = x.reshape(*x.shape[:-1], -1, 32)
    scale = blocks.abs().amax(-1, keepdim=True) / 127
    return torch.where(scale > 0, (blocks / scale).round() * scale, 0).reshape(x.shape)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("batch", [1, 2, 3, 8, 13, 70])
def test_products_equal_float64_with_rounded_activations(instructions: str, kind: str, batch: int) -> None:
    raw, floats = stored(kind, 51, 256)
    x = torch.randn(batch, 256, generator=torch.Generator().manual_seed(1)) * 3
    y = native.PackedMatrix.pack(kind, raw, 256).matmul(x)  # type: ignore[arg-type]
    expected = rounded(x).double() @ floats.double().T
    torch.testing.assert_close(y.double(), expected, atol=2e-3, rtol=1e-4)


@pytest.mark.parametrize("kind", TYPES)
def test_largest_weights_and_activations_do_not_overflow_the_sums(instructions: str, kind: str) -> None:
    size = {"q4_0": 18, "q4_1": 20, "q8_0": 34}[kind]
    for byte in (0x00, 0x80, 0x81, 0x7F, 0xFF, 0xF0):
        block = np.full((8, size), byte, np.uint8)
        block[:, :2] = np.array([1.0], np.float16).view(np.uint8)
        if kind == "q4_1":
            block[:, 2:4] = np.array([-3.0], np.float16).view(np.uint8)
        floats = torch.from_numpy(quants.dequantize(block, TYPES[kind]))
        for x in (torch.full((1, 32), 127.0), torch.full((1, 32), -127.0)):
            y = native.PackedMatrix.pack(kind, block, 32).matmul(x)  # type: ignore[arg-type]
            assert torch.equal(y, x @ floats.T)


@pytest.mark.parametrize("kind", TYPES)
def test_a_row_gets_the_same_bits_whatever_the_batch_the_threads_and_the_instructions(kind: str) -> None:
    raw, _ = stored(kind, 203, 576)
    matrix = native.PackedMatrix.pack(kind, raw, 576)  # type: ignore[arg-type]
    x = torch.randn(21, 576, generator=torch.Generator().manual_seed(2))
    whole = matrix.matmul(x)
    try:
        for level in LEVELS.values():
            for threads in (1, 2, 5):
                loaded().nw_force_level(level)
                native.set_threads(threads)
                assert torch.equal(torch.cat([matrix.matmul(row[None]) for row in x]), whole)
                assert torch.equal(matrix.matmul(x[:7]), whole[:7])
    finally:
        loaded().nw_force_level(-1)
        native.set_threads(len(os.sched_getaffinity(0)))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("kind", TYPES)
def test_a_nan_or_infinity_spoils_its_own_row_and_no_other(instructions: str, kind: str, bad: float) -> None:
    raw, _ = stored(kind, 16, 64)
    x = torch.ones(3, 64)
    x[1, 40] = bad
    y = native.PackedMatrix.pack(kind, raw, 64).matmul(x)  # type: ignore[arg-type]
    assert y[1].isnan().all()
    assert y[[0, 2]].isfinite().all()


def test_zeros_and_the_smallest_numbers_give_zero(instructions: str) -> None:
    raw, _ = stored("q4_1", 16, 64)
    matrix = native.PackedMatrix.pack("q4_1", raw, 64)
    assert torch.equal(matrix.matmul(torch.zeros(2, 64)), torch.zeros(2, 16))
    assert matrix.matmul(torch.full((1, 64), 1e-40)).isfinite().all()


def test_float_weights_rounded_to_eight_bits_are_near() -> None:
    weights = torch.randn(40, 128, generator=torch.Generator().manual_seed(4))
    back = native.PackedMatrix.pack_float(weights).dequantize()
    assert (back - weights).abs().max() <= weights.abs().max() / 127 * 0.51
    zero = native.PackedMatrix.pack_float(torch.zeros(8, 32)).dequantize()
    assert torch.equal(zero, torch.zeros(8, 32))


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 5, 16])
@pytest.mark.parametrize("width", [1, 7, 64, 577])
def test_float_products_equal_float64(instructions: str, batch: int, width: int) -> None:
    generator = torch.Generator().manual_seed(5)
    x, weight = torch.randn(batch, width, generator=generator), torch.randn(37, width, generator=generator)
    y = native.linear(x, weight)
    torch.testing.assert_close(y, (x.double() @ weight.double().T).float(), atol=3e-5, rtol=1e-5)
    assert torch.equal(native.linear(x[:1], weight), y[:1])


def test_norm_and_gate_equal_torch(instructions: str) -> None:
    generator = torch.Generator().manual_seed(6)
    x, weight = torch.randn(5, 2, 70, generator=generator) * 9, torch.randn(70, generator=generator)
    torch.testing.assert_close(native.rms_norm(x, weight, 1e-5), F.rms_norm(x, (70,), weight, 1e-5))
    gate, up = x.chunk(2, -1)
    torch.testing.assert_close(native.silu_product(x), F.silu(gate) * up)
    many = torch.randn(900, 128, generator=generator)
    torch.testing.assert_close(native.silu_product(many), F.silu(many[:, :64]) * many[:, 64:])
    extreme = torch.tensor([[-1e30, -200.0, 200.0, float("nan"), 1.0, 1.0, 1.0, 1.0]])
    result = native.silu_product(extreme)
    torch.testing.assert_close(result[0, :3], torch.tensor([0.0, 0.0, 200.0]))
    assert result[0, 3].isnan()


@pytest.mark.parametrize("width", [8, 16, 48, 64])
@pytest.mark.parametrize("window", [0, 5])
@pytest.mark.parametrize("rotary", [0, 8])
def test_one_tokens_attention_equals_torch(instructions: str, width: int, window: int, rotary: int) -> None:
    generator = torch.Generator().manual_seed(7)
    lengths, heads, kv, capacity = [0, 3, 30], 6, 2, 40
    qkv = torch.randn(3, heads + 2 * kv, width, generator=generator)
    keys, values = (torch.randn(3, kv, capacity, width, generator=generator) for _ in range(2))
    before = keys.clone(), values.clone()
    angles = torch.randn(3, rotary // 2, generator=generator)
    rope = (torch.cat([angles.cos()] * 2, -1), torch.cat([-angles.sin(), angles.sin()], -1)) if rotary else None
    expected_qkv = qkv.clone()
    if rope is not None:
        turning, half = qkv[:, : heads + kv, :rotary], rotary // 2
        turned = turning * rope[0][:, None] + turning.roll(half, -1) * rope[1][:, None]
        expected_qkv[:, : heads + kv, :rotary] = turned
    y = native.attend(qkv.clone(), rope, keys, values, lengths, heads, 0.3, window)
    for row, length in enumerate(lengths):
        query, key, value = expected_qkv[row].split((heads, kv, kv))
        torch.testing.assert_close(keys[row, :, length], key)
        torch.testing.assert_close(values[row, :, length], value)
        first = max(0, length + 1 - window) if window else 0
        seen = [
            torch.cat((old[row, :, first:length], new[:, None]), 1)
            for old, new in zip(before, (key, value), strict=True)
        ]
        k, v = (part.repeat_interleave(heads // kv, 0) for part in seen)
        weights = ((k @ query[:, :, None])[..., 0] * 0.3).softmax(-1)
        torch.testing.assert_close(y[row], (weights[:, None] @ v).flatten(), atol=2e-6, rtol=1e-5)
        untouched = [place for place in range(capacity) if place != length]
        assert torch.equal(keys[row][:, untouched], before[0][row][:, untouched])


def test_wrong_shapes_are_refused_before_anything_is_read() -> None:
    raw, _ = stored("q8_0", 8, 64)
    matrix = native.PackedMatrix.pack("q8_0", raw, 64)
    with pytest.raises(ValueError, match="64"):
        matrix.matmul(torch.zeros(1, 32))
    with pytest.raises(ValueError, match="float32"):
        matrix.matmul(torch.zeros(1, 64, dtype=torch.float64))
    for id in (-1, 8):
        with pytest.raises(IndexError):
            matrix.rows_at(torch.tensor([id]))
    with pytest.raises(ValueError, match="68"):
        native.PackedMatrix.pack("q8_0", raw[:, :-1], 64)
    with pytest.raises(ValueError, match="contiguous"):
        native.linear(torch.zeros(1, 4), torch.zeros(4, 8).T)
    cache = torch.zeros(1, 1, 4, 8)
    with pytest.raises(ValueError, match="do not fit"):
        native.attend(torch.zeros(1, 3, 8), None, cache, cache.clone(), [4], 1, 1.0, 0)


def test_threads_of_python_may_multiply_at_once() -> None:
    raw, _ = stored("q4_1", 512, 576)
    matrix = native.PackedMatrix.pack("q4_1", raw, 576)
    x = torch.randn(4, 576, generator=torch.Generator().manual_seed(8))
    expected, wrong = matrix.matmul(x), []

    def work() -> None:
        for _ in range(200):
            if not torch.equal(matrix.matmul(x), expected):
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_forked_process_can_multiply() -> None:
    raw, _ = stored("q4_1", 512, 576)
    matrix = native.PackedMatrix.pack("q4_1", raw, 576)
    x = torch.ones(1, 576)
    expected = matrix.matmul(x)
    child = os.fork()
    if child == 0:
        os._exit(0 if torch.equal(matrix.matmul(x), expected) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert torch.equal(matrix.matmul(x), expected)
