"""Puts the trials of an evaluation to a model, and keeps every answer as it comes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from ..base import UsageError
from ..generate import LanguageModel
from .answers import Answer, answer_choice
from .chatting import encode_chat, show_chat
from .metrics import words
from .scoring import Scorer, Work, common, encode, windows
from .store import Store
from .task import Encoded, Generation, Ids, Item, Likelihood, Request, Task
from .trials import Beyond, Trial

Seen = Callable[[int], None]  # is told of tokens that were read since the last time


@dataclass(frozen=True)
class Question:
    """All that one item is asked under one condition, in tokens; `dropped` shots did not fit."""

    trial: Trial
    item: Item
    asked: tuple[Request, ...]
    encoded: tuple[Encoded, ...]
    dropped: int = 0

    @property
    def shots(self) -> int:
        """Shots that stand in the prompt."""
        return len(self.trial.shots_of(self.item)) - self.dropped


@dataclass
class Preparation:
    """Questions, and what preparing them showed."""

    questions: list[Question] = field(default_factory=list)
    longest: int = 0  # tokens of the longest prompt with its answer
    beyond: int = 0  # prompts that lost shots to fit
    apart: list[Encoded] = field(default_factory=list)  # whose answer begins inside a token of the prompt


class Asker:
    """One model, asked through a store. `work` counts the tokens read."""

    def __init__(self, model: LanguageModel, store: Store, at_once: int | None = None) -> None:
        self.model, self.store = model, store
        self.scorer = Scorer(model.engine.model, at_once)
        self.key = f"{store.hash_of(model.loaded.path)} {model.loaded.precision}"

    @property
    def work(self) -> Work:
        """What was read so far."""
        return self.scorer.work

    def prepare(self, trials: Sequence[Trial], items: Sequence[Item], beyond: Beyond) -> Preparation:
        """Render and tokenize everything. Raises UsageError where a prompt does not fit and no shots may be dropped."""
        made = Preparation()
        misfits: list[tuple[int, Question]] = []
        for trial in trials:
            for item in items:
                question, longest = self._fitted(trial, item, beyond)
                made.questions.append(question)
                made.longest = max(made.longest, longest)
                made.beyond += question.dropped > 0
                made.apart += [each for each in question.encoded if each.apart]
                if self._limit(trial.task) is not None and longest > self._limit(trial.task):  # type: ignore[operator]
                    misfits.append((longest, question))
        if misfits:
            longest, worst = max(misfits, key=lambda pair: pair[0])
            raise UsageError(
                f"{len(misfits)} of {len(made.questions)} prompts are longer than the model's context of"
                f" {self.model.spec.context} tokens (the longest: {longest}, with {worst.shots} shots). Use fewer"
                " shots, or --beyond drop, which leaves out whole shots and tells how many"
            )
        return made

    def _fitted(self, trial: Trial, item: Item, beyond: Beyond) -> tuple[Question, int]:
        limit, most = self._limit(trial.task), len(trial.shots_of(item))
        for dropped in range(most + 1):
            asked = show_chat(trial.requests(item, dropped), self.model.tokenizer)
            encoded = self.encode(trial.task, asked)
            longest = max(len(each.context) + len(each.continuation) for each in encoded)
            if beyond == "refuse" or limit is None or longest <= limit:
                break
        return Question(trial, item, tuple(asked), tuple(encoded), dropped), longest

    def _limit(self, task: Task) -> int | None:
        """Tokens that a prompt and its answer may have together; None where there is no limit."""
        longest = self.model.engine.model.longest
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
            tokenizer, context = self.model.tokenizer, self.model.engine.model.longest
            start = tokenizer.bos_id if tokenizer.bos_id is not None else min(tokenizer.stop_ids, default=0)
            tokens = tokenizer.encode(asked[0].continuation)
            return windows(tokens, start, context or len(tokens))
        return [encode(request, self.model.tokenizer) for request in asked]

    def likelihoods(self, wanted: Sequence[Encoded], seen: Seen | None = None) -> dict[Encoded, Likelihood]:
        """ln p of every request: from the store, or from the model and then kept."""
        distinct = list(dict.fromkeys(wanted))
        known = self.store.likelihoods(self.key, distinct)
        found = {distinct[number]: likelihood for number, likelihood in known.items()}
        missing = [request for request in distinct if request not in found]
        before = self.work.forwarded

        def keep(number: int, likelihood: Likelihood) -> None:
            nonlocal before
            found[missing[number]] = likelihood
            self.store.put_likelihood(self.key, missing[number], likelihood)
            if seen is not None:
                seen(self.work.forwarded - before)
            before = self.work.forwarded

        self.scorer.score(missing, keep)
        self.store.commit()
        return found

    def choices(
        self, questions: Sequence[Question], measure: str, premise: str | None, seen: Seen | None = None
    ) -> list[Answer]:
        """The answers to questions among choices; `premise` is what pointwise mutual information compares with."""
        wanted = [each for question in questions for each in question.encoded]
        before: dict[tuple[str, ...], list[Encoded]] = {}
        if measure == "pmi":
            for question in questions:
                texts = tuple(request.continuation for request in question.asked)
                if texts not in before:
                    before[texts] = [encode(Request(premise or "", text), self.model.tokenizer) for text in texts]
            wanted += [each for row in before.values() for each in row]
        found = self.likelihoods(wanted, seen)
        answers = []
        for question in questions:
            texts = tuple(request.continuation for request in question.asked)
            premises = [found[each].logprob for each in before.get(texts, ())]
            answers.append(
                answer_choice(
                    question.trial.task, question.item, question.shots, question.asked, question.encoded,
                    [found[each] for each in question.encoded], measure, premises,
                )
            )  # fmt: skip
        return answers

    def likelihood_of_texts(self, questions: Sequence[Question], seen: Seen | None = None) -> list[Answer]:
        """The answers to questions that ask how probable the right text is."""
        found = self.likelihoods([each for question in questions for each in question.encoded], seen)
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
                Answer(
                    question.item, question.shots, question.asked, question.encoded, (whole,), gold=text,
                    values=values,
                )
            )  # fmt: skip
        return answers

    def texts(
        self, prompts: Sequence[Ids], generation: Generation, seed: int, seen: Seen | None = None
    ) -> dict[Ids, list[str]]:
        """What the model writes behind each prompt, `generation.repeats` times."""
        distinct = sorted(dict.fromkeys(prompts))  # prompts that share a beginning stand together
        known = self.store.texts(self.key, distinct, generation, seed)
        found = {distinct[number]: texts for number, texts in known.items()}
        missing = [prompt for prompt in distinct if prompt not in found]
        for prompt, texts in self._write(missing, generation, seed):
            found[prompt] = texts
            self.store.put_text(self.key, prompt, generation, seed, texts)
            if seen is not None:
                seen(len(prompt))
        self.store.commit()
        return found

    def _write(self, prompts: Sequence[Ids], generation: Generation, seed: int) -> Iterator[tuple[Ids, list[str]]]:
        repeats = generation.repeats if generation.temperature > 0 else 1
        at_once = max(1, _WRITTEN_AT_ONCE // repeats)
        for start in range(0, len(prompts), at_once):
            some = prompts[start : start + at_once]
            completions = self.model.complete_all(
                some, n=repeats, max_tokens=generation.max_tokens, stop=generation.until, seed=seed,
                temperature=generation.temperature, top_p=generation.top_p, top_k=generation.top_k,
            )  # fmt: skip
            self.work.forwarded += completions[0].timings.prompt_tokens
            for number, prompt in enumerate(some):
                written = [each.text for each in completions[number * repeats : (number + 1) * repeats]]
                yield prompt, written * (generation.repeats // repeats)


_WRITTEN_AT_ONCE = 16
_TIMED_STEPS = 8


def tokens_to_read(requests: Sequence[Encoded]) -> int:
    """Tokens that a model reads for these requests when none that texts share is read twice."""
    texts = sorted({request.context + request.continuation[:-1] for request in requests})
    return sum(len(text) - common(before, text) for before, text in pairwise([(), *texts]))


def seconds_for(model: LanguageModel, tokens: int, written: int) -> float:
    """How long reading `tokens` and writing at most `written` tokens takes here, from one pass of each, timed."""
    scorer = Scorer(model.engine.model)
    request = Encoded(tuple(n % model.spec.vocabulary for n in range(scorer.at_once)), (0,))
    scorer.score([request])
    began = time.perf_counter()
    scorer.score([replace(request, continuation=(1,))])
    seconds = (time.perf_counter() - began) * tokens / scorer.at_once
    if written:
        made = model.complete_all([request.context[:8]], n=_WRITTEN_AT_ONCE, max_tokens=_TIMED_STEPS, temperature=0.0)
        seconds += made[0].timings.decode_seconds * written / (_WRITTEN_AT_ONCE * _TIMED_STEPS)
    return seconds
