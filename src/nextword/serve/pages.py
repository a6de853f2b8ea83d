"""The playground's files: read from the package, and sent with headers that let them load nothing from elsewhere."""

from __future__ import annotations

import gzip
import hashlib
import mimetypes
from collections.abc import Callable, Iterator
from importlib.resources import files
from importlib.resources.abc import Traversable

import msgspec
from starlette.datastructures import Headers
from starlette.responses import Response

from ..base import installed
from ..plots import EMBED, chart_bundle
from ..plots.theme import css, vega_config

_TYPES = {
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:;"
    " font-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",  # asked again each time, with the ETag
    "vary": "accept-encoding",
}


def is_page(path: str) -> bool:
    """Whether `path` belongs to the playground, whose files hold no secret."""
    return path == "/" or path.startswith("/web/")


class Pages:
    """The playground's files by path. Which there are is settled at the start: no path of a request is ever opened."""

    def __init__(self) -> None:
        root = files("nextword.serve") / "web"
        self._sources: dict[str, Callable[[], bytes]] = {f"/web/{name}": file.read_bytes for name, file in _walk(root)}
        self._sources["/"] = self._sources.pop("/web/index.html")
        self._sources["/web/theme.css"] = lambda: css().encode()
        self._sources["/web/vega.js"] = _charts
        self._ready: dict[str, _Page] = {}

    def answer(self, path: str, headers: Headers) -> Response | None:
        """The file at `path`, 304 if the client has it; None if there is none. It is read and compressed once."""
        if path not in self._sources:
            return None
        if path not in self._ready:
            name = "index.html" if path == "/" else path
            self._ready[path] = _Page(name, self._sources[path]())
        return self._ready[path].answer(headers)


def _charts() -> bytes:
    """The script that draws charts, and how; without vl-convert it says that there is none."""
    if not installed("vl_convert"):
        return b"globalThis.nextwordCharts = null;\n"
    how = msgspec.json.encode({"config": vega_config("page"), "embed": EMBED}).decode()
    return f"{chart_bundle()}\nglobalThis.nextwordCharts = {how};\n".encode()


def _walk(folder: Traversable, prefix: str = "") -> Iterator[tuple[str, Traversable]]:
    for item in folder.iterdir():
        if item.is_dir():
            yield from _walk(item, f"{prefix}{item.name}/")
        else:
            yield prefix + item.name, item


class _Page:
    """One file, as it is sent: plain and compressed."""

    def __init__(self, name: str, data: bytes) -> None:
        suffix = name[name.rindex(".") :]
        kind = _TYPES.get(suffix) or mimetypes.guess_type(name)[0] or "application/octet-stream"
        self._plain, self._packed = data, gzip.compress(data, mtime=0)
        self._headers = {**_HEADERS, "content-type": kind, "etag": f'W/"{hashlib.sha256(data).hexdigest()[:20]}"'}

    def answer(self, headers: Headers) -> Response:
        if self._headers["etag"] in headers.get("if-none-match", ""):
            return Response(status_code=304, headers=self._headers)
        if "gzip" in headers.get("accept-encoding", ""):
            return Response(self._packed, headers={**self._headers, "content-encoding": "gzip"})
        return Response(self._plain, headers=self._headers)
