"""A client for OpenAI-compatible servers (vLLM, llama.cpp, OpenAI).

It uses the standard library: responses are bounded in size and time, redirects are not followed (they would send the
key elsewhere), and an invalid response is a one-line error.
"""

from __future__ import annotations

import json
import math
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from http.client import HTTPConnection, HTTPException, HTTPSConnection, IncompleteRead
from queue import Empty, SimpleQueue
from typing import Any, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from ..base import RunError, UsageError, printable

PREFIX = "openai:"
_LARGEST_ANSWER = 64 << 20  # bytes
_LARGEST_EVENT = 1 << 20  # bytes
_RETRIED = (429, 500, 502, 503, 504)  # HTTP statuses worth a retry
_UNSUPPORTED = (400, 404, 405, 422, 501)  # HTTP statuses for unsupported kinds of requests
_HINTS = {
    401: ". Is OPENAI_API_KEY set?",
    403: ". Is OPENAI_API_KEY the right one?",
    404: ". Check the address and the model's name; a server that only chats takes --chat-template on",
}
_LONGEST_WAIT = 60.0  # seconds before a retry, even if the server asks for more
_STOPS = 4  # OpenAI's limit on stop texts; the response is cut at the others
_ECHO = {"max_tokens": 0, "echo": True, "logprobs": 1, "temperature": 0}  # asks for a prompt's own log-probabilities
_SHOWN = 200  # characters shown of a server's message

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Connection:
    """Connection settings: concurrent requests, timeout in seconds, retries of a failed request.

    Raises UsageError for invalid values.
    """

    concurrency: int = 8
    timeout: float = 120.0
    retries: int = 5

    def __post_init__(self) -> None:
        if not 1 <= self.concurrency <= 1024:
            raise UsageError(f"concurrency is {self.concurrency}; it takes a whole number from 1 to 1024")
        if not 0 < self.timeout <= 86_400:
            raise UsageError(f"timeout is {self.timeout}; it takes seconds, from above 0 to 86400")
        if self.retries < 0:
            raise UsageError(f"retries is {self.retries}; it takes a whole number of at least 0")


@dataclass(frozen=True)
class Scores:
    """ln p of each token of a continuation, whether greedy decoding would produce it, and the tokens read."""

    logprobs: tuple[float, ...]
    greedy: bool
    tokens_read: int


@dataclass(frozen=True)
class Answer:
    """The generated text, and the tokens read for it."""

    text: str
    tokens_read: int


@dataclass(frozen=True)
class Settings:
    """Generation settings."""

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()
    seed: int = 0

    @property
    def body(self) -> dict[str, Any]:
        """The settings in a request; `top_k`, which OpenAI lacks, only if set."""
        body = {key: value for key, value in asdict(self).items() if key not in ("stop", "top_k")}
        stop = {"stop": list(self.stop[:_STOPS])} if self.stop else {}
        return body | stop | ({"top_k": self.top_k} if self.top_k else {})


class Refused(RunError):
    """The server answered with an error that a retry would not change."""

    def __init__(self, status: int, url: str, reason: str) -> None:
        self.status, self.reason = status, reason
        super().__init__(f"{url}: HTTP {status}: {reason}{_HINTS.get(status, '')}")


