"""Drives a backend by hand: sequences that grow by pieces, each with pages of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from nextword.backend import Backend, Batch


class Paged:
    """Sequences by number, over `pages` pages; which page comes next is as mixed up as an engine's would be."""

    def __init__(self, backend: Backend, pages: int = 64) -> None:
        self.backend = backend
        self.tables: dict[int, list[int]] = {}
        self.lengths: dict[int, int] = {}
        self._free = np.random.default_rng(0).permutation(pages).tolist()
        backend.allocate(pages)

    def batch(self, pieces: Mapping[int, Sequence[int]]) -> Batch:
        """A step of the next tokens of several sequences, which wants every token's logits."""
        size = self.backend.page_size
        positions = []
        for number, tokens in pieces.items():
            start = self.lengths.get(number, 0)
            positions.append(np.arange(start, start + len(tokens)))
            self.lengths[number] = start + len(tokens)
            table = self.tables.setdefault(number, [])
            table += [self._free.pop() for _ in range(-(-self.lengths[number] // size) - len(table))]
        width = max(len(self.tables[number]) for number in pieces)
        rows = [self.tables[number] + [-1] * (width - len(self.tables[number])) for number in pieces]
        counts = [len(tokens) for tokens in pieces.values()]
        return Batch(
            tokens=np.array([token for tokens in pieces.values() for token in tokens], np.int64),
            positions=np.concatenate(positions),
            sequences=np.repeat(np.arange(len(pieces)), counts),
            page_tables=np.array(rows, np.int32),
            logit_rows=np.arange(sum(counts)),
            score_rows=np.empty(0, np.int64),
            targets=np.empty(0, np.int64),
        )

    def read(self, pieces: Mapping[int, Sequence[int]]) -> dict[int, torch.Tensor]:
        """Run the next tokens of several sequences in one step: logits (tokens, vocabulary) of each."""
        counts = [len(tokens) for tokens in pieces.values()]
        logits = torch.from_numpy(self.backend.forward(self.batch(pieces)).logits.copy()).split(counts)
        return dict(zip(pieces, logits, strict=True))


def grow(paged: Paged, tokens: torch.Tensor) -> torch.Tensor:
    """Logits (texts, time, vocabulary) of texts that grow side by side, in chunks and single tokens, pages full or not.

    Each text begins later than the one before it.
    """
    count, length = tokens.shape
    done, logits = [0] * count, [[] for _ in range(count)]  # type: list[int], list[list[torch.Tensor]]
    for step in range(10 * length):
        sizes = [(9, 1, 14, 1, 1, 2)[(step + text) % 6] if step >= text else 0 for text in range(count)]
        ends = [min(length, at + size) for at, size in zip(done, sizes, strict=True)]
        pieces = {n: tokens[n, done[n] : ends[n]].tolist() for n in range(count) if ends[n] > done[n]}
        for number, part in (paged.read(pieces) if pieces else {}).items():
            logits[number].append(part)
        done = ends
    return torch.stack([torch.cat(parts) for parts in logits])
