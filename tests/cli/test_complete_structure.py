"""nextword complete --json-schema, --regex, --choices: what is written, and wrong options in one line."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nextword.cli import main

SCHEMA = {"type": "object", "properties": {"good": {"type": "boolean"}}, "required": ["good"]}
Said = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def tiny(tiny_model: Callable[..., Path]) -> str:
    return str(tiny_model())


@pytest.fixture
def schema(tmp_path: Path) -> Path:
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(SCHEMA | {"additionalProperties": False}))
    return file


def test_json_under_a_schema_is_printed_alone(tiny: str, schema: Path, capsys: Said) -> None:
    assert main(["complete", "-m", tiny, "--json-schema", str(schema), "Is it good? "]) == 0
    said = capsys.readouterr()
    assert said.out in ('{"good": true}\n', '{"good": false}\n')
    assert said.err == ""


def test_a_regex_holds_for_each_of_several_completions(tiny: str, capsys: Said) -> None:
    arguments = ("--regex", r"\d{4}-\d\d", "-n", "3", "--speculate", "4", "--json")
    assert main(["complete", "-m", tiny, *arguments, "It was in "]) == 0
    data = json.loads(capsys.readouterr().out)
    texts = [completion["text"] for completion in data["completions"]]
    assert len(texts) == 3
    assert all(re.fullmatch(r"[0-9]{4}-[0-9]{2}", text) for text in texts)
    assert data["settings"]["regex"] == r"\d{4}-\d\d"
    assert [completion["finish_reason"] for completion in data["completions"]] == ["stop"] * 3


@pytest.mark.parametrize(
    ("choices", "texts"),
    [
        ("yes,no", {"yes", "no"}),
        (" yes, no", {" yes", " no"}),
        ('["one, two", "[three]"]', {"one, two", "[three]"}),
    ],
)
def test_one_of_the_choices_is_written_spaces_and_commas_included(
    choices: str, texts: set[str], tiny: str, capsys: Said
) -> None:
    arguments = ("--choices", choices, "-n", "12", "--seed", "1", "--json")
    assert main(["complete", "-m", tiny, *arguments, "Well?"]) == 0
    found = {completion["text"] for completion in json.loads(capsys.readouterr().out)["completions"]}
    assert found == texts


def test_a_text_that_max_tokens_cuts_is_told_of(tiny: str, capsys: Said) -> None:
    assert main(["complete", "-m", tiny, "--regex", "a{9}", "--max-tokens", "4", "a"]) == 0
    said = capsys.readouterr()
    assert said.out == "aaaa\n"
    assert said.err == "nextword: the text is incomplete: --max-tokens was reached\n"


WRONG: dict[str, tuple[tuple[str, ...], str]] = {
    "two structures": (("--regex", "a", "--choices", "b"), "--regex and --choices exclude each other"),
    "a bad regex": (("--regex", "a("), "unclosed group"),
    "an empty regex": (("--regex", ""), "empty"),
    "no choices": (("--choices", ""), "a choice is empty"),
    "an empty choice": (("--choices", "a,,b"), "a choice is empty"),
    "a broken array": (("--choices", '["a"'), "not a JSON array"),
    "an array of numbers": (("--choices", "[1]"), "takes text"),
    "a missing file": (("--json-schema", "nowhere.json"), "nowhere.json: no such file"),
    "a folder": (("--json-schema", "folder"), "folder: this is a folder"),
    "no text": (("--json-schema", "binary"), "binary: not UTF-8"),
    "no JSON": (("--json-schema", "words"), "words: json_schema is not valid JSON"),
    "a list": (("--json-schema", "list"), "takes a JSON object"),
    "no schema": (("--json-schema", "wrong"), "objet"),
    "a huge file": (("--json-schema", "huge"), "at most"),
    "a deep file": (("--json-schema", "deep"), "recursion"),
}
FILES = {
    "binary": b"\xff\xfe{}",
    "words": b"a schema",
    "list": b"[{}]",
    "wrong": b'{"type": "objet"}',
    "huge": b" " * (1 << 21),
    "deep": b"[" * 100_000,
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_structure_is_one_line_before_a_model_is_loaded(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    (tmp_path / "folder").mkdir()
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("nextword.cli.complete.load_model", lambda *_: pytest.fail("a model was loaded"))
    arguments, fix = WRONG[case]
    assert main(["complete", *arguments, "x"]) == 2
    said: Any = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert fix.lower() in said.err.lower()
