"""The endpoints beside completions and chat, several models, recurrent models, and what /openapi.json says."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import schemathesis
from hypothesis import given
from hypothesis import strategies as st

import nextword
from nextword.cli import main
from nextword.engine import ScoreRequest
from nextword.evals import openai_client
from nextword.serve.bodies import DEEPEST, decode
from nextword.serve.errors import ApiError
from serving import Server


def test_llama_cpp_s_completion_tells_how_it_ended(smollm2: Server) -> None:
    asked = {"prompt": "The capital of France is", "temperature": 0, "n_predict": 8, "return_tokens": True}
    answer = smollm2.post("/completion", asked).json
    [choice] = smollm2.complete(asked["prompt"], temperature=0, max_tokens=8)["choices"]
    assert (answer["content"], answer["stop_type"], answer["tokens_predicted"]) == (choice["text"], "limit", 8)
    assert smollm2.post("/detokenize", {"tokens": answer["tokens"]}).json["content"] == answer["content"]
    stopped = smollm2.post("/completions", asked | {"stop": ["xyz", choice["text"][6:9]]}).json
    assert (stopped["stop_type"], stopped["stopping_word"]) == ("word", choice["text"][6:9])
    assert stopped["content"] == choice["text"][: choice["text"].index(choice["text"][6:9])]
    several = smollm2.post("/completion", asked | {"prompt": ["a", [1, "b"]]}).json
    assert [one["index"] for one in several] == [0, 1]
    *parts, end = map(lambda event: json.loads(event), smollm2.post("/completion", asked | {"stream": True}).events)  # noqa: C417
    assert "".join(part["content"] for part in parts) == answer["content"]
    assert (end["stop"], end["stop_type"], {part["stop"] for part in parts}) == (True, "limit", {False})


def test_probabilities_before_and_after_sampling(smollm2: Server) -> None:
    asked = {"prompt": "The capital of France is", "n_predict": 1, "n_probs": 5, "temperature": 0.5, "top_k": 2}
    [own] = smollm2.post("/completion", asked).json["completion_probabilities"]
    [drawn] = smollm2.post("/completion", asked | {"post_sampling_probs": True}).json["completion_probabilities"]
    first, second = own["top_logprobs"][:2]
    odds = np.exp((first["logprob"] - second["logprob"]) / 0.5)
    assert [item["id"] for item in drawn["top_probs"]] == [first["id"], second["id"]]
    assert drawn["top_probs"][0]["prob"] == pytest.approx(odds / (1 + odds))


def test_a_text_and_its_ids_are_one_prompt(smollm2: Server) -> None:
    ids = smollm2.post("/tokenize", {"content": "Once upon a time"}).json["tokens"]
    prompts = ["Once upon a time", ids, {"prompt_string": "Once upon a time"}, [ids[0], " upon a time"]]
    texts = {smollm2.complete(prompt, max_tokens=8, temperature=0)["choices"][0]["text"] for prompt in prompts}
    assert len(texts) == 1
    answer = smollm2.complete(["Once upon a time", ids, [*ids[:1], " upon a time"]], n=2, max_tokens=8, seed=1)
    assert [choice["index"] for choice in answer["choices"]] == list(range(6))
    assert [c["text"] for c in answer["choices"][:2]] == [c["text"] for c in answer["choices"][2:4]]
    assert answer["usage"]["prompt_tokens"] == 3 * len(ids)


def test_embeddings_are_pooled_hidden_states(smollm2: Server, smollm2_path: Path) -> None:
    model, texts = nextword.load(smollm2_path), ["The capital of France", "Paris " * 60]
    hidden = [model.engine.hidden(model.encode(text)).astype(np.float64) for text in texts]
    for pooling, expected in (("mean", [h.mean(0) for h in hidden]), ("last", [h[-1] for h in hidden])):
        asked = {"input": texts, "pooling": pooling}
        vectors = [item["embedding"] for item in smollm2.post("/v1/embeddings", asked).json["data"]]
        for vector, own in zip(vectors, expected, strict=True):
            np.testing.assert_allclose(vector, own / np.linalg.norm(own), atol=1e-6)
        coded = smollm2.post("/v1/embeddings", asked | {"encoding_format": "base64"}).json["data"][0]["embedding"]
        np.testing.assert_array_equal(np.frombuffer(base64.b64decode(coded), "<f4"), np.float32(vectors[0]))


def test_models_are_loaded_when_asked_for_and_make_room(start, tiny_model: Callable[..., Path]) -> None:
    kinds = ("transformer", "lstm", "gru")
    paths = {kind: tiny_model(kind, seed=7) for kind in kinds}
    server: Server = start(*paths.values(), "--memory", "2.5GB")
    assert [model["id"] for model in server.get("/v1/models").json["data"]] == [path.name for path in paths.values()]
    for path in (*paths.values(), *paths.values()):
        own = nextword.load(path).complete("To be", seed=3, max_tokens=20)
        answer = server.complete("To be", model=path.name, seed=3, max_tokens=20)
        text = own.text.replace("\ufffd", "")
        assert (answer["choices"][0]["text"], answer["model"]) == (text, path.name)
    assert server.complete("To be", model="another", max_tokens=1)["model"] == paths["transformer"].name
    server.until(server.is_idle)


def test_a_recurrent_model_shares_prefixes_and_has_no_template(start, tiny_model: Callable[..., Path]) -> None:
    server: Server = start(tiny_model("lstm"))
    first = server.complete("To be or not to be" * 20, max_tokens=1, temperature=0)
    again = server.complete("To be or not to be" * 20, max_tokens=1, temperature=0)
    assert again["choices"] == first["choices"]
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    refused = server.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}]})
    assert "has no chat template" in refused.error["message"]
    assert "/v1/completions" in server.curl


def test_a_required_tool_is_called(calling: Server) -> None:
    parameters = {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"],
                  "additionalProperties": False}  # fmt: skip
    tools = [{"type": "function", "function": {"name": "light", "parameters": parameters}}]
    asked = {"messages": [{"role": "user", "content": "Hi"}], "tools": tools, "tool_choice": "required", "seed": 1}
    [choice] = calling.post("/v1/chat/completions", asked).json["choices"]
    [call] = choice["message"]["tool_calls"]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("tool_calls", None)
    assert call["function"]["name"] == "light"
    assert call["function"]["arguments"] in ('{"on": true}', '{"on": false}')
    events = calling.post("/v1/chat/completions", asked | {"stream": True}).events
    deltas = [json.loads(event)["choices"][0] for event in events[:-1]]
    [streamed] = [call for delta in deltas for call in delta["delta"].get("tool_calls", [])]
    assert (streamed["function"], deltas[-1]["finish_reason"]) == (call["function"], "tool_calls")


def test_streams_state_usage_only_if_asked(tiny: Server) -> None:
    asked = {"prompt": "a", "max_tokens": 3, "stream": True, "ignore_eos": True}
    *events, done = tiny.post("/v1/completions", asked).events
    assert done == "[DONE]"
    assert not any("usage" in json.loads(event) for event in events)
    asked["stream_options"] = {"include_usage": True}
    answer = tiny.post("/v1/completions", asked)
    *events, last, done = answer.events
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert all(json.loads(event)["usage"] is None for event in events)
    assert (json.loads(last)["choices"], json.loads(last)["usage"]["total_tokens"]) == ([], 4)


def test_a_chat_of_no_tokens_counts_its_prompt(tiny: Server) -> None:
    asked = {"messages": [{"role": "user", "content": "a"}], "n": 2, "logprobs": True, "nextword": True}
    counted = tiny.post("/v1/chat/completions", asked | {"max_tokens": 1}).json["usage"]["prompt_tokens"]
    for name in ("max_tokens", "max_completion_tokens"):
        answer = tiny.post("/v1/chat/completions", asked | {name: 0}).json
        assert [(c["message"]["content"], c["finish_reason"]) for c in answer["choices"]] == [("", "length")] * 2
        assert (answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"]) == (counted, 0)
    *events, _ = tiny.post("/v1/chat/completions", asked | {"max_tokens": 0, "stream": True}).events
    assert [json.loads(e)["choices"][0]["finish_reason"] for e in events] == [None, None, "length", "length"]
    refused = tiny.post(
        "/v1/chat/completions", {"messages": [{"role": "user", "content": "a" * 5000}], "max_tokens": 0}
    )
    assert refused.error["type"] == "exceed_context_size_error"


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=12,
)
FIELDS = st.sampled_from(["prompt", "n", "stop", "logit_bias", "temperature", "seed", "messages", "stream", "tools",
                          "max_tokens", "response_format", "stream_options", "logprobs", "top_k", "echo", "input",
                          "system", "instructions", "text", "stop_sequences"])  # fmt: skip
CHAT = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1}
BASES = {
    "/v1/completions": {"prompt": "a", "max_tokens": 1},
    "/v1/chat/completions": CHAT,
    "/v1/messages": CHAT,
    "/v1/responses": {"input": "a", "max_output_tokens": 1},
    "/completion": {"prompt": "a", "n_predict": 1},
}


@given(fields=st.dictionaries(FIELDS, plain, max_size=4))
@hypothesis.settings(max_examples=60)
def test_any_field_is_taken_or_refused(tiny: Server, fields: dict[str, Any]) -> None:
    for path, base in BASES.items():
        answer = tiny.post(path, base | fields)
        assert answer.status == 200 or (answer.status == 400 and answer.error)


def test_depth_is_measured_outside_of_texts() -> None:
    assert decode(json.dumps({"a": "[" * 1000}).encode(), dict)
    assert decode(b"[" * DEEPEST + b"]" * DEEPEST, list)
    with pytest.raises(ApiError, match="nests deeper"):
        decode(b"[" * (DEEPEST + 1) + b"]" * (DEEPEST + 1), list)


def test_the_description_holds(start, tiny_path: Path) -> None:
    server: Server = start(tiny_path, "--max-tokens", "2")
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    ran: list[str] = []
    for operation in (result.ok() for result in schema.get_all_operations()):

        @hypothesis.settings(
            max_examples=5, deadline=None, derandomize=True, database=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        )  # fmt: skip
        @given(case=operation.as_strategy())
        def probe(case: Any) -> None:
            response = case.call(timeout=60)
            assert response.status_code < 500, (case.path, case.body, response.text)
            case.validate_response(response, checks=[schemathesis.checks.not_a_server_error])

        probe()
        ran.append(operation.path)
    assert {"/v1/completions", "/v1/chat/completions", "/completion", "/v1/models/{id}"} <= set(ran)


def test_chat_and_eval_talk_to_it(
    smollm2: Server, smollm2_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = []
    for where in (("-m", str(smollm2_path)), ("--url", f"{smollm2.url}/v1"), ("--url", f"{smollm2.url}/nothing#x")):
        monkeypatch.setattr("sys.stdin", io.StringIO("What is 2+2?\nWhy?\n"))
        code = main(["chat", "-t", "0", "--max-tokens", "12", *where])
        said.append((code, capsys.readouterr()))
    (_, own), (code, served), (refused, nothing) = said
    assert (code, served.out) == (0, own.out)
    assert (refused, nothing.err.count("\n")) == (1, 1)
    model, asked = nextword.load(smollm2_path), ("The capital of France is", " Paris")
    context, continuation = map(model.encode, asked)
    [[score]] = model.engine.score([ScoreRequest(tuple(context), (tuple(continuation),))])
    served_score = openai_client.Server(f"openai:{smollm2.url}").score(*asked)
    assert (served_score.logprobs, served_score.greedy) == (score.logprobs, score.ranks == (1,))
