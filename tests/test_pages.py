"""README and docs: every command line parses, the cheap ones run, and what is shown is what they print."""

from __future__ import annotations

import ast
import importlib.util
import io
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest

from nextword.base import UsageError
from nextword.cli import _console, main
from nextword.cli._app import app

ROOT = Path(__file__).resolve().parent.parent


def _make_outputs() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_outputs", ROOT / "docs" / "make_outputs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_outputs"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


OUTPUTS = _make_outputs()
PAGES = [page for page in OUTPUTS.PAGES if page.name != "planner-comparison.md"]  # other planners' commands
PLACEHOLDERS = {"SHELL": "bash"}  # of the text's commands, where a placeholder is no value


def in_blocks(text: str) -> Iterator[str]:
    """The lines of code blocks, a continued one as one line."""
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        if not language:
            yield from (line.removeprefix("$ ") for line in block.replace("\\\n", " ").splitlines())


def between_backticks(text: str) -> Iterator[str]:
    """Commands in the running text."""
    outside = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    yield from (" ".join(each.split()) for each in re.findall(r"`((?:nextword|python|torchrun) [^`]+)`", outside))


def commands(lines: Iterable[str]) -> Iterator[tuple[str, ...]]:
    """The words of each part of a line that starts nextword, python or torchrun."""
    for line in lines:
        if not re.search(r"(^|[|&] )(nextword|python|torchrun) ", line) or "..." in line:
            continue
        part: list[str] = []
        for word in [*_split(line), "|"]:
            if word not in ("|", "&&", ">"):
                part.append(word)
                continue
            if part and part[0] in ("nextword", "python", "torchrun"):
                yield tuple(PLACEHOLDERS.get(each, each) for each in part)
            part = []


def _split(line: str) -> list[str]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&>")
    lexer.whitespace_split = True
    lexer.commenters = ""
    return list(lexer)


TEXTS = {page.name: page.read_text(encoding="utf-8") for page in PAGES}
REFUSED = {block.command for page in PAGES for block in OUTPUTS.blocks(page) if block.shown.startswith("nextword: ")}
BLOCKS = {(name, words) for name, text in TEXTS.items() for words in commands(in_blocks(text))}
SHOWN = sorted(BLOCKS | {(name, words) for name, text in TEXTS.items() for words in commands(between_backticks(text))})


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the pages name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NEXTWORD_DEBUG", "")
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "one.txt").write_text("Once upon a time there was a king.\n" * 100)
    for name in ("notes.md", "prompt.txt"):
        (tmp_path / name).write_text("The capital of France is\n")
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("{text}: {output}\n")
    (tmp_path / "reviews.csv").write_text("text,label\ngood,positive\nbad,negative\n")
    OUTPUTS.write_files(tmp_path)
    return tmp_path


def takes_arguments(command: click.Command) -> bool:
    """Whether a group is a command of its own too, as `eval TASK` beside `eval runs`."""
    return any(isinstance(parameter, click.Argument) for parameter in command.params)


def parse(words: tuple[str, ...]) -> None:
    """Let click read a command line to its end, values and files included, and start nothing."""
    command, name, rest = app, "nextword", list(words[1:])
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        if takes_arguments(command) and rest[0] not in command.commands:
            break
        name = rest.pop(0)
        found = command.get_command(click.Context(command), name)
        assert found is not None, f"there is no command {name!r} in: {' '.join(words)}"
        command = found
    if isinstance(command, click.Group) and not takes_arguments(command):
        assert all(each in ("--help", "--version") for each in rest), words
        return
    arguments = [each for each in rest if each != "--help"]
    if arguments:
        command.make_context(name, arguments)


def test_the_generated_pages_are_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "make_reference.py", "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_pages_show_commands_of_every_verb() -> None:
    verbs = {words[1] for _, words in SHOWN if words[0] == "nextword"}
    assert {"complete", "next", "chat", "eval", "plan", "train", "runs", "models", "compare-context", "data"} <= verbs
    assert len(SHOWN) > 50
    assert any(words[0] == "torchrun" for _, words in SHOWN)


