"""Pages of keys and values, and of states: what a step may read and write, and what is refused before anything is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from models_in_memory import LLAMA, SPECS, arrays_of, backend_over, model_of, texts

from gguf_files import write_llama
from nextword import native
from nextword.backend import Batch
from nextword.base import UsageError
from nextword.runtime import CpuBackend, load_backend
from nextword.runtime.kv_cache import KVCache
from nextword.spec import LatentSpec
from nextword.weights.loading import open_source
from paged import Paged

pytestmark = pytest.mark.skipif(not native.available(), reason="the compiled kernels were not built")

NONE = np.empty(0, np.int64)


def batch(positions: list[int], tables: list[list[int]]) -> Batch:
    """Token 5 of sequence 0 at each of `positions`, with its last logits wanted."""
    count = len(positions)
    return Batch(
        tokens=np.full(count, 5), positions=np.array(positions, np.int64), sequences=np.zeros(count, np.int64),
        page_tables=np.array(tables, np.int32), logit_rows=np.array([count - 1]), score_rows=NONE, targets=NONE,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": np.array([50, 0, 0])}, "token id"),
        ({"tokens": np.array([-1, 0, 0])}, "token id"),
        ({"tokens": np.array([1, 2])}, "2 tokens"),
        ({"logit_rows": np.array([3])}, "row outside"),
        ({"score_rows": np.array([3]), "targets": np.array([0])}, "row outside"),
        ({"score_rows": np.array([0]), "targets": np.array([50])}, "token id"),
        ({"score_rows": np.array([0]), "targets": NONE}, "score rows"),
        ({"positions": np.array([-1, 0, 1])}, "position outside"),
        ({"positions": np.array([62, 63, 64])}, "position outside"),
        ({"positions": np.array([7, 8, 9], np.int32)}, "int64"),
        ({"positions": np.arange(6)[::2]}, "contiguous"),
        ({"sequences": np.array([0, 0])}, "2 sequences"),
        ({"sequences": np.array([0, 0, 1])}, "sequence number outside"),
        ({"sequences": np.array([-1, 0, 0])}, "sequence number outside"),
        ({"page_tables": np.array([[0, 4]], np.int32), "positions": np.array([31, 32, 33])}, "page outside"),
        ({"page_tables": np.array([[-1, 1]], np.int32), "positions": np.array([31, 32, 33])}, "page outside"),
        ({"page_tables": np.array([[0, 1]])}, "int32"),
        ({"page_tables": np.zeros((2, 2), np.int32, order="F")}, "contiguous"),
        ({"page_tables": np.zeros((0, 2), np.int32)}, "sequence number outside"),
    ],
)
def test_a_step_that_leaves_the_pool_is_refused(change: dict[str, np.ndarray], message: str) -> None:
    backend = backend_over(model_of(LLAMA))
    backend.allocate(4)
    good = batch([5, 6, 7], [[0, 1]])
    backend.forward(good)
    with pytest.raises(ValueError, match=message):
        backend.forward(replace(good, **change))


def test_pages_that_no_token_needs_may_be_missing() -> None:
    backend = backend_over(model_of(LLAMA))
    backend.allocate(4)
    assert np.isfinite(backend.forward(batch([63], [[3, 1, -1, -1]])).logits).all()
    with pytest.raises(ValueError, match="page outside"):
        backend.forward(batch([64], [[3, 1, -1, -1]]))


@pytest.mark.parametrize(
    ("positions", "sequences", "tables", "message"),
    [
        ([7, 9, 8], [0, 0, 0], [[0, 1]], "consecutive"),
        ([0, 0, 1], [0, 1, 0], [[0, 1], [2, 1]], "next to each other"),
        ([7, 8, 9], [0, 0, 0], [[-1, 1]], "page outside"),
        ([7, 8, 9], [0, 0, 0], [[0, 3]], "page outside"),
        ([8, 9, 10], [0, 0, 0], [[-1, 1]], "page outside"),
    ],
)
def test_a_step_of_states_that_does_not_fit_is_refused(
    positions: list[int], sequences: list[int], tables: list[list[int]], message: str
) -> None:
    backend = backend_over(model_of(SPECS["rnn"]))
    backend.allocate(3)
    backend.forward(batch([7, 8, 9], [[0, 1]]))
    with pytest.raises(ValueError, match=message):
        backend.forward(replace(batch(positions, tables), sequences=np.array(sequences)))


@pytest.mark.parametrize("name", ["llama", "lstm"])
def test_a_copied_page_continues_as_its_source_would(name: str) -> None:
    tokens = texts(1, 17)[0].tolist()
    paged = Paged(backend_over(model_of(SPECS[name]), page_size=8), 8)
    paged.read({0: tokens[:16]})
    paged.lengths[1], paged.tables[1] = 16, [paged._free.pop() for _ in range(2)]
    for source, target in zip(paged.tables[0], paged.tables[1], strict=True):
        paged.backend.copy_page(source, target)
    both = paged.read({0: tokens[16:], 1: tokens[16:]})
    assert torch.equal(both[0], both[1])


@pytest.mark.parametrize(("kv_dtype", "row"), [("float32", 4 * 64), ("float16", 2 * 64), ("q8_0", 2 * 34)])
def test_page_bytes_are_those_of_the_cache_type(kv_dtype: str, row: int, tmp_path: Path) -> None:
    source = open_source(write_llama(tmp_path / "tiny.gguf", "f32"))
    backend = load_backend(source, kv_dtype=kv_dtype)
    assert backend.page_bytes == 2 * 2 * 2 * backend.page_size * row  # keys and values, layers, heads


@pytest.mark.parametrize(
    ("kind", "dtype", "expected"),
    [
        ("f32", "auto", "float32"),
        ("q4_k", "auto", "float16"),
        ("q4_k", "float32", "float32"),
        ("f32", "float16", "float16"),
    ],
)
def test_the_cache_is_float32_where_the_weights_are(kind: str, dtype: str, expected: str, tmp_path: Path) -> None:
    source = open_source(write_llama(tmp_path / "tiny.gguf", kind))
    assert load_backend(source, dtype).kv_dtype == expected  # type: ignore[arg-type]


def test_settings_that_do_not_fit_are_named(tmp_path: Path) -> None:
    source = open_source(write_llama(tmp_path / "tiny.gguf", "f32"))
    with pytest.raises(UsageError, match="dtype 'int8' is not known"):
        load_backend(source, "int8")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="kv-dtype 'int8' is not known"):
        load_backend(source, kv_dtype="int8")
    with pytest.raises(UsageError, match=r"multiple of 32 numbers.*have 16"):
        backend_over(model_of(LLAMA), kv_dtype="q8_0")
    with pytest.raises(ValueError, match="multiple of 8"):
        KVCache(LLAMA, "float32", 12)
    with pytest.raises(UsageError, match="plans models with latent attention"):
        CpuBackend.from_arrays(replace(LLAMA, latent=LatentSpec(16, 0, 8, 8, 8)), arrays_of(model_of(LLAMA)))
