"""Adapters: what their training costs as the plan says it, and one loss for the adapted and the written model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from configs import config_of, with_spec
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nextword import native
from nextword.data import Dataset
from nextword.models.layers import Linear
from nextword.plan import RunConfig, Training, flops
from nextword.plan.training import training_memory
from nextword.spec import ModelSpec
from nextword.train import checkpoint
from nextword.train.evaluate import MOST, evaluate, val_windows
from nextword.train.lora import LoRALinear, add_adapters, merge_adapters
from nextword.train.loss_module import LossModule, Placed, new_model
from nextword.train.trainer import Trainer

CPU = torch.device("cpu")
SPEC = ModelSpec(kind="transformer", vocabulary=301, width=64, layers=3, context=64, heads=8, kv_heads=4, head_width=8,
                 mlp_width=160)  # fmt: skip
RUN = config_of(SPEC, context=64, batch_size=4, micro_batch=4, steps=6, learning_rate=1e-2,
                final_learning_rate=1e-3, warmup_steps=1, dtype="fp32", lora=4)  # fmt: skip


def adapted(run: RunConfig = RUN, spread: float = 0.0) -> nn.Module:
    """A model with adapters that have learnt something, if `spread` is above 0."""
    model = new_model(run)
    with torch.no_grad():
        model.embedding.weight.mul_(15)  # logits that differ, so that the loss depends on the layers
    add_adapters(model, run.model.lora, seed=0)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if name.endswith(".up") and spread:
            nn.init.normal_(parameter, std=spread)
    return model


def batch(rows: int = 4, context: int = 64) -> Placed:
    tokens = torch.randint(0, SPEC.vocabulary, (rows, context + 1), generator=torch.Generator().manual_seed(0))
    return Placed(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), None)


# ---- compute


def test_frozen_weights_cost_4_a_token_and_adapters_6_as_torch_counts_them() -> None:
    model, tokens = adapted(), batch()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as mode:
        model(tokens.inputs).sum().backward()
    planned = flops(SPEC, 64, 4 * 64, lora=4)
    first_input = 2 * 4 * 64 * (16 * 8 + 4) * 64  # nothing below the first matrices wants their input's gradient
    assert planned.total - mode.get_total_flops() == first_input
    assert planned.rule.name == "4 N D"


# ---- memory


@pytest.fixture
def kept() -> Iterator[dict[int, torch.Tensor]]:
    """What autograd keeps while the fixture is held, each storage once."""
    found: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        found[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield found


@pytest.mark.parametrize("precision", ["fp32", "amp"])
def test_the_plans_memory_of_adapters_is_what_a_step_keeps(precision: str, kept: dict[int, torch.Tensor]) -> None:
    model, rows = adapted(), 8
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    LossModule(model, precision)(batch(rows))
    found = sum(t.untyped_storage().nbytes() for place, t in kept.items() if place not in weights)
    setup = Training(batch=rows, context=64, precision=precision, lora=4, base="fp32", fused=native.available())  # type: ignore[arg-type]
    planned = training_memory(SPEC, setup)
    copies = planned.part("16-bit copies of frozen weights")
    head = 2 * SPEC.vocabulary * SPEC.width if precision == "amp" else 0  # its copy lives in the loss, not in the graph
    assert planned.part("activations") + copies - head == pytest.approx(found, rel=0.1)
    assert (copies > 0) == (precision == "amp")


def test_no_gradient_is_made_of_a_frozen_head(kept: dict[int, torch.Tensor]) -> None:
    model = adapted()
    LossModule(model)(batch())
    head = SPEC.vocabulary, SPEC.width
    assert not any(tuple(t.shape) == head and not t.is_leaf for t in kept.values())
    assert all(t is model.head.weight for t in kept.values() if tuple(t.shape) == head)


def test_an_evaluation_keeps_nothing(kept: dict[int, torch.Tensor]) -> None:
    with torch.no_grad():
        LossModule(new_model(RUN))(batch())
    assert not kept


def test_a_checkpoint_of_several_files_is_the_model_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nextword.train.distributed import Process
    from nextword.train.optimizers import make_optimizer

    monkeypatch.setattr(checkpoint, "_FILE_BYTES", 1 << 15)  # the writer holds each file twice in memory
    model, other = adapted(spread=0.1), adapted()
    checkpoint.Writer(tmp_path, Process(), 2, overlapped=False).save(3, model, make_optimizer(model, RUN.train), {})
    folder = tmp_path / checkpoint.folder_name(3)
    assert len(list(folder.glob("*.safetensors"))) > 3
    checkpoint.load(checkpoint.read(folder), other)
    for (name, left), right in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(left, right), name


# ---- one loss


def loss(model: nn.Module, precision: str) -> float:
    with torch.no_grad():
        return float(LossModule(model, precision)(batch(32))) / (32 * 64)


def test_in_16_bits_what_adapters_add_is_not_rounded_away() -> None:
    """Sums of bfloat16 drop what is below half a step of base(x): a 256th of it."""
    torch.manual_seed(0)
    layer = LoRALinear(Linear(256, 512), rank=4)
    nn.init.normal_(layer.up, std=2e-3)
    x = torch.randn(512, 256)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        base = x.bfloat16().double() @ layer.base.weight.bfloat16().double().t()
        small = layer(x).double() - base
    wanted = (2 * x.double() @ layer.down.double().t() @ layer.up.double().t()).detach()
    assert float(wanted.abs().mean() / base.abs().mean()) < 0.02
    arrived = float((small * wanted).sum() / (wanted * wanted).sum())
    assert arrived == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("precision", ["fp32", "amp"])
def test_the_adapted_and_the_merged_model_have_one_loss(precision: str) -> None:
    model = adapted(spread=0.1)
    before, beside = loss(adapted(), "fp32"), loss(model, precision)
    merge_adapters(model)
    assert abs(before - loss(model, "fp32")) > 0.01  # the adapters matter
    assert beside == pytest.approx(loss(model, precision), abs=5e-4)
    assert beside == pytest.approx(loss(model, "fp32"), abs=1e-3)


def test_the_held_out_loss_of_a_run_is_of_the_merged_model(data: Dataset, tmp_path: Path) -> None:
    run = with_spec(RUN, replace(SPEC, vocabulary=data.vocabulary)).with_train(dtype="amp", on_loss_spike="skip")
    outcome = Trainer(run, data, tmp_path, make_model=lambda resumed: adapted(run)).train()
    assert not any(isinstance(part, LoRALinear) for part in outcome.model.modules())
    assert outcome.val is not None
    windows = val_windows(data.val, run, MOST)
    written = evaluate(LossModule(outcome.model, "amp"), windows, run.train.micro_batch, CPU)
    assert outcome.val.nats_per_token == written.nats_per_token
    assert math.isfinite(written.nats_per_token)
