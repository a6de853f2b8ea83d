"""The edge of the program: one line an error, the right exit code, nothing else."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nextword.base import RunError, UsageError
from nextword.cli import _errors, main
from nextword.cli._app import VERBS

COMMAND = [sys.executable, "-m", "nextword"]


@pytest.fixture(autouse=True)
def _interrupts_as_before() -> Iterator[None]:
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)


def test_help_lists_every_verb(nextword):
    done = nextword("--help")
    assert done.returncode == 0
    assert done.stderr == ""
    for verb in VERBS:
        assert re.search(rf"^  {verb} ", done.stdout, re.MULTILINE)


def test_no_arguments_show_the_help(nextword):
    assert nextword().stdout == nextword("--help").stdout


def test_version(nextword):
    import nextword as package

    assert nextword("--version").stdout == f"nextword {package.__version__}\n"


def test_help_imports_neither_torch_nor_numpy_nor_rich():
    code = "import sys; from nextword.cli import main; main(['--help']); print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split()
    assert "click" in modules
    assert not {"torch", "numpy", "rich", "transformers", "vl_convert"} & set(modules)


def test_help_lists_and_bad_names_need_no_torch(tmp_path):
    code = """
import sys
sys.modules["torch"] = None  # importing it fails
import click
from nextword.cli import main
from nextword.cli._app import app

def lines(command, words):
    yield [*words, "--help"]
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            yield from lines(command.get_command(context, name), [*words, name])

for line in lines(app, []):
    assert main(line) == 0, line
