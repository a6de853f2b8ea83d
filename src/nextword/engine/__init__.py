"""Requests → scheduler → forward → sampling → tokens: everything that produces or scores tokens."""

from .engine import Engine, PromptTooLong
from .handles import CompletionHandle, HiddenHandle, LogitsHandle, ScoreHandle, Stream
from .language_model import LanguageModel, load
from .loading import LoadConfig
from .request import HiddenRequest, LogitsRequest, Request, ScoreRequest
from .results import Alternative, Completion, NextTokenDistribution, Score, ScoredText, Timings, Token, TokenLogprob
from .sampling_params import SamplingParams, StopConfig
from .structure import Structure
from .worker import Worker

__all__ = [
    "Alternative",
    "Completion",
    "CompletionHandle",
    "Engine",
    "HiddenHandle",
    "HiddenRequest",
    "LanguageModel",
    "LoadConfig",
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
