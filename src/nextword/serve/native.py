"""POST /completion: llama.cpp's own kind of completion."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from ..engine import CompletionHandle, Token
from .bodies import NativeBody
from .choices import CompletionWork, parts_of, push_all
from .errors import ApiError
from .pieces import Entry, Pieces, candidates, name_of
from .prompts import Prompt, encode_prompt, prompts_of
from .requests import EventStream, answer, most_tokens, requests_of, stopping_word

if TYPE_CHECKING:
    from .call import Call
    from .models import Model

_STOP_TYPES = {"end_of_text": "eos", "stop": "word", "length": "limit", "context": "limit"}


@dataclass
class Work(CompletionWork):
    """A native completion request being answered."""

    body: NativeBody
    prompts: list[Prompt]


async def completion(call: Call, body: NativeBody) -> Response:
    """Complete a text, or several."""
    given = prompts_of(body.prompt)
    model = await call.use(body.model)
    wanted = None if body.n_predict == -1 else body.n_predict
    max_tokens = most_tokens(call, model, wanted, None, "n_predict")
    call.admit(len(given))
    prompts = await call.prepare(lambda: [encode_prompt(model, prompt) for prompt in given])
    bias = await call.prepare(lambda: _biases(model, body))
    if body.repeat_penalty is not None:
        body.repetition_penalty = body.repeat_penalty
    work = Work(call, model, body, prompts)
    requests = requests_of(
        call, model, body, prompts, max_tokens=max(1, max_tokens), bias=bias, top_logprobs=body.n_probs or 0
    )
    work.handles = await call.start(model, requests if max_tokens else [])
    if body.stream:
        return EventStream(_stream(work), call.service.report)
    return answer(await _whole(work, several=given is body.prompt))


def _biases(model: Model, body: NativeBody) -> dict[int, float]:
    """Biases by id; a text stands for its tokens, and false forbids them."""
    given = body.logit_bias or {}
    biases: dict[int, float] = {}
    for key, value in given.items() if isinstance(given, dict) else given:
        if value is True or (value is not False and not math.isfinite(value)):
            raise ApiError(400, "logit_bias takes numbers, or false to forbid a token", "logit_bias")
        bias = -math.inf if value is False else float(value)
        if isinstance(key, int) or (key.isascii() and key.isdigit() and len(key) < 10):
            ids = [int(key)]
        else:
            ids = model.tokenizer.encode(key)
        if any(id >= model.vocabulary for id in ids):
            raise ApiError(400, f"logit_bias names token {key}; the vocabulary ends at {model.vocabulary - 1}",
                           "logit_bias")  # fmt: skip
        biases |= dict.fromkeys(ids, bias)
    return biases


# ---- answers


class _Answer:
    """One prompt's completion."""

    def __init__(self, work: Work, index: int) -> None:
        self._work, self._index, self._pieces = work, index, Pieces(work.model.tokenizer)
        self.text = self.whole_text = ""
        self.ids: list[int] = []
        self.entries: list[Entry] = []
        self.last: Token | None = None

    @property
    def handle(self) -> CompletionHandle | None:
        return self._work.handles[self._index] if self._work.handles else None

    def push(self, token: Token) -> None:
        text, entries = self._pieces.push(token)
        self.text, self.whole_text = self.text + text, self.whole_text + text
        self.ids.append(token.id)
        self.entries += entries
        self.last = token

    def take(self) -> list[dict[str, Any]]:
        """What has come since the last call, if there is anything to show, and the end."""
        content: dict[str, Any] = {"index": self._index, "content": self.text, "tokens": self.ids, "stop": False}
        if self._work.body.n_probs:
            content["completion_probabilities"] = self._probabilities()
        parts = [content] if self.text or self.entries else []
        self.text, self.ids, self.entries = "", [], []
        return [*parts, self.end()] if self.last and self.last.finish else parts

    def whole(self) -> dict[str, Any]:
        body = self._work.body
        content = {**self.end(), "content": self.whole_text, "tokens": self.ids if body.return_tokens else []}
        return content | ({"completion_probabilities": self._probabilities()} if body.n_probs else {})

    def end(self) -> dict[str, Any]:
        """The last event of a stream: everything but the text."""
        work, handle = self._work, self.handle
        prompt = work.prompts[self._index]
        made = len(handle.tokens[0]) if handle else 0
        finish = self.last.finish if self.last else "length"
        kind = _STOP_TYPES[finish or "length"]
        return {
            "index": self._index,
            "content": "",
            "tokens": [],
            "stop": True,
            "stop_type": kind,
            "stopping_word": stopping_word(work.model, handle) if handle and kind == "word" else "",
            "model": work.model.id,
            "tokens_predicted": made,
            "tokens_evaluated": len(prompt.ids),
            "tokens_cached": handle.cached_tokens if handle else 0,
            "truncated": False,
            "has_new_line": "\n" in self.whole_text,
            "prompt": work.model.tokenizer.decode(prompt.ids, special=True).replace("\ufffd", ""),
            "generation_settings": self._settings(),
            "timings": self._timings(),
        }

    def _settings(self) -> dict[str, Any]:
        handle = self.handle
        if handle is None:
            return {}
        sampling, limits = handle.request.sampling, handle.request.stop
        return {
            "seed": handle.seed,
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "min_p": sampling.min_p,
            "typical_p": sampling.typical_p,
            "repeat_penalty": sampling.repetition_penalty,
            "presence_penalty": sampling.presence_penalty,
            "frequency_penalty": sampling.frequency_penalty,
            "samplers": sampling.order,
            "stop": limits.stop,
            "n_predict": limits.max_tokens,
            "n_probs": handle.request.top_logprobs,
            "ignore_eos": bool(self._work.body.ignore_eos),
            "stream": bool(self._work.body.stream),
        }

    def _timings(self) -> dict[str, Any]:
        if self.handle is None:
            return {}
        timings = self.handle.timings
        return {
            "cache_n": timings.cached_tokens,
            "prompt_n": timings.prompt_tokens - timings.cached_tokens,
            "prompt_ms": 1e3 * timings.prefill_seconds,
            "prompt_per_second": timings.prefill_tokens_per_second,
            "predicted_n": timings.generated_tokens,
            "predicted_ms": 1e3 * timings.decode_seconds,
            "predicted_per_second": timings.decode_tokens_per_second,
        }

    def _probabilities(self) -> list[dict[str, Any]]:
        after = bool(self._work.body.post_sampling_probs)
        return [_drawn(self._work.model, entry) if after else _own(self._work.model, entry) for entry in self.entries]


