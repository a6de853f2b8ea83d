"""The playground's prompts with examples: built-in tasks, a question after several numbers of shots, stored results.

Prompts are made, tokenized and scored by what `nextword eval` uses. No request can name a file.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from starlette.responses import Response

from ..base import UsageError
from ..engine.pages import common_prefix
from ..evals.calibration import label_probabilities
from ..evals.chat_prompts import show_chat
from ..evals.checks import warnings_of, warnings_of_shots
from ..evals.design import Condition, Design
from ..evals.fewshot import sample_shots
from ..evals.grid import Trial
from ..evals.provenance import prompt_digest
from ..evals.results import answer_choice, answer_text
from ..evals.runner import completion_request, encode_requests
from ..evals.scorers import scorer_of
from ..evals.scoring import likelihood, score_requests
from ..evals.store import default_path, opened
from ..evals.stored import result_of
from ..evals.task import Chat, Encoded, Item, LogprobRequest, PromptFormat, Task
from ..evals.task_files import builtin_tasks
from ..evals.task_loader import open_task, typed_label
from ..evals.template import ANSWER, Template, text_of
from ..weights.catalogue import DEFAULT_MODEL
from .bodies import EvaluationsBody, PromptBody
from .errors import ApiError
from .pieces import LEAST, shown_tokens
from .prompts import check_size, too_long
from .requests import answer

if TYPE_CHECKING:
    from ..engine import CompletionHandle, ScoreHandle
    from .call import Call
    from .models import Model

LARGEST = 200_000  # bytes of all texts of one request
QUESTIONS, SETS, EXAMPLES = 24, 5, 16  # shown of each task; the sets are those of the first few-shot seeds
_LIMIT = 200  # items that a suggested evaluation scores: more take long
_MOST_STORED = 50  # looked at


@cache
def _built_in() -> dict[str, Task]:
    """The built-in tasks, read once."""
    return {name: open_task(name)[name] for name in builtin_tasks()}


def _sets(task: Task, count: int = EXAMPLES) -> list[list[Mapping[str, Any]]]:
    """The shots that `nextword eval` draws with its default settings, for each few-shot seed."""
    design = Design()
    drawn = (sample_shots(task, count, design.sampler, design.seed, number) for number in range(SETS))
    return [[shot.values for shot in shots] for shots in drawn]


# ---- tasks


async def tasks(call: Call, body: None) -> Response:
    """The built-in evaluation tasks: template, labels, some questions, and sets of examples."""

    def work() -> list[dict[str, Any]]:
        summaries = builtin_tasks()
        return [_described(task, summaries[name]) for name, task in _built_in().items()]

    return answer({"tasks": await call.prepare(work)})


def _described(task: Task, summary: str) -> dict[str, Any]:
    format, step = task.format, max(1, len(task.items) // QUESTIONS)
    return {
        "name": task.name,
        "summary": summary,
        "template": format.template.source,
        "target": format.target,
        "labels": None if format.generates else format.choices_from,
        "indexed": format.indexed,
        "items": len(task.items),
        "questions": [item.values for item in task.items[::step][:QUESTIONS]],
        "examples": _sets(task),
    }


# ---- a prompt with several numbers of shots


@dataclass(frozen=True)
class _Column:
    """The prompt with so many shots, in the model's tokens. `error`: it is too long, and is not asked."""

    shots: int
    asked: tuple[LogprobRequest, ...] = ()
    encoded: tuple[Encoded, ...] = ()
    error: str = ""


async def prompt(call: Call, body: PromptBody) -> Response:
    """A question after several numbers of examples: each prompt in tokens, and the probability of each label."""
    call.admit(len(body.shots))
    model = await call.use(body.model)

    def start() -> tuple[Task, list[_Column], list[ScoreHandle], list[CompletionHandle]]:
        try:
            task = _task(body)
            columns = [_column(model, task, shots) for shots in body.shots]
        except UsageError as error:
            raise ApiError(400, str(error), "template" if "the template" in str(error) else None) from None
        encoded = [request for column in columns for request in column.encoded]
        if task.format.generates:
            wanted = [completion_request(one.context, task.generation, Design().seed) for one in encoded]
            return task, columns, [], [call.hold(model.engine.submit(request)) for request in wanted]
        return task, columns, [call.hold(model.engine.submit(request)) for request in score_requests(encoded)], []

    task, columns, scoring, writing = await call.prepare(start)
    for handle in scoring:
        await call.done(handle)
    async for _ in call.tokens(writing):
        pass
    scores = {
        (handle.request.context, tokens): likelihood(score)
        for handle in scoring
        for tokens, score in zip(handle.request.continuations, handle.scores, strict=True)
    }
    known = _is_known(task.format, body.question)

    def finish() -> dict[str, Any]:
        written, shown = iter(writing), []
        for column in columns:
            if column.error:
                shown.append({"shots": column.shots, "error": column.error})
            elif task.format.generates:
                shown.append(_written(model, task, column, next(written), known))
            else:
                shown.append(_scored(model, task, column, scores, known))
        command, own_examples = _command(model, body, task)
        return {
            "model": model.id, "columns": shown, "command": command, "own_examples": own_examples,
            "digest": prompt_digest(task), "warnings": _warnings(task, max(body.shots)),
        }  # fmt: skip

    return answer(await call.prepare(finish))


