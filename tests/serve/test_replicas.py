"""Replicas on a Ray cluster: together they are one server, also where one of them is lost."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from http.client import HTTPConnection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nextword.cli import main
from nextword.engine import LoadConfig
from nextword.serve.call import Service
from nextword.serve.config import ServeConfig
from nextword.serve.models import Models
from nextword.serve.replicas import TRIES, Front
from ray_machines import Machines
from serving import PATIENCE, Answer, Server, post, running

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning"
)
LONG = {"max_tokens": 400, "ignore_eos": True}

# ---- a cluster


@pytest.fixture
def replicas(machines: Machines, tiny_path: Path) -> Iterator[Server]:
    """The tiny model behind a replica on each machine."""
    pytest.importorskip("ray.serve", reason="needs the extra `cluster`")
    options = ("--workers", "ray", "--cluster", machines.address, "--alias", "tiny", "--parallel", "4")
    with running(tiny_path, *options) as server:
        yield server


def metrics(server: Server, name: str) -> dict[int, float]:
    """A metric of each replica, by its process."""
    text = server.get("/metrics").data.decode()
    lines = re.findall(rf'^nextword_{name}{{.*replica="[^":]+:(\d+)".*}} (\S+)$', text, re.MULTILINE)
    values: dict[int, float] = {}
    for process, value in lines:
        values[int(process)] = values.get(int(process), 0) + float(value)
    return values


def said(answer: Answer) -> Any:
    """The choices of an answer; of a stream, as texts: which tokens share an event depends on the steps."""
    assert answer.status == 200, answer.data
    if answer.data[:1] == b"{":
        return answer.json["choices"]
    choices = [choice for event in answer.events[:-1] for choice in json.loads(event)["choices"]]
    count = 1 + max(choice["index"] for choice in choices)
    return ["".join(choice["text"] for choice in choices if choice["index"] == index) for index in range(count)]


def request(number: int, **fields: Any) -> dict[str, Any]:
    return {"prompt": f"Once {number}", "seed": number, **fields}


def test_replicas_are_one_server_also_where_one_is_killed(
    replicas: Server, tiny: Server, machines: Machines, tiny_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One test, so that there is one cluster, which takes seconds to start."""
    a_request_is_answered_as_by_one_server_whichever_replica_it_meets(replicas, tiny)
    a_client_that_hangs_up_ends_its_request_in_the_replica(replicas)
    a_replica_killed_under_load_loses_no_request_that_had_not_begun(replicas, tiny)
    code, written = replicas.end()
    assert code == 0
    assert not unexpected(written)
    what_a_cluster_lacks_is_one_line(machines.address, tiny_path, capsys)


def a_request_is_answered_as_by_one_server_whichever_replica_it_meets(replicas: Server, tiny: Server) -> None:
    assert "from 2 replicas" in replicas.greeting
    bodies = [request(number, max_tokens=30, logprobs=2, stream=number % 2 == 0, n=2) for number in range(12)]
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda body: replicas.post("/v1/completions", body), bodies))
    for body, answer in zip(bodies, answers, strict=True):
        expected = said(tiny.post("/v1/completions", body | {"stream": False}))
        assert said(answer) == ([choice["text"] for choice in expected] if body["stream"] else expected)
    chat = {"messages": [{"role": "user", "content": "hi"}], "seed": 1, "max_tokens": 20}
    assert said(replicas.post("/v1/chat/completions", chat)) == said(tiny.post("/v1/chat/completions", chat))
    refused = replicas.post("/v1/completions", {"prompt": "a", "temperature": -1})
    assert refused.json == tiny.post("/v1/completions", {"prompt": "a", "temperature": -1}).json
    assert replicas.get("/health").json == {"status": "ok", "replicas": 2}
    assert len(metrics(replicas, "requests_total")) == 2
    assert all(metrics(replicas, "requests_total").values())


def a_client_that_hangs_up_ends_its_request_in_the_replica(replicas: Server) -> None:
    before = sum(metrics(replicas, "cancelled_total").values())
    with replicas.connection(post("/v1/completions", request(0, n=4, stream=True, **LONG))) as connection:
        connection.recv(400)
    replicas.until(lambda: sum(metrics(replicas, "cancelled_total").values()) == before + 1)
    replicas.until(lambda: not any(metrics(replicas, "requests_running").values()))


