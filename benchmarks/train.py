"""How fast is a training step, and what memory and loss does it cost, beside nanoGPT's model and transformers' Llama?

    python benchmarks/train.py [--shapes 5.8M 124M] [--threads 1 2] [--rounds 5] [--busy] [--only NAME ...] [--json]

Every system is measured at its best: in float32 and, where the processor multiplies bfloat16, under bfloat16 autocast;
eager and (`compiled`) with torch.compile; all with the allocator settings of `nextword train`. Each runs in a process
of its own, in turn, round after round; medians are printed. nanoGPT's model is restated in plain torch (LayerNorm,
GELU, learned positions, tied head); `torch.nn` is the same recurrent model made of torch's own modules, trained alike.

tokens/s   of whole steps: forward, backward, gradients clipped at 1, AdamW
ratio      to the best peer of the same precision, shape and threads
of matmul  the model's matrix products (6 FLOPs a weight and token) and causal attention, over the float32 matrix
           product of 2,048 x 2,048 measured in the same process
peak MB    largest resident size (1e6 bytes) less what it was before the model was made
loss       mean of the last 10 of 200 steps on the same tokens (--losses): what a faster precision costs
load       system load per core while it ran; --busy adds a process that keeps a core busy
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any

LEARNING = 200  # steps of the comparison of losses
Step = Callable[[Any], float]  # takes a batch (rows, context + 1), returns the mean loss


@dataclass(frozen=True)
class Shape:
    """A transformer; `mlp_width` is that of a gated MLP, as large as an MLP of four times the width without gates."""

    layers: int
    width: int
    heads: int
    vocabulary: int
    rows: int
    context: int
    mlp_width: int

    @property
    def parameters(self) -> int:
        """Those that multiply: the head's are the embedding's."""
        return self.layers * (4 * self.width**2 + 3 * self.width * self.mlp_width) + self.vocabulary * self.width

    @property
    def flops(self) -> int:
        """A token's, forward and backward, half of the attention being masked."""
        return 6 * self.parameters + 6 * self.layers * self.width * self.context


SHAPES = {
    "5.8M": Shape(6, 256, 4, 4096, 16, 256, 688),
    "124M": Shape(12, 768, 12, 50304, 4, 512, 2048),
}
RECURRENT = ("lstm", "gru", "rnn")
PARAMETERS, VOCABULARY, CONTEXT, ROWS = 5.8e6, 4096, 256, 8  # of the recurrent models
PEERS = ("nanoGPT", "nanoGPT compiled", "transformers", "transformers compiled")
SYSTEMS = ("nextword", *PEERS, *(f"{who} {kind}" for kind in RECURRENT for who in ("nextword", "torch.nn")))


def tokens(vocabulary: int, rows: int, context: int, number: int = 0) -> Any:
    """Batch `number` of a text in which each token is followed by one of 64 others, by Zipf's law: 3.4 nats a token."""
    import torch

    generator = torch.Generator().manual_seed(0)
    followers = torch.randint(0, vocabulary, (vocabulary, 64), generator=generator)
    generator.manual_seed(number + 1)
    choices = torch.multinomial(1 / torch.arange(1.0, 65), rows * context, True, generator=generator)
    text = [torch.randint(0, vocabulary, (rows,), generator=generator)]
    for chosen in choices.view(context, rows):
        text.append(followers[text[-1], chosen])
    return torch.stack(text, 1)


# ---- nextword


def nextword_step(spec: Any, rows: int, precision: str) -> Step:
    """A step of the trainer: its own model, loss, optimizer and clipping."""
    import torch

    from nextword.plan.run_config import ModelConfig, RunConfig, TrainConfig
    from nextword.train.learner import Learner
    from nextword.train.loss_module import Placed, new_model

    train = TrainConfig(
        steps=1, context=spec.context, batch_size=rows, micro_batch=rows, learning_rate=1e-3,
        dtype="amp" if precision == "bfloat16" else "fp32",
    )  # fmt: skip
    config = RunConfig(ModelConfig(spec=spec), train=train)
    learner = Learner(config, new_model(config), torch.device("cpu"))

    def step(batch: Any) -> float:
        placed = Placed(batch[:, :-1].contiguous(), batch[:, 1:].contiguous(), None)
        nats = learner.backward(placed, placed.inputs.numel())
        learner.clip()
        learner.update()
        return float(nats) / placed.inputs.numel()

    return step


def transformer_spec(shape: Shape) -> Any:
    from nextword.spec import ModelSpec

    return ModelSpec(
        kind="transformer", vocabulary=shape.vocabulary, width=shape.width, layers=shape.layers, context=shape.context,
        heads=shape.heads, kv_heads=shape.heads, head_width=shape.width // shape.heads, mlp_width=shape.mlp_width,
    )  # fmt: skip


