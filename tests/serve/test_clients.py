"""Bodies as other clients than OpenAI's and Anthropic's own send them, recorded or taken from their sources."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nextword.serve.tools import Tools, ToolText
from serving import Server

CHAT, TEXT, VECTORS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
HI = [{"role": "user", "content": "Hi"}]
TOOL = {"type": "function", "function": {"name": "light", "description": "Switches it.", "parameters": {
    "type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"]}}}  # fmt: skip
SCHEMA = {"title": "P", "type": "object", "properties": {"age": {"title": "Age", "type": "integer"}},
          "required": ["age"], "additionalProperties": False}  # fmt: skip
FORMAT = {"type": "json_schema", "json_schema": {"name": "P", "strict": True, "schema": SCHEMA}}
CALLED = [*HI, {"role": "assistant", "content": None, "refusal": None, "tool_calls": [
    {"id": "call_1", "type": "function", "function": {"name": "light", "arguments": '{"on": true}'}}]},
    {"role": "tool", "tool_call_id": "call_1", "content": "done"}]  # fmt: skip
BODIES: dict[str, tuple[str, dict[str, Any]]] = {
    "openai for JavaScript": (CHAT, {
        "model": "m", "messages": [{"role": "developer", "content": "Be brief."}, *HI], "max_completion_tokens": 2,
        "store": False, "metadata": {"a": "b"}, "user": "u", "service_tier": "auto", "reasoning_effort": "low",
        "parallel_tool_calls": False, "modalities": ["text"], "prediction": None, "verbosity": "low", "n": 2,
        "safety_identifier": "x", "prompt_cache_key": "k", "tools": [], "tool_choice": "none", "function_call": "none",
    }),
    "openai for JavaScript, stream": (CHAT, {
        "model": "m", "messages": HI, "max_tokens": 2, "stream": True,
        "stream_options": {"include_usage": True, "include_obfuscation": False}}),
    "LangChain": (CHAT, {"model": "m", "stream": False, "messages": HI, "max_completion_tokens": 2, "n": 2, "seed": 1,
                         "stop": ["x"], "top_p": 0.9, "frequency_penalty": 0.1, "logprobs": True, "top_logprobs": 2}),
    "LangChain, schema": (CHAT, {"model": "m", "messages": HI, "max_completion_tokens": 9, "response_format": FORMAT}),
    "LangChain, text": (TEXT, {"model": "m", "prompt": ["a", "b"], "best_of": 2, "frequency_penalty": 0, "n": 2,
                               "logprobs": None, "max_tokens": 2, "presence_penalty": 0, "seed": None, "top_p": 1}),
    "LangChain, token ids": (VECTORS, {"model": "m", "input": [[72, 105], [33]], "encoding_format": "base64"}),
    "LiteLLM": (CHAT, {"model": "m", "messages": HI, "temperature": 0, "max_tokens": 2, "reasoning_effort": "low"}),
    "LiteLLM, embeddings": (VECTORS, {"model": "m", "input": ["a", "b"], "encoding_format": None}),
    "llm": (CHAT, {"model": "m", "stream": True, "messages": HI, "max_tokens": 2, "logit_bias": {"5": 1},
                   "response_format": {"type": "json_object"}, "stream_options": {"include_usage": True}}),
    "Open WebUI": (CHAT, {"stream": True, "model": "m", "messages": HI, "max_tokens": 2, "reasoning": {"effort": "low"},
                          "user": {"name": "a", "id": "b", "email": "c", "role": "user"}, "logit_bias": {"5": -1},
                          "stream_options": {"include_usage": True}, "stop": [], "num_ctx": 2048, "keep_alive": "5m"}),
    "aider": (CHAT, {"model": "m", "stream": True, "temperature": 0, "max_tokens": 2, "messages": [
        {"role": "system", "content": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}]}, *HI]}),
}  # fmt: skip
TOOLS = {
    "openai for JavaScript": {"tools": [TOOL], "tool_choice": "auto", "parallel_tool_calls": False},
    "LangChain": {"tools": [TOOL], "messages": CALLED},
    "aider": {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "light"}}, "stream": True},
}


@pytest.mark.parametrize("client", BODIES)
def test_what_clients_send_is_answered(tiny: Server, client: str) -> None:
    path, body = BODIES[client]
    answer = tiny.post(path, body)
    assert answer.status == 200, answer.data
    assert answer.events[-1] == "[DONE]" if body.get("stream") else answer.json["usage"]["total_tokens"]


@pytest.mark.parametrize("client", TOOLS)
def test_tools_as_clients_send_them(calling: Server, client: str) -> None:
    answer = calling.post(CHAT, {"model": "m", "messages": HI, "max_tokens": 5, **TOOLS[client]})
    assert answer.status == 200, answer.data


def test_templates_get_system_for_developer_and_arguments_as_objects(calling: Server) -> None:
    rendered = calling.post("/apply-template", {"messages": [{"role": "developer", "content": "Be brief."}, *CALLED]})
    assert rendered.json["prompt"] == (
        'system: Be brief.\nuser: Hi\nassistant: \n<tool_call>{"name": "light", "arguments": {"on": true}}</tool_call>'
        "tool: done\n"
    )
    broken = [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{" * 9}}]}]
    assert '"{{{{{{{{{"' in calling.post("/apply-template", {"messages": broken}).json["prompt"]


def test_calls_are_told_from_text_however_it_is_cut() -> None:
    call = '<tool_call>\n{"name": "light", "arguments": {"on": true}}\n</tool_call>'
    text = f"So be it.{call}{call}"
    for size in range(1, len(text)):
        parser, said, calls = ToolText(Tools([TOOL])), "", []
        for start in range(0, len(text), size):
            part, new = parser.push(text[start : start + size], start + size >= len(text))
            said, calls = said + part, calls + new
        assert said == "So be it."
        assert [json.loads(each["function"]["arguments"]) for each in calls] == [{"on": True}] * 2


NO_CALLS = ["[]", "{", '{"name": ["light"]}', '{"name": "lamp", "arguments": {}}',
            '{"name": "light", "arguments": "on"}', '{"name": "light", "arguments": [1]}']  # fmt: skip


@pytest.mark.parametrize("content", NO_CALLS)
def test_what_is_no_call_stays_text(content: str) -> None:
    text = f"<tool_call>{content}</tool_call>"
    assert ToolText(Tools([TOOL])).push(text, True) == (text, [])
