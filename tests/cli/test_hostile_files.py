"""Files that are no files, given to every verb: one line at once, whatever would have read for ever."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nextword.base import UsageError
from nextword.cli import _console, main
from nextword.plan import RunConfig

KINDS = {
    "a device without end": lambda path: path.symlink_to("/dev/zero"),
    "a pipe that nobody writes to": os.mkfifo,
    "a link to itself": lambda path: path.symlink_to(path),
}
# verb → the file to spoil, and its arguments for that file
VERBS: dict[str, tuple[str, tuple[str, ...]]] = {
    "plan a model": ("config.json", ("plan", "inference", "{}")),
    "fit a law": ("runs.csv", ("plan", "laws", "{}")),
    "show a model": ("config.json", ("models", "info", "{folder}")),
    "show a GGUF file": ("model.gguf", ("models", "info", "{}")),
    "complete a file": ("prompt.txt", ("complete", "-f", "{}")),
    "complete under a schema": ("schema.json", ("complete", "--json-schema", "{}", "Hi")),
    "complete with a folder": ("config.json", ("complete", "--model", "{folder}", "Hi")),
    "complete with a GGUF file": ("model.gguf", ("complete", "--model", "{}", "Hi")),
    "show a run": ("run.json", ("runs", "show", "{folder}")),
    "evaluate a table": ("rows.csv", ("eval", "{}", "--template", "{{text}}", "--target", "label")),
    "evaluate a task": ("task.yaml", ("eval", "{}")),
    "evaluate a template": ("form.txt", ("eval", "sentiment", "--template", "{}")),
    "train on a file": ("text.txt", ("train", "{}", "--steps", "1", "--dry-run")),
    "train on lines": ("text.jsonl", ("train", "{}", "--steps", "1", "--dry-run")),
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_never_ends_is_one_line_at_once(
    verb: str, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nextword.cli._catch_interrupts", lambda: None)
    monkeypatch.setattr("nextword.cli._ignore_interrupts", lambda: None)
    _console.messages.cache_clear()  # it holds the standard error of the test before
    name, arguments = VERBS[verb]
    KINDS[kind](tmp_path / name)
    given = [each.replace("{}", str(tmp_path / name)).replace("{folder}", str(tmp_path)) for each in arguments]
    given = [each.replace("{{text}}", "{text}") for each in given]
    assert main(given) in (1, 2)
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1, said.err
    assert "internal error" not in said.err
    assert name in said.err


@pytest.mark.parametrize("kind", KINDS)
def test_a_planned_run_that_is_no_file_is_refused(kind: str, tmp_path: Path) -> None:
    KINDS[kind](tmp_path / "plan.toml")
    with pytest.raises(UsageError, match=r"plan\.toml"):
        RunConfig.read(tmp_path / "plan.toml")
