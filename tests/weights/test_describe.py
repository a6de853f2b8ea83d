"""A model described from its headers, held against what transformers counts and safetensors wrote."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nextword.base import UsageError
from nextword.base.errors import closest
from nextword.weights.describe import describe


def _folder(path: Path) -> Path:
    """A tiny Llama folder as transformers writes it."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {
        "vocab_size": 64,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": 128,
        "tie_word_embeddings": False,
    }
    model = LlamaForCausalLM(LlamaConfig(**shape)).to(torch.bfloat16)
    model.save_pretrained(path)
    return path


def test_a_folders_parameters_are_those_that_transformers_counts(tmp_path):
    from transformers import LlamaForCausalLM

    described = describe(_folder(tmp_path / "tiny"))
    model = LlamaForCausalLM.from_pretrained(tmp_path / "tiny")
    assert described.parameters == sum(p.numel() for p in model.parameters())
    assert described.parts() == {
        "embedding": model.model.embed_tokens.weight.numel(),
        "attention": sum(p.numel() for layer in model.model.layers for p in layer.self_attn.parameters()),
        "MLP": sum(p.numel() for layer in model.model.layers for p in layer.mlp.parameters()),
        "norms": sum(p.numel() for name, p in model.named_parameters() if "norm" in name),
        "head": model.lm_head.weight.numel(),
    }
    assert [(kind.kind, kind.bytes) for kind in described.kinds()] == [("bf16", 2 * described.parameters)]
    assert described.spec is not None
    assert (described.spec.layers, described.spec.heads, described.spec.kv_heads) == (2, 4, 2)
    assert described.tokenizer is None  # none was saved


def test_the_real_gguf_is_described_whole(smollm2_path):
    described = describe(smollm2_path)
    assert described.parameters == 134_515_008
    assert {kind.kind: kind.tensors for kind in described.kinds()} == {"q4_1": 210, "q8_0": 1, "f32": 61}
    assert described.parts() == {
        "embedding": 49152 * 576,
        "attention": 30 * (2 * 576 * 576 + 2 * 576 * 192),
        "MLP": 30 * 3 * 576 * 1536,
        "norms": 61 * 576,
    }
    assert described.licence == "apache-2.0"
    facts = described.tokenizer
    assert facts is not None
    assert (facts.kind, facts.vocabulary, facts.chat_template) == ("byte-level BPE", 49152, True)
    assert "<|im_end|>" in facts.eos


def test_a_model_that_nextword_does_not_run_is_still_described(tmp_path):
    folder = _folder(tmp_path / "tiny")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "martian"}))
    described = describe(folder)
    assert described.spec is None
    assert described.not_run is not None
    assert "martian" in described.not_run
    assert described.parameters > 0


def _header(text: bytes, length: int | None = None) -> bytes:
    return (len(text) if length is None else length).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"\x01",
        _header(b"{}", 10**15),
        _header(b"not json"),
        _header(b"[]"),
        _header(b'{"a": 3}'),
        _header(b'{"a": {"dtype": "F32", "shape": ["x"], "data_offsets": [0, 4]}}'),
        _header(b'{"a": {"dtype": "F32", "shape": [1]}}'),
    ],
)
def test_a_broken_safetensors_file_is_a_clear_error(tmp_path, damage):
    folder = _folder(tmp_path / "tiny")
    (folder / "model.safetensors").write_bytes(damage)
    with pytest.raises(UsageError, match=r"model\.safetensors: incomplete or damaged safetensors file"):
        describe(folder)


def test_float_kinds_and_shapes_are_as_safetensors_wrote_them(tmp_path):
    from safetensors.numpy import save_file

    folder = _folder(tmp_path / "tiny")
    save_file({"x": np.zeros((3, 5), np.float16), "y": np.zeros(7, np.float32)}, folder / "model.safetensors")
    found = {tensor.name: tensor for tensor in describe(folder).tensors}
    assert (found["x"].kind, found["x"].shape, found["x"].bytes) == ("f16", (3, 5), 30)
    assert (found["y"].kind, found["y"].shape, found["y"].bytes) == ("f32", (7,), 28)


def test_describing_imports_no_torch(smollm2_path):
    code = (
        "import sys; from pathlib import Path; from nextword.weights.describe import describe;"
        f"describe(Path({str(smollm2_path)!r})); print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


@pytest.mark.parametrize(
    ("typed", "first"),
    [("smolm", "smollm2-135m"), ("compelte", "complete"), ("qwen2", "qwen2.5-0.5b-instruct"), ("zzz", None)],
)
def test_the_nearest_name_is_the_one_meant(typed, first):
    known = ["smollm2-135m", "complete", "qwen2.5-0.5b-instruct", "gpt2"]
    said = closest(typed, known)
    assert said.startswith(f" Did you mean {first}") if first else said == ""


@pytest.mark.parametrize(
    "lie",
    [
        {"data_offsets": [0, 2**40]}, {"data_offsets": [-4, 60]}, {"data_offsets": [8, 4]}, {"shape": [2**60, 2**60]},
        {"dtype": "F64"}, {"data_offsets": "x"}, {"shape": None}, {"data_offsets": [2**30, 2**30 + 64]},
    ],
)  # fmt: skip
def test_a_safetensors_header_that_lies_of_sizes_is_refused(tmp_path, lie):
    from safetensors.numpy import save

    whole = save({"a": np.zeros((4, 4), np.float32)})
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    header["a"] |= lie
    written = json.dumps(header).encode()
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    (tmp_path / "model.safetensors").write_bytes(len(written).to_bytes(8, "little") + written + whole[8 + length :])
    with pytest.raises(UsageError, match="incomplete or damaged safetensors file"):
        describe(tmp_path)
