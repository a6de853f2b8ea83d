"""The report's examples as the page carries them: items once, prompts as a shared beginning and an ending, columns."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

from ..engine import LanguageModel
from ..engine.pages import common_prefix
from .answers import Answer
from .collected import Cell, Collected
from .lines import full_name, line_name, several
from .task import Ids
from .trials import Condition

MOST_NUMBERS = 4_000_000  # on a page, some 5 bytes each; beyond them a sample of the items is shown
_LEAST = -9999.0  # stands for the logarithm of 0, which JSON has no word for
_CHOSEN_BY = {
    "chars": "ln p per character", "bytes": "ln p per byte", "tokens": "ln p per token",
    "pmi": "ln p less ln p after the premise", "constrained": "what greedy decoding among the choices writes",
    "contextual": "score after contextual calibration", "batch": "score after batch calibration",
}  # fmt: skip


def embedded(collected: Collected, models: dict[str, LanguageModel]) -> dict[str, Any]:
    """Conditions with their answers, in columns over the same items. `left_out` counts items that found no room."""
    prompts = [_Prompts(cell, collected.task.output == "loglikelihood_rolling") for cell in collected.cells]
    places = _places(collected, prompts)
    tails: dict[str, dict[Ids, int]] = {name: {} for name in models}
    conditions: list[dict[str, Any]] = []
    names = condition_names([cell.condition for cell in collected.cells])
    base = 0  # the condition whose likelihoods the calibrated ones after it share
    for number, cell in enumerate(collected.cells):
        answers = [cell.answers[place] for place in places]
        condition = {"name": names[number], **_verdicts(answers), **_chosen_by(cell, collected.measure)}
        if cell.calibration is not None:
            condition["base"] = base
        else:
            base = number
            condition |= _asked(cell, answers, prompts[number], places, tails[cell.condition.model])
        conditions.append(condition)
    return {
        "output": collected.task.output,
        "items": [[item.label, item.group] for item in (collected.items[n] for n in places)],
        "left_out": len(collected.items) - len(places),
        "conditions": conditions,
        "forms": _forms(collected, places),
        "models": {name: _model(models[name], prompts, tails[name], collected.cells) for name in models},
    }


def embedded_json(data: dict[str, Any]) -> str:
    """JSON that may stand in a script element whatever texts it holds: no character of it means anything to HTML."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def condition_names(conditions: Sequence[Condition]) -> list[str]:
    """Each condition's name: that of its line, and its draw and order where there are several."""
    differ, orders = several([each.choice for each in conditions]), any(each.order for each in conditions)
    draws = any(each.draw for each in conditions)
    return [
        ", ".join([
            full_name(each.model, each.form, line_name(each.shots, each.variant, False), differ),
            *[f"draw {each.draw + 1}"] * (draws and each.shots > 0),
            *[f"order {each.order + 1}"] * (orders and each.shots > 0),
        ])
        for each in conditions
    ]  # fmt: skip


class _Prompts:
    """A condition's prompts in tokens: the beginning that all share, and each item's ending."""

    def __init__(self, cell: Cell, rolling: bool) -> None:
        """A `rolling` task has none: its text stands among the right answers."""
        contexts = [() if rolling else answer.encoded[0].context for answer in cell.answers]
        first, last = min(contexts), max(contexts)
        self.prefix: Ids = first[: common_prefix(first, last)]
        self.tails: list[Ids] = [context[len(self.prefix) :] for context in contexts]


