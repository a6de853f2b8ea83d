"""Paged KV caches and recurrent states, and forward passes over them."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ..backend import Batch
from .recurrent import Recurrent, RecurrentState
from .transformer import Attention, Transformer

PAGE_SIZE = 32  # tokens; see docs/decisions.md
STATE_PAGE_SIZE = 8  # a recurrent state is small compared with a token's keys and values


class KeyValuePages:
    """Keys and values of every layer, (pages, kv_heads, page_size, head_width) each, on any device."""

    rewindable = True

    def __init__(self, model: Transformer, page_size: int = PAGE_SIZE) -> None:
        spec = model.spec
        self.model, self.page_size = model, page_size
        self.shape = (spec.kv_heads, page_size, spec.head_width)
        self.page_bytes = 2 * spec.layers * math.prod(self.shape) * model.dtype.itemsize
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def allocate(self, pages: int) -> None:
        model = self.model
        shape = (pages, *self.shape)
        self.keys = [zeros(shape, model.dtype, model.device) for _ in range(model.spec.layers)]
        self.values = [zeros(shape, model.dtype, model.device) for _ in range(model.spec.layers)]

    def copy_page(self, source: int, target: int) -> None:
        for tensor in (*self.keys, *self.values):
            tensor[target] = tensor[source]

    def hidden(self, tokens: Tensor, batch: Batch) -> Tensor:
        return self.model.hidden_over(tokens[None], PagedAttention(self, batch))[0]


class PagedAttention:
    """Attention of one step over pages: prompt chunks one by one, decoding sequences together."""

    def __init__(self, pages: KeyValuePages, batch: Batch) -> None:
        device = pages.model.device
        self._pages, size = pages, pages.page_size
        self.positions = torch.from_numpy(batch.positions).to(device)[None]  # (1, tokens)
        self.end = int(batch.positions.max()) + 1
        self._page_of = torch.from_numpy(batch.page_tables[batch.sequences, batch.positions // size]).long().to(device)
        self._offset_of = torch.from_numpy(batch.positions % size).to(device)
        # rows (n, time), tables (n, pages), positions (n, time), and the length of a text that is all here, else 0
        self._groups: list[tuple[Tensor, Tensor, Tensor, int]] = []
        counts = np.bincount(batch.sequences, minlength=len(batch.page_tables))
        starts = np.cumsum(counts) - counts
        decoding = np.flatnonzero(counts == 1)
        chunks = [np.array([row]) for row in np.flatnonzero(counts > 1)]
        for group in [decoding, *chunks] if len(decoding) else chunks:
            rows = starts[group][:, None] + np.arange(counts[group[0]])
            positions = batch.positions[rows]
            tables = batch.page_tables[group][:, : int(positions.max()) // size + 1].clip(min=0)
            whole = positions.shape[1] if positions.shape[1] > 1 and not positions[0, 0] else 0
            self._groups.append(
                (_to_device(rows, device), _to_device(tables, device), _to_device(positions, device), whole)
            )

    def attend(self, attention: Attention, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Store the new keys and values (1, kv_heads, tokens, head_width); attention (1, heads, tokens, head_width)."""
        stored = (self._pages.keys[attention.layer], self._pages.values[attention.layer])
        for pages, new in zip(stored, (keys, values), strict=True):
            pages[self._page_of, :, self._offset_of] = new[0].transpose(0, 1)
        attended = torch.empty_like(queries)
        for rows, tables, positions, whole in self._groups:
            if whole and not attention.needs_mask and (not attention.window or whole <= attention.window):
                text = [part[0, :, rows].transpose(0, 1) for part in (queries, keys, values)]
                attended[0, :, rows] = self.product(attention, text[0], text[1], text[2], None).transpose(0, 1)
                continue
            past_keys, past_values = (pages[tables].transpose(1, 2).flatten(2, 3) for pages in stored)
            mask = self._mask(positions, past_keys.shape[2], attention.window)
            group = queries[0, :, rows].transpose(0, 1)  # (sequences, heads, time, head_width)
            attended[0, :, rows] = self.product(attention, group, past_keys, past_values, mask).transpose(0, 1)
        return attended

    @staticmethod
    def product(attention: Attention, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """See `Attention.scaled_dot_product`; causal without a mask."""
        return attention.scaled_dot_product(queries, keys, values, mask)

    @staticmethod
    def _mask(positions: Tensor, keys: int, window: int) -> Tensor:
        """True where a query may attend, (n, 1, time, keys)."""
        distance = positions[:, None, :, None] - torch.arange(keys, device=positions.device)
        return (distance >= 0) & (distance < window) if window else distance >= 0


class StatePages:
    """Recurrent states, each after the last token written to its page, and torch's modules over them."""

    rewindable = False

    def __init__(self, model: Recurrent, page_size: int = STATE_PAGE_SIZE) -> None:
        self.model, self.page_size = model, page_size
        tensors = 2 if model.spec.kind == "lstm" else 1
        self.page_bytes = tensors * model.spec.layers * model.spec.width * model.dtype.itemsize

    def allocate(self, pages: int) -> None:
        spec, dtype, device = self.model.spec, self.model.dtype, self.model.device
        shape = (spec.layers, pages, spec.width)
        cell = zeros(shape, dtype, device) if spec.kind == "lstm" else None
        self.state = RecurrentState(zeros(shape, dtype, device), cell)

    def copy_page(self, source: int, target: int) -> None:
        for tensor in self.state.tensors:
            tensor[:, target] = tensor[:, source]

    def hidden(self, tokens: Tensor, batch: Batch) -> Tensor:
        """Page by page: all sequences' tokens in their first page of this step, then in their second, ..."""
        x = torch.empty(len(tokens), self.model.spec.width, dtype=self.model.dtype, device=tokens.device)
        for rows, lengths, sources, targets in self._spans(batch):
            padded = tokens[torch.from_numpy(rows).to(tokens.device)]
            state = self.state.gather(np.maximum(sources, 0).tolist())
            state.clear(torch.from_numpy(sources < 0).to(tokens.device))
            out = self.model.hidden(padded, state=state, lengths=lengths.tolist())
            for row, length in enumerate(lengths):
                x[rows[row, :length]] = out[row, :length]
            for tensor, new in zip(self.state.tensors, state.tensors, strict=True):
                tensor[:, targets] = new
        return x

    def _spans(self, batch: Batch) -> list[tuple[np.ndarray, np.ndarray, np.ndarray, list[int]]]:
        """For each round: tokens (sequences, time), padded at the end, their counts, and the pages before and after."""
        page = batch.positions // self.page_size
        borders = np.flatnonzero(np.diff(batch.sequences, prepend=-1) | np.diff(page, prepend=-1))
        rounds: list[list[tuple[int, int]]] = []
        for start, end in zip(borders, [*borders[1:], len(page)], strict=True):
            first = np.searchsorted(batch.sequences, batch.sequences[start])
            number = int(page[start] - page[first])
            rounds += [[]] * (number + 1 - len(rounds))
            rounds[number] = [*rounds[number], (int(start), int(end))]
        return [self._round(batch, spans) for spans in rounds]

    def _round(
        self, batch: Batch, spans: list[tuple[int, int]]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[int]]:
        starts = np.array([start for start, _ in spans])
        lengths = np.array([end - start for start, end in spans])
        rows = starts[:, None] + np.minimum(np.arange(lengths.max()), lengths[:, None] - 1)
        tables, positions = batch.page_tables[batch.sequences[starts]], batch.positions[starts]
        row_index = np.arange(len(spans))
        sources = np.where(positions > 0, tables[row_index, (positions - 1) // self.page_size], -1)
        return rows, lengths, sources, tables[row_index, positions // self.page_size].tolist()


def zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros that take CPU memory only when written to: the system provides untouched pages as zeros."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    return torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, np.uint8)).view(dtype).view(shape)


def _to_device(indices: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(indices).long().to(device)
