"""Clients that hang up at any time, full queues, signals: nothing stays behind, and nobody else notices."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from http.client import HTTPConnection
from pathlib import Path

import pytest

from nextword.cli import main
from serving import PATIENCE, Server, post, running

LONG = {"prompt": "Once upon a time", "max_tokens": 8000, "ignore_eos": True}
CHAT = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 8000, "ignore_eos": True}
JSON = {"Content-Type": "application/json"}
TELL = {"messages": [{"role": "user", "content": "Tell a story."}], "stream": True}
# Where a client may be when it hangs up: what it has sent, and how much of the answer it has read
PHASES = {
    "connected": (b"", 0),
    "in the headers": (b"POST /v1/completions HTTP/1.1\r\nHost: loc", 0),
    "in the body": (post("/v1/completions", LONG)[:-20], 0),
    "before the answer": (post("/v1/completions", LONG), 0),
    "in a stream": (post("/v1/completions", LONG | {"stream": True}), 600),
    "in a chat": (post("/v1/chat/completions", CHAT | {"stream": True}), 600),
    "before a chat": (post("/v1/chat/completions", CHAT), 0),
    "in messages": (post("/v1/messages", TELL | {"max_tokens": 8000}), 600),
    "in a response": (post("/v1/responses", {"input": "Tell a story.", "stream": True}), 2000),
    "in a native stream": (post("/completion", {"prompt": "a", "stream": True, "ignore_eos": True}), 100),
    "while scored": (post("/v1/completions", {"prompt": "a " * 2000, "echo": True, "logprobs": 1}), 0),
    "while its prompt is read": (post("/v1/completions", LONG | {"prompt": "a " * 4000}), 0),
    "while its prompt is tokenized": (post("/v1/completions", LONG | {"prompt": "a " * 200_000}), 0),
    "in a batch": (post("/v1/completions", LONG | {"prompt": ["a", "b", "c"], "n": 8, "stream": True}), 600),
}


@pytest.fixture(scope="module")
def own(smollm2_path: Path):
    with running(smollm2_path, "--parallel", "4", "--queue", "4") as server:
        yield server


def hang_up(server: Server, phase: str, reset: bool = False) -> None:
    data, read = PHASES[phase]
    with server.connection(data) as connection:
        while read > 0 and (data := connection.recv(read)):
            read -= len(data)
        if reset:  # RST in place of FIN
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


@pytest.mark.parametrize("phase", PHASES)
def test_a_client_that_hangs_up_leaves_nothing(own: Server, phase: str) -> None:
    hang_up(own, phase)
    own.until(own.is_idle)


def test_two_hundred_dropped_connections_leave_nothing(own: Server) -> None:
    """The threads that parse bodies and prompts, cores + 4 at most, start when they are first needed."""

    def resources() -> tuple[int, int]:
        process = Path(f"/proc/{own.process.pid}")
        return len(list((process / "fd").iterdir())), len(list((process / "task").iterdir()))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda phase: hang_up(own, phase), PHASES))
        own.until(own.is_idle)
        files, threads = resources()
        phases = list(PHASES) * 17
        list(pool.map(lambda number: hang_up(own, phases[number], number % 2 == 1), range(200)))
    own.until(own.is_idle)
    own.until(lambda: resources()[0] <= files)
    assert resources()[1] <= threads + (os.cpu_count() or 1) + 4


def test_a_full_queue_says_so(own: Server) -> None:
    with ExitStack() as streams:
        for _ in range(8):
            streams.enter_context(own.connection(post("/v1/completions", LONG | {"stream": True})))
        own.until(lambda: (own.metric("requests_running"), own.metric("requests_waiting")) == (4, 4))
        refused = own.post("/v1/completions", LONG)
        assert (refused.status, refused.error["type"]) == (429, "rate_limit_error")
        assert refused.headers["retry-after"] == "1"
    own.until(own.is_idle)
    assert own.complete("a", max_tokens=1)["usage"]["completion_tokens"] == 1


def test_a_reader_that_does_not_read_is_paused_and_keeps_nobody_waiting(start, tiny_path: Path) -> None:
    server: Server = start(tiny_path, "--parallel", "2")
    asked = {"prompt": "a", "max_tokens": 500, "ignore_eos": True, "seed": 1, "logprobs": 20, "n": 2}
    readers = [HTTPConnection(server.host, server.port, timeout=PATIENCE) for _ in range(2)]
    with closing(readers[0]), closing(readers[1]):
        for reader in readers:
            reader.connect()
            reader.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
            reader.request("POST", "/v1/completions", json.dumps(asked | {"stream": True}), JSON)
        server.until(lambda: server.metric("requests_paused") == 2)
        assert server.metric("generation_tokens_total") < 2000, "everything was made for readers that read nothing"
        texts = [choice["text"] for choice in server.complete(**asked)["choices"]]
        server.until(lambda: (server.metric("requests_running"), server.metric("requests_paused")) == (0, 2))
        with readers[0].getresponse() as response:
            events = response.read().decode().split("\n\n")[:-2]
    choices = [json.loads(event.removeprefix("data: "))["choices"][0] for event in events]
    assert ["".join(c["text"] for c in choices if c["index"] == index) for index in range(2)] == texts
    server.until(server.is_idle)


def test_a_shared_prefix_is_computed_once(own: Server) -> None:
    prefix = " ".join(f"The number {number} is followed by {number + 1}." for number in range(40))
    first = own.complete(f"{prefix} One", max_tokens=1)["usage"]
    second = own.complete(f"{prefix} Two", max_tokens=1)["usage"]
    assert first["prompt_tokens_details"]["cached_tokens"] == 0
    assert second["prompt_tokens_details"]["cached_tokens"] >= second["prompt_tokens"] - 2


def test_sigterm_lets_what_is_under_way_finish(start, smollm2_path: Path) -> None:
    server: Server = start(smollm2_path, "--shutdown-timeout", PATIENCE)
    answers = []
    thread = threading.Thread(target=lambda: answers.append(server.complete("a", max_tokens=100, ignore_eos=True)))
    thread.start()
    server.until(lambda: server.metric("requests_running") == 1)
    assert server.end() == (0, "")
    thread.join()
    assert answers[0]["usage"]["completion_tokens"] == 100


@pytest.mark.parametrize(
    "signals", [(signal.SIGTERM, signal.SIGTERM), (signal.SIGINT, signal.SIGTERM), (signal.SIGINT,)]
)
def test_what_does_not_finish_in_time_is_aborted(start, smollm2_path: Path, signals) -> None:
    timeout = 0 if len(signals) == 1 else 600
    server: Server = start(smollm2_path, "--shutdown-timeout", timeout)
    with server.connection(post("/v1/completions", LONG | {"stream": True})) as connection:
        connection.recv(300)
        for number in signals[:-1]:
            server.process.send_signal(number)
            server.until(lambda: not accepts(server))
        assert server.end(signals[-1]) == (0, "")


def accepts(server: Server) -> bool:
    try:
        with server.connection():
            return True
    except OSError:
        return False


def test_after_a_kill_the_port_is_free_and_no_process_is_left(start, tiny_path: Path) -> None:
    server: Server = start(tiny_path)
    server.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1})
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
    server.kill()
    again: Server = start(tiny_path, "--port", server.port)
    assert again.port == server.port
    again.until(lambda: not any(Path(f"/proc/{child}").exists() for child in children))
    assert again.end() == (0, "")


def test_a_port_in_use_is_named(tiny: Server, tiny_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", str(tiny_path), "--port", str(tiny.port)]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"port {tiny.port}" in error


@pytest.mark.parametrize(
    "arguments",
    [("--host", "0.0.0.0"), ("--port", "70000"), ("--parallel", "0"), ("--context", "9999"), ("no-such-model",),
     ("--api-key", "a b\nc"), ("--temperature", "-1"), ("--api-key-file", "/nowhere")],
)  # fmt: skip
def test_wrong_settings_are_one_line(
    tiny_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    model = () if arguments == ("no-such-model",) else (str(tiny_path),)
    assert main(["serve", "--port", "0", *model, *arguments]) == 2
    printed = capsys.readouterr()
    assert (printed.out, printed.err.count("\n")) == ("", 1)
