"""What was predicted and what was measured, run after run on this machine; and what that teaches the next plan."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from ..base import read_text

VARIABLE = "NEXTWORD_LEDGER"
_SAME_DATA_LAST = 8  # entries that corrections look back on


@dataclass(frozen=True)
class Entry:
    """One run that ended. Bytes, seconds, bits a byte of held-out text; "formula" and "law" are uncorrected."""

    machine: str
    when: str
    run: str
    kind: str
    parameters: int
    flops_per_token: float
    tokens: int
    context: int
    micro_batch: int
    precision: str
    threads: int
    peak: float
    data: str
    formula_memory: float
    predicted_memory: float
    measured_memory: float
    predicted_seconds: float
    measured_seconds: float
    law_bits: float
    predicted_bits: float
    measured_bits: float
    id: str = ""  # of the run, which is resumed under the same; older entries have none

    @property
    def key(self) -> tuple[str, str]:
        """What only entries of one run share: a copied folder is another run."""
        return (self.id or self.when, self.run)


@dataclass(frozen=True)
class Correction:
    """What past runs change in a plan: added bytes, the share of the peak reached, a factor on the loss."""

    runs: int = 0
    memory: float = 0.0
    share: float | None = None
    loss: float = 1.0


def path() -> Path:
    """Where the ledger is: $NEXTWORD_LEDGER, or the user's data folder."""
    if VARIABLE in os.environ:
        return Path(os.environ[VARIABLE])
    import platformdirs

    return Path(platformdirs.user_data_dir("nextword", appauthor=False)) / "ledger.jsonl"


def machine() -> str:
    """A name for this machine: its processor, cores and host."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return f"{platform.machine()}, {cores} cores, {platform.node()}"


def append(entry: Entry, place: Path | None = None) -> None:
    """Add one line. A ledger that cannot be written is no failure of the run."""
    place = place or path()
    with suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        with place.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(entry)) + "\n")


def read(place: Path | None = None) -> list[Entry]:
    """The last entry of each run, oldest first; lines that are not whole are left out."""
    found: dict[tuple[str, str], Entry] = {}
    with suppress(OSError):
        for line in read_text(place or path(), 64 << 20).splitlines():
            with suppress(ValueError, TypeError):
                entry = Entry(**json.loads(line))
                found.pop(entry.key, None)
                found[entry.key] = entry
    return list(found.values())


def correction(entries: Iterable[Entry], kind: str, precision: str, data: str = "") -> Correction:
    """What this machine's runs of the same kind teach; loss from runs on the same data where there are any."""
    here = [e for e in entries if e.machine == machine()][-64:]
    alike = [e for e in here if e.kind == kind and e.precision == precision][-_SAME_DATA_LAST:]
    on_data = [e for e in here if e.data == data] or here
    same_kind = [e for e in on_data if e.kind == kind] or on_data
    if not here:
        return Correction()
    memory = [e.measured_memory - e.formula_memory for e in (alike or here)]
    shares = [e.flops_per_token * e.tokens / e.measured_seconds / e.peak for e in alike if e.measured_seconds > 0]
    factors = [e.measured_bits / e.law_bits for e in same_kind[-_SAME_DATA_LAST:] if e.law_bits > 0]
    return Correction(
        runs=len(alike),
        memory=statistics.median(memory),
        share=statistics.median(shares) if shares else None,
        loss=statistics.median(factors) if factors else 1.0,
    )


def errors(entries: Sequence[Entry]) -> list[tuple[Entry, float, float, float]]:
    """Each run's relative errors of memory, time and loss: predicted / measured - 1."""
    return [
        (
            e,
            e.predicted_memory / e.measured_memory - 1,
            e.predicted_seconds / e.measured_seconds - 1,
            e.predicted_bits / e.measured_bits - 1,
        )
        for e in entries
    ]
