"""Two synthetic tasks that need memory: copying over a delay, and associative recall.

Every kind of model gets the same steps on the same examples. The learning rate is chosen on validation examples;
results are measured on test examples, over several seeds.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..data import IGNORED
from ..plan import RunConfig, cache_bytes, parameters
from ..plan.run_config import ModelConfig, RunSettings, TrainConfig
from ..spec import ModelKind, ModelSpec
from .context_results import ABLE, RATES, TaskResult, WidthResult
from .estimates import Estimate, Values, crossed
from .learner import Learner
from .loss_module import Placed, new_model
from .planning import recurrent_like
from .schedules import learning_rate

Examples = tuple[Tensor, Tensor]  # inputs and targets, (rows, time); targets IGNORED except for answers
_SYMBOLS, _COPIED, _ROWS = 8, 10, 32
_WIDTH, _LAYERS = 64, 2
WIDTHS = (16, 32, 64, 128, 256)
_CHECKED = 256  # rows of validation and of test examples
_VALIDATION, _TEST = 1 << 40, (1 << 40) + 1  # seeds not used in training


def copy_batch(delay: int, generator: torch.Generator, rows: int = _ROWS) -> Examples:
    """Ten symbols out of eight, a delay of blanks, a signal; then the ten as answers (Arjovsky et al. 2016).

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


def recall_batch(pairs: int, generator: torch.Generator, rows: int = _ROWS) -> Examples:
    """`pairs` keys, each followed by its value; then the shuffled keys as queries (Arora et al. 2023)."""
    keys = torch.stack([torch.randperm(2 * pairs, generator=generator)[:pairs] for _ in range(rows)])
    values = torch.randint(_SYMBOLS, (rows, pairs), generator=generator) + 2 * pairs
    shown = torch.stack((keys, values), 2).flatten(1)
    order = torch.stack([torch.randperm(pairs, generator=generator) for _ in range(rows)])
    asked, answers = keys.gather(1, order), values.gather(1, order)
    inputs = torch.cat((shown, asked), 1)
    targets = torch.full_like(inputs, IGNORED)
    targets[:, 2 * pairs :] = answers
    return inputs, targets


TASKS: dict[str, tuple[Callable[..., Examples], Callable[[int], int], Callable[[int], int]]] = {
    # name -> batch, vocabulary and length by size
    "copy": (copy_batch, lambda size: _SYMBOLS + 2, lambda size: size + 2 * _COPIED),
    "recall": (recall_batch, lambda size: 2 * size + _SYMBOLS, lambda size: 3 * size),
}


def task_spec(kind: ModelKind, task: str, size: int, width: int = _WIDTH) -> ModelSpec:
    """A small transformer, or a recurrent net with as many parameters."""
    _, vocabulary, length = TASKS[task]
    spec = ModelSpec(
        kind="transformer", vocabulary=vocabulary(size), width=width, layers=_LAYERS, context=max(8, length(size)),
        tied=False, heads=4, kv_heads=4, head_width=width // 4, mlp_width=width * 5 // 2,
    )  # fmt: skip
    return spec if kind == "transformer" else replace(recurrent_like(spec, kind, "params"), tied=True)


def smallest_width(
    kind: ModelKind, pairs: int, steps: int, rates: Sequence[float] = RATES, seed: int = 0
) -> WidthResult:
    """Widths doubled from 16 to 256 until associative recall is 95% correct (Zoology, 2312.04927, section 4).

    A width succeeds if the rate that is best in validation reaches 95% test accuracy, interval included. One that
    fails may need more steps.
    """
    best: tuple[float, Estimate] | None = None
    for width in WIDTHS:
        spec = width_spec(kind, pairs, width)
        models = [_train(spec, "recall", pairs, rate, steps, seed) for rate in rates]
        losses = [float(_answers(model, "recall", pairs, _VALIDATION)[1].mean()) for model in models]
        chosen = losses.index(min(losses))
        right = crossed(_answers(models[chosen], "recall", pairs, _TEST)[0])
        if right.low >= ABLE:
            state = cache_bytes(spec, 1, TASKS["recall"][2](pairs), "fp32").value
            return WidthResult(kind, pairs, spec.width, parameters(spec).total, int(state), right, steps)
        if best is None or losses[chosen] < best[0]:
            best = losses[chosen], right
    assert best is not None
    return WidthResult(kind, pairs, None, None, None, best[1], steps)


