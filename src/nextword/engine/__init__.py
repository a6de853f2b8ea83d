"""Logits → next token: sampling, the engine that runs many sequences, and probabilities to look at.

Names are imported on first use: results and sampling need no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .engine import Engine, PromptTooLong
    from .generation import Generation, Limits
    from .language_model import LanguageModel, gather, load
    from .results import Alternative, Completion, NextTokens, ScoredText, Step, Timings, TokenLogprob
    from .sampling import Distribution, Sampling

_HOMES = {
    "Engine": "engine",
    "PromptTooLong": "engine",
    "Generation": "generation",
    "Limits": "generation",
    "LanguageModel": "language_model",
    "gather": "language_model",
    "load": "language_model",
    "Alternative": "results",
    "Completion": "results",
    "NextTokens": "results",
    "ScoredText": "results",
    "Step": "results",
    "Timings": "results",
    "TokenLogprob": "results",
    "Distribution": "sampling",
    "Sampling": "sampling",
}

__all__ = [
    "Alternative",
    "Completion",
    "Distribution",
    "Engine",
    "Generation",
    "LanguageModel",
    "Limits",
    "NextTokens",
    "PromptTooLong",
    "Sampling",
    "ScoredText",
    "Step",
    "Timings",
    "TokenLogprob",
    "gather",
    "load",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
