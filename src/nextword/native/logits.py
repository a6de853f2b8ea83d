"""Sampling from rows of logits: numpy in and out, no torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..base import RunError
from .bindings import library

Logits = NDArray[np.float32] | NDArray[np.float64]

_LOGITS = np.dtype([("raw", np.uintp), ("adjusted", np.uintp), ("wide", np.int64)])
SETTINGS = np.dtype(
    [
        ("temperature", np.float64),  # 0: greedy
        ("top_p", np.float64),
        ("min_p", np.float64),
        ("uniform", np.float64),  # [0, 1)
        ("top_k", np.int64),  # 0 keeps all
        ("top", np.int64),  # how many of the model's most likely tokens to return
    ]
)
RESULTS = np.dtype(
    [
        ("finite", np.int64),  # 0: the row is not a valid distribution, and nothing below is set
        ("token", np.int64),
        ("drawn", np.float64),  # the probability it was sampled with
        ("largest", np.float64),  # largest logit of those sampled from
        ("own_largest", np.float64),  # largest of the model's own logits
        ("own_log_sum", np.float64),  # ln p under the model = logit - own_largest - own_log_sum
        ("mass", np.float64),  # of the tokens kept: the sum of exp((logit - largest) / temperature)
        ("edge_logit", np.float64),  # kept: tokens of a larger logit, and of this one those of an id below `edge_id`
        ("edge_id", np.int64),
    ]
)


def draw(
    logits: NDArray[np.float32],
    row_indices: Sequence[int],
    adjusted: Sequence[Logits | None],
    settings: NDArray[np.void],
) -> tuple[NDArray[np.void], NDArray[np.int32]]:
    """Sample tokens from rows of the model's `logits` (·, vocabulary): RESULTS (rows,) and the ids (rows, ·) of each
    row's `top` most likely tokens, unordered, padded with -1.

    `row_indices`: which rows. `adjusted`: logits to sample from instead, float32 or float64. `settings`: SETTINGS
    (rows,).
    """
    _check(logits, np.float32)
    count, (total, width) = len(row_indices), logits.shape
    addresses = np.zeros(count, _LOGITS)
    if settings.dtype != SETTINGS or settings.shape != (count,) or not all(0 <= index < total for index in row_indices):
        raise ValueError(f"settings {settings.shape} or row indices {row_indices} do not fit {total} rows")
    addresses["raw"] = logits.ctypes.data + np.asarray(row_indices, np.int64) * logits.strides[0]
    for index, row in enumerate(adjusted):
        if row is not None:
            _check(row, row.dtype)
            if row.shape != (width,):
                raise ValueError(f"takes rows of {width} logits, not {row.shape}")
            addresses[index] = (addresses["raw"][index], row.ctypes.data, row.dtype == np.float64)
    results = np.zeros(count, RESULTS)
    top_ids = np.empty((count, max(1, settings["top"].max())), np.int32)
    library().nw_draw(
        addresses.ctypes.data, settings.ctypes.data, count, width, results.ctypes.data, top_ids.ctypes.data,
        top_ids.shape[1],
    )  # fmt: skip
    if (results["finite"] < 0).any():
        raise RunError("not enough memory to sample a token")
    return results, top_ids


def _check(logits: Logits, dtype: DTypeLike) -> None:
    """Raise ValueError for logits in a layout that the kernels cannot read."""
    if logits.dtype != dtype or logits.dtype not in (np.float32, np.float64) or not logits.flags.c_contiguous:
        raise ValueError(f"takes contiguous float32, or float64 if adjusted, not {logits.dtype}")
