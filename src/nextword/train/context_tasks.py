"""Two made-up tasks whose answers lie a known distance back: copying over a delay, and associative recall."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..plan import RunConfig, cache_bytes, parameters
from ..spec import Kind, ModelSpec
from .launch import recurrent_like
from .loss import IGNORED
from .module import new_model
from .optimizers import make_optimizer

Made = tuple[Tensor, Tensor]  # inputs and targets, (rows, time); targets IGNORED where nothing is asked
RATES = (3e-3, 1e-3)
_SYMBOLS, _COPIED, _ROWS = 8, 10, 32
_WIDTH, _LAYERS = 64, 2
_WIDTHS = (16, 32, 64, 128, 256)
ABLE = 0.95  # share of answers right


@dataclass(frozen=True)
class TaskResult:
    """Of one kind at one size: share of answers right, loss in nats an answer, that of the best memoryless guess."""

    task: str
    size: int
    accuracy: float
    loss: float
    baseline: float
    rate: float
    steps: int


@dataclass(frozen=True)
class WidthResult:
    """The narrowest of the widths tried that recalls `pairs` pairs, and what it has; None where none did."""

    kind: Kind
    pairs: int
    width: int | None
    parameters: int | None
    state_bytes: int | None  # float32, at the task's length
    best: float  # share of answers right at the width that was best


def copy_batch(delay: int, generator: torch.Generator, rows: int = _ROWS) -> Made:
    """Ten symbols of eight, a delay of blanks, a signal; then the ten symbols are asked for (Arjovsky et al. 2016).

    Without memory the loss over all delay + 20 steps is 10 ln 8 / (delay + 20); an answer's is ln 8.
    """
    blank, signal = _SYMBOLS, _SYMBOLS + 1
    symbols = torch.randint(_SYMBOLS, (rows, _COPIED), generator=generator)
    blanks = torch.full((rows, delay - 1), blank)
    ask = torch.full((rows, _COPIED), blank)
    inputs = torch.cat((symbols, blanks, torch.full((rows, 1), signal), ask), 1)
    targets = torch.full_like(inputs, IGNORED)
    targets[:, -_COPIED:] = symbols
    return inputs, targets


def recall_batch(pairs: int, generator: torch.Generator, rows: int = _ROWS) -> Made:
    """`pairs` keys, each followed by its value; then the keys, shuffled: what was their value? (Arora et al. 2023)"""
    keys = torch.stack([torch.randperm(2 * pairs, generator=generator)[:pairs] for _ in range(rows)])
    values = torch.randint(_SYMBOLS, (rows, pairs), generator=generator) + 2 * pairs
    shown = torch.stack((keys, values), 2).flatten(1)
    order = torch.stack([torch.randperm(pairs, generator=generator) for _ in range(rows)])
    asked, answers = keys.gather(1, order), values.gather(1, order)
    inputs = torch.cat((shown, asked), 1)
    targets = torch.full_like(inputs, IGNORED)
    targets[:, 2 * pairs :] = answers
    return inputs, targets


TASKS: dict[str, tuple[Callable[..., Made], Callable[[int], int], Callable[[int], int]]] = {
    # name -> batch, vocabulary and length by size
    "copy": (copy_batch, lambda size: _SYMBOLS + 2, lambda size: size + 2 * _COPIED),
    "recall": (recall_batch, lambda size: 2 * size + _SYMBOLS, lambda size: 3 * size),
}


def task_spec(kind: Kind, task: str, size: int, width: int = _WIDTH) -> ModelSpec:
    """A small transformer, or a recurrent net with as many parameters."""
    _, vocabulary, length = TASKS[task]
    spec = ModelSpec(
        kind="transformer", vocabulary=vocabulary(size), width=width, layers=_LAYERS, context=max(8, length(size)),
        tied=False, heads=4, kv_heads=4, head_width=width // 4, mlp_width=width * 5 // 2,
    )  # fmt: skip
    return spec if kind == "transformer" else replace(recurrent_like(spec, kind, "params"), tied=True)


def smallest_width(kind: Kind, pairs: int, seconds: float, seeds: int = 1) -> WidthResult:
    """Widths doubled from 16 to 256 until associative recall is 95% right (Zoology, 2312.04927, section 4).

    A width has `seconds` for each of the learning rates and seeds, and counts as able if any of them is: what a model
    of that width can hold is asked, not how surely it learns to.
    """
    best = 0.0
    for width in _WIDTHS:
        spec = task_spec("transformer", "recall", pairs, width)
        if kind != "transformer":
            spec = ModelSpec(kind=kind, vocabulary=spec.vocabulary, width=width, layers=_LAYERS, context=spec.context)
        for seed in range(seeds):
            for rate in RATES:
                best = max(best, _solve(kind, "recall", pairs, rate, seconds, seed, spec).accuracy)
                if best >= ABLE:
                    state = cache_bytes(spec, 1, TASKS["recall"][2](pairs), "fp32").value
                    return WidthResult(kind, pairs, spec.width, parameters(spec).total, int(state), best)
    return WidthResult(kind, pairs, None, None, None, best)


def solve(kind: Kind, task: str, size: int, seconds: float, seed: int = 0) -> TaskResult:
    """Train for `seconds`, shared among the learning rates, and keep the best on fresh examples."""
    results = [_solve(kind, task, size, rate, seconds / len(RATES), seed) for rate in RATES]
    return min(results, key=lambda each: each.loss)


def _solve(
    kind: Kind, task: str, size: int, rate: float, seconds: float, seed: int, spec: ModelSpec | None = None
) -> TaskResult:
    make = TASKS[task][0]
    run = RunConfig(
        model=spec or task_spec(kind, task, size), tokens=0, context=TASKS[task][2](size), batch=_ROWS,
        micro_batch=_ROWS, accumulation=1, steps=1, learning_rate=rate, final_learning_rate=rate / 10, warmup_steps=20,
        precision="fp32", weight_decay=0.0, seed=seed,
    )  # fmt: skip
    model = new_model(run)
    optimizer = make_optimizer(model, run)
    generator = torch.Generator().manual_seed(seed)
    began, steps = time.perf_counter(), 0
    while (done := (time.perf_counter() - began) / seconds) < 1 or steps < 2:
        for group in optimizer.param_groups:  # rises over 20 steps, then half a cosine over the time
            group["lr"] = rate * min(1.0, (steps + 1) / 20) * (0.55 + 0.45 * math.cos(math.pi * min(1.0, done)))
        inputs, targets = make(size, generator)
        loss = F.cross_entropy(model(inputs)[0].flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        steps += 1
    inputs, targets = make(size, torch.Generator().manual_seed(seed + 1), 256)
    with torch.no_grad():
        logits = model.eval()(inputs)[0]
    asked = targets != IGNORED
    right = (logits.argmax(-1) == targets)[asked].float().mean().item()
    answered = F.cross_entropy(logits[asked], targets[asked]).item()
    return TaskResult(task, size, right, answered, math.log(_SYMBOLS), rate, steps)


__all__ = [
    "RATES", "TASKS", "TaskResult", "WidthResult", "copy_batch", "recall_batch", "smallest_width", "solve", "task_spec",
]  # fmt: skip
