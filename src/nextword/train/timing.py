"""Some steps of a run timed before it starts: how many threads, and how long it will take."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from ..base.cores import check_threads, cores
from ..plan import RunConfig, flops
from .lora import add_adapters
from .loss import IGNORED
from .loss_module import HALF, Placed, Training, new_model, prepare
from .optimizers import make_optimizer


@dataclass(frozen=True)
class StepTime:
    """Seconds of one micro-batch, forward and backward, and of one update, with `threads` threads."""

    threads: int
    micro_batch: float
    update: float
    precision: str

    def step(self, run: RunConfig) -> float:
        """Seconds of a whole step of `run`, whose micro-batches are those that were timed; the last may be smaller."""
        return run.batch / (run.devices * run.micro_batch) * self.micro_batch + self.update


def time_steps(run: RunConfig, device: torch.device, threads: int | None = None, seconds: float = 4.0) -> StepTime:
    """Time the run's own step. On a CPU the number of threads that was quickest is kept, for want of `threads`.

    Two threads can be slower than one: a neighbour that holds one core makes the other wait for it.
    """
    if device.type != "cpu":
        return _time(run, device, 0, seconds)
    check_threads(threads)
    before = torch.get_num_threads()
    most = cores()
    candidates = [threads] if threads else sorted({most, max(1, most // 2), 1}, reverse=True)
    try:
        times = []
        for count in candidates:
            torch.set_num_threads(count)
            times.append(_time(run, device, count, seconds / len(candidates)))
    finally:
        torch.set_num_threads(before)
    return min(times, key=lambda each: each.step(run))


def half_pays(device: torch.device) -> bool:
    """Whether bfloat16 products are well faster than float32 ones here: on CPUs with AMX or AVX-512-BF16, and GPUs.

    On a CPU without them they are tens to hundreds of times slower, so that it is tried on a small product.
    """
    if device.type != "cpu":
        return torch.cuda.is_bf16_supported() if device.type == "cuda" else False
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    left = torch.randn(512, 512)
    return _seconds(left.bfloat16()) < 0.67 * _seconds(left)


def _seconds(matrix: torch.Tensor) -> float:
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        matrix @ matrix
        best = min(best, time.perf_counter() - began)
    return best


def _time(run: RunConfig, device: torch.device, threads: int, seconds: float) -> StepTime:
    model = new_model(run).to(device)
    if run.lora:
        add_adapters(model, run.lora, run.seed)
    prepare(model, run)
    training = Training(model, run.precision)
    optimizer = make_optimizer(model, run)
    tokens = torch.randint(run.model.vocabulary, (run.micro_batch, run.context + 1), device=device)
    assert IGNORED < 0  # every target counts
    batch = Placed(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), None)
    micro: list[float] = []
    update: list[float] = []
    end = time.perf_counter() + seconds
    while len(micro) < 3 or time.perf_counter() < end:
        began = time.perf_counter()
        (training(batch) / batch.targets.numel()).backward()
        _finish(device)
        middle = time.perf_counter()
        torch.nn.utils.clip_grad_norm_(model.parameters(), run.clip or 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        _finish(device)
        micro.append(middle - began)
        update.append(time.perf_counter() - middle)
    half = len(micro) // 2  # the first ones warm up
    return StepTime(threads, sorted(micro[1:])[half // 2], sorted(update[1:])[half // 2], run.precision)


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def share_of_peak(run: RunConfig, step_seconds: float, peak: float) -> float:
    """Exact FLOPs of a step over what `peak` FLOP/s of all devices would have done in its time."""
    work = flops(run.model, run.context, lora=run.lora).per_token * run.batch * run.context
    return work / step_seconds / (peak * run.devices)


__all__ = ["HALF", "StepTime", "half_pays", "share_of_peak", "time_steps"]
