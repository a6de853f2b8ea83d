"""Every GGUF architecture: tensors named, permuted and folded as llama.cpp's converter does, read and converted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from nextword.base import UsageError
from nextword.weights import convert, load_model, open_source

transformers = pytest.importorskip("transformers")

SMALL: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "attn_implementation": "eager",
    "pad_token_id": 0,
    "sliding_window": 9,
    "query_pre_attn_scalar": 16,
    "tie_word_embeddings": False,
}
WITHOUT_HEAD_WIDTH = {key: value for key, value in SMALL.items() if key != "head_dim"}
GEMMA = SMALL | {"tie_word_embeddings": True}
LLAMA_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
}
NORMS_BEFORE = {"post_attention_layernorm": "ffn_norm"}
NORMS_ALSO_AFTER = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
CASES: dict[str, tuple[str, dict[str, Any], dict[str, str]]] = {
    "llama": ("llama", SMALL, NORMS_BEFORE),
    "qwen2": ("qwen2", WITHOUT_HEAD_WIDTH, NORMS_BEFORE),
    "qwen3": ("qwen3", SMALL, NORMS_BEFORE),
    "gemma2": ("gemma2", GEMMA, NORMS_ALSO_AFTER),
    "gemma3": ("gemma3_text", GEMMA, NORMS_ALSO_AFTER),
    "olmo2": ("olmo2", WITHOUT_HEAD_WIDTH, NORMS_ALSO_AFTER),
    "gpt2": (
        "gpt2",
        {"vocab_size": 256, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 128, "initializer_range": 0.2},
        {
            "ln_1": "attn_norm",
            "attn.c_attn": "attn_qkv",
            "attn.c_proj": "attn_output",
            "ln_2": "ffn_norm",
            "mlp.c_fc": "ffn_up",
            "mlp.c_proj": "ffn_down",
        },
    ),
    "gptneox": (
        "gpt_neox",
        SMALL | {"rotary_pct": 0.25},
        {
            "input_layernorm": "attn_norm",
            "attention.query_key_value": "attn_qkv",
            "attention.dense": "attn_output",
            "post_attention_layernorm": "ffn_norm",
            "mlp.dense_h_to_4h": "ffn_up",
            "mlp.dense_4h_to_h": "ffn_down",
        },
    ),
}
TOP = {
    "embed_tokens": "token_embd",
    "norm": "output_norm",
    "lm_head": "output",
    "wte": "token_embd",
    "wpe": "position_embd",
    "ln_f": "output_norm",
    "embed_in": "token_embd",
    "final_layer_norm": "output_norm",
    "embed_out": "output",
}


def interleave(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """The converter's row order for architecture llama: the halves of each head, in turn."""
    return weight.reshape(heads, 2, -1, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)