def _places(collected: Collected, prompts: Sequence[_Prompts]) -> list[int]:
    """Numbers of the items that are shown: all, or a drawn sample where these would be more than a browser takes."""
    count, seen, numbers = len(collected.items), set[tuple[str, Ids]](), 0
    for cell, asked in zip(collected.cells, prompts, strict=True):
        for answer, tail in zip(cell.answers, asked.tails, strict=True):
            numbers += 4 + len(answer.choices) + sum(map(len, answer.written)) // 5
            if (cell.condition.model, tail) not in seen:
                seen.add((cell.condition.model, tail))
                numbers += len(tail)
    if numbers <= MOST_NUMBERS:
        return list(range(count))
    return sorted(random.Random("page").sample(range(count), max(1, count * MOST_NUMBERS // numbers)))


def _verdicts(answers: Sequence[Answer]) -> dict[str, Any]:
    """What was said, and how right it was: a column each."""
    return {
        "said": [answer.prediction if answer.choices else str(answer.prediction) for answer in answers],
        "score": [round(answer.values["score"], 4) for answer in answers],
    }


def _chosen_by(cell: Cell, measure: str) -> dict[str, Any]:
    """The scores that choices were taken by, where these are not ln p: their name, range and columns."""
    variant = cell.condition.variant
    way = variant if variant in _CHOSEN_BY else measure
    if not cell.answers[0].choices or way not in _CHOSEN_BY:
        return {}
    scores = [[_number(score) for score in answer.choice_scores] for answer in cell.answers]
    every = [score for row in scores for score in row]
    return {"by": _CHOSEN_BY[way], "range": [min(every), max(every)], "scores": scores}


def _asked(
    cell: Cell, answers: Sequence[Answer], prompts: _Prompts, places: Sequence[int], tails: dict[Ids, int]
) -> dict[str, Any]:
    """What was asked and how likely the answers were; calibrated conditions refer to it."""
    found: dict[str, Any] = {
        "model": cell.condition.model, "form": cell.condition.form, "prefix": prompts.prefix,
        "tails": [tails.setdefault(prompts.tails[place], len(tails)) for place in places],
        "shots": [answer.shots for answer in answers],
    }  # fmt: skip
    if answers[0].choices:
        found["logprobs"] = [[_number(p) for p in answer.logprobs] for answer in answers]
    elif answers[0].likelihoods:
        names = ("logprob", "tokens", "bytes", "words")
        found["numbers"] = [[_number(answer.values[name]) for name in names] for answer in answers]
    else:
        found["written"] = [answer.written for answer in answers]
    return found


def _number(value: float) -> float:
    return float(f"{max(_LEAST, float(value)):.5g}")  # a small score after calibration keeps its order


def _forms(collected: Collected, places: Sequence[int]) -> dict[str, Any]:
    """Each form's right answers and choices: those of all items once, where they are the same."""
    forms: dict[str, Any] = {}
    for cell in collected.cells:
        if cell.condition.form in forms:
            continue
        answers = [cell.answers[place] for place in places]
        choices = [[str(choice) for choice in answer.choices] for answer in answers]
        same = all(each == choices[0] for each in choices)
        golds = [answer.gold if isinstance(answer.gold, list | tuple) else [answer.gold] for answer in answers]
        forms[cell.condition.form] = {
            "choices": choices[:1] if same else choices,
            "gold": [[each if isinstance(each, int) else str(each) for each in gold] for gold in golds],
        }
    return forms


def _token(found: bytes) -> str | list[int]:
    """A token's text; its bytes where it holds parts of characters, which the page joins with its neighbours'."""
    try:
        return found.decode()
    except UnicodeDecodeError:
        return list(found)


def _model(
    model: LanguageModel, prompts: Sequence[_Prompts], tails: dict[Ids, int], cells: Sequence[Cell]
) -> dict[str, Any]:
    """The endings that conditions refer to, each token's text, and which of them no text produces."""
    prefixes = [asked.prefix for asked, cell in zip(prompts, cells, strict=True) if cell.condition.model == model.name]
    ids = {token for text in (*tails, *prefixes) for token in text}
    return {
        "tails": list(tails),
        "tokens": {token: _token(model.tokenizer.token_bytes(token)) for token in sorted(ids)},
        "control": sorted(ids & model.tokenizer.special.control),
    }
