"""Requests → scheduler → forward → sampling → tokens: everything that produces or scores tokens.

Names are imported on first use: settings and results need no model.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .engine import Engine, PromptTooLong
    from .handles import CompletionHandle, LogitsHandle, ScoreHandle, Stream
    from .language_model import LanguageModel, load
    from .request import LogitsRequest, Request, ScoreRequest, StopConfig
    from .results import Alternative, Completion, NextTokens, Score, ScoredText, Step, Timings, TokenLogprob
    from .sampling import Sampling
    from .structure import Structure
    from .worker import Worker

_HOMES = {
    "engine": ("Engine", "PromptTooLong"),
    "handles": ("CompletionHandle", "LogitsHandle", "ScoreHandle", "Stream"),
    "language_model": ("LanguageModel", "load"),
    "request": ("LogitsRequest", "Request", "ScoreRequest", "StopConfig"),
    "results": ("Alternative", "Completion", "NextTokens", "Score", "ScoredText", "Step", "Timings", "TokenLogprob"),
    "sampling": ("Sampling",),
    "structure": ("Structure",),
    "worker": ("Worker",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Alternative",
    "Completion",
    "CompletionHandle",
    "Engine",
    "LanguageModel",
    "LogitsHandle",
    "LogitsRequest",
    "NextTokens",
    "PromptTooLong",
    "Request",
    "Sampling",
    "Score",
    "ScoreHandle",
    "ScoreRequest",
    "ScoredText",
    "Step",
    "StopConfig",
    "Stream",
    "Structure",
    "Timings",
    "TokenLogprob",
    "Worker",
    "load",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
