"""`nextword serve` in a process of its own, and plain HTTP to it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection
from typing import Any

from nextword.serve.connection import STALLED_SECONDS

PATIENCE = STALLED_SECONDS  # seconds after which a test gives up; none asserts a time
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{{ 'assistant:' }}"  # of the tiny models


class Answer:
    """A response: status, headers with small letters, and its bytes."""

    def __init__(self, status: int, headers: dict[str, str], data: bytes) -> None:
        self.status, self.headers, self.data = status, headers, data

    @property
    def json(self) -> Any:
        return json.loads(self.data)

    @property
    def error(self) -> dict[str, Any]:
        """The error of a refused request, whose shape is checked."""
        assert self.status >= 400
        assert self.headers["content-type"] == "application/json"
        content = self.json
        assert content.keys() == {"error"} or content == {"type": "error", "error": content["error"]}
        error = content["error"]
        assert {"message", "type", "param", "code"} <= set(error)
        assert b"\n" not in self.data
        return error

    @property
    def events(self) -> list[Any]:
        """The events of a stream without comments; the last line is [DONE]."""
        lines = self.data.decode().split("\n\n")
        assert lines[-1] == ""
        return [line.removeprefix("data: ") for line in lines[:-1] if line[:1] != ":"]


class Server:
    """A running server. `url` is its address, `stdout` what it has printed."""

    def __init__(self, *arguments: str, stderr: int = subprocess.PIPE, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "nextword", "serve", "--port", "0", "--threads", "1", *arguments],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env=os.environ | environment,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler) and None,
        )
        assert self.process.stdout is not None
        self.greeting = self.process.stdout.readline()
        found = re.search(r"http://(\S+):(\d+)/v1", self.greeting)
        if found is None:
            raise AssertionError(self.process.communicate()[1])
        self.curl = self.process.stdout.readline()
        self.host, self.port = found[1], int(found[2])
        self.url = f"http://{self.host}:{self.port}"

    def request(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None, raw: bytes | None = None
    ) -> Answer:
        """One request on a connection of its own; `body` is sent as JSON, `raw` as it is."""
        connection = HTTPConnection(self.host.strip("[]"), self.port, timeout=PATIENCE)
        data = raw if raw is not None else None if body is None else json.dumps(body).encode()
        try:
            connection.request(method, path, data, {"Content-Type": "application/json"} | (headers or {}))
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def get(self, path: str, **options: Any) -> Answer:
        return self.request("GET", path, **options)

    def post(self, path: str, body: Any = None, **options: Any) -> Answer:
        return self.request("POST", path, body, **options)

    def complete(self, prompt: Any, **fields: Any) -> Any:
        """POST /v1/completions, which must succeed."""
        answer = self.post("/v1/completions", {"prompt": prompt, **fields})
        assert answer.status == 200, answer.data
        return answer.json

    @contextmanager
    def connection(self, data: bytes = b"") -> Iterator[socket.socket]:
        """A bare connection on which `data` has been sent."""
        with socket.create_connection((self.host.strip("[]"), self.port), timeout=PATIENCE) as connection:
            connection.sendall(data)
            yield connection

    def metric(self, name: str) -> float:
        """The value of a metric without labels."""
        text = self.get("/metrics").data.decode()
        found = re.search(rf"^nextword_{name} (\S+)$", text, re.MULTILINE)
        assert found is not None, name
        return float(found[1])

    def until(self, what: Callable[[], bool]) -> None:
        """Wait until it is so."""
        deadline = time.monotonic() + PATIENCE
        while not what():
            assert time.monotonic() < deadline, "it did not become so"
            time.sleep(0.01)

    def is_idle(self) -> bool:
        """Whether no request is under way and all memory for keys and values is free."""
        names = ("requests_running", "requests_waiting", "kv_pages_used")
        return not any(self.metric(name) for name in names)

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Send a signal and wait: the exit code, and what was written on stderr."""
        self.process.send_signal(number)
        _, err = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, err

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


@contextmanager
def running(*arguments: Any, **options: Any) -> Iterator[Server]:
    """A server, which ends with the block: `running(model, "--alias", "tiny")`."""
    server = Server(*map(str, arguments), **options)
    try:
        yield server
    finally:
        server.kill()


@contextmanager
def starting(*first: Any) -> Iterator[Callable[..., Server]]:
    """A function that starts servers, which end with the block. `first`: arguments of each of them."""
    with ExitStack() as servers:
        yield lambda *arguments, **options: servers.enter_context(running(*first, *arguments, **options))


def post(path: str, body: Any, more: str = "Connection: close\r\n") -> bytes:
    """A POST request as it goes over the wire."""
    data = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n"
    )
    return f"{head}{more}\r\n".encode() + data
