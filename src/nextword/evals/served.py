"""Evaluates models on OpenAI-compatible servers: `openai:http://host:port/v1#name`.

Such a model has no local tokenizer. Its prompts are counted in characters, one code point each, and the tokens it reads
as reported by the server.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

from ..base import UsageError
from ..text.tokenizer import SpecialTokens
from .design import ScoringConfig
from .fewshot import Vectors
from .grid import Trial
from .openai_client import PREFIX, Answer, Connection, Server, Settings, in_parallel
from .provenance import ModelRecord
from .runner import ModelRunner, Preparation, Writing
from .scoring import encode
from .store import Store
from .task import Encoded, Ids, Item, Likelihood, LogprobRequest, Task

if TYPE_CHECKING:
    from ..engine import LanguageModel
    from ..engine.loading import LoadConfig

    EvalModel: TypeAlias = "LanguageModel | ServedModel"

CHAT = 0x110000  # starts prompts that are chat messages: one more than the last code point


class CodePoints:
    """Characters as tokens, with a tokenizer's interface. `chat_template` "" is the server's own."""

    name, chat_template = "characters", ""
    special = SpecialTokens(control=frozenset([CHAT]))
    bos_id, adds_bos, stop_ids = None, False, frozenset[int]()

    def encode(self, text: str, special: bool = False) -> list[int]:
        return list(map(ord, text))

    def decode(self, tokens: Sequence[int]) -> str:
        return "".join(map(self.token_text, tokens))

    def token_text(self, token: int) -> str:
        return "" if token == CHAT else chr(token)

    def token_bytes(self, token: int) -> bytes:
        return self.token_text(token).encode("utf-8", "replace")


class ServedModel:
    """A served model, used like a LanguageModel in an evaluation."""

    tokenizer = CodePoints()

    def __init__(self, server: Server) -> None:
        self.server = server
        self.name = f"{server.model}@{server.host}"


def open_model(name: str, config: LoadConfig | None = None, connection: Connection | None = None) -> EvalModel:
    """A served model if `name` begins with "openai:", otherwise `nextword.load(name)`.

    `config` is for local models, `connection` for served ones.
    """
    if not name.startswith(PREFIX):
        from ..engine import LanguageModel
        from ..engine.loading import load_weights

        return LanguageModel(load_weights(name, config))
    return ServedModel(Server(name, connection))


def runner_for(model: EvalModel, store: Store) -> ModelRunner:
    """The runner for a model."""
    return ServedRunner(model, store) if isinstance(model, ServedModel) else ModelRunner(model, store)


class ServedRunner(ModelRunner):
    """Runs requests on a server, with its connection's concurrency."""

    unit = "characters"
    context = None  # the server rejects prompts that are too long
    model: ServedModel  # type: ignore[assignment]

    def __init__(self, model: ServedModel, store: Store) -> None:
        super().__init__(model, store)  # type: ignore[arg-type]

    @cached_property
    def key(self) -> str:
        """The model's part of the store's keys: the server's address and the model's name; its weights are unknown."""
        return f"{PREFIX}{self.model.server.url}#{self.model.server.model}"

    def record(self) -> ModelRecord:
        return ModelRecord(self.model.name, self.key, "", "as served", "server", None)

    def prepare(self, trials: Sequence[Trial], items: Sequence[Item], config: ScoringConfig) -> Preparation:
        if config.choice_scoring == "constrained":
            raise UsageError(f"{self.model.name} is served and cannot be constrained. Use another --choice-scoring")
        return super().prepare(trials, items, config)

    def show(self, asked: Sequence[LogprobRequest]) -> list[LogprobRequest]:
        return [
            replace(request, context="\n\n".join(f"{message.role}: {message.content}" for message in request.messages))
            if request.messages
            else request
            for request in asked
        ]

    def encode(self, task: Task, asked: Sequence[LogprobRequest]) -> list[Encoded]:
        if task.chat is not None:
            return [self._encode_chat(request) for request in asked]
        if task.output == "generate_until":
            return [Encoded(_code_points(request.context), ()) for request in asked]
        tokenizer: Any = self.model.tokenizer
        return [encode(request, tokenizer) for request in asked]

    def _encode_chat(self, request: LogprobRequest) -> Encoded:
        if request.continuation:
            raise UsageError(
                f"{self.model.name}: a served chat gives no log-probabilities of choices. Use --generate, or"
                " --chat-template off"
            )
        messages = [{"role": message.role, "content": message.content} for message in request.messages]
        return Encoded((CHAT, *_code_points(json.dumps(messages))), ())

    def embed(self, texts: Sequence[str]) -> Vectors:
        raise UsageError(
            f"--fewshot-sampler similar compares a model's own states, which {self.model.name} does not give. Use"
            " another"
        )

    def tokens_to_score(self, missing: Sequence[Encoded]) -> int:
        return sum(len(request.context) + len(request.continuation) for request in missing)

    def tokens_of_prompts(self, missing: Sequence[Writing]) -> int:
        return sum(len(prompt) for prompt, _ in missing)

    def seconds_to_score(self, missing: Sequence[Encoded], tokens: int) -> float:
        return 0.0  # not measured: that would cost as much as the evaluation

    def seconds_to_write(self, missing: Sequence[Writing], tokens: int) -> float:
        return 0.0

    def score(self, missing: Sequence[Encoded]) -> Iterator[tuple[dict[Encoded, Likelihood], int]]:
        server, text = self.model.server, self.model.tokenizer.decode
        ordered = sorted(missing, key=lambda request: (request.context, request.continuation))  # share prefixes
        for request, scores in in_parallel(
            lambda request: server.score(text(request.context), text(request.continuation)), ordered,
            server.connection.concurrency,
        ):  # fmt: skip
            self.tokens_read += scores.tokens_read
            yield {request: Likelihood(scores.logprobs, scores.greedy)}, self.tokens_to_score([request])

    def generate(self, missing: Sequence[Writing], seed: int) -> Iterator[tuple[Writing, str, int]]:
        for writing, answer in in_parallel(
            lambda writing: self._write(writing, seed), sorted(missing, key=lambda writing: writing[0]),
            self.model.server.connection.concurrency,
        ):  # fmt: skip
            self.tokens_read += answer.tokens_read
            yield writing, answer.text, len(writing[0])

    def _write(self, writing: Writing, seed: int) -> Answer:
        prompt, how = writing
        settings = Settings(how.max_tokens, how.temperature, how.top_p, how.top_k, how.until, seed)
        text = self.model.tokenizer.decode(prompt)
        if prompt[:1] == (CHAT,):
            return self.model.server.chat(json.loads(text), settings)
        return self.model.server.complete(text, settings)


def _code_points(text: str) -> Ids:
    return tuple(map(ord, text))
