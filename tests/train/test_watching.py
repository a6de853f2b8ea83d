"""A run's curve, read while it is written: in whole, and as what came since the last look."""

from __future__ import annotations

import json
import math
import os
import random
from pathlib import Path

import pytest

from nextword.base import UsageError
from nextword.train.metrics import METRICS, progress_of
from nextword.train.run_dir import RunRecord, is_locked, locked_run
from nextword.train.watching import Curve, Evaluation, Point, curve_of, summary, thinned
from run_folders import add_evaluation, add_forecast, add_sample, add_step, begin_run, finish_run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return begin_run(tmp_path / "run")


def test_a_look_at_a_time_adds_up_to_the_whole(folder: Path) -> None:
    draw, seen, place = random.Random(0), Curve(), ""
    for step in range(40):
        add_step(folder, step, loss=4 - step / 40)
        if step % 7 == 0:
            add_sample(folder, step + 1, f"sample {step}")
        if step % 10 == 9:
            add_evaluation(folder, step + 1, 3.0)
        if draw.random() < 0.4:
            new = curve_of(folder, place)
            place = new.place
            assert new.whole == (not seen.points)
            seen.points += new.points
            seen.evaluations += new.evaluations
            seen.samples += new.samples
    new, whole = curve_of(folder, place), curve_of(folder)
    assert seen.points + new.points == whole.points
    assert seen.evaluations + new.evaluations == whole.evaluations
    assert seen.samples + new.samples == whole.samples
    assert whole.points[9] == Point(9, 320, 5.0, 4 - 9 / 40)
    assert whole.evaluations[0] == Evaluation(10, 320, 5.0, 3.0, 1.5, 0.1)
    assert curve_of(folder, whole.place) == Curve(whole.place, whole=False)


def test_a_rewound_run_is_told_anew_and_only_with_the_steps_that_count(folder: Path) -> None:
    for step in range(6):
        add_step(folder, step, loss=float(step))
    place = curve_of(folder).place
    add_step(folder, 6, loss=math.nan, action="rewind", reason="NaN")
    assert not curve_of(folder, place).whole
    for step in range(3, 8):
        add_step(folder, step, loss=10.0 + step)
    again = curve_of(folder, place)
    assert again.whole
    assert [(p.step, p.loss) for p in again.points] == [(0, 0), (1, 1), (2, 2), *((s, 10.0 + s) for s in range(3, 8))]
    assert [p.tokens for p in again.points] == [32 * (step + 1) for step in range(8)]
    assert again.rejected == [{"step": 6, "action": "rewind", "reason": "NaN"}]
    (folder / METRICS).rename(folder / "before")
    add_step(folder, 0, loss=1.0)
    restarted = curve_of(folder, again.place)
    assert (restarted.whole, len(restarted.points)) == (True, 1)


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_line_that_is_being_written_is_left_for_the_next_time(folder: Path, cut: int) -> None:
    add_step(folder, 0, loss=3.0)
    whole = (folder / METRICS).read_bytes()
    with (folder / METRICS).open("ab") as file:
        file.write(whole.replace(b'"step": 0', b'"step": 1')[:cut])
    first = curve_of(folder)
    assert [point.step for point in first.points] == [0]
    with (folder / METRICS).open("ab") as file:
        file.write(whole.replace(b'"step": 0', b'"step": 1')[cut:])
    assert [point.step for point in curve_of(folder, first.place).points] == [1]


def test_lines_that_are_no_metrics_are_skipped(folder: Path) -> None:
    add_step(folder, 0, loss=3.0)
    bad = [b"", b"null", b"[1]", b'{"loss": 1}', b'{"step": "x", "loss": 1}', b'{"step": 1, "val": 3}', b"\xff\xfe",
           b"[" * 100_000, b'{"step": 1, "loss": "high"}', b'{"step": 2, "loss": {}, "tokens": "many"}']  # fmt: skip
    with (folder / METRICS).open("ab") as file:
        file.write(b"\n".join(bad) + b"\n")
    add_step(folder, 3, loss=2.0)
    found = curve_of(folder)
    assert [point.step for point in found.points] == [0, 1, 2, 3]
    assert (found.points[0].loss, found.points[-1].loss) == (3.0, 2.0)
    assert math.isnan(found.points[1].loss)
    assert progress_of(folder) == (4, False)


