"""The bodies of requests: their fields, types and ranges, which /openapi.json repeats."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import numpy as np
from msgspec import Meta, Struct

from ..plan.activations import Kernel
from ..plan.compute import Recompute
from ..plan.states import Optimizer, Precision, Shard
from ..spec import ModelKind
from .errors import ApiError, of_validation

MOST_PROMPTS = 64
MOST_CHOICES = 8
MOST_LOGPROBS = 20
LARGEST_BODY = 8 << 20  # bytes
DEEPEST = 64  # levels of arrays and objects
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)', re.DOTALL)  # also one that does not end, so that it is linear
_STEP = np.zeros(256, np.int8)
_STEP[list(b"[{")], _STEP[list(b"]}")] = 1, -1

Body = TypeVar("Body")

Share = Annotated[float, Meta(ge=0, le=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Seed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Count = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Choices = Annotated[int, Meta(ge=1, le=MOST_CHOICES)]
Logprobs = Annotated[int, Meta(ge=0, le=MOST_LOGPROBS)]
StopText = Annotated[str, Meta(min_length=1, max_length=1000)]
Stop = StopText | Annotated[list[StopText], Meta(max_length=16)]


class PromptString(Struct):
    """llama.cpp's way to write a text."""

    prompt_string: str


Piece = TokenId | str
Prompt = (
    str
    | PromptString
    | Annotated[list[TokenId | str | PromptString | Annotated[list[Piece], Meta(min_length=1)]], Meta(min_length=1)]
)


class StreamOptions(Struct):
    include_usage: bool | None = None


class Sampling(Struct, kw_only=True):
    """How tokens are chosen. Without any field they are drawn from the model's exact distribution."""

    temperature: Annotated[float, Meta(ge=0)] | None = None
    top_p: Share | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    min_p: Share | None = None
    typical_p: Share | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=1e6)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    seed: Seed | None = None
    ignore_eos: bool | None = None
    stream: bool | None = None
    stop: Stop | None = None
    model: str | None = None


class OpenAI(Sampling, kw_only=True):
    """The fields that OpenAI's two kinds of completions share. `nextword` asks for our extension of the answer."""

    max_tokens: Count | None = None
    n: Choices | None = None
    logit_bias: dict[TokenId, Annotated[float, Meta(ge=-100, le=100)]] | None = None
    stream_options: StreamOptions | None = None
    user: str | dict[str, Any] | None = None
    nextword: bool | None = None


class CompletionBody(OpenAI, kw_only=True):
    """POST /v1/completions."""

    prompt: Prompt
    logprobs: Logprobs | None = None
    echo: bool | None = None
    suffix: str | None = None
    best_of: Choices | None = None


class Message(Struct, kw_only=True):
    role: Annotated[str, Meta(min_length=1, max_length=64)]
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None


class ResponseFormat(Struct, kw_only=True):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: dict[str, Any] | None = None


class ChatBody(OpenAI, kw_only=True):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Logprobs | None = None
    response_format: ResponseFormat | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    functions: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class TextBlock(Struct, kw_only=True):
    type: Literal["text"]
    text: str


class Turn(Struct, kw_only=True):
    role: Literal["user", "assistant"]
    content: str | list[dict[str, Any]]


class ToolUse(Struct, kw_only=True):
    """A block of the assistant's: the call of a tool."""

    id: str
    name: str
    input: dict[str, Any]


class ToolResult(Struct, kw_only=True):
    """A block of the user's: what a tool answered."""

    tool_use_id: str
    content: str | list[dict[str, Any]] | None = None


class MessagesTool(Struct, kw_only=True):
    name: Annotated[str, Meta(min_length=1)]
    type: Literal["custom"] | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None


class MessagesToolChoice(Struct, kw_only=True):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None


