"""rope_freqs.weight of a GGUF file: positions stretched as in Llama 3.1, stored as one divisor a rotating pair."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..base import UsageError
from ..models.rotary import frequencies
from ..spec import RopeSpec

NAME = "rope_freqs.weight"
_CONTEXTS = (8192, 2048, 4096, 16384, 32768)  # before stretching; Llama 3's first
_TOLERANCE = 1e-3


def stretched(rope: RopeSpec, head_width: int, divisors: Tensor, path: Path) -> RopeSpec:
    """`rope` with the scaling that `divisors` (rotating pairs,) were computed from.

    llama.cpp's converter stores plain over stretched frequencies, and not the numbers of config.json they come from;
    those that give the same divisors back are found. Raises UsageError where none do.
    """
    if torch.allclose(divisors, torch.ones(())):
        return rope
    plain = frequencies(rope, head_width)
    if rope.scaling == "none" and divisors.shape == plain.shape:
        for context in _CONTEXTS:
            found = replace(rope, scaling="llama3", factor=divisors.max().item(), original_context=context)
            if torch.allclose(plain / frequencies(found, head_width), divisors, rtol=_TOLERANCE):
                return found
    raise UsageError(
        f"{path}: tensor {NAME!r} stretches positions in a way that nextword does not know."
        " Use the model's safetensors folder"
    )
