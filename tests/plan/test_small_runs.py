"""The law of small runs: its constants are those of the table, and its intervals hold."""

from __future__ import annotations

import csv
import math
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from nextword.plan.small_runs import LEVEL, SmallLaw, SmallRun, small_law

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
RUN = SmallRun("transformer", 5e4, 2e6, 512, 256, 2.6, 1.9)


def as_printed(law: SmallLaw, run: SmallRun) -> float:
    """The formula of docs/formulas.md."""
    powers = law.powers
    text = run.bigrams ** powers["bigrams"] * run.repeats ** powers["repeats"]
    shape = (run.vocabulary / 512) ** powers["vocabulary"] * (run.context / 256) ** powers["context"]
    too_small, too_short = (
        law.size[run.kind] * (1e5 / run.size) ** law.alpha,
        law.bytes[run.kind] * (1e6 / run.bytes) ** law.beta,
    )
    return text * shape * (law.floor + too_small + too_short)


@pytest.mark.parametrize("kind", ["transformer", "lstm", "gru", "rnn"])
def test_the_law_is_the_formula_of_its_documentation(kind: str) -> None:
    run = replace(RUN, kind=kind, vocabulary=1024, context=400)  # type: ignore[arg-type]
    assert small_law().bits(run) == pytest.approx(as_printed(small_law(), run))


def test_the_stored_constants_are_a_fit_to_the_stored_table() -> None:
    command = [sys.executable, str(BENCHMARKS / "small_runs.py"), "--fit", "--check"]
    found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert found.returncode == 0, found.stderr
    held = next(line for line in found.stdout.splitlines() if line.startswith("| all texts in turn"))
    runs, share = int(held.split("|")[2]), float(held.split("(")[1].split("%")[0])
    assert runs >= 40
    assert 80 <= share <= 97
    assert held in (Path(__file__).parents[2] / "docs" / "plan.md").read_text(encoding="utf-8")


def test_every_run_of_the_table_has_a_thousand_steps_and_some_kind_text_and_context_of_each() -> None:
    with (BENCHMARKS / "small_runs.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert min(int(row["steps"]) for row in rows) >= 1000
    fewest = {"kind": 4, "text": 10, "vocabulary": 3, "context": 3}
    assert all(len({row[name] for row in rows}) >= count for name, count in fewest.items())


def test_a_prediction_is_never_above_a_guess_nor_below_the_floor() -> None:
    law = small_law()
    assert law.expect(replace(RUN, bytes=10, size=10), guess=3.2).high == 3.2
    assert law.bits(replace(RUN, size=1e15, bytes=1e15)) > law.floor


def test_a_run_outside_the_table_is_said_to_be_and_has_a_wider_interval() -> None:
    inside, outside = (small_law().expect(replace(RUN, size=size), 8) for size in (5e4, 5e7))
    assert "beyond" not in inside.basis
    assert "size beyond its runs" in outside.basis
    assert outside.high / outside.low > 1.3 * inside.high / inside.low


def test_the_factor_is_the_law_without_runs_and_their_mean_with_many() -> None:
    law = small_law()
    none, one, many = (law.factor([1.2] * count) for count in (0, 1, 1000))
    assert none.value == 1 < one.value < many.value == pytest.approx(1.2, rel=1e-3)
    assert none.high / none.low > one.high / one.low > many.high / many.low


@pytest.mark.parametrize("count", [0, 1, 3, 8])
def test_intervals_hold_as_often_as_stated_where_the_spreads_are_true(count: int) -> None:
    law, draw = replace(small_law(), reach=1.6449), random.Random(count)
    held, trials = 0, 4000
    for _ in range(trials):
        text = draw.gauss(0, law.between)
        *seen, new = (math.exp(text + draw.gauss(0, law.within)) for _ in range(count + 1))
        factor = law.factor(seen)
        held += factor.low <= new <= factor.high
    assert held / trials == pytest.approx(LEVEL, abs=0.015)