def _own(model: Model, entry: Entry) -> dict[str, Any]:
    top = [{**_named(model, id), "logprob": logprob} for id, logprob in candidates(entry.token)]
    return {**_named(model, entry.token.id), "logprob": entry.token.logprob, "top_logprobs": top}


def _drawn(model: Model, entry: Entry) -> dict[str, Any]:
    """After temperature and truncations: only what could have been drawn."""
    likeliest = sorted(entry.token.alternatives, key=lambda other: -other.sampled_prob)
    top = [{**_named(model, other.id), "prob": other.sampled_prob} for other in likeliest if other.sampled_prob > 0]
    return {**_named(model, entry.token.id), "prob": entry.token.sampled_prob, "top_probs": top}


def _named(model: Model, id: int) -> dict[str, Any]:
    return {"id": id, "token": name_of(model.tokenizer, id), "bytes": list(model.tokenizer.token_bytes(id))}


async def _whole(work: Work, several: bool) -> Any:
    answers = [_Answer(work, index) for index in range(len(work.prompts))]
    await push_all(work, answers)
    work.call.count_prompt(work.handles)
    contents = [each.whole() for each in answers]
    return contents if several else contents[0]


async def _stream(work: Work) -> AsyncIterator[list[Any]]:
    answers = [_Answer(work, index) for index in range(len(work.prompts))]
    if not work.handles:
        yield [each.end() for each in answers]
    async for parts in parts_of(work, answers):
        yield parts
    work.call.count_prompt(work.handles)
