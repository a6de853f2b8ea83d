"""A shuffled order in constant memory: a keyed permutation of range(count)."""

from __future__ import annotations

import math
from hashlib import blake2b

import numpy as np
from numpy.typing import ArrayLike, NDArray

_ROUNDS = 8
_FEW = 1024  # up to this count, sort by random numbers: Feistel rounds on so few numbers do not mix evenly
_LARGEST = 1 << 62  # the sum of two numbers below it fits uint64


def permute(index: ArrayLike, count: int, key: object) -> NDArray[np.int64]:
    """The positions of `index` in the order of range(count) selected by `key`: a bijection, of `index`'s shape.

    `key` is any value with a stable repr, such as (seed, epoch). A generalized Feistel network on numbers
    left * width + right, with cycle walking (Black & Rogaway 2002, "Ciphers with arbitrary finite domains"): since
    height * width is at least `count` and barely larger, few numbers are walked twice.
    """
    if not 1 <= count <= _LARGEST:
        raise ValueError(f"an order has between 1 and {_LARGEST} places, not {count}")
    places = np.array(index, dtype=np.int64)  # a copy: it is written to
    if places.size and not 0 <= places.min() <= places.max() < count:
        raise IndexError(f"an index outside range({count})")
    keys = np.frombuffer(digest(key, 8 * _ROUNDS), dtype="<u8")
    if count <= _FEW:
        return np.argsort(_mixed(np.arange(count, dtype=np.uint64), keys[0]))[places]
    width = math.isqrt(count - 1) + 1
    height = -(-count // width)
    numbers = _walk(places.astype(np.uint64).ravel(), np.uint64(height), np.uint64(width), keys)
    outside = np.flatnonzero(numbers >= count)
    while outside.size:
        numbers[outside] = _walk(numbers[outside], np.uint64(height), np.uint64(width), keys)
        outside = outside[numbers[outside] >= count]
    return numbers.astype(np.int64).reshape(places.shape)


def number_from(key: object, below: int) -> int:
    """A number in range(below) selected by `key`, such as an epoch's offset."""
    return int.from_bytes(digest(key, 16), "little") % below


def digest(key: object, size: int) -> bytes:
    """`size` bytes that depend on all of `key`, the same on every machine and in every process."""
    return blake2b(repr(key).encode(), digest_size=size).digest()


def _walk(
    numbers: NDArray[np.uint64], height: np.uint64, width: np.uint64, keys: NDArray[np.uint64]
) -> NDArray[np.uint64]:
    """All rounds: each half in turn has a function of the other added to it."""
    left, right = np.divmod(numbers, width)
    for turn, key in enumerate(keys):
        if turn % 2:
            right = (right + _mixed(left, key) % width) % width
        else:
            left = (left + _mixed(right, key) % height) % height
    joined: NDArray[np.uint64] = left * width + right
    return joined


def _mixed(numbers: NDArray[np.uint64], key: np.uint64) -> NDArray[np.uint64]:
    """64 well-mixed bits of each number: the finalizer of splitmix64 (Steele et al. 2014). Overflow is intended."""
    mixed = numbers ^ key
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
