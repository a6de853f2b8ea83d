"""The GGUF format: block types, value types, and a validating header reader.

Layout (little-endian), from the GGUF specification in the ggml repository, versions 2 and 3:
magic "GGUF", u32 version, u64 tensor count, u64 metadata count, the metadata pairs, the tensor
descriptions, padding to `general.alignment`, the data of the tensors.
"""

from __future__ import annotations

import math
import os
import struct
from ctypes import byref, c_int64
from dataclasses import dataclass
from itertools import pairwise, repeat
from typing import Any, NamedTuple

import numpy as np

from ..base import UsageError
from ..native.bindings import find_library


class BlockType(NamedTuple):
    """How a tensor type stores numbers: `values` numbers in `nbytes` bytes."""

    name: str
    values: int
    nbytes: int


# The numbers are ggml's; a test compares them with the gguf package's table.
BLOCK_TYPES = {
    0: BlockType("f32", 1, 4),
    1: BlockType("f16", 1, 2),
    2: BlockType("q4_0", 32, 18),
    3: BlockType("q4_1", 32, 20),
    6: BlockType("q5_0", 32, 22),
    7: BlockType("q5_1", 32, 24),
    8: BlockType("q8_0", 32, 34),
    9: BlockType("q8_1", 32, 40),
    10: BlockType("q2_k", 256, 84),
    11: BlockType("q3_k", 256, 110),
    12: BlockType("q4_k", 256, 144),
    13: BlockType("q5_k", 256, 176),
    14: BlockType("q6_k", 256, 210),
    15: BlockType("q8_k", 256, 292),
    16: BlockType("iq2_xxs", 256, 66),
    17: BlockType("iq2_xs", 256, 74),
    18: BlockType("iq3_xxs", 256, 98),
    19: BlockType("iq1_s", 256, 50),
    20: BlockType("iq4_nl", 32, 18),
    21: BlockType("iq3_s", 256, 110),
    22: BlockType("iq2_s", 256, 82),
    23: BlockType("iq4_xs", 256, 136),
    24: BlockType("i8", 1, 1),
    25: BlockType("i16", 1, 2),
    26: BlockType("i32", 1, 4),
    27: BlockType("i64", 1, 8),
    28: BlockType("f64", 1, 8),
    29: BlockType("iq1_m", 256, 56),
    30: BlockType("bf16", 1, 2),
    34: BlockType("tq1_0", 256, 54),
    35: BlockType("tq2_0", 256, 66),
    39: BlockType("mxfp4", 32, 17),
    40: BlockType("nvfp4", 64, 36),
    41: BlockType("q1_0", 128, 18),
}

_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9

# Far above any published file (a vocabulary of 262,144 with merges is 15 MB), and still harmless.
_MAX_HEADER = 1 << 26  # bytes
_MAX_PAIRS = 1 << 16
_MAX_TENSORS = 1 << 16
_MAX_STRING = 1 << 22  # bytes
_MAX_ITEMS = 1 << 21  # array items in all metadata
_MAX_NAME = 1024  # bytes of a key or a tensor name
_MAX_DEPTH = 2  # arrays of arrays, no deeper
_MAX_NESTED = 1 << 16  # arrays in an array
_MAX_ALIGNMENT = 1 << 20
_FIRST_READ = 1 << 22


@dataclass(frozen=True)
class TensorInfo:
    """A tensor as the header describes it. `shape` is (..., out, in), as in PyTorch: the file has the reverse."""

    name: str
    type: BlockType
    shape: tuple[int, ...]
    offset: int  # of its first byte in the file
    nbytes: int
    part: int = 0  # which file of a split model

    @property
    def kind(self) -> str:
        """Name of its type: "f32", "f16", "q4_1", "q8_0", "q4_k", ..."""
        return self.type.name

    @property
    def rows(self) -> int:
        return math.prod(self.shape[:-1])

    @property
    def width(self) -> int:
        """Numbers per row."""
        return self.shape[-1]

    @property
    def row_bytes(self) -> int:
        return self.width // self.type.values * self.type.nbytes


@dataclass(frozen=True)
class Header:
    """A file's header. Every tensor lies inside the file and overlaps no other."""

    version: int
    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]


class _Short(Exception):
    """The bytes read so far end before the item does."""


class _Bad(Exception):
    """The header is invalid; the message says how."""


