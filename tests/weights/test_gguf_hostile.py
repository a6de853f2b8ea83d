"""GGUF files that lie, are cut short, or are something else: one clear line, before memory is taken."""

from __future__ import annotations

import os
import pickle
import random
import re
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import quantize

from gguf_files import numbers, write
from nextword.base import UsageError
from nextword.weights.gguf import GGUFFile

LARGEST = 48 << 20  # bytes that a refusal may take at most: a few reads of a header of 4 MiB


def refusal(path: Path) -> str:
    """The line with which a file is refused; fails if it is not refused, or takes much memory first."""
    tracemalloc.start()
    try:
        with pytest.raises(UsageError) as caught:
            GGUFFile.open(path)
        assert tracemalloc.get_traced_memory()[1] < LARGEST
    finally:
        tracemalloc.stop()
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    assert caught.value.exit_code == 2
    return message


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> bytes:
    """A sound file with every sort of item in its header."""
    metadata = {
        "tokenizer.ggml.tokens": [f"token{i}" for i in range(40)],
        "tokenizer.ggml.scores": [float(i) for i in range(40)],
        "a.flag": True, "a.count": 7, "a.text": "text", "a.share": 0.5,
    }  # fmt: skip
    kind = GGMLQuantizationType.Q8_0
    tensors = {
        "a.weight": numbers(4, 32),
        "b.weight": (quantize(numbers(4, 64), kind), kind),
        "c": numbers(1, 5),
    }
    return write(tmp_path_factory.mktemp("small") / "small.gguf", tensors, metadata).read_bytes()


def at(data: bytes, text: bytes) -> int:
    """Where `text` ends in the file."""
    return data.index(text) + len(text)


def changed(data: bytes, position: int, layout: str, value: int) -> bytes:
    out = bytearray(data)
    struct.pack_into(layout, out, position, value)
    return bytes(out)