@pytest.mark.parametrize(("page", "words"), SHOWN, ids=lambda part: part if isinstance(part, str) else " ".join(part))
def test_every_command_line_of_the_pages_parses(page: str, words: tuple[str, ...], place: Path) -> None:
    if words[:2] == ("python", "-m"):
        assert importlib.util.find_spec(words[2]) is not None, f"{page}: there is no module {words[2]}"
        return
    if words[0] == "python":
        source = (ROOT / words[1]).read_text(encoding="utf-8")
        for option in (word for word in words[2:] if word.startswith("--")):
            assert f'"{option}"' in source, f"{page}: {words[1]} has no {option}"
        return
    if words[0] == "torchrun":
        from torch.distributed.run import parse_args

        given = parse_args(list(words[1:]))
        assert given.module
        words = (given.training_script, *given.training_script_args)
    if " ".join(words) not in REFUSED:
        parse(words)


def test_a_command_that_is_not_there_is_noticed(place: Path) -> None:
    for wrong in (
        "nextword look x",
        "nextword complete --gredy Hi",
        "nextword plan train --micro-batch many",
        "nextword runs go",
    ):
        with pytest.raises((AssertionError, click.ClickException, UsageError)):
            parse(tuple(wrong.split()))


def test_the_examples_of_every_help_text_parse(place: Path) -> None:
    def texts(command: click.Command) -> Iterator[str]:
        yield command.help or ""
        if isinstance(command, click.Group):
            for name in command.list_commands(click.Context(command)):
                found = command.get_command(click.Context(command), name)
                assert found is not None
                yield from texts(found)

    shown = "\n".join(texts(app)).replace("\\\n", " ")
    examples = [words for words in commands(line.strip() for line in shown.splitlines()) if words[0] == "nextword"]
    assert len(examples) > 40
    for words in examples:
        parse(words)


def cheap(words: tuple[str, ...]) -> bool:
    """Whether a line takes a second or two, with the default model at hand."""
    line = " ".join(words[1:])
    if line.startswith("plan"):
        return not line.startswith("plan laws --data")
    if line.startswith("eval") and line != "eval --list":
        return False
    return line.startswith(("models list", "models info", "eval --list", "next ")) or "--max-tokens" in line


@pytest.mark.parametrize(
    "words", sorted({words for _, words in BLOCKS if words[0] == "nextword" and cheap(words)}), ids=" ".join
)
def test_the_cheap_command_lines_run(
    words: tuple[str, ...], place: Path, smollm2_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"Dear Sir or Madam,\n")))
    _console.output.cache_clear()
    _console.messages.cache_clear()
    code = main(list(words[1:]))
    said = capsys.readouterr()
    assert code == (2 if " ".join(words) in REFUSED else 0), said.err
    assert said.out or said.err


def test_every_output_that_is_shown_is_what_is_printed(smollm2_path: Path) -> None:
    shown = [block for page in OUTPUTS.PAGES for block in OUTPUTS.blocks(page)]
    assert sum(not block.slow for block in shown) > 10
    for block in shown:
        if not block.slow:
            printed = OUTPUTS.stale(block)
            assert printed is None, f"{block.page.name}: {block.command}: run python docs/make_outputs.py\n{printed}"


def test_a_slow_output_is_of_a_command_that_its_page_shows() -> None:
    slow = [block for page in PAGES for block in OUTPUTS.blocks(page) if block.slow]
    assert any(block.command.startswith("nextword eval") for block in slow)
    for block in slow:
        assert block.shown.strip()
        assert (block.page.name, tuple(_split(block.command))) in BLOCKS


EVALUATIONS = [block for page in PAGES for block in OUTPUTS.blocks(page) if block.command.startswith("nextword eval ")]


def differences(shown: str) -> dict[tuple[str, str], tuple[float, float]]:
    """Each comparison of an evaluation's output: the difference it states, and that of the scores in the table."""
    table, _, rest = shown.partition("\n\n")
    _, heads, *rows = (re.split(r"\s{2,}", line) for line in table.splitlines())
    at = heads.index("accuracy")
    scores = {", ".join(row[:at]): float(row[at].rstrip("*")) for row in rows if len(row) > at + 1}
    said, found = " ".join(rest.split()), {}
    for one in scores:
        for other in scores:
            verdict = rf"(?:is better than|is worse than|and) {re.escape(other)}(?: \([\d,]+ items\))?"
            if stated := re.search(rf"(?<!of ){re.escape(one)} {verdict}: ([+-]\d\.\d+)", said):
                found[one, other] = float(stated[1]), scores[one] - scores[other]
    return found


