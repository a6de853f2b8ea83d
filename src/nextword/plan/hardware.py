"""Devices: memory, bandwidth and peak FLOP/s; "this" is measured."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from ..base import RunError, UsageError, atomic_write
from ..base.cores import cores
from ..base.errors import closest
from ..base.units import parse_bandwidth, parse_bytes, parse_flop_rate

RUNTIME = 0.6e9  # bytes; assumed for a GPU's context and its libraries
OWN = "Give your own as NAME=MEMORY,BANDWIDTH,SPEED, such as mine=24GB,1TB/s,165TFLOP/s"
_TF32 = 0.5  # float32 products as TF32, relative to bf16, on NVIDIA since Ampere and AMD CDNA 3
_CPU_RUNTIME = 0.3e9  # bytes; torch's libraries and Python, measured on Linux
_CACHE_FILE = "this-machine.json"
_SPEEDS = ("bandwidth", "peak", "peak_fp32")


@dataclass(frozen=True)
class Device:
    """A device. `peak` is that of dense 16-bit products; for a CPU, of float32, measured."""

    units: ClassVar = {"memory": "bytes", "bandwidth": "bytes/s", "peak": "FLOP/s", "peak_fp32": "FLOP/s"}
    name: str
    title: str
    memory: float
    bandwidth: float
    peak: float
    peak_fp32: float
    runtime: float
    source: str

    @property
    def is_cpu(self) -> bool:
        return self.peak == self.peak_fp32

    def speed(self, precision: str) -> float:
        """FLOP/s of matrix products in a training precision."""
        return self.peak_fp32 if precision == "fp32" else self.peak


def device(name: str, cache_folder: Path | None = None) -> Device:
    """A device by name, "this", "measure", or NAME=MEMORY,BANDWIDTH,SPEED.

    "this" is measured in about a second and cached in `cache_folder`, if given; "measure" measures again and keeps the
    higher speeds, since other load makes a measurement too low, never too high.
    Raises UsageError with the closest names for an unknown one.
    """
    wanted = name.strip().lower()
    if "=" in name:
        return _own(name)
    if wanted in ("this", "measure"):
        return _this(cache_folder, anew=wanted == "measure")
    if wanted not in (known := devices()):
        plain = {re.sub(r"\W|_", "", key): key for key in known}
        key = plain.get(re.sub(r"\W|_", "", wanted).removeprefix("nvidia"))
        if key is None:
            raise UsageError(
                f"device {name!r} is not known.{closest(wanted, known)} Known: {', '.join(known)}, this. {OWN}"
            )
        wanted = key
    return known[wanted]


def split_count(text: str) -> tuple[int, str]:
    """ "8xh100" → 8 and "h100"; a bare name is one."""
    match = re.fullmatch(r"\s*(\d+)\s*[x×*]\s*(.+)", text, re.IGNORECASE)
    if match is None:
        return 1, text
    if not 1 <= int(match[1]) <= 10_000_000:
        raise UsageError(f"{text!r}: the number of devices must be from 1 to 10,000,000")
    return int(match[1]), match[2]


def split_names(text: str) -> list[str]:
    """The names of a comma-separated list of devices; the commas of NAME=MEMORY,BANDWIDTH,SPEED are kept."""
    names, pieces = [], text.split(",")
    while pieces:
        take = 3 if "=" in pieces[0] else 1
        names.append(",".join(pieces[:take]))
        pieces = pieces[take:]
    return names


@cache
def devices() -> dict[str, Device]:
    """All named devices."""
    table = json.loads((Path(__file__).parent / "devices.json").read_text(encoding="utf-8"))
    return {name: _from_table(name, row, table["source"]) for name, row in table["devices"].items()}


def _from_table(name: str, row: dict[str, Any], source: str) -> Device:
    peak = row["tflops"] * 1e12
    fp32 = row["tflops_fp32"] * 1e12 if "tflops_fp32" in row else peak * _TF32
    return Device(name, row["title"], row["memory"] * 1e9, row["bandwidth"] * 1e12, peak, fp32, RUNTIME, source)


def _own(text: str) -> Device:
    name, _, rest = text.partition("=")
    values = [value.strip() for value in rest.split(",")]
    if not name.strip() or len(values) != 3:
        raise UsageError(f"device {text!r} is not understood. {OWN}")
    peak = parse_flop_rate(values[2], "device speed")
    return Device(
        name=name.strip(),
        title=name.strip(),
        memory=parse_bytes(values[0], "device memory"),
        bandwidth=parse_bandwidth(values[1], "device bandwidth"),
        peak=peak,
        peak_fp32=peak * _TF32,
        runtime=RUNTIME,
        source="as given",
    )


# ---- this machine


def _this(cache_folder: Path | None, anew: bool) -> Device:
    stored = cache_folder / _CACHE_FILE if cache_folder else None
    machine = {"processor": platform.processor() or platform.machine(), "cores": cores(), "node": platform.node()}
    known = _remembered(stored, machine)
    if known is not None and not anew:
        return known
    measured = _measure()
    if known is not None:
        speeds = {name: max(getattr(known, name), getattr(measured, name)) for name in _SPEEDS}
        measured = replace(measured, **speeds)
    if stored is not None:
        with suppress(OSError), atomic_write(stored) as file:  # a cache that cannot be written is not an error
            json.dump({"machine": machine, "device": asdict(measured)}, file, indent=2)
    return measured


def _remembered(stored: Path | None, machine: dict[str, Any]) -> Device | None:
    if stored is not None:
        with suppress(OSError, ValueError, KeyError, TypeError):
            known = json.loads(stored.read_text(encoding="utf-8"))
            if known["machine"] == machine:
                return Device(**known["device"])
    return None


def _measure() -> Device:
    """Run the measurement in a separate process, to keep numpy out of this one."""
    command = [sys.executable, "-m", "nextword.plan.machine"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        speeds = json.loads(done.stdout)
        speed, bandwidth = float(speeds["flops"]), float(speeds["bandwidth"])
    except (OSError, subprocess.SubprocessError, ValueError, KeyError) as error:
        raise RunError(f"this machine could not be measured ({error}). {OWN}") from error
    return Device(
        name="this",
        title=f"this machine's CPU, {cores()} cores",
        memory=_memory(),
        bandwidth=bandwidth,
        peak=speed,
        peak_fp32=speed,
        runtime=_CPU_RUNTIME,
        source="measured: the best of several float32 matrix products and reads in about a second",
    )


def _memory() -> float:
    """Bytes of memory, or a container's limit."""
    try:
        whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError) as error:
        raise RunError(f"this system does not report how much memory it has. {OWN}") from error
    return float(min([whole, *_limits()]))


def _limits() -> Iterable[int]:
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):
            yield int(Path(file).read_text())
