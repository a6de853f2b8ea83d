"""GGUF files: metadata at once, tensors on demand from a mapping. Split files (…-00001-of-00003.gguf) open as one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..base import RunError, UsageError, open_regular
from . import floats
from .gguf_format import Header, read_header
from .gguf_types import TensorInfo
from .mapping import Bytes, map_file

_SPLIT_NAME = re.compile(r"(?P<stem>.*)-(?P<part>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)
_CHUNK = 1 << 20  # numbers dequantized at a time


class GGUFFile:
    """An open GGUF model. Use `GGUFFile.open(path)`; its arrays keep the mapping alive."""

    def __init__(self, paths: list[Path], headers: list[Header], maps: list[Bytes]) -> None:
        self.paths = paths
        self.version = headers[0].version
        self.metadata: dict[str, Any] = headers[0].metadata
        self.tensors: dict[str, TensorInfo] = dict(_merge(headers, paths))
        self._maps = maps

    @classmethod
    def open(cls, path: Path | str) -> GGUFFile:
        """Open a file, or any part of a split one. The metadata is that of the first part.

        Raises UsageError if a file is missing, not a GGUF file, or invalid.
        """
        path = Path(path)
        header, mapped = _open(path)
        paths = _parts(path, header.metadata)
        if len(paths) == 1:
            return cls(paths, [header], [mapped])
        opened = [_open(part, siblings=len(paths)) for part in paths]
        headers = [header for header, _ in opened]
        _check_parts(paths, headers)
        return cls(paths, headers, [mapped for _, mapped in opened])

    @property
    def architecture(self) -> str:
        """`general.architecture`, such as "llama"; "" if missing."""
        name = self.metadata.get("general.architecture", "")
        return name if isinstance(name, str) else ""

    def raw(self, name: str) -> Bytes:
        """The stored bytes of a tensor in the mapping, (rows, bytes per row).

        Raises RunError if the file has been truncated since its header was read.
        """
        tensor = self._tensor(name)
        stored = self._maps[tensor.part][tensor.offset : tensor.offset + tensor.nbytes]
        if len(stored) < tensor.nbytes:
            raise RunError(f"{self.paths[tensor.part]} was truncated while it was being read")
        return stored.reshape(tensor.rows, tensor.row_bytes)

    def float32(self, name: str) -> NDArray[np.float32]:
        """A tensor as float32 in its shape (out, in), a copy.

        Takes temporary memory for about a million numbers. Raises UsageError if its type cannot be dequantized.
        """
        tensor = self._tensor(name)
        values = np.empty((tensor.rows, tensor.width), np.float32)
        for rows, chunk in self._chunks(name):
            values[rows] = chunk
        return values.reshape(tensor.shape)

    def converted(self, name: str, kind: str) -> Bytes:
        """The rows of a tensor in another type, (rows, bytes per row). Memory and errors as for `float32`."""
        from gguf.constants import GGMLQuantizationType
        from gguf.quants import quantize

        type = GGMLQuantizationType[kind.upper()]
        return np.concatenate([quantize(chunk, type).view(np.uint8) for _, chunk in self._chunks(name)])

    def _chunks(self, name: str) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """The rows of a tensor, some at a time."""
        tensor, stored = self._tensor(name), self.raw(name)
        step = max(1, _CHUNK // tensor.width)
        for first in range(0, tensor.rows, step):
            rows = slice(first, first + step)
            yield rows, _decoded(tensor, stored[rows])

    def _tensor(self, name: str) -> TensorInfo:
        if name not in self.tensors:
            raise UsageError(f"{self.paths[0]} has no tensor {name!r}")
        return self.tensors[name]


def _open(path: Path, siblings: int = 0) -> tuple[Header, Bytes]:
    """A file's header, checked against its size, and its bytes."""
    try:
        with open_regular(path) as file:
            return read_header(file.fileno(), str(path)), map_file(file, path)
    except FileNotFoundError:
        hint = f". All {siblings} parts of the model must lie in one folder" if siblings else ""
        raise UsageError(f"{path} does not exist{hint}") from None
    except UsageError:
        raise
    except (OSError, ValueError) as problem:
        raise UsageError(f"{path} cannot be read: {getattr(problem, 'strerror', None) or problem}") from None


def _parts(path: Path, metadata: dict[str, Any]) -> list[Path]:
    """The paths of a model's parts, given any of them; [path] if it is not split."""
    count = metadata.get("split.count", 1)
    if type(count) is not int or not 0 <= count <= 9999:
        raise UsageError(f"{path} is not a valid GGUF file: it claims to be one of {count!r} parts")
    if count <= 1:
        return [path]
    match = _SPLIT_NAME.fullmatch(path.name)
    if not match or int(match["count"]) != count:
        raise UsageError(f"{path} is one of {count} parts; its name must end in -00001-of-{count:05}.gguf")
    return [path.with_name(f"{match['stem']}-{part:05}-of-{count:05}.gguf") for part in range(1, count + 1)]


def _check_parts(paths: list[Path], headers: list[Header]) -> None:
    for number, (path, header) in enumerate(zip(paths, headers, strict=True)):
        says = header.metadata.get("split.no"), header.metadata.get("split.count")
        if says != (number, len(paths)):
            raise UsageError(f"{path} says it is part {says[0]!r} of {says[1]!r}, not {number} of {len(paths)}")
    count = sum(len(header.tensors) for header in headers)
    expected = headers[0].metadata.get("split.tensors.count", count)
    if count != expected:
        raise UsageError(f"{paths[0]}: the parts hold {count} tensors together, but {expected} are expected")


def _merge(headers: list[Header], paths: list[Path]) -> Iterator[tuple[str, TensorInfo]]:
    seen: set[str] = set()
    for part, header in enumerate(headers):
        for name, tensor in header.tensors.items():
            if name in seen:
                raise UsageError(f"{paths[part]} repeats the tensor {name!r} of another part")
            seen.add(name)
            yield name, replace(tensor, part=part) if part else tensor


def _decoded(tensor: TensorInfo, stored: Bytes) -> NDArray[np.float32]:
    if tensor.kind in floats.FLOATS:
        return floats.decode(tensor.kind, stored)
    return _dequantize(tensor, stored)


def _dequantize(tensor: TensorInfo, stored: Bytes) -> NDArray[np.float32]:
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    try:
        values: NDArray[np.float32] = dequantize(stored, GGMLQuantizationType[tensor.kind.upper()])
    except (KeyError, NotImplementedError, ValueError):
        raise UsageError(f"tensor {tensor.name!r} is stored as {tensor.kind}, which cannot be dequantized") from None
    return values
