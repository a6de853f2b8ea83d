"""Times some steps of a run before it starts, to choose threads and predict its time."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import torch

from ..base.cores import check_threads
from ..plan import RunConfig, flops
from ..plan.run_config import TrainConfig
from ..spec import ModelKind
from .learner import Learner
from .lora import add_adapters
from .loss_module import Placed, new_model
from .threads import restored_threads, thread_counts

_SECONDS_A_MICRO_BATCH = 1.0  # limit at half the peak, so that timing takes a few seconds


@dataclass(frozen=True)
class StepTime:
    """Seconds of one micro-batch, forward and backward, and of one update, with `threads` threads."""

    threads: int
    micro_batch: float
    update: float

    def step(self, train: TrainConfig) -> float:
        """Seconds of a complete step of such micro-batches; the last may be smaller."""
        return train.batch_size / (train.devices * train.micro_batch) * self.micro_batch + self.update


def time_part(config: RunConfig, device: torch.device, threads: int | None, peak: float) -> StepTime:
    """Time some steps of the run or, if one would take long at `peak` FLOP/s, with fewer and shorter rows.

    The time of the full micro-batch then follows from its FLOPs.
    """
    trial = config
    while _micro_flops(trial) > _SECONDS_A_MICRO_BATCH * peak / 2:
        rows, context = trial.train.micro_batch, trial.train.context
        if rows * context <= 64:
            break
        smaller = {"micro_batch": rows // 2} if rows > 1 else {"context": max(32, context // 2)}
        trial = trial.with_train(**smaller)
    timed = time_steps(trial, device, threads)
    return replace(timed, micro_batch=timed.micro_batch * _micro_flops(config) / _micro_flops(trial))


def _micro_flops(config: RunConfig) -> float:
    train = config.train
    return flops(config.spec, train.context).per_token * train.context * train.micro_batch


@restored_threads()
def time_steps(
    config: RunConfig, device: torch.device, threads: int | None = None, seconds: float = 4.0
) -> StepTime:  # fmt: skip
    """Time the run's own step. On a CPU, choose the fastest number of threads, unless `threads` is given.

    Two threads can be slower than one: other load on one core makes the other wait.
    """
    if device.type != "cpu":
        return _time(config, device, 0, seconds)
    check_threads(threads)
    candidates = [threads] if threads else thread_counts()
    times = []
    for count in candidates:
        torch.set_num_threads(count)
        times.append(_time(config, device, count, seconds / len(candidates)))
    return min(times, key=lambda timed: timed.step(config.train))


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


def _time(config: RunConfig, device: torch.device, threads: int, seconds: float) -> StepTime:
    train = config.train
    config = config.with_train(batch_size=train.micro_batch, devices=1, shard="none", tensor_parallel=1)
    model = new_model(config)
    if config.model.lora:
        add_adapters(model, config.model.lora, train.seed)
    learner = Learner(config, model, device)
    tokens = torch.randint(config.spec.vocabulary, (train.micro_batch, train.context + 1), device=device)
    batch = Placed(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), None)
    micro: list[float] = []
    update: list[float] = []
    end = time.perf_counter() + seconds
    while len(micro) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        learner.backward(batch, batch.targets.numel())
        _finish(device)
        middle = time.perf_counter()
        learner.clip()
        learner.update()
        _finish(device)
        micro.append(middle - start)
        update.append(time.perf_counter() - middle)
    half = len(micro) // 2  # the first ones warm up
    return StepTime(threads, sorted(micro[1:])[half // 2], sorted(update[1:])[half // 2])


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def share_of_peak(config: RunConfig, step_seconds: float, peak: float) -> float:
    """MFU: exact FLOPs of a step / (its time × `peak` FLOP/s of all devices)."""
    train = config.train
    work = flops(config.spec, train.context, lora=config.model.lora).per_token * train.batch_size * train.context
    return work / step_seconds / (peak * train.devices)
