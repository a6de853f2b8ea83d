"""What was predicted and what was measured, run after run on this machine; and what that teaches the next plan.

A run teaches only plans that it resembles: of the same kind and precision, at most `SIMILAR` times larger or smaller,
and for the loss on the same text. Runs under `LEAST_STEPS` steps teach nothing.
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
from ..plan import flops, parameters
from .run_dir import Measured, RunRecord

VARIABLE = "NEXTWORD_LEDGER"
_MOST_BYTES = 64 << 20  # of the ledger
LEAST_STEPS = 300  # shorter runs are mostly warm-up
SIMILAR = 4.0  # times: parameters, and tokens seen, of runs that a correction may come from
LEAST_RUNS = 3  # for a spread
ASSUMED = 0.30  # share of the loss on either side without such runs: twice the worst of those the law was fitted to
_LEAST_SPREAD = 0.01  # runs that only repeat one another say nothing of another size
_LAST = 8  # entries that corrections look back on
_STUDENT_T = {2: 4.3027, 3: 3.1824, 4: 2.7764, 5: 2.5706, 6: 2.4469, 7: 2.3646}  # 97.5%, by degrees of freedom


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
    steps: int = 0  # unknown of runs before this was kept

    @property
    def key(self) -> tuple[str, str]:
        """What only entries of one run share: a copied folder is another run."""
        return (self.id, self.run)


@dataclass(frozen=True)
class Loss:
    """A factor on the law's loss, and the factors between which such runs would fall."""

    factor: float = 1.0
    low: float = 1 - ASSUMED
    high: float = 1 + ASSUMED
    runs: int = 0

    @property
    def basis(self) -> str:
        """Where the interval comes from, in words."""
        if self.runs:
            return f"95% by {self.runs} like runs on this text"
        return f"±{ASSUMED:.0%} assumed: fewer than {LEAST_RUNS} like runs on this text"


@dataclass(frozen=True)
class Correction:
    """What past runs change in a plan: added bytes, the share of the peak reached, a factor on the loss.

    `runs` are those behind memory and share, which do not depend on the text.
    """

    runs: int = 0
    memory: float = 0.0
    share: float | None = None
    loss: Loss = Loss()


def path() -> Path:
    """Where the ledger is: $NEXTWORD_LEDGER, or the user's data folder."""
    if VARIABLE in os.environ:
        return Path(os.environ[VARIABLE])
    import platformdirs

    return Path(platformdirs.user_data_dir("nextword", appauthor=False)) / "ledger.jsonl"


def machine() -> str:
    """A name for this machine: its processor, cores and host."""
    return f"{platform.machine()}, {cores()} cores, {platform.node()}"


def append(entry: Entry, ledger: Path | None = None) -> None:
    """Add one line. A ledger that cannot be written is no failure of the run."""
    ledger = ledger or path()
    with suppress(OSError):
        ledger.parent.mkdir(parents=True, exist_ok=True)
        with ledger.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(entry)) + "\n")


def remember(folder: Path, record: RunRecord, measured: Measured) -> None:
    """Append a run that ended, unless it says nothing of plans: it had none, was fine-tuned, or was shortened."""
    config, predicted = record.config, record.expected
    if predicted is None or config.model.base or measured.shortened:
        return
    spec, train = config.spec, config.train
    append(
        Entry(
            machine=machine(), when=time.strftime("%Y-%m-%dT%H:%M:%S"), run=str(folder.resolve()), kind=spec.kind,
            parameters=parameters(spec).total, flops_per_token=flops(spec, train.context).per_token,
            tokens=measured.tokens, context=train.context, micro_batch=train.micro_batch, precision=train.dtype,
            threads=measured.threads, peak=predicted.peak, data=record.fingerprint,
            formula_memory=predicted.formula_memory, predicted_memory=predicted.memory,
            measured_memory=measured.memory, predicted_seconds=predicted.seconds, measured_seconds=measured.seconds,
            law_bits=predicted.law_bits, predicted_bits=predicted.bits_per_byte, measured_bits=measured.bits_per_byte,
            id=record.id, steps=train.steps,
        )
    )  # fmt: skip


def read(ledger: Path | None = None) -> list[Entry]:
    """The last entry of each run, oldest first; incomplete lines are left out."""
    entries: dict[tuple[str, str], Entry] = {}
    with suppress(OSError):
        for line in read_text(ledger or path(), _MOST_BYTES).splitlines():
            with suppress(ValueError, TypeError):
                entry = Entry(**json.loads(line))
                entries.pop(entry.key, None)
                entries[entry.key] = entry
    return list(entries.values())


def forget(run: str | None = None, ledger: Path | None = None) -> int:
    """Take a run's entries out of the ledger, by its folder, or all of them; how many lines there were.

    Incomplete lines stay, unless all go. Raises UsageError for a run that has no entry.
    """
    ledger = ledger or path()
    lines = read_text(ledger, _MOST_BYTES).splitlines() if ledger.exists() else []
    kept = [] if run is None else [line for line in lines if _folder(line) != str(Path(run).resolve())]
    if run is not None and len(kept) == len(lines):
        raise UsageError(f"the ledger {ledger} has no entry of {run}; nextword runs calibration lists those it has")
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
    """What this machine's runs that resemble a plan teach it. Without `parameters` and `tokens` any size will do."""

    def similar(entry: Entry) -> bool:
        sizes = ((entry.parameters, parameters), (entry.tokens, tokens))
        return all(wanted is None or 1 / SIMILAR <= size / wanted <= SIMILAR for size, wanted in sizes)

    latest = {entry.key: entry for entry in entries if entry.machine == machine()}
    like = [e for e in latest.values() if e.kind == kind and e.steps >= LEAST_STEPS and similar(e)]
    alike = [e for e in like if e.precision == precision][-_LAST:]
    shares = [e.flops_per_token * e.tokens / e.measured_seconds / e.peak for e in alike if e.measured_seconds > 0]
    shares = [share for share in shares if share <= 1]  # beyond: the peak was measured beside a neighbour
    return Correction(
        runs=len(alike),
        memory=statistics.median(e.measured_memory - e.formula_memory for e in alike) if alike else 0.0,
        share=statistics.median(shares) if shares else None,
        loss=loss_factor([e.measured_bits / e.law_bits for e in like if e.data == data and e.law_bits > 0][-_LAST:]),
    )


def loss_factor(factors: Sequence[float]) -> Loss:
    """measured / predicted of past runs → the factor for the next one and its 95% prediction interval.

    The logarithms are taken as normal: mean ± t(n - 1) s sqrt(1 + 1/n) (Student's t; Hahn and Meeker 1991, §4.7). Fewer
    than `LEAST_RUNS` correct nothing.
    """
    count = len(factors)
    if count < LEAST_RUNS:
        return Loss()
    logs = [math.log(factor) for factor in factors]
    mean, spread = statistics.fmean(logs), max(statistics.stdev(logs), _LEAST_SPREAD)
    reach = _STUDENT_T[count - 1] * spread * math.sqrt(1 + 1 / count)
    return Loss(math.exp(mean), math.exp(mean - reach), math.exp(mean + reach), count)


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