def unexpected(written: str) -> list[str]:
    """Lines that are not about the start, which takes long where the machine is busy."""
    return [line for line in written.splitlines() if "Starting 2 replicas" not in line and "taken more" not in line]


class Stream(threading.Thread):
    """A request whose events are collected as they come."""

    def __init__(self, server: Server, body: dict[str, Any]) -> None:
        super().__init__(daemon=True)
        self.connection = HTTPConnection(server.host, server.port, timeout=PATIENCE)
        self.connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        self.events: list[str] = []
        self.start()

    def run(self) -> None:
        for line in self.connection.getresponse():
            if line.startswith(b"data: "):
                self.events.append(line[6:].decode().strip())


def stopped_in_a_stream(server: Server, pool: ThreadPoolExecutor, bodies: list[Any]) -> tuple[int, Stream, list] | None:
    """A replica that is stopped while it streams, the stream, and further requests, of which some wait there.

    None if the stream ended too early.
    """
    begun = Stream(server, request(0, n=4, stream=True, **LONG))
    server.until(lambda: bool(begun.events))
    busy = [process for process, count in metrics(server, "requests_running").items() if count]
    if not busy:
        return None
    asked = [pool.submit(server.post, "/v1/completions", body) for body in bodies]
    server.until(lambda: bool(metrics(server, "requests_waiting")[busy[0]]) or not begun.is_alive())
    os.kill(busy[0], signal.SIGSTOP)
    wait(asked, return_when="FIRST_COMPLETED")
    if begun.is_alive():
        return busy[0], begun, asked
    os.kill(busy[0], signal.SIGCONT)
    wait(asked)
    return None


def a_replica_killed_under_load_loses_no_request_that_had_not_begun(replicas: Server, tiny: Server) -> None:
    bodies = [request(number, stream=number % 2 == 0, max_tokens=100, ignore_eos=True) for number in range(16)]
    with ThreadPoolExecutor(len(bodies)) as pool:
        while not (caught := stopped_in_a_stream(replicas, pool, bodies)):
            pass
        killed, begun, asked = caught
        os.kill(killed, signal.SIGKILL)
        answers = [future.result() for future in asked]
    begun.join()
    error = json.loads(begun.events.pop())["error"]
    assert (error["type"], "has died" in error["message"]) == ("unavailable_error", True)
    parts = [choice for event in begun.events for choice in json.loads(event)["choices"]]
    for number, choice in enumerate(said(tiny.post("/v1/completions", request(0, n=4, **LONG)))):
        assert choice["text"].startswith("".join(part["text"] for part in parts if part["index"] == number))
    for body, answer in zip(bodies, answers, strict=True):
        expected = said(tiny.post("/v1/completions", body | {"stream": False}))
        assert said(answer) == ([expected[0]["text"]] if body["stream"] else expected)
    replicas.until(lambda: replicas.get("/health").json.get("replicas") == 2)
    replicas.until(lambda: len(metrics(replicas, "requests_running")) == 2)
    assert killed not in metrics(replicas, "requests_running")


