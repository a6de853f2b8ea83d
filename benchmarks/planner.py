"""Is the plan right? Ten questions to nextword and to other planners, each beside the true value.

    python benchmarks/planner.py [--peer-python PATH ...] [--markdown FILE] [--json]

The truth comes from no planner: from a transformers model on the meta device (parameters, cache shapes), torch's
FLOP counter, torch's AdamW, the table of the ZeRO paper, and the allocator's record of one training step. Needs
`pip install transformers`. The peers are `pip install accelerate`, `deepspeed` and `llm-analysis`; one that needs
other versions than this environment has lives in an environment of its own, whose interpreter --peer-python names
(once for each). A peer that cannot be imported is left out, with the reason.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planner_peers import BATCH, CONTEXT, DEVICES, GPT2, LLAMA, PEERS, QWEN, RANK, SMALL, SMALL_CONTEXT


@dataclass(frozen=True)
class Question:
    """`why` says where the answers differ; printed under the table."""

    key: str
    text: str
    unit: str
    why: str


QUESTIONS = (
    Question("parameters", "1. Parameters, Llama 3 8B", "parameters",
             "accelerate builds the model without its output head, which is not tied here; llm-analysis counts two"
             " matrices an MLP where a gated one has three, and takes every head as tied."),
    Question("weights", "2. Weights in bf16, Qwen3 0.6B", "bytes",
             "llm-analysis again misses the third MLP matrix, and takes the head width to be width / heads (64) where"
             " the configuration says 128; accelerate adds the rotary buffers."),
    Question("cache_mha", "3. Cache a token in bf16, multi-head (GPT-2)", "bytes",
             "no difference: as many key heads as heads, and their widths add up to the model's."),
    Question("cache_gqa", "4. The same, grouped queries (Llama 3 8B)", "bytes",
             "no difference: 8 key heads of 128, which here is width / heads."),
    Question("cache_wide", "5. The same, wide heads (Qwen3 0.6B)", "bytes",
             "llm-analysis computes the head width as width / heads, half of the configured 128."),
    Question("adam_fp32", "6a. Weights, gradients and AdamW in float32, GPT-2", "bytes",
             "llm-analysis adds master weights beside weights that are float32 already: 20 bytes a parameter, not 16;"
             " it also has neither biases nor learned positions; AdamW's step counters are in no plan."),
    Question("adam_mixed", "6b. The same in mixed precision, Llama 3 8B", "bytes",
             "the ZeRO paper counts 16 bytes a parameter (2 + 2 + 12); accelerate prints the largest of four parts"
             " instead of their sum (8 bytes, and no head); DeepSpeed keeps a float32 copy of the gradients too (20);"
             " llm-analysis holds gradients in float32 (18) of too few parameters."),
    Question("zero1", f"7a. The same a device, ZeRO stage 1 over {DEVICES}", "bytes",
             "DeepSpeed has no estimator for stage 1; llm-analysis holds float32 gradients, 6 + 12/n bytes a parameter"
             " where the paper has 4 + 12/n, of too few parameters: two errors that cancel."),
    Question("zero2", f"7b. ZeRO stage 2 over {DEVICES}", "bytes",
             "DeepSpeed shards 18 bytes where the paper shards 14: its float32 gradients; llm-analysis shards 16, and"
             " misses parameters."),
    Question("zero3", f"7c. ZeRO stage 3 over {DEVICES}, without gathered layers", "bytes",
             "DeepSpeed 18/n and llm-analysis 18/n of too few parameters, the paper 16/n; what DeepSpeed adds for the"
             " largest layer and nextword for gathered layers is left out on both sides."),
    Question("peak_transformers", f"8a. Peak of a float32 step, {BATCH} x {SMALL_CONTEXT} tokens, small Llama of"
             " transformers", "bytes",
             "accelerate and DeepSpeed know the states only (DeepSpeed's in mixed precision); llm-analysis counts one"
             " copy of the logits and, for the layers, what Megatron's keep; nextword counts three copies of the logits"
             " where a loop that still holds them during the backward pass has four, and gradients that at the peak of"
             " a step of one micro-batch are not there yet: two errors that partly cancel (a loop that lets go of the"
             " logits would peak one copy, 67 MB, lower, and the plan be too high)."),
    Question("peak_own", "8b. The same with nextword's own model", "bytes",
             "as 8a; the plan counts what nextword's own layers keep, and those of transformers keep a little less."),
    Question("flops", f"9. Training FLOPs a token at {CONTEXT}, Llama 3 8B", "FLOPs",
             "llm-analysis takes every MLP to cost 16 width^2, the size of an MLP four times as wide as the model,"
             " whatever the configuration says; the others do not answer."),
    Question("lora_transformers", f"10a. Trainable parameters of LoRA, rank {RANK} on all matrices of the layers,"
             " Llama 3 8B of transformers", "parameters",
             "no peer answers; nextword counts adapters beside its own fused matrices (query, key and value are one,"
             " gate and up another), which share the narrow matrix at the input; transformers has five matrices there,"
             " and as many pairs."),
    Question("lora_own", "10b. The same as nextword's trainer adds them", "parameters",
             "no peer answers; the trainer's matrices are those that the plan counts."),
)  # fmt: skip


# ---- the truth


def transformers_model(config: dict[str, Any], device: str = "meta", **settings: Any) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {key: value for key, value in config.items() if key != "model_type"}
    with torch.device(device):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(config["model_type"], **sizes), **settings)


def numbers(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def cache_a_token(config: dict[str, Any]) -> float:
    import torch

    tokens = torch.zeros(1, 8, dtype=torch.long, device="meta")
    cache = transformers_model(config, dtype=torch.bfloat16)(tokens, use_cache=True).past_key_values
    kept = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
    return sum(tensor.nbytes for tensor in kept) / tokens.numel()


def adam_states(config: dict[str, Any]) -> int:
    """Bytes that torch's AdamW has, its weights and their gradients included, after a step."""
    import torch

    model = transformers_model(config)
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
    model(torch.zeros(1, 8, dtype=torch.long, device="meta")).logits.sum().backward()
    optimizer.step()
    held = [tensor for parameter in model.parameters() for tensor in (parameter, parameter.grad)]
    held += [tensor for state in optimizer.state.values() for tensor in state.values()]
    return sum(tensor.nbytes for tensor in held)


