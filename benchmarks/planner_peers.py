"""What other planners answer to the questions of planner.py; run by it, in the interpreter that has the peer.

    echo '{"llama": 8030261248, "small": 6819072}' | python benchmarks/planner_peers.py accelerate

Reads the true numbers of parameters (DeepSpeed asks for them), prints JSON: the peer's version and answers, or why
it cannot be imported. Standard library only, beside the peer itself.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import importlib.metadata
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

LLAMA = {
    "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336, "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
}  # fmt: skip
QWEN = {
    "model_type": "qwen3", "vocab_size": 151936, "hidden_size": 1024, "num_hidden_layers": 28,
    "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 3072,
    "max_position_embeddings": 40960, "tie_word_embeddings": True,
}  # fmt: skip
GPT2 = {
    "model_type": "gpt2", "vocab_size": 50257, "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024,
    "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "max_position_embeddings": 1024,
}  # fmt: skip
SMALL = {
    "model_type": "llama", "vocab_size": 8192, "hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 8,
    "num_key_value_heads": 4, "intermediate_size": 768, "max_position_embeddings": 256, "tie_word_embeddings": True,
}  # fmt: skip
DEVICES, CONTEXT, RANK = 64, 2048, 16
BATCH, SMALL_CONTEXT = 8, 256


def accelerate_answers(_: dict[str, int]) -> dict[str, float]:
    """What `accelerate estimate-memory` computes; only its look-up of the name on the hub is replaced."""
    from types import SimpleNamespace

    from accelerate.commands import estimate

    estimate.verify_on_hub = lambda *_: SimpleNamespace(config={}, library_name="transformers")

    def rows(config: dict[str, Any]) -> dict[str, tuple[float, float]]:
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "config.json").write_text(json.dumps(config))
            asked = argparse.Namespace(
                model_name=folder, library_name=None, trust_remote_code=False, dtypes=["float32", "float16"]
            )
            found = estimate.gather_data(asked)
        return {dtype: (size, max(training.values())) for dtype, _, size, training in found}

    llama = rows(LLAMA)
    return {
        "parameters": llama["float32"][0] / 4,
        "weights": rows(QWEN)["float16"][0],
        "adam_fp32": rows(GPT2)["float32"][1],
        "adam_mixed": llama["float16"][1],
        "peak_transformers": rows(SMALL)["float32"][1],
        "peak_own": rows(SMALL)["float32"][1],
    }


def deepspeed_answers(given: dict[str, int]) -> dict[str, float]:
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs as stage3
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs as stage2

    count, small = given["llama"], given["small"]
    over = {"num_gpus_per_node": 8, "num_nodes": DEVICES // 8, "cpu_offload": False}
    embedding = LLAMA["vocab_size"] * LLAMA["hidden_size"]
    _, with_layer, layer = stage3(count, embedding, **over, cpu_offload_params=False)
    return {
        "adam_mixed": stage2(count, cpu_offload=False)[1],
        "zero2": stage2(count, **over)[1],
        "zero3": with_layer - layer,
        "peak_transformers": stage2(small, cpu_offload=False)[1],
        "peak_own": stage2(small, cpu_offload=False)[1],
    }


def llm_analysis_answers(_: dict[str, int]) -> dict[str, float]:
    from llm_analysis import analysis
    from llm_analysis.config import DtypeConfig, ModelConfig, ParallelismConfig, get_gpu_config_by_name

    # it refuses 32 bits, for which it has no speeds; its memory does not depend on them
    analysis.LLMAnalysis.get_TFLOPS_per_gpu = lambda _: 100.0
    roomy = dataclasses.replace(get_gpu_config_by_name("a100-sxm-80gb"), mem_per_GPU_in_GB=1e6)

    def planner(config: dict[str, Any], bits: int = 16, devices: int = 1) -> Any:
        inner = config.get("intermediate_size", 4 * config["hidden_size"])
        model = ModelConfig(
            name="asked", num_layers=config["num_hidden_layers"], n_head=config["num_attention_heads"],
            hidden_dim=config["hidden_size"], vocab_size=config["vocab_size"],
            max_seq_len=config["max_position_embeddings"], num_key_value_heads=config.get("num_key_value_heads"),
            ffn_embed_dim=inner, expansion_ratio=inner / config["hidden_size"], model_type=config["model_type"],
        )  # fmt: skip
        return analysis.LLMAnalysis(
            model, roomy, DtypeConfig("asked", bits, bits, bits), ParallelismConfig(dp_size=devices)
        )

    def training(config: dict[str, Any], bits: int = 16, devices: int = 1, stage: int = 0, **run: int) -> Any:
        run = {"batch_size_per_gpu": 1, "gradient_accumulation_steps": 1, "seq_len": 256, **run}
        return planner(config, bits, devices).training(**run, ds_zero=analysis.DSZeRO(stage))

    def cache(config: dict[str, Any]) -> float:
        return planner(config).get_memory_kv_cache_per_layer(1, 1) * config["num_hidden_layers"]

    states = "(weight+op_state+grad)_memory_per_gpu"
    peak = training(SMALL, 32, batch_size_per_gpu=BATCH, seq_len=SMALL_CONTEXT)
    step = training(LLAMA, seq_len=CONTEXT)
    return {
        "parameters": step["num_params_total"],
        "weights": training(QWEN)["weight_memory_per_gpu"],
        "cache_mha": cache(GPT2),
        "cache_gqa": cache(LLAMA),
        "cache_wide": cache(QWEN),
        "adam_fp32": training(GPT2, 32)[states],
        "adam_mixed": step[states],
        "zero1": training(LLAMA, 16, DEVICES, 1)[states],
        "zero2": training(LLAMA, 16, DEVICES, 2)[states],
        "zero3": training(LLAMA, 16, DEVICES, 3)[states],
        "peak_transformers": peak["(weight+op_state+grad+act)_memory_per_gpu"],
        "peak_own": peak["(weight+op_state+grad+act)_memory_per_gpu"],
        "flops": step["num_flops_total_per_micro_batch"] / CONTEXT,
    }


PEERS: dict[str, Callable[[dict[str, int]], dict[str, float]]] = {
    "accelerate": accelerate_answers,
    "deepspeed": deepspeed_answers,
    "llm-analysis": llm_analysis_answers,
}


def peer_worker(name: str) -> dict[str, Any]:
    """Runs in the peer's interpreter. Only a failing import is a reason to leave a peer out."""
    try:
        importlib.import_module(name.replace("-", "_"))
        version = importlib.metadata.version(name)
    except Exception as error:
        return {"missing": f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"}
    return {"version": version, "answers": PEERS[name](json.load(sys.stdin))}


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):
        answered = peer_worker(sys.argv[1])
    print(json.dumps(answered))
