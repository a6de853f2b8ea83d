"""Servers to test: `nextword serve` in a process of its own, on a free port of the loopback interface."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from serving import TEMPLATE, Server, running, starting

Start = Callable[..., Server]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start servers, which end with the test: `start(model, "--parallel", "2")`."""
    with starting() as begin:
        yield begin


@pytest.fixture(scope="session")
def smollm2(smollm2_path: Path) -> Iterator[Server]:
    """The default model, behind one server for all tests that only ask."""
    with running(smollm2_path, "--alias", "smollm2") as server:
        yield server


@pytest.fixture(scope="session")
def tiny_path(tiny_model: Callable[..., Path]) -> Path:
    """A model of a few thousand parameters whose tokens are bytes, with a chat template."""
    return tiny_model(chat_template=TEMPLATE)


CALLING = """\
{% if tools %}<tool_call>{{ tools | tojson }}{% endif %}{% for m in messages %}{{ m.role }}: {{ m.content }}
{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}{% endfor %}"""


@pytest.fixture(scope="session")
def calling(tiny_model: Callable[..., Path]) -> Iterator[Server]:
    """A tiny model whose template knows tools."""
    with running(tiny_model(seed=5, chat_template=CALLING), "--alias", "calling") as server:
        yield server


@pytest.fixture(scope="session")
def tiny(tiny_path: Path) -> Iterator[Server]:
    """The tiny model behind one server for all tests that only ask."""
    with running(tiny_path, "--alias", "tiny") as server:
        yield server
