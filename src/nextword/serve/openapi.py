"""/openapi.json: the endpoints and the bodies they take, from the types that check them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from .. import __version__

if TYPE_CHECKING:
    from .app import Endpoint

_ERRORS = {
    "400": "The body is not what the endpoint takes",
    "401": "No API key, or a wrong one",
    "403": "A foreign Host or Origin",
    "404": "Unknown path or model",
    "405": "The path takes another method",
    "408": "The body did not arrive in time",
    "413": "The body is too large",
    "415": "The body is not application/json",
    "429": "The queue is full",
    "431": "The headers are too large",
    "500": "A fault of the server",
    "503": "The server is shutting down",
}
_ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "integer"},
            },
            "required": ["message", "type", "param", "code"],
        }
    },
    "required": ["error"],
}
_TYPES = {"/metrics": ("text/plain",)}
_STREAMS = ("completions", "chat", "completion", "messages", "responses")  # endpoints that may answer with events


def describe(endpoints: Mapping[str, Endpoint]) -> dict[str, Any]:
    """The server in OpenAPI 3.1."""
    bodies = {endpoint.body for endpoint in endpoints.values() if endpoint.body is not None}
    ordered = sorted(bodies, key=str)
    references, components = msgspec.json.schema_components(ordered, ref_template="#/components/schemas/{name}")
    schema_of = dict(zip(ordered, references, strict=True))
    return {
        "openapi": "3.1.0",
        "info": {"title": "nextword", "version": __version__},
        "paths": {path: {e.method.lower(): _operation(path, e, schema_of)} for path, e in endpoints.items()},
        "components": {
            "schemas": {**components, "Error": _ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _operation(path: str, endpoint: Endpoint, schema_of: Mapping[Any, dict[str, Any]]) -> dict[str, Any]:
    answer = endpoint.function()
    kinds = _TYPES.get(path, ("application/json", *(("text/event-stream",) if answer.__name__ in _STREAMS else ())))
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    operation: dict[str, Any] = {
        "summary": (answer.__doc__ or "").partition("\n")[0],
        "responses": {
            "200": {"description": "The answer", "content": {kind: {} for kind in kinds}},
            **{status: {"description": text, "content": error} for status, text in _ERRORS.items()},
        },
    }
    if "{" in path or endpoint.query:
        name = path.partition("{")[2].rstrip("}")
        in_path = [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}}] if name else []
        in_query = [{"name": name, "in": "query", "schema": {"type": "string"}} for name in endpoint.query]
        operation["parameters"] = in_path + in_query
    if endpoint.body is not None:
        content = {"application/json": {"schema": schema_of[endpoint.body]}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation
