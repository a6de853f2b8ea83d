"""Anthropic's messages and OpenAI's responses, with their own clients: the same chat as /v1/chat/completions."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from anthropic import Anthropic, APIStatusError
from openai import BadRequestError, OpenAI
from pydantic import BaseModel

from serving import Server

SYSTEM, QUESTION = "You answer in one sentence.", "What is a token?"
ASKED = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 1}
PICTURE = {"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}}


@pytest.fixture(scope="module")
def openai(smollm2: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{smollm2.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def anthropic(smollm2: Server) -> Iterator[Anthropic]:
    with Anthropic(base_url=smollm2.url, api_key="none", max_retries=0) as client:
        yield client


def chat(openai: OpenAI, turns: list[dict[str, Any]], **settings: Any) -> tuple[str, str, Any]:
    """What /v1/chat/completions says: text, end and usage."""
    answer = openai.chat.completions.create(model="x", messages=turns, **settings)
    [choice] = answer.choices
    return choice.message.content, choice.finish_reason, answer.usage


SETTINGS = [
    {"temperature": 0.0, "max_tokens": 60},
    {"temperature": 0.8, "seed": 7, "top_p": 0.9, "max_tokens": 12},
    {"temperature": 1.0, "seed": 3, "max_tokens": 0},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_messages_say_what_chat_says(anthropic: Anthropic, openai: OpenAI, settings: dict[str, Any]) -> None:
    turns = [{"role": "user", "content": [{"type": "text", "text": "Hello."}]}, {"role": "assistant", "content": "Hi!"},
             {"role": "user", "content": QUESTION}]  # fmt: skip
    text, end, usage = chat(openai, [{"role": "system", "content": SYSTEM}, *turns], **settings)
    settings = dict(settings)
    asked = {"model": "x", "messages": turns, "max_tokens": settings.pop("max_tokens"), "extra_body": settings}
    for system in (SYSTEM, [{"type": "text", "text": SYSTEM, "cache_control": {"type": "ephemeral"}}]):
        answer = anthropic.messages.create(**asked, system=system)
        assert [(block.type, block.text) for block in answer.content] == [("text", text)]
        assert answer.stop_reason == {"stop": "end_turn", "length": "max_tokens"}[end]
        assert (answer.type, answer.role, answer.model, answer.stop_sequence) == (
            "message",
            "assistant",
            "smollm2",
            None,
        )
        read = answer.usage.input_tokens + answer.usage.cache_read_input_tokens
        assert (read, answer.usage.output_tokens) == (usage.prompt_tokens, usage.completion_tokens)
    with anthropic.messages.stream(**asked, system=SYSTEM) as stream:
        parts = list(stream.text_stream)
        final = stream.get_final_message()
    assert "".join(parts) == text == final.content[0].text
    assert len(parts) > 3 or len(text) < 12
    assert final.stop_reason == answer.stop_reason
    assert final.usage.input_tokens + final.usage.cache_read_input_tokens == usage.prompt_tokens
    assert final.usage.output_tokens == usage.completion_tokens


def test_a_stop_sequence_is_named_and_not_in_the_text(anthropic: Anthropic, openai: OpenAI) -> None:
    text, _, _ = chat(openai, ASKED["messages"], temperature=0, max_tokens=30)
    stop = text[10:16]
    asked = {**ASKED, "model": "x", "max_tokens": 30, "stop_sequences": ["\u2603", stop]}
    asked["extra_body"] = {"temperature": 0}
    answer = anthropic.messages.create(**asked)
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", stop)
    assert answer.content[0].text == text[: text.index(stop)]
    events = list(anthropic.messages.create(**asked, stream=True))
    kinds = [event.type for event in events if event.type != "content_block_delta"]
    assert kinds == ["message_start", "content_block_start", "content_block_stop", "message_delta", "message_stop"]
    assert (events[-2].delta.stop_reason, events[-2].delta.stop_sequence) == ("stop_sequence", stop)
    assert (
        "".join(event.delta.text for event in events if event.type == "content_block_delta") == answer.content[0].text
    )


REFUSED_MESSAGES = {
    "tools": [{"name": "f", "input_schema": {"type": "object"}}],
    "thinking": {"type": "enabled", "budget_tokens": 1024},
    "messages": [{"role": "user", "content": [PICTURE]}], "system": [PICTURE], "max_tokens": 10**6, "top_p": 2,
    "temperature": -1, "stop_sequences": "a", "output_config": {"effort": "low"}, "top_k": -1,
}  # fmt: skip


@pytest.mark.parametrize("field", REFUSED_MESSAGES)
def test_what_messages_do_not_take_is_refused(anthropic: Anthropic, field: str) -> None:
    with pytest.raises(APIStatusError) as refused:
        anthropic.messages.create(model="x", **ASKED, extra_body={field: REFUSED_MESSAGES[field]})
    error = refused.value.body["error"]
    assert (refused.value.status_code, refused.value.body["type"]) == (400, "error")
    assert (error["type"], error["param"]) == ("invalid_request_error", field)


def test_other_refusals_have_anthropic_s_shape(start: Callable[..., Server], tiny_path: Any) -> None:
    server = start(tiny_path, NEXTWORD_API_KEY="secret")
    ask = {"messages": [{"role": "user", "content": "a" * 5000}], "max_tokens": 1}
    prefill = {**ASKED, "messages": [*ASKED["messages"], {"role": "assistant", "content": "A"}]}
    key = {"X-Api-Key": "secret"}
    for status, kind, answer in (
        (401, "authentication_error", server.post("/v1/messages", ASKED)),
        (400, "invalid_request_error", server.post("/v1/messages", ask, headers=key)),
        (400, "invalid_request_error", server.post("/v1/messages", prefill, headers=key)),
        (413, "request_too_large", server.post("/v1/messages", raw=b" " * (9 << 20), headers=key)),
        (405, "invalid_request_error", server.get("/v1/messages", headers=key)),
    ):
        assert (answer.status, answer.json["type"], answer.json["error"]["type"]) == (status, "error", kind)
    assert server.post("/v1/messages", ASKED, headers=key).status == 200


@pytest.mark.parametrize("settings", SETTINGS)
def test_responses_say_what_chat_says(openai: OpenAI, settings: dict[str, Any]) -> None:
    settings = dict(settings)
    turns = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hi!"}]
    text, end, usage = chat(
        openai, [{"role": "system", "content": SYSTEM}, *turns, {"role": "user", "content": QUESTION}], **settings
    )
    seed = settings.pop("seed", None)
    asked = {"model": "x", "instructions": SYSTEM, "max_output_tokens": settings.pop("max_tokens"),
             "input": [turns[0], {**turns[1], "content": [{"type": "output_text", "text": "Hi!"}]},
                       {"role": "user", "content": [{"type": "input_text", "text": QUESTION}]}],
             "extra_body": {"seed": seed}, **settings}  # fmt: skip
    answer = openai.responses.create(**asked)
    assert (answer.output_text, answer.object, answer.model) == (text, "response", "smollm2")
    assert answer.status == {"stop": "completed", "length": "incomplete"}[end]
    assert (answer.incomplete_details is None) == (end == "stop")
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (usage.prompt_tokens, usage.completion_tokens)
    events = list(openai.responses.create(**asked, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type.removeprefix("response.") for event in events if not event.type.endswith(".delta")]
    assert kinds == ["created", "in_progress", "output_item.added", "content_part.added", "output_text.done",
                     "content_part.done", "output_item.done", answer.status]  # fmt: skip
    assert "".join(event.delta for event in events if event.type.endswith(".delta")) == text
    last = events[-1].response
    assert (last.output_text, last.id, last.usage.total_tokens) == (text, events[0].response.id, usage.total_tokens)
    with openai.responses.stream(**asked) as stream:
        for _ in stream:
            pass
        if end == "stop":
            assert stream.get_final_response().output_text == text


def test_a_response_to_a_text_is_that_to_a_user(openai: OpenAI) -> None:
    text, _, _ = chat(openai, [{"role": "system", "content": SYSTEM}, *ASKED["messages"]], temperature=0, max_tokens=9)
    asked = {"model": "x", "temperature": 0, "max_output_tokens": 9}
    assert openai.responses.create(input=QUESTION, instructions=SYSTEM, **asked).output_text == text
    developer = [{"role": "developer", "content": SYSTEM}, {"type": "message", "role": "user", "content": QUESTION}]
    assert openai.responses.create(input=developer, **asked).output_text == text


class Person(BaseModel):
    age: int


def test_a_response_obeys_its_schema(openai: OpenAI) -> None:
    answer = openai.responses.parse(model="x", input="How old is Ann?", text_format=Person, temperature=0)
    assert isinstance(answer.output_parsed, Person)


REFUSED_RESPONSES = {
    "previous_response_id": "resp-1", "tools": [{"type": "web_search"}], "conversation": "conv-1", "background": True,
    "max_output_tokens": 10**6, "tool_choice": "required", "input": [{"type": "reasoning", "summary": []}],
    "temperature": -1, "text": {"format": {"type": "json_schema", "name": "x"}}, "top_logprobs": 3,
    "prompt": {"id": "pmpt_1"},
}  # fmt: skip


@pytest.mark.parametrize("field", REFUSED_RESPONSES)
def test_what_responses_do_not_take_is_refused(openai: OpenAI, field: str) -> None:
    with pytest.raises(BadRequestError) as refused:
        openai.responses.create(model="x", input="a", extra_body={field: REFUSED_RESPONSES[field]})
    assert refused.value.body["param"] == field
    assert field in refused.value.body["message"]


def test_a_picture_in_the_input_is_refused(tiny: Server) -> None:
    body = {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "https://example.com/a.png"}]}]}
    error = tiny.post("/v1/responses", body).error
    assert (error["param"], "text only" in error["message"]) == ("input", True)


LIGHT = {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"], "additionalProperties": False}
TOOL = {"name": "light", "description": "Switches it.", "input_schema": LIGHT}
FUNCTION = {"type": "function", "name": "light", "description": "Switches it.", "parameters": LIGHT, "strict": True}


def test_messages_call_tools(calling: Server) -> None:
    asked = {"model": "x", "max_tokens": 200, "messages": ASKED["messages"], "tools": [TOOL], "extra_body": {"seed": 1}}
    with Anthropic(base_url=calling.url, api_key="none", max_retries=0) as client:
        answer = client.messages.create(**asked, tool_choice={"type": "any"})
        [block] = answer.content
        assert (answer.stop_reason, block.type, block.name) == ("tool_use", "tool_use", "light")
        with client.messages.stream(**asked, tool_choice={"type": "tool", "name": "light"}) as stream:
            kinds = [event.type for event in stream if event.type.startswith("content")]
            [streamed] = stream.get_final_message().content
        assert kinds == ["content_block_start", "content_block_delta", "content_block_stop"]
        assert (streamed.input, streamed.name) == (block.input, "light")
        result = {"type": "tool_result", "tool_use_id": block.id, "content": [{"type": "text", "text": "done"}]}
        turns = [*ASKED["messages"], {"role": "assistant", "content": [{"type": "text", "text": "So."}, block]},
                 {"role": "user", "content": [result, {"type": "text", "text": "And?"}]}]  # fmt: skip
        said = client.messages.create(**{**asked, "messages": turns, "max_tokens": 5})
        counted = client.messages.count_tokens(model="x", messages=turns, tools=[TOOL])
    assert counted.input_tokens == said.usage.input_tokens + said.usage.cache_read_input_tokens
    call = {"id": block.id, "type": "function", "function": {"name": "light", "arguments": json.dumps(block.input)}}
    results = [{"role": "tool", "content": "done", "tool_call_id": block.id}, {"role": "user", "content": "And?"}]
    same = [*ASKED["messages"], {"role": "assistant", "content": "So.", "tool_calls": [call]}, *results]
    function = {"name": "light", "description": "Switches it.", "parameters": LIGHT}
    chat = {"messages": same, "tools": [{"type": "function", "function": function}], "max_tokens": 5, "seed": 1}
    [choice] = calling.post("/v1/chat/completions", chat).json["choices"]
    assert said.content[0].text == choice["message"]["content"]


def test_responses_call_functions(calling: Server) -> None:
    asked = {"model": "x", "input": QUESTION, "tools": [FUNCTION], "extra_body": {"seed": 1}}
    with OpenAI(base_url=f"{calling.url}/v1", api_key="none", max_retries=0) as client:
        answer = client.responses.create(**asked, tool_choice="required")
        [call] = answer.output
        assert (answer.status, call.type, call.name) == ("completed", "function_call", "light")
        with client.responses.stream(**asked, tool_choice={"type": "function", "name": "light"}) as stream:
            kinds = [event.type.removeprefix("response.") for event in stream]
            [streamed] = stream.get_final_response().output
        assert kinds == ["created", "in_progress", "output_item.added", "function_call_arguments.delta",
                         "function_call_arguments.done", "output_item.done", "completed"]  # fmt: skip
        assert (streamed.arguments, streamed.status) == (call.arguments, "completed")
        output = {"type": "function_call_output", "call_id": call.call_id, "output": "done"}
        turns = [{"role": "user", "content": QUESTION}, *[item.to_dict() for item in answer.output], output]
        said = client.responses.create(**{**asked, "input": turns}, max_output_tokens=5)
    calls = [{"id": call.call_id, "type": "function", "function": {"name": "light", "arguments": call.arguments}}]
    same = [turns[0], {"role": "assistant", "content": None, "tool_calls": calls},
            {"role": "tool", "content": "done", "tool_call_id": call.call_id}]  # fmt: skip
    function = {name: FUNCTION[name] for name in ("name", "description", "parameters")}
    chat = {"messages": same, "tools": [{"type": "function", "function": function}], "max_tokens": 5, "seed": 1}
    [choice] = calling.post("/v1/chat/completions", chat).json["choices"]
    assert said.output_text == choice["message"]["content"]


def test_a_malformed_call_in_the_conversation_is_refused(calling: Server) -> None:
    for block in ({"type": "tool_use"}, {"type": "tool_result", "tool_use_id": 1},
                  {"type": "tool_result", "tool_use_id": "1", "content": {"a": 1}}):  # fmt: skip
        refused = calling.post("/v1/messages", {"max_tokens": 1, "messages": [{"role": "user", "content": [block]}]})
        assert (refused.status, refused.error["param"]) == (400, "messages")


def test_every_event_has_its_name(tiny: Server) -> None:
    for path, limit in (("/v1/messages", "max_tokens"), ("/v1/responses", "max_output_tokens")):
        body = {limit: 3, "stream": True, **({"input": "a"} if path.endswith("responses") else ASKED | {limit: 3})}
        data = tiny.post(path, body).data.decode()
        for event in data.strip().split("\n\n"):
            name, content = event.split("\n")
            assert name == "event: " + json.loads(content.removeprefix("data: "))["type"]
        assert "[DONE]" not in data
