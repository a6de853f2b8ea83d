"""Runs a model's requests through the engine, with a store that keeps every answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, overload

from ..base import UsageError
from ..engine import CompletionHandle, SamplingParams, ScoreHandle, ScoreRequest, StopConfig, Structure
from ..engine import Request as CompletionRequest
from .chat_prompts import encode_chat, show_chat
from .design import Condition, ScoringConfig
from .fewshot import Vectors, embed
from .grid import Trial
from .provenance import ModelRecord
from .results import Answer, answer_choice
from .running import answered, descending, tokens_to_read
from .scoring import encode, likelihood, score_requests
from .store import Store
from .task import Encoded, Generation, Ids, Item, Likelihood, LogprobRequest, Task

if TYPE_CHECKING:
    from ..engine import LanguageModel

OnTokens = Callable[[int], None]  # called with the tokens read since the last call
Writing = tuple[Ids, Generation]  # a prompt, and generation settings

_TIMED_PROMPTS = 16
_TIMED_TOKENS = 8
_TIMED_STEPS = 2


@dataclass(frozen=True)
class Question:
    """The requests for one item under one condition, in tokens; `dropped` shots did not fit.

    `premises`: the same choices after a premise instead of the question, if the scoring needs them.
    """

    trial: Trial
    item: Item
    asked: tuple[LogprobRequest, ...]
    encoded: tuple[Encoded, ...]
    dropped: int = 0
    premises: tuple[Encoded, ...] = ()

    @property
    def shots(self) -> int:
        """The number of shots in the prompt."""
        return len(self.trial.shots_of(self.item)) - self.dropped

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt with its answer."""
        return max(len(request.context) + len(request.continuation) for request in (*self.encoded, *self.premises))


@dataclass
class Preparation:
    """All of a model's requests, and notes from preparing them."""

    questions: list[Question] = field(default_factory=list)
    # of a condition to calibrate, by the number of dropped shots: the labels after content-free inputs
    content_free: dict[tuple[Condition, int], list[tuple[Encoded, ...]]] = field(default_factory=dict)
    embedded: int = 0  # tokens read to find similar shots, before anything else was known

    def requests(self) -> list[Encoded]:
        """All distinct requests."""
        asked = [request for question in self.questions for request in (*question.encoded, *question.premises)]
        asked += [request for rows in self.content_free.values() for row in rows for request in row]
        return list(dict.fromkeys(asked))