def training_flops(config: dict[str, Any], context: int) -> float:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    model = transformers_model(config, attn_implementation="eager")
    with FlopCounterMode(display=False) as counter:
        tokens, mask = torch.zeros(1, context, dtype=torch.long), torch.zeros(1, 1, context, context)
        model(tokens.to("meta"), attention_mask=mask.to("meta"), use_cache=False).logits.sum().backward()
    return counter.get_total_flops() / context


def adapter_numbers(config: dict[str, Any], rank: int) -> int:
    from torch import nn

    layers = transformers_model(config).model.layers
    sizes = [(part.in_features, part.out_features) for part in layers.modules() if isinstance(part, nn.Linear)]
    pairs = [(nn.Linear(i, rank, False, "meta"), nn.Linear(rank, o, False, "meta")) for i, o in sizes]
    return sum(numbers(half) for pair in pairs for half in pair)


def trainers_adapters(config: dict[str, Any], rank: int) -> int:
    import torch

    from nextword.families import spec_from_config
    from nextword.models import build
    from nextword.train.lora import add_adapters

    with torch.device("meta"):
        model = build(spec_from_config(config))
        add_adapters(model, rank, seed=0)
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def measure_peak(kind: str) -> dict[str, int]:
    """Most bytes that torch has allocated at once in two steps of the usual loop; run in a process of its own."""
    import torch
    from torch.nn import functional as F
    from torch.profiler import ProfilerActivity, profile

    torch.manual_seed(0)
    tokens = torch.randint(0, SMALL["vocab_size"], (BATCH, SMALL_CONTEXT))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        model = _trainable(kind)
        optimizer = torch.optim.AdamW(model.parameters())
        for _ in range(2):
            out = model(tokens)
            logits = out.logits if kind == "transformers" else out[0]
            F.cross_entropy(logits.flatten(0, 1), tokens.flatten()).backward()
            optimizer.step()
            optimizer.zero_grad()
            del out, logits
    return {"peak": _most_at_once(recorded), "parameters": numbers(model)}


