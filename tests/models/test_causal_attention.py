"""Training's causal attention against its formula in float64: values, gradients, threads, types, memory."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from nextword import native
from nextword.models import fused, kernels
from nextword.models.positions import Positions

pytestmark = pytest.mark.skipif(not native.available(), reason="the compiled kernels were not built")

SHAPES = [  # batch, heads, key heads, time, width
    (1, 1, 1, 1, 8), (2, 2, 1, 5, 16), (1, 1, 1, 64, 64), (2, 4, 2, 65, 64), (1, 3, 1, 200, 24), (1, 2, 2, 257, 40),
    (1, 2, 2, 130, 256), (2, 6, 3, 129, 32),
]  # fmt: skip


def draw(shape: tuple[int, ...], seed: int = 0) -> tuple[list[Tensor], Tensor]:
    """Queries, keys and values, side by side as a layer has them, and a gradient of the output."""
    batch, heads, kv_heads, time, width = shape
    generator = torch.Generator().manual_seed(seed)
    qkv = torch.randn(batch, time, heads + 2 * kv_heads, width, generator=generator)
    gradient = torch.randn(batch, time, heads, width, generator=generator)
    return [part.detach().requires_grad_() for part in qkv.tensor_split((heads, heads + kv_heads), 2)], gradient


def formula(queries: Tensor, keys: Tensor, values: Tensor, scale: float, visible: Tensor) -> Tensor:
    """softmax(scale q k) v of the visible keys (1 or batch, time, time), for tensors (batch, time, heads, width)."""
    group = queries.shape[2] // keys.shape[2]
    keys, values = (part.repeat_interleave(group, 2) for part in (keys, values))
    scores = torch.einsum("bqhd,bkhd->bhqk", queries, keys) * scale
    weights = scores.masked_fill(~visible[:, None], float("-inf")).softmax(-1)
    return torch.einsum("bhqk,bkhd->bqhd", weights, values)


def visible_keys(time: int, window: int, documents: Tensor | None) -> Tensor:
    distance = torch.arange(time)[:, None] - torch.arange(time)
    visible = ((distance >= 0) & (distance < (window or time)))[None]
    return visible if documents is None else visible & (documents[:, :, None] == documents[:, None, :])


def ours(parts: list[Tensor], gradient: Tensor, first_keys: Tensor | None = None) -> list[Tensor]:
    """The output and the gradients of queries, keys and values."""
    out = fused.causal_attention(parts[0], parts[1], parts[2], 0.2, first_keys)
    return [out.detach(), *torch.autograd.grad(out, parts, gradient.to(out.dtype))]


def exact(parts: list[Tensor], gradient: Tensor, visible: Tensor) -> list[Tensor]:
    leaves = [part.detach().double().requires_grad_() for part in parts]
    out = formula(leaves[0], leaves[1], leaves[2], 0.2, visible)
    return [out.detach(), *torch.autograd.grad(out, leaves, gradient.double())]


def assert_near(found: list[Tensor], truth: list[Tensor], share: float) -> None:
    """Within `share` of the largest number of all gradients, or of the output."""
    scales = [truth[0].abs().max(), *[max(part.abs().max() for part in truth[1:])] * 3]
    for mine, right, scale in zip(found, truth, scales, strict=True):
        assert (mine - right).abs().max() <= share * scale


@pytest.fixture
def torch_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients_are_the_formulas(shape: tuple[int, ...], instructions: str) -> None:
    parts, gradient = draw(shape)
    assert_near(ours(parts, gradient), exact(parts, gradient, visible_keys(shape[3], 0, None)), 2e-6)


@pytest.mark.parametrize("window", [0, 1, 7, 64, 100])
@pytest.mark.parametrize("packed", [False, True])
def test_a_query_sees_its_window_and_its_document(window: int, packed: bool) -> None:
    time = 150
    parts, gradient = draw((2, 4, 2, time, 16))
    documents = torch.stack([torch.arange(time) // 40, torch.arange(time) // 67]) if packed else None
    first_keys = Positions(time, torch.device("cpu"), documents).first_keys(window)
    assert (first_keys is None) == (not window and not packed)
    assert_near(ours(parts, gradient, first_keys), exact(parts, gradient, visible_keys(time, window, documents)), 2e-6)


def test_results_depend_neither_on_threads_nor_on_instructions(kernels_restored: None, torch_threads: None) -> None:
    parts, gradient = draw((2, 6, 3, 300, 24))
    first_keys = Positions(300, torch.device("cpu")).first_keys(100)
    found = []
    for level in native.LEVELS:
        for threads in (1, 2, 5):
            native.limit_level(level)
            torch.set_num_threads(threads)
            found.append(ours(parts, gradient, first_keys))
    assert all(torch.equal(one, other) for row in found[1:] for one, other in zip(found[0], row, strict=True))


def test_bfloat16_is_float32_rounded_once(instructions: str) -> None:
    parts, gradient = draw((2, 4, 2, 100, 32))
    halves = [part.detach().bfloat16().requires_grad_() for part in parts]
    wide = [part.detach().float().requires_grad_() for part in halves]
    gradient = gradient.bfloat16().float()
    found, truth = ours(halves, gradient), ours(wide, gradient)
    assert all(part.dtype == torch.bfloat16 for part in found)
    assert torch.equal(found[0], truth[0].bfloat16())
    assert torch.equal(found[3], truth[3].bfloat16())  # the others read the rounded output
    assert_near(found, truth, 2**-8)


def test_autocast_decides_the_outputs_type_and_gradients_have_their_inputs() -> None:
    parts, gradient = draw((1, 2, 1, 33, 16))
    parts[2] = parts[2].detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = fused.causal_attention(parts[0], parts[1], parts[2], 0.2)
    gradients = torch.autograd.grad(out, parts, gradient.bfloat16())
    assert out.dtype == torch.bfloat16
    assert [part.dtype for part in gradients] == [torch.float32, torch.float32, torch.bfloat16]
    truth = exact(parts, gradient, visible_keys(33, 0, None))
    assert_near([out, *gradients], truth, 2**-7)


def test_numbers_that_are_not_reach_every_query_that_sees_them() -> None:
    for which in range(3):
        parts, gradient = draw((1, 2, 1, 150, 16))
        with torch.no_grad():
            parts[which][0, 70, 0, 3] = float("nan")
        out, *gradients = ours(parts, gradient)
        seen = out[0, 70:71, 0] if which == 0 else out[0, 70:]
        assert seen.isnan().any(-1).all()
        assert not out[0, :64].isnan().any()
        assert [bool(part.isnan().any()) for part in gradients] == [True, True, which < 2]  # values' need no values


def test_large_scores_neither_overflow_nor_vanish() -> None:
    parts, gradient = draw((1, 1, 1, 80, 8))
    parts = [(part.detach() * factor).requires_grad_() for part, factor in zip(parts, (100, 100, 1), strict=True)]
    found = ours(parts, gradient)
    truth = exact(parts, gradient, visible_keys(80, 0, None))
    assert (found[0] - truth[0]).abs().max() <= 1e-2  # a score of 10,000 is known to 1e-3
    assert all(part.isfinite().all() for part in found)


def test_no_matrix_of_all_scores_is_stored() -> None:
    program = (  # in a process of its own: peak memory never falls
        "import resource, torch; from nextword.models import fused; torch.set_num_threads(1)\n"
        "qkv = torch.randn(3, 1, 12000, 1, 8).requires_grad_()\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "fused.causal_attention(*qkv[:, :, :9], 0.2).sum().backward()\n"
        "before = peak(); fused.causal_attention(*qkv, 0.2).sum().backward(); print(peak() - before)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 30_000  # kB; a quarter of the scores alone would be 144,000


@pytest.mark.parametrize(
    ("keys", "first_keys", "said"),
    [
        ((1, 10, 2, 12), None, "shapes do not fit"),
        ((1, 10, 3, 16), None, "whole groups"),
        ((1, 10, 2, 16), torch.zeros(1, 9), "first keys"),
        ((1, 10, 2, 16), torch.zeros(1, 10, dtype=torch.float64), "float32"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(keys: tuple[int, ...], first_keys: Tensor | None, said: str) -> None:
    queries = torch.zeros(1, 10, 4, 16)
    with pytest.raises(ValueError, match=said):
        kernels.causal_attention([queries, torch.zeros(keys), torch.zeros(keys)], queries, 1.0, first_keys)
