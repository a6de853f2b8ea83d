"""Answers and the status line without a server: what a failure in a stream looks like, and what is imported when."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from nextword.base import RunError, UsageError
from nextword.serve import ServeConfig, messages
from nextword.serve.bodies import ResponsesBody
from nextword.serve.call import Call, Service
from nextword.serve.chat import Work
from nextword.serve.errors import ApiError
from nextword.serve.requests import EventStream, as_api_error
from nextword.serve.responses import Reply
from nextword.serve.status import status_line

LIBRARIES = ("uvicorn", "starlette", "msgspec", "prometheus_client", "httptools", "asyncio")


def service(**settings: Any) -> Service:
    return Service(ServeConfig(**settings), SimpleNamespace(loaded={}, release=lambda model: None))  # type: ignore[arg-type]


def test_a_failure_in_a_stream_is_its_last_event() -> None:
    async def events() -> AsyncIterator[list[Any]]:
        yield [{"a": 1}, {"b": 2}]
        raise RunError("the logits hold NaN")

    sent, reported = [], []

    async def send(message: Any) -> None:
        sent.append(message)

    stream = EventStream(events(), reported.append, done=True)
    asyncio.run(stream({"type": "http"}, None, send))  # type: ignore[arg-type]
    data = b"".join(message.get("body", b"") for message in sent).decode().split("\n\n")
    assert data[:2] == ['data: {"a":1}', 'data: {"b":2}']
    assert json.loads(data[2].removeprefix("data: "))["error"]["message"] == "the logits hold NaN"
    assert (data[3:], sent[-1]["more_body"]) == ([""], False)
    assert [str(error) for error in reported] == ["the logits hold NaN"]


def test_each_api_has_its_own_form_of_a_failure_in_a_stream() -> None:
    async def events() -> AsyncIterator[list[Any]]:
        yield [{"type": "a"}]
        raise RunError("the logits hold NaN")

    async def send(message: Any) -> None:
        sent.append(message.get("body", b""))

    body = ResponsesBody(input="a")
    reply = Reply(Work(SimpleNamespace(config=ServeConfig()), None, None, None), body)  # type: ignore[arg-type]
    for failure in (lambda error: messages.as_error(error).content, reply.failure):
        sent: list[bytes] = []
        stream = EventStream(events(), lambda error: None, named=True, failure=failure)
        asyncio.run(stream({"type": "http"}, None, send))  # type: ignore[arg-type]
        first, last, end = b"".join(sent).decode().split("\n\n")
        assert (first, end) == ('event: a\ndata: {"type":"a"}', "")
        name, data = last.split("\n")
        content = json.loads(data.removeprefix("data: "))
        assert (name, content["type"]) == ("event: error", "error")
        assert (content.get("error") or content)["message"] == "the logits hold NaN"


def test_a_stream_that_waits_sends_comments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nextword.serve.requests.PING_SECONDS", 0.001)
    sent: list[Any] = []

    async def run() -> None:
        pinged, pings = asyncio.Event(), []

        async def events() -> AsyncIterator[list[Any]]:
            for number in range(2):
                await pinged.wait()
                pinged.clear()
                yield [{"a": number}]

        async def send(message: Any) -> None:
            sent.append(message)
            if message.get("body") == b": ping\n\n":
                pings.append(message)
                pinged.set()

        await EventStream(events(), pytest.fail, done=True)({"type": "http"}, None, send)  # type: ignore[arg-type]
        assert len(asyncio.all_tasks()) <= 2  # this one, and one that is being cancelled

    asyncio.run(run())
    lines = b"".join(message.get("body", b"") for message in sent).decode().split("\n\n")
    assert [line for line in lines if line != ": ping"] == ['data: {"a":0}', 'data: {"a":1}', "data: [DONE]", ""]
    assert lines.count(": ping") >= 2
    assert [message.get("more_body") for message in sent[1:]].count(False) == 1


@pytest.mark.parametrize(
    ("error", "status"),
    [(UsageError("n is 0"), 400), (RunError("NaN"), 500), (MemoryError(), 500), (KeyError("x"), 500),
     (ApiError(429, "full"), 429)],
)  # fmt: skip
def test_every_failure_has_a_status_and_one_line(error: Exception, status: int) -> None:
    response = as_api_error(error).response
    assert (response.status_code, response.media_type) == (status, "application/json")
    assert b"\n" not in bytes(response.body)
    assert ("retry-after" in response.headers, "x-should-retry" in response.headers) == (status == 429, status == 500)


def test_requests_run_in_the_order_they_came() -> None:
    own = service(parallel=4, queue=2)
    calls = [Call(own, "/v1/completions") for _ in range(6)]
    for call, sequences in zip(calls[:4], (2, 2, 1, 8), strict=True):
        call.admit(sequences)
    assert own.load == (2, 2, 4)
    with pytest.raises(ApiError, match="2 requests are waiting"):
        calls[4].admit(1)
    calls[0].close()
    assert own.load == (2, 1, 3)
    calls[5].admit(1)
    assert own.load == (2, 2, 3)
    assert status_line(own, 12.4) == "2 running, 2 waiting, 12 tokens/s, 0% of prompts cached"
    shorter = [status_line(own, 12.4, columns) for columns in (56, 55, 21, 20, 9)]
    assert [line.count(",") for line in shorter] == [3, 2, 1, 0, 0]
    assert (shorter[2], shorter[4]) == ("2 running, 2 waiting", "")


def test_a_completion_imports_nothing_of_the_server() -> None:
    code = (
        "import sys; from nextword.cli import main; main(['complete', '--help']); import nextword.engine;"
        f"print([name for name in {LIBRARIES} if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "[]"


def test_a_server_imports_evaluations_only_when_asked_for_them() -> None:
    code = (
        "import sys; from nextword.serve.app import ENDPOINTS; print('nextword.evals' in sys.modules);"
        "print(ENDPOINTS['/v1/prompt'].function().__module__, 'nextword.evals' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "nextword.serve.few_shot", "True"]
