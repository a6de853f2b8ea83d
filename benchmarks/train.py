"""How fast is a training step, and how much memory does it take, beside nanoGPT's model and transformers' Llama?

    python benchmarks/train.py [--rounds 5] [--steps 8] [--json]

One shape: 6 layers, width 256, vocabulary 4096, 16 rows of 256 tokens, AdamW, gradients clipped at 1. Each contender
runs in a process of its own, in turn, round after round; medians are printed. nanoGPT's model is restated here in plain
torch (LayerNorm, GELU, learned positions, tied head). litgpt is taken where it is installed. FLOPs are each model's
own, 6 a weight that multiplies and 12 x layers x width x context of attention, over the float32 matmul peak measured in
the same round. Then the recurrent kinds at the same parameters, eight rows of 256.

loss    after the same 40 steps on the same tokens (a repeating text), what a faster precision costs
peak    largest resident size of the process, MB (1e6 bytes), and what of it came after the libraries were loaded
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

LAYERS, WIDTH, HEADS, VOCABULARY, ROWS, CONTEXT = 6, 256, 4, 4096, 16, 256
LEARNING = 40  # steps of the comparison of losses
CONTENDERS = ("nextword float32", "nextword bfloat16", "nanoGPT", "transformers", "litgpt")
RECURRENT = ("lstm", "gru", "rnn")


def tokens(rows: int = ROWS) -> Any:
    """Rows of a text that repeats with noise, so that there is something to learn."""
    import torch

    generator = torch.Generator().manual_seed(0)
    text = torch.randint(0, VOCABULARY, (4000,), generator=generator).repeat(20)
    starts = torch.randint(0, 70_000, (rows,), generator=generator)
    return torch.stack([text[start : start + CONTEXT + 1] for start in starts])


def nextword_step(kind: str, precision: str, rows: int = ROWS) -> Callable[[int], float]:
    """One step of nextword's trainer: its own wrapper, loss, optimizer and clipping."""
    import torch

    from nextword.plan.run_config import ModelConfig, RunConfig, TrainConfig
    from nextword.plan.shape_search import recurrent_for
    from nextword.spec import ModelSpec
    from nextword.train.learner import Learner
    from nextword.train.loss_module import Placed, new_model

    if kind == "transformer":
        spec = ModelSpec(kind="transformer", vocabulary=VOCABULARY, width=WIDTH, layers=LAYERS, context=CONTEXT,
                         heads=HEADS, kv_heads=HEADS, head_width=WIDTH // HEADS, mlp_width=688)  # fmt: skip
    else:
        spec = recurrent_for(5.8e6, kind, VOCABULARY, CONTEXT)  # type: ignore[arg-type]
    train = TrainConfig(steps=1, context=CONTEXT, batch_size=rows, micro_batch=rows, learning_rate=1e-3,
                        dtype=precision)  # type: ignore[arg-type]  # fmt: skip
    config = RunConfig(ModelConfig(spec=spec), train=train)
    learner = Learner(config, new_model(config), torch.device("cpu"))
    batch = tokens(rows)
    placed = Placed(batch[:, :-1].contiguous(), batch[:, 1:].contiguous(), None)

    def step(number: int) -> float:
        nats = learner.backward(placed, rows * CONTEXT)
        learner.clip()
        learner.update()
        return float(nats) / (rows * CONTEXT)

    return step


def plain_step(model: Any, loss_of: Callable[[Any, Any], Any]) -> Callable[[int], float]:
    """A step as the peers' own training scripts do it."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    batch = tokens()
    inputs, targets = batch[:, :-1].contiguous(), batch[:, 1:].contiguous()

    def step(number: int) -> float:
        loss = loss_of(inputs, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss)

    return step


def nanogpt_step() -> Callable[[int], float]:
    """GPT-2's layout with nanoGPT's settings: no biases, tied head, flash attention."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.LayerNorm(WIDTH, bias=False), nn.LayerNorm(WIDTH, bias=False)
            self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
            self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH, bias=False), nn.Linear(4 * WIDTH, WIDTH, bias=False)

        def forward(self, x: Any) -> Any:
            rows, time_, width = x.shape
            heads = (
                part.view(rows, time_, HEADS, -1).transpose(1, 2) for part in self.qkv(self.first(x)).split(width, 2)
            )
            mixed = F.scaled_dot_product_attention(*heads, is_causal=True)
            x = x + self.out(mixed.transpose(1, 2).contiguous().view(rows, time_, width))
            return x + self.down(F.gelu(self.up(self.second(x))))

    class GPT(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.places = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(CONTEXT, WIDTH)
            self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
            self.norm, self.head = nn.LayerNorm(WIDTH, bias=False), nn.Linear(WIDTH, VOCABULARY, bias=False)
            for parameter in self.parameters():
                if parameter.ndim == 2:
                    nn.init.normal_(parameter, std=0.02)
            self.head.weight = self.tokens.weight

        def forward(self, x: Any) -> Any:
            x = self.tokens(x) + self.places(torch.arange(x.shape[1]))
            for block in self.blocks:
                x = block(x)
            return self.head(self.norm(x))

    torch.manual_seed(0)
    model = GPT()
    return plain_step(model, lambda x, y: F.cross_entropy(model(x).view(-1, VOCABULARY), y.view(-1)))


def transformers_step() -> Callable[[int], float]:
    import torch
    import torch.nn.functional as F
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=688, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=HEADS, max_position_embeddings=CONTEXT, tie_word_embeddings=True,
    ))  # fmt: skip
    return plain_step(model, lambda x, y: F.cross_entropy(model(x).logits.view(-1, VOCABULARY), y.view(-1)))