def _task(body: PromptBody) -> Task:
    """The task with one question to score, and the examples in their order. Raises ApiError."""
    if len(msgspec.json.encode(body)) > LARGEST:
        raise ApiError(400, f"the texts have more than {LARGEST:,} bytes together. Shorten them")
    if max(body.shots) > len(body.examples):
        most, there = max(body.shots), len(body.examples)
        raise ApiError(400, f"shots is {most}, and there are {there} examples. Give more, or use fewer", "shots")
    base = _format(body) if body.task is None else _known(body.task)
    format = base.format
    if body.template is not None or body.labels is not None:
        format = replace(format, template=_template(body, format), words=_words(body, format))
    pool = tuple(Item("examples", number, row) for number, row in enumerate(body.examples))
    question = Item("question", 0, _answered(format, body.question))
    for item in (question, *pool):
        if format.gold(item.values) == -1:
            labels = ", ".join(map(repr, format.choice_names(item.values)))
            given = item.values[format.target]
            raise ApiError(400, f"the answer {given!r} is none of the labels: {labels}", item.split)
    chat = Chat(body.system or "") if body.chat else None
    return replace(base, format=format, items=(question,), fewshot_pool=pool, chat=chat)


def _known(name: str) -> Task:
    tasks = _built_in()
    if name not in tasks:
        raise ApiError(400, f"there is no built-in task {name!r}. Known: {', '.join(tasks)}", "task")
    return tasks[name]


def _format(body: PromptBody) -> Task:
    """A task of the user's own: its answers are in the column `output`, among `labels` or free."""
    if body.template is None:
        raise ApiError(400, "without a task, a prompt needs its template", "template")
    format = PromptFormat(
        _parsed(body.template, ANSWER), ANSWER, tuple(body.labels or ()), generates=body.labels is None
    )
    return Task("questions", (), (), format, () if body.labels else (scorer_of("exact"),))


def _template(body: PromptBody, format: PromptFormat) -> Template:
    return format.template if body.template is None else _parsed(body.template, format.target)


def _parsed(source: str, target: str) -> Template:
    template = Template.parse(source, target)
    if len(template.names) > 32:
        raise ApiError(400, "the template has more than 32 placeholders. Use fewer", "template")
    return template


def _words(body: PromptBody, format: PromptFormat) -> dict[str, str]:
    """What the labels are called in the prompt."""
    if body.task is None or body.labels is None:
        return dict(format.words)
    names = format.choices_from
    if format.generates or len(body.labels) != len(names) or not all(label.strip() for label in body.labels):
        count = 0 if format.generates else len(names)
        raise ApiError(400, f"{body.task} has {count} labels. Give a word for each, or leave them out", "labels")
    return dict(zip(names, body.labels, strict=True))


def _is_known(format: PromptFormat, question: Mapping[str, Any]) -> bool:
    """Whether the question comes with its answer."""
    value = question.get(format.target)
    return value not in (None, []) and bool(text_of(value).strip())


def _answered(format: PromptFormat, question: Mapping[str, Any]) -> Mapping[str, Any]:
    """The question with any answer if its own is not known: it is not a part of the prompt."""
    if _is_known(format, question):
        return question
    return {**question, format.target: "?"} if format.generates else format.with_answer(question, 0)


def _column(model: Model, task: Task, shots: int) -> _Column:
    """The prompt, if it fits with its answer. Raises ApiError if it is longer by far."""
    trial = Trial(Condition(model.id, task.name, shots), task, {None: task.fewshot_pool[:shots]})
    asked = trial.requests(task.items[0])
    first = asked[0]
    check_size(model, first.context + "\n".join(message.content for message in first.messages), "examples")
    asked = show_chat(asked, model.tokenizer)
    encoded = encode_requests(model.lm, task, asked)
    room = task.generation.max_tokens if task.format.generates else 0
    longest = max(len(request.context) + max(len(request.continuation), room) for request in encoded)
    if longest > model.context:
        return _Column(shots, error=too_long(model, longest, "examples").message)
    return _Column(shots, tuple(asked), tuple(encoded))


def _warnings(task: Task, shots: int) -> list[str]:
    item = task.items[0]
    return [*warnings_of(task), *warnings_of_shots([(item, task.fewshot_pool[:shots])])]


# ---- answers


def _base(model: Model, column: _Column, shared: int) -> dict[str, Any]:
    context = column.encoded[0].context[:shared]
    prompt = column.asked[0].context
    return {"shots": column.shots, "prompt": prompt, "tokens": shown_tokens(model.tokenizer, context)}


