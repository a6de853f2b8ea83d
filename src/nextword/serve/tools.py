"""Tools in chat, for models whose template writes calls as <tool_call>{"name": ..., "arguments": ...}</tool_call>."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..base import UsageError
from ..engine import Structure
from ..engine.structure import schema_text
from .bodies import ChatBody, decode
from .errors import ApiError
from .requests import fresh_id

if TYPE_CHECKING:
    from .models import Model

BEGIN, END = "<tool_call>", "</tool_call>"
_CHOICE = "tool_choice takes none, auto, required, or {type: function, function: {name}} with the name of a function"


@dataclass(frozen=True)
class Tools:
    """The tools of a request. `forced`: names of which one must be called; None: the model chooses."""

    shown: list[dict[str, Any]]
    forced: tuple[str, ...] | None = None

    @classmethod
    def of(cls, model: Model, body: ChatBody) -> Tools | None:
        """The tools of a body; None if there are none to call. Raises ApiError."""
        choice = body.tool_choice
        if isinstance(choice, str) and choice not in ("none", "auto", "required"):
            raise ApiError(400, _CHOICE, "tool_choice")
        if not body.tools:
            if choice not in (None, "none", "auto"):
                raise ApiError(400, "tool_choice asks for a tool, but tools is empty", "tool_choice")
            return None
        functions = {_function(tool)["name"]: tool for tool in body.tools}
        if choice == "none":
            return None
        template = model.tokenizer.chat_template or ""
        if "tools" not in template or BEGIN not in template:
            raise ApiError(400, f"tools are not supported by the chat template of {model.id}", "tools")
        forced = tuple(functions) if choice == "required" else None
        if isinstance(choice, dict):
            named = choice.get("function")
            name = named.get("name") if isinstance(named, dict) else None
            if name not in functions:
                raise ApiError(400, f"{_CHOICE} among the tools", "tool_choice")
            forced = (name,)
        return cls(body.tools, forced)

    @property
    def structure(self) -> Structure | None:
        """One call of a forced tool, and nothing else."""
        if self.forced is None:
            return None
        calls = [
            {
                "type": "object",
                "properties": {"name": {"const": name}, "arguments": _function(tool).get("parameters") or {}},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
            for tool in self.shown
            if (name := _function(tool)["name"]) in self.forced
        ]
        try:
            schema = schema_text({"anyOf": calls})
            return Structure(grammar=f'start: "{BEGIN}\\n" call "\\n{END}"\ncall: %json {schema}')
        except UsageError as error:
            raise ApiError(400, f"tools: {error}", "tools") from None


def _function(tool: dict[str, Any]) -> dict[str, Any]:
    function = tool.get("function")
    if tool.get("type", "function") != "function" or not isinstance(function, dict):
        raise ApiError(400, "a tool takes type: function and function: {name, parameters}", "tools")
    if not isinstance(function.get("name"), str) or not function["name"]:
        raise ApiError(400, "a tool's function has no name", "tools")
    parameters = function.get("parameters")
    if parameters is not None and not isinstance(parameters, dict):
        raise ApiError(400, f"the parameters of the tool {function['name']} are not an object", "tools")
    return function


def call_of(id: str, name: str, arguments: Any) -> dict[str, Any]:
    """A call of a tool in chat's form."""
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


class ToolText:
    """Separates what a model says from the tools it calls. A call that is not one of a tool, in JSON, stays text."""

    def __init__(self, tools: Tools) -> None:
        self._names = [_function(tool)["name"] for tool in tools.shown]
        self._held = ""
        self._count = 0

    @property
    def called(self) -> bool:
        return self._count > 0

    def push(self, text: str, last: bool) -> tuple[str, list[dict[str, Any]]]:
        """The text to show, and the calls completed by `text`."""
        self._held += text
        said, calls = "", []
        while (start := self._held.find(BEGIN)) >= 0 and (end := self._held.find(END, start)) >= 0:
            call = self._call(self._held[start + len(BEGIN) : end])
            said += self._held[:start] if call else self._held[: end + len(END)]
            calls += [call] if call else []
            self._held = self._held[end + len(END) :]
        keep = 0 if last else self._kept()
        ready = len(self._held) - keep
        said, self._held = said + self._held[:ready], self._held[ready:]
        return (said if said.strip() or not self.called else ""), calls

    def _kept(self) -> int:
        """How many characters at the end may belong to a call."""
        if (start := self._held.find(BEGIN)) >= 0:
            return len(self._held) - start
        return next((size for size in range(len(BEGIN) - 1, 0, -1) if self._held.endswith(BEGIN[:size])), 0)

    def _call(self, text: str) -> dict[str, Any] | None:
        try:
            content = decode(text.encode(), dict[str, Any])
            arguments = content.get("arguments", {})
            arguments = decode(arguments.encode(), dict) if isinstance(arguments, str) else arguments
        except ApiError:
            return None
        if content.get("name") not in self._names or not isinstance(arguments, dict):
            return None
        self._count += 1
        written = json.dumps(arguments, ensure_ascii=False)
        return {"index": self._count - 1, **call_of(fresh_id("call"), content["name"], written)}
