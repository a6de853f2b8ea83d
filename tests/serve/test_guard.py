"""Who may ask: Host, Origin, key, type and size; and what a hostile request is told."""

from __future__ import annotations

import json
import socket

import pytest

from serving import Server, post, running

KEY = "a-key-to-guess"
ASK = {"prompt": "a", "max_tokens": 1}


@pytest.fixture(scope="module")
def locked(tiny_path):
    with running(tiny_path, "--cors-origin", "https://example.com", NEXTWORD_API_KEY=KEY) as server:
        yield server


@pytest.mark.parametrize("name", ["localhost", "LOCALHOST:1", "127.0.0.1:80", "[::1]:8080"])
def test_the_machine_s_own_names_are_served(tiny: Server, name: str) -> None:
    assert tiny.get("/health", headers={"Host": name}).status == 200


@pytest.mark.parametrize("name", ["evil.example", "localhost.evil.example", "127.0.0.1.nip.io:80", "", "[", "10.0.0.1"])
def test_another_name_is_not(tiny: Server, name: str) -> None:
    for path in ("/health", "/v1/models"):
        assert tiny.get(path, headers={"Host": name}).error["type"] == "permission_error"


def test_a_foreign_page_cannot_start_anything(tiny: Server) -> None:
    foreign = {"Origin": "https://evil.example"}
    refused = tiny.post("/v1/completions", ASK, headers=foreign)
    assert (refused.status, refused.error["type"]) == (403, "permission_error")
    assert tiny.post("/v1/completions", ASK, headers={"Content-Type": "text/plain"}).status == 415
    assert tiny.post("/v1/completions", ASK, headers={"Origin": f"http://{tiny.host}:{tiny.port}"}).status == 200
    for answer in (refused, tiny.get("/v1/models", headers=foreign), tiny.get("/v1/models")):
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_a_page_let_in_may_call(locked: Server) -> None:
    page = {"Origin": "https://example.com"}
    wanted = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,x-stainless-os"}
    preflight = locked.request("OPTIONS", "/v1/completions", headers=page | wanted)
    assert (preflight.status, preflight.headers["access-control-allow-origin"]) == (204, "https://example.com")
    assert preflight.headers["access-control-allow-headers"] == "authorization,x-stainless-os"
    answer = locked.post("/v1/completions", ASK, headers=page | {"Authorization": f"Bearer {KEY}"})
    assert (answer.status, answer.headers["access-control-allow-origin"]) == (200, "https://example.com")


@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/slots", "/openapi.json", "/nothing"])
def test_the_key_is_asked_for(locked: Server, path: str) -> None:
    assert locked.get("/health").status == 200
    for headers in ({}, {"Authorization": "Bearer no"}, {"X-Api-Key": ""}, {"Authorization": KEY}):
        refused = locked.get(path, headers=headers)
        assert (refused.status, refused.error["type"]) == (401, "authentication_error")
        assert KEY not in refused.data.decode()
    assert locked.get(f"{path}?api_key={KEY}").status == 401
    assert locked.request("OPTIONS", path).status == 401
    for headers in ({"Authorization": f"bearer {KEY}"}, {"X-Api-Key": KEY}):
        assert locked.get(path, headers=headers).status in (200, 404)


