"""The engine's torch backend: any device, with paged KV caches or recurrent states."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..backend import Batch, Output
from ..base import free_memory
from .cuda import GraphedPages
from .model import Model
from .paged import PAGE_SIZE, STATE_PAGE_SIZE, KeyValuePages, StatePages
from .recurrent import Recurrent
from .transformer import Transformer

LOGITS_AT_ONCE = {"cpu": 64, "cuda": 1024}  # scored rows whose logits are computed at a time
STEP_TOKENS = {"cpu": 256, "cuda": 4096}


class Pages(Protocol):
    """Paged memory, and how a model computes hidden states over it."""

    page_size: int
    page_bytes: int
    rewindable: bool

    def allocate(self, pages: int) -> None: ...
    def copy_page(self, source: int, target: int) -> None: ...
    def hidden(self, tokens: Tensor, batch: Batch) -> Tensor:
        """The hidden states that `logits` reads, (tokens, width)."""


class TorchBackend:
    """See `nextword.backend.Backend`. It runs the model's own modules; `page_size` is in tokens.

    A row's last bits may depend on the batch; those of `runtime.CpuBackend` do not.
    """

    def __init__(self, model: Model, page_size: int | None = None) -> None:
        self.model = model
        self.pages: Pages = _pages(model, page_size)
        self.vocabulary, self.context = model.spec.vocabulary, model.max_context
        self.page_size, self.page_bytes = self.pages.page_size, self.pages.page_bytes
        self.rewindable = self.pages.rewindable
        self.step_tokens = STEP_TOKENS.get(model.device.type, 1024)
        self.copy_page = self.pages.copy_page

    @property
    def device_memory(self) -> int | None:
        device = self.model.device
        if device.type == "cuda":
            return int(torch.cuda.mem_get_info(device)[0])
        return free_memory() if device.type == "cpu" else None

    def allocate(self, pages: int) -> None:
        with torch.inference_mode(False):  # tensors created in inference mode cannot be written to outside of it
            self.pages.allocate(pages)

    @torch.inference_mode()
    def forward(self, batch: Batch) -> Output:
        tokens = torch.from_numpy(batch.tokens).to(self.model.device)
        hidden = self.pages.hidden(tokens, batch)
        logits = self.model.logits(hidden[torch.from_numpy(batch.logit_rows)])
        wanted = hidden[torch.from_numpy(batch.hidden_rows)].float().numpy(force=True)
        return Output(logits.numpy(force=True), *self._scores(hidden, batch), wanted)

    def _scores(self, hidden: Tensor, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        """ln p and rank of each target, computed a few rows at a time."""
        rows, row_of = np.unique(batch.score_rows, return_inverse=True)
        logprobs, ranks = np.zeros(len(row_of)), np.zeros(len(row_of), np.int64)
        at_once = LOGITS_AT_ONCE.get(hidden.device.type, 64)
        for start in range(0, len(rows), at_once):
            logits = self.model.logits(hidden[torch.from_numpy(rows[start : start + at_once])])
            here = np.flatnonzero((row_of >= start) & (row_of < start + at_once))
            index = torch.from_numpy(row_of[here] - start).to(logits.device)
            targets = torch.from_numpy(batch.targets[here]).to(logits.device)[:, None]
            total = (logits - logits.amax(1, keepdim=True)).double().exp().sum(1).log() + logits.amax(1)
            own = logits[index].gather(1, targets)
            logprobs[here] = (own[:, 0].double() - total[index]).numpy(force=True)
            before = (logits[index] > own).sum(1)
            ids = torch.arange(logits.shape[1], device=logits.device)
            ties = ((logits[index] == own) & (ids < targets)).sum(1)
            ranks[here] = (1 + before + ties).numpy(force=True)
        return logprobs, ranks


def _pages(model: Model, page_size: int | None) -> Pages:
    if isinstance(model, Transformer):
        kind = GraphedPages if model.device.type == "cuda" else KeyValuePages
        return kind(model, page_size or PAGE_SIZE)
    assert isinstance(model, Recurrent)
    return StatePages(model, page_size or STATE_PAGE_SIZE)
