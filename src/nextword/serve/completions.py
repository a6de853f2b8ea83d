"""POST /v1/completions: OpenAI's completions of a text."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from ..engine import CompletionHandle, ScoreRequest
from ..engine.handles import ScoreHandle
from .bodies import CompletionBody
from .choices import CompletionWork, events_of, push_all
from .errors import ApiError
from .extension import sampling_extension
from .pieces import Entry, Pieces, candidates, name_of
from .prompts import Prompt, encode_prompt, prompts_of
from .requests import FINISH, EventStream, answer, check_stream_options, most_tokens, requests_of

if TYPE_CHECKING:
    from .call import Call

DEFAULT_TOKENS = 16


@dataclass
class Echo:
    """A prompt's text, as its tokens write it, and their entries of logprobs."""

    pieces: list[str]
    rows: list[Row]

    @property
    def text(self) -> str:
        return "".join(self.pieces)


@dataclass
class Row:
    """One token in `logprobs`: its text, ln p, and ln p of the likeliest by name."""

    piece: str
    logprob: float | None
    top: dict[str, float] | None


@dataclass
class Work(CompletionWork):
    """A request for completions of texts being answered."""

    body: CompletionBody
    prompts: list[Prompt]
    n: int
    echoes: list[Echo] = field(default_factory=list)


async def completions(call: Call, body: CompletionBody) -> Response:
    """Complete texts."""
    usage_wanted = check_stream_options(body)
    _check(body)
    given = prompts_of(body.prompt)
    n = body.n or 1
    model = await call.use(body.model)
    max_tokens = most_tokens(call, model, body.max_tokens, DEFAULT_TOKENS, "max_tokens")
    call.admit(len(given) * n)
    prompts = await call.prepare(lambda: [encode_prompt(model, prompt) for prompt in given])
    work = Work(call, model, body, prompts, n, prompt_tokens=sum(len(prompt.ids) for prompt in prompts))
    requests = requests_of(
        call, model, body, prompts, max_tokens=max(1, max_tokens), n=n, bias=body.logit_bias,
        top_logprobs=body.logprobs or 0,
    )  # fmt: skip
    if body.echo:
        await _echo(work)
    work.handles = await call.start(model, requests if max_tokens else [])
    if body.stream:
        return EventStream(_stream(work, usage_wanted), call.service.report, done=True)
    return answer(await _whole(work))


def _check(body: CompletionBody) -> None:
    if body.suffix:
        raise ApiError(400, "suffix is not supported: models here only continue a text", "suffix")
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise ApiError(400, "best_of is not supported unless it equals n", "best_of")


# ---- the prompt's own text and scores


async def _echo(work: Work) -> None:
    """The prompts' texts, scored if logprobs are asked for."""
    model, count = work.model, work.body.logprobs
    handles: list[ScoreHandle | None] = []
    for prompt in work.prompts:
        scored = count is not None and len(prompt.ids) > 1
        request = ScoreRequest(prompt.ids[:1], (prompt.ids[1:],), count or 0)
        handles.append(work.call.hold(model.engine.submit(request)) if scored else None)
    for prompt, handle in zip(work.prompts, handles, strict=True):
        if handle is not None:
            await work.call.done(handle)
        work.echoes.append(await work.call.prepare(lambda p=prompt, h=handle: _echo_of(work, p, h)))  # type: ignore[misc]


def _echo_of(work: Work, prompt: Prompt, handle: ScoreHandle | None) -> Echo:
    tokenizer = work.model.tokenizer
    stream = tokenizer.stream(special=True, continues=False)
    pieces = [stream.push(id) for id in prompt.ids]
    pieces[-1] += stream.flush()
    if prompt.begins:
        pieces[0] = ""
    if work.body.logprobs is None:
        return Echo(pieces, [])
    rows = [Row(pieces[0], None, None)]
    logprobs = handle.scores[0].logprobs if handle is not None else ()
    for place, (id, piece, logprob) in enumerate(zip(prompt.ids[1:], pieces[1:], logprobs, strict=True)):
        assert handle is not None
        top = {name_of(tokenizer, other): logprob if other == id else p for other, p in handle.top.get(place, ())}
        rows.append(Row(piece, logprob, {**top, name_of(tokenizer, id): logprob}))
    return Echo(pieces, rows)


# ---- answers


class _Choice:
    """One choice: its deltas, its entries of logprobs with their offsets, and its end."""

    def __init__(self, work: Work, number: int) -> None:
        self._work, self._pieces = work, Pieces(work.model.tokenizer)
        self.index, self.finish = number, None if work.handles else "length"
        self._offset = 0
        echo = work.echoes[number // work.n] if work.echoes else Echo([], [])
        self.text, self.rows = echo.text, list(echo.rows)
        self.entries: list[Entry] = []

    def push(self, token: Any) -> None:
        text, entries = self._pieces.push(token)
        self.text += text
        self.finish = FINISH[token.finish] if token.finish else None
        self.entries += entries
        if self._work.body.logprobs is not None:
            self.rows += [self._row(entry) for entry in entries]

    def _row(self, entry: Entry) -> Row:
        tokenizer = self._work.model.tokenizer
        top = {name_of(tokenizer, id): logprob for id, logprob in candidates(entry.token)}
        own = {name_of(tokenizer, entry.token.id): entry.token.logprob}
        return Row(entry.piece, entry.token.logprob, {**top, **own})

    def take(self) -> list[dict[str, Any]]:
        """The choice with what has come since the last call, if there is anything to show."""
        has_news = self.text or self.rows or self.finish or (self._work.body.nextword and self.entries)
        return [self.content()] if has_news else []

    def content(self) -> dict[str, Any]:
        """The choice with what has come since the last call."""
        content: dict[str, Any] = {
            "index": self.index,
            "text": self.text,
            "logprobs": self._logprobs() if self._work.body.logprobs is not None else None,
            "finish_reason": self.finish,
        }
        if self._work.body.nextword:
            content["nextword"] = sampling_extension(self._handle, self.entries)
        self.text, self.rows, self.entries = "", [], []
        return content

    @property
    def _handle(self) -> CompletionHandle | None:
        return self._work.handles[self.index // self._work.n] if self._work.handles else None

    def _logprobs(self) -> dict[str, Any]:
        offsets = []
        for row in self.rows:
            offsets.append(self._offset)
            self._offset += len(row.piece)
        return {
            "tokens": [row.piece for row in self.rows],
            "token_logprobs": [row.logprob for row in self.rows],
            "top_logprobs": [row.top for row in self.rows],
            "text_offset": offsets,
        }


def _choices(work: Work) -> list[_Choice]:
    return [_Choice(work, number) for number in range(len(work.prompts) * work.n)]


async def _whole(work: Work) -> dict[str, Any]:
    choices = _choices(work)
    await push_all(work, choices)
    return {**_head(work), "choices": [choice.content() for choice in choices], "usage": work.usage()}


def _stream(work: Work, usage_wanted: bool) -> AsyncIterator[list[Any]]:
    choices = _choices(work)
    first = [choice.content() for choice in choices] if work.echoes or not work.handles else []
    return events_of(work, choices, _head(work), first, usage_wanted)


def _head(work: Work) -> dict[str, Any]:
    return work.head("cmpl", "text_completion")