class Server:
    """One model of one server. `address` is `openai:http://host:port/v1#model`; /v1 is the default path.

    The API key is read from OPENAI_API_KEY and never stored. Raises UsageError for an invalid address.
    """

    def __init__(self, address: str, connection: Connection | None = None) -> None:
        self.connection = connection or Connection()
        try:
            parts = urlsplit(address.removeprefix(PREFIX))
            host, self._port = parts.hostname, parts.port
        except ValueError as error:
            raise UsageError(f"{printable(address)}: {error}. Write it as openai:http://host:8000/v1#model") from None
        if parts.scheme not in ("http", "https") or not host or parts.query:
            raise UsageError(f"{printable(address)} is not an address. Write it as openai:http://host:8000/v1#model")
        if parts.username or parts.password:
            raise UsageError("a server's address holds a password, which would be stored. Use OPENAI_API_KEY instead")
        self._secure, self._host, self.host = parts.scheme == "https", host, parts.netloc
        self._path = parts.path.rstrip("/") or "/v1"
        self.url = f"{parts.scheme}://{self.host}{self._path}"
        self._reached = False
        self.model = parts.fragment or self._only_model()

    def _only_model(self) -> str:
        models = self._ask("GET", "/models").get("data")
        names = [str(model.get("id")) for model in models if isinstance(model, dict)] if models else []
        if len(names) == 1:
            return names[0]
        listed = printable(", ".join(names[:8]), _SHOWN) or "it lists none"
        raise UsageError(f"which model of {self.url}? Add its name: {PREFIX}{self.url}#NAME. Models: {listed}")

    # ---- requests

    def score(self, context: str, continuation: str) -> Scores:
        """The log-probabilities of `continuation` after `context`.

        The text is sent with `echo` and no tokens to generate, and comes back in tokens. Those with a character of the
        continuation belong to it. Raises UsageError if the endpoint does not support that.
        """
        tokens, logprobs, tops, read = self._echo(context + continuation)
        span = _span(tokens, context, continuation) or slice(self._count(context), read)
        own, best = logprobs[span], tops[span]
        if not own or any(value is None for value in own):
            raise self._nonsense("the log-probability of every token")
        return Scores(tuple(own), all(value >= top for value, top in zip(own, best, strict=True)), read)

    def _echo(self, text: str) -> tuple[list[str], list[Any], list[float], int]:
        """A text in tokens: their texts, ln p of each, and that of the most likely token at its position."""
        try:
            answer = self._ask("POST", "/completions", {"prompt": text, **_ECHO})
        except Refused as error:
            if error.status not in _UNSUPPORTED or self._echoes():
                raise
            raise self._cannot_score(error.reason) from None
        choice = self._choice(answer)
        logprobs = choice.get("logprobs")
        if not isinstance(logprobs, dict) or text not in str(choice.get("text")):
            raise self._cannot_score("its answer repeats no prompt with log-probabilities")
        try:
            tokens, values, tops = logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"]
            numbers = [None if value is None else _number(value) for value in values]
            best = [max(map(_number, (top or {"": math.inf}).values())) for top in tops]
            if not len(tokens) == len(numbers) == len(best):
                raise ValueError
            return list(map(str, tokens)), numbers, best, self._read(answer)
        except (KeyError, TypeError, ValueError, AttributeError):
            raise self._nonsense("log-probabilities of tokens") from None

    def _echoes(self) -> bool:
        """Whether the endpoint can score a short text, so that the previous text was the problem."""
        try:
            self._ask("POST", "/completions", {"prompt": "A b", **_ECHO})
        except Refused:
            return False
        return True

    def _cannot_score(self, reason: str) -> UsageError:
        return UsageError(
            f"{self.url} cannot score choices ({reason}): this needs /completions with echo and logprobs, as in vLLM."
            " It can generate answers: use --generate"
        )

    def _count(self, text: str) -> int:
        """The number of tokens of a text whose tokens hold partial characters and do not join to the prompt."""
        return self._read(self._ask("POST", "/completions", {"prompt": text, "max_tokens": 1, "temperature": 0}))

    def complete(self, prompt: str, settings: Settings) -> Answer:
        """Generate after a text."""
        answer = self._ask("POST", "/completions", {"prompt": prompt, **settings.body})
        return self._written(answer, self._choice(answer).get("text"), settings)

    def chat(self, messages: Sequence[Mapping[str, str]], settings: Settings) -> Answer:
        """Generate an answer in a chat, with the server's chat template."""
        body: dict[str, Any] = {"messages": list(messages), **settings.body}
        try:
            answer = self._ask("POST", "/chat/completions", body)
        except Refused as error:  # OpenAI's newer models only accept this name
            if "max_completion_tokens" not in error.reason:
                raise
            body["max_completion_tokens"] = body.pop("max_tokens")
            answer = self._ask("POST", "/chat/completions", body)
        message = self._choice(answer).get("message")
        return self._written(answer, message.get("content") if isinstance(message, dict) else None, settings)

    def stream_chat(self, messages: Sequence[Mapping[str, str]], settings: Mapping[str, Any]) -> Iterator[str]:
        """The pieces of an answer in a chat as they arrive. `settings` are further fields of the request."""
        body = {"model": self.model, "messages": list(messages), **settings, "stream": True}
        connection = self._connect()
        try:
            connection.request("POST", f"{self._path}/chat/completions", json.dumps(body).encode(), _headers())
            response = connection.getresponse()
            if response.status != 200:
                raise Refused(response.status, self.url, _message(response.read(_LARGEST_EVENT)))
            while line := response.readline(_LARGEST_EVENT):
                if line.startswith(b"data:") and not line.startswith(b"data: [DONE]"):
                    yield self._delta(self._parsed(line[5:]))
        except (OSError, HTTPException) as error:
            raise RunError(f"{self.url} cannot be reached ({_reason(error)})") from None
        finally:
            connection.close()

    def _delta(self, event: Mapping[str, Any]) -> str:
        """The text of one event of a stream. Raises RunError for an error in place of an event."""
        if "error" in event:
            raise RunError(f"{self.url}: {_message(json.dumps(event).encode())}")
        if event.get("choices") == []:
            return ""
        delta = self._choice(event).get("delta")
        content = delta.get("content") if isinstance(delta, dict) else None
        return content if isinstance(content, str) else ""

    def _written(self, answer: Mapping[str, Any], text: Any, settings: Settings) -> Answer:
        if not isinstance(text, str):
            raise self._nonsense("text")
        ends = [end for stop in settings.stop if (end := text.find(stop)) >= 0]
        return Answer(text[: min(ends, default=len(text))], self._read(answer))

    def _choice(self, answer: Mapping[str, Any]) -> dict[str, Any]:
        choices = answer.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            raise self._nonsense("choices")
        return choices[0]

    def _read(self, answer: Mapping[str, Any]) -> int:
        usage = answer.get("usage")
        count = usage.get("prompt_tokens") if isinstance(usage, dict) else None
        return count if isinstance(count, int) and count >= 0 else 0

    def _nonsense(self, what: str) -> RunError:
        return RunError(f"{self.url}: the answer has no {what}. Is this an OpenAI-compatible server?")

    # ---- HTTP

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The server's response. Raises Refused, or RunError if all attempts fail."""
        data = None if body is None else json.dumps({"model": self.model, **body}).encode()
        for attempt in range(self.connection.retries + 1):
            wait = min(30.0, 0.5 * 2**attempt) * random.uniform(0.5, 1)
            try:
                status, retry_after, answer = self._exchange(method, self._path + path, data)
            except TimeoutError:
                raise RunError(
                    f"{self.url} gave no answer within {self.connection.timeout:g} s. Use a longer --timeout or a"
                    " smaller --concurrency"
                ) from None
            except (OSError, HTTPException) as error:
                failure = f"cannot be reached ({_reason(error)})"
                if not self._reached:  # most likely a wrong address, which a retry does not fix
                    break
            else:
                self._reached = True
                if status == 200:
                    return self._parsed(answer)
                if status not in _RETRIED:
                    raise Refused(status, self.url, _message(answer))
                failure, wait = f"HTTP {status}: {_message(answer)}", retry_after or wait
            if attempt < self.connection.retries:
                time.sleep(wait)
        raise RunError(f"{self.url} {failure}, after {attempt + 1} attempt{'s' * (attempt > 0)}")

    def _exchange(self, method: str, path: str, data: bytes | None) -> tuple[int, float, bytes]:
        """Status, Retry-After in seconds, and the body, within the timeout."""
        connection, limit = self._connect(), self.connection.timeout
        end = time.monotonic() + limit
        timer = threading.Timer(limit, _shut, [connection])  # the socket's timeout applies to each piece
        timer.daemon = True
        timer.start()
        try:
            connection.request(method, path, data, _headers())
            response = connection.getresponse()
            answer = response.read(_LARGEST_ANSWER + 1)
            if response.length and len(answer) <= _LARGEST_ANSWER:
                raise IncompleteRead(answer)
            return response.status, _seconds(response.headers.get("Retry-After")), answer
        except (OSError, HTTPException):
            if time.monotonic() >= end:
                raise TimeoutError from None
            raise
        finally:
            timer.cancel()
            connection.close()

    def _connect(self) -> HTTPConnection:
        if not self._secure:
            return HTTPConnection(self._host, self._port, timeout=self.connection.timeout)
        proxy = urlsplit(getproxies().get("https", ""))
        if not proxy.hostname or proxy_bypass(self._host):
            return HTTPSConnection(self._host, self._port, timeout=self.connection.timeout)
        connection = HTTPSConnection(proxy.hostname, proxy.port, timeout=self.connection.timeout)
        connection.set_tunnel(self._host, self._port)
        return connection

    def _parsed(self, answer: bytes) -> dict[str, Any]:
        if len(answer) > _LARGEST_ANSWER:
            raise RunError(f"{self.url}: the answer is larger than {_LARGEST_ANSWER >> 20} MiB")
        try:
            parsed = json.loads(answer)
        except (ValueError, RecursionError):
            parsed = None
        if not isinstance(parsed, dict):
            raise self._nonsense("JSON object")
        return parsed


