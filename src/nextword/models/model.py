"""What every model offers, whatever it is made of."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from ..spec import ModelSpec
from .layers import Embedding, Linear, PackedEmbedding, PackedLinear


class Model(nn.Module):
    """A language model. Generation, evaluation and training know no more of it than this."""

    spec: ModelSpec
    embedding: Embedding | PackedEmbedding
    head: Linear | PackedLinear

    @property
    def device(self) -> torch.device:
        """Where its numbers are, and its tokens must be."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the activations, and so of keys, values and states."""
        return self.embedding.weight.dtype if isinstance(self.embedding, Embedding) else torch.float32

    @property
    def longest(self) -> int | None:
        """Tokens a sequence may have; None where there is no limit."""
        return None

    @abstractmethod
    def hidden(self, tokens: Tensor) -> Tensor:
        """What `logits` reads: the last layer's output at every token, (batch, time, width).

        `tokens` is (batch, time); each row is the beginning of a text.
        """

    @abstractmethod
    def logits(self, hidden: Tensor) -> Tensor:
        """float32 logits (..., vocabulary) from `hidden` (..., width)."""

    def forward(self, tokens: Tensor) -> Tensor:
        """float32 logits of the token after each, (batch, time, vocabulary)."""
        return self.logits(self.hidden(tokens))
