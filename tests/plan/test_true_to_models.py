"""The plan against the thing itself: torch's modules, torch's FLOP counter, autograd's saved tensors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from shapes_for_tests import FAMILIES, MORE
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from family_cases import CASES, PLANNED_ONLY, config_of
from nextword import native
from nextword.families import spec_from_config
from nextword.families.published import known_spec
from nextword.models import build, prepare
from nextword.plan import activations, flops, parameters
from nextword.spec import ModelSpec

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


class Recurrent(nn.Module):
    """An embedding, torch's own recurrent layers and a head: the obvious model."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        kind = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}[spec.kind]
        self.embedding = nn.Embedding(spec.vocabulary, spec.width)
        self.layers = kind(spec.width, spec.width, spec.layers, batch_first=True)
        self.head = nn.Linear(spec.width, spec.vocabulary, bias=spec.head_bias)
        if spec.tied:
            self.head.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(self.embedding(tokens))[0])


def recurrent(kind: Any, tied: bool = True) -> ModelSpec:
    return ModelSpec(kind=kind, vocabulary=97, width=48, layers=2, context=128, tied=tied, head_bias=not tied)


def numbers(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


# ---- parameters


@pytest.mark.parametrize("spec", (FAMILIES | MORE).values(), ids=FAMILIES | MORE)
def test_parameters_equal_the_built_model(spec: ModelSpec) -> None:
    assert parameters(spec).total == numbers(build(spec))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["rnn", "gru", "lstm"])
def test_parameters_of_recurrent_models_equal_torchs(kind: str, tied: bool) -> None:
    spec = recurrent(kind, tied)
    assert parameters(spec).total == numbers(Recurrent(spec))


@pytest.mark.parametrize(("kind", "width", "a_layer"), [("lstm", 235, 8), ("gru", 271, 6), ("rnn", 469, 2)])
def test_recurrent_widths_match_as_the_training_reference_says(kind: Any, width: int, a_layer: int) -> None:
    """../shared/reference/training.md, "Matched widths": per layer 8h²+8h, 6h²+6h, 2h²+2h near 0.886M."""
    counted = parameters(ModelSpec(kind=kind, vocabulary=97, width=width, layers=2, context=128))
    assert counted.non_embedding == 2 * a_layer * (width**2 + width)
    assert counted.non_embedding == pytest.approx(0.886e6, rel=0.01)