def recurrent_spec(kind: str) -> Any:
    from nextword.plan.shape_search import recurrent_for

    return recurrent_for(PARAMETERS, kind, VOCABULARY, CONTEXT)  # type: ignore[arg-type]


# ---- peers


def plain_step(model: Any, logits: Callable[[Any], Any], precision: str) -> Step:
    """A step as the peers' own training scripts do it."""
    import torch
    import torch.nn.functional as F

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    def step(batch: Any) -> float:
        inputs, targets = batch[:, :-1].contiguous(), batch[:, 1:].contiguous()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            loss = F.cross_entropy(logits(inputs).flatten(0, 1), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


def nanogpt(shape: Shape) -> Any:
    """GPT-2's layout with nanoGPT's settings: no biases, tied head, flash attention."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    width = shape.width

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
            self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
            self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

        def forward(self, x: Any) -> Any:
            rows, length, _ = x.shape
            heads = (
                part.view(rows, length, shape.heads, -1).transpose(1, 2)
                for part in self.qkv(self.first(x)).split(width, 2)
            )
            mixed = F.scaled_dot_product_attention(*heads, is_causal=True)
            x = x + self.out(mixed.transpose(1, 2).contiguous().view(rows, length, width))
            return x + self.down(F.gelu(self.up(self.second(x))))

    class GPT(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.places = nn.Embedding(shape.vocabulary, width), nn.Embedding(shape.context, width)
            self.blocks = nn.ModuleList(Block() for _ in range(shape.layers))
            self.norm, self.head = nn.LayerNorm(width, bias=False), nn.Linear(width, shape.vocabulary, bias=False)
            for parameter in self.parameters():
                if parameter.ndim == 2:
                    nn.init.normal_(parameter, std=0.02)
            self.head.weight = self.tokens.weight

        def forward(self, x: Any) -> Any:
            x = self.tokens(x) + self.places(torch.arange(x.shape[1]))
            for block in self.blocks:
                x = block(x)
            return self.head(self.norm(x))

    return GPT()


def llama(shape: Shape) -> Any:
    """transformers' Llama as a function of ids."""
    from torch import nn
    from transformers import LlamaConfig, LlamaForCausalLM

    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = LlamaForCausalLM(LlamaConfig(
                vocab_size=shape.vocabulary, hidden_size=shape.width, intermediate_size=shape.mlp_width,
                num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.heads,
                max_position_embeddings=shape.context, tie_word_embeddings=True, use_cache=False,
            ))  # fmt: skip

        def forward(self, x: Any) -> Any:
            return self.model(x).logits

    return Logits()


def torch_recurrent(spec: Any) -> Any:
    """torch's own modules, in the shape of nextword's."""
    from torch import nn

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens = nn.Embedding(spec.vocabulary, spec.width)
            self.cells = getattr(nn, spec.kind.upper())(spec.width, spec.width, spec.layers, batch_first=True)
            self.head = nn.Linear(spec.width, spec.vocabulary, bias=spec.head_bias)
            if spec.tied:
                self.head.weight = self.tokens.weight

        def forward(self, x: Any) -> Any:
            return self.head(self.cells(self.tokens(x))[0])

    return Network()


# ---- one process


@dataclass(frozen=True)
class Work:
    """What a process measures; `steps` are timed, or as many losses taken with `learn`."""

    system: str
    shape: str
    precision: str
    threads: int
    steps: int
    learn: bool = False

    def build(self) -> tuple[Step, float, tuple[int, int, int]]:
        """The step, FLOPs a token, vocabulary, rows and context of a batch."""
        import torch

        torch.manual_seed(0)
        who, *rest = self.system.split()
        if rest and rest[-1] in RECURRENT:
            from nextword.plan import flops

            spec = recurrent_spec(rest[-1])
            if who == "nextword":
                step = nextword_step(spec, ROWS, self.precision)
            else:
                model = torch_recurrent(spec)
                step = plain_step(model, model, self.precision)
            return step, flops(spec).per_token, (VOCABULARY, ROWS, CONTEXT)
        shape = SHAPES[self.shape]
        if who == "nextword":
            step = nextword_step(transformer_spec(shape), shape.rows, self.precision)
        else:
            model = (nanogpt if who == "nanoGPT" else llama)(shape)
            logits = torch.compile(model) if rest else model
            step = plain_step(model, logits, self.precision)
        return step, shape.flops, (shape.vocabulary, shape.rows, shape.context)


def worker(work: Work) -> dict[str, float]:
    """Run in a process of its own."""
    import torch

    from nextword import native
    from nextword.train.memory import keep_freed_memory

    if work.system.startswith("transformers"):
        from transformers import LlamaForCausalLM  # noqa: F401 - its import is not the step's memory
    torch.set_num_threads(work.threads)
    native.set_threads(work.threads)
    keep_freed_memory()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step, flops, size = work.build()
    if work.learn:
        losses = [step(tokens(*size, number)) for number in range(LEARNING)]
        return {"loss": sum(losses[-10:]) / 10}
    batch, count = tokens(*size), size[1] * size[2]
    for _ in range(3):
        step(batch)
    seconds = statistics.median(_timed(lambda: step(batch)) for _ in range(work.steps))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    left = torch.randn(2048, 2048)
    matmul = min(_timed(lambda: left @ left) for _ in range(8))
    return {
        "tokens_per_second": count / seconds,
        "of_matmul": count * flops / seconds / (2 * 2048**3 / matmul),
        "peak_mb": (peak - before) * 1024 / 1e6,
        "load": os.getloadavg()[0] / (os.cpu_count() or 1),
    }


def _timed(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


# ---- all of them in turn


def in_process(work: Work) -> dict[str, float] | None:
    """The figures, or None where the system does not run here."""
    command = [sys.executable, __file__, "--worker", json.dumps(vars(work))]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        print(f"{work.system} left out: {(done.stderr.strip().splitlines() or ['?'])[-1]}", file=sys.stderr)
        return None
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def rows_of(options: argparse.Namespace) -> Iterator[Work]:
    """Everything to measure, in turn."""
    recurrent = [name for name in options.only if name.split()[-1] in RECURRENT]
    transformers = [name for name in options.only if name not in recurrent]
    for threads in options.threads:
        for shape, precision, system in product(options.shapes, options.precisions, transformers):
            yield Work(system, shape, precision, threads, options.steps)
        for system in recurrent:
            yield Work(system, "5.8M", "float32", threads, options.steps)


def measure(options: argparse.Namespace) -> dict[Work, dict[str, float]]:
    """Medians over the rounds."""
    found: dict[Work, list[dict[str, float]]] = defaultdict(list)
    works = list(rows_of(options))
    for number in range(options.rounds):
        for work in list(works):
            figures = in_process(work)
            if figures is None:
                works.remove(work)
                continue
            found[work].append(figures)
            rate = figures["tokens_per_second"]
            print(f"round {number + 1}: {label(work)}: {rate:.0f} tokens/s", file=sys.stderr, flush=True)
    medians = {
        work: {key: statistics.median(one[key] for one in all_) for key in all_[0]} for work, all_ in found.items()
    }
    for work in [one for one in medians if options.losses and one.shape == "5.8M"]:
        medians[work] |= in_process(Work(**{**vars(work), "learn": True})) or {}
    return medians


def label(work: Work) -> str:
    return f"{work.system}, {work.precision}, {work.shape}, {work.threads} thread{'s' * (work.threads > 1)}"


def best_peer(work: Work, found: dict[Work, dict[str, float]]) -> float:
    """tokens/s of the best peer for the same work, or NaN."""
    kind = work.system.split()[-1] if work.system.split()[-1] in RECURRENT else ""
    peers = [f"torch.nn {kind}"] if kind else list(PEERS)
    same = [
        row["tokens_per_second"]
        for other, row in found.items()
        if other.system in peers
        and (other.shape, other.precision, other.threads) == (work.shape, work.precision, work.threads)
    ]
    return max(same, default=float("nan"))


def table(found: dict[Work, dict[str, float]]) -> str:
    """Markdown."""
    lines = ["| system | tokens/s | ratio | of matmul | peak MB | loss | load |", "|---|---|---|---|---|---|---|"]
    for work, row in found.items():
        rate = row["tokens_per_second"]
        loss = f"{row['loss']:.4f}" if "loss" in row else ""
        lines.append(
            f"| {label(work)} | {rate:,.0f} | {rate / best_peer(work, found):.2f} | {row['of_matmul']:.0%} |"
            f" {row['peak_mb']:,.0f} | {loss} | {row['load']:.1f} |"
        )
    return "\n".join(lines)


@contextmanager
def busy_process(wanted: bool) -> Iterator[None]:
    """One process that keeps a core busy."""
    if not wanted:
        yield
        return
    neighbour = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        neighbour.kill()
        neighbour.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=[*SHAPES])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--precisions", nargs="+", choices=("float32", "bfloat16"), help="default: what is fast here")
    parser.add_argument("--only", nargs="+", choices=SYSTEMS, default=[*SYSTEMS], metavar="SYSTEM")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--losses", action="store_true", help=f"also train {LEARNING} steps of each 5.8M model")
    parser.add_argument("--busy", action="store_true", help="beside a process that keeps a core busy")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(worker(Work(**json.loads(options.worker)))))
        return
    if not options.precisions:
        import torch

        from nextword.train.timing import amp_is_faster

        options.precisions = ["float32", *(["bfloat16"] if amp_is_faster(torch.device("cpu")) else [])]
    with busy_process(options.busy):
        found = measure(options)
    print(json.dumps([vars(work) | row for work, row in found.items()], indent=2) if options.json else table(found))


if __name__ == "__main__":
    main()
