"""Requests → scheduler → forward → sampling → tokens: everything that produces or scores tokens.

Only `LanguageModel` and `load`, which need torch, are imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .engine import Engine, PromptTooLong
from .handles import CompletionHandle, LogitsHandle, ScoreHandle, Stream
from .request import LogitsRequest, Request, ScoreRequest
from .results import Alternative, Completion, NextTokenDistribution, Score, ScoredText, Timings, Token, TokenLogprob
from .sampling_params import SamplingParams, StopConfig
from .structure import Structure
from .worker import Worker

if TYPE_CHECKING:
    from .language_model import LanguageModel, load

__all__ = [
    "Alternative",
    "Completion",
    "CompletionHandle",
    "Engine",
    "LanguageModel",
    "LogitsHandle",
    "LogitsRequest",
    "NextTokenDistribution",
    "PromptTooLong",
    "Request",
    "SamplingParams",
    "Score",
    "ScoreHandle",
    "ScoreRequest",
    "ScoredText",
    "StopConfig",
    "Stream",
    "Structure",
    "Timings",
    "Token",
    "TokenLogprob",
    "Worker",
    "load",
]


def __getattr__(name: str) -> Any:
    if name in ("LanguageModel", "load"):
        return getattr(import_module(".language_model", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