class CountTokensBody(Struct, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/messages/count_tokens."""

    messages: Annotated[list[Turn], Meta(min_length=1)]
    system: str | list[TextBlock] | None = None
    tools: list[MessagesTool] | None = None
    tool_choice: MessagesToolChoice | None = None
    thinking: dict[str, Any] | None = None
    cache_control: dict[str, Any] | None = None
    model: str | None = None


class MessagesBody(CountTokensBody, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/messages: the part of Anthropic's that is about text and tools. `seed` is ours."""

    max_tokens: Count
    temperature: Annotated[float, Meta(ge=0)] | None = None
    top_p: Share | None = None
    top_k: Count | None = None
    stop_sequences: Annotated[list[StopText], Meta(max_length=16)] | None = None
    seed: Seed | None = None
    stream: bool | None = None
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None


class InputItem(Struct, kw_only=True):
    type: str = "message"
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: str | list[dict[str, Any]] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[dict[str, Any]] | None = None


class TextFormat(Struct, kw_only=True, omit_defaults=True):
    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class TextOptions(Struct, kw_only=True):
    format: TextFormat | None = None


class ResponsesBody(Struct, kw_only=True):
    """POST /v1/responses: the part of OpenAI's that is about text and functions. `seed` is ours."""

    input: str | Annotated[list[InputItem], Meta(min_length=1)]
    instructions: str | None = None
    max_output_tokens: Count | None = None
    temperature: Annotated[float, Meta(ge=0)] | None = None
    top_p: Share | None = None
    text: TextOptions | None = None
    seed: Seed | None = None
    stream: bool | None = None
    model: str | None = None
    metadata: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    previous_response_id: str | None = None
    conversation: str | dict[str, Any] | None = None
    prompt: dict[str, Any] | None = None
    background: bool | None = None
    top_logprobs: Count | None = None


class NativeBody(Sampling, kw_only=True):
    """POST /completion: llama.cpp's own."""

    prompt: Prompt
    n_predict: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    repeat_penalty: Annotated[float, Meta(gt=0, le=1e6)] | None = None
    n_probs: Logprobs | None = None
    post_sampling_probs: bool | None = None
    return_tokens: bool | None = None
    cache_prompt: bool | None = None
    logit_bias: dict[str, float | bool] | list[tuple[TokenId | str, float | bool]] | None = None


class TokenizeBody(Struct, kw_only=True):
    """POST /tokenize."""

    content: Annotated[str, Meta(max_length=1 << 20)]
    add_special: bool = False
    parse_special: bool = True
    with_pieces: bool = False
    model: str | None = None


class DetokenizeBody(Struct, kw_only=True):
    """POST /detokenize."""

    tokens: list[TokenId]
    model: str | None = None


class TemplateBody(Struct, kw_only=True):
    """POST /apply-template."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    tools: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    with_pieces: bool = False
    model: str | None = None


Row = dict[str, Any]  # a task's data: a text, a number or a list of texts in each column


class PromptBody(Struct, kw_only=True):
    """POST /v1/prompt. The first examples are the shots of each column; without a task it takes a template."""

    question: Row
    shots: Annotated[list[Annotated[int, Meta(ge=0, le=32)]], Meta(min_length=1, max_length=6)]
    examples: Annotated[list[Row], Meta(max_length=32)] = []
    task: str | None = None
    template: Annotated[str, Meta(max_length=10_000)] | None = None
    labels: Annotated[list[Annotated[str, Meta(max_length=1000)]], Meta(min_length=2, max_length=26)] | None = None
    chat: bool = False
    system: str | None = None
    model: str | None = None


class EvaluationsBody(Struct, kw_only=True):
    """POST /v1/evaluations."""

    task: str
    model: str | None = None


class NextBody(Struct, kw_only=True):
    """POST /v1/next."""

    prompt: str | Annotated[list[Piece], Meta(min_length=1)]
    top: Annotated[int, Meta(ge=1, le=1000)] = 128
    model: str | None = None


class EmbeddingsBody(Struct, kw_only=True):
    """POST /v1/embeddings. `pooling`: the mean over a text's tokens, or the last one's."""

    input: Prompt
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=1)] | None = None
    pooling: Literal["mean", "last"] = "mean"
    model: str | None = None
    user: str | None = None


Number = Annotated[float, Meta(gt=0, le=1e40)] | Annotated[str, Meta(min_length=1, max_length=64)]
Whole = Annotated[int, Meta(ge=1, le=2**53)] | Annotated[str, Meta(min_length=1, max_length=64)]
Name = Annotated[str, Meta(min_length=1, max_length=200)]


class PlanQuestion(Struct, kw_only=True, forbid_unknown_fields=True, tag_field="question"):
    """POST /v1/plan: the options of `nextword plan`; a number may be a text with a unit, as there: "8k", "3 days".

    The model is a name of the catalogue or of a served model, or `params`, or a whole ModelSpec as `spec`.
    """

    devices: Name | None = None


class ModelQuestion(PlanQuestion, kw_only=True):
    model: Name | None = None
    params: Number | None = None
    arch: ModelKind | None = None
    spec: dict[str, Any] | None = None
    context: Whole | None = None


class InferenceQuestion(ModelQuestion, kw_only=True, tag="inference"):
    batch_size: Whole | None = None
    dtype: Name | None = None
    kv_dtype: Name | None = None


class FitQuestion(ModelQuestion, kw_only=True, tag="fit"):
    micro_batch: Whole | None = None
    optimizer: Optimizer | None = None
    train_dtype: Precision | None = None
    recompute: Recompute | None = None
    attention: Kernel | None = None
    loss: Literal["whole", "chunked"] | None = None
    shard: Shard | None = None
    per_machine: Whole | None = None
    lora: Whole | None = None
    lora_targets: Name | None = None
    base: Name | None = None


class TrainQuestion(FitQuestion, kw_only=True, tag="train"):
    tokens: Number | None = None
    mfu: Share | None = None
    price: Number | None = None


class BudgetQuestion(PlanQuestion, kw_only=True, tag="budget"):
    flops: Number | None = None
    minutes: Number | None = None
    hours: Number | None = None
    days: Number | None = None
    dollars: Number | None = None
    price: Number | None = None
    mfu: Share | None = None
    law: Name | None = None
    tokens_available: Number | None = None
    inference_tokens: Number | None = None


PlanBody = InferenceQuestion | TrainQuestion | FitQuestion | BudgetQuestion


def decode(body: bytes, kind: type[Body]) -> Body:
    """A body as JSON of this kind. Raises ApiError."""
    _check_depth(body)
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise of_validation(error) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError(400, f"the body is not valid JSON ({error})") from None


def converted(value: Any, kind: type[Body], param: str) -> Body:
    """A part of the field `param` as `kind`. Raises ApiError."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise ApiError(400, f"{param}: {error}", param) from None


def _check_depth(body: bytes) -> None:
    if body.count(b"[") + body.count(b"{") <= DEEPEST:
        return
    steps = _STEP[np.frombuffer(_STRING.sub(b"", body), np.uint8)]
    if steps.size and np.cumsum(steps, dtype=np.int32).max() > DEEPEST:
        raise ApiError(400, f"the body nests deeper than {DEEPEST} levels")
