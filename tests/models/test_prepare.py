"""How a model is computed is chosen once: what is put in place, where it is not, and what is said of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nextword import native
from nextword.models import Model, build, prepare
from nextword.models.backend import TorchBackend
from nextword.spec import ExpertsSpec, ModelSpec
from nextword.train.lora import add_adapters, merge_adapters
from paged import Paged

compiled_only = pytest.mark.skipif(not native.available(), reason="the compiled kernels were not built")
BASE: dict[str, Any] = {
    "kind": "transformer", "vocabulary": 61, "width": 32, "layers": 2, "context": 24, "heads": 4, "kv_heads": 2,
    "head_width": 8, "mlp_width": 64,
}  # fmt: skip
TOKENS = torch.arange(24)[None]


def model_of(**changes: Any) -> Model:
    torch.manual_seed(0)
    return build(ModelSpec(**(BASE | changes)))


def classes(model: Model) -> list[type]:
    return [type(module) for module in model.modules()]


@compiled_only
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "2 of 2 layers fused"),
        ({"attention_bias": True, "qk_norm": "head"}, "2 of 2 layers fused"),
        ({"norm_place": "both"}, "9 norms fused"),
        ({"parallel": True}, "5 norms fused"),
        ({"residual_scale": 0.5}, "5 norms fused"),
        ({"activation": "gelu"}, "5 norms fused"),
        ({"experts": ExpertsSpec(3, 2, 16, dense_layers=1)}, "1 of 2 layers fused"),
    ],
)
def test_training_fuses_the_layers_that_can_be(changes: dict[str, Any], said: str) -> None:
    assert str(prepare(model_of(**changes), "train")).endswith(said)


@compiled_only
@pytest.mark.parametrize(
    ("options", "said"),
    [({"dropout": 0.1}, "5 norms fused"), ({"compiled": True}, "PyTorch (cpu, float32, compiled)")],
)
def test_training_with_dropout_or_compiled_fuses_less(options: dict[str, Any], said: str) -> None:
    assert str(prepare(model_of(), "train", **options)).endswith(said)


@pytest.mark.parametrize("move", [lambda model: model.bfloat16(), lambda model: model.to("meta")])
def test_other_types_and_devices_run_plain_torch(move: Any) -> None:
    model = model_of()
    plain = classes(model)
    assert str(prepare(move(model), "train")).startswith("PyTorch (")
    assert classes(model) == plain


@compiled_only
def test_a_model_that_moved_is_no_longer_prepared() -> None:
    model = model_of()
    prepare(model, "train")
    assert model.double().execution.mode == "eager"


@compiled_only
def test_preparing_changes_no_name_and_no_parameter_and_eager_undoes_it() -> None:
    model = model_of()
    plain, named = classes(model), dict(model.named_parameters())
    prepare(model, "train")
    assert classes(model) != plain
    assert all(named[name] is parameter for name, parameter in model.named_parameters())
    prepare(model, "eager")
    assert classes(model) == plain


@compiled_only
def test_adapters_and_hooks_are_left_alone() -> None:
    model = model_of()
    add_adapters(model, 2, seed=0)
    assert str(prepare(model, "train")).endswith("5 norms fused")
    merge_adapters(model)
    assert str(prepare(model, "train")).endswith("2 of 2 layers fused")
    for block in model.blocks:  # type: ignore[attr-defined]
        block.mlp_norm.register_forward_hook(lambda *_: None)
    assert str(prepare(model, "train")).endswith("3 norms fused")


@compiled_only
def test_an_engine_over_a_model_in_training_leaves_its_modules_alone() -> None:
    model = model_of()
    prepare(model, "train")
    before = classes(model)
    [logits] = Paged(TorchBackend(model)).read({0: TOKENS[0].tolist()}).values()
    assert (classes(model), model.execution.mode) == (before, "train")
    torch.testing.assert_close(logits, model(TOKENS)[0].detach(), atol=1e-5, rtol=1e-5)


def test_without_the_kernels_nothing_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nextword.native.available", lambda: False)
    model = model_of()
    plain = classes(model)
    assert str(prepare(model, "train")) == "PyTorch (cpu, float32)"
    assert classes(model) == plain
