"""Sampling from rows of logits: numpy in and out, no torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..base import RunError
from .library import loaded

Logits = NDArray[np.float32] | NDArray[np.float64]

_LOGITS = np.dtype([("raw", np.uintp), ("adjusted", np.uintp), ("wide", np.int64)])
SETTINGS = np.dtype(
    [
        ("temperature", np.float64),  # 0: greedy
        ("top_p", np.float64),
        ("min_p", np.float64),
        ("uniform", np.float64),  # [0, 1)
        ("top_k", np.int64),  # 0 keeps all
        ("top", np.int64),  # how many of the model's likeliest tokens are wanted
    ]
)
RESULTS = np.dtype(
    [
        ("finite", np.int64),  # 0: no distribution can be made of the row, and nothing below is set
        ("token", np.int64),
        ("drawn", np.float64),  # the probability it was drawn with
        ("largest", np.float64),  # logit of those that the token is drawn from
        ("own_largest", np.float64),  # logit of the model's own
        ("own_log_sum", np.float64),  # ln p under the model = logit - own_largest - own_log_sum
        ("mass", np.float64),  # of the tokens kept: the sum of exp((logit - largest) / temperature)
        ("edge_logit", np.float64),  # kept: tokens of a larger logit, and of this one those of an id below `edge_id`
        ("edge_id", np.int64),
    ]
)


def draw(
    raw: Sequence[Logits], adjusted: Sequence[Logits | None], settings: NDArray[np.void]
) -> tuple[NDArray[np.void], NDArray[np.int32]]:
    """Draw a token from each row: RESULTS (rows,), and the ids of its `top` likeliest, in no order, -1 where none is.

    `raw`: the model's own logits, each (vocabulary,) float32. `adjusted`: what is drawn from where that is not the
    same, float32 or float64. `settings`: SETTINGS (rows,).
    """
    width, rows = len(raw[0]), len(raw)
    addresses = np.array(
        [
            (_address(own, width), 0 if other is None else _address(other, width), _is_wide(other))
            for own, other in zip(raw, adjusted, strict=True)
        ],
        _LOGITS,
    )
    if settings.dtype != SETTINGS or settings.shape != (rows,) or any(own.dtype != np.float32 for own in raw):
        raise ValueError("settings do not fit the rows, or these are not float32")
    results = np.zeros(rows, RESULTS)
    top_ids = np.empty((rows, max(1, settings["top"].max())), np.int32)
    loaded().nw_draw(
        addresses.ctypes.data, settings.ctypes.data, rows, width, results.ctypes.data, top_ids.ctypes.data,
        top_ids.shape[1],
    )  # fmt: skip
    if (results["finite"] < 0).any():
        raise RunError("memory is short: there is none to draw a token with")
    return results, top_ids


def _is_wide(row: Logits | None) -> bool:
    return row is not None and row.dtype == np.float64


def _address(row: Logits, width: int) -> int:
    """Where a row begins. Raises ValueError for one whose memory is not what the kernels read."""
    if row.dtype not in (np.float32, np.float64) or row.shape != (width,) or not row.flags.c_contiguous:
        raise ValueError(f"takes contiguous rows of {width} floats, not {row.dtype} {row.shape}")
    return int(row.__array_interface__["data"][0])
