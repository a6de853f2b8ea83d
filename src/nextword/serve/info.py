"""What a server says about itself, and its small endpoints: models, tokens, templates, the next token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from ..base import UsageError
from ..engine import LogitsHandle, LogitsRequest
from ..text import begun
from .bodies import DetokenizeBody, NextBody, TemplateBody, TokenizeBody
from .chat import template_prompt
from .errors import ApiError
from .metrics import CONTENT_TYPE
from .pieces import shown_tokens
from .prompts import encode_prompt, too_long
from .requests import answer

if TYPE_CHECKING:
    from .call import Call
    from .models import Model


async def health(call: Call, body: None) -> Response:
    """Whether requests are taken."""
    if call.service.draining:
        raise ApiError(503, "the server is shutting down")
    return answer({"status": "ok"})


async def models(call: Call, body: None) -> Response:
    """The models that requests may name."""
    ids = await call.prepare(lambda: call.service.models.all_ids)
    return answer({"object": "list", "data": [_model(call, id) for id in ids]})


async def one_model(call: Call, body: None) -> Response:
    """One model."""
    id = call.name
    if not await call.prepare(lambda: call.service.models.has(id)):
        raise ApiError(404, f"unknown model {id!r}. GET /v1/models lists the available ones", "model")
    return answer(_model(call, id))


def _model(call: Call, id: str) -> dict[str, Any]:
    return {"id": id, "object": "model", "created": call.service.models.created, "owned_by": "nextword"}


async def props(call: Call, body: None) -> Response:
    """Settings of the server and its first model."""
    model = await call.use(None)
    config = call.config
    params = {"seed": -1 if config.seed is None else config.seed, "temperature": config.temperature}
    return answer(
        {
            "model_path": model.lm.name,
            "model_alias": model.id,
            "total_slots": config.parallel,
            "default_generation_settings": {"n_ctx": model.context, "params": params},
            "chat_template": model.tokenizer.chat_template or "",
            "bos_token": _special(model, model.tokenizer.bos_id),
            "eos_token": _special(model, min(model.tokenizer.stop_ids, default=None)),
        }
    )


def _special(model: Model, id: int | None) -> str:
    return "" if id is None else model.tokenizer.token_text(id)


async def slots(call: Call, body: None) -> Response:
    """Which places are taken. Without any text."""
    model = await call.use(None)
    _, _, running = call.service.load
    count = call.config.parallel
    return answer([{"id": id, "n_ctx": model.context, "is_processing": id < running} for id in range(count)])


async def metrics(call: Call, body: None) -> Response:
    """Counters, gauges and histograms in Prometheus' form."""
    return Response(call.service.metrics.text, headers={"content-type": CONTENT_TYPE})


async def tokenize(call: Call, body: TokenizeBody) -> Response:
    """The tokens of a text."""
    model = await call.use(body.model)

    def work() -> list[Any]:
        tokenizer = model.tokenizer
        ids = tokenizer.encode(body.content, special=body.parse_special)
        ids = begun(tokenizer, ids) if body.add_special else ids
        return shown_tokens(tokenizer, ids) if body.with_pieces else ids

    return answer({"tokens": await call.prepare(work)})


async def detokenize(call: Call, body: DetokenizeBody) -> Response:
    """The text of tokens."""
    model = await call.use(body.model)
    if body.tokens and max(body.tokens) >= model.vocabulary:
        raise ApiError(400, f"tokens has an id beyond the vocabulary, which ends at {model.vocabulary - 1}", "tokens")
    return answer({"content": await call.prepare(lambda: model.tokenizer.decode(body.tokens, special=True))})


async def apply_template(call: Call, body: TemplateBody) -> Response:
    """A conversation as the text that the model reads; `with_pieces`: and its tokens."""
    model = await call.use(body.model)

    def work() -> dict[str, Any]:
        prompt, text = template_prompt(model, body.messages, body.tools, body.chat_template_kwargs)
        return {"prompt": text, **({"tokens": shown_tokens(model.tokenizer, prompt.ids)} if body.with_pieces else {})}

    return answer(await call.prepare(work))


async def next_token(call: Call, body: NextBody) -> Response:
    """The whole distribution of the next token, in a compact form: `distribution.compact`."""
    from .distribution import compact

    model = await call.use(body.model)
    call.admit(1)

    def start() -> LogitsHandle:
        prompt = encode_prompt(model, body.prompt)
        if len(prompt.ids) > model.context:
            raise too_long(model, len(prompt.ids), "prompt")
        try:
            return call.hold(model.engine.submit(LogitsRequest(prompt.ids)))
        except UsageError as error:
            raise ApiError(400, str(error), "prompt") from None

    handle = await call.prepare(start)
    await call.done(handle)
    return answer({"model": model.id, **await call.prepare(lambda: compact(handle.logits, model.tokenizer, body.top))})
