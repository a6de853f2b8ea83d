"""Fused parts of layers against torch's own operators, in float32 and float64, with gradients and theirs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nextword import native
from nextword.models import build, fused, prepare
from nextword.models import kernels as training
from nextword.models.rotary import rotate, tables
from nextword.spec import ModelSpec, RopeSpec

pytestmark = pytest.mark.skipif(not native.available(), reason="the compiled kernels were not built")
SHAPES = [(1, 1, 8), (1, 1, 2), (3, 7, 34), (2, 33, 256), (1, 2, 1031), (2, 300, 48)]  # (batch, time, width)


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def draw(*shape: int, scale: float = 1.0, seed: int = 0) -> Tensor:
    numbers = torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape))) * scale
    return numbers.requires_grad_()


def with_gradients(function: Callable[..., Any], inputs: list[Tensor]) -> list[Tensor]:
    """Outputs of `function` and the gradients of its inputs, weighing every output differently."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    found = function(*leaves)
    outputs = list(found) if isinstance(found, tuple) else [found]
    weights = [torch.linspace(-1, 2, y.numel(), dtype=torch.float64).view(y.shape).to(y.dtype) for y in outputs]
    gradients = torch.autograd.grad(outputs, leaves, weights)
    return [*(y.detach() for y in outputs), *gradients]


def assert_alike(ours: Callable[..., Any], torchs: Callable[..., Any], inputs: list[Tensor]) -> None:
    """Within 1e-5 of torch in float64, as a share of the largest number; and torch itself is no nearer than that."""
    exact = with_gradients(torchs, [x.double() for x in inputs])
    for mine, truth in zip(with_gradients(ours, inputs), exact, strict=True):
        assert mine.dtype == torch.float32
        assert (mine - truth).abs().max() <= 1e-5 * truth.abs().max()


def norm(x: Tensor, weight: Tensor, eps: float = 1e-5) -> Tensor:
    return F.rms_norm(x, weight.shape, weight, eps)


def gated(gates: Tensor, weight: Tensor) -> Tensor:
    gate, up = gates.chunk(2, -1)
    return F.linear(F.silu(gate) * up, weight)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_norm_and_its_gradients_are_torchs(shape: tuple[int, ...], instructions: str, threads: int) -> None:
    inputs = [draw(*shape), draw(shape[-1])]
    assert_alike(lambda x, w: fused.rms_norm(x, w, 1e-5), norm, inputs)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_norm_joined_to_a_product_passes_its_input_on(
    shape: tuple[int, ...], bias: bool, instructions: str, threads: int
) -> None:
    inputs = [draw(*shape), draw(shape[-1]), draw(11, shape[-1])] + [draw(11)] * bias

    def ours(x: Tensor, gain: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
        z, same = fused.normed_linear(x, gain, 1e-5, weight, bias)
        return z, same * 3

    assert_alike(ours, lambda x, gain, weight, *bias: (F.linear(norm(x, gain), weight, *bias), x * 3), inputs)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_gated_product_is_formed_again_for_its_gradients(
    shape: tuple[int, ...], instructions: str, threads: int
) -> None:
    half = (shape[-1] + 1) // 2
    assert_alike(fused.gated_linear, gated, [draw(*shape[:-1], 2 * half, scale=3.0), draw(13, half)])


@pytest.mark.parametrize("shape", [*SHAPES, (1, fused.BLOCK, 4), (3, fused.BLOCK - 1, 6)])
def test_an_mlp_some_rows_at_a_time_is_the_whole_one(shape: tuple[int, ...], instructions: str, threads: int) -> None:
    width = shape[-1]
    inputs = [draw(*shape), draw(width), draw(14, width, scale=width**-0.5), draw(width, 7)]
    assert_alike(
        lambda x, gain, up, down: fused.gated_mlp(x, gain, 1e-5, up, down),
        lambda x, gain, up, down: x + gated(F.linear(norm(x, gain), up), down),
        inputs,
    )


def test_gates_far_from_zero_neither_overflow_nor_vanish_wrongly(instructions: str) -> None:
    gates = torch.tensor([[-1e30, -200.0, -50.0, 50.0, 200.0, 1e30] + [1.0] * 6]).requires_grad_()
    assert_alike(fused.gated_linear, gated, [gates, torch.eye(6)])
    silent = torch.tensor([[float("nan"), 1.0]]).requires_grad_()
    assert fused.gated_linear(silent, torch.eye(1)).isnan().all()


@pytest.mark.parametrize("rotary", [16, 6])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (1, 1)])
def test_split_heads_are_those_of_rotate(
    heads: int, kv_heads: int, rotary: int, instructions: str, threads: int
) -> None:
    batch, time, width = 3, 41, 16
    cosine, sine = tables(RopeSpec(fraction=rotary / width), width, 64)
    places = torch.stack([torch.arange(start, start + time) for start in (0, 5, 20)])
    for angles in ((cosine[None, 3:44, None], sine[None, 3:44, None]), (cosine[places, None], sine[places, None])):

        def torchs(qkv: Tensor, angles: tuple[Tensor, Tensor] = angles) -> tuple[Tensor, ...]:
            turning, values = qkv.split((heads + kv_heads, kv_heads), 2)
            turned = rotate(turning, *(part.to(qkv.dtype) for part in angles))
            return (*turned.split((heads, kv_heads), 2), values)

        def ours(qkv: Tensor, angles: tuple[Tensor, Tensor] = angles) -> tuple[Tensor, ...]:
            return fused.split_rope(qkv * 1.0, heads, kv_heads, *angles)  # written over: a copy

        assert_alike(ours, torchs, [draw(batch, time, heads + 2 * kv_heads, width)])


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize(("rows", "vocabulary"), [(1, 2), (5, 17), (70, 4099)])
def test_cross_entropy_and_its_gradient_are_torchs(
    rows: int, vocabulary: int, gradient: bool, instructions: str, threads: int
) -> None:
    logits = draw(rows, vocabulary, scale=20.0)
    targets = torch.arange(rows) % vocabulary
    targets[1::3] = -100
    exact = logits.detach().double().requires_grad_()
    losses = F.cross_entropy(exact, targets, ignore_index=-100, reduction="none")
    losses.sum().backward()
    values = logits.detach().clone()
    mine = training.cross_entropy(values, targets, -100, gradient)
    assert torch.allclose(mine.double(), losses, rtol=1e-5, atol=1e-5)
    assert exact.grad is not None
    if gradient:
        assert (values - exact.grad).abs().max() <= 1e-5
    else:
        assert torch.equal(values, logits)