HOSTILE = {
    "not JSON": b"{",
    "not UTF-8": b'{"prompt": "\xff"}',
    "half a surrogate pair": b'{"prompt": "\\ud800"}',
    "NaN": b'{"prompt": "a", "temperature": NaN}',
    "1e999": b'{"prompt": "a", "temperature": 1e999}',
    "nested": b'{"prompt": "a", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "quotes": b'{"prompt": "a", "x": [[' + b'\\"' * 500_000,
    "a long number": b'{"prompt": "a", "max_tokens": ' + b"9" * 1_000_000 + b"}",
    "an array": b"[]",
    "nothing": b"",
}


@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_body_is_a_400_in_one_line(tiny: Server, body: bytes) -> None:
    refused = tiny.post("/v1/completions", raw=body)
    assert (refused.status, refused.error["type"]) == (400, "invalid_request_error")
    assert "Traceback" not in refused.data.decode()


WRONG = {
    "temperature": -1, "top_p": 1.5, "n": 9, "logprobs": 21, "max_tokens": 10**9, "presence_penalty": 3,
    "stop": [""] * 2, "logit_bias": {"257": 1}, "seed": "x", "stream_options": {"include_usage": True}, "suffix": "b",
    "prompt": [257], "top_k": 1.5, "best_of": 3, "min_p": "a",
}  # fmt: skip


@pytest.mark.parametrize("field", WRONG)
def test_a_wrong_field_is_named(tiny: Server, field: str) -> None:
    refused = tiny.post("/v1/completions", ASK | {field: WRONG[field]})
    assert (refused.status, refused.error["param"]) == (400, field)


CHAT = {
    "top_logprobs": 5, "messages": [], "response_format": {"type": "json_schema"}, "tool_choice": "required",
    "tools": [{"type": "function", "function": {"name": "f"}}], "functions": [{"name": "f"}],
}  # fmt: skip


@pytest.mark.parametrize("field", CHAT)
def test_a_wrong_field_of_chat_is_named(tiny: Server, field: str) -> None:
    asked = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1, field: CHAT[field]}
    refused = tiny.post("/v1/chat/completions", asked)
    assert (refused.status, refused.error["param"]) == (400, field)


def test_pictures_are_refused(tiny: Server) -> None:
    picture = [{"type": "image_url", "image_url": {"url": "data:,"}}]
    refused = tiny.post("/v1/chat/completions", {"messages": [{"role": "user", "content": picture}]})
    assert "image_url" in refused.error["message"]


def test_a_prompt_beyond_the_context_is_never_cut(tiny: Server) -> None:
    for text in ("a" * 512, "a" * 1_000_000):
        error = tiny.post("/v1/completions", {"prompt": text}).error
        assert (error["type"], error["n_ctx"]) == ("exceed_context_size_error", 512)
        assert error["n_prompt_tokens"] == len(text)
        assert "prompt is too long" in error["message"], "by which LangChain and LiteLLM know it"
    [choice] = tiny.complete("a" * 500, max_tokens=100, ignore_eos=True)["choices"]
    assert choice["finish_reason"] == "length"


def test_sizes_have_limits(tiny: Server) -> None:
    assert tiny.post("/v1/completions", raw=b" " * (9 << 20)).status == 413
    assert tiny.get("/health", headers={"X-Long": "a" * 40_000}).status == 431
    with tiny.connection(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 40_000) as connection:
        assert connection.recv(12) == b"HTTP/1.1 431"
    with tiny.connection(b"\x16\x03\x01 nonsense\r\n\r\n") as connection:
        assert b"application/json" in connection.recv(1000)


def test_paths_and_methods(tiny: Server) -> None:
    unknown = tiny.get("/v2/nothing?key=1").error
    assert unknown["type"] == "not_found_error"
    assert "'/v2/nothing'" in unknown["message"]
    assert "/openapi.json" in unknown["message"]
    assert tiny.get("/v1/models/nothing").status == 404
    refused = tiny.get("/v1/completions")
    assert (refused.status, refused.headers["allow"]) == (405, "POST")
    assert tiny.post("/health").status == 405


def received(connection: socket.socket) -> bytes:
    """A whole answer, which ends with a brace."""
    data = b""
    while not data.endswith(b"}"):
        data += connection.recv(1 << 16)
    return data


def test_bodies_come_in_pieces(tiny: Server) -> None:
    data = post("/v1/completions", ASK, "")
    with tiny.connection() as connection:
        for start in range(0, len(data), 7):
            connection.sendall(data[start : start + 7])
        assert b'"usage"' in received(connection)
        body = json.dumps(ASK).encode()
        chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
        head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        connection.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks)
        assert b'"usage"' in received(connection)


def test_nothing_that_is_shown_holds_a_prompt(start, tiny_path) -> None:
    server = start(tiny_path, "--access-log", "--api-key", KEY)
    key = {"Authorization": f"Bearer {KEY}"}
    server.post("/v1/completions", ASK | {"prompt": "secret"}, headers=key)
    server.post("/v1/completions?secret=1", {"prompt": "secret", "n": "secret"}, headers=key)
    shown = server.get("/metrics", headers=key).data + server.get("/slots", headers=key).data
    code, log = server.end()
    assert (code, log.count("POST /v1/completions 200"), log.count("POST /v1/completions 400")) == (0, 1, 1)
    assert "secret" not in log + shown.decode()
    assert KEY not in log
