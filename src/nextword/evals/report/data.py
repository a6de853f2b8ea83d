"""The report's embedded data: items, deduplicated prompts, and columns of answers."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ...engine.pages import common_prefix
from ..design import Condition
from ..result_rows import differing, full_name, row_name
from ..results import Answer, Collected, ConditionResult
from ..task import Ids

if TYPE_CHECKING:
    from ..served import EvalModel

MOST_NUMBERS = 4_000_000  # per page, about 5 bytes each; with more, a sample of the items is shown
_LEAST = -9999.0  # for ln 0, which JSON lacks
_CHOSEN_BY = {
    "chars": "ln p per character", "bytes": "ln p per byte", "tokens": "ln p per token",
    "pmi": "ln p less ln p after the premise", "constrained": "what greedy decoding among the choices writes",
    "contextual": "score after contextual calibration", "batch": "score after batch calibration",
}  # fmt: skip


def embedded(collected: Collected, models: Mapping[str, EvalModel]) -> dict[str, Any]:
    """Conditions with their answers, in columns over the same items. `left_out`: the number of items not included."""
    prompts = [_Prompts(result) for result in collected.conditions]
    shown = _shown_items(collected, prompts)
    tails: dict[str, dict[Ids, int]] = {name: {} for name in models}
    conditions: list[dict[str, Any]] = []
    names = condition_names([result.condition for result in collected.conditions])
    base = 0  # the condition whose likelihoods the following calibrated ones share
    for number, result in enumerate(collected.conditions):
        answers = [result.answers[index] for index in shown]
        condition = {"name": names[number], **_verdicts(answers), **_chosen_by(result, collected.choice_scoring)}
        if result.condition.variant in ("contextual", "batch"):
            condition["base"] = base
        else:
            base = number
            condition |= _asked(result, answers, prompts[number], shown, tails[result.condition.model])
        conditions.append(condition)
    return {
        "output": collected.task.output,
        "items": [[item.label, item.group] for item in (collected.items[index] for index in shown)],
        "left_out": len(collected.items) - len(shown),
        "conditions": conditions,
        "templates": _templates(collected, shown),
        "models": {name: _model(models[name], prompts, tails[name], collected.conditions) for name in models},
    }


def condition_names(conditions: Sequence[Condition]) -> list[str]:
    """Each condition's name: that of its row, with seed and permutation if there are several."""
    differ = differing([condition.choice for condition in conditions])
    seeds = any(condition.fewshot_seed for condition in conditions)
    permutations = any(condition.permutation for condition in conditions)
    return [
        ", ".join([
            full_name(own.model, own.template, row_name(own.shots, own.variant, False), differ),
            *[f"seed {own.fewshot_seed + 1}"] * (seeds and own.shots > 0),
            *[f"permutation {own.permutation + 1}"] * (permutations and own.shots > 0),
        ])
        for own in conditions
    ]  # fmt: skip


class _Prompts:
    """A condition's prompts in tokens: the shared prefix, and each item's suffix."""

    def __init__(self, result: ConditionResult) -> None:
        contexts = [answer.encoded[0].context for answer in result.answers]
        first, last = min(contexts), max(contexts)
        self.prefix: Ids = first[: common_prefix(first, last)]
        self.tails: list[Ids] = [context[len(self.prefix) :] for context in contexts]


def _shown_items(collected: Collected, prompts: Sequence[_Prompts]) -> list[int]:
    """Indices of the items to show: all, or a random sample if there are too many for a browser."""
    count, seen, numbers = len(collected.items), set[tuple[str, Ids]](), 0
    for result, own in zip(collected.conditions, prompts, strict=True):
        for answer, tail in zip(result.answers, own.tails, strict=True):
            numbers += 4 + len(answer.choices) + len(answer.written or "") // 5
            if (result.condition.model, tail) not in seen:
                seen.add((result.condition.model, tail))
                numbers += len(tail)
    if numbers <= MOST_NUMBERS:
        return list(range(count))
    return sorted(random.Random("page").sample(range(count), max(1, count * MOST_NUMBERS // numbers)))


def _verdicts(answers: Sequence[Answer]) -> dict[str, Any]:
    """Columns of answers and scores."""
    return {
        "said": [answer.prediction if answer.choices else str(answer.prediction) for answer in answers],
        "score": [round(answer.score, 4) for answer in answers],
    }


def _chosen_by(result: ConditionResult, choice_scoring: str) -> dict[str, Any]:
    """The scores that decided between choices, if not ln p: name, range and columns."""
    variant = result.condition.variant
    way = variant if variant in _CHOSEN_BY else choice_scoring
    if not result.answers[0].choices or way not in _CHOSEN_BY:
        return {}
    scores = [[_number(score) for score in answer.choice_scores] for answer in result.answers]
    every = [score for row in scores for score in row]
    return {"by": _CHOSEN_BY[way], "range": [min(every), max(every)], "scores": scores}


def _asked(
    result: ConditionResult, answers: Sequence[Answer], prompts: _Prompts, shown: Sequence[int], tails: dict[Ids, int]
) -> dict[str, Any]:
    """The prompts and the answers' likelihoods; calibrated conditions refer to it."""
    columns: dict[str, Any] = {
        "model": result.condition.model, "template": result.condition.template, "prefix": prompts.prefix,
        "tails": [tails.setdefault(prompts.tails[index], len(tails)) for index in shown],
        "shots": [answer.shots for answer in answers],
    }  # fmt: skip
    if answers[0].choices:
        columns["logprobs"] = [[_number(p) for p in answer.logprobs] for answer in answers]
    else:
        columns["written"] = [answer.written for answer in answers]
    return columns


def _number(value: float) -> float:
    return float(f"{max(_LEAST, float(value)):.5g}")  # keeps the order of small calibrated scores


def _templates(collected: Collected, shown: Sequence[int]) -> dict[str, Any]:
    """Correct answers and choices under each template; stored once if all items share them."""
    templates: dict[str, Any] = {}
    for result in collected.conditions:
        if result.condition.template in templates:
            continue
        answers = [result.answers[index] for index in shown]
        choices = [list(answer.choices) for answer in answers]
        same = all(own == choices[0] for own in choices)
        templates[result.condition.template] = {
            "choices": choices[:1] if same else choices,
            "gold": [answer.gold if isinstance(answer.gold, list) else [answer.gold] for answer in answers],
        }
    return templates


def _token(text: bytes) -> str | list[int]:
    """A token's text, or its bytes if it holds partial characters, which the page joins."""
    try:
        return text.decode()
    except UnicodeDecodeError:
        return list(text)


def _model(
    model: EvalModel, prompts: Sequence[_Prompts], tails: dict[Ids, int], results: Sequence[ConditionResult]
) -> dict[str, Any]:
    """The suffixes that conditions refer to, each token's text, and which tokens are control tokens."""
    prefixes = [
        own.prefix for own, result in zip(prompts, results, strict=True) if result.condition.model == model.name
    ]
    ids = {token for text in (*tails, *prefixes) for token in text}
    return {
        "tails": list(tails),
        "tokens": {token: _token(model.tokenizer.token_bytes(token)) for token in sorted(ids)},
        "control": sorted(ids & model.tokenizer.special.control),
    }
