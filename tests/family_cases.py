"""One row per family, and per variant of it that matters: small configurations that transformers builds at random."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Case:
    """`settings` come on top of SMALL; `gguf` is llama.cpp's architecture of it, "" where it has none of its own."""

    model_type: str
    settings: dict[str, Any] = field(default_factory=dict)
    gguf: str = ""


SMALL: dict[str, Any] = {
    "vocab_size": 256, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.2, "tie_word_embeddings": False,
    "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0, "attn_implementation": "eager",
}  # fmt: skip
GPT2 = {"vocab_size": 256, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 128, "initializer_range": 0.2}
STRETCHED = {"rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 32}
LLAMA3_ROPE = STRETCHED | {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 10_000.0, "short_factor": [1.0, 1.05, 1.1, 1.2, 1.3, 1.5],
    "long_factor": [1.5, 2.0, 3.0, 4.0, 5.0, 6.0], "partial_rotary_factor": 0.75,
}  # fmt: skip
GEMMA = {"head_dim": 16, "sliding_window": 7, "query_pre_attn_scalar": 16, "tie_word_embeddings": True}
# routers of these random models have no two experts within 1e-4 of each other on the texts of the tests
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
LATENT = {
    "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 12, "n_routed_experts": 8,
    "n_shared_experts": 2, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "first_k_dense_replace": 1,
    "n_group": 1, "topk_group": 1,
}  # fmt: skip

CASES: dict[str, Case] = {
    "gpt2": Case("gpt2", GPT2, "gpt2"),
    "gpt_neox": Case("gpt_neox", {"rotary_pct": 0.25}, "gptneox"),
    "gpt_neox serial": Case("gpt_neox", {"use_parallel_residual": False}),
    "llama": Case("llama", gguf="llama"),
    "llama tied with biases": Case("llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    "llama wide heads": Case("llama", {"head_dim": 32}),
    "llama llama3 rope": Case("llama", {"rope_parameters": LLAMA3_ROPE}),
    "llama linear rope": Case("llama", {"rope_parameters": STRETCHED | {"rope_type": "linear"}}),
    "llama yarn rope": Case("llama", {"rope_parameters": STRETCHED | {"rope_type": "yarn"}}),
    "mistral window": Case("mistral", {"sliding_window": 7}),
    "qwen2": Case("qwen2", gguf="qwen2"),
    "qwen2 window": Case("qwen2", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 2}),
    "qwen3": Case("qwen3", {"head_dim": 32}, "qwen3"),
    "gemma2": Case("gemma2", GEMMA, "gemma2"),
    "gemma2 other scale": Case("gemma2", GEMMA | {"query_pre_attn_scalar": 20}),
    "gemma3": Case("gemma3_text", GEMMA, "gemma3"),
    "olmo2": Case("olmo2", gguf="olmo2"),
    "phi3": Case("phi3", {"original_max_position_embeddings": 128}, "phi3"),
    # which factors transformers takes depends on the text's length; here it is always below, and always above
    "phi3 short": Case("phi3", {"original_max_position_embeddings": 128, "rope_parameters": LONGROPE}),
    "phi3 long": Case("phi3", {"original_max_position_embeddings": 4, "rope_parameters": LONGROPE}, "phi3"),
    "smollm3": Case("smollm3", gguf="smollm3"),
    "granite": Case(
        "granite",
        {"embedding_multiplier": 3.0, "residual_multiplier": 0.5, "logits_scaling": 0.25, "attention_multiplier": 0.2},
        "granite",
    ),
    "mixtral": Case("mixtral", {"num_local_experts": 4}, "llama"),
    "qwen3_moe": Case("qwen3_moe", EXPERTS | {"norm_topk_prob": True, "head_dim": 32}, "qwen3moe"),
    "qwen3_moe shares": Case("qwen3_moe", EXPERTS | {"norm_topk_prob": False}),
    "gpt_oss": Case(
        "gpt_oss",
        {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 9, "head_dim": 32,
         "rope_parameters": STRETCHED | {"rope_type": "yarn", "truncate": False}},
        "gpt-oss",
    ),
}  # fmt: skip
PLANNED_ONLY: dict[str, Case] = {
    "qwen2_moe": Case("qwen2_moe", EXPERTS | {"shared_expert_intermediate_size": 40}),
    "deepseek_v2": Case("deepseek_v2", LATENT | {"q_lora_rank": 24}),
    "deepseek_v2 without query rank": Case("deepseek_v2", LATENT | {"q_lora_rank": None}),
    "deepseek_v3": Case("deepseek_v3", LATENT | {"q_lora_rank": 24, "n_shared_experts": 1}),
}


def config_of(case: Case) -> Any:
    """transformers' configuration."""
    import transformers

    settings = case.settings if case.model_type == "gpt2" else SMALL | case.settings
    return transformers.AutoConfig.for_model(case.model_type, **settings)


def transformers_model(case: Case) -> Any:
    """transformers' model, with random norms and biases: as it starts them, at one and zero, would hide a mix-up."""
    import transformers

    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config_of(case)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1 or name.endswith("bias"):
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def saved(case: Case, folder: Path) -> tuple[Any, Path]:
    """The model, and the folder that transformers wrote it to."""
    model = transformers_model(case)
    model.save_pretrained(folder)
    return model, folder
