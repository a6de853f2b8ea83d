"""Reads the items of a GGUF header, each checked before memory is taken for it."""

from __future__ import annotations

import math
import struct
from ctypes import byref, c_int64
from itertools import repeat
from typing import Any

import numpy as np

from ..native.bindings import find_library
from .gguf_types import BLOCK_TYPES, BlockType

_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9

# Far above any published file (a vocabulary of 262,144 with merges is 15 MB), and still harmless.
MAX_HEADER = 1 << 26  # bytes
_MAX_STRING = 1 << 22  # bytes
_MAX_ITEMS = 1 << 21  # array items in all metadata
_MAX_NAME = 1024  # bytes of a key or a tensor name
_MAX_DEPTH = 2  # arrays of arrays, no deeper
_MAX_NESTED = 1 << 16  # arrays in an array


class Short(Exception):
    """The bytes read so far end before the item does."""


class Bad(Exception):
    """The header is invalid; the message says how."""


class Reader:
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
            raise Bad(f"{what} claims a length of {length} bytes (at most {limit})")
        self._need(length)
        text = self.data[self.position : self.position + length]
        self.position += length
        try:
            return text.decode()
        except UnicodeDecodeError:
            raise Bad(f"{what} is not valid UTF-8") from None

    def name(self, what: str) -> str:
        name = self.string(what, _MAX_NAME)
        if not name or not name.isprintable():
            raise Bad(f"{what} is {name!r}, which is not a name")
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
            raise Bad(f"the array {key!r} claims {count} items (at most {_MAX_ITEMS} in all)")
        if code == _STRING:
            return self._strings(key, count)
        if code != _ARRAY:
            return list(self._numbers(key, code, count))
        if depth == 1 or count > _MAX_NESTED:
            raise Bad(f"{key!r} holds {count} arrays (at most {_MAX_NESTED}, and {_MAX_DEPTH} deep)")
        return [self._array(key, depth - 1) for _ in range(count)]

    def _numbers(self, key: str, code: int, count: int) -> tuple[Any, ...]:
        if code not in _NUMBERS:
            raise Bad(f"{key!r} has the unknown value type {code}")
        layout = struct.Struct(f"<{count}{_NUMBERS[code]}")
        self._need(layout.size)
        values = layout.unpack_from(self.data, self.position)
        self.position += layout.size
        return values

    def _strings(self, key: str, count: int) -> list[str]:
        """Read strings: a vocabulary is most of a header."""
        if count * 8 > self.size - self.position:
            raise Bad(f"the array {key!r} claims {count} strings, more than the file could hold")
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
                raise Bad(f"item {len(strings)} of {key!r} is not valid UTF-8") from None
        except (struct.error, OverflowError):
            pass  # `end` lies outside, which is checked next
        if end > self.size or end > MAX_HEADER:
            raise Bad(f"item {len(strings)} of {key!r} reaches beyond the file")
        if end > len(data) or len(strings) < count:
            raise Short
        self.position = end
        return strings

    def tensor(self) -> tuple[str, BlockType, tuple[int, ...], int]:
        """Name, type, shape in our order, offset in the data section."""
        name = self.name("a tensor name")
        count = self.u32()
        if not 1 <= count <= 4:
            raise Bad(f"tensor {name!r} has {count} dimensions (1 to 4 are possible)")
        shape = tuple(self.u64() for _ in range(count))[::-1]
        code, offset = self.u32(), self.u64()
        if 0 in shape or math.prod(shape) >= 1 << 62:
            raise Bad(f"tensor {name!r} has the impossible shape {shape}")
        if code not in BLOCK_TYPES:
            raise Bad(f"tensor {name!r} has the unknown type {code}")
        return name, BLOCK_TYPES[code], shape, offset

    def _need(self, count: int) -> None:
        if self.position + count > self.size:
            raise Bad(f"an item of {count} bytes at byte {self.position} reaches beyond the file's end")
        if self.position + count > len(self.data):
            raise Short