def width_spec(kind: ModelKind, pairs: int, width: int) -> ModelSpec:
    """A model of any kind with `width`, for associative recall."""
    spec = task_spec("transformer", "recall", pairs, width)
    if kind == "transformer":
        return spec
    return ModelSpec(kind=kind, vocabulary=spec.vocabulary, width=width, layers=_LAYERS, context=spec.context)


def solve(
    kind: ModelKind, task: str, size: int, steps: int, seeds: Sequence[int] = (0, 1, 2), rates: Sequence[float] = RATES
) -> TaskResult:
    """Train with each rate and each seed for `steps`; test the rate that is best in validation."""
    spec = task_spec(kind, task, size)
    models = {rate: [_train(spec, task, size, rate, steps, seed) for seed in seeds] for rate in rates}
    losses = {
        rate: statistics.fmean(float(_answers(model, task, size, _VALIDATION)[1].mean()) for model in of_rate)
        for rate, of_rate in models.items()
    }
    rate = min(losses, key=losses.__getitem__)
    tested = [_answers(model, task, size, _TEST) for model in models[rate]]
    by_seed = tuple(float(right.mean()) for right, _ in tested)
    accuracy, loss = (crossed([list(result[number][0]) for result in tested]) for number in (0, 1))
    guess = most_often(_COPIED if task == "copy" else size)
    return TaskResult(task, size, accuracy, by_seed, loss, math.log(_SYMBOLS), guess, rate, steps)


def most_often(shown: int) -> float:
    """Expected share of the most frequent of `shown` symbols out of eight: the accuracy without positions.

    P(no count above m) = shown! / 8^shown times the coefficient of x^shown in (Σ_{k <= m} x^k / k!)^8.
    """

    def below(most: int) -> float:
        series = np.polynomial.Polynomial([1 / math.factorial(k) for k in range(most + 1)]) ** _SYMBOLS
        return float(series.coef[shown]) * math.factorial(shown) / _SYMBOLS**shown if shown < len(series.coef) else 0.0

    return sum(1 - below(most) for most in range(shown)) / shown


def step_seconds(spec: ModelSpec, task: str, size: int) -> float:
    """Seconds per training step on this machine, without validation."""
    _train(spec, task, size, RATES[0], 1, 0)
    start = time.perf_counter()
    _train(spec, task, size, RATES[0], 3, 0)
    return (time.perf_counter() - start) / 3


def _train(spec: ModelSpec, task: str, size: int, rate: float, steps: int, seed: int) -> Any:
    """A model after `steps` batches; equal seeds get equal batches, for any kind and rate."""
    make_batch, context = TASKS[task][0], TASKS[task][2](size)
    warmup = min(20, max(1, steps // 10))
    config = study_config(
        spec, context, _ROWS, steps=steps, learning_rate=rate, warmup_steps=warmup, weight_decay=0.0, seed=seed
    )
    learner = Learner(config, new_model(config), torch.device("cpu"))
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        learner.set_learning_rate(learning_rate(config.train, step))
        batch = Placed(*make_batch(size, generator), None)
        learner.backward(batch, batch.counted)
        learner.clip()
        learner.update()
    return learner.model.eval()


def study_config(spec: ModelSpec, context: int, rows: int, **train: Any) -> RunConfig:
    """A run of the study: in float32 on the CPU, all rows of a step at once."""
    settings = TrainConfig(context=context, batch_size=rows, micro_batch=rows, schedule="cosine", dtype="fp32", **train)
    return RunConfig(ModelConfig(spec=spec), train=settings, run=RunSettings(device="cpu"))


@torch.no_grad()
def _answers(model: Any, task: str, size: int, seed: int) -> tuple[Values, Values]:
    """Accuracy and loss per answer on the examples of `seed`, (1, rows)."""
    inputs, targets = TASKS[task][0](size, torch.Generator().manual_seed(seed), _CHECKED)
    logits, asked = model(inputs), targets != IGNORED
    losses = F.cross_entropy(logits.transpose(1, 2), targets, ignore_index=IGNORED, reduction="none")
    count = asked.sum(1).double()
    right = ((logits.argmax(-1) == targets) & asked).sum(1).double() / count
    return right.numpy()[None], (losses.double().sum(1) / count).numpy()[None]
