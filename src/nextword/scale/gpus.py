"""The GPUs of a machine, which several small runs share."""

from __future__ import annotations

import math
import os

import torch

from ..base import UsageError

CONTEXT = 6e8  # bytes that CUDA takes in every process besides its tensors (assumed: .4 to .6 GB are usual)
_PARTS = 10_000  # Ray counts in these


def free_gpus() -> dict[str, int]:
    """The free bytes of each GPU, by its name in CUDA_VISIBLE_DEVICES. Raises UsageError without any."""
    if not torch.cuda.is_available():
        raise UsageError("the runs of this sweep are on a GPU, and this machine has none. Run it where there is one")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = visible.split(",") if visible else map(str, range(torch.cuda.device_count()))
    return {name.strip(): torch.cuda.mem_get_info(number)[0] for number, name in enumerate(names)}


def smallest_gpu() -> float:
    """Bytes of the smallest GPU of this machine; infinite without any."""
    count = torch.cuda.device_count()
    return min((torch.cuda.get_device_properties(number).total_memory for number in range(count)), default=float("inf"))


def gpu_share(memory: float, whole: float) -> float:
    """The share of a GPU of `whole` bytes for a run that takes `memory` bytes: one over a whole number of runs."""
    return math.floor(_PARTS / max(1, int(whole // (memory + CONTEXT)))) / _PARTS