def test_a_target_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(IndexError, match="vocabulary of 5"):
        training.cross_entropy(torch.zeros(2, 5), torch.tensor([0, 5]), -100, True)


def passes(dtype: torch.dtype) -> list[Tensor]:
    """What every kernel makes of the same numbers, which bfloat16 holds exactly."""
    rows, wide, gain, residual = (
        draw(*shape).detach().bfloat16().float() for shape in ((70, 48), (70, 96), (48,), (70, 48))
    )

    def typed(x: Tensor) -> Tensor:
        return x.to(dtype, copy=True)

    cosine, sine = (part[None, :70, None] for part in tables(RopeSpec(), 16, 70))
    normed, inverse = training.rms_norm_forward(rows, gain, 1e-5, dtype)
    norm_grad, gated_grad, logits = typed(rows.flip(0)), typed(rows), typed(wide)
    x_grad, gain_grad = training.rms_norm_backward(rows, gain, inverse, residual, norm_grad)
    gates_grad = training.swiglu_backward(typed(wide), gated_grad)
    turned = typed(wide).view(1, 70, 6, 16)
    training.rope(turned, 4, cosine, sine)
    heads = typed(wide).view(1, 70, 6, 16).tensor_split((2, 4), 2)
    losses = training.cross_entropy(logits, torch.arange(70) % 90 - 1, -1, True)
    return [
        normed, x_grad, gain_grad, norm_grad, training.swiglu_forward(typed(wide)), gates_grad, gated_grad, turned,
        training.rope_backward(heads, cosine, sine), logits, losses,
    ]  # fmt: skip


def test_kernels_compute_bfloat16_in_float32_and_round_once(instructions: str) -> None:
    for rounded, exact in zip(passes(torch.bfloat16), passes(torch.float32), strict=True):
        assert torch.equal(rounded, exact.to(rounded.dtype))


def test_results_depend_neither_on_threads_nor_on_instructions() -> None:
    before = torch.get_num_threads()
    for dtype in training.BOTH:
        found: list[list[Tensor]] = []
        for level in native.LEVELS:
            for threads in (1, 2, 5):
                native.limit_level(level)
                torch.set_num_threads(threads)
                found.append(passes(dtype))
        assert all(torch.equal(one, other) for each in found[1:] for one, other in zip(found[0], each, strict=True))
    native.limit_level(None)
    torch.set_num_threads(before)


