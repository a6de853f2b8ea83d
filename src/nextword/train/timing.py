"""Runs some steps of a run before it starts, to choose threads and to predict its time and memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch

from ..base.cores import check_threads
from ..data import Batch, Dataset
from ..plan import RunConfig, flops
from ..plan.run_config import ModelConfig, Optimizer, TrainConfig, TrainDtype
from ..spec import ModelKind, ModelSpec
from .checkpoint import load_libraries
from .learner import Learner
from .lora import add_adapters
from .loss_module import Placed, new_model, place
from .memory import PeakMemory, resident_memory
from .run_memory import Host, run_memory
from .threads import restored_threads, thread_counts

_SECONDS_A_MICRO_BATCH = 1.0  # limit at half the peak, so that timing takes a few seconds
_STEPS = 3  # of a probe, at least: in the first, optimizer states are made
_ALIKE = 2  # micro-batches of a step: the others take what the second takes
_SECONDS_FOR_MEMORY = 12.0  # limit of full steps that measure only memory


@dataclass(frozen=True)
class StepTime:
    """Seconds of one micro-batch, forward and backward, and of one update, with `threads` threads."""

    threads: int
    micro_batch: float
    update: float
    memory: float = 0.0  # peak bytes of the process, or of a GPU's allocator; 0: not known

    def step(self, train: TrainConfig) -> float:
        """Seconds of a complete step of such micro-batches; the last may be smaller."""
        return train.batch_size / (train.devices * train.micro_batch) * self.micro_batch + self.update


def time_part(config: RunConfig, batch: Batch, device: torch.device, threads: int | None, peak: float) -> StepTime:
    """Time some steps of the run or, if one would take long at `peak` FLOP/s, with fewer and shorter rows.

    The time of the full micro-batch then follows from its FLOPs. For its memory some full steps are made or, if they
    would take long as well, the difference to the smaller one follows from the formula. `batch`: the run's first.
    """
    trial = config
    while _micro_flops(trial) > _SECONDS_A_MICRO_BATCH * peak / 2:
        rows, context = trial.train.micro_batch, trial.train.context
        if rows * context <= 64:
            break
        smaller = {"micro_batch": rows // 2} if rows > 1 else {"context": max(32, context // 2)}
        trial = trial.with_train(**smaller)
    timed = time_steps(trial, device, threads, batch=batch)
    if trial == config:
        return timed
    timed = replace(timed, micro_batch=timed.micro_batch * _micro_flops(config) / _micro_flops(trial))
    if _STEPS * min(_ALIKE, config.train.accumulation) * timed.micro_batch <= _SECONDS_FOR_MEMORY:
        return replace(timed, memory=_time(config, batch, device, timed.threads, 0.0).memory)
    host = Host(gpu=device.type != "cpu")
    more = run_memory(config, host).total - run_memory(trial, host).total
    return replace(timed, memory=timed.memory and timed.memory + more)


def _micro_flops(config: RunConfig) -> float:
    train = config.train
    return flops(config.spec, train.context).per_token * train.context * train.micro_batch


@restored_threads()
def time_steps(
    config: RunConfig, device: torch.device, threads: int | None = None, seconds: float = 4.0,
    batch: Batch | None = None,
) -> StepTime:  # fmt: skip
    """Time the run's own step, on `batch` or a random one. On a CPU, choose the fastest threads, unless given.

    Two threads can be slower than one: other load on one core makes the other wait.
    """
    batch = batch or _random_batch(config)
    if device.type != "cpu":
        return _time(config, batch, device, 0, seconds)
    check_threads(threads)
    candidates = [threads] if threads else thread_counts()
    times = []
    for count in candidates:
        torch.set_num_threads(count)
        times.append(_time(config, batch, device, count, seconds / len(candidates)))
    memory = max(timed.memory for timed in times)  # libraries keep what they made for other numbers of threads
    return replace(min(times, key=lambda timed: timed.step(config.train)), memory=memory)


def amp_is_faster(device: torch.device, kind: ModelKind = "transformer") -> bool:
    """Whether bfloat16 products are clearly faster than float32: on CPUs with AMX or AVX-512-BF16, and GPUs.

    On other CPUs they are tens to hundreds of times slower, so this is tested on a small product. oneDNN has no
    bfloat16 layers for a GRU or RNN, whose steps take three to four times as long there.
    """
    if device.type != "cpu":
        return torch.cuda.is_bf16_supported() if device.type == "cuda" else False
    if kind in ("gru", "rnn"):
        return False
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    left = torch.randn(512, 512)
    return _seconds(left.bfloat16()) < 0.67 * _seconds(left)


def _seconds(matrix: torch.Tensor) -> float:
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        matrix @ matrix
        best = min(best, time.perf_counter() - start)
    return best


def _time(config: RunConfig, batch: Batch, device: torch.device, threads: int, seconds: float) -> StepTime:
    train = config.train
    alone = config.with_train(batch_size=train.micro_batch, devices=1, shard="none", tensor_parallel=1)
    with PeakMemory(device) as peak:
        placed = place(_part(batch, train.micro_batch, train.context), device)
        learner = _new_learner(alone, device)
        micro, update = _timed_steps(learner, placed, min(_ALIKE, train.accumulation), seconds)
        _evaluate(learner, placed)
        learner.backward(placed, placed.targets.numel())  # finds the memory as an evaluation leaves it
    return StepTime(threads, _typical(micro), _typical(update), peak.bytes if peak.own else 0)


@torch.no_grad()
def _evaluate(learner: Learner, batch: Placed) -> None:
    """The losses of a batch, and of fewer rows, as an evaluation's last batch has them."""
    rows = len(batch.inputs)
    learner.loss_module.eval()
    for count in {rows, max(1, rows // 2)}:
        learner.loss_module(batch.rows(0, count), each_target=True)
    learner.loss_module.train()


def libraries_memory(config: RunConfig, data: Dataset, device: torch.device) -> float:
    """The process's resident bytes with all that a run needs in place but the run itself; 0 on a GPU.

    A small model is trained for that: first steps load libraries, generate code, and make buffers that stay.
    """
    if device.type != "cpu":
        return 0
    kind = config.model.spec.kind if config.model.spec else config.model.arch
    _train_small_model(kind, config.train.dtype, config.train.optimizer)
    _ = data.train.segments, data.val.segments  # which are held
    return resident_memory()


@cache
def _train_small_model(kind: ModelKind, dtype: TrainDtype, optimizer: Optimizer) -> None:
    load_libraries()
    heads = {"heads": 4, "kv_heads": 4, "head_width": 64, "mlp_width": 512} if kind == "transformer" else {}
    spec = ModelSpec(kind=kind, vocabulary=1024, width=256, layers=1, context=256, **heads)  # type: ignore[arg-type]
    train = TrainConfig(steps=1, context=256, batch_size=4, micro_batch=4, learning_rate=1e-3, dtype=dtype,
                        optimizer=optimizer)  # fmt: skip
    small = RunConfig(ModelConfig(spec=spec), train=train)
    _time(small, _random_batch(small), torch.device("cpu"), 0, 0.0)


def _random_batch(config: RunConfig) -> Batch:
    tokens = np.random.default_rng(0).integers(
        config.spec.vocabulary, size=(config.train.micro_batch, config.train.context + 1)
    )
    return Batch(tokens[:, :-1], tokens[:, 1:], None)


def _part(batch: Batch, rows: int, context: int) -> Batch:
    """The first `context` tokens of the first rows."""
    parts = (None if part is None else np.ascontiguousarray(part[:rows, :context])
             for part in (batch.inputs, batch.targets, batch.documents))  # fmt: skip
    return Batch(*parts)  # type: ignore[arg-type]


def _new_learner(config: RunConfig, device: torch.device) -> Learner:
    model = new_model(config)
    if config.model.lora:
        add_adapters(model, config.model.lora, config.train.seed)
    return Learner(config, model, device)


def _timed_steps(learner: Learner, batch: Placed, several: int, seconds: float) -> tuple[list[float], list[float]]:
    """Seconds of each micro-batch and of each update, in steps of `several` micro-batches."""
    micro: list[float] = []
    update: list[float] = []
    end = time.perf_counter() + seconds
    while len(update) < _STEPS or time.perf_counter() < end:
        for _ in range(several):
            micro.append(_timed(learner, lambda: learner.backward(batch, batch.targets.numel())))
        update.append(_timed(learner, learner.clip, learner.update))
    return micro, update


def _timed(learner: Learner, *work: Callable[[], object]) -> float:
    start = time.perf_counter()
    for part in work:
        part()
    if learner.device.type == "cuda":
        torch.cuda.synchronize(learner.device)
    return time.perf_counter() - start


def _typical(seconds: list[float]) -> float:
    """A low quartile; the first one warms up."""
    return sorted(seconds[1:])[len(seconds) // 4]


def share_of_peak(config: RunConfig, step_seconds: float, peak: float) -> float:
    """MFU: exact FLOPs of a step / (its time × `peak` FLOP/s of all devices)."""
    train = config.train
    work = flops(config.spec, train.context, lora=config.model.lora).per_token * train.batch_size * train.context
    return work / step_seconds / (peak * train.devices)
