"""A Hugging Face hub on 127.0.0.1 with one repository, which breaks off and refuses on request."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

COMMIT = "a" * 40


@dataclass
class FakeHub:
    """What the repository owner/name holds, how the hub misbehaves, and which files it was asked for."""

    files: dict[str, bytes]
    refusal: str = ""  # the hub's X-Error-Code for every request
    cut_after: list[int] = field(default_factory=list)  # bytes of each file sent before the line breaks
    requested: list[tuple[str, str | None]] = field(default_factory=list)  # files with their Range headers


@contextmanager
def serve(hub: FakeHub) -> Iterator[str]:
    """Yields the address for HF_ENDPOINT."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *arguments: object) -> None:
            return

        def do_GET(self) -> None:
            _answer(self, hub)

        do_HEAD = do_GET

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _answer(handler: BaseHTTPRequestHandler, hub: FakeHub) -> None:
    path = urlsplit(handler.path).path
    file = path.removeprefix(f"/owner/name/resolve/{COMMIT}/")
    if hub.refusal:
        _send(handler, b"", 401 if hub.refusal == "GatedRepo" else 404, {"X-Error-Code": hub.refusal})
    elif path == "/api/models/owner/name/revision/main":
        _send_json(
            handler, {"id": "owner/name", "sha": COMMIT, "siblings": [{"rfilename": name} for name in hub.files]}
        )
    elif path == f"/api/models/owner/name/tree/{COMMIT}":
        files = [
            {"type": "file", "path": name, "size": len(data), "oid": _etag(data)} for name, data in hub.files.items()
        ]
        _send_json(handler, files)
    elif file in hub.files:
        _send_file(handler, hub, file)
    else:
        _send(handler, b"", 404, {"X-Error-Code": "RepoNotFound"})


def _etag(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


def _send_json(handler: BaseHTTPRequestHandler, value: object) -> None:
    _send(handler, json.dumps(value).encode(), 200, {"Content-Type": "application/json"})


def _send_file(handler: BaseHTTPRequestHandler, hub: FakeHub, name: str) -> None:
    data, wanted = hub.files[name], handler.headers.get("Range")
    headers = {"ETag": f'"{_etag(data)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
    start = int(wanted.removeprefix("bytes=").partition("-")[0]) if wanted else 0
    if wanted:
        headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
    limit = None
    if handler.command == "GET":
        hub.requested.append((name, wanted))
        limit = hub.cut_after.pop(0) if hub.cut_after else None
    _send(handler, data[start:], 206 if wanted else 200, headers, limit)


def _send(
    handler: BaseHTTPRequestHandler, body: bytes, status: int, headers: dict[str, str], limit: int | None = None
) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    if handler.command == "GET":
        handler.wfile.write(body[:limit])
    handler.close_connection = limit is not None
