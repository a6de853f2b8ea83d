"""Compiled kernels against gguf's dequantizer, float64 and torch, on every instruction set here."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gguf import GGMLQuantizationType, quants

import nextword
from nextword import native
from nextword.base import RunError
from nextword.models.layers import PackedLinear
from nextword.native.elementwise import rms_norm, swiglu
from nextword.native.matmul import PackedMatrix, linear

TYPES = {
    "q4_0": GGMLQuantizationType.Q4_0,
    "q4_1": GGMLQuantizationType.Q4_1,
    "q8_0": GGMLQuantizationType.Q8_0,
}
pytestmark = pytest.mark.skipif(not native.available(), reason="the compiled kernels were not built")


def stored(kind: str, rows: int, width: int, seed: int = 0) -> tuple[np.ndarray, torch.Tensor]:
    """GGUF blocks of a random matrix, and what they stand for by the gguf package."""
    weights = np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)
    raw = quants.quantize(weights, TYPES[kind])
    return raw, torch.from_numpy(quants.dequantize(raw, TYPES[kind]))


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("rows", [1, 8, 203])
def test_packed_weights_are_the_stored_ones_bit_for_bit(instructions: str, kind: str, rows: int) -> None:
    raw, floats = stored(kind, rows, 96)
    matrix = PackedMatrix.pack(kind, raw, 96)  # type: ignore[arg-type]
    assert torch.equal(matrix.dequantize(), floats)
    assert torch.equal(matrix.dequantize(rows // 2, rows), floats[rows // 2 :])
    ids = torch.tensor([[rows - 1, 0], [0, rows // 2]])
    assert torch.equal(matrix.rows_at(ids), floats[ids])


def test_every_half_is_a_scale_as_gguf_reads_it() -> None:
    halves = np.arange(1 << 16, dtype=np.uint16)
    blocks = np.full((halves.size, 18), 0x97, np.uint8)  # nibbles 7 and 9: -1 and 1
    blocks[:, :2] = halves.view(np.uint8).reshape(-1, 2)
    floats = PackedMatrix.pack("q4_0", blocks, 32).dequantize().numpy()
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(floats[:, 31], halves.view(np.float16).astype(np.float32))
        np.testing.assert_array_equal(floats, quants.dequantize(blocks, TYPES["q4_0"]))


def rounded(x: torch.Tensor, precise: bool) -> torch.Tensor:
    """Activations as the kernels see them: integers times a scale, by blocks of 32."""
    blocks = x.reshape(*x.shape[:-1], -1, 32)
    scale = blocks.abs().amax(-1, keepdim=True) / (254 * 127 if precise else 127)
    return torch.where(scale > 0, (blocks / scale).round() * scale, 0).reshape(x.shape)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("precise", [False, True])
@pytest.mark.parametrize("batch", [1, 2, 3, 8, 13, 70])
def test_products_equal_float64_with_rounded_activations(
    instructions: str, kind: str, precise: bool, batch: int
) -> None:
    raw, floats = stored(kind, 51, 256)
    x = torch.randn(batch, 256, generator=torch.Generator().manual_seed(1)) * 3
    y = PackedMatrix.pack(kind, raw, 256, precise).matmul(x)  # type: ignore[arg-type]
    expected = rounded(x, precise).double() @ floats.double().T
    torch.testing.assert_close(y.double(), expected, atol=2e-3, rtol=1e-4)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("precise", [False, True])
def test_products_stay_within_half_a_step_of_every_activation(kind: str, precise: bool) -> None:
    raw, floats = stored(kind, 64, 576)
    x = torch.randn(5, 576, generator=torch.Generator().manual_seed(3)).abs() + 0.1
    y = PackedMatrix.pack(kind, raw, 576, precise).matmul(x)  # type: ignore[arg-type]
    step = x.view(5, -1, 32).amax(-1, keepdim=True) / (254 * 127 if precise else 127)
    bound = 0.501 * step.expand(-1, -1, 32).reshape(5, 576).double() @ floats.double().abs().T
    assert ((y - x.double() @ floats.double().T).abs() < bound + 1e-5 * y.abs().max()).all()


@pytest.mark.parametrize("precise", [False, True])
@pytest.mark.parametrize("kind", TYPES)
def test_largest_weights_and_activations_do_not_overflow_the_sums(instructions: str, kind: str, precise: bool) -> None:
    size = {"q4_0": 18, "q4_1": 20, "q8_0": 34}[kind]
    for byte in (0x00, 0x80, 0x81, 0x7F, 0xFF, 0xF0):
        block = np.full((8, size), byte, np.uint8)
        block[:, :2] = np.array([1.0], np.float16).view(np.uint8)
        if kind == "q4_1":
            block[:, 2:4] = np.array([-3.0], np.float16).view(np.uint8)
        floats = torch.from_numpy(quants.dequantize(block, TYPES[kind]))
        largest = torch.full((1, 32), 254.0 * 127 if precise else 127.0)
        for x in (largest, -largest, largest - 127, 127 - largest):
            y = PackedMatrix.pack(kind, block, 32, precise).matmul(x)  # type: ignore[arg-type]
            torch.testing.assert_close(y.double(), x.double() @ floats.double().T, atol=0, rtol=2e-7)


@pytest.mark.parametrize("precise", [False, True])
@pytest.mark.parametrize("kind", TYPES)
def test_a_row_gets_the_same_bits_whatever_the_batch_the_threads_and_the_instructions(
    kernels_restored: None, kind: str, precise: bool
) -> None:
    raw, _ = stored(kind, 203, 576)
    matrix = PackedMatrix.pack(kind, raw, 576, precise)  # type: ignore[arg-type]
    x = torch.randn(21, 576, generator=torch.Generator().manual_seed(2))
    whole = matrix.matmul(x)
    for level in native.LEVELS:
        for threads in (1, 2, 5):
            native.limit_level(level)
            native.set_threads(threads)
            assert torch.equal(torch.cat([matrix.matmul(row[None]) for row in x]), whole)
            assert torch.equal(matrix.matmul(x[:7]), whole[:7])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("precise", [False, True])
@pytest.mark.parametrize("kind", TYPES)
def test_a_nan_or_infinity_spoils_its_own_row_and_no_other(
    instructions: str, kind: str, precise: bool, bad: float
) -> None:
    raw, _ = stored(kind, 16, 64)
    x = torch.ones(3, 64)
    x[1, 40] = bad
    y = PackedMatrix.pack(kind, raw, 64, precise).matmul(x)  # type: ignore[arg-type]
    assert y[1].isnan().all()
    assert y[[0, 2]].isfinite().all()


@pytest.mark.parametrize("precise", [False, True])
def test_zeros_and_the_smallest_numbers_give_zero(instructions: str, precise: bool) -> None:
    raw, _ = stored("q4_1", 16, 64)
    matrix = PackedMatrix.pack("q4_1", raw, 64, precise)
    assert torch.equal(matrix.matmul(torch.zeros(2, 64)), torch.zeros(2, 16))
    assert matrix.matmul(torch.full((1, 64), 1e-40)).isfinite().all()
    assert matrix.matmul(torch.full((1, 64), 1e35)).isfinite().all()


def test_float_weights_rounded_to_eight_bits_are_near() -> None:
    weights = torch.randn(40, 128, generator=torch.Generator().manual_seed(4))
    back = PackedMatrix.pack_float(weights).dequantize()
    assert (back - weights).abs().max() <= weights.abs().max() / 127 * 0.51
    zero = PackedMatrix.pack_float(torch.zeros(8, 32)).dequantize()
    assert torch.equal(zero, torch.zeros(8, 32))


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 5, 16])
@pytest.mark.parametrize("width", [1, 7, 64, 577])
def test_float_products_equal_float64(instructions: str, batch: int, width: int) -> None:
    generator = torch.Generator().manual_seed(5)
    x, weight = torch.randn(batch, width, generator=generator), torch.randn(37, width, generator=generator)
    y = linear(x, weight)
    torch.testing.assert_close(y, (x.double() @ weight.double().T).float(), atol=3e-5, rtol=1e-5)
    assert torch.equal(linear(x[:1], weight), y[:1])


def test_norm_and_gate_equal_torch(instructions: str) -> None:
    generator = torch.Generator().manual_seed(6)
    x, weight = torch.randn(5, 2, 70, generator=generator) * 9, torch.randn(70, generator=generator)
    torch.testing.assert_close(rms_norm(x, weight, 1e-5), F.rms_norm(x, (70,), weight, 1e-5))
    gate, up = x.chunk(2, -1)
    torch.testing.assert_close(swiglu(x), F.silu(gate) * up)
    many = torch.randn(900, 128, generator=generator)
    torch.testing.assert_close(swiglu(many), F.silu(many[:, :64]) * many[:, 64:])
    extreme = torch.tensor([[-1e30, -200.0, 200.0, float("nan"), 1.0, 1.0, 1.0, 1.0]])
    result = swiglu(extreme)
    torch.testing.assert_close(result[0, :3], torch.tensor([0.0, 0.0, 200.0]))
    assert result[0, 3].isnan()


def test_wrong_shapes_are_refused_before_anything_is_read() -> None:
    raw, _ = stored("q8_0", 8, 64)
    matrix = PackedMatrix.pack("q8_0", raw, 64)
    with pytest.raises(ValueError, match="64"):
        matrix.matmul(torch.zeros(1, 32))
    with pytest.raises(ValueError, match="float32"):
        matrix.matmul(torch.zeros(1, 64, dtype=torch.float64))
    for id in (-1, 8):
        with pytest.raises(IndexError):
            matrix.rows_at(torch.tensor([id]))
    with pytest.raises(ValueError, match="68"):
        PackedMatrix.pack("q8_0", raw[:, :-1], 64)
    with pytest.raises(ValueError, match="contiguous"):
        linear(torch.zeros(1, 4), torch.zeros(4, 8).T)
    with pytest.raises(ValueError, match="contiguous"):
        matrix.dequantize(out=torch.zeros(8, 64, dtype=torch.float64))
    with pytest.raises(ValueError, match="no gradients"):
        matrix.matmul(torch.zeros(1, 64, requires_grad=True))


def test_nothing_times_a_matrix_is_nothing() -> None:
    raw, floats = stored("q4_1", 8, 64)
    matrix = PackedMatrix.pack("q4_1", raw, 64)
    assert matrix.matmul(torch.zeros(0, 64)).shape == (0, 8)
    assert matrix.rows_at(torch.zeros(0, dtype=torch.int64)).shape == (0, 64)
    assert linear(torch.zeros(2, 0, 64), floats).shape == (2, 0, 8)


def test_another_default_type_changes_nothing() -> None:
    raw, floats = stored("q8_0", 8, 64)
    try:
        torch.set_default_dtype(torch.bfloat16)
        matrix = PackedMatrix.pack("q8_0", raw, 64)
        assert torch.equal(matrix.dequantize(), floats)
        assert matrix.matmul(torch.ones(1, 64, dtype=torch.float32)).dtype == torch.float32
        assert linear(torch.ones(1, 64, dtype=torch.float32), floats).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_copied_matrix_is_its_own() -> None:
    raw, floats = stored("q8_0", 8, 64)
    matrix = PackedMatrix.pack("q8_0", raw, 64)
    other = copy.deepcopy(matrix)
    matrix.data.zero_()
    assert torch.equal(other.dequantize(), floats)


def test_without_the_kernels_a_packed_matrix_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    raw, _ = stored("q8_0", 8, 64)
    monkeypatch.setattr(native.bindings, "find_library", lambda: None)
    assert not native.available()
    with pytest.raises(RunError, match=r"C compiler.*--dtype float32"):
        PackedMatrix.pack("q8_0", raw, 64)


def test_without_the_kernels_torch_alone_runs_the_model(monkeypatch: pytest.MonkeyPatch, smollm2_path: Path) -> None:
    ids = [504, 2575, 282, 260]
    loaded = nextword.load(str(smollm2_path), dtype="float32")
    expected = loaded.complete(ids, temperature=0, max_tokens=5).ids, loaded.engine.logits(ids)
    del loaded
    monkeypatch.setattr(native.bindings, "find_library", lambda: None)
    plain = nextword.load(str(smollm2_path))
    assert not [part for part in plain.loaded.model.modules() if isinstance(part, PackedLinear)]
    assert plain.complete(ids, temperature=0, max_tokens=5).ids == expected[0]
    np.testing.assert_allclose(plain.engine.logits(ids), expected[1], atol=1e-3)


def test_threads_of_python_may_multiply_at_once() -> None:
    raw, _ = stored("q4_1", 512, 576)
    matrix = PackedMatrix.pack("q4_1", raw, 576)
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
    matrix = PackedMatrix.pack("q4_1", raw, 576)
    x = torch.ones(1, 576)
    expected = matrix.matmul(x)
    child = os.fork()
    if child == 0:
        os._exit(0 if torch.equal(matrix.matmul(x), expected) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert torch.equal(matrix.matmul(x), expected)


@pytest.mark.parametrize(
    ("given", "expected"), [({}, "2000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")]
)
def test_torchs_threads_are_told_not_to_spin_unless_the_user_said_how(given: dict[str, str], expected: str) -> None:
    code = "import os, sys, nextword; print('torch' in sys.modules, os.environ.get('GOMP_SPINCOUNT'))"
    environment = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    run = subprocess.run([sys.executable, "-c", code], env=environment | given, capture_output=True, text=True)
    assert run.stdout.split() == ["False", expected], run.stderr
