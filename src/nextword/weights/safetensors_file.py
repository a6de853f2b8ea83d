"""The safetensors format: 8 bytes with the length of a JSON header, the header, the tensors' bytes.

Read and written here rather than with the safetensors package, whose numpy interface has no bfloat16 and copies.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from io import BufferedReader
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..base import UsageError, open_regular
from .floats import KINDS
from .mapping import Bytes, map_file

_LARGEST_HEADER = 100 << 20  # bytes; safetensors' own limit
_ALIGNMENT = 8  # of the first tensor, when writing


@dataclass(frozen=True)
class StoredTensor:
    """One tensor as stored; `shape` is (out, in), `kind` like "q4_1", "f32", "bf16"."""

    name: str
    kind: str
    shape: tuple[int, ...]
    bytes: int

    @property
    def parameters(self) -> int:
        return math.prod(self.shape)


class SafetensorsFile:
    """A file's header, checked against the file's size, and its mapped bytes."""

    def __init__(self, path: Path) -> None:
        """Raises UsageError for a file that is missing, unreadable, truncated or not safetensors."""
        self.path = path
        try:
            with open_regular(path) as file:
                self.tensors, self._starts = _read_header(file)
                self._bytes = map_file(file, path)
        except UsageError:
            raise
        except FileNotFoundError:
            raise UsageError(f"{path}: named in the index but missing; the download is incomplete") from None
        except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(f"{path}: incomplete or damaged safetensors file ({error})") from None

    def raw(self, name: str) -> Bytes:
        """The bytes of a tensor in the mapping, one-dimensional."""
        start = self._starts[name]
        return self._bytes[start : start + self.tensors[name].bytes]


def _read_header(file: BufferedReader) -> tuple[dict[str, StoredTensor], dict[str, int]]:
    """The tensors, and where each one's bytes start in the file. Raises ValueError for an impossible header."""
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if not 0 < length <= min(_LARGEST_HEADER, size - 8):
        raise ValueError(f"its header says {length} bytes")
    header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    spans = {name: _span(name, entry) for name, entry in header.items()}
    _check_spans(spans, size - 8 - length)
    tensors = {name: _tensor(name, entry, spans[name]) for name, entry in header.items()}
    return tensors, {name: 8 + length + begin for name, (begin, _) in spans.items()}


def _span(name: str, entry: dict[str, Any]) -> tuple[int, int]:
    begin, end = entry["data_offsets"]
    if type(begin) is not int or type(end) is not int or not 0 <= begin <= end:
        raise ValueError(f"tensor {name!r} cannot lie at bytes {begin!r} to {end!r}")
    return begin, end


def _check_spans(spans: dict[str, tuple[int, int]], size: int) -> None:
    """The tensors follow each other without gaps and fill the file, as the format demands."""
    in_order = sorted((*span, name) for name, span in spans.items())
    for (_, before, _), (begin, _, name) in pairwise([(0, 0, ""), *in_order]):
        if begin != before:
            raise ValueError(f"tensor {name!r} starts at byte {begin} of the data, not {before}")
    end = in_order[-1][1] if in_order else 0
    if end != size:
        raise ValueError(f"its tensors take {end} bytes, and {size} are present")


def _tensor(name: str, entry: dict[str, Any], span: tuple[int, int]) -> StoredTensor:
    shape, kind = tuple(entry["shape"]), entry["dtype"].lower()
    if any(type(length) is not int or length < 0 for length in shape):
        raise ValueError(f"tensor {name!r} has the impossible shape {entry['shape']}")
    bits = re.search(r"\d+", kind)  # "f32", "f8_e4m3"; a "bool" has a byte
    stored = StoredTensor(name, kind, shape, span[1] - span[0])
    if 8 * stored.bytes != stored.parameters * int(bits[0] if bits else 8):
        raise ValueError(f"tensor {name!r} of {kind} {shape} cannot take {stored.bytes} bytes")
    return stored


def write_safetensors(path: Path, tensors: Mapping[str, NDArray[Any]], dtype: str) -> None:
    """Write tensors, encoded in `dtype` by `floats.encode`: the same bytes as the safetensors package writes.

    Raises OSError, as for a full disk.
    """
    in_order = sorted(tensors.items())
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, values in in_order:
        begin, end = end, end + values.nbytes
        header[name] = {"dtype": KINDS[dtype].upper(), "shape": list(values.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, values in in_order:
            file.write(np.ascontiguousarray(values).data)