def what_a_cluster_lacks_is_one_line(address: str, tiny_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, code, message in (
        ((str(tiny_path), "--replicas", "3"), 2, "--replicas is 3; with a CPU for each of 1 threads, the cluster has"),
        (("/nowhere/model",), 1, "lacks /nowhere/model: "),
        ((str(tiny_path), "--memory", "1KB"), 1, "a replica does not start: "),
    ):
        rest = ("--workers", "ray", "--cluster", address, "--threads", "1", "--port", "0")
        assert main(["serve", *options, *rest]) == code
        [error] = unexpected(capsys.readouterr().err)
        assert message in error


# ---- the front alone


class Died(Exception):
    """Ray's error for a lost replica."""


class Handle:
    """Ray Serve's handle of replicas whose answers are given: messages, or Died where the replica dies."""

    def __init__(self, *answers: list[Any]) -> None:
        self.answers = iter(answers)

    def options(self, **_: Any) -> Handle:
        return self

    def remote(self, method: str, path: str, body: bytes) -> Any:
        return Parts(next(self.answers))


class Parts:
    def __init__(self, parts: list[Any]) -> None:
        self.parts = parts

    async def __aiter__(self) -> AsyncIterator[Any]:
        for part in self.parts:
            if part is Died:
                raise Died
            yield (1, 0, 0), [part]

    def cancel(self) -> None:
        pass


def start(status: int = 200) -> dict[str, Any]:
    return {"type": "http.response.start", "status": status, "headers": []}


def part(data: bytes, more: bool = True) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": more}


def ask(handle: Handle, path: str = "/v1/completions", body: bytes = b"{}", **settings: Any) -> tuple[int, bytes]:
    """The status and the body with which the front answers a request."""
    config = ServeConfig(**settings)
    ray = SimpleNamespace(exceptions=SimpleNamespace(RayError=Died, RayTaskError=KeyError))
    front = Front(Service(config, Models(["a"], config, LoadConfig())), ray, "app", handle)
    received = iter([{"type": "http.request", "body": body}])
    sent: list[Any] = []

    async def receive() -> Any:
        for message in received:
            return message
        return await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": headers}
    asyncio.run(front(scope, receive, send))
    assert [message["type"] for message in sent].count("http.response.start") == 1
    assert not sent[-1].get("more_body", False)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent)


PING, DATA = part(b": ping\n\n"), part(b"data: 1\n\n")
END = part(b"data: [DONE]\n\n", more=False)


def test_an_answer_that_had_not_begun_comes_from_another_replica() -> None:
    whole = [start(), DATA, END]
    assert ask(Handle([Died], [start(), Died], whole)) == (200, b"data: 1\n\ndata: [DONE]\n\n")
    assert ask(Handle([start(), PING, Died], whole)) == (200, b": ping\n\ndata: 1\n\ndata: [DONE]\n\n")
    assert ask(Handle([*whole, Died])) == (200, b"data: 1\n\ndata: [DONE]\n\n")


def test_an_answer_that_had_begun_ends_with_an_error_in_its_own_form() -> None:
    for path, head in (("/v1/completions", b"data: "), ("/v1/messages", b"event: error\ndata: ")):
        status, data = ask(Handle([start(), DATA, Died]), path)
        assert status == 200
        assert data.startswith(b"data: 1\n\n" + head)
        assert "has died" in json.loads(data.split(b"data: ")[-1])["error"]["message"]
    _, data = ask(Handle([start(), DATA, DATA, Died]), "/v1/responses")
    assert json.loads(data.split(b"data: ")[-1])["sequence_number"] == 2


def test_a_refusal_after_comments_ends_the_stream() -> None:
    refusal = [start(429), part(b'{"error": {"message": "too many"}}', more=False)]
    status, data = ask(Handle([start(), PING, Died], refusal))
    assert status == 200
    assert json.loads(data.split(b"data: ")[-1])["error"]["message"] == "too many"
    assert ask(Handle([Died], refusal)) == (429, b'{"error": {"message": "too many"}}')


def test_a_request_that_kills_every_replica_is_given_up() -> None:
    status, data = ask(Handle(*[[Died]] * TRIES))
    assert status == 503
    assert f"{TRIES} replicas in turn died" in json.loads(data)["error"]["message"]


def test_the_front_keeps_the_rules_of_the_server() -> None:
    assert ask(Handle(), api_key="secret")[0] == 401
    assert ask(Handle(), "/nowhere")[0] == 404
    assert ask(Handle(), body=b" " * (9 << 20))[0] == 413


def test_replicas_without_ray_are_one_line(
    tiny_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["serve", str(tiny_path), "--replicas", "2"]) == 2
    assert "Give --workers ray with it" in capsys.readouterr().err
    monkeypatch.setattr("nextword.base.extras.installed", lambda package: False)
    assert main(["serve", str(tiny_path), "--workers", "ray"]) == 2
    assert capsys.readouterr().err == "nextword: --workers ray needs ray. Install it: pip install 'nextword[cluster]'\n"