def _trainable(kind: str) -> Any:
    if kind == "transformers":
        return transformers_model(SMALL, "cpu")
    from nextword.families import spec_from_config
    from nextword.models import build

    return build(spec_from_config(SMALL))


def _most_at_once(recorded: Any) -> int:
    with tempfile.TemporaryDirectory() as folder:
        recorded.export_chrome_trace(f"{folder}/trace.json")
        events = json.loads(Path(folder, "trace.json").read_text())["traceEvents"]
    changes = sorted((event for event in events if event["name"] == "[memory]"), key=lambda event: event["ts"])
    live = most = 0
    for change in changes:
        live += change["args"]["Bytes"]
        most = max(most, live)
    return most


def truth() -> dict[str, float]:
    import torch

    count = numbers(transformers_model(LLAMA))
    qwen = transformers_model(QWEN, dtype=torch.bfloat16)
    return {
        "parameters": count,
        "weights": sum(parameter.nbytes for parameter in qwen.parameters()),
        "cache_mha": cache_a_token(GPT2),
        "cache_gqa": cache_a_token(LLAMA),
        "cache_wide": cache_a_token(QWEN),
        "adam_fp32": adam_states(GPT2),
        # Rajbhandari et al. 2020, 1910.02054, figure 1 with K = 12
        "adam_mixed": 16 * count,
        "zero1": 4 * count + 12 * count / DEVICES,
        "zero2": 2 * count + 14 * count / DEVICES,
        "zero3": 16 * count / DEVICES,
        "peak_transformers": worker(sys.executable, __file__, "--peak", "transformers")["peak"],
        "peak_own": worker(sys.executable, __file__, "--peak", "own")["peak"],
        "flops": training_flops(LLAMA, CONTEXT),
        "lora_transformers": adapter_numbers(LLAMA, RANK),
        "lora_own": trainers_adapters(LLAMA, RANK),
    }


# ---- the planners


def nextword_answers() -> dict[str, float]:
    from nextword import plan
    from nextword.families import spec_from_config

    llama, qwen, gpt2, small = (spec_from_config(config) for config in (LLAMA, QWEN, GPT2, SMALL))
    # the truth is what torch allocates, on a CPU: no gaps, no device's context
    step = plan.Training(batch=BATCH, context=SMALL_CONTEXT, precision="fp32", runtime=0, fragmentation=0)
    peak = plan.memory(small, step).total

    def model_states(*arguments: Any, **options: Any) -> float:
        """Without the layers that FSDP gathers for a moment: ZeRO's term."""
        states = plan.states(*arguments, **options)
        return states.total - states.part("gathered layers")

    return {
        "parameters": plan.parameters(llama).total,
        "weights": plan.weight_bytes(qwen, "bf16").value,
        "cache_mha": plan.cache_bytes(gpt2, 1, 1).value,
        "cache_gqa": plan.cache_bytes(llama, 1, 1).value,
        "cache_wide": plan.cache_bytes(qwen, 1, 1).value,
        "adam_fp32": model_states(gpt2, precision="fp32"),
        "adam_mixed": model_states(llama),
        "zero1": model_states(llama, shard="zero1", devices=DEVICES),
        "zero2": model_states(llama, shard="zero2", devices=DEVICES),
        "zero3": model_states(llama, shard="fsdp", devices=DEVICES),
        "peak_transformers": peak,
        "peak_own": peak,
        "flops": plan.flops(llama, CONTEXT).per_token,
        "lora_transformers": plan.states(llama, lora=RANK).trained,
        "lora_own": plan.states(llama, lora=RANK).trained,
    }


def worker(python: str, *arguments: str, given: dict[str, int] | None = None) -> dict[str, Any]:
    settings = {"DS_BUILD_OPS": "0", "DS_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    run = subprocess.run(
        [python, *arguments], input=json.dumps(given or {}), capture_output=True, text=True,
        env=os.environ | settings,
    )  # fmt: skip
    if run.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed:\n{run.stderr[-2000:]}")
    return json.loads(run.stdout.splitlines()[-1])


