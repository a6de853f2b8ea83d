"""The peak that shares refer to: measured in the run's own products, and measured again when a run beats it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nextword import plan
from nextword.plan import hardware
from nextword.train import peak as peaks
from nextword.train import run
from nextword.train.peak import Peak, measured_peak

CPU = torch.device("cpu")


@pytest.fixture
def slow_then_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose first measurement was beside a neighbour, and whose third is again."""
    speeds = iter((1e9, 5e9, 2e9))
    monkeypatch.setattr(peaks, "_product_speed", lambda device, dtype: next(speeds))


@pytest.mark.usefixtures("slow_then_fast")
def test_a_peak_is_remembered_and_measuring_again_keeps_the_larger(tmp_path: Path) -> None:
    assert measured_peak(CPU, "amp", tmp_path / "cache").flops == 1e9
    assert measured_peak(CPU, "amp", tmp_path / "cache").flops == 1e9
    assert [measured_peak(CPU, "amp", tmp_path / "cache", anew=True).flops for _ in range(2)] == [5e9, 5e9]
    assert measured_peak(CPU, "amp", tmp_path / "cache").flops == 5e9


def test_the_peak_is_of_the_products_that_the_precision_makes(tmp_path: Path) -> None:
    half, single = (measured_peak(CPU, precision, tmp_path) for precision in ("amp", "fp32"))
    assert half.what.startswith("bfloat16 products, measured on this CPU")
    assert single.what.startswith("float32 products, measured on this CPU")
    assert single.flops == plan.device("this", tmp_path).peak_fp32


def test_measuring_this_machine_again_keeps_the_larger_speeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = replace(plan.device("h100"), name="this", peak=2e12, peak_fp32=2e12, bandwidth=1e9)
    second = replace(first, peak=1e12, peak_fp32=1e12, bandwidth=3e9)
    found = iter((first, second))
    monkeypatch.setattr(hardware, "_measure", lambda: next(found))
    assert plan.device("this", tmp_path) == first
    again = plan.device("measure", tmp_path)
    assert (again.peak, again.bandwidth) == (2e12, 3e9)
    assert plan.device("this", tmp_path) == again


@pytest.mark.parametrize(("seconds", "expected"), [(1.0, [False]), (1e-6, [False, True])])
def test_a_run_that_beats_its_peak_has_it_measured_again(
    seconds: float, expected: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    def measure(device: torch.device, precision: str, cache: Path, anew: bool = False) -> Peak:
        asked.append(anew)
        return Peak(1e12, precision)

    monkeypatch.setattr(run, "measured_peak", measure)
    found = run._peak(CPU, "amp", 1e7 / seconds)
    assert asked == expected
    assert found.what == "amp"


def test_a_damaged_file_of_speeds_is_measured_anew(tmp_path: Path) -> None:
    (tmp_path / "product-speeds.json").write_text("[1]", encoding="utf-8")
    assert measured_peak(CPU, "amp", tmp_path).flops > 1e6
    assert json.loads((tmp_path / "product-speeds.json").read_text(encoding="utf-8"))