def in_parallel(call: Callable[[Item], Result], items: Sequence[Item], workers: int) -> Iterator[tuple[Item, Result]]:
    """Yield each item and `call`'s result as soon as it is done, with `workers` threads; the first error ends it.

    The threads are daemons, so that Ctrl-C does not wait for a server.
    """
    waiting: SimpleQueue[Item] = SimpleQueue()
    done: SimpleQueue[tuple[Item, Result | None, BaseException | None]] = SimpleQueue()
    ended = threading.Event()
    for item in items:
        waiting.put(item)

    def work() -> None:
        while not ended.is_set():
            try:
                item = waiting.get_nowait()
            except Empty:
                return
            try:
                done.put((item, call(item), None))
            except BaseException as error:
                done.put((item, None, error))

    for _ in range(min(workers, len(items))):
        threading.Thread(target=work, daemon=True).start()
    try:
        for _ in items:
            item, result, error = done.get()
            if error is not None:
                raise error
            yield item, result  # type: ignore[misc]
    finally:
        ended.set()


def _span(tokens: Sequence[str], context: str, continuation: str) -> slice | None:
    """The tokens with a character of the continuation; None if the tokens do not join to the text.

    There may be others before (bos) and after (generated in spite of `max_tokens` 0).
    """
    start = "".join(tokens).find(context + continuation)
    if start < 0:
        return None
    begin, end = start + len(context), start + len(context) + len(continuation)
    ends = [0]
    for token in tokens:
        ends.append(ends[-1] + len(token))
    own = [index for index in range(len(tokens)) if ends[index + 1] > begin and ends[index] < end]
    return slice(own[0], own[-1] + 1)


