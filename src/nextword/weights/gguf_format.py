"""The GGUF format: a validating header reader.

Layout (little-endian), from the GGUF specification in the ggml repository, versions 2 and 3:
magic "GGUF", u32 version, u64 tensor count, u64 metadata count, the metadata pairs, the tensor
descriptions, padding to `general.alignment`, the data of the tensors.
"""

from __future__ import annotations

import math
import os
import struct
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ..base import UsageError
from .gguf_reader import MAX_HEADER, Bad, Reader, Short
from .gguf_types import BlockType, TensorInfo

_MAX_PAIRS = 1 << 16
_MAX_TENSORS = 1 << 16
_MAX_ALIGNMENT = 1 << 20
_FIRST_READ = 1 << 22


@dataclass(frozen=True)
class Header:
    """A file's header. Every tensor lies inside the file and overlaps no other."""

    version: int
    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]


def read_header(descriptor: int, label: str) -> Header:
    """Read and check the header of the open file `descriptor`.

    `label` names the file in messages. Raises UsageError for any invalid bytes; reads at most a few
    times the header's size, and allocates in proportion to the file's real contents.
    """
    size = os.fstat(descriptor).st_size
    want = _FIRST_READ
    while True:
        data = os.pread(descriptor, min(want, size, MAX_HEADER), 0)
        try:
            return _parse(data, size)
        except (Short, struct.error):
            if len(data) >= min(size, MAX_HEADER) or len(data) < min(want, size):
                raise UsageError(
                    f"{label} ends inside its header: it is cut short, or its counts are wrong. Download it again"
                ) from None
            want *= 4
        except Bad as problem:
            raise UsageError(f"{label} is not a valid GGUF file: {problem}") from None


def _parse(data: bytes, size: int) -> Header:
    version = _check_start(data, size)
    tensor_count, pair_count = struct.unpack_from("<QQ", data, 8)
    if pair_count > _MAX_PAIRS or pair_count * 13 > size:
        raise Bad(f"it claims {pair_count} metadata entries in {size} bytes")
    if tensor_count > _MAX_TENSORS or tensor_count * 32 > size:
        raise Bad(f"it claims {tensor_count} tensors in {size} bytes")
    reader = Reader(data, 24, size)
    metadata: dict[str, Any] = {}
    for _ in range(pair_count):
        key = reader.name("a metadata key")
        if key in metadata:
            raise Bad(f"the metadata key {key!r} comes twice")
        metadata[key] = reader.value(key)
    raw = [reader.tensor() for _ in range(tensor_count)]
    start = _data_start(reader.position, metadata)
    return Header(version, metadata, _checked_tensors(raw, start, _alignment(metadata), size))


def _check_start(data: bytes, size: int) -> int:
    if data[:4] != b"GGUF":
        raise Bad(f"it {_guess(data, size)}")
    if size < 24:
        raise Bad(f"it has only {size} bytes")
    version: int = struct.unpack_from("<I", data, 4)[0]
    if version and not version & 0xFFFF:
        raise Bad("it is big-endian; only little-endian files are read. Convert it with the gguf package")
    if version not in (2, 3):
        raise Bad(f"its version is {version}; versions 2 and 3 are read. Convert the model again")
    return version


def _guess(data: bytes, size: int) -> str:
    """Guess what a file without the magic number is."""
    head = data[:512].lstrip().lower()
    if not size:
        return "is empty"
    if head.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the file itself: run git lfs pull"
    if head.startswith((b"<!doctype", b"<html")):
        return "is an HTML page: the download went wrong"
    if data[:4] in (b"lmgg", b"ggml", b"fmgg", b"tjgg", b"algg"):
        return "is in the format before GGUF: convert the model again"
    if data[:2] == b"PK":
        return "is a zip archive (a PyTorch checkpoint?), and pickles are never opened"
    if data[:1] == b"\x80" and data[1:2] in b"\x02\x03\x04\x05":
        return "is a pickle, and pickles are never opened"
    if data[:2] == b"\x1f\x8b":
        return "is compressed with gzip: unpack it first"
    if data[8:9] == b"{":
        return "looks like a safetensors file: give its folder instead"
    return f"starts with {data[:4]!r} instead of b'GGUF'"


def _alignment(metadata: dict[str, Any]) -> int:
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 8 <= alignment <= _MAX_ALIGNMENT or alignment & (alignment - 1):
        raise Bad(f"its alignment is {alignment!r} (a power of two from 8 to {_MAX_ALIGNMENT} is expected)")
    return alignment


def _data_start(header_end: int, metadata: dict[str, Any]) -> int:
    alignment = _alignment(metadata)
    return -(-header_end // alignment) * alignment


def _checked_tensors(
    described: list[tuple[str, BlockType, tuple[int, ...], int]], start: int, alignment: int, size: int
) -> dict[str, TensorInfo]:
    """Check the location of each tensor's bytes."""
    tensors: dict[str, TensorInfo] = {}
    for name, kind, shape, offset in described:
        if name in tensors:
            raise Bad(f"the tensor {name!r} comes twice")
        if shape[-1] % kind.values:
            raise Bad(f"tensor {name!r} has rows of {shape[-1]}, not a multiple of {kind.name}'s {kind.values}")
        nbytes = math.prod(shape) // kind.values * kind.nbytes
        if offset % alignment:
            raise Bad(f"tensor {name!r} starts at {offset}, not a multiple of the alignment {alignment}")
        end = start + offset + nbytes
        if end > size:
            raise Bad(f"tensor {name!r} ends at byte {end}, but the file has {size}: it is cut short")
        tensors[name] = TensorInfo(name, kind, shape, start + offset, nbytes)
    in_order = sorted(tensors.values(), key=lambda tensor: tensor.offset)
    for before, after in pairwise(in_order):
        if before.offset + before.nbytes > after.offset:
            raise Bad(f"the tensors {before.name!r} and {after.name!r} overlap")
    return tensors
