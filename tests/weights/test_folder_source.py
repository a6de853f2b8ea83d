"""A folder whose config and weights disagree is refused; buffers that carry nothing of their own are not minded."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from nextword.base import UsageError
from nextword.families import family_of
from nextword.models import build
from nextword.spec import ModelSpec
from nextword.weights.conversion import convert
from nextword.weights.describe import describe
from nextword.weights.loading import open_source
from torch_models import torch_model

Model = Callable[..., Path]
COMMON: dict[str, Any] = {
    "vocabulary": 257, "width": 16, "layers": 2, "context": 64, "heads": 2, "kv_heads": 2, "head_width": 8,
    "mlp_width": 32,
}  # fmt: skip
LAYERED: dict[str, Any] = COMMON | {
    "mlp": "plain", "activation": "gelu_tanh", "norm": "layer", "attention_bias": True, "attention_out_bias": True,
    "mlp_bias": True,
}  # fmt: skip


@pytest.fixture
def folder(tiny_model: Model, tmp_path: Path) -> Path:
    return convert(tiny_model(), tmp_path / "model")


def change(folder: Path, config: dict[str, Any] | None = None, **tensors: torch.Tensor | None) -> None:
    """Change the config, and add, replace or (None) remove tensors."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | (config or {})))
    held = load_file(folder / "model.safetensors") | tensors
    save_file({name: each for name, each in held.items() if each is not None}, folder / "model.safetensors")


def test_weights_of_more_layers_than_the_config_says_are_refused(folder: Path) -> None:
    change(folder, {"num_hidden_layers": 1})
    with pytest.raises(UsageError, match=r"9 of 20 tensors \('model\.layers\.1\..*, \.\.\.\) are unused"):
        open_source(folder)


def test_weights_of_fewer_layers_than_the_config_says_are_refused(folder: Path) -> None:
    change(folder, {"num_hidden_layers": 3})
    with pytest.raises(UsageError, match=r"9 of 29 tensors \('layers\.2\..*, \.\.\.\) are missing"):
        open_source(folder)


def test_weights_of_another_width_are_refused_with_both_sizes(folder: Path) -> None:
    change(folder, {"intermediate_size": 48})
    with pytest.raises(UsageError, match=r"6 of 20 tensors .* is \(32, 16\), not \(48, 16\)"):
        open_source(folder)


def test_a_bias_that_the_config_does_not_tell_of_is_refused(folder: Path) -> None:
    change(folder, **{"model.layers.0.self_attn.q_proj.bias": torch.zeros(16)})
    with pytest.raises(UsageError, match=r"\('model\.layers\.0\.self_attn\.q_proj\.bias'\) is unused"):
        open_source(folder)


@pytest.mark.parametrize(
    ("spec", "buffers"),
    [
        (ModelSpec("transformer", **COMMON), ["lm_head.weight", "model.layers.0.self_attn.rotary_emb.inv_freq",
                                              "model.rotary_emb.inv_freq"]),
        (ModelSpec("transformer", **LAYERED, position="learned"),
         ["lm_head.weight", "transformer.h.0.attn.bias", "transformer.h.1.attn.masked_bias"]),
        (ModelSpec("transformer", **LAYERED, parallel=True, tied=False),
         ["gpt_neox.layers.0.attention.bias", "gpt_neox.layers.1.attention.masked_bias",
          "gpt_neox.layers.1.attention.rotary_emb.inv_freq"]),
        (ModelSpec("lstm", 257, 16, 2, 64), ["head.weight"]),
    ],
    ids=["llama", "gpt2", "gpt_neox", "lstm"],
)  # fmt: skip
def test_buffers_and_a_tied_head_of_real_checkpoints_change_nothing(
    spec: ModelSpec, buffers: list[str], tiny_model: Model, tmp_path: Path
) -> None:
    from nextword.models.weights import write_model
    from nextword.text import tokenizer_from_folder

    model = build(spec)
    folder = write_model(tmp_path / "model", model, tokenizer_from_folder(tiny_model()))
    assert family_of(spec).names.ignored or spec.kind == "lstm"
    change(folder, **{name: torch.zeros(4) for name in buffers})
    again = dict(torch_model(folder).named_parameters())
    assert all(torch.equal(again[name], parameter) for name, parameter in model.named_parameters())


def test_of_a_gemma_that_sees_the_text_part_is_read_and_written(tiny_model: Model, tmp_path: Path) -> None:
    from family_cases import CASES, saved

    model, folder = saved(CASES["gemma3"], tmp_path / "gemma")
    for file in tiny_model().glob("tokenizer*"):
        (folder / file.name).write_bytes(file.read_bytes())
    text = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": text}))
    tensors = load_file(folder / "model.safetensors")
    seeing = {"vision_tower.embeddings.weight": torch.ones(3), "multi_modal_projector.mm_norm.weight": torch.ones(3)}
    save_file(seeing | {f"language_model.{name}": each for name, each in tensors.items()}, folder / "model.safetensors")
    out = convert(folder, tmp_path / "text")
    assert json.loads((out / "config.json").read_text())["model_type"] == "gemma3_text"
    tokens = torch.arange(1, 30)[None]
    with torch.inference_mode():
        for path in (folder, out):
            ours = torch_model(path)
            torch.testing.assert_close(ours(tokens), model(tokens).logits, atol=1e-4, rtol=0)


def test_one_file_wins_over_an_index_and_over_other_files_as_in_transformers(folder: Path) -> None:
    (folder / "adapter_model.safetensors").write_bytes(b"no model")
    (folder / "model.safetensors.index.json").write_text("[]")
    assert open_source(folder).spec.layers == 2
    assert len(describe(folder).tensors) == 20


def test_a_tensor_in_two_files_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    os.link(folder / "a.safetensors", folder / "b.safetensors")
    with pytest.raises(UsageError, match=r"b\.safetensors: tensor 'model\..*' is in another file"):
        open_source(folder)


MODEL_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json")


@pytest.mark.parametrize("name", MODEL_FILES)
@pytest.mark.parametrize("kind", ["a device without end", "a FIFO", "a link to itself", "a folder"])
def test_what_is_no_regular_file_is_refused_at_once(name: str, kind: str, folder: Path) -> None:
    file = folder / name
    file.unlink()
    if kind == "a device without end":
        file.symlink_to("/dev/zero")
    elif kind == "a FIFO":
        os.mkfifo(file)
    elif kind == "a folder":
        file.mkdir()
    else:
        file.symlink_to(file)
    with pytest.raises(UsageError, match=r"not a regular file|is a folder|symbolic links"):
        open_source(folder).tokenizer()
