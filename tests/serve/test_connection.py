"""Clients that stall are dropped; the limits of time are shortened here."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from nextword.serve import connection
from nextword.serve.connection import Connection

REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


async def endless(scope: Any, receive: Any, send: Any) -> None:
    """An answer without an end, as long as the client is there."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    while (await asyncio.wait_for(ended(receive), 60)) is False:
        await send({"type": "http.response.body", "body": b"x" * 65_536, "more_body": True})


async def ended(receive: Any) -> bool:
    try:
        async with asyncio.timeout(0):
            return bool((await receive())["type"] == "http.disconnect")
    except TimeoutError:
        return False


async def until_dropped(sent: bytes) -> int:
    """Connect, send, read nothing: the connections that the server holds in the end."""
    config, state = uvicorn.Config(endless, lifespan="off", ws="none"), ServerState()
    config.load()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(config, state, {}), "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname(), limit=1 << 10)
    writer.write(sent)
    async with asyncio.timeout(60):
        while not state.connections:
            await asyncio.sleep(0.001)
        while state.connections:
            await asyncio.sleep(0.001)
    assert reader is not None
    writer.close()
    server.close()
    return len(state.connections)


@pytest.mark.parametrize(
    ("limit", "sent"), [("STALLED_SECONDS", REQUEST), ("HEADER_SECONDS", REQUEST[:20]), ("HEADER_SECONDS", b"")]
)
def test_a_client_that_stalls_is_dropped(monkeypatch: pytest.MonkeyPatch, limit: str, sent: bytes) -> None:
    monkeypatch.setattr(connection, limit, 0.05)
    assert asyncio.run(until_dropped(sent)) == 0
