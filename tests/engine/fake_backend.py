"""Models without a model: what a token sees is what the pages hold, so that a wrong page gives other logits."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field

import numpy as np

from nextword.backend import Batch, Output

VOCABULARY = 11


@dataclass
class FakeBackend:
    """Logits are a hash of all tokens up to a row, read from the pages.

    Rewindable, a page holds its tokens, as keys and values do; otherwise one number, a state that each token changes.
    """

    rewindable: bool = True
    page_size: int = 4
    context: int | None = None
    step_tokens: int = 16
    vocabulary: int = VOCABULARY
    page_bytes: int = 10
    device_memory: int | None = None
    forwarded: list[Batch] = field(default_factory=list)
    fail: BaseException | None = None
    nan: int | None = None  # token behind which logits are NaN

    def allocate(self, pages: int) -> None:
        self.memory = np.full((pages, self.page_size if self.rewindable else 1), -1, np.int64)

    def copy_page(self, source: int, target: int) -> None:
        self.memory[target] = self.memory[source]

    def forward(self, batch: Batch) -> Output:
        self.forwarded.append(batch)
        if self.fail is not None:
            error, self.fail = self.fail, None
            raise error
        assert len(batch.tokens) <= self.step_tokens
        hashes = (self._hash_tokens if self.rewindable else self._hash_states)(batch)
        logits = np.stack([self.logits(h) for h in hashes])
        if self.nan is not None:
            logits[batch.tokens == self.nan] = np.nan
        rows, targets = logits[batch.score_rows].astype(np.float64), batch.targets
        own = rows[np.arange(len(rows)), targets]
        logprobs = own - np.log(np.exp(rows).sum(1))
        return Output(logits[batch.logit_rows], logprobs, 1 + (rows > own[:, None]).sum(1))

    def logits(self, seed: int) -> np.ndarray:
        return np.random.default_rng(seed).normal(size=self.vocabulary).astype(np.float32)

    def _hash_tokens(self, batch: Batch) -> list[int]:
        size = self.page_size
        for token, position, sequence in zip(batch.tokens, batch.positions, batch.sequences, strict=True):
            self.memory[batch.page_tables[sequence, position // size], position % size] = token
        hashes = []
        for position, sequence in zip(batch.positions, batch.sequences, strict=True):
            table = batch.page_tables[sequence, : position // size + 1]
            tokens = self.memory[table].ravel()[: position + 1]
            assert (tokens >= 0).all()
            hashes.append(hash_of(tokens.tolist()))
        return hashes

    def _hash_states(self, batch: Batch) -> list[int]:
        hashes = []
        for token, position, sequence in zip(batch.tokens, batch.positions, batch.sequences, strict=True):
            table = batch.page_tables[sequence]
            state = self.memory[table[(position - 1) // self.page_size], 0] if position else 0
            assert state >= 0
            state = zlib.crc32(b"%d" % token, int(state))
            self.memory[table[position // self.page_size], 0] = state
            hashes.append(state)
        return hashes


def hash_of(tokens: list[int]) -> int:
    state = 0
    for token in tokens:
        state = zlib.crc32(b"%d" % token, state)
    return state


class Decoder:
    def push(self, token: int) -> str:
        return chr(97 + token)

    def flush(self) -> str:
        return ""


class FakeTokenizer:
    """Token n is the n-th letter."""

    stop_ids = frozenset({VOCABULARY - 1})

    def stream(self) -> Decoder:
        return Decoder()

    def token_text(self, token: int) -> str:
        return chr(97 + token)
