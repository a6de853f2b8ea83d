"""How an evaluation's numbers are shown: what the table, its footnotes and the comparisons say."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from nextword.base import UsageError
from nextword.cli import _console
from nextword.cli.eval_display import print_result
from nextword.evals.result_rows import ResultRow
from nextword.evals.results import Notes
from nextword.evals.statistics import estimate, spread
from nextword.evals.store import Stored
from nextword.evals.stored import result_of
from nextword.evals.summary import Result


def line(shots: int, seeds: int = 1, variant: str = "plain", stood: float | None = None, **more: object) -> ResultRow:
    """A line of ten items; `stood` shots were in its prompts."""
    cube = np.random.default_rng(shots).integers(0, 2, (seeds, 1, 10)).astype(float)
    stood = shots if stood is None else stood
    per_seed = tuple(
        SimpleNamespace(fewshot_seed=seed, permutation=0, score=float(scores.mean()), shots=stood)
        for seed, scores in enumerate(cube)
    )
    return ResultRow(
        "tiny", "form", shots, variant, estimate(cube.mean((0, 1))), float(cube.mean(2).min()),
        float(cube.mean(2).max()), spread(cube) if seeds > 1 else None, {}, (((0.0,),),), per_seed=per_seed,
        effective_shots=stood,
        **more,  # type: ignore[arg-type]
    )  # fmt: skip


def result(*lines: ResultRow, comparisons: tuple[Any, ...] = ()) -> Result:
    return Result(
        "reviews", "accuracy", 10, None, lines, comparisons, None, None, None, (), Notes(), 1.0, 0, ("test 0",)
    )


def shown(made: Result, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, **how: bool) -> list[str]:
    monkeypatch.setenv("COLUMNS", "200")
    _console.output.cache_clear()
    _console.messages.cache_clear()
    print_result(made, "kept", **how)
    return capsys.readouterr().out.splitlines()


def test_what_keeps_a_score_from_being_that_of_any_shots_is_a_footnote(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    single = line(4, one_set=True, caveat="with this one set of shots")
    few = [line(shots, 2, caveat="from 2 few-shot seeds; use 5 or more") for shots in (1, 3)]
    lines = shown(result(line(0), single, *few), capsys, monkeypatch)
    assert "* with this one set of shots" in lines
    assert "** from 2 few-shot seeds; use 5 or more" in lines
    table = "\n".join(lines)
    assert f" {single.score.value:.3f}* " in table
    assert all(f" {each.score.value:.3f}** " in table for each in few)
    assert not any("*" in each for each in shown(result(line(0)), capsys, monkeypatch))


@pytest.mark.parametrize(
    ("stood", "said"), [(3.25, "(3.25 in the prompts)"), (3.999, "(3.99 in the prompts)"), (4, "")]
)
def test_shots_that_were_dropped_are_told_beside_those_asked_for(
    stood: float, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = shown(result(line(0), line(4, 2, stood=stood)), capsys, monkeypatch, show_seeds=True)
    row = next(each for each in lines if each.startswith("4 shots"))
    assert row.startswith(f"4 shots {said}  " if said else "4 shots  ")
    assert any("in the prompts" in each for each in lines) == bool(said)


def test_each_draw_has_a_row_when_asked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = line(4, 3)
    rows = [each.split() for each in shown(result(line(0), made), capsys, monkeypatch, show_seeds=True)]
    assert ["shots", "seed", "permutation", "accuracy"] in rows
    for number, each in enumerate(made.per_seed):
        assert ["4", "shots", str(number + 1), "1", f"{each.score:.3f}"] in rows
    assert not any("seed order" in " ".join(row) for row in map(str.split, shown(result(made), capsys, monkeypatch)))


def test_baselines_are_compared_apart_from_what_was_asked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    named = [
        SimpleNamespace(sentence=sentence, primary=primary, level=0.025)
        for sentence, primary in (("one", True), ("random", False), ("two", True))
    ]
    lines = shown(result(line(0), comparisons=tuple(named)), capsys, monkeypatch)
    at = lines.index("- one")
    assert lines[at : at + 6] == [
        "- one",
        "- two",
        "2 comparisons: p-values and intervals corrected together (Bonferroni; 97.5% intervals)",
        "",
        "baselines, corrected separately:",
        "- random",
    ]


def test_the_test_of_orders_is_told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    test = SimpleNamespace(sentence="the 4 permutations do not differ significantly")
    tested = replace(line(4), permutations_test=test)
    lines = shown(result(line(0), tested), capsys, monkeypatch)
    assert "4 shots: the 4 permutations do not differ significantly" in lines


def test_a_kept_result_comes_back_whole_and_one_of_another_version_is_refused() -> None:
    made = result(*(replace(line(*given), per_seed=()) for given in ((0,), (4, 3))))
    plain = json.loads(json.dumps(made.to_dict()))
    assert result_of(Stored("name", 0.0, plain)) == made
    assert result_of(Stored("name", 0.0, plain | {"later": 1})) == made
    del plain["rows"][0]["score"]["low"]
    with pytest.raises(UsageError, match=r"'name' was stored by another version of nextword.*'low'.*Run it again"):
        result_of(Stored("name", 0.0, plain))
    with pytest.raises(UsageError, match="another version"):
        result_of(Stored("name", 0.0, asdict(made) | {"rows": 3}))


def test_baselines_alone_are_no_second_family_and_a_column_without_numbers_is_left_out(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = SimpleNamespace(sentence="calibrated", primary=False, level=0.05)
    lines = shown(result(line(0), comparisons=(alone,)), capsys, monkeypatch)
    at = lines.index("baselines:")
    assert lines[at - 1 : at + 2] == ["", "baselines:", "- calibrated"]
    assert lines[at - 2] != ""
    assert "range over seeds" not in "\n".join(lines)
    assert "range over seeds" in "\n".join(shown(result(line(0), line(4, 3)), capsys, monkeypatch))
