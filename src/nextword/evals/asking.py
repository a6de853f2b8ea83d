"""Puts the trials of an evaluation to a model, and keeps every answer as it comes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any, overload

from ..base import UsageError
from ..engine import CompletionHandle, LanguageModel, SamplingParams, ScoreHandle, ScoreRequest, StopConfig, Structure
from ..engine import Request as CompletionRequest
from .answers import Answer, answer_choice
from .chatting import encode_chat, show_chat
from .metrics import words
from .running import answered, descending, tokens_to_read
from .scoring import encode, likelihood, score_requests, windows
from .store import Store
from .task import Encoded, Generation, Ids, Item, Likelihood, Request, Task
from .trials import Condition, Overflow, Trial

Seen = Callable[[int], None]  # is told of tokens that were read since the last time
Writing = tuple[Ids, Generation]  # a prompt, and how its answer is written


@dataclass(frozen=True)
class Question:
    """All that one item is asked under one condition, in tokens; `dropped` shots did not fit.

    `premises` are the same choices behind a premise in place of the question, where a measure compares with it.
    """

    trial: Trial
    item: Item
    asked: tuple[Request, ...]
    encoded: tuple[Encoded, ...]
    dropped: int = 0
    premises: tuple[Encoded, ...] = ()

    @property
    def shots(self) -> int:
        """Shots that stand in the prompt."""
        return len(self.trial.shots_of(self.item)) - self.dropped

    @property
    def longest(self) -> int:
        """Tokens of its longest prompt with its answer."""
        return max(len(each.context) + len(each.continuation) for each in (*self.encoded, *self.premises))


@dataclass
class Preparation:
    """Everything that a model is asked, and what preparing it showed."""

    questions: list[Question] = field(default_factory=list)
    # of a condition to calibrate, by the number of dropped shots: the labels behind inputs without content
    content_free: dict[tuple[Condition, int], list[tuple[Encoded, ...]]] = field(default_factory=dict)
    embedded: int = 0  # tokens read to find similar shots, before anything else could be said
    shortened: int = 0  # prompts that lost shots to fit
    apart: list[Encoded] = field(default_factory=list)  # whose answer begins inside a token of the prompt

    def requests(self) -> list[Encoded]:
        """All that is asked, each once: what an evaluation costs, and what it reads."""
        asked = [each for question in self.questions for each in (*question.encoded, *question.premises)]
        asked += [each for rows in self.content_free.values() for row in rows for each in row]
        return list(dict.fromkeys(asked))


class Asker:
    """One model, asked through a store. `tokens_read` counts those of prompts and of texts to score."""

    def __init__(self, model: LanguageModel, store: Store) -> None:
        self.model, self.store = model, store
        self.tokens_read = 0
        self.key = f"{store.hash_of(model.loaded.path)} {model.loaded.precision}"

    def prepare(
        self, trials: Sequence[Trial], items: Sequence[Item], overflow: Overflow, premise: str | None = None,
        with_premises: bool = False,
    ) -> Preparation:  # fmt: skip
        """Render and tokenize everything. Raises UsageError where a prompt does not fit and no shots may be dropped.

        `with_premises` for a measure that compares each choice with itself behind a premise: see `Trial.premises`.
        """
        made = Preparation()
        misfits: list[Question] = []
        for trial in trials:
            limit = self._limit(trial.task)
            for item in items:
                question = self._fitted(trial, item, overflow, premise, with_premises)
                made.questions.append(question)
                made.shortened += question.dropped > 0
                made.apart += [each for each in question.encoded if each.apart]
                if limit is not None and question.longest > limit:
                    misfits.append(question)
        if misfits:
            worst = max(misfits, key=lambda question: question.longest)
            raise UsageError(
                f"{len(misfits)} of {len(made.questions)} prompts are longer than the model's context of"
                f" {self.model.spec.context} tokens (the longest: {worst.longest}, with {worst.shots} shots). Use fewer"
                " shots, or --overflow drop-shots, which drops whole shots and reports how many"
            )
        return made

    def _fitted(
        self, trial: Trial, item: Item, overflow: Overflow, premise: str | None, with_premises: bool
    ) -> Question:
        limit, most = self._limit(trial.task), len(trial.shots_of(item))
        for dropped in range(most + 1):
            asked = show_chat(trial.requests(item, dropped), self.model.tokenizer)
            premises = self.encode(trial.task, trial.premises(item, premise, dropped)) if with_premises else []
            question = Question(
                trial, item, tuple(asked), tuple(self.encode(trial.task, asked)), dropped, tuple(premises)
            )
            if overflow == "error" or limit is None or question.longest <= limit:
                break
        return question

    def _limit(self, task: Task) -> int | None:
        """Tokens that a prompt and its answer may have together; None where there is no limit."""
        longest = self.model.engine.backend.context
        if longest is None or task.output == "loglikelihood_rolling":
            return None
        return longest - task.generation.max_tokens if task.output == "generate_until" else longest

    def encode(self, task: Task, asked: Sequence[Request]) -> list[Encoded]:
        """Requests in tokens; a whole text as pieces that fit the context."""
        if task.chat is not None:
            return encode_chat(asked, self.model.tokenizer)
        if task.output == "generate_until":
            return [Encoded(tuple(self.model.encode(request.context)), ()) for request in asked]
        if task.output == "loglikelihood_rolling":
            tokenizer, context = self.model.tokenizer, self.model.engine.backend.context
            start = tokenizer.bos_id if tokenizer.bos_id is not None else min(tokenizer.stop_ids, default=0)
            tokens = tokenizer.encode(asked[0].continuation)
            return windows(tokens, start, context or len(tokens))
        return [encode(request, self.model.tokenizer) for request in asked]

    def missing(self, asked: Sequence[Encoded], writes: Generation | None, seed: int) -> list[Encoded]:
        """What of `asked` the store cannot answer. `writes` is how free answers are written, if they are."""
        if writes is None:
            known = set(self.store.likelihoods(self.key, asked))
            return [each for place, each in enumerate(asked) if place not in known]
        written = self._written([(each.context, writes) for each in asked], seed)
        return [each for each in asked if (each.context, writes) not in written]

    def tokens(self, missing: Sequence[Encoded], writes: Generation | None) -> int:
        """Tokens that are read for what is missing."""
        if writes is None:
            return tokens_to_read(self.model.engine, score_requests(missing))
        return self.tokens_of_prompts([(each.context, writes) for each in missing])

    def tokens_of_prompts(self, missing: Sequence[Writing]) -> int:
        """Tokens that are read before answers are written."""
        return tokens_to_read(self.model.engine, _completions(missing, 0))

    def unwritten(self, wanted: Sequence[Writing], seed: int) -> list[Writing]:
        """What of `wanted` the store does not hold, each once."""
        written = self._written(wanted, seed)
        return [each for each in dict.fromkeys(wanted) if each not in written]

    def _written(self, wanted: Sequence[Writing], seed: int) -> dict[Writing, list[str]]:
        """What the store holds of `wanted`."""
        prompts: dict[Generation, list[Ids]] = {}
        for prompt, generation in dict.fromkeys(wanted):
            prompts.setdefault(generation, []).append(prompt)
        return {
            (own[number], generation): texts
            for generation, own in prompts.items()
            for number, texts in self.store.texts(self.key, own, generation, seed).items()
        }

    def likelihoods(self, wanted: Sequence[Encoded], seen: Seen | None = None) -> dict[Encoded, Likelihood]:
        """ln p of every request: from the store, or from the model and then kept."""
        distinct = list(dict.fromkeys(wanted))
        known = self.store.likelihoods(self.key, distinct)
        found = {distinct[number]: answer for number, answer in known.items()}
        missing: dict[tuple[Ids, Ids], list[Encoded]] = {}
        for each in distinct:
            if each not in found:
                missing.setdefault((each.context, each.continuation), []).append(each)
        for handle in self._answered(score_requests(each for same in missing.values() for each in same), seen):
            request = handle.request
            for continuation, score in zip(request.continuations, handle.scores, strict=True):
                for each in missing[request.context, continuation]:
                    found[each] = likelihood(score)
                    self.store.put_likelihood(self.key, each, found[each])
        self.store.commit()
        return found

    def texts(self, wanted: Sequence[Writing], seed: int, seen: Seen | None = None) -> dict[Writing, list[str]]:
        """What is written behind each prompt, `repeats` times: from the store, or from the model and then kept."""
        found = self._written(wanted, seed)
        missing = [each for each in dict.fromkeys(wanted) if each not in found]
        ways = {(prompt, generation.choices): generation for prompt, generation in missing}
        for handle in self._answered(_completions(missing, seed), seen):
            written = ["".join(token.text for token in tokens) for tokens in handle.tokens]
            prompt, structure = handle.request.prompt, handle.request.structure
            generation = ways[prompt, (structure.choices or ()) if structure else ()]
            found[prompt, generation] = written * (generation.repeats // len(written))
            self.store.put_text(self.key, prompt, generation, seed, found[prompt, generation])
        self.store.commit()
        return found

    @overload
    def _answered(self, requests: list[ScoreRequest], seen: Seen | None) -> Iterator[ScoreHandle]: ...
    @overload
    def _answered(self, requests: list[CompletionRequest], seen: Seen | None) -> Iterator[CompletionHandle]: ...
    def _answered(self, requests: Any, seen: Seen | None) -> Iterator[Any]:
        """Each request's handle as soon as it is done, and `seen` told once that was taken.

        The prefix cache is emptied before, so that what is read is what `tokens` says.
        """
        engine = self.model.engine
        if requests:
            engine.clear_cache()
        before = engine.tokens_read
        for handle in answered(engine, requests):
            read, before = engine.tokens_read - before, engine.tokens_read
            self.tokens_read += read
            yield handle
            if seen is not None:
                seen(read)


_TIMED_PROMPTS = 16
_TIMED_TOKENS = 8
_TIMED_STEPS = 2


def _drawn(generation: Generation) -> int:
    """Answers written behind one prompt: greedy decoding would write the same ones."""
    return generation.repeats if generation.temperature > 0 else 1


def _completions(wanted: Sequence[Writing], seed: int) -> list[CompletionRequest]:
    """What the engine is asked to write."""
    return descending([_completion(prompt, generation, seed) for prompt, generation in wanted])


def _completion(prompt: Ids, generation: Generation, seed: int) -> CompletionRequest:
    sampling = SamplingParams(
        temperature=generation.temperature, top_k=generation.top_k, top_p=generation.top_p, seed=seed
    )
    stop = StopConfig(generation.max_tokens, generation.until)
    structure = Structure(choices=generation.choices) if generation.choices else None
    return CompletionRequest(prompt, sampling, stop, n=_drawn(generation), structure=structure)


def choices(questions: Sequence[Question], found: Mapping[Encoded, Likelihood], measure: str) -> list[Answer]:
    """The answers to questions among choices, from the likelihoods of all that was asked."""
    return [
        answer_choice(
            question.trial.task, question.item, question.shots, question.asked, question.encoded,
            [found[each] for each in question.encoded], measure, [found[each].logprob for each in question.premises],
        )
        for question in questions
    ]  # fmt: skip


def likelihood_of_texts(questions: Sequence[Question], found: Mapping[Encoded, Likelihood]) -> list[Answer]:
    """The answers to questions that ask how probable the right text is."""
    answers = []
    for question in questions:
        parts = [found[each] for each in question.encoded]
        whole = Likelihood(tuple(p for part in parts for p in part.logprobs), all(part.greedy for part in parts))
        text = question.asked[0].continuation
        size = len(text.encode())
        values = {
            "acc": float(whole.greedy), "logprob": whole.logprob, "tokens": float(len(whole.logprobs)),
            "bytes": float(size), "words": float(words(text)),
        }  # fmt: skip
        rolling = question.trial.task.output == "loglikelihood_rolling"
        values["score"] = whole.logprob / max(1, size) if rolling else values["acc"]
        answers.append(
            Answer(question.item, question.shots, question.asked, question.encoded, (whole,), gold=text, values=values)
        )
    return answers


def seconds_for(asker: Asker, missing: Sequence[Encoded], writes: Generation | None, tokens: int) -> float:
    """How long the model takes here for what is missing, `tokens` to read, from a part of that very work, timed.

    Where it writes, that is an upper bound: answers that go on in that part are taken to go on to the limit.
    """
    if not missing:
        return 0.0
    if writes is None:
        return _seconds_to_score(asker, missing, tokens)
    return seconds_to_write(asker, [(each.context, writes) for each in missing], tokens)


def _seconds_to_score(asker: Asker, missing: Sequence[Encoded], tokens: int) -> float:
    """From some steps in the middle of the work, after one that is not timed: the first of a process is slow."""
    engine, requests = asker.model.engine, score_requests(missing)
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


def seconds_to_write(asker: Asker, missing: Sequence[Writing], tokens: int) -> float:
    """From reading some prompts of every kind and writing the first tokens behind them, after one that is not timed.

    An answer that has not ended by then is taken to be as long as it may be.
    """
    if not missing:
        return 0.0
    engine, requests = asker.model.engine, _completions(missing, 0)
    size = max(1, _TIMED_PROMPTS // requests[0].n)
    some = requests[:: max(1, len(requests) // size)][:size]
    engine.clear_cache()
    engine.complete(_ended(some[:1], 1))
    engine.clear_cache()
    began, before = time.perf_counter(), engine.tokens_read
    engine.complete(_ended(some, 1))
    between, read = time.perf_counter(), engine.tokens_read - before
    made = engine.complete(_ended(some, _TIMED_TOKENS))  # behind prompts in the cache
    writing = time.perf_counter() - between
    answers = [(request, steps) for request, handle in zip(some, made, strict=True) for steps in handle.tokens]
    lengths = [request.stop.max_tokens if steps[-1].finish == "length" else len(steps) for request, steps in answers]
    a_token = writing / sum(len(steps) for _, steps in answers)
    return (between - began) / read * tokens + a_token * sum(lengths) * len(missing) / len(some)


def _ended(requests: Sequence[CompletionRequest], most: int) -> list[CompletionRequest]:
    """The same, ended after at most `most` tokens."""
    return [
        replace(request, stop=replace(request.stop, max_tokens=min(most, request.stop.max_tokens)))
        for request in requests
    ]


def tokens_to_write(missing: Sequence[Encoded], generation: Generation) -> int:
    """The most that is written behind these prompts."""
    return len(missing) * generation.max_tokens * _drawn(generation)
