"""Files and terminal text: what is refused, what is escaped, and that nothing blocks or reads for ever."""

import os
from pathlib import Path

import pytest

from nextword.base import UsageError, atomic_write, check_writable, open_regular, printable, read_regular


def test_an_escape_sequence_is_shown_and_not_obeyed() -> None:
    assert printable("a\x1b]0;title\x07b\n\x9b31m\u202e") == r"a\x1b]0;title\x07b\n\x9b31m\u202e"
    assert printable("café 日本 👩\u200d🚀") == "café 日本 👩\u200d🚀"
    assert printable("one\ntwo\x1b", keep="\n") == "one\ntwo\\x1b"
    assert printable("x" * 1000, limit=10) == "x" * 9 + "…"


def test_a_fifo_does_not_block_and_a_device_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "endless").symlink_to("/dev/zero")
    for name in ("pipe", "endless"):
        with pytest.raises(UsageError, match="not a regular file"):
            open_regular(tmp_path / name)


def test_a_file_beyond_the_limit_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(b"x" * 101)
    with pytest.raises(UsageError, match="101 bytes"):
        read_regular(tmp_path / "big", 100)
    assert len(read_regular(tmp_path / "big", 101)) == 101


def test_an_output_path_is_checked_without_leaving_anything(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    check_writable(tmp_path / "new" / "deep" / "report.html", "--report")
    check_writable(tmp_path / "new", "--out", folder=True)
    for bad, folder in ((tmp_path, False), (tmp_path / "file", True), (tmp_path / "file" / "x", False)):
        with pytest.raises(UsageError, match="--report"):
            check_writable(bad, "--report", folder)
    with pytest.raises(UsageError, match="cannot be written"):
        check_writable("/proc/nothing/x", "--report")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_writing_to_a_device_does_not_replace_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    with atomic_write(tmp_path / "pipe") as file:
        file.write("hello")
    assert os.read(reader, 100) == b"hello"
    assert (tmp_path / "pipe").is_fifo()
    os.close(reader)