class ModelRunner:
    """Runs one model's requests through a store. `tokens_read` counts prompts and texts to score.

    The methods below the line use the engine; the runner of a served model overrides them.
    """

    def __init__(self, model: LanguageModel, store: Store) -> None:
        self.model, self.store = model, store
        self.tokens_read = 0

    def prepare(self, trials: Sequence[Trial], items: Sequence[Item], config: ScoringConfig) -> Preparation:
        """Render and tokenize everything. Raises UsageError if a prompt does not fit and shots may not be dropped."""
        questions = [self._fitted(trial, item, config) for trial in trials for item in items]
        misfits = [question for question in questions if not self._fits(question)]
        if misfits:
            worst = max(misfits, key=lambda question: question.longest)
            raise UsageError(
                f"{len(misfits)} of {len(questions)} prompts are longer than the model's context of {self.context}"
                f" tokens (the longest: {worst.longest}, with {worst.shots} shots). Use fewer shots, or --overflow"
                " drop-shots, which drops shots and reports how many"
            )
        return Preparation(questions)

    def _fitted(self, trial: Trial, item: Item, config: ScoringConfig) -> Question:
        premise = config.premise_of(trial.task)
        for dropped in range(len(trial.shots_of(item)) + 1):
            asked = self.show(trial.requests(item, dropped))
            premises = [] if premise is None else self.encode(trial.task, trial.requests(item, dropped, premise))
            encoded = self.encode(trial.task, asked)
            question = Question(trial, item, tuple(asked), tuple(encoded), dropped, tuple(premises))
            if config.overflow == "error" or self._fits(question):
                break
        return question

    def _fits(self, question: Question) -> bool:
        task = question.trial.task
        room = task.generation.max_tokens if task.output == "generate_until" else 0
        return self.context is None or question.longest + room <= self.context

    def missing(self, asked: Sequence[Encoded]) -> list[Encoded]:
        """The requests that are not in the store."""
        known = self.store.likelihoods(self.key, asked)
        return [request for index, request in enumerate(asked) if index not in known]

    def missing_texts(self, wanted: Sequence[Writing], seed: int) -> list[Writing]:
        """The distinct texts of `wanted` that are not in the store."""
        written = self._stored_texts(wanted, seed)
        return [writing for writing in dict.fromkeys(wanted) if writing not in written]

    def _stored_texts(self, wanted: Sequence[Writing], seed: int) -> dict[Writing, str]:
        prompts: dict[Generation, list[Ids]] = {}
        for prompt, generation in dict.fromkeys(wanted):
            prompts.setdefault(generation, []).append(prompt)
        return {
            (own[index], generation): text
            for generation, own in prompts.items()
            for index, text in self.store.texts(self.key, own, generation, seed).items()
        }

    def likelihoods(self, wanted: Sequence[Encoded], on_tokens: OnTokens | None = None) -> dict[Encoded, Likelihood]:
        """ln p of every request, from the store or from the model, and then stored."""
        distinct = list(dict.fromkeys(wanted))
        stored = self.store.likelihoods(self.key, distinct)
        likelihoods = {distinct[index]: value for index, value in stored.items()}
        for scores, read in self.score([request for request in distinct if request not in likelihoods]):
            for encoded, score in scores.items():
                self.store.put_likelihood(self.key, encoded, score)
            likelihoods |= scores
            if on_tokens is not None:
                on_tokens(read)
        self.store.commit()
        return likelihoods

    def texts(self, wanted: Sequence[Writing], seed: int, on_tokens: OnTokens | None = None) -> dict[Writing, str]:
        """The text after each prompt, from the store or from the model, and then stored."""
        texts = self._stored_texts(wanted, seed)
        missing = [writing for writing in dict.fromkeys(wanted) if writing not in texts]
        for writing, text, read in self.generate(missing, seed):
            texts[writing] = text
            self.store.put_text(self.key, *writing, seed, text)
            if on_tokens is not None:
                on_tokens(read)
        self.store.commit()
        return texts

    # ---- the engine

    unit = "tokens"  # of prompt lengths

    @cached_property
    def key(self) -> str:
        """The model's part of the store's keys: weights and precision."""
        return f"{self.store.hash_of(self.model.loaded.path)} {self.model.loaded.precision}"

    @property
    def context(self) -> int | None:
        """The context in tokens, for a prompt with its answer; None: no limit."""
        return self.model.engine.backend.context

    def show(self, asked: Sequence[LogprobRequest]) -> list[LogprobRequest]:
        """The requests with their context as the model reads it."""
        return show_chat(asked, self.model.tokenizer)

    def encode(self, task: Task, asked: Sequence[LogprobRequest]) -> list[Encoded]:
        """Tokenize requests."""
        return encode_requests(self.model, task, asked)

    def record(self) -> ModelRecord:
        """The model's record in a stored evaluation."""
        loaded = self.model.loaded
        return ModelRecord(
            loaded.name, loaded.path.name, self.store.hash_of(loaded.path), loaded.precision,
            loaded.device, loaded.tokenizer.chat_template,
        )  # fmt: skip

    def embed(self, texts: Sequence[str]) -> Vectors:
        """The model's normalised embeddings of texts: (texts, width) float32."""
        encoded = [tuple(self.model.encode(text)) for text in texts]
        self.tokens_read += sum(map(len, encoded))
        return embed(self.model.engine, encoded)

    def tokens_to_score(self, missing: Sequence[Encoded]) -> int:
        """Tokens to read to score these."""
        return tokens_to_read(self.model.engine, score_requests(missing))

    def tokens_of_prompts(self, missing: Sequence[Writing]) -> int:
        """Tokens to read before generating answers."""
        return tokens_to_read(self.model.engine, _completions(missing, 0))

    def seconds_to_score(self, missing: Sequence[Encoded], tokens: int) -> float:
        """Seconds to score these, with `tokens` to read.

        Estimated from some steps in the middle of the work, after an untimed one: a process's first step is slow.
        """
        if not missing:
            return 0.0
        engine, requests = self.model.engine, score_requests(missing)
        engine.clear_cache()
        started = began = time.perf_counter(), engine.tokens_read
        with closing(answered(engine, requests[len(requests) // 2 :])) as handles:
            for _ in handles:
                if began is started:
                    began = time.perf_counter(), engine.tokens_read
                if engine.tokens_read - began[1] >= _TIMED_STEPS * engine.backend.step_tokens:
                    break
        if engine.tokens_read == began[1]:
            began = started
        return (time.perf_counter() - began[0]) * tokens / (engine.tokens_read - began[1])

    def seconds_to_write(self, missing: Sequence[Writing], tokens: int) -> float:
        """The most seconds to generate these, with `tokens` to read.

        Estimated from some prompts of every kind and the first tokens after them, after an untimed one. An answer that
        has not ended by then is assumed to have the maximum length.
        """
        if not missing:
            return 0.0
        engine, requests = self.model.engine, _completions(missing, 0)
        sample = requests[:: max(1, len(requests) // _TIMED_PROMPTS)][:_TIMED_PROMPTS]
        engine.clear_cache()
        engine.complete(_shortened(sample[:1], 1))
        engine.clear_cache()
        began, before = time.perf_counter(), engine.tokens_read
        engine.complete(_shortened(sample, 1))
        between, read = time.perf_counter(), engine.tokens_read - before
        handles = engine.complete(_shortened(sample, _TIMED_TOKENS))  # after cached prompts
        writing = time.perf_counter() - between
        written = [handle.tokens[0] for handle in handles]
        lengths = [
            request.stop.max_tokens if tokens[-1].finish == "length" else len(tokens)
            for request, tokens in zip(sample, written, strict=True)
        ]
        per_token = writing / sum(map(len, written))
        return (between - began) / read * tokens + per_token * sum(lengths) * len(missing) / len(sample)

    def score(self, missing: Sequence[Encoded]) -> Iterator[tuple[dict[Encoded, Likelihood], int]]:
        """Yield ln p of these as soon as known, in batches, with the tokens read."""
        same: dict[tuple[Ids, Ids], list[Encoded]] = {}
        for request in missing:
            same.setdefault((request.context, request.continuation), []).append(request)
        for handle, read in self._answered(score_requests(missing)):
            pairs = zip(handle.request.continuations, handle.scores, strict=True)
            yield {
                request: likelihood(score)
                for continuation, score in pairs
                for request in same[handle.request.context, continuation]
            }, read  # fmt: skip

    def generate(self, missing: Sequence[Writing], seed: int) -> Iterator[tuple[Writing, str, int]]:
        """Yield the text after each prompt as soon as it is done, with the tokens read."""
        generations = {(prompt, generation.choices): generation for prompt, generation in missing}
        for handle, read in self._answered(_completions(missing, seed)):
            prompt, structure = handle.request.prompt, handle.request.structure
            generation = generations[prompt, (structure.choices or ()) if structure else ()]
            yield (prompt, generation), "".join(token.text for token in handle.tokens[0]), read

    @overload
    def _answered(self, requests: list[ScoreRequest]) -> Iterator[tuple[ScoreHandle, int]]: ...
    @overload
    def _answered(self, requests: list[CompletionRequest]) -> Iterator[tuple[CompletionHandle, int]]: ...
    def _answered(self, requests: Any) -> Iterator[tuple[Any, int]]:
        """Yield each request's handle as soon as it is done, and the tokens read since the previous one.

        The prefix cache is emptied first, so that what is read is what `tokens_to_score` says.
        """
        engine = self.model.engine
        if requests:
            engine.clear_cache()
        before = engine.tokens_read
        for handle in answered(engine, requests):
            read, before = engine.tokens_read - before, engine.tokens_read
            self.tokens_read += read
            yield handle, read


def encode_requests(model: LanguageModel, task: Task, asked: Sequence[LogprobRequest]) -> list[Encoded]:
    """Requests of a task in a model's tokens."""
    if task.chat is not None:
        return encode_chat(asked, model.tokenizer)
    if task.output == "generate_until":
        return [Encoded(tuple(model.encode(request.context)), ()) for request in asked]
    return [encode(request, model.tokenizer) for request in asked]


def _completions(wanted: Sequence[Writing], seed: int) -> list[CompletionRequest]:
    """The engine's completion requests."""
    return descending([completion_request(prompt, generation, seed) for prompt, generation in wanted])


def completion_request(prompt: Ids, generation: Generation, seed: int) -> CompletionRequest:
    """The engine's request for a generated answer."""
    sampling = SamplingParams(
        temperature=generation.temperature, top_k=generation.top_k, top_p=generation.top_p, seed=seed
    )
    stop = StopConfig(generation.max_tokens, generation.until)
    structure = Structure(choices=generation.choices) if generation.choices else None
    return CompletionRequest(prompt, sampling, stop, structure=structure)


def _shortened(requests: Sequence[CompletionRequest], most: int) -> list[CompletionRequest]:
    """The same requests, with at most `most` tokens."""
    return [
        replace(request, stop=replace(request.stop, max_tokens=min(most, request.stop.max_tokens)))
        for request in requests
    ]


def score_choices(
    questions: Sequence[Question], likelihoods: Mapping[Encoded, Likelihood], choice_scoring: str
) -> list[Answer]:
    """The answers to multiple-choice questions, from the likelihoods of all requests."""
    return [
        answer_choice(
            question.trial.task, question.item, question.shots, question.asked, question.encoded,
            [likelihoods[request] for request in question.encoded], choice_scoring,
            [likelihoods[request].logprob for request in question.premises],
        )
        for question in questions
    ]  # fmt: skip


def constrained_writings(runner: ModelRunner, questions: Sequence[Question]) -> list[Writing]:
    """The prompt of each question, with greedy decoding constrained to its choices.

    Raises UsageError if the choices of a question follow different tokens.
    """
    writings, tokenizer = [], runner.model.tokenizer
    for question in questions:
        context = question.encoded[0].context
        if any(request.context != context for request in question.encoded):
            raise UsageError(
                f"the choices of row {question.item.label} follow different tokens, so decoding cannot choose between"
                " them. Use --choice-scoring raw"
            )
        before = len(tokenizer.decode(list(context)))
        texts = tuple(tokenizer.decode([*context, *request.continuation])[before:] for request in question.encoded)
        longest = max(len(text.encode()) for text in texts)
        writings.append((context, Generation(until=(), max_tokens=longest + 1, choices=texts)))
    return writings


def choose_written(
    answers: Sequence[Answer], writings: Sequence[Writing], texts: Mapping[Writing, str]
) -> list[Answer]:
    """The answers, each with the generated choice."""
    chosen = []
    for answer, writing in zip(answers, writings, strict=True):
        scores = [float(choice == texts[writing]) for choice in writing[1].choices]
        chosen.append(replace(answer.choosing(scores), written=texts[writing]))
    return chosen