def litgpt_step() -> Callable[[int], float]:
    import torch
    import torch.nn.functional as F
    from litgpt import GPT, Config

    torch.manual_seed(0)
    model = GPT(Config(
        block_size=CONTEXT, vocab_size=VOCABULARY, padded_vocab_size=VOCABULARY, n_layer=LAYERS, n_head=HEADS,
        n_embd=WIDTH, n_query_groups=HEADS, bias=False, norm_class_name="RMSNorm", mlp_class_name="LLaMAMLP",
        intermediate_size=688, rotary_percentage=1.0, parallel_residual=False,
    ))  # fmt: skip
    return plain_step(model, lambda x, y: F.cross_entropy(model(x).view(-1, VOCABULARY), y.view(-1)))


def make(name: str) -> tuple[Callable[[int], float], float, int]:
    """A contender's step, its FLOPs a token, its rows."""
    attention = 12 * LAYERS * WIDTH * CONTEXT
    matrices = 4 * WIDTH * WIDTH * LAYERS + VOCABULARY * WIDTH
    gated, plain = 3 * WIDTH * 688 * LAYERS, 8 * WIDTH * WIDTH * LAYERS
    if name.startswith("nextword"):
        precision = "amp" if name.endswith("bfloat16") else "fp32"
        return nextword_step("transformer", precision), 6 * (matrices + gated) + attention, ROWS
    if name in RECURRENT:
        from nextword.plan import flops
        from nextword.plan.shape_search import recurrent_for

        return nextword_step(name, "fp32", 8), flops(recurrent_for(5.8e6, name, VOCABULARY, CONTEXT)).per_token, 8  # type: ignore[arg-type]
    if name == "nanoGPT":
        return nanogpt_step(), 6 * (matrices + plain) + attention, ROWS
    step = transformers_step if name == "transformers" else litgpt_step
    return step(), 6 * (matrices + gated) + attention, ROWS


def worker(name: str, steps: int, learn: bool) -> dict[str, float]:
    """Time `steps` steps after two to warm up."""
    import torch

    from nextword.train.memory import keep_freed_memory

    if name == "transformers":
        import transformers  # noqa: F401 - its import is not the step's memory
        from transformers import LlamaForCausalLM  # noqa: F401
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if name.startswith("nextword") or name in RECURRENT:
        keep_freed_memory()  # as the trainer does
    step, flops, rows = make(name)
    if learn:
        losses = [step(number) for number in range(LEARNING)]
        return {"loss": sum(losses[-5:]) / 5}
    step(0)
    step(1)
    times = []
    for number in range(steps):
        began = time.perf_counter()
        step(number)
        times.append(time.perf_counter() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    left = torch.randn(2048, 2048)
    matmul = min(_timed(lambda: left @ left) for _ in range(8))
    rate = rows * CONTEXT / statistics.median(times)
    return {
        "tokens_per_second": rate,
        "gflops": rate * flops / 1e9,
        "share_of_peak": rate * flops / (2 * 2048**3 / matmul),
        "peak_mb": peak * 1024 / 1e6,
        "after_loading_mb": (peak - before) * 1024 / 1e6,
    }


def _timed(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def in_turn(names: list[str], rounds: int, steps: int) -> dict[str, dict[str, float]]:
    """Medians over the rounds of every contender that runs here."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    missing = set()
    for number in range(rounds):
        for name in names:
            if name in missing:
                continue
            row = _process(name, steps, learn=False)
            if row is None:
                missing.add(name)
                continue
            found[name].append(row)
            print(f"round {number + 1}: {name} {row['tokens_per_second']:.0f} tokens/s", file=sys.stderr)
    medians = {name: {key: statistics.median(row[key] for row in rows) for key in rows[0]}
               for name, rows in found.items() if rows}  # fmt: skip
    for name in [name for name in medians if name.startswith("nextword")]:
        medians[name] |= _process(name, 0, learn=True) or {}
    return medians


def _process(name: str, steps: int, learn: bool) -> dict[str, float] | None:
    command = [sys.executable, __file__, "--worker", name, "--steps", str(steps), *(["--learn"] if learn else [])]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        print(f"{name} left out: {(done.stderr.strip().splitlines() or ['?'])[-1]}", file=sys.stderr)
        return None
    row: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return row


def table(found: dict[str, dict[str, float]]) -> str:
    """Markdown, ratios to the fastest peer and to transformers' memory."""
    peers = [name for name in found if not name.startswith("nextword") and name not in RECURRENT]
    best = max((found[name]["tokens_per_second"] for name in peers), default=float("nan"))
    memory = found.get("transformers", {}).get("after_loading_mb", float("nan"))
    lines = ["| | tokens/s | to the fastest peer | GFLOP/s | of fp32 matmul peak | peak MB | after loading, MB (to"
             " transformers) | loss after 40 steps |", "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for name, row in found.items():
        lines.append(
            f"| {name} | {row['tokens_per_second']:.0f} | {row['tokens_per_second'] / best:.2f} | {row['gflops']:.0f} |"
            f" {row['share_of_peak']:.0%} | {row['peak_mb']:.0f} | {row['after_loading_mb']:.0f}"
            f" ({row['after_loading_mb'] / memory:.2f}) | {row.get('loss', float('nan')):.4f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--only", nargs="*", default=[*CONTENDERS, *RECURRENT])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--learn", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(worker(options.worker, options.steps, options.learn)))
        return
    found = in_turn(options.only, options.rounds, options.steps)
    print(json.dumps(found, indent=2) if options.json else table(found))


if __name__ == "__main__":
    main()
