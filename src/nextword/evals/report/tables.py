"""The report's tables and lists: scores, comparisons, confusion matrices, provenance."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from html import escape
from typing import Any

import numpy as np

from ..provenance import Provenance, ShotsRecord
from ..result_rows import Choice, ResultRow, differing, full_names, permutation_notes
from ..results import Collected, ConditionResult
from ..summary import Result

_MOST_LABELS = 26  # in a confusion matrix
_MOST_NAMED, _LONGEST_NAMES = 6, 60  # labels, and their total characters, that fit the heads of columns
_LONGEST_SHOWN = 60  # characters of a label
_MOST_NOTES = 20  # of each kind
_SHADES = 9  # classes s1 ... s9 of page.css


def lead(result: Result) -> str:
    """The number of items, and the best configuration."""
    groups = f" in {result.groups:,} groups" if result.groups else ""
    majority = f" Always the most frequent label: {result.majority:.3f}." if result.majority is not None else ""
    chosen = "" if result.chosen is None else f"<p>{escape(result.chosen.sentence)}</p>"
    return f"<p>{result.items:,} items{groups}.{majority}</p>{chosen}"


def table(result: Result) -> str:
    """A row for each configuration, with a collapsed table of its seeds and permutations."""
    columns = {name: cells for name, cells in _columns(result).items() if any(cells)}
    rows, names = [], full_names(result.rows)
    for number, row in enumerate(result.rows):
        kind = "" if row.variant == "plain" else ' class="variant"'
        rows.append(f"<tr{kind}>{cells_of([cells[number] for cells in columns.values()])}</tr>")
        rows.append(_seed_rows(row, names[row.choice], len(columns), result.metric))
    inside = scrolling("scores", grid(list(columns), rows)) + (_SPREADS if "sd of items" in columns else "")
    inside += f'<p class="notes">{_intervals(result)}</p>'
    return inside + "".join(f'<p class="notes">{escape(sentence)}</p>' for sentence in permutation_notes(result.rows))


def _columns(result: Result) -> dict[str, Sequence[str]]:
    """Cells by column head; a column without information is empty."""
    rows = result.rows
    models, templates = differing(row.choice for row in rows)
    metrics = list(dict.fromkeys(name for row in rows for name in row.metrics))
    return {
        "model": [escape(row.model) * models for row in rows],
        "template": [escape(row.template) * templates for row in rows],
        "shots": [_name(row) for row in rows],
        escape(result.metric): [f"{row.score.value:.3f}" for row in rows],
        "95% interval": [f"{row.score.low:.3f} to {row.score.high:.3f}" for row in rows],
        **dict(zip(_SPREAD, zip(*map(_spread, rows), strict=True), strict=True)),
        **{
            escape(name).replace(",", ",<wbr>"): [_metric(row, name) for row in rows]
            for name in metrics if len(metrics) > 1
        },
    }  # fmt: skip


_SPREAD = ("lowest to highest", "sd of seeds", "sd of permutations", "sd of items")
_SPREADS = (
    '<p class="notes">Lowest to highest: of any few-shot seed and permutation. sd of seeds, of permutations: standard'
    " deviation of the score between few-shot seeds, and between permutations of one seed, without the noise of the"
    " items; sd of items: between the items, each averaged over seeds and permutations.</p>"
)


def _intervals(result: Result) -> str:
    """What the intervals generalise to, and how they are computed."""
    clustered = ", clustered by group" if result.groups else ""
    parts = []
    if any(row.spread is not None for row in result.rows):
        parts.append(
            "With several few-shot seeds an interval holds for other items and other seeds: Student's t on both errors"
            f" (components of variance, Satterthwaite's degrees of freedom{clustered})."
        )
    if any(row.spread is None for row in result.rows):
        scores = {score for row in result.rows for seed in row.scores for permutation in seed for score in permutation}
        wilson = scores <= {0.0, 1.0} and not result.groups
        way = "Wilson's interval" if wilson else f"Student's t{clustered}"
        parts.append(f"With one set of prompts an interval holds for other items, with the same prompts: {way}.")
    return " ".join(parts)


def _metric(row: ResultRow, name: str) -> str:
    return f"{row.metrics[name]:.4g}" if name in row.metrics else ""


def _name(row: ResultRow) -> str:
    remarks = [row.caveat] if row.caveat else []
    if left := row.shots_left:
        remarks.append(f"{left}, {row.fewest_shots} at least")
    return escape(row.name) + "".join(f"<small>{escape(remark)}</small>" for remark in remarks)


def _spread(row: ResultRow) -> tuple[str, ...]:
    spread = row.spread
    if spread is None:
        return ("",) * len(_SPREAD)
    seeds = f"{spread.seeds:.3f}" if len(row.scores) > 1 else ""
    permutations = f"{spread.permutations:.3f}" if len(row.scores[0]) > 1 else ""
    return f"{row.lowest:.3f} to {row.highest:.3f}", seeds, permutations, f"{spread.items:.3f}"


def _seed_rows(row: ResultRow, name: str, columns: int, metric: str) -> str:
    if len(row.per_seed) < 2:
        return ""
    in_order = sorted(row.per_seed, key=lambda one: (one.fewshot_seed, one.permutation))
    cells = [
        (str(one.fewshot_seed + 1), str(one.permutation + 1), f"{one.score:.3f}", f"{one.shots:.3g}")
        for one in in_order
    ]
    rows = [f"<tr>{cells_of(own)}</tr>" for own in cells]
    return (
        f'<tr class="seeds"><td colspan="{columns}"><details><summary>every seed and permutation of {escape(name)}'
        f"</summary>{grid(['seed', 'permutation', escape(metric), 'shots in the prompt'], rows)}</details></td></tr>"
    )


def grid(heads: Sequence[str], rows: Iterable[str]) -> str:
    """A table of rendered heads and rows."""
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def cells_of(cells: Sequence[str]) -> str:
    """A row of cells, given as HTML."""
    return "".join(f"<td>{cell}</td>" for cell in cells)


def scrolling(what: str, inside: str) -> str:
    """A box that scrolls horizontally, also by keyboard, so that a wide table does not widen the page."""
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{what}">{inside}</div>'


def comparisons(result: Result) -> str:
    """A sentence for each comparison, requested ones first, then baselines; and their power."""
    if not result.comparisons:
        return ""
    listed = ""
    for family in result.families:
        sentences = [pair.sentence for pair in result.comparisons if pair.primary is family.primary]
        head = "" if family.primary else "<h3>With baselines</h3>"
        listed += f'{head}{_sentences(sentences)}<p class="notes">{escape(family.sentence)}</p>'
    if result.power:
        listed += f"<h3>Power</h3>{_sentences(result.power.splitlines())}"
    return f"<section><h2>Comparisons</h2>{listed}</section>"


def requirements(result: Result) -> str:
    """The requirements, and whether they are met."""
    judged = result.requirements
    if not judged:
        return ""
    met = sum(requirement.outcome == "met" for requirement in judged)
    counted = f'<p class="notes">{met} of {len(judged)} are met.</p>'
    listed = _sentences([requirement.sentence for requirement in judged])
    return f"<section><h2>Requirements</h2>{counted}{listed}</section>"


def _sentences(sentences: Iterable[str]) -> str:
    return '<ul class="sentences">' + "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences) + "</ul>"


def confusions(collected: Collected, result: Result) -> str:
    """Confusion matrices, summed over all seeds and permutations of a configuration."""
    if collected.task.output != "multiple_choice":
        return ""
    by_choice: dict[Choice, list[ConditionResult]] = {}
    for own in collected.conditions:
        by_choice.setdefault(own.condition.choice, []).append(own)
    names = full_names(result.rows)
    figures = "".join(_confusion(own, names[choice]) for choice, own in by_choice.items())
    if not figures:
        return ""
    return (
        "<section><h2>Confusion matrices</h2><p class='notes'>Counts of answers, summed over all seeds and"
        " permutations of a configuration; in parentheses the share of the row, i.e. of one right answer.</p>"
        f'<div class="confusions">{figures}</div></section>'
    )


def _confusion(results: Sequence[ConditionResult], name: str) -> str:
    answers = [answer for result in results for answer in result.answers]
    labels = list(answers[0].choices)
    if len(labels) > _MOST_LABELS or any(list(answer.choices) != labels for answer in answers):
        return ""
    counts = np.zeros((len(labels), len(labels)), int)
    for answer in answers:
        if isinstance(answer.gold, int) and answer.gold >= 0:
            counts[answer.gold, int(answer.prediction)] += 1
    numbered = len(labels) > _MOST_NAMED or sum(map(len, labels)) > _LONGEST_NAMES
    names = [f"{number}: {label}" if numbered else label for number, label in enumerate(labels, 1)]
    rows = "".join(_confusion_row(label, number, counts[number]) for number, label in enumerate(names))
    short = [
        f'<abbr title="{escape(label)}">{number}</abbr>' if numbered else escape(label)
        for number, label in enumerate(labels, 1)
    ]
    head = "".join(f'<th scope="col">{label}</th>' for label in short)
    inside = (
        f'<table><thead><tr><td></td><th scope="colgroup" colspan="{len(labels)}">model\'s answer</th></tr>'
        f'<tr><th scope="col">right answer</th>{head}</tr></thead><tbody>{rows}</tbody></table>'
    )
    name += _summed(results)
    if left := len(answers) - int(counts.sum()):
        name += f"; {left:,} answers to items without a single right choice are not counted"
    kind = "confusion" + " numbered" * numbered
    return f'<figure class="{kind}"><figcaption>{escape(name)}</figcaption>{scrolling(escape(name), inside)}</figure>'


def _confusion_row(label: str, right: int, counts: np.ndarray) -> str:
    total = int(counts.sum())
    cells = []
    for number, count in enumerate(map(int, counts)):
        share = count / total if total else 0.0
        kind = f"{'hit' if number == right else 'miss'} s{round(share * _SHADES)}"
        cells.append(f'<td class="{kind}">{count:,}{f" <small>({share:.0%})</small>" if count else ""}</td>')
    shown = label if len(label) <= _LONGEST_SHOWN else label[: _LONGEST_SHOWN - 1] + "…"
    return f'<tr><th scope="row">{escape(shown)}</th>{"".join(cells)}</tr>'


def _summed(results: Sequence[ConditionResult]) -> str:
    """The number of seeds and permutations that are summed."""
    seeds, permutations = (
        len({getattr(result.condition, name) for result in results}) for name in ("fewshot_seed", "permutation")
    )
    several = [f"{count} {word}" for count, word in ((seeds, "seeds"), (permutations, "permutations")) if count > 1]
    return f" ({' × '.join(several)} of {len(results[0].answers):,} items)" if several else ""


def notes(result: Result) -> str:
    """Warnings about the data and the prompts."""
    return "".join(f"<li>{escape(row)}</li>" for row in result.notes.lines(_MOST_NOTES))


def left_out(shown: int, left: int) -> str:
    """A notice about items that are not shown, and the reason."""
    if not left:
        return ""
    return (
        f'<p class="notice"><b>{shown:,} of {shown + left:,} items are shown</b>, the same under every condition: a'
        f" page with all answers would be too large for a browser, so {left:,} randomly drawn items are"
        " omitted here. The numbers above cover all items; <code>--out FOLDER</code> writes every answer to files.</p>"
    )


def how_measured(record: Provenance | None) -> str:
    """How to run the evaluation again."""
    if record is None:
        return "<p>Not recorded.</p>"
    parts = [_command(record.command)]
    parts.append(_facts({"date": f"{record.date} (UTC)", "nextword": record.version, **record.machine}))
    parts += [f"<h3>Model</h3>{_facts(asdict(model))}" for model in record.models]
    parts.append(f"<h3>Task</h3>{_facts(asdict(record.task))}")
    parts += [
        f"<h3>Template: {escape(template.name)}</h3>{_facts(_given(template.parts))}" for template in record.templates
    ]
    parts.append(f"<h3>Conditions</h3>{_facts(record.design)}<h3>Scoring</h3>{_facts(record.scoring)}")
    if record.shots:
        parts.append(f"<details><summary>The shots of every few-shot seed</summary>{_shots(record.shots)}</details>")
    return "".join(parts)


def _shots(shots: Sequence[ShotsRecord]) -> str:
    rows = []
    for own in shots:
        cells = [own.template, own.shots, own.variant, own.fewshot_seed + 1, own.permutation + 1, ", ".join(own.rows)]
        rows.append(f"<tr>{cells_of([escape(str(cell)) for cell in cells])}</tr>")
    return scrolling("shots", grid(["template", "shots", "variant", "seed", "permutation", "rows, from 0"], rows))


def _command(command: str | None) -> str:
    if command is None:
        return "<p>Called from Python.</p>"
    return (
        f'<pre class="command" id="command" tabindex="0">{escape(command)}</pre>'
        '<button type="button" id="copy">copy the command</button>'
    )


def _given(parts: Mapping[str, Any]) -> dict[str, Any]:
    """The non-empty parts of a template."""
    return {name: value for name, value in parts.items() if value not in (None, "", False, (), [], {})}


def _facts(facts: Mapping[str, Any]) -> str:
    """A list of names and values."""
    rows = [
        f"<dt>{escape(name.replace('_', ' '))}</dt><dd>{escape(_fact(value))}</dd>" for name, value in facts.items()
    ]
    return f"<dl>{''.join(rows)}</dl>"


def _fact(value: Any) -> str:
    """Texts, quoted if their ends are invisible; lists separated by commas."""
    if value is None or value == [] or value == ():
        return "none"
    if isinstance(value, list | tuple) and all(isinstance(entry, str | int) for entry in value):
        return ", ".join(map(_fact, value))
    if isinstance(value, str) and value and value == value.strip():
        return value
    return json.dumps(value, ensure_ascii=False)
