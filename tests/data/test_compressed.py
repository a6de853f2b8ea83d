"""Compressed text is read as the text is; what is damaged or made to exhaust the machine is named by its file."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import sys
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from nextword.base import UsageError
from nextword.data import Faults, find_sources, read_documents, reading

TEXT = "one\ntwo — three\n" * 300
NUMBERS = b"".join(b"%d\n" % (number * 7919 % 100_003) for number in range(20_000))
ROWS = "".join(json.dumps({"text": f"row {number}"}) + "\n" for number in range(3000))


def zstd(data: bytes, frames: int = 1) -> bytes:
    zstandard = pytest.importorskip("zstandard")
    packer = zstandard.ZstdCompressor(write_checksum=True)
    step = -(-len(data) // frames)
    return b"".join(packer.compress(data[start : start + step]) for start in range(0, len(data), step))


PACK: dict[str, Callable[[bytes], bytes]] = {"gz": gzip.compress, "zst": lambda data: zstd(data, 3)}


def archive(path: Path, files: dict[str, bytes | str]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in files.items():
            file.writestr(name, content)
    return path


def texts(path: Path, faults: Faults | None = None) -> list[str]:
    return [document.text for document in read_documents(path, faults)]


@pytest.mark.parametrize("suffix", PACK)
@pytest.mark.parametrize(("name", "content"), [("a.txt", TEXT), ("a.md", TEXT), ("a.jsonl", ROWS)])
def test_a_compressed_file_is_read_as_the_file_in_it(tmp_path: Path, suffix: str, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    packed = tmp_path / f"{name}.{suffix}"
    packed.write_bytes(PACK[suffix](content.encode()))
    assert texts(packed) == texts(tmp_path / name)
    assert find_sources([packed]).files == (packed,)


def test_the_files_in_a_zip_are_read_in_its_order_and_never_written(tmp_path: Path) -> None:
    files = {"../../b.txt": "two\n", "/etc/a.md": "one\n", "rows.jsonl": ROWS, "a.py": "code", "nested.zip": "PK"}
    path = archive(tmp_path / "a.zip", files)
    faults = Faults()
    assert texts(path, faults)[:3] == ["two\n", "one\n", "row 0"]
    assert faults.reasons == {"no reader for a file in a .zip": 2}
    assert faults.count == 0
    assert [file.name for file in tmp_path.iterdir()] == ["a.zip"]
    assert {document.source for document in read_documents(path)} >= {f"{path}:../../b.txt:1", f"{path}:rows.jsonl:2"}


@pytest.mark.parametrize("suffix", PACK)
@pytest.mark.parametrize("damage", ["cut", "changed", "none of it"])
def test_a_damaged_file_is_named_or_counted(tmp_path: Path, suffix: str, damage: str) -> None:
    data = PACK[suffix](NUMBERS)
    middle = len(data) // 2
    broken = {"cut": data[:-20], "changed": data[:middle] + bytes(64) + data[middle + 64 :], "none of it": b"text" * 9}
    path = tmp_path / f"a.txt.{suffix}"
    path.write_bytes(broken[damage])
    with pytest.raises(UsageError, match=rf"a\.txt\.{suffix}: incomplete or damaged .*data.skip_invalid=true"):
        texts(path)
    faults = Faults(skip=True)
    assert texts(path, faults) == []
    assert faults.reasons == {"damaged file": 1}


def test_a_damaged_zip_and_a_damaged_file_in_one_are_named(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.zip", {"a.txt": NUMBERS, "b.txt": "fine"})
    whole = path.read_bytes()
    path.write_bytes(whole[:600] + bytes(40) + whole[640:])
    with pytest.raises(UsageError, match=r"a\.zip:a\.txt: "):
        texts(path)
    assert texts(path, Faults(skip=True)) == ["fine"]
    path.write_bytes(whole[:-30])
    with pytest.raises(UsageError, match=r"a\.zip: not a readable \.zip"):
        texts(path)


def test_an_encrypted_zip_is_named(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.zip", {"a.txt": TEXT})
    data = bytearray(path.read_bytes())
    data[6] |= 1  # the flag of encryption, in both headers
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(UsageError, match=r"a\.zip:a\.txt: .*encrypted"):
        texts(path)


BOMB = bytes(300 << 20)


@pytest.mark.parametrize("suffix", ["gz", "zst", "zip"])
def test_what_is_tiny_and_decompresses_to_much_is_refused_in_little_memory(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.txt.{suffix}"
    if suffix == "zip":
        path = archive(tmp_path / "a.zip", {f"{number}.txt": BOMB[: 30 << 20] for number in range(10)})
    elif suffix == "zst":
        path.write_bytes(zstd(BOMB))
    else:
        stream = io.BytesIO()
        with gzip.GzipFile(fileobj=stream, mode="wb", compresslevel=9) as file:
            file.write(BOMB)
        path.write_bytes(stream.getvalue())
    tracemalloc.start()
    with pytest.raises(UsageError, match="decompresses to more than 1,000 times its size"):
        for _ in read_documents(path):
            pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100 << 20


@pytest.mark.parametrize("ending", ["", "\n"])
def test_a_row_that_no_memory_should_hold_is_named_and_what_follows_is_read(
    tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "_LONGEST_ROW", 1000)
    rows = [json.dumps({"text": text}) for text in ("one", "x" * 5000, "two")]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(rows) + ending)
    with pytest.raises(UsageError, match=r"a\.jsonl, line 2: longer than"):
        texts(path)
    faults = Faults(skip=True)
    assert texts(path, faults) == ["one", "two"]
    assert faults.reasons == {"row too long": 1}


def test_a_zst_without_zstandard_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if sys.version_info >= (3, 14):
        pytest.skip("Python has its own")
    (tmp_path / "a.txt.zst").write_bytes(b"\x28\xb5\x2f\xfd")
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(UsageError, match=r"nextword\[zstd\]"):
        texts(tmp_path / "a.txt.zst")


def test_of_many_files_each_is_opened_once(tmp_path: Path) -> None:
    for number in range(2000):
        (tmp_path / f"{number % 40}").mkdir(exist_ok=True)
        (tmp_path / f"{number % 40}" / f"{number}.txt").write_text("text")
    program = f"""
import os, sys
from nextword.data import find_sources
calls = 0
def count(event, arguments):
    global calls
    calls += event in ("open", "os.scandir", "os.listdir", "os.stat")
sys.addaudithook(count)
print(len(find_sources([{str(tmp_path)!r}]).files), calls)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    files, calls = map(int, done.stdout.split())
    assert files == 2000
    assert calls < 2.1 * files
