"""Model: the interface of all language models."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from ..plan.compute import Recompute
from ..spec import ModelSpec
from .layers import Embedding, Linear

Mode = Literal["eager", "train"]


@dataclass(frozen=True)
class Execution:
    """How a model is computed, as chosen by `prepare`."""

    mode: Mode
    description: str

    def __str__(self) -> str:
        return self.description


EAGER = Execution("eager", "PyTorch, not prepared")


class Model(nn.Module):
    """A language model, as seen by generation, evaluation and training."""

    spec: ModelSpec
    embedding: Embedding
    head: Linear
    execution: Execution = EAGER  # set by `prepare`

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.dropout = nn.Dropout(0.0)

    @property
    def device(self) -> torch.device:
        """The device of its parameters and its inputs."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Type of activations, keys, values and states."""
        return self.embedding.weight.dtype

    @property
    def max_context(self) -> int | None:
        """The longest sequence in tokens; None: no limit."""
        return None

    @abstractmethod
    def hidden(self, tokens: Tensor, documents: Tensor | None = None) -> Tensor:
        """The last layer's output at every token, (batch, time, width), which `logits` reads.

        `tokens` is (batch, time); each row starts a text. `documents` (batch, time) numbers the documents packed in a
        row, which then do not attend to each other.
        """

    def logits(self, hidden: Tensor) -> Tensor:
        """float32 logits (..., vocabulary) from `hidden` (..., width)."""
        return self.head(hidden).float()

    def forward(self, tokens: Tensor) -> Tensor:
        """float32 logits of the next token at each position, (batch, time, vocabulary)."""
        return self.logits(self.hidden(tokens))

    def set_regularization(self, dropout: float, recompute: Recompute) -> None:
        """Set the dropout rate, and which activations are recomputed in the backward pass.

        Only transformers recompute.
        """
        self.dropout.p = dropout

    def _apply(self, *arguments: Any, **options: Any) -> Self:  # called for every change of device or dtype
        self.execution = EAGER
        return super()._apply(*arguments, **options)  # type: ignore[no-untyped-call, no-any-return]
