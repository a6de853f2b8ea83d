"""Errors of the API in OpenAI's shape."""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import Any

import msgspec
from starlette.responses import Response

from ..base import UsageError, printable

_LONGEST = 600  # characters of a message
_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "unavailable_error",
}
_RETRY = {429: "1", 503: "1"}  # seconds


class ApiError(Exception):
    """A response with a status of 400 or more. `param` names the field; `more` are further keys of the error."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        kind: str | None = None,
        headers: dict[str, str] | None = None,
        **more: Any,
    ) -> None:
        self.status, self.message, self.param, self.more = status, _one_line(message), param, more
        self.kind = kind or _KINDS.get(status, "invalid_request_error")
        self.headers = headers or {}
        super().__init__(self.message)

    @property
    def content(self) -> dict[str, Any]:
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.status, **self.more}
        return {"error": error}

    @property
    def body(self) -> bytes:
        return msgspec.json.encode(self.content)

    @property
    def response(self) -> Response:
        headers = dict(self.headers)
        if self.status in _RETRY:
            headers["retry-after"] = _RETRY[self.status]
        if self.status == 500:
            headers["x-should-retry"] = "false"
        return Response(self.body, self.status, headers, "application/json")


def of_usage(error: UsageError, fields: tuple[str, ...] = ()) -> ApiError:
    """A setting that the engine refuses. `param` is the field the message begins with, if it is one of `fields`."""
    message = str(error)
    first = message.split(maxsplit=1)[0] if message else ""
    return ApiError(400, message, first if first in fields else None)


def of_validation(error: Exception) -> ApiError:
    """A body that msgspec refuses; its message ends with the path of the field."""
    message = str(error)
    path = re.search(r"(?:(?:required|unknown) field `|`\$\.)([A-Za-z_]\w*)", message)
    return ApiError(400, message, path[1] if path else None)


def of_status(status: int) -> ApiError:
    return ApiError(status, HTTPStatus(status).phrase)


def _one_line(message: str) -> str:
    return printable(" ".join(message.split()))[:_LONGEST]
