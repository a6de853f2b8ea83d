"""Connections: uvicorn's protocol with limits of time and size, and its errors as JSON."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from .errors import ApiError

LARGEST_HEADERS = 32 << 10  # bytes
HEADER_SECONDS = 30.0  # for the headers of a request to arrive
STALLED_SECONDS = 60.0  # after which a client that reads nothing is dropped
_SILENT = logging.Logger("nextword.serve", logging.CRITICAL + 1)


class Connection(HttpToolsProtocol):
    """A connection. A client that stalls, sending headers or reading an answer, is dropped after a while."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.logger = _SILENT  # what goes wrong is answered
        self._timer: asyncio.TimerHandle | None = None
        self._in_headers = True
        self._raw_bytes = self._header_bytes = 0  # as received, and as parsed

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._drop_after(HEADER_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        self._drop_after(None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._raw_bytes += len(data) if self._in_headers else 0
        super().data_received(data)
        if self._in_headers and self._raw_bytes > LARGEST_HEADERS:  # they have not ended yet
            self._header_bytes = self._raw_bytes
            self.send_400_response("")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._header_bytes = 0
        self._drop_after(HEADER_SECONDS)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_bytes += len(name) + len(value)
        if self._header_bytes > LARGEST_HEADERS:
            raise ValueError  # the parser stops, and asks for `send_400_response`
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_headers, self._raw_bytes = False, 0
        self._drop_after(None)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._in_headers = True

    def pause_writing(self) -> None:
        super().pause_writing()
        self._drop_after(STALLED_SECONDS)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._drop_after(None)

    def send_400_response(self, msg: str) -> None:
        """Answer a request that cannot be read, and close the connection."""
        if self.transport.is_closing():
            return
        error = ApiError(400, "the request is not valid HTTP")
        if self._header_bytes > LARGEST_HEADERS:
            error = ApiError(431, f"the headers are larger than {LARGEST_HEADERS} bytes")
        head = f"content-type: application/json\r\ncontent-length: {len(error.body)}\r\nconnection: close\r\n\r\n"
        self.transport.write(STATUS_LINE[error.status] + head.encode() + error.body)
        self.transport.close()

    def _drop_after(self, seconds: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if seconds is None else self.loop.call_later(seconds, self.transport.abort)
