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
from ..plan import Device, RunConfig, Training, flops, optimum, parameters, run_for, shape_for
from ..plan.budget import FITTED_FROM
from ..plan.design import SMALLEST, recurrent_for
from ..plan.laws import SMALL, Law, law
from ..plan.limits import best_when_limited, worth
from ..plan.search import largest
from ..plan.training import CPU_FRAGMENTATION, FRAGMENTATION, training_memory
from ..spec import Kind, ModelSpec
from . import ledger
from .folder import Prediction
from .probe import StepTime, share_of_peak, time_steps

FIRST_SHARE = 0.5  # of the peak, before a run on this machine has measured it
BYTES_A_TOKEN = 3.6  # of English, before the tokenizer is there: about that of 4096 byte-level BPE tokens
_MOST_TOKENS_AT_ONCE = 8192  # of a CPU's micro-batch: more is no faster and takes memory
_SHARE_TO_TRAIN = 0.97  # of a time budget; the rest is evaluation and checkpoints


@dataclass(frozen=True)
class Budget:
    """One of the three, or a number of tokens."""

    seconds: float | None = None
    flops: float | None = None
    tokens: float | None = None


def compute(budget: Budget, device: Device, share: float) -> float | None:
    """FLOPs that a budget buys on `device`; None for a budget of tokens."""
    if budget.flops is not None:
        return budget.flops
    if budget.seconds is not None:
        return budget.seconds * _SHARE_TO_TRAIN * device.peak_fp32 * share
    return None


def choose_shape(
    work: float, unique_tokens: float, kind: Kind, match: str, count: float | None = None, context: int | None = None
) -> ModelSpec:
    """The compute-optimal model for `work` FLOPs and the tokens at hand; recurrent kinds match its size or FLOPs."""
    if count is None:
        best = optimum(work, law("epoch") if work >= FITTED_FROM else _small_in_tokens())
        count = best.parameters
        if unique_tokens < best.tokens:
            count = min(count, best_when_limited(work, unique_tokens).parameters)
        count = max(count, SMALLEST)
    spec = shape_for(count, context=context)
    if kind == "transformer":
        return spec
    return recurrent_like(spec, kind, match)


def _small_in_tokens() -> Law:
    """The law of small runs over tokens instead of bytes, as an optimum wants it."""
    return replace(SMALL, B=SMALL.B * BYTES_A_TOKEN**-SMALL.beta)


def recurrent_like(spec: ModelSpec, kind: Kind, match: str) -> ModelSpec:
    """A recurrent net with the vocabulary and context of a transformer, and as many parameters or FLOPs a token."""
    if match == "params":
        return recurrent_for(parameters(spec).total, kind, spec.vocabulary, spec.context)
    wanted = flops(spec).per_token

    def cost(width: int) -> float:
        return flops(replace(_like(spec, kind), width=width)).per_token

    return replace(_like(spec, kind), width=max(1, largest(lambda width: cost(width) <= wanted, 1 << 24)))


def _like(spec: ModelSpec, kind: Kind) -> ModelSpec:
    return ModelSpec(kind=kind, vocabulary=spec.vocabulary, width=1, layers=2, context=spec.context)


def configure(
    spec: ModelSpec, work: float, device: Device, *, world: int = 1, tokens: float | None = None,
    changes: dict[str, Any] | None = None,
) -> RunConfig:  # fmt: skip
    """The run that spends `work` FLOPs on `spec`, or sees `tokens`; `changes` are settings the user chose."""
    run = run_for(spec, work, device, world, tokens)
    changes = dict(changes or {})
    batch = int(changes.pop("batch", run.batch))
    micro = int(changes.pop("micro_batch", 0)) or _micro_batch(batch, run.context, world, run.micro_batch)
    if batch < 1 or micro < 1:
        raise UsageError(f"a batch has at least one row, not {min(batch, micro)}")
    accumulation = max(1, math.ceil(batch / (micro * world)))
    if "batch" not in changes and batch != micro * world * accumulation:
        batch = micro * world * accumulation
    seen = tokens or work / flops(spec, run.context).per_token
    steps = int(changes.pop("steps", 0)) or max(1, round(seen / (batch * run.context)))
    run = replace(
        run, batch=batch, micro_batch=micro, accumulation=accumulation, steps=steps, tokens=steps * batch * run.context,
        warmup_steps=min(2000, max(1, steps // 20)), shard="ddp" if world > 1 else "none",
    )  # fmt: skip
    if "learning_rate" in changes and "final_learning_rate" not in changes:
        changes["final_learning_rate"] = changes["learning_rate"] / 10
    return replace(run, **changes)


def _micro_batch(batch: int, context: int, world: int, most: int) -> int:
    """The largest power of two of rows that a process takes at a time, on which a batch divides well."""
    rows = max(1, min(batch // world, most, _MOST_TOKENS_AT_ONCE // context))
    return 1 << (rows.bit_length() - 1)


def fit_to_time(run: RunConfig, timed: StepTime, seconds: float) -> RunConfig:
    """As many steps as fit the time, by steps that were timed."""
    steps = max(1, int(seconds * _SHARE_TO_TRAIN / timed.step(run)))
    return replace(
        run, steps=steps, tokens=steps * run.batch * run.context, warmup_steps=min(2000, max(1, steps // 20))
    )


def predict(
    run: RunConfig, device: Device, timed: StepTime | None, unique_tokens: float, bytes_per_token: float,
    entries: Sequence[ledger.Entry] = (), data: str = "",
) -> Prediction:  # fmt: skip
    """Memory, time and loss of a run: formulas, corrected by what this machine's past runs measured."""
    known = ledger.correction(
        entries, run.model.kind, run.precision, data, parameters(run.model).total, run.tokens
    )  # fmt: skip
    on_cpu = not torch.cuda.is_available()
    setup = Training(
        batch=run.micro_batch, context=run.context, optimizer=_planned(run.optimizer), precision=run.precision,
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


def _planned(optimizer: str) -> Any:
    return optimizer if optimizer in ("adamw", "adafactor", "muon", "lion", "momentum", "sgd") else "adamw"


def small_loss(spec: ModelSpec, tokens: float, unique_tokens: float, bytes_per_token: float) -> float:
    """Bits a byte that the law of small runs predicts, at most those of a guess.

    The law is of bytes, so that tokenizers compare; repeated text counts less (Muennighoff et al. 2023, eq. 5).
    """
    seen = worth(tokens, min(unique_tokens, tokens)) * bytes_per_token
    return min(SMALL.loss(parameters(spec).total, seen), math.log2(spec.vocabulary) / bytes_per_token)


def probe(run: RunConfig, device: torch.device, threads: int | None) -> StepTime:
    """Time some steps of the run itself."""
    return time_steps(run, device, threads)


def default_folder(run: RunConfig, root: Path = Path("runs")) -> Path:
    """runs/transformer-1.2M, or -2, -3 … behind it where that is taken."""
    from ..base.units import format_count

    size = format_count(parameters(run.model).total).replace(" ", "").replace(",", "")
    folder, number = root / f"{run.model.kind}-{size}", 2
    while folder.exists():
        folder, number = root / f"{run.model.kind}-{size}-{number}", number + 1
    return folder
