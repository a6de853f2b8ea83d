"""GGUF files of the families in family_cases: tensors named, permuted and folded as llama.cpp's converter does."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import load_file
from tokenizers.pre_tokenizers import ByteLevel

from family_cases import CASES, Case, saved

ARCHITECTURES = {name: case for name, case in CASES.items() if case.gguf}
PERMUTED = ("llama", "smollm3", "granite")  # of which llama.cpp's converter interleaves the rotary halves
EXPERT = re.compile(r"(.*\.experts)\.\d+\.(\w+)\.weight")


def interleave(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """The converter's row order for architecture llama: the halves of each head, in turn."""
    return weight.reshape(heads, 2, -1, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)


def by_kind(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """GPT-NeoX: query, key and value by head → all queries, all keys, all values."""
    return weight.reshape(heads, 3, -1, *weight.shape[1:]).transpose(0, 1).reshape(weight.shape)


def arranged(architecture: str, name: str, tensor: torch.Tensor) -> torch.Tensor:
    if architecture in PERMUTED and name.endswith(("attn_q.weight", "attn_k.weight")):
        return interleave(tensor, 4 if "attn_q" in name else 2)
    if architecture == "gptneox" and "attn_qkv" in name:
        return by_kind(tensor, 4)
    if architecture in ("gemma2", "gemma3") and "norm" in name:
        return tensor + 1
    if architecture == "gpt2" and tensor.dim() == 2 and "embd" not in name:
        return tensor.T
    return tensor


def one_by_one(tensors: dict[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """Module and kind of each tensor, as the converter names them: experts stacked, gate and up of gpt-oss apart."""
    experts: dict[str, list[torch.Tensor]] = {}
    for name in sorted(tensors):  # at most ten experts
        if match := EXPERT.fullmatch(name):
            experts.setdefault(f"{match[1]}.{match[2]}.weight", []).append(tensors[name])
        elif "experts.gate_up_proj" in name:  # (experts, in, gate and up in turn)
            kind = "bias" if name.endswith("_bias") else "weight"
            for first, half in enumerate(("gate_proj", "up_proj")):
                part = tensors[name][..., first::2]
                yield f"{name.partition('gate_up')[0]}{half}.{kind}", part.mT if kind == "weight" else part
        elif "experts.down_proj" in name:
            kind = "bias" if name.endswith("_bias") else "weight"
            yield f"{name.removesuffix('_bias')}.{kind}", tensors[name].mT if kind == "weight" else tensors[name]
        elif name.endswith("sinks"):
            yield f"{name}.weight", tensors[name]
        else:
            yield name, tensors[name]
    yield from ((name, torch.stack(parts)) for name, parts in experts.items())


def write_gguf(
    path: Path, architecture: str, model: Any, tensors: dict[str, torch.Tensor],
    extra: dict[str, np.ndarray] | None = None,
) -> None:  # fmt: skip
    """What llama.cpp's converter makes of a folder's `tensors`; names and keys are those of its own package."""
    writer = gguf.GGUFWriter(path, architecture)
    add_sizes(writer, architecture, model.config)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(sorted(ByteLevel.alphabet()))
    writer.add_token_merges([])
    writer.add_token_types([1] * 256)
    arch = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(arch, 4)
    for name, tensor in one_by_one(tensors):
        module, _, kind = name.rpartition(".")
        new = f"{names.get_name(module)}.{kind}"
        assert names.get_name(module), name
        if new != "output.weight" or not model.config.tie_word_embeddings:
            writer.add_tensor(new, np.ascontiguousarray(arranged(architecture, new, tensor).numpy()))
    for new, values in (extra or {}).items():
        writer.add_tensor(new, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_sizes(writer: Any, architecture: str, config: Any) -> None:
    width, heads = config.hidden_size, config.num_attention_heads
    writer.add_context_length(128)
    writer.add_embedding_length(width)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(getattr(config, "intermediate_size", 4 * width))
    writer.add_head_count(heads)
    if architecture in ("gpt2", "gptneox"):
        writer.add_layer_norm_eps(1e-5)
    else:
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        if getattr(config, "head_dim", None):
            writer.add_key_length(config.head_dim)
        rope = config.rope_parameters
        writer.add_rope_freq_base((rope.get("full_attention") or rope)["rope_theta"])
    if getattr(config, "num_local_experts", None):
        writer.add_expert_count(config.num_local_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
    if architecture in ("gemma2", "gemma3", "gpt-oss"):
        writer.add_sliding_window(config.sliding_window)
    if architecture == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if architecture == "gptneox":
        writer.add_rope_dimension_count(4)
        writer.add_parallel_residual(True)
    if architecture == "phi3":
        writer.add_rope_dimension_count(int(16 * rope["partial_rotary_factor"]))
        writer.add_rope_scaling_orig_ctx_len(config.original_max_position_embeddings)
        writer.add_sliding_window(0)
        if rope["rope_type"] == "longrope":
            stretch = 128 / config.original_max_position_embeddings
            log = math.log(stretch) / math.log(config.original_max_position_embeddings)
            writer.add_rope_scaling_attn_factors(math.sqrt(1 + log))
    if architecture == "granite":
        writer.add_attention_scale(config.attention_multiplier)
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
        writer.add_logit_scale(config.logits_scaling)
    if architecture == "qwen3moe":
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    if architecture == "gpt-oss":
        writer.add_expert_feed_forward_length(config.intermediate_size)
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])


def factors(case: Case) -> dict[str, np.ndarray]:
    rope = case.settings.get("rope_parameters", {})
    return {
        f"rope_factors_{length}.weight": np.array(rope[f"{length}_factor"], np.float32)
        for length in ("short", "long")
        if f"{length}_factor" in rope
    }


def saved_gguf(case: Case, path: Path) -> Any:
    """transformers' random model of a family, written as the GGUF file `path`."""
    model, folder = saved(case, path.with_suffix(".folder"))
    write_gguf(path, case.gguf, model, load_file(folder / "model.safetensors"), factors(case))
    return model