@pytest.mark.parametrize("name", CASES | PLANNED_ONLY)
def test_parameters_equal_transformers(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    config = config_of((CASES | PLANNED_ONLY)[name])
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    # DeepSeek-V3 keeps its routing bias as a buffer; it is stored with the weights, and counted
    steering = sum(buffer.numel() for key, buffer in model.named_buffers() if "correction_bias" in key)
    spec = spec_from_config(config.to_dict())
    assert parameters(spec).total == numbers(model) + steering
    if name in CASES:
        with torch.device("meta"):
            assert parameters(spec).total == numbers(build(spec))


PUBLISHED = {  # on the owners' pages, the index files of the checkpoints, or in the papers
    "llama-3-70b": 70_553_706_496,
    "mixtral-8x7b": 46_702_792_704,
    "qwen3-30b-a3b": 30_532_122_624,
    "deepseek-v2-lite": 15_706_484_224,
    "deepseek-v3": 671_026_419_200,
    "gpt-oss-20b": 20_914_757_184,
    "gpt-oss-120b": 116_829_156_672,
    "phi-3-mini": 3_821_079_552,
    "phi-4": 14_659_507_200,
    "smollm3-3b": 3_075_098_624,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_well_known_shapes_have_their_published_size(name: str) -> None:
    spec = known_spec(name)
    assert spec is not None
    assert parameters(spec).total == PUBLISHED[name]


@pytest.mark.parametrize(
    ("name", "active"), [("mixtral-8x7b", 12.9e9), ("qwen3-30b-a3b", 3.3e9), ("deepseek-v3", 37e9)]
)
def test_active_parameters_are_those_that_the_owners_say(name: str, active: float) -> None:
    spec = known_spec(name)
    assert spec is not None
    assert parameters(spec).active == pytest.approx(active, rel=0.02)


# ---- FLOPs


def counted_flops(model: nn.Module, tokens: torch.Tensor, backward: bool) -> int:
    """By torch, with the attention kernel whose products it sees, and recurrent layers as plain products."""
    with (
        sdpa_kernel(SDPBackend.MATH),
        torch.backends.mkldnn.flags(enabled=False),
        FlopCounterMode(display=False) as mode,
    ):
        out = model(tokens)
        logits = out[0] if isinstance(out, tuple) else out
        if backward:
            logits.sum().backward()
    return mode.get_total_flops()


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("spec", (FAMILIES | MORE).values(), ids=FAMILIES | MORE)
def test_flops_equal_torchs_counter(spec: ModelSpec, backward: bool) -> None:
    tokens = torch.zeros(2, 96, dtype=torch.long)
    planned = flops(spec, 96, tokens.numel(), backward=backward).total
    assert planned == pytest.approx(counted_flops(build(spec), tokens, backward), rel=0.01)


@pytest.mark.parametrize("kind", ["rnn", "gru", "lstm"])
def test_flops_of_recurrent_models_equal_torchs_counter(kind: str) -> None:
    spec, tokens = recurrent(kind), torch.zeros(2, 128, dtype=torch.long)
    planned = flops(spec, 128, tokens.numel()).total
    assert planned == pytest.approx(counted_flops(Recurrent(spec), tokens, True), rel=0.01)


# ---- activations


def kept_bytes(spec: ModelSpec, batch: int, time: int, autocast: bool) -> int:
    """What autograd keeps of `hidden`: each storage once; parameters and their 16-bit copies not."""
    torch.manual_seed(0)
    model = build(spec)
    prepare(model, "train")
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    shapes = {tuple(p.shape) for p in model.parameters()} | {tuple(p.shape[::-1]) for p in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        copy = autocast and tensor.dtype == torch.bfloat16 and tuple(tensor.shape) in shapes
        if tensor.untyped_storage().data_ptr() not in weights and not copy:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    tokens = torch.randint(0, spec.vocabulary, (batch, time))
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
    ):
        hidden = model.hidden(tokens)
    assert hidden.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_activations_equal_what_autograd_keeps(name: str, autocast: bool) -> None:
    fused = native.available()
    planned = activations(FAMILIES[name], 4, 112, width_bytes=2 if autocast else 4, fused=fused).total
    assert planned == pytest.approx(kept_bytes(FAMILIES[name], 4, 112, autocast), rel=0.1)


class Storages(TorchDispatchMode):
    """Everything that operations allocate, besides `known`: a weak reference to each storage, and its bytes."""

    def __init__(self, known: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self.made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in self.known:
                storage = tensor.untyped_storage()
                reference = StorageWeakRef(storage)
                self.made.setdefault(reference.cdata, (reference, storage.nbytes()))
        return out

    def held(self) -> int:
        """Bytes of those that are still there."""
        return sum(size for reference, size in self.made.values() if not reference.expired())


def held_bytes(spec: ModelSpec, tokens: torch.Tensor, autocast: bool, recompute: Any) -> int:
    """What lives after `hidden`, its result included, but not the 16-bit copies of weights."""
    model = build(spec)
    prepare(model, "train", recompute=recompute)
    model.hidden(tokens[:1])  # tables that are made once
    casts = sum(2 * p.numel() for p in model.parameters() if p.ndim == 2) if autocast else 0
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast), Storages(model.parameters()) as storages:
        hidden = model.hidden(tokens)
        held = storages.held()
        assert hidden.requires_grad
    return held - casts


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("kind", ["rnn", "gru", "lstm"])
def test_activations_of_recurrent_layers_are_what_is_held(kind: Any, autocast: bool) -> None:
    if autocast and kind == "lstm" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("oneDNN has no bfloat16 LSTM for this processor")
    spec = ModelSpec(kind=kind, vocabulary=16, width=96, layers=3, context=64)
    planned = activations(spec, 8, 64, width_bytes=2 if autocast else 4, cpu=True).parts[0].value
    tokens = torch.randint(16, (8, 64))
    assert planned == pytest.approx(held_bytes(spec, tokens, autocast, "none"), rel=0.1)


@pytest.mark.parametrize("recompute", ["selective", "full"])
@pytest.mark.parametrize("name", FAMILIES)
def test_activations_with_recomputation_are_what_is_held(name: str, recompute: Any) -> None:
    parts = activations(FAMILIES[name], 4, 112, width_bytes=4, recompute=recompute, fused=native.available()).parts
    planned = sum(part.value for part in parts if part.name != "one layer formed again")
    tokens = torch.randint(FAMILIES[name].vocabulary, (4, 112))
    assert planned == pytest.approx(held_bytes(FAMILIES[name], tokens, False, recompute), rel=0.1)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_without_compiled_kernels_activations_are_what_autograd_keeps_too(
    name: str, autocast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "available", lambda: False)
    planned = activations(FAMILIES[name], 4, 112, width_bytes=2 if autocast else 4).total
    assert planned == pytest.approx(kept_bytes(FAMILIES[name], 4, 112, autocast), rel=0.1)