def _headers() -> dict[str, str]:
    headers = {"Content-Type": "application/json", "User-Agent": "nextword"}
    if key := os.environ.get("OPENAI_API_KEY", "").strip():
        if not key.isascii() or not key.isprintable():
            raise UsageError("OPENAI_API_KEY has characters that are invalid in a key")
        headers["Authorization"] = f"Bearer {key}"
    return headers


def _number(value: Any) -> float:
    number = float(value)
    if math.isnan(number):
        raise ValueError
    return number


def _seconds(text: str | None) -> float:
    """Retry-After in seconds; 0 if missing or in another format."""
    return min(float(text), _LONGEST_WAIT) if text is not None and text.isdecimal() else 0.0


def _message(answer: bytes) -> str:
    """A server's error message: OpenAI's {"error": {"message": ...}}, or the text itself."""
    text = answer[: 1 << 16].decode(errors="replace")
    with suppress(ValueError, RecursionError, AttributeError):
        error = json.loads(text).get("error", text)
        text = str(error.get("message", error)) if isinstance(error, dict) else str(error)
    return printable(" ".join(text.split()), _SHOWN) or "no reason given"


def _reason(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return printable(text or type(error).__name__, _SHOWN)


def _shut(connection: HTTPConnection) -> None:
    """Interrupt a read in another thread."""
    with suppress(OSError, AttributeError):
        connection.sock.shutdown(socket.SHUT_RDWR)
