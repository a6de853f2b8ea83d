"""From a budget and some text to a run that can start: its size, its steps, and what the plan says of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from .. import native
from ..base import UsageError
from ..base.fields import check_field, check_fields
from ..base.units import format_seconds
from ..plan import Device, RunConfig, Training, flops, optimum, parameters, run_for, shape_for
from ..plan.budget import FITTED_FROM
from ..plan.data_constraints import best_when_limited, effective
from ..plan.laws import SMALL, Law, law
from ..plan.search import largest
from ..plan.shape_search import SMALLEST, recurrent_for
from ..plan.training import CPU_FRAGMENTATION, FRAGMENTATION, training_memory
from ..spec import ModelKind, ModelSpec, Positive
from . import calibration
from .run_dir import Prediction
from .timing import StepTime, share_of_peak, time_steps

RUNS = Path("runs")  # where runs are written for want of --out
FIRST_SHARE = 0.5  # of the peak, before a run on this machine has measured it
_MOST_TOKENS_AT_ONCE = 8192  # of a CPU's micro-batch: more is no faster and takes memory
_TIMED_SECONDS = 1.0  # that a micro-batch may take, so that timing some takes a few
_SHARE_TO_TRAIN = 0.97  # of a time budget; the rest is evaluation and checkpoints


@dataclass(frozen=True)
class Budget:
    """What a run may cost: one of the three, or none. Raises UsageError for anything but a finite number above 0."""

    seconds: Positive | None = None
    flops: Positive | None = None
    tokens: Positive | None = None

    def __post_init__(self) -> None:
        check_fields(self)


def compute(budget: Budget, device: Device, share: float) -> float | None:
    """FLOPs that a budget buys on `device`; None for a budget of tokens."""
    if budget.flops is not None:
        return budget.flops
    if budget.seconds is not None:
        return budget.seconds * _SHARE_TO_TRAIN * device.peak_fp32 * share
    return None


def choose_shape(
    work: float, unique_bytes: float, bytes_per_token: float, kind: ModelKind, match: str, count: float | None = None,
    context: int | None = None,
) -> ModelSpec:  # fmt: skip
    """The compute-optimal model for `work` FLOPs and the text at hand; recurrent kinds match its size or FLOPs."""
    if count is None:
        unique_tokens = unique_bytes / bytes_per_token
        best = optimum(work, law("epoch") if work >= FITTED_FROM else _small_in_tokens(bytes_per_token))
        count = best.parameters
        if unique_tokens < best.tokens:
            count = min(count, best_when_limited(work, unique_tokens).parameters)
        count = max(count, SMALLEST)
    spec = shape_for(count, context=context)
    if kind == "transformer":
        return spec
    return recurrent_like(spec, kind, match)


def _small_in_tokens(bytes_per_token: float) -> Law:
    """The law of small runs over tokens instead of bytes, as an optimum wants it."""
    return replace(SMALL, B=SMALL.B * bytes_per_token**-SMALL.beta)


def recurrent_like(spec: ModelSpec, kind: ModelKind, match: str) -> ModelSpec:
    """A recurrent net with the vocabulary and context of a transformer, and as many parameters or FLOPs a token."""
    if match == "params":
        return recurrent_for(parameters(spec).total, kind, spec.vocabulary, spec.context)
    wanted = flops(spec).per_token

    def cost(width: int) -> float:
        return flops(replace(_like(spec, kind), width=width)).per_token

    return replace(_like(spec, kind), width=max(1, largest(lambda width: cost(width) <= wanted, 1 << 24)))


def _like(spec: ModelSpec, kind: ModelKind) -> ModelSpec:
    return ModelSpec(kind=kind, vocabulary=spec.vocabulary, width=1, layers=2, context=spec.context)


def configure(
    spec: ModelSpec, work: float, device: Device, *, world: int = 1, tokens: float | None = None,
    changes: dict[str, Any] | None = None,
) -> RunConfig:  # fmt: skip
    """The run that spends `work` FLOPs on `spec`, or sees `tokens`; `changes` are settings the user chose.

    A batch asked for is the batch trained: where the micro-batch does not divide it, the last one is smaller.
    """
    changes = dict(changes or {})
    check_changes(changes)
    run = run_for(spec, work, device, world, tokens)
    asked, micro = changes.pop("batch", None), changes.pop("micro_batch", None)
    batch = run.batch if asked is None else asked
    check_batch(asked, micro, world)
    micro = micro or _micro_batch(batch, run.context, world, run.micro_batch)
    accumulation = math.ceil(batch / (micro * world))
    if asked is None:
        batch = micro * world * accumulation
    seen = tokens or work / flops(spec, run.context).per_token
    steps = changes.pop("steps", None) or max(1, round(seen / (batch * run.context)))
    run = replace(
        run, batch=batch, micro_batch=micro, accumulation=accumulation, steps=steps, tokens=steps * batch * run.context,
        warmup_steps=min(2000, max(1, steps // 20)), shard="ddp" if world > 1 else "none",
    )  # fmt: skip
    if "learning_rate" in changes and "final_learning_rate" not in changes:
        changes["final_learning_rate"] = changes["learning_rate"] / 10
    return replace(run, **changes)


def changed(run: RunConfig, changes: dict[str, Any]) -> RunConfig:
    """`run`, a whole one, with the settings of `changes`, which leave its batch and its steps as they are."""
    check_batch(run.batch, changes.get("micro_batch"), run.devices)
    run = replace(run, **changes)
    accumulation = math.ceil(run.batch / (run.micro_batch * run.devices))
    return replace(run, accumulation=accumulation)


def check_changes(changes: dict[str, Any]) -> None:
    """Raise FieldError, a UsageError, for a setting that no run can have."""
    for name, value in changes.items():
        check_field(RunConfig, name, value)


def check_batch(batch: int | None, micro_batch: int | None, world: int) -> None:
    """Raise UsageError for rows that cannot be shared out as asked: `batch` a step among `world` processes."""
    if batch is None:
        return
    if batch % world:
        below = batch - batch % world
        ways = f"{below:,} or {below + world:,}" if below else f"{world:,}"
        raise UsageError(f"a batch of {batch:,} rows does not divide among {world:,} processes; give --batch {ways}")
    if micro_batch is not None and micro_batch > batch // world:
        of = f"a batch of {batch:,} rows" + (f" among {world:,} processes" if world > 1 else "")
        raise UsageError(
            f"a micro-batch of {micro_batch:,} rows is more than the {batch // world:,} of {of};"
            f" give --micro-batch {batch // world:,} or a larger --batch"
        )


def _micro_batch(batch: int, context: int, world: int, most: int) -> int:
    """The largest power of two of rows that a process takes at a time, on which a batch divides well."""
    rows = max(1, min(batch // world, most, _MOST_TOKENS_AT_ONCE // context))
    return 1 << (rows.bit_length() - 1)


def fit_to_time(run: RunConfig, timed: StepTime, seconds: float) -> RunConfig:
    """As many steps as fit the time, by steps that were timed. Raises UsageError if there is no time for one."""
    a_step = timed.step(run)
    steps = int(seconds * _SHARE_TO_TRAIN / a_step)
    if steps < 1:
        raise UsageError(
            f"one step of {run.batch} x {run.context:,} tokens takes {format_seconds(a_step)} here, and the run is to"
            f" take {format_seconds(seconds)}. Give more time, a shorter --context, a smaller --batch or fewer --params"
        )
    return replace(
        run, steps=steps, tokens=steps * run.batch * run.context, warmup_steps=min(2000, max(1, steps // 20))
    )


def predict(
    run: RunConfig, device: Device, timed: StepTime | None, unique_tokens: float, bytes_per_token: float,
    entries: Sequence[calibration.Entry] = (), data: str = "",
) -> Prediction:  # fmt: skip
    """Memory, time and loss of a run: formulas, corrected by what this machine's past runs measured."""
    known = calibration.correction(
        entries, run.model.kind, run.precision, data, parameters(run.model).total, run.tokens
    )  # fmt: skip
    on_cpu = not torch.cuda.is_available()
    setup = Training(
        batch=run.micro_batch, context=run.context, optimizer=run.optimizer, precision=run.precision,
        recompute=run.recompute, chunked_loss=True, shard=run.shard if run.devices > 1 else "none",
        devices=run.devices, lora=run.lora, base="fp32", runtime=device.runtime,
        fragmentation=CPU_FRAGMENTATION if on_cpu else FRAGMENTATION, fused=native.available() and on_cpu,
    )  # fmt: skip
    memory = training_memory(run.model, setup)
    work = flops(run.model, run.context, run.tokens, lora=run.lora).total
    share = known.share or FIRST_SHARE
    seconds = work / (run.devices * device.peak_fp32 * share)
    if timed is not None:
        seconds = run.steps * timed.step(run)
    law_bits = small_loss(run.model, run.tokens, unique_tokens, bytes_per_token)
    law_nats = law_bits * math.log(2) * bytes_per_token
    return Prediction(
        memory=memory.total + known.memory,
        seconds=seconds,
        tokens_per_second=run.tokens / seconds,
        share_of_peak=share_of_peak(run, seconds / run.steps, device.peak_fp32),
        nats_per_token=law_nats * known.loss.factor,
        low=law_nats * known.loss.low,
        high=law_nats * known.loss.high,
        interval_is=known.loss.basis,
        bits_per_byte=law_bits * known.loss.factor,
        formula_memory=memory.total,
        law_bits=law_bits,
        memory_parts={part.name: part.value for part in memory.parts},
    )


