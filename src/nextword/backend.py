"""What the engine asks of a model: one step for any mix of prompt chunks and decoding sequences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """The tokens of one step. Tokens of a sequence stand next to each other, at consecutive positions.

    tokens, positions, sequences: (tokens,): id, position in its sequence, and row of `page_tables`.
    page_tables: (sequences, pages) int32: page `j` of a row holds positions `j * page_size` onwards; -1: none.
    logit_rows: (rows,): tokens (indices into `tokens`) whose next token is to be sampled.
    score_rows, targets: (scores,): tokens after which a known token follows, and that token.
    """

    tokens: Ids
    positions: Ids
    sequences: Ids
    page_tables: NDArray[np.int32]
    logit_rows: Ids
    score_rows: Ids
    targets: Ids


@dataclass(frozen=True)
class Output:
    """What a step gives.

    logits: (rows, vocabulary) float32, one row for each of `Batch.logit_rows`.
    logprobs: (scores,) float64, ln p of each target. ranks: (scores,): 1 for the likeliest token, ties by id.
    """

    logits: NDArray[np.float32]
    logprobs: NDArray[np.float64]
    ranks: Ids

    def part(self, rows: slice, scores: slice) -> Output:
        """Some of the rows and scores."""
        return Output(self.logits[rows], self.logprobs[scores], self.ranks[scores])


class Backend(Protocol):
    """Runs a model over pages of memory.

    A page holds what attention needs of `page_size` consecutive tokens (keys and values), or the state of a recurrent
    network after the last of up to `page_size` tokens. A token at position p reads the pages up to that of p - 1 and
    writes into page `p // page_size` of its sequence's table. Within one step a token sees the earlier tokens of its
    own sequence, also those of the same step; a page shared by several sequences is only ever read in a step.

    `rewindable`: whether a page can also be read up to its middle. Keys and values can; a recurrent state is only what
    it was after the last token.
    """

    vocabulary: int
    context: int | None  # tokens a sequence may have; None where there is no limit
    page_size: int
    page_bytes: int
    rewindable: bool
    step_tokens: int  # tokens a step at the most, unless the user asks otherwise

    @property
    def device_memory(self) -> int | None:
        """Bytes free where the pages are; None where it cannot be known."""

    def allocate(self, pages: int) -> None:
        """Provide pages 0 to `pages` - 1, once. Raises RunError where there is no such memory."""

    def copy_page(self, source: int, target: int) -> None:
        """Make page `target` equal to page `source`."""

    def forward(self, batch: Batch) -> Output:
        """Run the tokens of `batch` through the model, writing their pages."""
