"""The engine's CPU backend: a step of any mix of tokens is one call of the compiled kernels."""

from __future__ import annotations

from collections.abc import Mapping
from ctypes import addressof
from typing import NamedTuple, cast

import numpy as np

from ..backend import Batch, Ids, Output, check_runnable
from ..base import UsageError, free_memory
from ..native.bindings import library
from ..spec import ModelSpec
from ..weights.source import Source
from .kv_cache import KV_DTYPES, KVCache, KVType
from .model import CompiledModel
from .states import States
from .structures import BatchStruct, OutputStruct
from .weights import DTYPES, ArrayWeights, Dtype, Floats, SourceWeights, Weights

STEP_TOKENS = 256
_NONE = np.empty(0, np.int64)


class Wanted(NamedTuple):
    """What a step leaves besides keys and values: see `batch` in native/forward.h."""

    kept: Ids
    logit_rows: Ids = _NONE
    scored_rows: Ids = _NONE
    score_rows: Ids = _NONE
    targets: Ids = _NONE

    def fields(self) -> dict[str, int]:
        """Fields of a BatchStruct: addresses of these arrays, and their lengths."""
        counts = {"kept_count": self.kept, "logit_count": self.logit_rows, "scored_count": self.scored_rows}
        addresses = {name: array.ctypes.data for name, array in self._asdict().items()}
        return addresses | {name: len(array) for name, array in counts.items()} | {"score_count": len(self.targets)}


class CpuBackend:
    """See `nextword.backend.Backend`.

    A token's result is bit-identical whatever other tokens are in the step, however its sequence is split into steps,
    and for any page placement, number of threads and instruction set. Weights are read where they are: they may change
    between steps.
    """

    step_tokens = STEP_TOKENS

    def __init__(self, weights: Weights, kv_dtype: KVType, page_size: int | None = None) -> None:
        check_runnable(weights.spec)
        self.spec = spec = weights.spec
        self.kv_dtype = kv_dtype
        self._model, self._weights = CompiledModel(weights), weights
        self.types = frozenset(weights.types)  # of its matrices, by GGUF's names
        sized = () if page_size is None else (page_size,)
        self.pages = KVCache(spec, kv_dtype, *sized) if spec.kind == "transformer" else States(spec, *sized)
        self.vocabulary = spec.vocabulary
        self.context = spec.context if spec.kind == "transformer" else None
        self.page_size, self.page_bytes = self.pages.page_size, self.pages.page_bytes
        self.rewindable = self.pages.rewindable
        self.copy_page = self.pages.copy_page

    @classmethod
    def from_arrays(
        cls, spec: ModelSpec, arrays: Mapping[str, Floats], kv_dtype: KVType = "float32", page_size: int | None = None
    ) -> CpuBackend:
        """A model over float32 arrays by the names of our parameters, which are not copied."""
        return cls(ArrayWeights(spec, arrays), kv_dtype, page_size)

    @property
    def device_memory(self) -> int | None:
        """Free bytes, without those that the system caches mapped weights in: each step reads them."""
        free = free_memory()
        return free if free is None else max(free - self._weights.mapped_bytes, 0)

    def allocate(self, pages: int) -> None:
        self.pages.allocate(pages)

    def forward(self, batch: Batch) -> Output:
        wanted = _wanted(batch)
        logits = np.empty((len(batch.logit_rows), self.vocabulary), np.float32)
        logprobs, ranks = np.empty(len(batch.targets)), np.empty(len(batch.targets), np.int64)
        kept = np.empty((len(wanted.kept) if len(batch.hidden_rows) else 0, self.spec.width), np.float32)
        results = [array.ctypes.data for array in (logits, logprobs, ranks)]
        self._run(batch, wanted, OutputStruct(kept.ctypes.data if len(kept) else None, *results))
        hidden = kept[np.searchsorted(wanted.kept, batch.hidden_rows)] if len(kept) else kept
        return Output(logits, logprobs, ranks, hidden)

    def _run(self, batch: Batch, wanted: Wanted, output: OutputStruct) -> None:
        _check_arrays(batch)
        struct = BatchStruct(tokens=batch.tokens.ctypes.data, **wanted.fields())
        held = self.pages.place(batch, struct)
        result = library().nw_forward(addressof(self._model.struct), addressof(struct), addressof(output))
        del held  # what the call reads
        if result == _NO_MEMORY:
            raise MemoryError(f"not enough memory for a step of {len(batch.tokens)} tokens")
        if result:
            raise ValueError(_REFUSED[result])


_NO_MEMORY = 1  # forward_result of native/forward.h
_REFUSED = {
    2: "a token id outside the vocabulary",
    3: "a row outside the step",
    4: "a sequence number outside the page tables",
    5: "a position outside the page tables",
    6: "a page outside the pool",
}


def _wanted(batch: Batch) -> Wanted:
    rows = batch.logit_rows
    if not len(batch.targets) and not len(batch.hidden_rows) and (len(rows) < 2 or (rows[1:] > rows[:-1]).all()):
        return Wanted(rows, np.arange(len(rows)))
    kept = np.unique(np.concatenate((rows, batch.score_rows, batch.hidden_rows)))
    scored, score_rows = np.unique(batch.score_rows, return_inverse=True)
    return Wanted(kept, np.searchsorted(kept, rows), np.searchsorted(kept, scored), score_rows, batch.targets)


def _check_arrays(batch: Batch) -> None:
    """Raise ValueError unless the arrays are contiguous, of the right types, and as long as each other."""
    for name, array in vars(batch).items():
        dtype, dimensions = (np.int32, 2) if name == "page_tables" else (np.int64, 1)
        if array.dtype != dtype or array.ndim != dimensions or not array.flags.c_contiguous:
            raise ValueError(f"{name} takes a contiguous {np.dtype(dtype)} array, not {array.dtype} {array.shape}")
    if not 0 < len(batch.tokens) == len(batch.positions) == len(batch.sequences):
        raise ValueError(
            f"{len(batch.tokens)} tokens, {len(batch.positions)} positions, {len(batch.sequences)} sequences"
        )
    if len(batch.targets) != len(batch.score_rows):
        raise ValueError(f"{len(batch.targets)} targets for {len(batch.score_rows)} score rows")


def check_types(dtype: str, kv_dtype: str) -> None:
    """Raise UsageError for a type of weights, or of keys and values, that does not exist."""
    for name, value, known in (("dtype", dtype, DTYPES), ("kv-dtype", kv_dtype, KV_DTYPES)):
        if value not in known:
            hint = ". int8 is now q8_0" if (name, value) == ("dtype", "int8") else ""
            raise UsageError(f"{name} {value!r} is not known. Known: {', '.join(known)}{hint}")


def load_backend(source: Source, dtype: Dtype = "auto", kv_dtype: str = "auto") -> CpuBackend:
    """The model of an opened source.

    dtype: "auto" multiplies matrices as they are stored, in the mapped file; others convert them.
    kv_dtype: "auto" is float16, or float32 where the weights are float32.
    Raises UsageError for unknown settings and for models that cannot be run.
    """
    check_types(dtype, kv_dtype)
    check_runnable(source.spec)
    weights = SourceWeights(source, dtype)
    return CpuBackend(weights, cast(KVType, kv_dtype) if kv_dtype != "auto" else _kv_type(source, dtype))


def _kv_type(source: Source, dtype: Dtype) -> KVType:
    stored = {source.kind(tensor) for p in source.parameters if len(p.shape) > 1 for tensor in p.tensors}
    return "float32" if dtype == "float32" or (dtype == "auto" and stored == {"f32"}) else "float16"
