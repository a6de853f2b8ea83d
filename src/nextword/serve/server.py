"""Running a server: its socket, the engine's thread, signals, and the way down."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence

import uvicorn

from ..base import RunError, UsageError
from ..engine import LoadConfig, Worker
from .app import App
from .call import Service
from .config import ServeConfig
from .connection import Connection
from .models import About, Models

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_BACKLOG = 512
_SEND_BUFFER = 64 << 10  # bytes that a connection holds for a client that does not read


def serve(
    names: Sequence[str],
    config: ServeConfig,
    loading: LoadConfig | None = None,
    on_ready: Callable[[str, About], None] = lambda address, about: None,
) -> None:
    """Serve models until SIGINT or SIGTERM; the first of them is loaded before a request is taken.

    `on_ready` is called with the server's address once it listens. Raises UsageError for a wrong model or setting,
    RunError if the port is taken.
    """
    with contextlib.closing(bind(config.host, config.port)) as listener:
        models = Models(names, config, loading or LoadConfig())
        service = Service(config, models)
        with Worker(on_step=service.on_step) as worker:
            models.start(worker)
            about = models.about
            run(App(service), listener, lambda address: on_ready(address, about))


def run(app: App, listener: socket.socket, on_ready: Callable[[str], None]) -> None:
    """Answer what comes to a bound socket until SIGINT or SIGTERM. `on_ready` is called with the address."""
    address = _address(app.service.config.host, listener)
    asyncio.run(_Server(app, lambda: on_ready(address)).serve([listener]))


def bind(host: str, port: int) -> socket.socket:
    """A socket for this address, which does not listen yet."""
    try:
        [(family, kind, protocol, _, address), *_] = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError as error:
        raise UsageError(f"host {host!r} is not an address of this machine ({error.strerror})") from None
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)  # accepted ones inherit it
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise RunError(
                f"port {port} of {host} is in use. Choose another: --port {port + 1}, or 0 for any"
            ) from None
        raise RunError(
            f"{host}:{port} cannot be used: {error.strerror}. Choose another with --host and --port"
        ) from None
    return listener


def _address(host: str, listener: socket.socket) -> str:
    name = f"[{host.strip('[]')}]" if ":" in host else host
    return f"http://{name}:{listener.getsockname()[1]}"


class _Server(uvicorn.Server):
    """uvicorn's server with our own way to end."""

    def __init__(self, app: App, on_ready: Callable[[], None]) -> None:
        config = uvicorn.Config(
            app, loop="asyncio", http=Connection, ws="none", lifespan="off", interface="asgi3",
            log_config=None, access_log=False, server_header=False, timeout_keep_alive=60, backlog=_BACKLOG,
        )  # fmt: skip
        super().__init__(config)
        self._service, self._on_ready = app.service, on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._service.start()
        await super().startup(sockets)
        self._on_ready()
        self._status = asyncio.create_task(self._service.status.keep())

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more requests, and let those under way finish within the time they have."""
        self._service.draining = True
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        deadline = time.monotonic() + self._service.config.shutdown_timeout
        while self.server_state.tasks and not self.force_exit and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        self._status.cancel()
        tasks = list(self.server_state.tasks)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=1) if tasks else None
        for connection in list(self.server_state.connections):
            connection.transport.abort()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The first signal ends the server in peace, the second one now."""
        loop = asyncio.get_running_loop()
        before = {number: signal.getsignal(number) for number in _SIGNALS}
        handled = [number for number in _SIGNALS if before[number] is not signal.SIG_IGN]
        for number in handled:
            loop.add_signal_handler(number, self._on_signal)
        try:
            yield
        finally:
            for number in handled:
                loop.remove_signal_handler(number)
                signal.signal(number, before[number])

    def _on_signal(self) -> None:
        self.force_exit, self.should_exit = self.should_exit, True
