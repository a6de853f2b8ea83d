"""Measured peak FLOP/s of a device's matrix products, the reference for MFU."""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from ..base import atomic_write
from ..base.cores import cores
from ..plan import Device
from ..plan import device as plan_device
from .loss_module import AUTOCAST_DTYPE
from .threads import restored_threads

_FILE = "product-speeds.json"
_WIDTHS = {"cpu": 2048, "cuda": 8192}  # of square matrices
_SECONDS = 0.4


@dataclass(frozen=True)
class Peak:
    """FLOP/s of matrix products on one device, and how it was measured."""

    flops: float
    what: str


def measured_peak(device: torch.device, dtype_name: str, cache: Path, anew: bool = False) -> Peak:
    """The speed of matrix products in a run's dtype, measured once and stored in `cache`.

    `anew` measures again and keeps the higher value: other load makes a peak too low, never too high.
    """
    if device.type == "cpu" and dtype_name not in AUTOCAST_DTYPE:
        here: Device = plan_device("measure" if anew else "this", cache)
        return Peak(here.peak_fp32, "float32 products, measured on this CPU")
    dtype = AUTOCAST_DTYPE.get(dtype_name, torch.float32)
    name = f"{torch.cuda.get_device_name(device) if device.type == 'cuda' else 'CPU'}, {os.uname().nodename}, {dtype}"
    known = _read(cache / _FILE)
    if anew or name not in known:
        known[name] = max(known.get(name, 0.0), _product_speed(device, dtype))
        _write(cache / _FILE, known)
    where = "CPU" if device.type == "cpu" else torch.cuda.get_device_name(device)
    return Peak(known[name], f"{str(dtype).removeprefix('torch.')} products, measured on this {where}")


@restored_threads()
def _product_speed(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the fastest of several square products, with every core of a CPU."""
    width = _WIDTHS.get(device.type, 2048)
    torch.set_num_threads(max(torch.get_num_threads(), cores()))
    left = torch.randn(width, width, device=device).to(dtype)
    best, end = float("inf"), time.perf_counter() + _SECONDS
    while best == float("inf") or time.perf_counter() < end:
        began = time.perf_counter()
        float((left @ left)[0, 0])  # synchronizes with an asynchronous device
        best = min(best, time.perf_counter() - began)
    return 2 * width**3 / best


def _read(path: Path) -> dict[str, float]:
    with suppress(OSError, ValueError, AttributeError, TypeError):
        return {str(name): float(speed) for name, speed in json.loads(path.read_text(encoding="utf-8")).items()}
    return {}


def _write(path: Path, speeds: dict[str, float]) -> None:
    with suppress(OSError):  # failing to write the cache is not an error
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            json.dump(speeds, file, indent=2)