assert main(["eval", "--list"]) == 0
assert main(["eval", "nosuch"]) == 2
assert main(["complete", "-t", "-1", "hi"]) == 2
assert main(["models", "list"]) == 0
"""
    environment = os.environ | {"NEXTWORD_CACHE": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "sentiment" in done.stdout
    assert "there is no task 'nosuch'" in done.stderr
    assert "temperature is -1" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["complet"], "there is no command 'complet'. Did you mean complete"),
        (["--versio"], "no such option '--versio'"),
        (["completion"], "missing argument"),
        (["completion", "tcsh"], "'tcsh' is not one of"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(nextword, arguments, expected):
    done = nextword(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("nextword: ")
    assert expected in done.stderr
    assert "--help" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script_names_the_program(nextword, shell):
    done = nextword("completion", shell)
    assert done.returncode == 0
    assert "nextword" in done.stdout
    assert "_NEXTWORD_COMPLETE" in done.stdout


def test_shell_completion_offers_verbs(nextword):
    done = nextword(env={"_NEXTWORD_COMPLETE": "bash_complete", "COMP_WORDS": "nextword co", "COMP_CWORD": "1"})
    assert {line.split(",")[1] for line in done.stdout.splitlines()} == {"compare-context", "complete", "completion"}


def test_output_on_a_full_disk_is_one_line_and_exit_1():
    with open("/dev/full", "w") as full:
        done = subprocess.run([*COMMAND, "--help"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("nextword: no space left on device")
    assert done.stderr.count("\n") == 1


def test_a_reader_who_leaves_early_is_no_error():
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run([*COMMAND, "--help"], stdout=write_end, stderr=subprocess.PIPE, text=True)
    os.close(write_end)
    assert (done.returncode, done.stderr) == (0, "")


WRITES = ("--help", "models list", "complete Hi --max-tokens 2", "next Hi", "plan inference gpt2")


@pytest.mark.parametrize(
    ("arguments", "closed"),
    [*((arguments, ">&-") for arguments in WRITES), ("--help", "<&- >&-"), ("--help", ">&- 2>&-")],
)
def test_writing_to_a_closed_output_is_one_line_and_exit_1(smollm2_path, arguments, closed):
    done = subprocess.run(
        f"{sys.executable} -m nextword {arguments} {closed}", shell=True, capture_output=True, text=True
    )
    assert done.returncode == 1
    line = "nextword: bad file descriptor. Standard output is closed\n"
    assert done.stderr == ("" if "2>&-" in closed else line)


@pytest.mark.parametrize("arguments", ["--help", "runs list", "chat"])
@pytest.mark.parametrize("closed", ["2>&-", "<&-"])
def test_closed_input_and_messages_are_survived(smollm2_path, arguments, closed):
    done = subprocess.run(
        f"{sys.executable} -m nextword {arguments} {closed}",
        shell=True,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert (done.returncode, "Traceback" in done.stderr) == (0, False)


def test_a_file_opened_later_does_not_get_the_descriptor_of_a_closed_output(tmp_path: Path):
    """Else what a library prints would be written into it."""
    code = (
        "import os, nextword.cli as cli; cli._replace_closed_streams();"
        f"file = open({str(tmp_path / 'kept')!r}, 'w'); assert file.fileno() > 2"
    )
    done = subprocess.run(f'{sys.executable} -c "{code}" <&- >&- 2>&-', shell=True)
    assert done.returncode == 0


def _verb_raising(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    import click

    import nextword.cli.completion as module

    def command() -> None:
        raise error

    monkeypatch.setattr(module, "command", click.command()(command))


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UsageError("top-k is -1. It must be 0 or more"), 2, "top-k is -1. It must be 0 or more"),
        (RunError("no network"), 1, "no network"),
        (KeyboardInterrupt(), 130, ""),
        (FileNotFoundError(2, "No such file or directory", "a.txt"), 1, "a.txt: no such file or directory"),
        (OSError(28, "No space left on device"), 1, "no space left on device. Free some space"),
        (MemoryError(), 1, "out of memory. Use a smaller model"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
            1,
            "out of memory.",
        ),
        (RuntimeError("a\nb"), 1, "internal error: RuntimeError: a b."),
        (SystemExit(3), 3, ""),
        (SystemExit("no"), 1, "no"),
        (BrokenPipeError(32, "Broken pipe"), 0, ""),
    ],
)
def test_each_kind_of_error_has_its_code_and_line(monkeypatch, capsys, error, code, line):
    _verb_raising(monkeypatch, error)
    assert main(["completion"]) == code
    printed = capsys.readouterr().err
    assert printed.startswith(f"nextword: {line}" if line else "")
    assert printed.count("\n") == bool(line)


def test_an_import_error_that_wraps_an_interrupt_counts_as_the_interrupt(monkeypatch, capsys):
    error = ImportError("initialization failed")
    error.__cause__ = KeyboardInterrupt()
    _verb_raising(monkeypatch, error)
    assert main(["completion"]) == 130
    assert capsys.readouterr().err == ""


def test_debugging_shows_the_traceback(monkeypatch, capsys):
    monkeypatch.setenv("NEXTWORD_DEBUG", "1")
    _verb_raising(monkeypatch, RunError("no network"))
    assert main(["completion"]) == 1
    printed = capsys.readouterr().err
    assert "Traceback" in printed
    assert printed.endswith("nextword: no network\n")


def test_message_of_an_operating_system_error_without_a_number():
    assert _errors.explain(OSError("cannot seek")) == ("cannot seek", 1)


@pytest.mark.parametrize("after", [0.05, 0.2, 0.4, 0.8, 3.0])
def test_ctrl_c_while_torch_is_imported_is_quiet(tmp_path: Path, after: float):
    script = tmp_path / "slow.py"
    script.write_text(
        "import sys, click, nextword.cli.completion as module\n"
        "from nextword.cli import main\n"
        "@click.command()\n"
        "def command():\n"
        "    print('started', flush=True)\n"
        "    import torch, time\n"
        "    time.sleep(60)\n"
        "module.command = command\n"
        "sys.exit(main(['completion']))\n"
    )
    process = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler) and None,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        time.sleep(after)
        process.send_signal(signal.SIGINT)
        _, printed = process.communicate(timeout=20)
    finally:
        process.kill()
        process.communicate()
    assert (process.returncode, printed) == (130, "")
