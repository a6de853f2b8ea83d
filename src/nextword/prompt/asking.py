"""Puts the trials of an evaluation to a model, and keeps every answer as it comes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ..base import UsageError
from ..engine import Completion, LanguageModel
from ..engine.engine import tokens_to_read as tokens_of_prompts
from .answers import Answer, answer_choice
from .chatting import encode_chat, show_chat
from .metrics import words
from .scoring import Scorer, Work, encode, tokens_to_read, windows
from .store import Store
from .task import Encoded, Generation, Ids, Item, Likelihood, Request, Task
from .trials import Condition, Overflow, Trial

Seen = Callable[[int], None]  # is told of tokens that were read since the last time


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
    """One model, asked through a store. `work` counts the tokens read."""

    def __init__(self, model: LanguageModel, store: Store, at_once: int | None = None) -> None:
        self.model, self.store = model, store
        self.scorer = Scorer(model.engine.model, at_once)
        self.key = f"{store.hash_of(model.loaded.path)} {model.loaded.precision}"

    @property
    def work(self) -> Work:
        """What was read so far."""
        return self.scorer.work

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

    def missing(self, asked: Sequence[Encoded], writes: Generation | None, seed: int) -> list[Encoded]:
        """What of `asked` the store cannot answer. `writes` is how free answers are written, if they are."""
        if writes is None:
            known = set(self.store.likelihoods(self.key, asked))
        else:
            known = set(self.store.texts(self.key, [each.context for each in asked], writes, seed))
        return [each for place, each in enumerate(asked) if place not in known]

    def tokens(self, missing: Sequence[Encoded], writes: Generation | None) -> int:
        """Tokens that are read for what is missing."""
        if writes is None:
            return tokens_to_read(missing, self.model.engine.model, self.scorer.at_once)
        return sum(tokens_of_prompts(batch) for batch in _batches([each.context for each in missing], writes))

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

    def texts(
        self, prompts: Sequence[Ids], generation: Generation, seed: int, seen: Seen | None = None
    ) -> dict[Ids, list[str]]:
        """What the model writes behind each prompt, `generation.repeats` times."""
        distinct = list(dict.fromkeys(prompts))
        known = self.store.texts(self.key, distinct, generation, seed)
        found = {distinct[number]: texts for number, texts in known.items()}
        missing = [prompt for prompt in distinct if prompt not in found]
        for prompt, texts in self._write(missing, generation, seed, seen):
            found[prompt] = texts
            self.store.put_text(self.key, prompt, generation, seed, texts)
        self.store.commit()
        return found

    def _write(
        self, prompts: Sequence[Ids], generation: Generation, seed: int, seen: Seen | None
    ) -> Iterator[tuple[Ids, list[str]]]:
        repeats = _drawn(generation)
        for batch in _batches(prompts, generation):
            completions = self.complete(batch, generation, seed, generation.max_tokens)
            read = tokens_of_prompts(batch)
            self.work.forwarded += read
            for number, prompt in enumerate(batch):
                written = [each.text for each in completions[number * repeats : (number + 1) * repeats]]
                yield prompt, written * (generation.repeats // repeats)
            if seen is not None:
                seen(read)

    def complete(self, batch: Sequence[Ids], generation: Generation, seed: int, most: int) -> list[Completion]:
        """What is written behind each prompt of a batch, in `most` tokens."""
        return self.model.complete_all(
            batch, n=_drawn(generation), max_tokens=most, stop=generation.until, seed=seed,
            temperature=generation.temperature, top_p=generation.top_p, top_k=generation.top_k,
        )  # fmt: skip


_WRITTEN_AT_ONCE = 16
_TIMED_STEPS = 8
_TIMED_PASSES = 2


def _drawn(generation: Generation) -> int:
    """Answers written behind one prompt: greedy decoding would write the same ones."""
    return generation.repeats if generation.temperature > 0 else 1


def _batch_size(generation: Generation) -> int:
    return max(1, _WRITTEN_AT_ONCE // _drawn(generation))


def _batches(prompts: Sequence[Ids], generation: Generation) -> list[list[Ids]]:
    """Prompts that are written behind together, those that share a beginning side by side."""
    in_order, size = sorted(prompts), _batch_size(generation)
    return [in_order[start : start + size] for start in range(0, len(in_order), size)]


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


def seconds_for(asker: Asker, missing: Sequence[Encoded], writes: Generation | None) -> float:
    """How long the model takes here for what is missing, from a part of that very work, timed.

    Where it writes, that is an upper bound: answers that go on in that part are taken to go on to the limit.
    """
    if not missing:
        return 0.0
    return _seconds_to_score(asker, missing) if writes is None else _seconds_to_write(asker, missing, writes)


def _seconds_to_score(asker: Asker, missing: Sequence[Encoded]) -> float:
    """From some passes in the middle of the work, after one that is not timed: the first of a process is slow."""
    in_order = sorted(missing, key=lambda each: each.context + each.continuation)
    scorer = Scorer(asker.model.engine.model, asker.scorer.at_once)  # its own: this is not the evaluation's work
    began, before = time.perf_counter(), 0
    for _ in scorer.stream(in_order[len(in_order) // 2 :]):
        if before == 0:
            before, warm = scorer.work.forwarded, time.perf_counter()
        if scorer.work.forwarded - before >= _TIMED_PASSES * scorer.at_once:
            break
    read = scorer.work.forwarded
    if read > before:
        began, read = warm, read - before
    return (time.perf_counter() - began) * asker.tokens(missing, None) / read


def _seconds_to_write(asker: Asker, missing: Sequence[Encoded], generation: Generation) -> float:
    """From the first tokens behind a batch of prompts of every kind, after a short one that is not timed.

    An answer that has not ended by then is taken to be as long as it may be.
    """
    in_order, size = sorted(each.context for each in missing), _batch_size(generation)
    batch = in_order[:: max(1, len(in_order) // size)][:size]
    asker.complete(batch[:1], generation, 0, 1)
    made = asker.complete(batch, generation, 0, min(_TIMED_STEPS, generation.max_tokens))
    timings = made[0].timings
    reading = timings.prefill_seconds / tokens_of_prompts(batch) * asker.tokens(missing, generation)
    lengths = [generation.max_tokens if each.finish == "length" else len(each.ids) for each in made]
    return reading + timings.decode_seconds / timings.generated_tokens * sum(lengths) * len(missing) / len(batch)


def tokens_to_write(missing: Sequence[Encoded], generation: Generation) -> int:
    """The most that is written behind these prompts."""
    return len(missing) * generation.max_tokens * _drawn(generation)
