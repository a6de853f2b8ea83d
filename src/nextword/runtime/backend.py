"""The engine's CPU backend: a step of any mix of tokens is one call of the compiled kernels."""

from __future__ import annotations

from collections.abc import Mapping
from ctypes import addressof
from dataclasses import dataclass
from typing import cast

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


@dataclass(frozen=True)
class Wanted:
    """What a step leaves besides keys and values: see `batch` in native/forward.h."""

    kept: Ids
    logit_rows: Ids
    scored_rows: Ids
    score_rows: Ids
    targets: Ids

    def fields(self) -> dict[str, int]:
        """Fields of a BatchStruct: addresses of these arrays, and their lengths."""
        counts = {"kept_count": self.kept, "logit_count": self.logit_rows, "scored_count": self.scored_rows}
        addresses = {name: array.ctypes.data for name, array in vars(self).items()}
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
        self.allocate, self.copy_page = self.pages.allocate, self.pages.copy_page

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

    def forward(self, batch: Batch) -> Output:
        kept = np.unique(np.concatenate((batch.logit_rows, batch.score_rows)))
        scored, score_rows = np.unique(batch.score_rows, return_inverse=True)
        logits = np.empty((len(batch.logit_rows), self.vocabulary), np.float32)
        logprobs, ranks = np.empty(len(score_rows)), np.empty(len(score_rows), np.int64)
        wanted = Wanted(
            kept,
            np.searchsorted(kept, batch.logit_rows),
            np.searchsorted(kept, scored),
            score_rows,
            np.ascontiguousarray(batch.targets),
        )
        self._run(batch, wanted, OutputStruct(None, *(array.ctypes.data for array in (logits, logprobs, ranks))))
        return Output(logits, logprobs, ranks)

    def hidden(self, batch: Batch) -> Floats:
        """What the head reads after every token, (tokens, width); `logit_rows` and `score_rows` are ignored."""
        hidden = np.empty((len(batch.tokens), self.spec.width), np.float32)
        none = np.empty(0, np.int64)
        self._run(batch, Wanted(np.arange(len(hidden)), none, none, none, none), OutputStruct(hidden.ctypes.data))
        return hidden

    def _run(self, batch: Batch, wanted: Wanted, output: OutputStruct) -> None:
        self._check(batch)
        tokens = np.ascontiguousarray(batch.tokens)
        struct = BatchStruct(tokens=tokens.ctypes.data, **wanted.fields())
        held = self.pages.place(batch, struct)
        if library().nw_forward(addressof(self._model.struct), addressof(struct), addressof(output)):
            raise MemoryError(f"not enough memory for a step of {len(tokens)} tokens")
        del held, wanted  # what the call reads

    def _check(self, batch: Batch) -> None:
        """Raise ValueError for tokens and rows that do not exist."""
        count, vocabulary = len(batch.positions), self.vocabulary
        limits = {"tokens": vocabulary, "targets": vocabulary, "logit_rows": count, "score_rows": count}
        for name, limit in limits.items():
            ids = getattr(batch, name)
            if ids.dtype != np.int64 or (len(ids) and not 0 <= ids.min() <= ids.max() < limit):
                raise ValueError(f"{name} takes int64 numbers below {limit}")
        if len(batch.tokens) != count or len(batch.targets) != len(batch.score_rows):
            raise ValueError(f"{len(batch.tokens)} tokens at {count} positions, or targets that match no score rows")


def load_backend(source: Source, dtype: Dtype = "auto", kv_dtype: str = "auto") -> CpuBackend:
    """The model of an opened source.

    dtype: "auto" multiplies matrices as they are stored, in the mapped file; others convert them.
    kv_dtype: "auto" is float16, or float32 where the weights are float32.
    Raises UsageError for unknown settings and for models that cannot be run.
    """
    for name, value, known in (("dtype", dtype, DTYPES), ("kv-dtype", kv_dtype, KV_DTYPES)):
        if value not in known:
            raise UsageError(f"{name} {value!r} is not known. Known: {', '.join(known)}")
    check_runnable(source.spec)
    weights = SourceWeights(source, dtype)
    return CpuBackend(weights, cast(KVType, kv_dtype) if kv_dtype != "auto" else _kv_type(source, dtype))


def _kv_type(source: Source, dtype: Dtype) -> KVType:
    stored = {source.kind(tensor) for p in source.parameters if len(p.shape) > 1 for tensor in p.tensors}
    return "float32" if dtype == "float32" or (dtype == "auto" and stored == {"f32"}) else "float16"
