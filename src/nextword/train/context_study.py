"""A study of how much context each kind of model uses, with equal training.

Every kind gets the same steps on the same rows, three learning rates and three seeds. The rate is chosen on one half
of the held-out text, and everything reported is measured on the other. Intervals are 95%, over seeds and text.
"""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..base import UsageError
from ..base.units import format_seconds
from ..data import Dataset
from ..plan import RunConfig, cache_bytes, parameters
from ..spec import ModelKind, ModelSpec
from .context_results import RATES, KindResult, Mean, Plan, Study, TaskResult
from .context_tasks import WIDTHS, smallest_width, solve, step_seconds, study_config, task_spec, width_spec
from .estimates import LEVEL, Estimate, Values, crossed, in_stretches
from .planning import recurrent_like
from .run import train_run
from .threads import restored_threads
from .timing import time_steps

KINDS: tuple[ModelKind, ...] = ("transformer", "lstm", "gru", "rnn")
SIZES: dict[str, tuple[int, ...]] = {"copy": (10, 30, 60), "recall": (4, 8, 16)}
PAIRS = (2, 4, 8)  # in the study of widths
SHARES = {"text": 0.5, "tasks": 0.4, "speed": 0.1}  # of the time
FEWEST_STEPS = 10  # fewer are an error
_ENOUGH_STEPS = 300  # per task; larger sizes are dropped to reach it
_MEASURING = 0.3  # at most this share of the text's time
_ROUNDS = 5  # timing rounds
_AT_ONCE = 4096  # tokens
_ROWS = 8  # per step on the text
_COUNTED = 4 << 20  # training tokens counted for frequencies


