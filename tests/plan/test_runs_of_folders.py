"""Runs' folders become the table that a law is fitted to."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from nextword.base import UsageError
from nextword.cli import _console, main
from nextword.plan import flops, parameters, shape_for
from nextword.plan.laws import law
from nextword.plan.run_config import ModelConfig, RunConfig, TrainConfig
from nextword.plan.run_tables import read_runs
from nextword.plan.runs import from_folders
from nextword.plan.shape_search import recurrent_for
from nextword.spec import ModelSpec


def run(
    folder: Path, size: float, tokens: int, loss: float | None, data: str = "text", base: str = "",
    spec: ModelSpec | None = None,
) -> int:  # fmt: skip
    """A run's folder as `nextword train` writes it, and its parameters."""
    spec = spec or shape_for(size, vocabulary=512)
    folder.mkdir(parents=True)
    RunConfig(ModelConfig(spec=spec, base=base), train=TrainConfig(steps=1)).write(folder / "config.toml")
    (folder / "run.json").write_text(json.dumps({"fingerprint": data}))
    if loss is not None:
        report = {"measured": {"tokens": tokens, "nats_per_token": loss}}
        (folder / "report.json").write_text(json.dumps(report))
    return parameters(spec).total


def test_folders_of_runs_are_the_table_of_their_parameters_tokens_and_losses(tmp_path: Path) -> None:
    sizes = [run(tmp_path / name, size, tokens, loss) for name, size, tokens, loss in
             (("a", 1e5, 1_000_000, 4.5), ("b", 3e5, 2_000_000, 4.0), ("c", 1e6, 5_000_000, 3.5))]  # fmt: skip
    run(tmp_path / "d", 1e5, 0, None)
    run(tmp_path / "e", 1e5, 1000, 3.0, base="smollm2-135m")
    (tmp_path / "notes").mkdir()
    runs = from_folders([tmp_path])
    specs = [shape_for(size, vocabulary=512) for size in (1e5, 3e5, 1e6)]
    assert runs.parameters == tuple(flops(spec).per_token / 6 for spec in specs)
    assert runs.counts == {"total": tuple(map(float, sizes)),
                           "matrices": tuple(float(parameters(spec).multiplying) for spec in specs)}  # fmt: skip
    assert runs.kinds == ("transformer",) * 3
    assert runs.tokens == (1e6, 2e6, 5e6)
    assert runs.losses == (4.5, 4.0, 3.5)
    assert runs.skipped == (f"{tmp_path / 'd'} is not finished", f"{tmp_path / 'e'} was fine-tuned")
    assert runs.take([0]).skipped == runs.skipped
    assert read_runs(tmp_path) == runs
    assert from_folders([tmp_path / "a", tmp_path / "c"]).parameters == (runs.parameters[0], runs.parameters[2])


def test_runs_of_different_tokens_are_refused(tmp_path: Path) -> None:
    run(tmp_path / "a", 1e5, 1000, 4.5)
    run(tmp_path / "b", 1e5, 1000, 4.5, data="other text")
    with pytest.raises(UsageError, match="used different tokens"):
        from_folders([tmp_path])


@pytest.mark.parametrize(("report", "wanted"), [("{", "not valid JSON"), ("[]", "not an object"),
                                                ('{"measured": {"tokens": 5}}', "lacks tokens")])  # fmt: skip
def test_a_damaged_report_is_named(report: str, wanted: str, tmp_path: Path) -> None:
    run(tmp_path / "a", 1e5, 1000, 4.5)
    (tmp_path / "a" / "report.json").write_text(report)
    with pytest.raises(UsageError, match=wanted):
        from_folders([tmp_path])


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no run there to fit"):
        from_folders([tmp_path])


def test_a_law_is_fitted_to_a_folder_of_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    true, number = replace(law("epoch"), E=1.5, A=50.0, B=200.0), 0
    for size in (3e4, 1e5, 3e5, 1e6, 3e6):
        for tokens in (1e6, 1e7, 1e8):
            folder, number = tmp_path / f"run-{number:02}", number + 1
            count = flops(shape_for(size, vocabulary=512)).per_token / 6
            run(folder, size, int(tokens), true.loss(count, tokens))
    run(tmp_path / "unfinished", 1e5, 0, None)
    _console.output.cache_clear()
    _console.messages.cache_clear()
    assert main(["plan", "laws", "--data", str(tmp_path), "--bootstrap", "0", "--method", "huber", "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert found["runs"] == 15
    assert found["fits"][0]["constants"]["alpha"] == pytest.approx(true.alpha, rel=0.02)
    assert found["fits"][0]["constants"]["beta"] == pytest.approx(true.beta, rel=0.02)
    assert "unfinished is not finished" in " ".join(err.split())


def test_a_folder_of_a_sweep_gives_minima_in_flops_a_token_for_each_kind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind, times in (("transformer", 1), ("lstm", 3)):
        for budget in (1e12, 2e12, 4e12):
            for size in (5e4, 1e5, 2e5, 4e5, 8e5):
                make = shape_for if kind == "transformer" else partial(recurrent_for, kind=kind)
                spec = make(size, vocabulary=512, context=128)
                per_token = flops(spec).per_token
                loss = (
                    1.9
                    + 60 * (budget / times) ** -0.13
                    + 0.05 * math.log(per_token / 9e5 / (budget / 1e12) ** 0.5) ** 2
                )
                run(tmp_path / f"{kind}-{budget:.0e}-{size:.0e}", size, round(budget / per_token), loss, spec=spec)
    _console.output.cache_clear()
    _console.messages.cache_clear()
    assert main(["plan", "laws", "--data", str(tmp_path), "--bootstrap", "0", "--method", "nnls", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    for kind in ("transformer", "lstm"):
        minima = found["kinds"][kind]["isoflops"]["minima"]
        assert [minimum["size"] for minimum in minima] == pytest.approx(
            [1.5e5 * 2 ** (n / 2) for n in range(3)], rel=0.01
        )
        assert list(found["kinds"][kind]["isoflops"]["exponents"]) == ["M", "D", "total", "matrices"]
    assert found["compute_at_equal_loss"]["factors"]["lstm"]["value"] == pytest.approx(3, rel=0.01)