def read_header(descriptor: int, label: str) -> Header:
    """Read and check the header of the open file `descriptor`.

    `label` names the file in messages. Raises UsageError for any invalid bytes; reads at most a few
    times the header's size, and allocates in proportion to the file's real contents.
    """
    size = os.fstat(descriptor).st_size
    want = _FIRST_READ
    while True:
        data = os.pread(descriptor, min(want, size, _MAX_HEADER), 0)
        try:
            return _parse(data, size)
        except (_Short, struct.error):
            if len(data) >= min(size, _MAX_HEADER) or len(data) < min(want, size):
                raise UsageError(
                    f"{label} ends inside its header: it is cut short, or its counts are wrong. Download it again"
                ) from None
            want *= 4
        except _Bad as problem:
            raise UsageError(f"{label} is not a valid GGUF file: {problem}") from None


def _parse(data: bytes, size: int) -> Header:
    version = _check_start(data, size)
    tensor_count, pair_count = struct.unpack_from("<QQ", data, 8)
    if pair_count > _MAX_PAIRS or pair_count * 13 > size:
        raise _Bad(f"it claims {pair_count} metadata entries in {size} bytes")
    if tensor_count > _MAX_TENSORS or tensor_count * 32 > size:
        raise _Bad(f"it claims {tensor_count} tensors in {size} bytes")
    reader = _Reader(data, 24, size)
    metadata: dict[str, Any] = {}
    for _ in range(pair_count):
        key = reader.name("a metadata key")
        if key in metadata:
            raise _Bad(f"the metadata key {key!r} comes twice")
        metadata[key] = reader.value(key)
    raw = [reader.tensor() for _ in range(tensor_count)]
    start = _data_start(reader.position, metadata)
    return Header(version, metadata, _checked_tensors(raw, start, _alignment(metadata), size))


def _check_start(data: bytes, size: int) -> int:
    if data[:4] != b"GGUF":
        raise _Bad(f"it {_guess(data, size)}")
    if size < 24:
        raise _Bad(f"it has only {size} bytes")
    version: int = struct.unpack_from("<I", data, 4)[0]
    if version and not version & 0xFFFF:
        raise _Bad("it is big-endian; only little-endian files are read. Convert it with the gguf package")
    if version not in (2, 3):
        raise _Bad(f"its version is {version}; versions 2 and 3 are read. Convert the model again")
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


