"""The engine's interface to a model: one step over any mix of prefill and decode."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .base import UsageError
from .spec import ModelSpec

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """The tokens of one step. Tokens of a sequence are adjacent, at consecutive positions.

    tokens, positions, sequences: (tokens,): id, position in its sequence, and row of `page_tables`.
    page_tables: (sequences, pages) int32: page `j` of a row holds positions from `j * page_size` on; -1: none.
    logit_rows: (rows,): tokens (indices into `tokens`) whose next token is to be sampled.
    score_rows, targets: (scores,): tokens after which a known token follows, and that token.
    hidden_rows: (hidden,): tokens of which to return what the head reads.
    """

    tokens: Ids
    positions: Ids
    sequences: Ids
    page_tables: NDArray[np.int32]
    logit_rows: Ids
    score_rows: Ids
    targets: Ids
    hidden_rows: Ids = field(default_factory=lambda: np.empty(0, np.int64))


@dataclass(frozen=True)
class Output:
    """The result of a step.

    logits: (rows, vocabulary) float32, one row for each of `Batch.logit_rows`.
    logprobs: (scores,) float64, ln p of each target. ranks: (scores,): 1 for the most likely token, ties by id.
    hidden: (hidden, width) float32, one row for each of `Batch.hidden_rows`.
    """

    logits: NDArray[np.float32]
    logprobs: NDArray[np.float64]
    ranks: Ids
    hidden: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0), np.float32))

    def part(self, rows: slice, scores: slice, hidden: slice) -> Output:
        """Some of the rows, scores and hidden states."""
        return Output(self.logits[rows], self.logprobs[scores], self.ranks[scores], self.hidden[hidden])


class Backend(Protocol):
    """Runs a model over paged memory.

    A page holds the keys and values of `page_size` consecutive tokens, or the state of a recurrent
    network after the last of up to `page_size` tokens. A token at position p reads the pages up to that of p - 1 and
    writes into page `p // page_size` of its sequence's table. Within one step a token sees the earlier tokens of its
    own sequence, those of the same step included; a page shared by several sequences is never written.

    `rewindable`: whether a prefix of a page is usable. True for keys and values; a recurrent state is only known
    after its last token.
    """

    vocabulary: int
    context: int | None  # most tokens in a sequence; None: no limit
    page_size: int
    page_bytes: int
    rewindable: bool
    step_tokens: int  # most tokens per step, unless the user sets it

    @property
    def device_memory(self) -> int | None:
        """Free bytes on the device; None if unknown."""

    def allocate(self, pages: int) -> None:
        """Allocate pages 0 to `pages` - 1; called once. Raises RunError if memory is short."""

    def copy_page(self, source: int, target: int) -> None:
        """Make page `target` equal to page `source`."""

    def forward(self, batch: Batch) -> Output:
        """Run the tokens of `batch` through the model, writing their pages."""


def check_runnable(spec: ModelSpec) -> None:
    """Raise UsageError for a model that can be planned but not run."""
    experts = spec.experts
    needs = {
        "latent attention": spec.latent is not None,
        "shared experts": experts is not None and experts.shared > 0,
        "routing bias": experts is not None and experts.correction_bias,
    }
    missing = [name for name, needed in needs.items() if needed]
    if missing:
        raise UsageError(f"nextword plans models with {' and '.join(missing)} but cannot run them yet")
