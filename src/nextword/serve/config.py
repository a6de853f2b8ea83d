"""ServeConfig: the settings of a server."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

from ..base import UsageError
from ..engine.checks import whole
from ..engine.sampling_params import SamplingParams

DEFAULT_PORT = 8080


@dataclass(frozen=True)
class ServeConfig:
    """The settings of a server. Raises UsageError for an invalid one, and for an open address without a key.

    `parallel`: sequences decoded at a time. `context`: most tokens of one request, prompt and answer; None: the
    model's. `max_tokens`: most tokens one choice may ask for; None: the context. `queue`: requests that may wait.
    `seed`, `temperature`: for requests that give none. `memory`: bytes of weights and caches of all models; None: no
    limit. `runs`: the folder of training runs to show, whose models can be used. `allowed_hosts`: further names that a
    Host header may have. `cors_origins`: pages that may call the server.
    """

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    api_key: str | None = field(default=None, repr=False)
    parallel: int = 16
    context: int | None = None
    max_tokens: int | None = None
    queue: int = 64
    runs: Path = Path("runs")
    seed: int | None = None
    temperature: float = 1.0
    alias: str | None = None
    memory: float | None = None
    allowed_hosts: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    shutdown_timeout: float = 10.0
    access_log: bool = False

    def __post_init__(self) -> None:
        whole("--port", self.port, 0, 65_535)
        whole("--parallel", self.parallel, 1, 1024)
        whole("--queue", self.queue, 0, 100_000)
        for name in ("context", "max_tokens"):
            if (value := getattr(self, name)) is not None:
                whole(f"--{name.replace('_', '-')}", value, 1)
        SamplingParams(temperature=self.temperature, seed=self.seed)
        if not 0 <= self.shutdown_timeout <= 3600:
            raise UsageError(f"--shutdown-timeout is {self.shutdown_timeout}; it takes seconds, from 0 to 3600")
        if self.api_key is not None and not _printable_ascii(self.api_key):
            raise UsageError("the API key is empty or has a character that a header cannot hold. Use ASCII letters")
        if self.api_key is None and not is_loopback(self.host):
            raise UsageError(
                f"host {self.host} can be reached from other machines, which needs a key. Give one:"
                " --api-key-file FILE, or NEXTWORD_API_KEY; or keep to 127.0.0.1"
            )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`."""
    try:
        return host.lower() == "localhost" or ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _printable_ascii(key: str) -> bool:
    return bool(key) and key.isascii() and key.isprintable() and key == key.strip()