def _scored(
    model: Model, task: Task, column: _Column, scores: Mapping[tuple[Any, Any], Any], known: bool
) -> dict[str, Any]:
    """A column with ln p of each label, its share among them, and the probability of none of them."""
    likelihoods = [scores[request.context, request.continuation] for request in column.encoded]
    found = answer_choice(task, task.items[0], column.shots, column.asked, column.encoded, likelihoods, "raw")
    logprobs = np.array([max(LEAST, logprob) for logprob in found.logprobs])
    contexts = [request.context for request in column.encoded]
    shared = common_prefix(min(contexts), max(contexts))
    labels = [
        {
            "label": choice,
            "tokens": shown_tokens(model.tokenizer, (*request.context, *request.continuation)[shared:]),
            "logprobs": [max(LEAST, logprob) for logprob in own.logprobs],  # of the last tokens
            "logprob": float(logprob),
            "share": float(share),
        }
        for choice, request, own, logprob, share in zip(
            found.choices, column.encoded, likelihoods, logprobs, label_probabilities(logprobs), strict=True
        )
    ]
    return {
        **_base(model, column, shared),
        "labels": labels,
        "none": _none_of_them(column.encoded, logprobs) if len(set(contexts)) == 1 else None,
        "chosen": found.prediction,
        "right": found.gold if known else None,
    }


def _none_of_them(encoded: Sequence[Encoded], logprobs: Any) -> float:
    """The probability that the text goes on with no label. A label that begins with another one is a part of it."""
    texts = [request.continuation for request in encoded]
    whole = [
        logprob
        for text, logprob in zip(texts, logprobs, strict=True)
        if not any(other != text and text[: len(other)] == other for other in texts)
    ]
    return max(0.0, 1.0 - float(np.exp(whole).sum()))


def _written(model: Model, task: Task, column: _Column, handle: CompletionHandle, known: bool) -> dict[str, Any]:
    """A column with the answer that the model wrote, and its score."""
    [tokens] = handle.tokens
    text = "".join(token.text for token in tokens)
    found = answer_text(task, task.items[0], column.shots, column.asked, column.encoded, text)
    shown = shown_tokens(model.tokenizer, [token.id for token in tokens])
    return {
        **_base(model, column, len(column.encoded[0].context)),
        "written": text,
        "answer": [
            {**shown_token, "logprob": max(LEAST, token.logprob)}
            for shown_token, token in zip(shown, tokens, strict=True)
        ],
        "score": found.score if known else None,
    }


# ---- measuring it


def _command(model: Model, body: PromptBody, task: Task) -> tuple[str, bool]:
    """The command that measures these prompts over the task's items, and whether it needs a file of the examples."""
    words = ["nextword", "eval", body.task or "questions.csv"]
    if model.lm.name != DEFAULT_MODEL:
        words += ["--model", model.lm.name]
    words += ["--shots", ",".join(map(str, dict.fromkeys(body.shots)))]
    if body.template is not None:
        words += ["--template", body.template.replace("\n", "\\n")]
    if body.labels is not None:
        names = task.format.choices_from if body.task else body.labels
        pairs = [name if name == word else f"{name}={word}" for name, word in zip(names, body.labels, strict=True)]
        words += ["--labels", ",".join(map(typed_label, pairs))]
    elif body.task is None:
        words += ["--generate"]
    if body.chat:
        words += ["--system", body.system] if body.system else ["--chat-template", "on"]
    most, known = max(body.shots), None if body.task is None else _built_in()[body.task]
    drawn = known and most <= len(known.fewshot_pool) and body.examples[:most] in _sets(known, most)
    own = bool(most) and not drawn
    if own:
        words += ["--shots-from", "examples.jsonl", "--fewshot-sampler", "first"]
    if known and len(known.items) > _LIMIT:
        words += ["--limit", str(_LIMIT)]
    return shlex.join(words), own


async def evaluations(call: Call, body: EvaluationsBody) -> Response:
    """Stored evaluations of a built-in task with a model, the newest first: what `nextword eval` measured."""
    model = await call.use(body.model)

    def work() -> list[dict[str, Any]]:
        _known(body.task)
        path = default_path()
        if not path.exists():
            return []
        with opened(path) as store:
            stored = store.evaluations(body.task, _MOST_STORED)
        found = (_summary(each, model) for each in reversed(stored))
        return [each for each in found if each is not None]

    return answer({"model": model.id, "evaluations": await call.prepare(work)})


def _summary(stored: Any, model: Model) -> dict[str, Any] | None:
    """What an evaluation found of this model; None if it has nothing, or is of another version."""
    try:
        result = result_of(stored)
    except UsageError:
        return None
    if (made := result.provenance) is None:
        return None
    file = model.lm.loaded.path.name
    precision = {record.name: record.precision for record in made.models if record.file == file}
    rows = [row for row in result.rows if row.model in precision]
    if not rows:
        return None
    digests = {record.name: record.digest for record in made.templates}
    return {
        "name": stored.name,
        "finished": stored.finished,
        "metric": result.metric,
        "items": result.items,
        "precision": precision[rows[0].model],
        "rows": [
            {
                "template": row.template, "digest": digests.get(row.template), "shots": row.shots,
                "variant": row.variant, "value": row.score.value, "low": row.score.low, "high": row.score.high,
                "one_set": row.one_set,
            }
            for row in rows
        ],
    }  # fmt: skip
