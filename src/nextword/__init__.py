"""Plan, train, prompt, measure and serve language models, with the arithmetic shown.

    import nextword
    model = nextword.load("smollm2-135m-instruct")
    print(model.complete("I like to eat", max_tokens=20).text)

Importing nextword is light, and a model on a CPU runs without torch: that is for training and GPUs.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from .base import NextwordError, RunError, UsageError
from .spec import ModelSpec

if TYPE_CHECKING:
    from . import plan
    from .engine import LanguageModel, SamplingParams, load

# How long threads of torch's OpenMP spin while they wait for each other; read when torch is loaded. The default is
# milliseconds, which starves the working thread as soon as another program needs a core: docs/decisions.md
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")

__version__ = "0.1.0"

_HOMES = {"LanguageModel": "engine", "SamplingParams": "engine", "load": "engine"}

__all__ = [
    "LanguageModel",
    "ModelSpec",
    "NextwordError",
    "RunError",
    "SamplingParams",
    "UsageError",
    "__version__",
    "load",
    "plan",
]


def __getattr__(name: str) -> Any:
    if name == "plan":
        return import_module(".plan", __name__)
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