def ask_peer(name: str, pythons: list[str], given: dict[str, int]) -> dict[str, Any]:
    """The answers of the first interpreter that has the peer, or why the last one has not."""
    found: dict[str, Any] = {}
    for python in pythons:
        found = worker(python, str(Path(__file__).with_name("planner_peers.py")), name, given=given)
        if "answers" in found:
            break
    return found


# ---- the table


def shown(value: float, unit: str) -> str:
    if unit == "FLOPs":
        return f"{value / 1e9:.3f} GFLOP"
    if unit == "parameters":
        return f"{value:,.0f}"
    for size, name in ((1e9, "GB"), (1e6, "MB")):
        if value >= size:
            return f"{value / size:.3f} {name}"
    return f"{value:,.0f} B"


def cell(answers: dict[str, float], question: Question, true: float) -> str:
    if question.key not in answers:
        return "no answer"
    value = answers[question.key]
    off = value / true - 1
    error = "exact" if value == true else f"{off:+.1%}" if abs(off) >= 0.0005 else "< 0.05%"
    return f"{shown(value, question.unit)} ({error})"


def table(true: dict[str, float], named: dict[str, dict[str, Any]]) -> str:
    columns = [name for name, found in named.items() if "answers" in found]
    lines = [
        "| question | true value | " + " | ".join(f"{name} {named[name]['version']}" for name in columns) + " |",
        "|---|---|" + "---|" * len(columns),
    ]
    for question in QUESTIONS:
        value = true[question.key]
        cells = [cell(named[name]["answers"], question, value) for name in columns]
        lines.append(f"| {question.text} | {shown(value, question.unit)} | {' | '.join(cells)} |")
    versions = (f"{name} {importlib.metadata.version(name)}" for name in ("torch", "transformers"))
    lines += ["", f"True values by {' and '.join(versions)}.", ""]
    lines += [f"{name}: does not import here ({named[name]['missing']})\n" for name in named if name not in columns]
    lines += ["Where they differ, and why:", ""]
    lines += [f"- {question.text.split('.')[0]}: {question.why}" for question in QUESTIONS]
    return "\n".join(lines)


PAGE = """# Planners side by side

Ten questions to `nextword.plan`, `accelerate estimate-memory`, DeepSpeed's ZeRO estimators and llm-analysis. This page
is generated by `python benchmarks/planner.py --markdown docs/planner-comparison.md`, which asks every planner anew (a
peer in another environment: `--peer-python PATH`); do not edit it.

The errors in brackets are relative to the true value. Parameters, cache shapes and LoRA's matrices are those of
transformers' models; FLOPs are counted by torch's FlopCounterMode, attention in full; 6a is what torch's AdamW
allocates; 6b and 7 are the ZeRO paper's figure 1 at the model's size; 8 is the most that torch allocates at once in a
step of the usual loop (forward, cross-entropy, backward, AdamW, zero_grad). 1 GB is 10^9 bytes. DeepSpeed is told the
true number of parameters; llm-analysis gets every field of the configuration that it has a place for, and is asked for
the memory in float32 although it knows speeds of 16 bits at most.

"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", action="append", default=[], metavar="PATH")
    parser.add_argument("--markdown", metavar="FILE")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--peak", choices=("transformers", "own"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        with contextlib.redirect_stdout(sys.stderr):
            found = measure_peak(options.peak)
        print(json.dumps(found))
        return
    import nextword

    true = truth()
    given = {"llama": int(true["parameters"]), "small": numbers(transformers_model(SMALL))}
    named = {"nextword": {"version": nextword.__version__, "answers": nextword_answers()}}
    for name in PEERS:
        named[name] = ask_peer(name, [sys.executable, *options.peer_python], given)
    if options.json:
        units = {question.key: question.unit for question in QUESTIONS}
        print(json.dumps({"units": units, "true": true, "planners": named}, indent=2))
    else:
        print(table(true, named))
    if options.markdown:
        Path(options.markdown).write_text(PAGE + table(true, named) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
