"""What comes from a file or a model is printed on a terminal, and never obeyed by it."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from rich.table import Table
from rich.text import Text

from nextword.base import UsageError, printable
from nextword.cli import _console, main
from nextword.cli._errors import explain

OBEYED = "\x1b]0;title\x07\x1b[2J\x9b31m\u202ereversed\r\x08\x7f"


def obeyed(text: str, keep: str = "\n") -> set[str]:
    """The characters of `text` that a terminal would do something about."""
    return {each for each in text if unicodedata.category(each) in ("Cc", "Cf", "Zl", "Zp") and each not in keep}


def on_terminal(*arguments: str, stdin: str = "") -> str:
    """What a command writes to a terminal."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "nextword", *arguments],
        stdin=subprocess.PIPE, stdout=theirs, stderr=theirs, env=os.environ | {"NO_COLOR": "1", "COLUMNS": "100"},
    )  # fmt: skip
    os.close(theirs)
    assert process.stdin is not None
    process.stdin.write(stdin.encode())
    process.stdin.close()
    found = b""
    while True:
        try:
            found += (piece := os.read(ours, 1 << 16))
        except OSError:  # all have closed the other side
            break
        if not piece:
            break
    process.wait()
    os.close(ours)
    return found.decode().replace("\r\n", "\n")


@pytest.mark.parametrize("colour", ["none", "256"])
def test_a_console_emits_no_control_character_of_the_data(colour: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    console = _console._console(io.StringIO())
    console._color_system = None if colour == "none" else console._color_system
    table = Table(title=OBEYED, caption=OBEYED)
    table.add_column(OBEYED)
    table.add_column("wide", no_wrap=True)
    table.add_row(OBEYED, OBEYED * 9)
    table.add_row(Text(OBEYED, "bold"), f"[link=file:///x]{OBEYED}[/link]")
    for each in (OBEYED, Text(OBEYED), table, [OBEYED]):
        console.print(each)
        console.print(each, soft_wrap=True)
        console.print("before", each, style="dim")
    console.rule(OBEYED)
    assert isinstance(console.file, io.StringIO)
    printed = console.file.getvalue()
    assert obeyed(printed) == set()
    assert "\\x1b[2J" in printed
    assert "\\u202e" in printed


def test_text_in_any_script_is_printed_as_it_is() -> None:
    for text in ("naïve", "日本語", "👩‍💻", "می‌خواهم", "e\u0301", "a\u00a0b"):
        assert printable(text) == text


def test_an_error_is_escaped_and_cut_in_its_middle() -> None:
    message, code = explain(UsageError(f"{OBEYED} {'x' * 400_000}. Use: --device cpu"))
    assert code == 2
    assert len(message) < 700
    assert obeyed(message) == set()
    assert message.endswith("Use: --device cpu")
    assert obeyed(explain(RuntimeError(OBEYED))[0]) == set()
    assert obeyed(explain(FileNotFoundError(2, "No such file", OBEYED))[0]) == set()


def test_a_command_line_is_not_obeyed_either(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([OBEYED], ["models", "info", OBEYED], ["complete", f"--{OBEYED}"], ["plan", "inference", OBEYED]):
        assert main(arguments) == 2
        assert obeyed(capsys.readouterr().err) == set()


def test_what_a_gguf_file_says_of_itself_is_escaped_and_cut(tmp_path: Path, nextword: Any) -> None:
    path = tmp_path / f"a{OBEYED.replace('/', '')}.gguf"
    said = {"general.name": OBEYED + "x" * 5000, "general.license": OBEYED, "tokenizer.ggml.model": OBEYED}
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in said.items():
        writer.add_string(key, value)
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    for arguments in (("models", "info", str(path), "--tensors"), ("models", "info", str(path), "--json")):
        shown = nextword(*arguments).stdout
        assert "title" in shown
        assert obeyed(shown) == set()
    assert json.loads(shown)["title"] == said["general.name"]
    assert len(nextword("models", "info", str(path)).stdout) < 5000


def test_the_rows_that_a_dry_run_shows_are_escaped(
    tiny_model: Callable[..., Path], tmp_path: Path, nextword: Any
) -> None:
    rows = [{"text": f"{OBEYED} {number}", "label": f"yes{OBEYED}" if number % 2 else "no"} for number in range(20)]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    done = nextword("eval", str(path), "--template", "{text}: {label}", "--dry-run", "--no-store",
                    "--model", str(tiny_model()))  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "\\x1b[2J" in done.stdout
    assert obeyed(done.stdout + done.stderr) == set()


def test_a_chat_template_that_raises_has_one_short_line(
    tiny_model: Callable[..., Path], tmp_path: Path, nextword: Any
) -> None:
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(tiny_model(), folder)
    (folder / "chat_template.jinja").write_text('{{ raise_exception("\x1b]0;x\x07\x1b[2J" ~ "x" * 400000) }}')
    done = nextword("chat", "--model", str(folder), stdin="Hi\n")
    assert (done.returncode, done.stdout) == (2, "")
    assert "\\x1b[2J" in done.stderr
    assert done.stderr.count("\n") == 1
    assert len(done.stderr) < 800
    assert obeyed(done.stderr) == set()


def test_what_a_model_writes_is_raw_in_a_pipe_and_printed_on_a_terminal(
    tiny_model: Callable[..., Path], tmp_path: Path, nextword: Any
) -> None:
    (tmp_path / "prompt.txt").write_text(OBEYED)
    given = ("complete", "--model", str(tiny_model()), "--seed", "1", "--max-tokens", "200", "-f",
             str(tmp_path / "prompt.txt"))  # fmt: skip
    raw = nextword(*given).stdout
    assert obeyed(raw)  # every byte is a token of this model
    shown = re.sub(r"\x1b\[[0-9;]*m", "", on_terminal(*given))  # the prompt is dim
    assert obeyed(shown, "\n\t") == set()
    assert "\\x1b[2J" in shown
    assert shown.endswith(printable(raw, keep="\n\t"))
    both = on_terminal(*given, "-n", "2")
    assert obeyed(re.sub(r"\x1b\[[0-9;]*m", "", both), "\n\t") == set()