def small_loss(spec: ModelSpec, tokens: float, unique_tokens: float, bytes_per_token: float) -> float:
    """Bits a byte that the law of small runs predicts, at most those of a guess.

    The law is of bytes, so that tokenizers compare; repeated text counts less (Muennighoff et al. 2023, eq. 5).
    """
    seen = effective(tokens, min(unique_tokens, tokens)) * bytes_per_token
    return min(SMALL.loss(parameters(spec).total, seen), math.log2(spec.vocabulary) / bytes_per_token)


def probe(run: RunConfig, device: torch.device, threads: int | None, peak: float) -> StepTime:
    """Time some steps of the run itself, or, where one would take long at `peak` FLOP/s, of fewer and shorter rows.

    The time of the whole micro-batch then follows from its FLOPs.
    """
    trial = run
    while _micro_flops(trial) > _TIMED_SECONDS * FIRST_SHARE * peak and trial.micro_batch * trial.context > 64:
        fewer, shorter = max(1, trial.micro_batch // 2), max(32, trial.context // 2)
        trial = replace(trial, micro_batch=fewer) if trial.micro_batch > 1 else replace(trial, context=shorter)
    if trial is not run:
        trial = replace(trial, batch=trial.micro_batch * run.devices, accumulation=1)
    timed = time_steps(trial, device, threads)
    return replace(timed, micro_batch=timed.micro_batch * _micro_flops(run) / _micro_flops(trial))


def _micro_flops(run: RunConfig) -> float:
    return flops(run.model, run.context).per_token * run.context * run.micro_batch


def default_folder(run: RunConfig, root: Path = RUNS) -> Path:
    """runs/transformer-1.2M, or -2, -3 … behind it where that is taken."""
    from ..base.units import format_count

    size = format_count(parameters(run.model).total).replace(" ", "").replace(",", "")
    folder, number = root / f"{run.model.kind}-{size}", 2
    while folder.exists():
        folder, number = root / f"{run.model.kind}-{size}-{number}", number + 1
    return folder
