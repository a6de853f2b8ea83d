"""Files that change while they are mapped, and weights that are not numbers: one line, and no random token."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType

import nextword
from gguf_files import MAPPED, OTHERS, dequantized, numbers, random_rows, write, write_llama
from nextword import native
from nextword.base import RunError, UsageError
from nextword.weights.gguf import GGUFFile
from nextword.weights.loading import open_source
from nextword.weights.source import CONVERTED, tensors_of

SHRINK = """
import os, sys, numpy as np
from nextword.weights.gguf import GGUFFile
stored = GGUFFile.open(sys.argv[1]).raw("t")
{}
print("read", int(stored.sum()))
"""


def run(code: str, path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)


@pytest.mark.skipif(not native.available(), reason="the handler is compiled")
def test_a_file_that_shrinks_while_it_is_mapped_ends_the_process_with_one_line(tmp_path: Path) -> None:
    path = write(tmp_path / "c.gguf", {"t": numbers(2000, 64)})
    done = run(SHRINK.format("os.truncate(sys.argv[1], 4096)"), path)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(f"nextword: {path} changed while it was in use")
    assert done.stderr.count("\n") == 1


@pytest.mark.skipif(not native.available(), reason="the handler is compiled")
def test_a_bus_error_elsewhere_is_left_to_the_handler_before(tmp_path: Path) -> None:
    path = write(tmp_path / "c.gguf", {"t": numbers(2000, 64)})
    other = "import mmap; other = open(sys.argv[1] + '2', 'w+b'); other.truncate(99999)\n"
    other += "held = mmap.mmap(other.fileno(), 0); other.truncate(1); held[50000]"
    done = run(SHRINK.format(other), path)
    assert done.returncode < 0
    assert done.stderr == ""


def test_a_deleted_file_is_read_to_its_end(tmp_path: Path) -> None:
    path = write(tmp_path / "c.gguf", {"t": numbers(2000, 64)})
    done = run(SHRINK.format("os.unlink(sys.argv[1])"), path)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("kind", MAPPED)
def test_stored_rows_are_the_files_own_bytes(kind: str, tmp_path: Path) -> None:
    rows = random_rows(kind, 5, 512, 1)
    source = open_source(write_llama(tmp_path / "m.gguf", kind))
    tensor = next(tensor for tensor in tensors_of(source) if tensor.name == "blk.1.ffn_up.weight")
    stored = source.mapped(tensor)
    assert stored.type == kind
    assert not stored.data.flags.writeable
    np.testing.assert_array_equal(stored.data, GGUFFile.open(tmp_path / "m.gguf").raw(tensor.name))
    assert stored.data.shape[1] == rows.shape[1] // 2


@pytest.mark.parametrize("kind", OTHERS)
def test_other_types_become_q8_0_that_holds_the_same_numbers(kind: str, tmp_path: Path) -> None:
    source = open_source(write_llama(tmp_path / "m.gguf", kind))
    tensor = next(tensor for tensor in tensors_of(source) if tensor.name == "blk.1.ffn_up.weight")
    stored, exact = source.mapped(tensor), source.read(tensor)
    assert stored.type == CONVERTED[kind] == "q8_0"
    values = dequantized("q8_0", stored.data)
    assert np.abs(values - exact).max() <= np.abs(exact).max() / 127


def test_a_type_that_cannot_be_read_is_named_with_its_tensor(tmp_path: Path) -> None:
    path = write_llama(tmp_path / "m.gguf", "f32")
    data = bytearray(path.read_bytes())
    at = data.index(b"blk.1.ffn_up.weight") + len(b"blk.1.ffn_up.weight") + 4 + 16
    assert data[at] == GGMLQuantizationType.F32
    data[at : at + 4] = int(GGMLQuantizationType.I32).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(UsageError, match=r"tensor 'blk\.1\.ffn_up\.weight' is stored as i32"):
        open_source(path)


@pytest.mark.parametrize("kind", ["f32", "bf16", "q8_0"])
def test_weights_that_are_not_numbers_give_an_error_and_no_token(kind: str, tmp_path: Path) -> None:
    path = write_llama(tmp_path / "m.gguf", kind)
    tensor = GGUFFile.open(path).tensors["blk.1.ffn_down.weight"]
    with path.open("r+b") as file:
        file.seek(tensor.offset)
        file.write(b"\xff\xff\xff\xff")  # NaN as float32, as bfloat16, and as the float16 scale of a block
    model = nextword.load(path, device="cpu")
    with pytest.raises(RunError, match="hold NaN"):
        model.complete("Hi", max_tokens=2)


def test_weights_beyond_the_free_memory_are_refused_with_both_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_llama(tmp_path / "m.gguf", "f16")
    monkeypatch.setattr("nextword.engine.loading.free_memory", lambda: 1_000_000)
    with pytest.raises(RunError, match=r"take 2\.\d+ MB as they are stored, and 1\.00 MB of memory"):
        nextword.load(path, device="cpu")


def test_what_is_mapped_is_closed_after_the_last_array(tmp_path: Path) -> None:
    path = write(tmp_path / "c.gguf", {"t": numbers(2, 4)})
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        GGUFFile.open(path).raw("t")
    assert len(os.listdir("/proc/self/fd")) == before
