"""Where does each kind of model stop using what came before? Trained alike, measured on held-out text."""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..base import UsageError
from ..data import Dataset
from ..plan import RunConfig, cache_bytes, parameters
from ..spec import Kind, ModelSpec
from .context_tasks import TaskResult, WidthResult, smallest_width, solve
from .launch import recurrent_like
from .probe import time_steps
from .trainer import Options, Trainer

KINDS: tuple[Kind, ...] = ("transformer", "lstm", "gru", "rnn")
NOTHING = 0.01  # nats: what further context is worth at most, to be called of no use
_WINDOWS, _TARGETS = 96, 512  # of held-out text
_SHARES = {"text": 0.6, "tasks": 0.3, "speed": 0.1}  # of the time


@dataclass(frozen=True)
class Mean:
    """A mean over `count` cases with its standard error."""

    at: int  # positions up to it, or tokens seen
    mean: float
    error: float
    count: int


@dataclass(frozen=True)
class KindResult:
    """One kind of model. Losses in nats a token, bytes of float32 state a sequence."""

    kind: Kind
    parameters: int
    width: int
    loss: float
    carrying: float | None  # recurrent nets: what carrying the state from window to window changes
    by_position: tuple[Mean, ...]
    by_visible: tuple[Mean, ...]  # loss of one token, given only so many before it
    gain_beyond: tuple[Mean, ...]  # paired: what seeing the whole context is worth over seeing `at` tokens
    useful: int  # tokens from which on the rest is worth less than `NOTHING`, or cannot be told from it
    tasks: tuple[TaskResult, ...]
    state_bytes: dict[int, float]  # by distance
    tokens_per_second: dict[str, float]  # "threads x length" -> training, one row


@dataclass(frozen=True)
class Study:
    """All kinds on one text."""

    context: int
    tokens: int
    seed: int
    kinds: tuple[KindResult, ...]
    widths: tuple[WidthResult, ...] = ()

    def findings(self) -> list[str]:
        """What the numbers say, a sentence each."""
        return _findings(self)