def by_kind(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """GPT-NeoX: query, key and value by head → all queries, all keys, all values."""
    return weight.reshape(heads, 3, -1, *weight.shape[1:]).transpose(0, 1).reshape(weight.shape)


def arranged(architecture: str, name: str, tensor: torch.Tensor) -> torch.Tensor:
    if architecture == "llama" and name.endswith(("attn_q.weight", "attn_k.weight")):
        return interleave(tensor, 4 if "attn_q" in name else 2)
    if architecture == "gptneox" and "attn_qkv" in name:
        return by_kind(tensor, 4)
    if architecture in ("gemma2", "gemma3") and "norm" in name:
        return tensor + 1
    if architecture == "gpt2" and tensor.dim() == 2 and "embd" not in name:
        return tensor.T
    return tensor


def renamed(name: str, names: dict[str, str]) -> str | None:
    stem, kind = name.rsplit(".", 1)
    parts = stem.removeprefix("model.").removeprefix("transformer.").removeprefix("gpt_neox.").split(".")
    if parts[0] in ("layers", "h"):
        inner = (LLAMA_NAMES | names).get(".".join(parts[2:]))
        return f"blk.{parts[1]}.{inner}.{kind}" if inner else None
    return f"{TOP[parts[0]]}.{kind}" if parts[0] in TOP else None


def write_gguf(
    path: Path, architecture: str, model: Any, names: dict[str, str], extra: dict[str, np.ndarray] | None = None
) -> None:
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    get: Callable[..., Any] = lambda *keys: next(v for k in keys if (v := getattr(config, k, None)) is not None)  # noqa: E731
    width, heads = get("hidden_size"), get("num_attention_heads")
    writer.add_context_length(128)
    writer.add_embedding_length(width)
    writer.add_block_count(get("num_hidden_layers"))
    writer.add_feed_forward_length(96 if hasattr(config, "intermediate_size") else 4 * width)
    writer.add_head_count(heads)
    if architecture not in ("gpt2", "gptneox"):
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        if getattr(config, "head_dim", None):
            writer.add_key_length(config.head_dim)
        rope = config.rope_parameters
        writer.add_rope_freq_base((rope.get("full_attention") or rope)["rope_theta"])
    else:
        writer.add_layer_norm_eps(1e-5)
    if architecture.startswith("gemma"):
        writer.add_sliding_window(config.sliding_window)
    if architecture == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if architecture == "gptneox":
        writer.add_rope_dimension_count(4)
        writer.add_parallel_residual(True)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(list(byte_alphabet()))
    writer.add_token_merges([])
    writer.add_token_types([1] * 256)
    for name, tensor in model.state_dict().items():
        new = renamed(name, names)
        if new is None or (new == "output.weight" and config.tie_word_embeddings):
            continue
        writer.add_tensor(new, np.ascontiguousarray(arranged(architecture, new, tensor).numpy()))
    for new, values in (extra or {}).items():
        writer.add_tensor(new, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def byte_alphabet() -> list[str]:
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


@pytest.mark.parametrize("architecture", CASES)
@torch.inference_mode()
def test_a_gguf_gives_transformers_logits_and_converts_to_a_folder_that_does(architecture: str, tmp_path: Path) -> None:
    kind, settings, names = CASES[architecture]
    torch.manual_seed(0)
    theirs = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(kind, **settings)).eval()
    for parameter in theirs.parameters():
        if parameter.dim() == 1:
            parameter.add_(torch.randn_like(parameter) * 0.2)
    path = tmp_path / "tiny.gguf"
    write_gguf(path, architecture, theirs, names)
    tokens = torch.randint(1, 256, (2, 40), generator=torch.Generator().manual_seed(1))
    expected = theirs(tokens).logits
    ours = load_model(open_source(path), "float32", "cpu")
    torch.testing.assert_close(ours(tokens), expected, atol=1e-4, rtol=0)

    folder = convert(path, tmp_path / "folder")
    reopened = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    torch.testing.assert_close(reopened(tokens).logits, expected, atol=1e-4, rtol=0)
    again = load_model(open_source(folder), "float32", "cpu")
    torch.testing.assert_close(again(tokens), expected, atol=1e-4, rtol=0)


def llama(**settings: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model("llama", **SMALL, **settings)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        (["blk.0.attn_q.bias"], r"1 of 31 tensors \('blk.0.attn_q.bias'\) is left over"),
        (
            [f"blk.{n}.attn_{part}.bias" for n in range(3) for part in "qkv"],
            r"9 of 39 tensors \('blk.0.attn_q.b.*, \.\.\.\) are left over",
        ),
        (["blk.3.attn_norm.weight"], "'blk.3.attn_norm.weight'"),
    ],
)
def test_tensors_that_the_metadata_does_not_tell_of_are_refused(extra: list[str], named: str, tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path, "llama", llama(), NORMS_BEFORE, dict.fromkeys(extra, np.ones(64, np.float32)))
    with pytest.raises(UsageError, match=named) as refused:
        open_source(path)
    assert "\n" not in str(refused.value)


def divisors(factor: float, context: float = 8192) -> np.ndarray:
    """What llama.cpp's converter stores of Llama 3.1's scaling (LlamaModel.generate_extra_tensors)."""
    found = []
    for pair in range(8):
        wavelength = 2 * np.pi * 10_000 ** (pair / 8)
        if wavelength < context / 4:
            found.append(1.0)
        elif wavelength > context:
            found.append(factor)
        else:
            smooth = (context / wavelength - 1) / 3
            found.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(found, np.float32)


@pytest.mark.parametrize("factor", [8.0, 32.0])
@torch.inference_mode()
def test_positions_that_the_file_stretches_as_llama_3_are_stretched(factor: float, tmp_path: Path) -> None:
    scaling = {"rope_type": "llama3", "rope_theta": 10_000.0, "factor": factor, "low_freq_factor": 1.0,
               "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}  # fmt: skip
    theirs = llama(rope_parameters=scaling)
    tokens = torch.randint(1, 256, (2, 120), generator=torch.Generator().manual_seed(1))
    write_gguf(tmp_path / "tiny.gguf", "llama", theirs, NORMS_BEFORE, {"rope_freqs.weight": divisors(factor)})
    ours = load_model(open_source(tmp_path / "tiny.gguf"), "float32", "cpu")
    torch.testing.assert_close(ours(tokens), theirs(tokens).logits, atol=1e-4, rtol=0)

    plain = llama()
    write_gguf(tmp_path / "plain.gguf", "llama", plain, NORMS_BEFORE, {"rope_freqs.weight": np.ones(8, np.float32)})
    ours = load_model(open_source(tmp_path / "plain.gguf"), "float32", "cpu")
    torch.testing.assert_close(ours(tokens), plain(tokens).logits, atol=1e-4, rtol=0)
    assert (plain(tokens).logits - theirs(tokens).logits).abs().max() > 1e-2  # the factors matter


def test_positions_stretched_in_another_way_are_refused(tmp_path: Path) -> None:
    odd = {"rope_freqs.weight": np.linspace(1, 3, 8, dtype=np.float32)}
    write_gguf(tmp_path / "tiny.gguf", "llama", llama(), NORMS_BEFORE, odd)
    with pytest.raises(UsageError, match=r"rope_freqs\.weight.*safetensors"):
        open_source(tmp_path / "tiny.gguf")
