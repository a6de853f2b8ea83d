"""Chat: what its errors advise can be done in chat."""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nextword
from nextword.backend import Batch, Output
from nextword.base import UsageError
from nextword.cli import main
from nextword.cli.chat import HELP, Conversation, command, local_speaker
from nextword.runtime import CpuBackend


@pytest.fixture
def talker(tiny_model: Callable[..., Path], tmp_path: Path) -> Path:
    """A tiny model with a chat template and a context of 512 bytes."""
    folder = tmp_path / "talker"
    shutil.copytree(tiny_model(), folder)
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}\n{% endfor %}")
    return folder


def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path, text: str) -> str:
    monkeypatch.setattr("sys.stdin", io.StringIO(text + "\n"))
    assert main(["chat", "-m", str(folder), "--max-tokens", "4"]) != 0
    return capsys.readouterr().err


def no_memory(*_: Any) -> None:
    raise MemoryError


def not_a_number(_: CpuBackend, batch: Batch) -> Output:
    return Output(np.full((len(batch.logit_rows), 257), np.nan, np.float32), np.empty(0), np.empty(0, np.int64))


FAULTS: dict[str, tuple[str, Callable[[pytest.MonkeyPatch], object]]] = {
    "too long": ("x" * 600, lambda patch: None),
    "no room": ("x", lambda patch: patch.setattr("nextword.runtime.backend.free_memory", lambda: 1)),
    "NaN": ("x", lambda patch: patch.setattr(CpuBackend, "forward", not_a_number)),
    "no memory": ("x", lambda patch: patch.setattr(CpuBackend, "forward", no_memory)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_error_advises_only_what_there_is_in_chat(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], talker: Path, fault: str
) -> None:
    text, arrange = FAULTS[fault]
    arrange(monkeypatch)
    error = said(monkeypatch, capsys, talker, text)
    assert error.startswith("nextword: ")
    assert error.count("\n") == 1
    assert "internal error" not in error
    options = {option for parameter in command.params for option in parameter.opts}
    assert set(re.findall(r"(?<!\w)--?[a-z][a-z-]*", error)) <= options
    assert set(re.findall(r"(?<![\w/])/[a-z]+", error)) <= set(re.findall(r"/[a-z]+", HELP))
    assert "truncate" not in error


def test_a_conversation_beyond_the_context_goes_on_once_it_is_forgotten(talker: Path) -> None:
    conversation = Conversation(local_speaker(nextword.load(talker)), {"max_tokens": 4, "temperature": 0.0})
    list(conversation.answer("x" * 400))
    with pytest.raises(UsageError, match="/reset"):
        list(conversation.answer("y" * 400))
    conversation.reset(None)
    assert list(conversation.answer("y" * 400))
