"""An evaluation as one HTML page: the curve, the comparisons, and every example with its prompt. No network needed."""

from __future__ import annotations

import json
import re
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from ..base import RunError
from ..base.files import atomic_write
from ..generate import LanguageModel
from .answers import Answer
from .calibration import label_probabilities
from .evaluation import Cell, Collected
from .summary import Line, Result

_ASSETS = Path(__file__).parent / "report"
MOST_ANSWERS = 20_000  # on a page; beyond them those of the first conditions are shown
_RIGHT, _WRONG = "61,154,91", "192,80,77"
_COLOURS = ("#2f6fde", "#d9822b", "#3d9a5b", "#b04fa8", "#8a7a2f", "#c0504d")


def write_report(path: Path, collected: Collected, result: Result, models: dict[str, LanguageModel]) -> None:
    """Write the page to `path`; `models` by name turn token ids to text. Raises RunError where that fails."""
    page = (_ASSETS / "page.html").read_text(encoding="utf-8")
    data = json.dumps(_examples(collected, models), ensure_ascii=False).replace("</", "<\\/")
    parts = {
        "title": escape(f"{result.task}: {result.metric}"),
        "lead": _lead(result),
        "curve": curve(result),
        "table": _table(result),
        "sentences": "".join(f"<li>{escape(each.sentence)}</li>" for each in result.comparisons),
        "confusion": _confusions(collected),
        "notes": _notes(result),
        "style": (_ASSETS / "page.css").read_text(encoding="utf-8"),
        "script": (_ASSETS / "page.js").read_text(encoding="utf-8"),
        "data": data,
    }
    pieces = re.split(r"<!-- (\w+) -->", page)
    page = "".join(parts[piece] if number % 2 else piece for number, piece in enumerate(pieces))
    try:
        with atomic_write(path) as file:
            file.write(page)
    except OSError as error:
        raise RunError(f"{path}: the report could not be written ({error.strerror or error})") from error


def _lead(result: Result) -> str:
    groups = f" in {result.groups:,} groups" if result.groups else ""
    majority = f" Always the most frequent label: {result.majority:.3f}." if result.majority is not None else ""
    chosen = ""
    if result.chosen is not None:
        honest = result.chosen.honest
        chosen = (
            f" Best of {result.chosen.alternatives} ways of asking: <b>{escape(result.chosen.name)}</b>, chosen on one"
            f" half of the items, {honest.value:.3f} [{honest.low:.3f}, {honest.high:.3f}] on the other."
        )
    return f"{result.items:,} items{groups}.{majority}{chosen}"


def curve(result: Result) -> str:
    """Scores against shots with their intervals, as SVG: a line for each model and form."""
    plain = [line for line in result.lines if line.variant == "plain"]
    others = [line for line in result.lines if line.variant != "plain"]
    shots = sorted({line.shots for line in result.lines})
    low = min(0.0 if result.majority is None else result.majority, *(line.score.low for line in result.lines))
    high = max(line.score.high for line in result.lines)
    low, high = low - 0.05 * (high - low or 1), high + 0.05 * (high - low or 1)
    left, top, width, height = 60, 16, 560, 260

    def x(count: int) -> float:
        return left + width * (shots.index(count) + 0.5) / len(shots)

    def y(value: float) -> float:
        return top + height * (high - value) / (high - low)

    parts = [f'<svg viewBox="0 0 {left + width + 20} {top + height + 44}" role="img" aria-label="score against shots">']
    for tick in _ticks(low, high):
        parts.append(f'<line x1="{left}" x2="{left + width}" y1="{y(tick):.1f}" y2="{y(tick):.1f}" class="grid"/>')
        parts.append(f'<text x="{left - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:.2f}</text>')
    for count in shots:
        parts.append(f'<text x="{x(count):.1f}" y="{top + height + 18}" text-anchor="middle">{count}</text>')
    parts.append(f'<text x="{left + width / 2}" y="{top + height + 38}" text-anchor="middle">shots</text>')
    if result.majority is not None:
        place = y(result.majority)
        parts.append(f'<line x1="{left}" x2="{left + width}" y1="{place:.1f}" y2="{place:.1f}" class="majority"/>')
        parts.append(f'<text x="{left + width}" y="{place - 5:.1f}" text-anchor="end">most frequent label</text>')
    series = list(dict.fromkeys((line.model, line.form) for line in plain))
    for number, name in enumerate(series):
        mine = sorted((line for line in plain if (line.model, line.form) == name), key=lambda line: line.shots)
        colour, shift = _COLOURS[number % len(_COLOURS)], 10 * (number - (len(series) - 1) / 2)
        points = " ".join(f"{x(line.shots) + shift:.1f},{y(line.score.value):.1f}" for line in mine)
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [_point(line, x(line.shots) + shift, y, colour) for line in mine]
    variants = list(dict.fromkeys(line.variant for line in others))
    for line in others:
        parts.append(_point(line, x(line.shots) + 16 + 12 * variants.index(line.variant), y, "#999"))
    return "".join(parts) + "</svg>"


def _point(line: Line, x: float, y: Any, colour: str) -> str:
    score = line.score
    said = f"{line.model}, {line.form}, {line.name}: {score.value:.3f} [{score.low:.3f}, {score.high:.3f}]"
    return (
        f'<g stroke="{colour}"><title>{escape(said)}</title>'
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y(score.low):.1f}" y2="{y(score.high):.1f}"/>'
        f'<circle cx="{x:.1f}" cy="{y(score.value):.1f}" r="4" fill="{colour}"/></g>'
    )


