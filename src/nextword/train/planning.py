"""plan_run: resolves a configuration, and predicts memory, time and loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from ..base import UsageError
from ..base.fields import FieldError
from ..base.units import format_seconds
from ..data import Dataset
from ..plan import Device, Optimum, RunConfig, flops, optimum, parameters, run_for, shape_for
from ..plan.budget import FITTED_FROM
from ..plan.data_constraints import best_when_limited, effective
from ..plan.laws import SMALL, Law, law
from ..plan.run_config import RunShard, Schedule, TrainConfig
from ..plan.search import largest
from ..plan.shape_search import SMALLEST, recurrent_for, warmup_for
from ..plan.small_runs import Expected, SmallRun, small_law
from ..spec import ModelKind, ModelSpec
from .calibration import Entry, correction
from .run_dir import Prediction
from .run_memory import Host, run_memory
from .timing import StepTime, share_of_peak

FIRST_SHARE = 0.5  # assumed share of the peak, before a run on this machine has measured it
MOST_TOKENS_AT_ONCE = 8192  # per CPU micro-batch: more is not faster and takes memory
_SHARE_TO_TRAIN = 0.97  # of a time budget; the rest is for evaluation and checkpoints
_TOKENS_A_PARAMETER = 20.0  # default without a budget
_FINE_TUNING_RATE, _LORA_RATE = 5e-5, 3e-4
_FINE_TUNING_ROWS, _FINE_TUNING_CONTEXT = 8, 512  # per step, at least; at most
_CHECKPOINT_SECONDS, _CHECKPOINTS = 120.0, 10  # between checkpoints; per run, at least
_EVALUATIONS, _SAMPLES = 10, 4


@dataclass(frozen=True)
class Machine:
    """The target of a plan: `world` devices, and measurements of them.

    `peak` is the speed of one device's matrix products in the run's dtype, FLOP/s; `past`: finished runs on this
    machine.
    """

    device: Device
    peak: float = 0.0  # 0: that of `device`
    world: int = 1
    host: Host | None = None  # None: a CPU with the usual libraries
    amp_faster: bool = False  # products in bfloat16 are clearly faster than in float32
    past: tuple[Entry, ...] = ()
    step_time: StepTime | None = None  # timed steps of the run itself

    def share(self, kind: ModelKind) -> float:
        """The expected share of the peak for a run of this kind."""
        return correction(self.past, kind, "fp32").share or FIRST_SHARE


@dataclass(frozen=True)
class RunPlan:
    """A resolved configuration, with predicted memory, time and loss."""

    config: RunConfig
    prediction: Prediction

    def _repr_mimebundle_(self, **_: object) -> dict[str, Any]:
        """In a notebook: the predicted memory by part."""
        from .plots import plan_bundle

        return plan_bundle(self.prediction)


def plan_run(config: RunConfig, data: Dataset, machine: Machine) -> RunPlan:
    """Choose the open settings of `config` for a run on `data`, and predict it. Pure: no files, no measurements.

    With `machine.step_time`, a run of `train.minutes` gets as many steps as fit. Raises UsageError for an invalid run.
    """
    if config.model.base and config.model.spec is None:
        raise UsageError(f"model.spec has to be that of model.base, {config.model.base}; prepare_run reads it")
    spec = config.model.spec or choose_shape(config, data.train.bytes, machine, lambda size: data.bytes_per_token)
    if not config.model.base:
        spec = replace(spec, vocabulary=data.vocabulary)
    context = _context(config, spec, data)
    if config.model.spec is None:
        spec = replace(spec, context=context)
    config = replace(config, model=replace(config.model, spec=spec, params=0.0, match="params"))
    train = _resolved(config, replace(spec, context=context), data, machine)
    if machine.step_time is not None and train.minutes and not config.train.steps:
        train = fit_to_time(train, machine.step_time)
        if config.train.warmup_steps is None:
            train = replace(train, warmup_steps=warmup_for(train.steps))
    config = replace(config, train=train)
    prediction = predict(config, data, machine)
    return RunPlan(_with_intervals(config, prediction.seconds / train.steps, machine.step_time), prediction)


def choose_shape(
    config: RunConfig, text_bytes: float, machine: Machine, bytes_per_token: Callable[[int], float]
) -> ModelSpec:
    """The compute-optimal model for the budget and `text_bytes` of training text, or the one of `model.params`.

    `bytes_per_token` maps a vocabulary size, which grows with the model, to bytes. Recurrent kinds match the
    transformer's parameters or FLOPs per token.
    """
    model, train, vocabulary = config.model, config.train, config.data.vocabulary
    budget = compute(train, machine, model.arch)

    def shape(bytes_a_token: float) -> ModelSpec:
        count = model.params
        if not count and budget is None:
            count = max(SMALLEST, (train.tokens or text_bytes / bytes_a_token) / _TOKENS_A_PARAMETER)
        count = count or _optimal_size(budget or 1.0, text_bytes, bytes_a_token)
        spec = shape_for(count, context=train.context or None)
        return spec if model.arch == "transformer" else recurrent_like(spec, model.arch, model.match)

    if model.params or (budget is None and train.tokens):
        return shape(1.0)  # bytes per token, which does not matter here
    spec = shape(bytes_per_token(vocabulary or 4096))
    if config.data.tokenizer == "bpe" and not vocabulary:
        spec = shape(bytes_per_token(spec.vocabulary))
    return spec


def _optimal_size(budget: float, text_bytes: float, bytes_per_token: float) -> float:
    """The optimal parameters for `budget` FLOPs, reduced if there is too little text."""
    tokens, best = text_bytes / bytes_per_token, expected_optimum(budget, bytes_per_token)
    count = best.parameters
    if tokens < best.tokens:
        count = min(count, best_when_limited(budget, tokens).parameters)
    return max(count, SMALLEST)


def expected_optimum(budget: float, bytes_per_token: float) -> Optimum:
    """The optimum for a budget of FLOPs by the law of small runs or, from 1e18 FLOPs on, a published one."""
    small = replace(SMALL, B=SMALL.B * bytes_per_token**-SMALL.beta)  # in tokens instead of bytes
    chosen: Law = law("epoch") if budget >= FITTED_FROM else small
    return optimum(budget, chosen)


def recurrent_like(spec: ModelSpec, kind: ModelKind, match: str) -> ModelSpec:
    """A recurrent net with the vocabulary and context of a transformer, and as many parameters or FLOPs per token."""
    if match == "params":
        return recurrent_for(parameters(spec).total, kind, spec.vocabulary, spec.context)
    wanted = flops(spec).per_token

    def of(width: int) -> ModelSpec:
        return ModelSpec(kind=kind, vocabulary=spec.vocabulary, width=width, layers=2, context=spec.context)

    return of(max(1, largest(lambda width: flops(of(width)).per_token <= wanted, 1 << 24)))


def compute(train: TrainConfig, machine: Machine, kind: ModelKind) -> float | None:
    """The budget in FLOPs on one device; None for a budget of tokens or steps."""
    if train.flops:
        return train.flops
    if train.minutes:
        return train.minutes * 60 * _SHARE_TO_TRAIN * machine.device.peak_fp32 * machine.share(kind)
    return None


def _context(config: RunConfig, spec: ModelSpec, data: Dataset) -> int:
    """Tokens per row: the requested number, or fewer than the model's if there is too little text."""
    if config.model.base:
        wanted = config.train.context or _FINE_TUNING_CONTEXT
        return min(wanted, spec.context, max(32, data.train.tokens // 16))
    if config.train.context:
        return config.train.context
    context = spec.context
    while context > 32 and data.train.tokens < 64 * context:
        context //= 2
    return context


def _resolved(config: RunConfig, spec: ModelSpec, data: Dataset, machine: Machine) -> TrainConfig:
    """The section `train` with batch, steps, rates and dtype chosen; a requested batch is kept."""
    train, model = config.train, config.model
    budget, tokens = compute(train, machine, spec.kind), train.tokens
    if budget is None:
        tokens = tokens or (data.train.tokens if model.base else _TOKENS_A_PARAMETER * parameters(spec).total)
        budget = flops(spec, lora=model.lora).per_token * tokens
    batch_size, micro_batch, rate = train.batch_size, train.micro_batch, train.learning_rate
    check_batch(train, machine.world)
    readers = machine.world // train.tensor_parallel
    if model.base:
        rows = math.ceil(max(_FINE_TUNING_ROWS / readers, micro_batch or 1)) * readers
        batch_size, rate = batch_size or rows, rate or (_LORA_RATE if model.lora else _FINE_TUNING_RATE)
    final = rate / 10 if rate and train.final_learning_rate is None else train.final_learning_rate
    if not (batch_size and micro_batch and rate):
        usual = run_for(spec, budget, machine.device, machine.world, tokens or None).train
        rows = batch_size or usual.batch_size
        micro_batch = micro_batch or _micro_batch(rows, spec.context, readers, usual.micro_batch)
        if not batch_size:
            batch_size = micro_batch * readers * math.ceil(rows / (micro_batch * readers))
        final = usual.final_learning_rate if final is None else final
        rate = rate or usual.learning_rate
    seen = tokens or budget / flops(spec).per_token
    steps = train.steps or max(1, round(seen / (batch_size * spec.context)))
    return replace(
        train, flops=0.0, tokens=0.0, steps=steps, context=spec.context, batch_size=batch_size, micro_batch=micro_batch,
        learning_rate=rate, final_learning_rate=final, devices=machine.world,
        warmup_steps=warmup_for(steps) if train.warmup_steps is None else train.warmup_steps,
        schedule=_schedule(train), dtype=choose_dtype(train, machine.amp_faster), shard=_shard(train, machine.world),
    )  # fmt: skip


def _schedule(train: TrainConfig) -> Schedule:
    """The requested schedule; with minutes, one whose decay can begin when the time demands it (deadline.py)."""
    return ("wsd" if train.minutes else "cosine") if train.schedule == "auto" else train.schedule


def choose_dtype(train: TrainConfig, amp_faster: bool) -> Literal["fp32", "amp"]:
    """The requested dtype, or the faster one on this machine."""
    return ("amp" if amp_faster else "fp32") if train.dtype == "auto" else train.dtype


def _shard(train: TrainConfig, world: int) -> RunShard:
    return "none" if world == 1 else "ddp" if train.shard == "none" else train.shard


def check_batch(train: TrainConfig, world: int) -> None:
    """Raise FieldError, a UsageError, for rows that cannot be divided among `world` processes."""
    batch, micro_batch = train.batch_size, train.micro_batch
    if world % train.tensor_parallel:
        raise FieldError("train.tensor_parallel", train.tensor_parallel, f"a divisor of the {world:,} processes")
    world //= train.tensor_parallel  # those that share a layer compute the same rows
    if not batch:
        return
    if batch % world:
        below = batch - batch % world
        ways = f"{below:,} or {below + world:,}" if below else f"{world:,}"
        raise FieldError("train.batch_size", batch, f"a multiple of the {world:,} processes, such as {ways}")
    if micro_batch > batch // world:
        of = f" of each of {world:,} processes" if world > 1 else ""
        raise FieldError("train.micro_batch", micro_batch, f"at most the {batch // world:,} rows{of} in the batch")


def _micro_batch(batch: int, context: int, world: int, most: int) -> int:
    """The largest suitable power of two of rows per process at a time."""
    rows = max(1, min(batch // world, most, MOST_TOKENS_AT_ONCE // context))
    return 1 << (rows.bit_length() - 1)


def fit_to_time(train: TrainConfig, timed: StepTime) -> TrainConfig:
    """As many steps as fit the minutes, by timed steps. Raises UsageError if not even one fits."""
    seconds, a_step = train.minutes * 60, timed.step(train)
    steps = int(seconds * _SHARE_TO_TRAIN / a_step)
    if steps < 1:
        raise UsageError(
            f"one step of {train.batch_size} x {train.context:,} tokens takes {format_seconds(a_step)} here, and the"
            f" budget is {format_seconds(seconds)}. Give more time, a smaller train.context or train.batch_size,"
            " or fewer parameters"
        )
    return replace(train, steps=steps)


def _with_intervals(config: RunConfig, step_seconds: float, timed: StepTime | None) -> RunConfig:
    """The configuration with intervals of checkpoints, evaluations and samples, and the fastest threads."""
    run, steps = config.run, config.train.steps
    every = max(1, min(round(_CHECKPOINT_SECONDS / step_seconds), max(1, steps // _CHECKPOINTS)))

    def chosen(value: int | None, otherwise: int) -> int:
        return otherwise if value is None else value

    return config.with_run(
        threads=run.threads or (timed.threads if timed else 0),
        follow_load=not run.threads if run.follow_load is None else run.follow_load,
        checkpoint_every=chosen(run.checkpoint_every, every),
        evaluate_every=chosen(run.evaluate_every, max(1, steps // _EVALUATIONS)),
        sample_every=chosen(run.sample_every, max(1, steps // _SAMPLES)),
    )


def predict(config: RunConfig, data: Dataset, machine: Machine) -> Prediction:
    """Predict memory, time and loss of a resolved run by formulas, corrected by past runs on this machine."""
    spec, train, lora, peak = config.spec, config.train, config.model.lora, machine.peak or machine.device.peak_fp32
    tokens = config.total_tokens
    known = correction(machine.past, spec.kind, train.dtype, data.fingerprint, parameters(spec).total, tokens)
    memory = run_memory(config, machine.host or Host(machine.device.runtime))
    probed = machine.step_time.memory if machine.step_time is not None else 0.0
    seconds = flops(spec, train.context, tokens, lora=lora).total / (
        train.devices * peak * (known.share or FIRST_SHARE)
    )
    if machine.step_time is not None:
        seconds = train.steps * machine.step_time.step(train)
    loss = expected_loss(config, data, known.losses)
    nats = math.log(2) * data.bytes_per_token  # a token, of a bit a byte
    return Prediction(
        memory=probed or memory.total, memory_is="probed" if probed else "formula", seconds=seconds,
        tokens_per_second=tokens / seconds, share_of_peak=share_of_peak(config, seconds / train.steps, peak),
        nats_per_token=loss.bits * nats, low=loss.low * nats, high=loss.high * nats, interval_is=loss.basis,
        bits_per_byte=loss.bits, formula_memory=memory.total, law_bits=loss.law, law=small_law().name,
        memory_parts={part.name: part.value for part in memory.parts}, peak=peak,
    )  # fmt: skip


def expected_loss(config: RunConfig, data: Dataset, ratios: Sequence[float] = ()) -> Expected:
    """The loss by the law of small runs, and by `ratios`: measured / the law's of similar runs on this text.

    NaN for fine-tuning, since no law predicts the loss of pretrained weights on this text. Repeated text counts less
    (Muennighoff et al. 2023, eq. 5).
    """
    if config.model.base:
        return Expected(math.nan, math.nan, math.nan, math.nan)
    spec, context, tokens = config.spec, config.train.context, config.total_tokens
    seen = effective(tokens, min(data.train.tokens, tokens)) * data.bytes_per_token
    size = flops(spec, context).per_token / 6
    text, context_bytes = data.difficulty, context * data.bytes_per_token
    run = SmallRun(spec.kind, size, seen, spec.vocabulary, context_bytes, text.bigrams, text.repeats)
    return small_law().expect(run, math.log2(spec.vocabulary) / data.bytes_per_token, ratios)