def test_a_place_is_checked(folder: Path) -> None:
    add_step(folder, 0, loss=3.0)
    for place in ("x", "1_2", "1_2_3_4_x", "-", "1" * 5000):
        with pytest.raises(UsageError, match="not the place of an earlier answer"):
            curve_of(folder, place)
    assert curve_of(folder, "1_2_3_4_5.0").whole
    inode = os.stat(folder / METRICS).st_ino
    for offset in (-5, 0, 10**12):
        assert curve_of(folder, f"{inode}_{offset}_0_32_0.5").whole


def test_a_long_curve_is_thinned_to_means(folder: Path) -> None:
    points = [Point(step, step + 1, float(step), float(step % 2)) for step in range(9_999)]
    points[5] = points[5]._replace(loss=math.nan)
    for most in (1, 2, 100, 5000, 9_999, 20_000):
        thin = thinned(points, most)
        assert len(thin) <= most
        assert (thin[-1].step, thin[-1].tokens) == (9_998, 9_999)
        assert all(math.isfinite(point.loss) for point in thin) == (most < 9_000)
    assert thinned(points, 5000)[0] == Point(1, 2, 1.0, 0.5)
    assert thinned([], 5) == []


def test_progress_is_read_from_the_end(folder: Path) -> None:
    assert progress_of(folder) == (0, False)
    for step in range(400):
        add_step(folder, step, loss=1.0)
    add_sample(folder, 400, "x" * 300_000)
    assert progress_of(folder) == (400, False)
    add_step(folder, 400, loss=9.0, action="stop", reason="a spike")
    assert progress_of(folder) == (400, True)


def test_the_state_of_a_run(folder: Path) -> None:
    def state() -> str:
        return summary(folder, RunRecord.read(folder))["state"]

    assert state() == "interrupted"
    with locked_run(folder):
        assert state() == "running"
    add_step(folder, 0, loss=9.0, action="stop", reason="a spike")
    assert state() == "stopped"
    finish_run(folder, steps=9)
    assert state() == "stopped"
    finish_run(folder)
    assert state() == "finished"
    assert json.dumps(summary(folder, RunRecord.read(folder)))


def test_a_run_under_way_has_the_last_forecast_of_its_end_and_a_finished_one_has_none(tmp_path: Path) -> None:
    folder = begin_run(tmp_path / "timed", minutes=1.0)
    assert summary(folder, RunRecord.read(folder))["forecast"] is None
    for step in range(4):
        add_step(folder, step, loss=3.0)
        add_forecast(folder, step + 1, 2.5 + step / 10, steps=20 + step, about=True)
    add_step(folder, 4, loss=3.0)
    row = summary(folder, RunRecord.read(folder))
    assert row["forecast"] == {"step": 4, "nats_per_token": 2.8, "low": pytest.approx(2.7), "high": pytest.approx(2.9),
                               "bits_per_byte": 1.4, "steps": 23, "about": True}  # fmt: skip
    assert (row["step"], row["steps"]) == (5, 23)
    finish_run(folder, steps=22)
    row = summary(folder, RunRecord.read(folder))
    assert (row["forecast"], row["steps"]) == (None, 22)


def test_a_look_does_not_keep_a_run_from_starting(folder: Path) -> None:
    with locked_run(folder):
        assert is_locked(folder)
    import fcntl
    import threading

    descriptor = os.open(folder, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    threading.Timer(0.03, os.close, [descriptor]).start()
    with locked_run(folder):
        pass
