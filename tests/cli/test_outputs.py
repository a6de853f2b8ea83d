"""Where verbs write: every path is tried before the work, and results are printed before files are written."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest

from cli_run import run
from nextword.cli._app import app
from nextword.cli._options import OutputPath

# Every other parameter that takes a path: it is read, not written.
INPUTS = {
    "complete json_schema", "serve api_key_file", "serve runs",
    "complete file", "next file", "eval shots_from", "eval include_path", "plan laws data", "train config",
    "scale show folder",
    "runs list root", "data show folder", "data sample folder",
    "runs show run", "runs compare runs", "runs resume run", "runs export run", "runs forget run",
    "eval runs list path", "eval runs show path", "eval runs remove path",
}  # fmt: skip


def commands(command: click.Command = app, name: str = "") -> Iterator[tuple[str, click.Command]]:
    """Every command of the program with its name, groups included that are commands of their own."""
    if command.params:
        yield name, command
    if not isinstance(command, click.Group):
        return
    context = click.Context(command)
    for child in command.list_commands(context):
        found = command.get_command(context, child)
        assert found is not None
        yield from commands(found, f"{name} {child}".strip())


def takes_a_path(parameter: click.Parameter) -> bool:
    metavar = parameter.metavar or ""
    named = parameter.name in ("out", "output", "plot", "report", "file", "folder")
    return named or isinstance(parameter.type, click.Path) or metavar.startswith(("FILE", "FOLDER"))


def test_every_path_that_is_written_is_of_the_type_that_tries_it_first() -> None:
    paths = {
        f"{name} {parameter.name}": parameter
        for name, command in commands()
        for parameter in command.params
        if takes_a_path(parameter)
    }
    written = {name for name, parameter in paths.items() if isinstance(parameter.type, OutputPath)}
    assert {"eval report", "eval out", "next plot", "plan budget out", "train out", "runs export out"} <= written
    assert set(paths) - written <= INPUTS


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXTWORD_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("x")


LINES = {
    "next": ("next", "--plot", "{}", "Hi"),
    "eval report": ("eval", "sentiment", "--report", "{}"),
    "eval out": ("eval", "sentiment", "--out", "{}"),
    "eval store": ("eval", "sentiment", "--store", "{}"),
    "plan train": ("plan", "train", "gpt2", "--plot", "{}"),
    "plan budget": ("plan", "budget", "--flops", "1e20", "--out", "{}"),
    "train": ("train", "books", "--minutes", "20", "--out", "{}"),
    "scale": ("scale", "books", "--minutes", "20", "--out", "{}"),
    "scale show": ("scale", "show", "sweep", "--config", "{}"),
    "runs show": ("runs", "show", "run", "--plot", "{}"),
    "runs compare": ("runs", "compare", "a", "b", "--plot", "{}"),
    "runs export": ("runs", "export", "run", "{}"),
    "models convert": ("models", "convert", "smollm2-135m-instruct", "{}"),
    "compare-context": ("compare-context", "books", "--plot", "{}"),
}


@pytest.mark.parametrize("line", LINES)
def test_a_path_that_cannot_be_written_is_refused_before_any_work(
    line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nextword.cli._options.load_model", None)  # whoever begins the work fails otherwise
    code, out, err = run(capsys, *(part.format("file/under.svg") for part in LINES[line]))
    assert (code, out) == (2, "")
    assert "file/under.svg: cannot be written (not a directory). Choose another path" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("line", [line for line in LINES if "--plot" in LINES[line]])
def test_a_missing_vl_convert_is_the_same_wrong_usage_everywhere(
    line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    code, out, err = run(capsys, *(part.format("picture.svg") for part in LINES[line]))
    assert (code, out) == (2, "")
    assert "pip install 'nextword[plot]'" in err


def test_an_evaluation_is_printed_and_kept_when_its_page_cannot_be_written(
    reviews: Path, tiny_model: Callable[..., Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "page.html")

    asked = (
        "eval", str(reviews), "-m", str(tiny_model()), "--template", "{text}: {label}", "--shots", "0", "--limit", "8",
    )  # fmt: skip
    with monkeypatch.context() as patched:
        patched.setattr("nextword.evals.report.atomic_write", full)
        code, out, err = run(capsys, *asked, "--report", "page.html", "--out", "files")
    assert code == 1
    assert "accuracy over 8 items" in out
    assert "the report could not be written (No space left on device)" in err
    assert Path("files/result.json").is_file()
    assert "accuracy over 8 items" in run(capsys, "eval", "runs", "show", "last")[1]
    assert "every answer was in the store" in run(capsys, *asked)[2]


def test_a_plan_is_printed_when_its_picture_cannot_be_written(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vl_convert.vegalite_to_svg", full)
    code, out, err = run(capsys, "plan", "train", "gpt2", "--plot", "plan.svg")
    assert code == 1
    assert "memory" in out
    assert "plan.svg: cannot be written (No space left on device)" in err
