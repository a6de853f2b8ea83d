"""The KV cache of a GPU: decoding runs as CUDA graphs of fixed shapes, prefill with flash attention."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..backend import Batch
from .paged import PAGE_SIZE, KeyValuePages, PagedAttention
from .transformer import Attention, Transformer

WARM_UP = 2  # runs before a capture, in which libraries allocate their workspaces


class GraphedPages(KeyValuePages):
    """Steps with one token per sequence replay a CUDA graph, whose hundreds of kernels cost one launch.

    There is a graph for each number of sequences and of pages per sequence, rounded up to powers of two. Without a
    GPU the same fixed shapes run eagerly. Steps with prompts, and experts, which are chosen on the host, run eagerly.
    """

    def __init__(self, model: Transformer, page_size: int = PAGE_SIZE) -> None:
        super().__init__(model, page_size)
        self._steps: dict[tuple[int, int], DecodeStep] = {}

    def allocate(self, pages: int) -> None:
        super().allocate(pages + 1)
        self.spare_page = pages  # unused rows of a step write here
        self.end = min(pages * self.page_size, self.model.max_context)
        self._steps.clear()

    def hidden(self, tokens: Tensor, batch: Batch) -> Tensor:
        if self.model.spec.experts or (np.diff(batch.sequences) == 0).any():
            return self.model.hidden_over(tokens[None], GroupedPagedAttention(self, batch))[0]
        pages = int(batch.positions.max()) // self.page_size + 1
        shape = _power_of_two(len(tokens)), _power_of_two(pages)
        if shape not in self._steps:
            self._steps[shape] = DecodeStep(self, *shape)
        return self._steps[shape].run(batch)


class DecodeStep:
    """One token for each of up to `rows` sequences, each of up to `width` pages."""

    def __init__(self, pages: GraphedPages, rows: int, width: int) -> None:
        self._pages, self._width = pages, width
        device = pages.model.device
        # token, position and page table of each row
        self._inputs = torch.empty(rows, 2 + width, dtype=torch.int64, device=device)
        self._graph = torch.cuda.CUDAGraph() if device.type == "cuda" else None
        self._hidden: Tensor | None = None
        self._ropes = [  # a longer table may replace them in the model; a graph reads the captured ones
            pages.model.rope_cache.tables(pages.end, rope, device)
            for rope in {*map(pages.model.rope_of, range(pages.model.spec.layers))} - {None}
            if rope is not None
        ]

    def run(self, batch: Batch) -> Tensor:
        """The hidden states of the batch's tokens, (tokens, width), valid until the next step."""
        count = len(batch.tokens)
        self._inputs.copy_(torch.from_numpy(self._rows(batch)))
        if self._graph is None:
            return self._forward()[:count]
        if self._hidden is None:
            self._capture(self._graph)
        self._graph.replay()
        assert self._hidden is not None
        return self._hidden[:count]

    def _rows(self, batch: Batch) -> np.ndarray:
        """The step's inputs; unused rows read and write the spare page."""
        inputs = np.full(self._inputs.shape, self._pages.spare_page, np.int64)
        inputs[:, :2] = 0
        count, width = len(batch.tokens), min(self._width, batch.page_tables.shape[1])
        inputs[:count, 0], inputs[:count, 1] = batch.tokens, batch.positions
        tables = batch.page_tables[batch.sequences, :width]
        inputs[:count, 2 : 2 + width] = np.where(tables < 0, self._pages.spare_page, tables)
        return inputs

    def _forward(self) -> Tensor:
        tokens, positions, tables = self._inputs[:, 0], self._inputs[:, 1], self._inputs[:, 2:]
        context = DecodeAttention(self._pages, positions, tables)
        return self._pages.model.hidden_over(tokens[None], context)[0]

    def _capture(self, graph: torch.cuda.CUDAGraph) -> None:
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self._forward()
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._hidden = self._forward()


class DecodeAttention:
    """Attention of one token per sequence, `positions` (rows,), over the pages in `tables` (rows, pages)."""

    def __init__(self, pages: GraphedPages, positions: Tensor, tables: Tensor) -> None:
        size, device = pages.page_size, positions.device
        self._pages, self._tables = pages, tables
        self.positions, self.end = positions[None], pages.end
        self._page_of = tables.gather(1, (positions // size)[:, None])[:, 0]
        self._offset_of = positions % size
        self._distance = positions[:, None, None, None] - torch.arange(tables.shape[1] * size, device=device)
        self._heads = torch.arange(pages.shape[0], device=device)[:, None]

    def attend(self, attention: Attention, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """See `positions.AttentionContext`; the rows are the time dimension."""
        stored = (self._pages.keys[attention.layer], self._pages.values[attention.layer])
        for pages, new in zip(stored, (keys, values), strict=True):
            pages[self._page_of, :, self._offset_of] = new[0].transpose(0, 1)
        # (rows, kv_heads, pages, page_size, head_width) in one copy
        past_keys, past_values = (pages[self._tables[:, None], self._heads].flatten(2, 3) for pages in stored)
        mask = self._distance >= 0
        if attention.window:
            mask = mask & (self._distance < attention.window)
        queries = queries[0].transpose(0, 1)[:, :, None]  # (rows, heads, 1, head_width)
        attended = grouped_attention(attention, queries, past_keys, past_values, mask)
        return attended[:, :, 0].transpose(0, 1)[None]


class GroupedPagedAttention(PagedAttention):
    """`PagedAttention` by way of `grouped_attention`."""

    @staticmethod
    def product(attention: Attention, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        return grouped_attention(attention, queries, keys, values, mask)


def grouped_attention(
    attention: Attention, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None
) -> Tensor:
    """`Attention.scaled_dot_product`, with the query heads of one key head as further queries where there is a mask.

    torch has no fused GPU kernel for grouped queries with a mask; this way one without groups is enough.
    """
    if mask is None or attention.needs_mask:
        return attention.scaled_dot_product(queries, keys, values, mask)
    group = attention.heads // attention.kv_heads
    grouped = queries.reshape(queries.shape[0], attention.kv_heads, -1, attention.head_width)
    mask = mask.repeat(1, 1, group, 1)  # (batch, 1, group * time, keys)
    attended = F.scaled_dot_product_attention(grouped, keys, values, mask, scale=attention.scale)
    return attended.reshape(queries.shape)


def _power_of_two(number: int) -> int:
    """The least power of two that is at least `number`."""
    return 1 << (number - 1).bit_length()
