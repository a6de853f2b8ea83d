"""The ledger of predicted and measured runs on this machine, which corrects later plans.

A run only affects similar plans: same kind and precision, at most `SIMILAR` times larger or smaller, and for the loss
the same text and law. Runs of fewer than `LEAST_STEPS` steps are ignored.
"""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from ..base import UsageError, atomic_write, read_text
from ..base.cores import cores
from ..base.user_folders import user_folder
from ..plan import flops, parameters
from ..plan.small_runs import small_law
from .run_dir import Measured, RunRecord

VARIABLE = "NEXTWORD_LEDGER"
_MOST_BYTES = 64 << 20  # of the ledger
LEAST_STEPS = 300  # shorter runs are mostly warm-up
SIMILAR = 4.0  # largest ratio of parameters, and of tokens, to a run that a correction may come from
TOLERANCE = 0.05  # relative error of memory and time that a plan aims at
_OTHERWISE = 0.1  # share of the planned steps: the planned loss would be of another run
_LAST = 8  # number of recent entries used for corrections


@dataclass(frozen=True)
class Entry:
    """One finished run. Bytes, seconds, held-out bits per byte; "formula" and "law" are uncorrected."""

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
    id: str = ""  # of the run, kept on resuming; older entries have none
    steps: int = 0  # unknown for older entries
    law: str = ""  # that `law_bits` is by
    low_bits: float = math.nan  # the stated interval of the loss; unknown for older entries
    high_bits: float = math.nan

    @property
    def key(self) -> tuple[str, str]:
        """The identity of a run: a copied folder is a different run."""
        return (self.id, self.run)

    @property
    def held(self) -> bool:
        """Whether the loss was in its stated interval."""
        return self.low_bits <= self.measured_bits <= self.high_bits


@dataclass(frozen=True)
class Correction:
    """Corrections of a plan from past runs: the share of the peak, and measured / the law's losses.

    `runs` is the number behind the share, which does not depend on the text; `losses` are of similar runs on it.
    """

    runs: int = 0
    share: float | None = None
    losses: tuple[float, ...] = ()


def path() -> Path:
    """The ledger's path: $NEXTWORD_LEDGER, or in the user's data folder."""
    if VARIABLE in os.environ:
        return Path(os.environ[VARIABLE])
    return user_folder("data") / "ledger.jsonl"


def machine() -> str:
    """A name for this machine: its processor, cores and host."""
    return f"{platform.machine()}, {cores()} cores, {platform.node()}"


def append(entry: Entry, ledger: Path | None = None) -> None:
    """Add one line. Failing to write the ledger is not an error."""
    ledger = ledger or path()
    with suppress(OSError):
        ledger.parent.mkdir(parents=True, exist_ok=True)
        with ledger.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(entry)) + "\n")


def remember(folder: Path, record: RunRecord, measured: Measured) -> None:
    """Append a finished run, unless it had no plan, was fine-tuned, or took far more or fewer steps than planned."""
    config, predicted = record.config, record.expected
    taken = measured.tokens / config.total_tokens if measured.ends else 1.0
    if predicted is None or config.model.base or abs(taken - 1) > _OTHERWISE:
        return
    spec, train = config.spec, config.train
    bits = predicted.bits_per_byte / predicted.nats_per_token  # bits a byte, of a nat a token
    append(
        Entry(
            machine=machine(), when=time.strftime("%Y-%m-%dT%H:%M:%S"), run=str(folder.resolve()), kind=spec.kind,
            parameters=parameters(spec).total, flops_per_token=flops(spec, train.context).per_token,
            tokens=measured.tokens, context=train.context, micro_batch=train.micro_batch, precision=train.dtype,
            threads=measured.threads, peak=predicted.peak, data=record.fingerprint,
            formula_memory=predicted.formula_memory, predicted_memory=predicted.memory,
            measured_memory=measured.memory, predicted_seconds=predicted.seconds * taken,
            measured_seconds=measured.seconds,
            law_bits=predicted.law_bits, predicted_bits=predicted.bits_per_byte, measured_bits=measured.bits_per_byte,
            id=record.id, steps=measured.steps if measured.ends else train.steps, law=predicted.law,
            low_bits=predicted.low * bits, high_bits=predicted.high * bits,
        )
    )  # fmt: skip


def read(ledger: Path | None = None) -> list[Entry]:
    """The last entry of each run, oldest first; incomplete lines are skipped."""
    entries: dict[tuple[str, str], Entry] = {}
    with suppress(OSError):
        for line in read_text(ledger or path(), _MOST_BYTES).splitlines():
            with suppress(ValueError, TypeError):
                entry = Entry(**json.loads(line))
                entries.pop(entry.key, None)
                entries[entry.key] = entry
    return list(entries.values())


def forget(run: str | None = None, ledger: Path | None = None) -> int:
    """Remove a run's entries from the ledger, by its folder, or all of them; returns the number of lines.

    Incomplete lines are kept, unless all are removed. Raises UsageError for a run without an entry.
    """
    ledger = ledger or path()
    lines = read_text(ledger, _MOST_BYTES).splitlines() if ledger.exists() else []
    kept = [] if run is None else [line for line in lines if _folder(line) != str(Path(run).resolve())]
    if run is not None and len(kept) == len(lines):
        raise UsageError(f"the ledger {ledger} has no entry for {run}; nextword runs calibration lists its entries")
    if len(kept) < len(lines):
        with atomic_write(ledger) as file:
            file.writelines(f"{line}\n" for line in kept)
    return len(lines) - len(kept)


def _folder(line: str) -> str | None:
    with suppress(ValueError, TypeError, KeyError):
        return str(json.loads(line)["run"])
    return None


def correction(
    entries: Iterable[Entry], kind: str, precision: str, data: str = "", parameters: float | None = None,
    tokens: float | None = None,
) -> Correction:  # fmt: skip
    """Corrections from similar runs on this machine. Without `parameters` and `tokens`, of any size."""

    def similar(entry: Entry) -> bool:
        sizes = ((entry.parameters, parameters), (entry.tokens, tokens))
        return all(wanted is None or 1 / SIMILAR <= size / wanted <= SIMILAR for size, wanted in sizes)

    latest = {entry.key: entry for entry in entries if entry.machine == machine()}
    like = [e for e in latest.values() if e.kind == kind and e.steps >= LEAST_STEPS and similar(e)]
    alike = [e for e in like if e.precision == precision][-_LAST:]
    shares = [e.flops_per_token * e.tokens / e.measured_seconds / e.peak for e in alike if e.measured_seconds > 0]
    shares = [share for share in shares if share <= 1]  # above 1: the peak was measured under load
    on_text = [e for e in like if (e.data, e.law) == (data, small_law().name)][-_LAST:]
    return Correction(
        runs=len(alike),
        share=statistics.median(shares) if shares else None,
        losses=tuple(e.measured_bits / e.law_bits for e in on_text),
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


def within_tolerance(entries: Sequence[Entry]) -> tuple[int, int]:
    """In how many runs memory and time were within `TOLERANCE` of what was predicted."""
    found = errors(entries)
    return (
        sum(abs(memory) <= TOLERANCE for _, memory, _, _ in found),
        sum(abs(seconds) <= TOLERANCE for _, _, seconds, _ in found),
    )


def coverage(entries: Iterable[Entry]) -> tuple[int, int]:
    """In how many of the runs with a stated interval the loss was in it, and their number."""
    stated = [entry for entry in entries if not math.isnan(entry.low_bits)]
    return sum(entry.held for entry in stated), len(stated)
