"""Temporary: recomputes every sequence at every step. The paged backend replaces it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ..base import free_memory


class TorchBackend:
    def __init__(self, model: Any) -> None:
        self.model = model
        self.vocabulary, self.context = model.spec.vocabulary, model.longest
        self.page_size, self.page_bytes, self.rewindable = 16, 1000, True
        self.device_memory, self.step_tokens = free_memory(), 256

    def allocate(self, pages: int) -> None:
        self.memory = np.full((pages, self.page_size), -1, np.int64)

    def copy_page(self, source: int, target: int) -> None:
        self.memory[target] = self.memory[source]

    @torch.inference_mode()
    def forward(self, batch: Any) -> Any:
        from ..engine.backend import Output

        size = self.page_size
        for token, position, sequence in zip(batch.tokens, batch.positions, batch.sequences, strict=True):
            self.memory[batch.page_tables[sequence, position // size], position % size] = token
        rows: list[Any] = [None] * len(batch.tokens)
        for sequence in np.unique(batch.sequences):
            where = np.flatnonzero(batch.sequences == sequence)
            last = batch.positions[where[-1]]
            tokens = self.memory[batch.page_tables[sequence, : last // size + 1]].ravel()[: last + 1]
            logits = self.model.logits(self.model.hidden(torch.from_numpy(tokens)[None].to(self.model.device)))[0]
            for row in where:
                rows[row] = logits[batch.positions[row]]
        empty = torch.empty(0, self.vocabulary)
        scored = torch.stack([rows[row] for row in batch.score_rows]).double() if len(batch.score_rows) else empty
        own = scored.gather(1, torch.from_numpy(batch.targets)[:, None]) if len(scored) else scored[:, :1]
        return Output(
            torch.stack([rows[row] for row in batch.logit_rows]).float().numpy(force=True) if len(batch.logit_rows) else empty.numpy(),
            (own[:, 0] - scored.logsumexp(-1)).numpy(force=True) if len(scored) else np.empty(0),
            ((scored > own).sum(-1) + 1).numpy(force=True) if len(scored) else np.empty(0, np.int64),
        )
