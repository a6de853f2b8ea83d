"""A small OpenAI-compatible server over nextword's engine, for tests of the client: what it answers is known."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from nextword.engine import LanguageModel, ScoreRequest
from nextword.text import render_chat

Respond = Callable[[str, dict[str, Any]], tuple[int, Any]]  # path and body -> status and answer (bytes: as they are)


class EngineServer:
    """Answers as vLLM does. `requests` are those that came: path, headers and body."""

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self._lock = threading.Lock()

    def __call__(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path == "/v1/models":
            return 200, {"data": [{"id": "tiny"}]}
        with self._lock:
            if path == "/v1/chat/completions":
                prompt = self.model.encode(render_chat(self.model.tokenizer, body["messages"]), special=True)
                return 200, self._answer(prompt, message={"role": "assistant", "content": self._write(prompt, body)})
            prompt = self.model.encode(body["prompt"])
            if body.get("echo"):
                return 200, self._answer(prompt, text=body["prompt"], logprobs=self._logprobs(prompt))
            return 200, self._answer(prompt, text=self._write(prompt, body))

    @staticmethod
    def _answer(prompt: list[int], **choice: Any) -> dict[str, Any]:
        return {"choices": [{"index": 0, **choice}], "usage": {"prompt_tokens": len(prompt)}}

    def _write(self, prompt: list[int], body: dict[str, Any]) -> str:
        settings = {key: body[key] for key in ("max_tokens", "temperature", "top_p", "seed", "stop") if key in body}
        return self.model.complete(prompt, **settings).text

    def _logprobs(self, prompt: list[int]) -> dict[str, Any]:
        texts = [self.model.tokenizer.token_bytes(token).decode(errors="replace") for token in prompt]
        [[score]] = self.model.engine.score([ScoreRequest((prompt[0],), (tuple(prompt[1:]),))])
        pairs = list(zip(score.logprobs, score.ranks, strict=True))
        tops = [{"x": logprob if rank == 1 else logprob + 0.5} for logprob, rank in pairs]
        return {"tokens": texts, "token_logprobs": [None, *score.logprobs], "top_logprobs": [None, *tops]}


@contextmanager
def serving(respond: Respond) -> Iterator[tuple[str, list[tuple[str, Any, dict[str, Any]]]]]:
    """A server on a free port: its address for `--model`, without a model's name, and the requests that came."""
    requests: list[tuple[str, Any, dict[str, Any]]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
            requests.append((self.path, self.headers, body))
            status, answer = respond(self.path, body)
            data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=[0.01], daemon=True)
    thread.start()
    try:
        yield f"openai:http://127.0.0.1:{server.server_port}/v1", requests
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