class _Reader:
    """Reads items one after another from `data`, the start of a file of `size` bytes."""

    def __init__(self, data: bytes, position: int, size: int) -> None:
        self.data = data
        self.position = position
        self.size = size
        self.items = 0

    def u32(self) -> int:
        value: int = struct.unpack_from("<I", self.data, self.position)[0]
        self.position += 4
        return value

    def u64(self) -> int:
        value: int = struct.unpack_from("<Q", self.data, self.position)[0]
        self.position += 8
        return value

    def string(self, what: str, limit: int = _MAX_STRING) -> str:
        length = self.u64()
        if length > limit:
            raise _Bad(f"{what} claims a length of {length} bytes (at most {limit})")
        self._need(length)
        text = self.data[self.position : self.position + length]
        self.position += length
        try:
            return text.decode()
        except UnicodeDecodeError:
            raise _Bad(f"{what} is not valid UTF-8") from None

    def name(self, what: str) -> str:
        name = self.string(what, _MAX_NAME)
        if not name or not name.isprintable():
            raise _Bad(f"{what} is {name!r}, which is not a name")
        return name

    def value(self, key: str) -> Any:
        code = self.u32()
        if code == _STRING:
            return self.string(f"the value of {key!r}")
        if code == _ARRAY:
            return self._array(key, _MAX_DEPTH)
        return self._numbers(key, code, 1)[0]

    def _array(self, key: str, depth: int) -> list[Any]:
        code, count = self.u32(), self.u64()
        self.items += count
        if self.items > _MAX_ITEMS:
            raise _Bad(f"the array {key!r} claims {count} items (at most {_MAX_ITEMS} in all)")
        if code == _STRING:
            return self._strings(key, count)
        if code != _ARRAY:
            return list(self._numbers(key, code, count))
        if depth == 1 or count > _MAX_NESTED:
            raise _Bad(f"{key!r} holds {count} arrays (at most {_MAX_NESTED}, and {_MAX_DEPTH} deep)")
        return [self._array(key, depth - 1) for _ in range(count)]

    def _numbers(self, key: str, code: int, count: int) -> tuple[Any, ...]:
        if code not in _NUMBERS:
            raise _Bad(f"{key!r} has the unknown value type {code}")
        layout = struct.Struct(f"<{count}{_NUMBERS[code]}")
        self._need(layout.size)
        values = layout.unpack_from(self.data, self.position)
        self.position += layout.size
        return values

    def _strings(self, key: str, count: int) -> list[str]:
        """Read strings: a vocabulary is most of a header."""
        if count * 8 > self.size - self.position:
            raise _Bad(f"the array {key!r} claims {count} strings, more than the file could hold")
        strings = self._joined(count)
        return self._one_by_one(key, count) if strings is None else strings

    def _joined(self, count: int) -> list[str] | None:
        """Read strings with the compiled kernels. None without them, or if one is invalid or holds a newline."""
        kernels = find_library()
        if kernels is None or not count:
            return None
        joined = np.empty(len(self.data) - self.position, np.uint8)
        written = c_int64()
        place = self.data, self.position, len(self.data), count
        end = kernels.nw_join_strings(*place, joined.ctypes.data, byref(written))
        if end < 0:
            return None
        try:
            strings = str(joined[: written.value - 1], "utf-8").split("\n")
        except UnicodeDecodeError:
            return None
        self.position = end
        return strings

    def _one_by_one(self, key: str, count: int) -> list[str]:
        """Read strings in one pass. A length beyond the end makes the next unpack fail, or puts the end outside."""
        data, end = self.data, self.position
        unpack = struct.Struct("<Q").unpack_from
        strings = []
        try:
            for _ in repeat(None, count):
                start = end + 8
                end = start + unpack(data, end)[0]
                strings.append(str(data[start:end], "utf-8"))
        except UnicodeDecodeError:
            if end <= len(data):
                raise _Bad(f"item {len(strings)} of {key!r} is not valid UTF-8") from None
        except (struct.error, OverflowError):
            pass  # `end` lies outside, which is checked next
        if end > self.size or end > _MAX_HEADER:
            raise _Bad(f"item {len(strings)} of {key!r} reaches beyond the file")
        if end > len(data) or len(strings) < count:
            raise _Short
        self.position = end
        return strings

    def tensor(self) -> tuple[str, BlockType, tuple[int, ...], int]:
        """Name, type, shape in our order, offset in the data section."""
        name = self.name("a tensor name")
        count = self.u32()
        if not 1 <= count <= 4:
            raise _Bad(f"tensor {name!r} has {count} dimensions (1 to 4 are possible)")
        shape = tuple(self.u64() for _ in range(count))[::-1]
        code, offset = self.u32(), self.u64()
        if 0 in shape or math.prod(shape) >= 1 << 62:
            raise _Bad(f"tensor {name!r} has the impossible shape {shape}")
        if code not in BLOCK_TYPES:
            raise _Bad(f"tensor {name!r} has the unknown type {code}")
        return name, BLOCK_TYPES[code], shape, offset

    def _need(self, count: int) -> None:
        if self.position + count > self.size:
            raise _Bad(f"an item of {count} bytes at byte {self.position} reaches beyond the file's end")
        if self.position + count > len(self.data):
            raise _Short


def _alignment(metadata: dict[str, Any]) -> int:
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 8 <= alignment <= _MAX_ALIGNMENT or alignment & (alignment - 1):
        raise _Bad(f"its alignment is {alignment!r} (a power of two from 8 to {_MAX_ALIGNMENT} is expected)")
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
            raise _Bad(f"the tensor {name!r} comes twice")
        if shape[-1] % kind.values:
            raise _Bad(f"tensor {name!r} has rows of {shape[-1]}, not a multiple of {kind.name}'s {kind.values}")
        nbytes = math.prod(shape) // kind.values * kind.nbytes
        if offset % alignment:
            raise _Bad(f"tensor {name!r} starts at {offset}, not a multiple of the alignment {alignment}")
        end = start + offset + nbytes
        if end > size:
            raise _Bad(f"tensor {name!r} ends at byte {end}, but the file has {size}: it is cut short")
        tensors[name] = TensorInfo(name, kind, shape, start + offset, nbytes)
    in_order = sorted(tensors.values(), key=lambda tensor: tensor.offset)
    for before, after in pairwise(in_order):
        if before.offset + before.nbytes > after.offset:
            raise _Bad(f"the tensors {before.name!r} and {after.name!r} overlap")
    return tensors