def _ticks(low: float, high: float) -> list[float]:
    step = next((step for step in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10) if (high - low) / step <= 7), 100)
    return [float(n * step) for n in range(int(np.ceil(low / step)), int(np.floor(high / step)) + 1)]


def _table(result: Result) -> str:
    several = [len({getattr(line, name) for line in result.lines}) > 1 for name in ("model", "form")]
    heads = [name for name, shown in zip(("model", "template"), several, strict=True) if shown]
    heads += ["shots", result.metric, "95% interval", "draws and orders", "sd of draws", "sd of orders", "sd of items"]
    rows = []
    for line in result.lines:
        spread = line.spread
        cells = [value for value, shown in zip((line.model, line.form), several, strict=True) if shown]
        cells += [line.name, f"{line.score.value:.3f}", f"{line.score.low:.3f} to {line.score.high:.3f}"]
        cells += [f"{line.lowest:.3f} to {line.highest:.3f}" if spread else ""]
        cells += [f"{value:.3f}" for value in (spread.draws, spread.orders, spread.items)] if spread else [""] * 3
        kind = "" if line.variant == "plain" else ' class="variant"'
        rows.append(f"<tr{kind}>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>")
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _confusions(collected: Collected) -> str:
    """Gold against predicted, for each way of asking's first draw, where all items have one set of labels."""
    labels = list(collected.cells[0].answers[0].choices)
    fixed = all(list(answer.choices) == labels for cell in collected.cells for answer in cell.answers)
    if not labels or not fixed or len(labels) > 26:
        return "<p>No set of labels that all items share.</p>"
    shown: dict[Any, Cell] = {}
    for cell in collected.cells:
        shown.setdefault(cell.condition.choice, cell)
    return "".join(_confusion(cell, labels) for cell in shown.values())


def _confusion(cell: Cell, labels: list[str]) -> str:
    counts = np.zeros((len(labels), len(labels)), int)
    for answer in cell.answers:
        if isinstance(answer.gold, int) and isinstance(answer.prediction, int):
            counts[answer.gold, answer.prediction] += 1
    most = max(1, int(counts.max()))
    rows = ""
    for gold, label in enumerate(labels):
        cells = "".join(
            f'<td style="background:rgba({_RIGHT if gold == n else _WRONG},{0.7 * count / most:.2f})">{count}</td>'
            for n, count in enumerate(counts[gold])
        )
        rows += f"<tr><th>{escape(label)}</th>{cells}</tr>"
    head = "".join(f"<th>{escape(label)}</th>" for label in labels)
    name = f"{cell.condition.model}, {cell.condition.form}, {cell.condition.shots} shots"
    name += "" if cell.condition.variant == "plain" else f", {cell.condition.variant}"
    return (
        f'<figure class="confusion"><figcaption>{escape(name)}</figcaption><table><thead><tr><th>gold \\ said</th>'
        f"{head}</tr></thead><tbody>{rows}</tbody></table></figure>"
    )


def _notes(result: Result) -> str:
    notes = result.notes
    lines = list(notes.reading[:20])
    if notes.repeated:
        lines.append(f"{notes.repeated} scored items say the same as an example that shots are drawn from")
    lines += [f"an answer begins inside a token: {last!r} and then {first!r}" for last, first in notes.apart]
    lines += notes.chat
    if notes.short_of_shots:
        lines.append(f"{notes.short_of_shots} prompts lost whole shots to fit the context")
    return "".join(f"<li>{escape(line)}</li>" for line in lines)


def _examples(collected: Collected, models: dict[str, LanguageModel]) -> dict[str, Any]:
    """Conditions, and for each its answers; a token's text stands once for each model."""
    tokens: dict[str, dict[int, str]] = {name: {} for name in models}
    conditions, left = [], MOST_ANSWERS
    for cell in collected.cells:
        if left <= 0:
            break
        condition = cell.condition
        name = [condition.model] * (len(models) > 1) + [condition.form, f"{condition.shots} shots"]
        name += [f"draw {condition.draw + 1}", f"order {condition.order + 1}"] if condition.shots else []
        name += [] if condition.variant == "plain" else [condition.variant]
        answers = [_example(answer, models[condition.model], tokens[condition.model]) for answer in cell.answers[:left]]
        left -= len(answers)
        conditions.append({"name": ", ".join(name), "model": condition.model, "answers": answers})
    return {"conditions": conditions, "tokens": tokens}


def _example(answer: Answer, model: LanguageModel, tokens: dict[int, str]) -> dict[str, Any]:
    ids = answer.encoded[0].context
    for token in ids:
        if token not in tokens:
            tokens[token] = model.tokenizer.token_text(token)
    gold = answer.gold
    found: dict[str, Any] = {
        "id": f"{answer.item.split} {answer.item.index}", "prompt": list(ids), "score": answer.values["score"],
        "group": answer.item.group, "shots": answer.shots,
    }  # fmt: skip
    if answer.choices:
        shares = label_probabilities(np.array([answer.logprobs]))[0]
        found |= {
            "choices": [str(choice) for choice in answer.choices], "shares": [round(float(p), 4) for p in shares],
            "logprobs": [round(p, 4) for p in answer.logprobs], "said": answer.prediction,
            "gold": list(gold) if isinstance(gold, list | tuple) else gold,
        }  # fmt: skip
    elif answer.written:
        golds = list(gold) if isinstance(gold, list | tuple) else [gold]
        found |= {
            "written": list(answer.written),
            "said": str(answer.prediction),
            "gold": [str(each) for each in golds],
        }
    else:
        found |= {"gold": str(gold), "said": f"ln p {answer.values['logprob']:.3f}"}
    return found
