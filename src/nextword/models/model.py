"""What every model offers, whatever it is made of."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Generic, Protocol, Self, TypeVar

import torch
from torch import Tensor, nn

from ..spec import ModelSpec
from .layers import Embedding, Linear, PackedEmbedding, PackedLinear
from .tree import Tree


class State(Protocol):
    """What any model carries forward; one row a sequence."""

    @property
    def lengths(self) -> list[int]:
        """Tokens seen so far, one number a row."""

    def back(self, length: int) -> int:
        """Go back to what a single row was after at most `length` tokens; returns after how many.

        A recurrent state can only return to where a tree was read from, and may go further back than asked.
        """

    def select(self, rows: Sequence[int]) -> Self:
        """A state of the given rows, in that order; a row may be taken several times."""

    @classmethod
    def stack(cls, states: Sequence[Self]) -> Self:
        """One state whose rows are those of `states`, in order; a state may be given several times."""


Carried = TypeVar("Carried", bound=State)


class Model(nn.Module, Generic[Carried]):
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
        """Type of the activations, and so of a state."""
        return self.embedding.weight.dtype if isinstance(self.embedding, Embedding) else torch.float32

    @property
    def longest(self) -> int | None:
        """Tokens a sequence may have; None where there is no limit."""
        return None

    @abstractmethod
    def new_state(self, batch: int, capacity: int = 0) -> Carried:
        """An empty state for `batch` sequences, with room for `capacity` tokens each where a state needs room."""

    @abstractmethod
    def state_bytes(self, positions: int) -> int:
        """Bytes of one sequence's state after `positions` tokens."""

    @abstractmethod
    def hidden(self, tokens: Tensor, state: Carried | None = None, lengths: Sequence[int] | None = None) -> Tensor:
        """What `logits` reads: the last layer's output, (batch, time, width). Moves `state` on in place.

        `tokens` is (batch, time), each row continuing `state`; without a state each row begins a text and none is
        kept. Rows may be padded on the right; `lengths` then says how many tokens of each row are real (what comes
        out behind them means nothing).
        """

    @abstractmethod
    def read_tree(self, tree: Tree, state: Carried, keep: Sequence[int] = ()) -> Tensor:
        """`hidden` of every node of `tree`, (nodes, width), each as if its own path alone followed `state`.

        `state` has one row. It moves on along the path `keep` (nodes from the state's end downwards), the rest of
        the tree is forgotten.
        """

    @abstractmethod
    def logits(self, hidden: Tensor) -> Tensor:
        """float32 logits (..., vocabulary) from `hidden` (..., width)."""

    def forward(
        self, tokens: Tensor, state: Carried | None = None, lengths: Sequence[int] | None = None
    ) -> tuple[Tensor, Carried | None]:
        """float32 logits of the token after each, (batch, time, vocabulary), and the state; see `hidden`."""
        return self.logits(self.hidden(tokens, state, lengths)), state
