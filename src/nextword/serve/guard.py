"""Who may ask, and how: Host, Origin, key, type and size of a body. Checked before anything else is looked at."""

from __future__ import annotations

import hmac
import socket
from collections.abc import Mapping
from contextlib import suppress
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from .bodies import LARGEST_BODY
from .config import ServeConfig, is_loopback
from .errors import ApiError
from .pages import is_page

HEALTH = ("/health", "/v1/health")
_LOCAL = ("localhost", "127.0.0.1", "::1")


class Guard:
    """The rules of one server."""

    def __init__(self, config: ServeConfig) -> None:
        self._key = config.api_key.encode() if config.api_key is not None else None
        self._origins = config.cors_origins
        self._hosts = {*_LOCAL, config.host.lower(), *(name.lower() for name in config.allowed_hosts)}
        self._takes_addresses = not is_loopback(config.host)
        if self._takes_addresses:
            self._hosts.add(socket.gethostname().lower())

    def check(self, method: str, path: str, headers: Headers) -> Mapping[str, str]:
        """Raise ApiError for a request that may not come in; return the headers that its answer needs."""
        self._check_host(headers.get("host", ""))
        cors = self._check_origin(method, headers)
        if method == "OPTIONS" and cors and "access-control-request-method" in headers:
            return cors  # a preflight, which cannot carry a key
        if path not in HEALTH and not is_page(path):
            self._check_key(headers, cors)
        return cors

    def _check_host(self, host: str) -> None:
        """A page whose name was rebound to this machine sends its own name."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            name = ""
        if name in self._hosts:
            return
        with suppress(ValueError):
            if self._takes_addresses and ip_address(name):
                return
        raise ApiError(403, "the Host header does not name this server. Allow it with --allowed-host")

    def _check_origin(self, method: str, headers: Headers) -> Mapping[str, str]:
        origin = headers.get("origin")
        if origin is None:
            return {}
        if origin in self._origins:
            return {
                "access-control-allow-origin": origin,
                "access-control-allow-headers": headers.get(
                    "access-control-request-headers", "authorization, content-type, x-api-key"
                ),
                "access-control-allow-methods": "GET, POST, OPTIONS",
                "vary": "origin, access-control-request-headers",
            }
        own = origin.lower() in (
            f"http://{headers.get('host', '').lower()}",
            f"https://{headers.get('host', '').lower()}",
        )
        if not own and method not in ("GET", "HEAD"):
            raise ApiError(403, "this Origin may not call the server. Let it in with --cors-origin")
        return {}

    def _check_key(self, headers: Headers, cors: Mapping[str, str]) -> None:
        if self._key is None:
            return
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        if not hmac.compare_digest(given.encode("utf-8", "replace"), self._key):
            raise ApiError(401, "the API key is missing or wrong. Send it as Authorization: Bearer KEY",
                           headers={**cors, "www-authenticate": "Bearer"})  # fmt: skip


def check_body(headers: Headers) -> None:
    """Raise ApiError unless the headers promise JSON of a size that is read."""
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, "the body's Content-Type must be application/json")
    if headers.get("content-encoding", "identity").lower() not in ("", "identity"):
        raise ApiError(415, "compressed bodies are not read")
    length = headers.get("content-length", "0")
    if length.isdigit() and int(length) > LARGEST_BODY:
        raise too_large()


def too_large() -> ApiError:
    return ApiError(413, f"the body is larger than {LARGEST_BODY} bytes")