def study(
    data: Dataset, seconds: float, context: int = 256, count: float = 600e3, kinds: Sequence[Kind] = KINDS,
    sizes: dict[str, tuple[int, ...]] | None = None, seed: int = 0, say: Callable[[str], None] = print,
    sweep: float = 0.0,
) -> Study:  # fmt: skip
    """Train every kind on the same rows for about `seconds` in all, and measure what each remembers.

    `sweep` seconds more are spent at most on how wide each kind must be to recall 2, 4 and 8 pairs.
    """
    if data.heldout.tokens < 2 * context:
        raise UsageError(
            f"{data.heldout.tokens:,} tokens are held out; contexts of {context} need {2 * context}. Give more text"
        )
    sizes = sizes or {"copy": (10, 30, 60), "recall": (4, 8, 16)}
    runs = {kind: _run(kind, data, context, count, seed) for kind in kinds}
    steps, threads = _steps(runs, seconds * _SHARES["text"], say)
    a_task = seconds * _SHARES["tasks"] / len(kinds) / sum(map(len, sizes.values()))
    found = []
    for kind, run in runs.items():
        say(f"{kind}: {parameters(run.model).total:,} parameters, {steps:,} steps")
        model = _train(replace(run, steps=steps, warmup_steps=max(1, steps // 20)), data, threads)
        say(f"{kind}: measuring")
        tasks = tuple(solve(kind, task, size, a_task, seed) for task, some in sizes.items() for size in some)
        found.append(_measure(model, run, data, context, tasks, seconds * _SHARES["speed"] / len(kinds)))
    widths = []
    for kind in kinds if sweep else ():
        say(f"{kind}: how wide to recall 2, 4 and 8 pairs")
        widths += [smallest_width(kind, pairs, sweep / (len(kinds) * 3 * 10)) for pairs in (2, 4, 8)]
    return Study(context, steps * runs[kinds[0]].batch * context, seed, tuple(found), tuple(widths))


def _run(kind: Kind, data: Dataset, context: int, count: float, seed: int) -> RunConfig:
    from ..plan import shape_for

    spec = shape_for(count, vocabulary=data.vocabulary, context=context)
    spec = spec if kind == "transformer" else recurrent_like(spec, kind, "params")
    return RunConfig(
        model=spec, tokens=0, context=context, batch=8, micro_batch=8, accumulation=1, steps=1, learning_rate=3e-3,
        final_learning_rate=3e-4, warmup_steps=1, precision="fp32", seed=seed,
    )  # fmt: skip


def _steps(runs: dict[Kind, RunConfig], seconds: float, say: Callable[[str], None]) -> tuple[int, int]:
    """As many steps for every kind as the slowest leaves time for, and the threads that suit most."""
    times = {kind: time_steps(run, torch.device("cpu"), seconds=min(3.0, seconds / 20)) for kind, run in runs.items()}
    for kind, each in times.items():
        say(f"{kind}: {runs[kind].batch * runs[kind].context / each.step(runs[kind]):,.0f} tokens/s")
    together = sum(each.step(runs[kind]) for kind, each in times.items())
    return max(2, int(seconds / together)), statistics.mode(each.threads for each in times.values())


def _train(run: RunConfig, data: Dataset, threads: int) -> Any:
    with tempfile.TemporaryDirectory(prefix="nextword-context-") as folder:
        options = Options(Path(folder), "cpu", threads, evaluate_tokens=run.context, guard="skip")
        return Trainer(run, data, options).train().model.eval()


# ---- held-out text


def _measure(
    model: Any, run: RunConfig, data: Dataset, context: int, tasks: tuple[TaskResult, ...], seconds: float
) -> KindResult:
    spec = run.model
    windows = _windows(data, context)
    losses = token_losses(model, windows)
    visible, beyond = _by_visible(model, data, context)
    carried = None if spec.kind == "transformer" else _carried(model, data, context)
    return KindResult(
        kind=spec.kind, parameters=parameters(spec).total, width=spec.width, loss=float(losses.mean()),
        carrying=carried, by_position=_by_position(losses), by_visible=visible, gain_beyond=beyond,
        useful=useful_distance(beyond, context), tasks=tasks,
        state_bytes={distance: _state_bytes(spec, distance) for distance in (context, 8 * context, 64 * context)},
        tokens_per_second=_throughput(run, seconds),
    )  # fmt: skip


def _windows(data: Dataset, context: int) -> Tensor:
    stream = data.heldout
    count = min(_WINDOWS, (stream.tokens - 1) // context)
    starts = np.arange(count) * ((stream.tokens - context - 1) // count)
    return torch.from_numpy(np.stack([stream.read(int(start), context + 1) for start in starts]))


@torch.no_grad()
def token_losses(model: Any, windows: Tensor, state: Any = None) -> Tensor:
    """−ln p of every target of `windows` (rows, context + 1), float32 (rows, context)."""
    found = []
    for start in range(0, len(windows), 16):
        rows = windows[start : start + 16]
        logits = model.logits(model.hidden(rows[:, :-1].contiguous(), state))
        found.append(F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="none").view(len(rows), -1))
    return torch.cat(found)


def _by_position(losses: Tensor) -> tuple[Mean, ...]:
    """Means over 1, 2, 3–4, 5–8, … tokens seen; errors over windows."""
    found, start, end = [], 0, 1
    while start < losses.shape[1]:
        found.append(_mean(end, losses[:, start:end].mean(1)))
        start, end = end, min(2 * end, losses.shape[1])
    return tuple(found)


def _mean(at: int, values: Tensor) -> Mean:
    return Mean(at, float(values.mean()), float(values.std() / math.sqrt(len(values))), len(values))


def _by_visible(model: Any, data: Dataset, context: int) -> tuple[tuple[Mean, ...], tuple[Mean, ...]]:
    """Loss of a token given only the last n (Khandelwal et al. 2018), and what the whole context adds, paired."""
    stream = data.heldout
    count = min(_TARGETS, stream.tokens - context)
    starts = np.arange(count) * ((stream.tokens - context - 1) // max(1, count))
    windows = torch.from_numpy(np.stack([stream.read(int(start), context + 1) for start in starts]))
    sizes = [2**power for power in range(int(math.log2(context)) + 1)]
    if sizes[-1] != context:
        sizes.append(context)
    last = {size: token_losses(model, windows[:, -size - 1 :])[:, -1] for size in sizes}
    visible = tuple(_mean(size, last[size]) for size in sizes)
    return visible, tuple(_mean(size, last[size] - last[context]) for size in sizes[:-1])


def useful_distance(beyond: Sequence[Mean], context: int) -> int:
    """The fewest tokens beyond which more are worth less than `NOTHING` nats, or less than can be told (two errors)."""
    for place, each in enumerate(beyond):
        if all(later.mean < max(NOTHING, 2 * later.error) for later in beyond[place:]):
            return each.at
    return context


@torch.no_grad()
def _carried(model: Any, data: Dataset, context: int) -> float:
    """Mean loss over windows that follow each other, with the state going along less with a fresh one."""
    stream = data.heldout
    count = min(_WINDOWS, (stream.tokens - 1) // context)
    state, changes = model.new_state(1), []
    for number in range(count):
        window = torch.from_numpy(stream.read(number * context, context + 1))[None]
        fresh, carried = token_losses(model, window), token_losses(model, window, state)
        changes.append(float((carried - fresh).mean()))
    return statistics.fmean(changes)


def _state_bytes(spec: ModelSpec, distance: int) -> float:
    return cache_bytes(replace(spec, context=max(spec.context, distance)), 1, distance, "fp32").value


def _throughput(run: RunConfig, seconds: float) -> dict[str, float]:
    """Training tokens a second on one row, by threads and length."""
    found = {}
    for length in (run.context // 2, 2 * run.context):
        model = replace(run.model, context=max(length, run.model.context))
        row = replace(run, model=model, context=length, batch=1, micro_batch=1)
        for threads in (1, 2):
            timed = time_steps(row, torch.device("cpu"), threads, seconds / 4)
            found[f"{threads} x {length}"] = length / timed.step(row)
    return found


# ---- in words


def _findings(found: Study) -> list[str]:
    said = []
    best = min(found.kinds, key=lambda each: each.loss)
    said.append(
        f"held-out loss after {found.tokens:,} tokens: "
        + ", ".join(f"{each.kind} {each.loss:.3f}" for each in sorted(found.kinds, key=lambda each: each.loss))
        + f" nats a token; {best.kind} is best here"
    )
    for each in found.kinds:
        gains = {gain.at: gain for gain in each.gain_beyond}
        near = gains.get(16) or each.gain_beyond[-1]
        told = "worth" if near.mean > 2 * near.error else "not told apart from nothing:"
        said.append(
            f"{each.kind}: of {found.context} tokens of context the last {each.useful} are of use; all of them rather"
            f" than the last {near.at} are {told} {near.mean:.3f} ± {near.error:.3f} nats"
        )
        if each.carrying is not None:
            said.append(
                f"{each.kind}: carrying the state from window to window changes the loss by {each.carrying:+.3f}"
            )
    for task in dict.fromkeys(result.task for each in found.kinds for result in each.tasks):
        reach = {
            each.kind: max((r.size for r in each.tasks if r.task == task and r.accuracy >= 0.95), default=0)
            for each in found.kinds
        }
        what = "delay" if task == "copy" else "pairs"
        said.append(
            f"{task}, 95% right up to: "
            + ", ".join(f"{kind} {what} {size}" if size else f"{kind} none" for kind, size in reach.items())
        )
    for kind in dict.fromkeys(each.kind for each in found.widths):
        said.append(f"{kind}: to recall " + ", ".join(_needed(each) for each in found.widths if each.kind == kind))
    for each in found.kinds:
        one, two = (statistics.fmean(v for k, v in each.tokens_per_second.items() if k.startswith(t)) for t in "12")
        short, long = min(each.state_bytes), max(each.state_bytes)
        grows = each.state_bytes[long] / each.state_bytes[short]
        said.append(
            f"{each.kind}: two threads train {two / one:.2f} times as fast as one, on one row ({one:,.0f} tokens/s);"
            f" its state is {each.state_bytes[short] / 1e3:,.0f} kB at {short:,} tokens"
            + (f" and {grows:.0f} times that at {long:,}" if grows > 1 else f", and the same at {long:,}")
        )
    return said


def _needed(each: WidthResult) -> str:
    if each.width is None:
        return f"{each.pairs} pairs no width up to that of 256 was enough ({each.best:.0%} at best)"
    return (
        f"{each.pairs} pairs width {each.width} ({each.parameters:,} parameters, {each.state_bytes:,} bytes of state)"
    )