def undisclosed(block: Any, text: str) -> list[str]:
    """Decimal numbers of the prose in a block's section that the block does not show."""
    before, after = text[: block.start], text[block.end :]
    section = before[before.rfind("\n## ") :] + after[: after.find("\n## ")]
    prose = re.sub(r"```.*?```|<!--.*?-->|\(.*?\)", "", section, flags=re.DOTALL)
    return [number for number in re.findall(r"(?<![\w.])\d*\.\d+(?![\w.]*\d)", prose) if number not in block.shown]


@pytest.mark.parametrize("block", EVALUATIONS, ids=lambda block: block.page.name)
def test_the_figures_of_an_evaluation_are_those_of_one_run(block: Any) -> None:
    found = differences(block.shown)
    assert len(found) > 1
    for stated, computed in found.values():
        assert stated == pytest.approx(computed, abs=0.0011)
    assert undisclosed(block, TEXTS[block.page.name]) == []


def test_a_figure_of_another_run_is_noticed() -> None:
    block = EVALUATIONS[0]
    one, other = next(iter(differences(block.shown)))
    row = re.compile(rf"^({re.escape(one)}\s{{2,}})\d\.\d+", re.MULTILINE)
    stated, computed = differences(row.sub(r"\g<1>0.111", block.shown))[one, other]
    assert stated != pytest.approx(computed, abs=0.0011)
    text = TEXTS[block.page.name]
    assert undisclosed(block, f"{text[: block.end]}```\nFour shots score 0.1234 (v1.2).\n{text[block.end + 4 :]}") == [
        "0.1234"
    ]


def test_a_stale_output_is_noticed_and_a_last_digit_is_not() -> None:
    printed = "a  71.36% ██▍   1,234 tokens\nothers  2.78% ░\n"
    assert OUTPUTS.alike(printed, printed)
    assert OUTPUTS.alike("a  71.35% ██▎   1,234 tokens\nothers  2.78% ░\n", printed)
    for now, before in ("71.36", "71.30"), ("1,234", "1,235"), ("others", "other"), ("░\n", "░\nmore\n"):
        assert not OUTPUTS.alike(printed.replace(now, before), printed)
    assert OUTPUTS.alike("...\nothers  2.78% ░\n", printed)
    assert not OUTPUTS.alike("...\nothers  3.78% ░\n", printed)
    assert not OUTPUTS.alike("others  2.78% ░\n...\na  71.36% ██▍   1,234 tokens\n", printed)


def test_outputs_are_written_where_their_commands_stand(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "text\n\n<!-- output: nextword --version -->\n```\nold\n```\n\n"
        "<!-- slow output of 2001-01-01: nextword eval --list -->\n```\nold\n```\n"
    )
    first, second = OUTPUTS.blocks(page)
    assert (first.command, first.slow, first.shown) == ("nextword --version", False, "old\n")
    assert (second.command, second.slow) == ("nextword eval --list", True)
    OUTPUTS.write(second, "new\n")
    printed = OUTPUTS.stale(first)
    OUTPUTS.write(first, printed)
    text = page.read_text()
    assert re.search(r"--version -->\n```\nnextword \d+\.\d+\.\d+\n```", text)
    assert re.search(r"of 20[^0]\d-\d\d-\d\d: nextword eval --list -->\n```\nnew\n```\n$", text)
    assert OUTPUTS.stale(next(iter(OUTPUTS.blocks(page)))) is None


def test_the_answers_to_zero_one_and_two_shots_are_real(smollm2_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "docs" / "complete.md").read_text(encoding="utf-8")
    command = next(words for words in commands(in_blocks(text)) if "--template" in words)
    rows = re.findall(r"^\| \d \| (.*) \| `('.*')` \|$", text, re.MULTILINE)
    assert len(rows) == 3
    for added, answer in rows:
        shots = shlex.split(added.replace("`", "")) if added != "none" else []
        assert main([*command[1:], *shots, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["completions"][0]["text"] == ast.literal_eval(answer)