@restored_threads()
def study(
    data: Dataset, seconds: float, context: int = 256, count: float = 600e3, kinds: Sequence[ModelKind] = KINDS,
    sizes: dict[str, tuple[int, ...]] | None = None, seed: int = 0, log: Callable[[str], None] = print,
    widths: bool = False, plan: Plan | None = None,
) -> Study:  # fmt: skip
    """Train every kind on the same rows for about `seconds` in all, and measure what each remembers.

    `widths` doubles the time, to find the width each kind needs to recall 2, 4 and 8 pairs. A `plan` replaces the one
    made from timings; `seconds` and `sizes` are then ignored. Raises UsageError for too little text or time.
    """
    if data.val.tokens < 4 * context + 2:
        raise UsageError(
            f"{data.val.tokens:,} tokens are held out; contexts of {context} need {4 * context + 2}. Give more text"
        )
    runs = {kind: _run(kind, data, context, count) for kind in kinds}
    plan = plan or _plan(runs, data, seconds, sizes or SIZES, widths, log)
    seeds = tuple(range(seed, seed + plan.seeds))
    results, losses = [], {}
    for kind, run in runs.items():
        log(f"{kind}: {parameters(run.spec).total:,} parameters")
        run = run.with_train(steps=plan.text_steps, warmup_steps=max(1, plan.text_steps // 20))
        run = run.with_run(threads=plan.threads, evaluate_tokens=context)
        rate, models = _best(run, data, plan.rates, seeds, log)
        tasks = tuple(
            solve(kind, task, size, plan.task_steps, seeds, plan.rates)
            for task in plan.sizes
            for size in plan.sizes[task]
        )
        result, losses[kind] = _measure(models, rate, run, data, plan, tasks)
        results.append(result)
    recall = tuple(
        smallest_width(kind, pairs, plan.width_steps, plan.rates) for kind in kinds for pairs in PAIRS if widths
    )
    tokens = plan.text_steps * _ROWS * context
    return Study(context, tokens, plan, plan.rates, seeds, 1 - LEVEL, tuple(results), behind_the_best(losses), recall)


def behind_the_best(losses: dict[ModelKind, Values]) -> dict[str, Estimate]:
    """Each kind's excess loss over the lowest, with simultaneous intervals (Bonferroni)."""
    best = min(losses, key=lambda kind: float(losses[kind].mean()))
    level = LEVEL / max(1, math.comb(len(losses), 2))
    return {kind: crossed(losses[kind] - losses[best], level) for kind in losses if kind != best}


def _run(kind: ModelKind, data: Dataset, context: int, count: float) -> RunConfig:
    from ..plan import shape_for

    spec = shape_for(count, vocabulary=data.vocabulary, context=context)
    spec = spec if kind == "transformer" else recurrent_like(spec, kind, "params")
    return study_config(spec, context, _ROWS, steps=1, learning_rate=RATES[0], warmup_steps=1, on_loss_spike="skip")


# ---- how the time is split


def _plan(
    runs: dict[ModelKind, RunConfig], data: Dataset, seconds: float, sizes: dict[str, tuple[int, ...]], widths: bool,
    log: Callable[[str], None],
) -> Plan:  # fmt: skip
    """Time some steps of everything, and divide the time."""
    times = {kind: time_steps(run, torch.device("cpu"), seconds=min(3.0, seconds / 40)) for kind, run in runs.items()}
    threads = statistics.mode(timed.threads for timed in times.values())
    torch.set_num_threads(threads)
    a_step = sum(timed.step(runs[kind].train) for kind, timed in times.items())
    context = next(iter(runs.values())).train.context
    shape = _ROWS * context, context, data.val.tokens // 2
    text_steps, test_tokens = text_plan(seconds * SHARES["text"], a_step, *shape)
    if text_steps < FEWEST_STEPS:
        needed = seconds
        while text_plan(needed * SHARES["text"], a_step, *shape)[0] < FEWEST_STEPS:
            needed *= 1.2
        raise UsageError(
            f"{format_seconds(seconds)} is too little time: {len(runs)} kinds x {len(RATES)} rates x 3 seeds get"
            f" {text_steps} steps each, and need at least {FEWEST_STEPS}. Give {format_seconds(needed)},"
            " fewer --kinds or a smaller --context"
        )
    costs = {
        task: [sum(step_seconds(task_spec(kind, task, size), task, size) for kind in runs) for size in some]
        for task, some in sizes.items()
    }
    kept, task_steps = task_plan(seconds * SHARES["tasks"], sizes, costs)
    width_steps = 0
    if widths:
        together = sum(
            step_seconds(width_spec(kind, n, width), "recall", n) for kind in runs for n in PAIRS for width in WIDTHS
        )
        width_steps = max(1, int(seconds / (together * len(RATES))))
    plan = Plan(text_steps, task_steps, kept, test_tokens, width_steps, seconds * SHARES["speed"], threads)
    log(_split(plan, len(runs), sizes))
    return plan


def text_plan(seconds: float, a_step: float, batch_tokens: int, context: int, val_tokens: int) -> tuple[int, int]:
    """Steps of each run on text, and held-out tokens to measure, where a step of all kinds takes `a_step` seconds.

    Measuring a token is assumed to cost a third of training on it; it takes at most `_MEASURING` of the time.
    """
    passes = 3 * (2 + 2 * len(visible_sizes(context)))  # seeds; by position, carried, visible context
    a_token = passes * a_step / batch_tokens / 3
    tokens = min(val_tokens, max(2 * context + 1, int(_MEASURING * seconds / a_token)))
    return max(0, int((seconds - tokens * a_token) / (a_step * len(RATES) * 3))), tokens


def task_plan(
    seconds: float, sizes: dict[str, tuple[int, ...]], costs: dict[str, list[float]]
) -> tuple[dict[str, tuple[int, ...]], int]:
    """As many of the sizes, smallest first, as leave enough steps for each, and the steps.

    `costs`: seconds per step of all kinds, by task and size.
    """
    for count in range(max(map(len, sizes.values())), 0, -1):
        together = sum(sum(seconds_of[:count]) for seconds_of in costs.values()) * len(RATES) * 3
        steps = max(1, int(seconds / together))
        if steps >= _ENOUGH_STEPS or count == 1:
            break
    return {task: some[:count] for task, some in sizes.items()}, steps


def _split(plan: Plan, kinds: int, wanted: dict[str, tuple[int, ...]]) -> str:
    tasks = ", ".join(f"{task} {size}" for task, some in plan.sizes.items() for size in some)
    left_out = ", ".join(f"{task} {size}" for task in wanted for size in wanted[task][len(plan.sizes[task]) :])
    text, made_up, speed = (f"{share:.0%}" for share in SHARES.values())
    return (
        f"{kinds} kinds x {len(RATES)} rates x 3 seeds. {text} of the time: {plan.text_steps:,} steps of each on the"
        f" text, measured on {plan.test_tokens:,} held-out tokens; {made_up}: {plan.task_steps:,} steps of each on"
        f" {tasks}{f' (no time for {left_out})' if left_out else ''}; {speed}: speed"
    )


# ---- training on text


def _best(
    run: RunConfig, data: Dataset, rates: Sequence[float], seeds: Sequence[int], log: Callable[[str], None]
) -> tuple[float, list[Any]]:
    """The rate with the lowest mean loss on the first half of the held-out text, and its models, one per seed."""
    windows = _windows(data, 0, data.val.tokens // 2, run.train.context, 32)
    models, losses = {}, {}
    for rate in rates:
        models[rate] = [_train(run.with_train(learning_rate=rate, seed=seed), data) for seed in seeds]
        losses[rate] = statistics.fmean(float(token_losses(model, windows).mean()) for model in models[rate])
    best = min(losses, key=losses.__getitem__)
    by_rate = ", ".join(f"{rate:g}: {loss:.3f}" for rate, loss in losses.items())
    log(f"{run.spec.kind}: learning rate {best:g} (held-out loss by rate: {by_rate})")
    return best, models[best]


def _train(run: RunConfig, data: Dataset) -> Any:
    with tempfile.TemporaryDirectory(prefix="nextword-context-") as folder:
        return train_run(run, data, Path(folder)).model


# ---- held-out text


def _measure(
    models: list[Any], rate: float, run: RunConfig, data: Dataset, plan: Plan, tasks: tuple[TaskResult, ...]
) -> tuple[KindResult, Values]:
    """The result, and losses (seeds, spans) to compare with other kinds'."""
    spec, context = run.spec, run.train.context
    start = data.val.tokens - plan.test_tokens
    windows = _windows(data, start, plan.test_tokens, context)
    losses = np.stack([token_losses(model, windows).numpy() for model in models])  # (seeds, windows, context)
    guessed = _frequency_losses(data)[windows[:, 1:]].numpy()
    visible, beyond = _by_visible(models, data, start, context)
    carried = None if spec.kind == "transformer" else crossed(in_stretches(np.stack(
        [(token_losses_carried(model, windows) - torch.from_numpy(own)).mean(1).numpy()
         for model, own in zip(models, losses, strict=True)])))  # fmt: skip
    speeds, ratio = _throughput(run, plan.speed_seconds) if plan.speed_seconds else ({}, None)
    stretches = in_stretches(losses.mean(2))
    result = KindResult(
        kind=spec.kind, parameters=parameters(spec).total, width=spec.width, rate=rate, loss=crossed(stretches),
        by_seed=tuple(float(loss) for loss in losses.mean((1, 2))),
        over_frequencies=crossed(in_stretches((losses - guessed).mean(2))), carrying=carried,
        by_position=_by_position(losses), by_visible=visible, gain_beyond=beyond, useful=useful_distance(beyond),
        tasks=tasks, tokens_per_second=speeds, two_threads=ratio,
        state_bytes={distance: _state_bytes(spec, distance) for distance in (context, 8 * context, 64 * context)},
    )  # fmt: skip
    return result, stretches


def _windows(data: Dataset, start: int, tokens: int, context: int, most: int | None = None) -> Tensor:
    """Held-out tokens from `start` in consecutive windows; at most `most` of them, evenly spaced."""
    count = (tokens - 1) // context
    chosen = np.unique(np.linspace(0, count - 1, min(count, most or count)).astype(int))
    return torch.from_numpy(np.stack([data.val.read(start + int(n) * context, context + 1) for n in chosen]))


@torch.no_grad()
def token_losses(model: Any, windows: Tensor, state: Any = None) -> Tensor:
    """−ln p of every target of `windows` (rows, context + 1), float32 (rows, context)."""
    losses, rows_at_once = [], max(1, _AT_ONCE // windows.shape[1])
    carried = {} if state is None else {"state": state}
    for start in range(0, len(windows), rows_at_once):
        rows = windows[start : start + rows_at_once]
        logits = model.logits(model.hidden(rows[:, :-1].contiguous(), **carried))
        targets = rows[:, 1:].flatten()
        losses.append(F.cross_entropy(logits.flatten(0, 1), targets, reduction="none").view(len(rows), -1))
    return torch.cat(losses)


def token_losses_carried(model: Any, windows: Tensor) -> Tensor:
    """As `token_losses`, with the state carried from each window to the next."""
    state = model.new_state(1)
    return torch.cat([token_losses(model, window[None], state) for window in windows])


def _frequency_losses(data: Dataset) -> Tensor:
    """−ln of each token's frequency in the training text, with add-one smoothing."""
    tokens = data.train.read(0, min(data.train.tokens, _COUNTED))
    counts = np.bincount(tokens, minlength=data.vocabulary) + 1.0
    return torch.from_numpy(-np.log(counts / counts.sum()))


def _by_position(losses: Values) -> tuple[Mean, ...]:
    """Means over 1, 2, 3–4, 5–8, … tokens seen."""
    means, start, end = [], 0, 1
    while start < losses.shape[2]:
        means.append(Mean(end, crossed(in_stretches(losses[:, :, start:end].mean(2)))))
        start, end = end, min(2 * end, losses.shape[2])
    return tuple(means)


def visible_sizes(context: int) -> list[int]:
    """1, 2, 4, … up to half the context."""
    return [2**power for power in range(int(math.log2(context)))]


def _by_visible(
    models: list[Any], data: Dataset, start: int, context: int
) -> tuple[tuple[Mean, ...], tuple[Mean, ...]]:
    """Loss of tokens given only the last n to 2n - 1 (as Khandelwal et al. 2018), and the paired gain of the most."""
    sizes = visible_sizes(context)
    tokens = torch.from_numpy(data.val.read(start, data.val.tokens - start))
    last = {size: np.stack([losses_seeing(model, tokens, size, sizes[-1]) for model in models]) for size in sizes}
    visible = tuple(Mean(size, crossed(in_stretches(last[size]))) for size in sizes)
    gains = tuple(Mean(size, crossed(in_stretches(last[size] - last[sizes[-1]]))) for size in sizes[:-1])
    return visible, gains


def losses_seeing(model: Any, tokens: Tensor, size: int, largest: int) -> Values:
    """Loss of each token from position `largest` on, given the last `size` to 2 `size` - 1 tokens.

    Windows of 2 `size` tokens, with the second half scored, so that any size scores the same tokens, each once.
    `size` divides `largest`.
    """
    scored = (len(tokens) - largest) // largest * largest
    windows = tokens[largest - size : largest + scored].unfold(0, 2 * size, size)
    return token_losses(model, windows)[:, size - 1 :].flatten().double().numpy()


def useful_distance(beyond: Sequence[Mean]) -> int:
    """The largest distance beyond which tokens are useful, as for every smaller distance; or 0.

    Tested from the shortest until one is not significant, so that no correction is needed (fixed sequence).
    """
    useful = 0
    for gain in beyond:
        if gain.estimate.low <= 0:
            break
        useful = gain.at
    return useful


def _state_bytes(spec: ModelSpec, distance: int) -> float:
    return cache_bytes(replace(spec, context=max(spec.context, distance)), 1, distance, "fp32").value


def _throughput(run: RunConfig, seconds: float) -> tuple[dict[str, Estimate], Estimate]:
    """Training tokens per second on one row, by threads and length, and the speedup of a second thread.

    Measured in rounds, so that intermittent load widens the intervals.
    """
    lengths = (run.train.context // 2, 2 * run.train.context)
    rounds: dict[str, list[float]] = {f"{threads} x {length}": [] for threads in (1, 2) for length in lengths}
    for _ in range(_ROUNDS):
        for length in lengths:
            spec = replace(run.spec, context=max(length, run.spec.context))
            row = study_config(spec, length, 1, steps=1, learning_rate=RATES[0])
            for threads in (1, 2):
                timed = time_steps(row, torch.device("cpu"), threads, seconds=seconds / len(rounds) / _ROUNDS)
                rounds[f"{threads} x {length}"].append(length / timed.step(row.train))
    ratios = [statistics.fmean(rounds[f"2 x {n}"][r] / rounds[f"1 x {n}"][r] for n in lengths) for r in range(_ROUNDS)]
    return {name: crossed([values]) for name, values in rounds.items()}, crossed([ratios])
