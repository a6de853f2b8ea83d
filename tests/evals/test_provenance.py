"""How an evaluation was made, as its JSON, its store and its page tell it."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nextword import __version__, load
from nextword.cli import main
from nextword.evals import evaluate
from nextword.evals.design import Design
from nextword.evals.store import opened
from nextword.evals.task_loader import TaskOptions

FORM = "Text: {text}\nMood: {label}"


@pytest.fixture
def measured(
    reviews: Path, tiny_model: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[list[str]], dict[str, Any]]:  # fmt: skip
    """The JSON of a command line."""
    monkeypatch.chdir(tmp_path)

    def run(arguments: list[str]) -> dict[str, Any]:
        capsys.readouterr()
        assert main(arguments) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    return run


def test_the_command_that_is_told_gives_the_same_scores_again(
    measured: Callable[[list[str]], dict[str, Any]], reviews: Path, tiny_model: Callable[..., Path]
) -> None:
    first = measured([
        "eval", str(reviews), "-m", str(tiny_model()), "--template", "Te'xt: {text}\\nMood: {label}", "--shots", "0,2",
        "--fewshot-seeds", "3", "--permutations", "2", "--seed", "5", "--limit", "9", "--calibrate", "batch", "--json",
        "--no-store", "--report", "page.html",
    ])  # fmt: skip
    command = first["provenance"]["command"]
    program, *arguments = shlex.split(command)
    assert program == "nextword"
    again = measured(arguments)
    assert again["read"] == first["read"] > 0
    assert [line["scores"] for line in again["rows"]] == [line["scores"] for line in first["rows"]]
    assert {**again["provenance"], "date": ""} == {**first["provenance"], "date": ""}


@pytest.mark.parametrize("name", [["--name", "mine"], ["--name=mine"]])
def test_the_command_that_is_told_works_again_where_the_evaluation_was_named(
    name: list[str], measured: Callable[[list[str]], dict[str, Any]], reviews: Path, tiny_model: Callable[..., Path]
) -> None:
    first = measured([
        "eval", str(reviews), "-m", str(tiny_model()), *name, "--template", FORM, "--shots", "0", "--limit", "5",
        "--description", "a --name mine", "--json", "--store", f"{len(name)}.sqlite",
    ])  # fmt: skip
    assert first["name"] == "mine"
    command = shlex.split(first["provenance"]["command"])
    assert not {"--name", "mine", "--name=mine"} & set(command)
    assert "a --name mine" in command
    again = measured(command[1:])
    assert again["name"] != "mine"
    assert [line["scores"] for line in again["rows"]] == [line["scores"] for line in first["rows"]]


def test_the_store_keeps_how_an_evaluation_was_made(
    measured: Callable[[list[str]], dict[str, Any]], reviews: Path, tiny_model: Callable[..., Path]
) -> None:
    found = measured([
        "eval", str(reviews), "-m", str(tiny_model()), "--template", FORM, "--shots", "0", "--limit", "9", "--json",
        "--store", "kept.sqlite",
    ])  # fmt: skip
    with opened(Path("kept.sqlite")) as store:
        (kept,) = store.evaluations()
    assert kept.result["provenance"] == found["provenance"]


def test_provenance_names_model_rows_form_and_shots(reviews: Path, tiny_model: Callable[..., Path]) -> None:
    folder = tiny_model(seed=3)
    model = load(str(folder))
    design = Design((0, 2), fewshot_seeds=2, permutations=2, seed=4, limit=8)
    settings = TaskOptions(separator="\n--\n", description="Judge.")
    result = evaluate(reviews, model, templates={"plain": FORM}, design=design, options=settings)
    made = result.provenance
    assert made is not None
    assert (made.version, made.command) == (__version__, None)
    design = [made.design[name] for name in ("seed", "fewshot_seeds", "sampler", "limit")]
    assert design == [4, 2, "random", 8]
    assert made.scoring["choice_scoring"] == "raw"
    (record,) = made.models
    assert (record.file, record.precision, record.device) == (folder.name, "float32", "cpu")
    with opened(None) as store:
        assert record.weights == store.hash_of(folder)
    assert record.chat_template is model.tokenizer.chat_template is None
    (form,) = made.templates
    assert form.parts["template"] == FORM
    assert (form.parts["separator"], form.parts["description"]) == ("\n--\n", "Judge.")
    assert form.parts["choices_from"] == ["negative", "positive"]
    assert (made.task.source, made.task.rows) == ("reviews.csv", 8)
    assert made.task.scorers == ()
    drawn = {(each.variant, each.shots, each.fewshot_seed, each.permutation): each.rows for each in made.shots}
    assert set(drawn) == {("plain", 2, n, m) for n in (0, 1) for m in (0, 1)} | {
        ("random labels", 2, n, 0) for n in (0, 1)
    }
    for number in (0, 1):
        assert sorted(drawn["plain", 2, number, 0]) == sorted(drawn["plain", 2, number, 1])
    assert drawn["plain", 2, 0, 0] != drawn["plain", 2, 1, 0]
    assert str(folder.parent) not in json.dumps({**result.to_dict()["provenance"], "models": [record.file]})


def test_other_rows_have_another_hash(reviews: Path, tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    other = tmp_path / "reviews.csv"
    lines = reviews.read_text().splitlines()
    other.write_text("\n".join([lines[0], *(line.replace("0,", "1,") for line in lines[1:])]) + "\n")
    model = load(str(tiny_model()))
    hashes = [
        evaluate(path, model, shots=[0], templates={"plain": FORM}).provenance.task.rows_hash  # type: ignore[union-attr]
        for path in (reviews, reviews, other)
    ]
    assert hashes[0] == hashes[1] != hashes[2]
    assert len(hashes[0]) == len(hashlib.sha256().hexdigest())