def test_gradients_of_gradients_are_refused() -> None:
    x, gain = draw(2, 3, 6), draw(6)
    [gradient] = torch.autograd.grad(fused.rms_norm(x, gain, 1e-5).pow(2).sum(), [x], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


BASE: dict[str, Any] = {
    "kind": "transformer", "vocabulary": 61, "width": 32, "layers": 2, "context": 24, "heads": 4, "kv_heads": 2,
    "head_width": 8, "mlp_width": 44,
}  # fmt: skip
CHANGES: dict[str, dict[str, Any]] = {
    "llama": {},
    "query biases": {"attention_bias": True},
    "all biases": {"attention_bias": True, "attention_out_bias": True, "mlp_bias": True},
    "head norms": {"qk_norm": "head"},
    "norms after": {"norm_place": "after", "qk_norm": "full"},
    "norms on both sides": {"norm_place": "both", "activation": "gelu_tanh", "windows": (4, 0)},
    "parallel": {"parallel": True},
    "partly turned": {"rope": RopeSpec(fraction=0.5)},
    "layer norms": {"norm": "layer"},
}


def gradients_of(model: torch.nn.Module, **extra: Any) -> dict[str, Tensor]:
    tokens = torch.arange(48).view(2, 24) % 61
    hidden: Tensor = model.hidden(tokens, **extra)  # type: ignore[operator]
    model.zero_grad()
    (hidden * torch.linspace(-1, 2, hidden.numel()).view(hidden.shape)).sum().backward()
    return {"hidden": hidden.detach()} | {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("name", CHANGES)
def test_models_train_alike_with_and_without_the_kernels(name: str, documents: bool) -> None:
    torch.manual_seed(0)
    model = build(ModelSpec(**(BASE | CHANGES[name])))
    extra = {"documents": (torch.arange(48).view(2, 24) % 24 > 9).long()} if documents else {}
    prepare(model, "train")
    ours = gradients_of(model, **extra)
    prepare(model, "eager")
    theirs = gradients_of(model, **extra)
    assert ours.keys() == theirs.keys()
    for key, truth in theirs.items():
        assert (ours[key] - truth).abs().max() <= 2e-5 * truth.abs().max(), key


@pytest.mark.parametrize("name", CHANGES)
def test_under_autocast_the_kernels_are_as_exact_as_torch(name: str) -> None:
    """Rounding errors of hidden states and gradients, against float32, are at most 1.3 times torch's."""
    torch.manual_seed(0)
    model = build(ModelSpec(**(BASE | CHANGES[name])))
    exact = gradients_of(model)
    errors = []
    for mode in ("train", "eager"):
        prepare(model, mode)  # type: ignore[arg-type]
        with torch.autocast("cpu", torch.bfloat16):
            rounded = gradients_of(model)
        assert rounded.keys() == exact.keys()
        assert all(value.dtype == exact[key].dtype for key, value in rounded.items() if key != "hidden")
        errors.append(sum(float((rounded[key] - exact[key]).norm() / exact[key].norm()) for key in exact))
    assert 0 < errors[0] <= 1.3 * errors[1]


def test_recomputation_gives_the_same_bits() -> None:
    torch.manual_seed(0)
    model = build(ModelSpec(**BASE))
    prepare(model, "train")
    plain = gradients_of(model)
    prepare(model, "train", recompute="full")
    again = gradients_of(model)
    assert all(torch.equal(plain[name], again[name]) for name in plain)


def test_a_backward_pass_may_be_run_twice() -> None:
    torch.manual_seed(0)
    model = build(ModelSpec(**BASE))
    prepare(model, "train")
    loss = model.hidden(torch.arange(24)[None]).pow(2).sum()
    parameters = list(model.parameters())
    once = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    twice = torch.autograd.grad(loss, parameters, allow_unused=True)
    assert all((a is None and b is None) or torch.equal(a, b) for a, b in zip(once, twice, strict=True))


def test_a_hook_on_a_matrix_is_still_called_and_sees_what_it_made() -> None:
    model = build(ModelSpec(**BASE))
    tokens = torch.arange(24)[None]
    seen: list[Tensor] = []
    for block in model.blocks:  # type: ignore[attr-defined]
        for matrix in (block.attention.qkv, block.attention.out, block.mlp.up, block.mlp.down):
            matrix.register_forward_hook(lambda module, inputs, output: seen.append((module, inputs[0], output)))
    prepare(model, "train")
    model.hidden(tokens)
    assert len(seen) == 8
    assert all(torch.allclose(F.linear(x, module.weight), y, atol=1e-6) for module, x, y in seen)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_transforms_of_functions_work_on_a_model_that_is_not_prepared() -> None:
    model = build(ModelSpec(**BASE))
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(parameters: dict[str, Tensor], tokens: Tensor) -> Tensor:
        logits = torch.func.functional_call(model, parameters, (tokens[None],))
        return logits.pow(2).mean()

    tokens = torch.arange(16).view(2, 8)
    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, tokens)
    alone = torch.func.grad(loss)(parameters, tokens[1])
    assert all(torch.allclose(each[name][1], alone[name], atol=1e-5) for name in alone)
