"""GGUF files: metadata at once, tensors on demand.

Nothing is memory-mapped: each tensor is read with pread into its own array, so that the
resident size is what the caller keeps. Split files (…-00001-of-00003.gguf) open as one.
"""

from __future__ import annotations

import os
import re
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from ..base import RunError, UsageError, open_regular
from .gguf_format import Header, TensorInfo, read_header

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_SPLIT_NAME = re.compile(r"(?P<stem>.*)-(?P<part>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)
_CHUNK = 1 << 20  # numbers dequantized at a time


class GGUFFile:
    """An open GGUF model. Use `GGUFFile.open(path)`; close it, or let it be garbage-collected."""

    def __init__(self, paths: list[Path], descriptors: list[int], headers: list[Header]) -> None:
        self.paths = paths
        self.version = headers[0].version
        self.metadata: dict[str, Any] = headers[0].metadata
        self.tensors: dict[str, TensorInfo] = dict(_merge(headers, paths))
        self._descriptors = descriptors
        self._close = weakref.finalize(self, _close_all, descriptors)

    @classmethod
    def open(cls, path: Path | str) -> GGUFFile:
        """Open a file, or any part of a split one. The metadata is that of the first part.

        Raises UsageError if a file is missing, not a GGUF file, or invalid.
        """
        descriptors: list[int] = []
        try:
            descriptors.append(_open(Path(path)))
            headers = [read_header(descriptors[0], str(path))]
            paths = _parts(Path(path), headers[0].metadata)
            if len(paths) > 1:
                _close_all(descriptors)
                descriptors += [_open(part, siblings=len(paths)) for part in paths]
                headers = [read_header(file, str(part)) for file, part in zip(descriptors, paths, strict=True)]
                _check_parts(paths, headers)
            return cls(paths, descriptors, headers)
        except BaseException:
            _close_all(descriptors)
            raise

    def close(self) -> None:
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def architecture(self) -> str:
        """`general.architecture`, such as "llama"; "" if missing."""
        name = self.metadata.get("general.architecture", "")
        return name if isinstance(name, str) else ""

    def raw(self, name: str, out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        """The stored bytes of a tensor, (rows, bytes per row); into `out` of that shape if given."""
        import numpy as np

        tensor = self._tensor(name)
        shape = (tensor.rows, tensor.row_bytes)
        if out is None:
            out = np.empty(shape, np.uint8)
        elif out.shape != shape or out.dtype != np.uint8 or not out.flags.c_contiguous:
            raise ValueError(f"tensor {name!r} needs a contiguous uint8 array of shape {shape}")
        self._read(tensor, out, 0)
        return out

    def float32(self, name: str, out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """A tensor as float32 in its shape (out, in); into `out` of that shape if given.

        Takes temporary memory for about a million numbers. Raises UsageError if the kind cannot be
        dequantized.
        """
        import numpy as np

        tensor = self._tensor(name)
        if out is None:
            out = np.empty(tensor.shape, np.float32)
        elif out.shape != tensor.shape or out.dtype != np.float32 or not out.flags.c_contiguous:
            raise ValueError(f"tensor {name!r} needs a contiguous float32 array of shape {tensor.shape}")
        rows = out.reshape(tensor.rows, tensor.width)
        if tensor.kind == "f32":
            self._read(tensor, rows.view(np.uint8), 0)
            return out
        for first, last in _chunks(tensor):
            stored = np.empty((last - first, tensor.row_bytes), np.uint8)
            self._read(tensor, stored, first * tensor.row_bytes)
            _decode(tensor, stored, rows[first:last])
        return out

    def _tensor(self, name: str) -> TensorInfo:
        if name not in self.tensors:
            raise UsageError(f"{self.paths[0]} has no tensor {name!r}")
        return self.tensors[name]

    def _read(self, tensor: TensorInfo, into: NDArray[np.uint8], start: int) -> None:
        """Fill `into` with the tensor's bytes from `start` on."""
        if not self._close.alive:
            raise ValueError("the GGUF file is closed")
        view = into.data.cast("B")
        done = 0
        while done < len(view):
            count = os.preadv(self._descriptors[tensor.part], [view[done:]], tensor.offset + start + done)
            if not count:
                raise RunError(f"{self.paths[tensor.part]} was truncated while it was being read")
            done += count


def _close_all(descriptors: list[int]) -> None:
    while descriptors:
        os.close(descriptors.pop())


def _open(path: Path, siblings: int = 0) -> int:
    try:
        with open_regular(path) as file:
            return os.dup(file.fileno())
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
            yield name, replace(tensor, part=part)


def _chunks(tensor: TensorInfo) -> Iterable[tuple[int, int]]:
    step = max(1, _CHUNK // tensor.width)
    return ((first, min(first + step, tensor.rows)) for first in range(0, tensor.rows, step))


def _decode(tensor: TensorInfo, stored: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
    """Dequantize stored rows to float32."""
    import numpy as np

    if tensor.kind == "bf16":  # the upper half of a float32
        np.left_shift(stored.view("<u2"), 16, out=out.view(np.uint32), dtype=np.uint32)
    elif tensor.kind in ("f16", "f64"):
        out[...] = stored.view("<f2" if tensor.kind == "f16" else "<f8")
    else:
        out[...] = _dequantize(tensor, stored)


def _dequantize(tensor: TensorInfo, stored: NDArray[np.uint8]) -> NDArray[np.float32]:
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    try:
        numbers: NDArray[np.float32] = dequantize(stored, GGMLQuantizationType[tensor.kind.upper()])
    except (KeyError, NotImplementedError, ValueError):
        raise UsageError(f"tensor {tensor.name!r} is stored as {tensor.kind}, which cannot be dequantized") from None
    return numbers
