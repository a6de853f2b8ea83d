"""What every test may use: the real model, a command line to run, and hypothesis' settings."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest

hypothesis.settings.register_profile("checks", deadline=None, max_examples=50, derandomize=True)
hypothesis.settings.load_profile("checks")


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """The real SmolLM2-135M-Instruct GGUF, fetched once into the user's cache as a user would fetch it."""
    from nextword.weights.catalogue import resolve

    return resolve("smollm2-135m-instruct")


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def nextword() -> Run:
    """Run `nextword ARGUMENTS` in a process of its own: `nextword("next", "I like", stdin="", env={...})`."""

    def run(
        *arguments: str, stdin: str = "", env: dict[str, str] | None = None, timeout: float = 120
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "nextword", *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=timeout,
            env=os.environ | {"NO_COLOR": "1"} | (env or {}),
            # pytest may itself run with SIGINT ignored (nohup, &); the command must not inherit that
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler) and None,
        )

    return run