CHANGES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "version 1": (lambda d: changed(d, 4, "<I", 1), "version is 1"),
    "version 9": (lambda d: changed(d, 4, "<I", 9), "version is 9"),
    "big-endian": (lambda d: changed(d, 4, ">I", 3), "big-endian"),
    "tensor count": (lambda d: changed(d, 8, "<Q", 2**60), f"claims {2**60} tensors"),
    "one tensor more": (lambda d: changed(d, 8, "<Q", 4), "."),
    "metadata count": (lambda d: changed(d, 16, "<Q", 2**60), f"claims {2**60} metadata"),
    "key length": (lambda d: changed(d, 24, "<Q", 2**40), "claims a length"),
    "text length": (lambda d: changed(d, at(d, b"a.text") + 4, "<Q", 2**63), "claims a length"),
    "text beyond the file": (lambda d: changed(d, at(d, b"a.text") + 4, "<Q", len(d)), "beyond the file"),
    "value type": (lambda d: changed(d, at(d, b"a.count"), "<I", 99), "unknown value type 99"),
    "item type": (lambda d: changed(d, at(d, b"ggml.scores") + 4, "<I", 99), "unknown value type 99"),
    "string items": (lambda d: changed(d, at(d, b"ggml.tokens") + 8, "<Q", 2**61), "claims"),
    "many string items": (lambda d: changed(d, at(d, b"ggml.tokens") + 8, "<Q", 2**20), "claims"),
    "number items": (lambda d: changed(d, at(d, b"ggml.scores") + 8, "<Q", 2**61), "claims"),
    "many number items": (lambda d: changed(d, at(d, b"ggml.scores") + 8, "<Q", 2**20), "beyond the file"),
    "item length": (lambda d: changed(d, at(d, b"ggml.tokens") + 16, "<Q", 2**63), "beyond the file"),
    "arrays of arrays": (lambda d: changed(d, at(d, b"ggml.scores") + 4, "<I", 9), "."),
    "invalid text": (lambda d: d.replace(b"\x04\0\0\0\0\0\0\0text", b"\x04\0\0\0\0\0\0\0te\xfft"), "UTF-8"),
    "invalid item": (lambda d: d.replace(b"token7", b"toke\xff7"), "item 7 .*not valid UTF-8"),
    "a key twice": (lambda d: d.replace(b"a.flag", b"a.text"), "'a.text' comes twice"),
    "a key of control characters": (lambda d: d.replace(b"a.flag", b"a.fl\n\0"), "not a name"),
    "a tensor twice": (lambda d: d.replace(b"b.weight", b"a.weight"), "'a.weight' comes twice"),
    "no dimensions": (lambda d: changed(d, at(d, b"a.weight"), "<I", 0), "0 dimensions"),
    "five dimensions": (lambda d: changed(d, at(d, b"a.weight"), "<I", 5), "5 dimensions"),
    "a zero dimension": (lambda d: changed(d, at(d, b"a.weight") + 4, "<Q", 0), "impossible shape"),
    "a product over 64 bits": (lambda d: changed(d, at(d, b"a.weight") + 4, "<Q", 2**63), "impossible shape"),
    "a long row": (lambda d: changed(d, at(d, b"a.weight") + 4, "<Q", 2**40), "cut short"),
    "half a block": (lambda d: changed(d, at(d, b"b.weight") + 4, "<Q", 65), "not a multiple of q8_0's 32"),
    "tensor type": (lambda d: changed(d, at(d, b"a.weight") + 20, "<I", 4), "unknown type 4"),
    "an offset beyond": (lambda d: changed(d, at(d, b"a.weight") + 24, "<Q", 2**40), "cut short"),
    "an offset of 2^64 - 32": (lambda d: changed(d, at(d, b"a.weight") + 24, "<Q", 2**64 - 32), "cut short"),
    "an odd offset": (lambda d: changed(d, at(d, b"b.weight") + 24, "<Q", 3), "not a multiple of the alignment"),
    "overlap": (lambda d: changed(d, at(d, b"b.weight") + 24, "<Q", 0), "overlap"),
    "nothing after the magic": (lambda d: d[:4], "only 4 bytes"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_a_lie_in_the_header_is_refused_by_name(tmp_path, small, name):
    change, reason = CHANGES[name]
    assert change(small) != small
    path = tmp_path / "lie.gguf"
    path.write_bytes(change(small))
    assert re.search(reason, refusal(path))


@pytest.mark.parametrize("alignment", [0, 1, 7, 48, 2**31])
def test_an_alignment_that_is_none_is_refused(tmp_path, alignment):
    path = write(tmp_path / "a.gguf", {"t": numbers(2, 4)}, alignment=64)
    data = path.read_bytes()
    path.write_bytes(changed(data, at(data, b"general.alignment") + 4, "<I", alignment))
    assert "alignment" in refusal(path)


def test_a_file_cut_anywhere_is_refused(tmp_path, small):
    path = tmp_path / "cut.gguf"
    end = len(small)
    while small[end - 1] == 0:  # padding after the last tensor may be missing
        end -= 1
    for length in range(0, end, 7):
        path.write_bytes(small[:length])
        refusal(path)


def _zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.pkl", b"")


OTHERS: dict[str, tuple[bytes, str]] = {
    "an empty file": (b"", "is empty"),
    "a pickle": (pickle.dumps({"weights": [1.0] * 99}), "pickle"),
    "an HTML page": (b"\n<!DOCTYPE html><html><body>Not found</body></html>", "HTML page"),
    "a Git LFS pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
        "Git LFS pointer",
    ),
    "an older format": (b"tjgg" + bytes(64), "format before GGUF"),
    "gzip": (b"\x1f\x8b" + bytes(64), "gzip"),
    "safetensors": (struct.pack("<Q", 64) + b'{"a":{}}' + bytes(99), "safetensors"),
    "text": (b"Once upon a time, there was a file.", "starts with b'Once'"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_gguf_file_is_said_to_be_what_it_seems(tmp_path, name):
    data, reason = OTHERS[name]
    path = tmp_path / "other.gguf"
    path.write_bytes(data)
    assert reason in refusal(path)


def test_a_zip_archive_is_said_to_be_one(tmp_path):
    _zip(tmp_path / "model.gguf")
    assert "zip archive" in refusal(tmp_path / "model.gguf")


def test_what_is_no_file_is_refused(tmp_path):
    assert "this is a folder" in refusal(tmp_path)
    assert "does not exist" in refusal(tmp_path / "none.gguf")
    os.mkfifo(tmp_path / "pipe.gguf")  # opening it would wait for ever
    assert "not a regular file" in refusal(tmp_path / "pipe.gguf")
    (tmp_path / "endless.gguf").symlink_to("/dev/zero")
    assert "not a regular file" in refusal(tmp_path / "endless.gguf")


def mutate(data: bytes, seed: int, within: int) -> bytes:
    """One random change in the first `within` bytes."""
    rng = random.Random(seed)
    out = bytearray(data)
    position = rng.randrange(within)
    kind = rng.randrange(6)
    if kind == 0:
        out[position] ^= 1 << rng.randrange(8)
    elif kind == 1:
        out[position : position + 8] = struct.pack("<Q", rng.choice((0, 1, 2**31, 2**32, 2**40, 2**63, 2**64 - 1)))
    elif kind == 2:
        out[position : position + rng.randrange(1, 64)] = b""
    elif kind == 3:
        out[position:position] = rng.randbytes(rng.randrange(1, 64))
    elif kind == 4:
        out[position : position + 16] = rng.randbytes(16)
    else:
        del out[position:]
    return bytes(out)


def opens_or_refuses(path: Path) -> bool:
    """Whether the file opens. If it does, every tensor must read; if not, a UsageError says why."""
    tracemalloc.start()
    try:
        file = GGUFFile.open(path)
        for name, tensor in file.tensors.items():
            assert file.raw(name).nbytes == tensor.nbytes
            with np.errstate(all="ignore"):
                assert file.float32(name).shape == tensor.shape
        return True
    except UsageError:
        return False
    finally:
        assert tracemalloc.get_traced_memory()[1] < LARGEST
        tracemalloc.stop()


@pytest.mark.timeout(60)
def test_200_mutations_of_a_small_file_open_soundly_or_are_refused(tmp_path, small):
    path = tmp_path / "mutant.gguf"
    opened = 0
    for seed in range(200):
        path.write_bytes(mutate(small, seed, len(small)))
        opened += opens_or_refuses(path)
    assert 10 < opened < 190  # both ends were met


@pytest.mark.timeout(120)
def test_100_mutations_of_the_real_header_open_soundly_or_are_refused(tmp_path, smollm2_path):
    path = tmp_path / "mutant.gguf"
    with smollm2_path.open("rb") as file:
        header = file.read(3 << 20)
    refused = 0
    for seed in range(100):
        path.write_bytes(mutate(header, seed, 1 << 20))
        os.truncate(path, smollm2_path.stat().st_size)  # the rest is a hole: no disk, no time
        try:
            GGUFFile.open(path)
        except UsageError:
            refused += 1
    assert refused > 50


def test_a_refused_file_leaves_nothing_open(tmp_path, small):
    path = tmp_path / "lie.gguf"
    path.write_bytes(changed(small, 8, "<Q", 2**60))
    before = os.listdir("/proc/self/fd")
    for _ in range(5):
        refusal(path)
    assert len(os.listdir("/proc/self/fd")) == len(before)
