"""What past runs may change in a plan, and what they may not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from configs import config_of

from nextword import plan
from nextword.base import UsageError
from nextword.data.difficulty import Difficulty
from nextword.plan import shape_for
from nextword.plan.data_constraints import effective
from nextword.plan.small_runs import small_law
from nextword.train import calibration, planning
from nextword.train.calibration import Entry, correction

RUN = config_of(shape_for(1e6), context=256, batch_size=8, micro_batch=8, steps=500,
                learning_rate=1e-3, final_learning_rate=1e-4, warmup_steps=5, dtype="fp32")  # fmt: skip


def entry(factor: float = 1.0, **changes: object) -> Entry:
    """A run whose loss was `factor` times the law's."""
    values: dict[str, object] = {
        "machine": calibration.machine(), "when": "2026-11-24T12:00:00", "run": "runs/a", "kind": "transformer",
        "parameters": 1_000_000, "flops_per_token": 6e6, "tokens": 1_000_000, "context": 256, "micro_batch": 8,
        "precision": "fp32", "threads": 1, "peak": 1e11, "data": "this text", "formula_memory": 1e9,
        "predicted_memory": 1e9, "measured_memory": 1.1e9, "predicted_seconds": 100.0, "measured_seconds": 120.0,
        "law_bits": 2.0, "predicted_bits": 2.0, "measured_bits": 2.0 * factor, "steps": 500,
        "law": small_law().name,
    }  # fmt: skip
    return Entry(**(values | changes))  # type: ignore[arg-type]


def several(count: int, factor: float = 1.2, **changes: object) -> list[Entry]:
    return [entry(factor + 0.01 * number, run=f"runs/{number}", **changes) for number in range(count)]


def corrected(entries: list[Entry]) -> calibration.Correction:
    return correction(entries, "transformer", "fp32", "this text", 1e6, 1e6)


def test_like_runs_on_this_text_are_what_corrects_the_loss() -> None:
    known = corrected(several(4))
    assert known.runs == 4
    assert known.losses == pytest.approx((1.2, 1.21, 1.22, 1.23))
    assert known.share == pytest.approx(6e6 * 1e6 / 120 / 1e11)


@pytest.mark.parametrize(
    "change",
    [{"data": "other text"}, {"kind": "lstm"}, {"steps": 299}, {"steps": 0}, {"machine": "another"}, {"law": "older"},
     {"parameters": 240_000}, {"parameters": 4_200_000}, {"tokens": 200_000}, {"tokens": 5_000_000}],
    ids=str,
)  # fmt: skip
def test_runs_that_are_not_alike_leave_the_loss_as_the_law_has_it(change: dict[str, object]) -> None:
    assert corrected(several(6, **change)).losses == ()


def test_a_run_counts_once_however_often_it_was_entered() -> None:
    again = [entry(1.5), *[entry(1.2) for _ in range(9)]]
    assert corrected(again).losses == pytest.approx((1.2,))


def test_a_share_above_the_peak_teaches_nothing() -> None:
    assert corrected(several(3, measured_seconds=10.0)).share is None


def predicted(entries: list[Entry], text: str = "this text") -> tuple[float, float, float]:
    data = SimpleNamespace(fingerprint=text, train=SimpleNamespace(tokens=1e6), bytes_per_token=2.5,
                           difficulty=Difficulty(2.6, 1.9))  # fmt: skip
    machine = planning.Machine(plan.device("h100"), past=tuple(entries))
    found = planning.predict(RUN.with_train(steps=488), data, machine)  # type: ignore[arg-type]
    return found.low, found.nats_per_token, found.high


def test_runs_on_another_text_do_not_move_a_plan() -> None:
    assert predicted(several(4, data="other text")) == predicted([])


def test_like_runs_on_this_text_move_the_plan_and_narrow_its_interval() -> None:
    low, law, high = predicted([])
    lower, middle, higher = predicted(several(5, factor=1.10))
    assert law < middle < 1.12 * law
    assert higher / lower < high / low


def test_repeated_text_lowers_the_loss_less_than_fresh_text() -> None:
    """Muennighoff et al. 2023, section 6: up to 4 epochs are nearly fresh, none is worth more than R* fresh ones."""
    assert effective(4e6, 1e6) == pytest.approx(3.73e6, rel=0.01)
    assert effective(1e12, 1e6) == pytest.approx((1 + 15.387756) * 1e6)

    def loss(unique: float) -> float:
        train = SimpleNamespace(tokens=unique)
        text = SimpleNamespace(train=train, bytes_per_token=2.5, difficulty=Difficulty(2.6, 1.9))
        return planning.expected_loss(RUN.with_train(steps=4000), text).bits  # type: ignore[arg-type]

    assert loss(1e9) < loss(1e6) < 1.02 * loss(1e9)


def test_the_share_of_runs_in_their_interval_is_of_those_that_stated_one() -> None:
    stated = [entry(factor, low_bits=1.9, high_bits=2.1) for factor in (0.94, 0.96, 1.0, 1.04)]
    assert calibration.coverage([*stated, entry()]) == (3, 4)


def test_memory_and_time_count_as_predicted_within_five_percent() -> None:
    measured = [(1.04e9, 104.0), (1.06e9, 96.0), (0.94e9, 110.0), (1.0e9, 94.0)]
    runs = [entry(measured_memory=memory, measured_seconds=seconds) for memory, seconds in measured]
    assert calibration.within_tolerance(runs) == (2, 2)
    assert calibration.within_tolerance([]) == (0, 0)


# ---- forgetting


@pytest.fixture
def place(tmp_path: Path) -> Path:
    found = tmp_path / "calibration.jsonl"
    for name in ("a", "b", "a"):
        calibration.append(entry(run=str((tmp_path / name).resolve())), found)
    return found


def test_a_forgotten_run_is_gone_with_all_its_lines_and_the_others_stay(place: Path, tmp_path: Path) -> None:
    assert calibration.forget(str(tmp_path / "a"), place) == 2
    assert [Path(each.run).name for each in calibration.read(place)] == ["b"]


def test_a_run_that_the_ledger_does_not_know_is_refused(place: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no entry for .*nowhere"):
        calibration.forget(str(tmp_path / "nowhere"), place)
    assert len(place.read_text(encoding="utf-8").splitlines()) == 3


def test_all_runs_can_be_forgotten_and_incomplete_lines_are_kept_till_then(place: Path, tmp_path: Path) -> None:
    with place.open("a", encoding="utf-8") as file:
        file.write('{"half": \n')
    calibration.forget(str(tmp_path / "b"), place)
    assert '{"half": ' in place.read_text(encoding="utf-8")
    assert calibration.forget(None, place) == 3
    assert place.read_text(encoding="utf-8") == ""
    assert calibration.forget(None, tmp_path / "absent") == 0


def test_the_smallest_run_that_counts_has_300_steps() -> None:
    assert corrected([replace(each, steps=300) for each in several(3)]).runs == 3
