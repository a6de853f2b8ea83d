"""The report's tables and lists: scores, comparisons, confusion matrices."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

import numpy as np

from .collected import Cell, Collected
from .lines import Choice, full_name, several
from .summary import Line, Result

_MOST_LABELS = 26  # in a confusion matrix
_MOST_NAMED, _LONGEST_NAMES = 6, 60  # labels, and their characters together, that heads of columns have room for
_LONGEST_SHOWN = 60  # characters of a label
_MOST_NOTES = 20  # of a kind
_SHADES = 9  # classes s1 ... s9 of page.css


def lead(result: Result) -> str:
    """How many items, and the best configuration."""
    groups = f" in {result.groups:,} groups" if result.groups else ""
    majority = f" Always the most frequent label: {result.majority:.3f}." if result.majority is not None else ""
    chosen = "" if result.chosen is None else f"<p>{escape(result.chosen.sentence)}</p>"
    return f"<p>{result.items:,} items{groups}.{majority}</p>{chosen}"


def table(result: Result) -> str:
    """A row for each configuration, with a folded table of its draws and orders."""
    columns = {name: cells for name, cells in _columns(result).items() if any(cells)}
    rows, differ = [], several([line.choice for line in result.lines])
    for number, line in enumerate(result.lines):
        kind = "" if line.variant == "plain" else ' class="variant"'
        rows.append(f"<tr{kind}>{cells_of([cells[number] for cells in columns.values()])}</tr>")
        rows.append(_draws(line, full_name(*line.choice[:2], line.name, differ), len(columns), result.metric))
    inside = scrolling("scores", grid(list(columns), rows)) + (_SPREADS if "sd of items" in columns else "")
    return inside + "".join(f'<p class="notes">{escape(each)}</p>' for each in _orders_tests(result))


def _orders_tests(result: Result) -> list[str]:
    """Whether right and wrong depend on the order of the shots, for each line that was tested."""
    differ = several([line.choice for line in result.lines])
    return [
        f"{full_name(line.model, line.form, line.name, differ)}: {line.orders_test.sentence}"
        for line in result.lines if line.orders_test
    ]  # fmt: skip


def _columns(result: Result) -> dict[str, Sequence[str]]:
    """Cells by the head of their column; a column that says nothing is empty."""
    lines = result.lines
    models, forms = several(line.choice for line in lines)
    metrics = list(dict.fromkeys(name for line in lines for name in line.metrics))
    return {
        "model": [escape(line.model) * models for line in lines],
        "template": [escape(line.form) * forms for line in lines],
        "shots": [_name(line) for line in lines],
        escape(result.metric): [f"{line.score.value:.3f}" for line in lines],
        "95% interval": [f"{line.score.low:.3f} to {line.score.high:.3f}" for line in lines],
        **dict(zip(_SPREAD, zip(*map(_spread, lines), strict=True), strict=True)),
        **{
            escape(name).replace(",", ",<wbr>"): [_metric(line, name) for line in lines]
            for name in metrics if len(metrics) > 1
        },
    }  # fmt: skip


_SPREAD = ("lowest to highest", "sd of draws", "sd of orders", "sd of items")
_SPREADS = (
    '<p class="notes">Lowest to highest: of any draw of shots and order. sd of draws, of orders: standard deviation of'
    " the score between draws of shots, and between orders of one draw, without the noise of the items; sd of items:"
    " between the items, each averaged over draws and orders.</p>"
)


def _metric(line: Line, name: str) -> str:
    return f"{line.metrics[name]:.4g}" if name in line.metrics else ""


def _name(line: Line) -> str:
    remarks = [line.caveat] if line.caveat else []
    if left := line.shots_left:
        remarks.append(f"{left}, {line.fewest_shots} at least")
    return escape(line.name) + "".join(f"<small>{escape(remark)}</small>" for remark in remarks)


def _spread(line: Line) -> tuple[str, ...]:
    spread = line.spread
    if spread is None:
        return ("",) * len(_SPREAD)
    draws = f"{spread.draws:.3f}" if len(line.scores) > 1 else ""
    orders = f"{spread.orders:.3f}" if len(line.scores[0]) > 1 else ""
    return f"{line.lowest:.3f} to {line.highest:.3f}", draws, orders, f"{spread.items:.3f}"


def _draws(line: Line, name: str, columns: int, metric: str) -> str:
    if len(line.per_draw) < 2:
        return ""
    rows = [
        f"<tr>{cells_of([str(each.draw + 1), str(each.order + 1), f'{each.score:.3f}', f'{each.shots:.3g}'])}</tr>"
        for each in sorted(line.per_draw, key=lambda each: (each.draw, each.order))
    ]
    return (
        f'<tr class="draws"><td colspan="{columns}"><details><summary>each draw and order of {escape(name)}'
        f"</summary>{grid(['draw', 'order', escape(metric), 'shots in the prompt'], rows)}</details></td></tr>"
    )


def grid(heads: Sequence[str], rows: Iterable[str]) -> str:
    """A table of finished heads and rows."""
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def cells_of(cells: Sequence[str]) -> str:
    """A row's cells, of finished HTML."""
    return "".join(f"<td>{cell}</td>" for cell in cells)


def scrolling(what: str, inside: str) -> str:
    """A box that scrolls sideways on its own, by keyboard too, so that a wide table does not widen the page."""
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{what}">{inside}</div>'


def comparisons(result: Result) -> str:
    """A sentence for each comparison: those that were asked for, then those with baselines; what would show more."""
    if not result.comparisons:
        return ""
    listed = ""
    for family in result.families:
        compared = [each.sentence for each in result.comparisons if each.primary is family.primary]
        head = "" if family.primary else "<h3>With baselines</h3>"
        listed += f'{head}{_sentences(compared)}<p class="notes">{escape(family.sentence)}</p>'
    if result.power:
        listed += f"<h3>Power</h3>{_sentences(result.power.splitlines())}"
    return f"<section><h2>Comparisons</h2>{listed}</section>"


def requirements(result: Result) -> str:
    """What was required, and whether it is met."""
    asked = result.requirements
    if not asked:
        return ""
    met = sum(each.outcome == "met" for each in asked)
    counted = f'<p class="notes">{met} of {len(asked)} are met.</p>'
    listed = _sentences([each.sentence for each in asked])
    return f"<section><h2>Requirements</h2>{counted}{listed}</section>"


def _sentences(sentences: Iterable[str]) -> str:
    return '<ul class="sentences">' + "".join(f"<li>{escape(each)}</li>" for each in sentences) + "</ul>"


def confusions(collected: Collected, result: Result) -> str:
    """Right answers against the model's, summed over all draws and orders of a configuration."""
    if collected.task.output != "multiple_choice":
        return ""
    by_choice: dict[Choice, list[Cell]] = {}
    for cell in collected.cells:
        by_choice.setdefault(cell.condition.choice, []).append(cell)
    differ = several(by_choice)
    names = {line.choice: full_name(line.model, line.form, line.name, differ) for line in result.lines}
    figures = "".join(_confusion(cells, names[choice]) for choice, cells in by_choice.items())
    if not figures:
        return ""
    return (
        "<section><h2>Right answers and the model's</h2><p class='notes'>Counts of answers, summed over all draws and"
        " orders of a configuration; in brackets the share of the row, i.e. of one right answer.</p>"
        f'<div class="confusions">{figures}</div></section>'
    )


def _confusion(cells: Sequence[Cell], name: str) -> str:
    answers = [answer for cell in cells for answer in cell.answers]
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
    head = "".join(f'<th scope="col">{each}</th>' for each in short)
    inside = (
        f'<table><thead><tr><td></td><th scope="colgroup" colspan="{len(labels)}">model\'s answer</th></tr>'
        f'<tr><th scope="col">right answer</th>{head}</tr></thead><tbody>{rows}</tbody></table>'
    )
    name += _summed(cells)
    if left := len(answers) - int(counts.sum()):
        name += f"; {left:,} answers to items without one right choice are not counted"
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


def _summed(cells: Sequence[Cell]) -> str:
    """How many draws and orders of the items are counted together."""
    draws, orders = (len({getattr(cell.condition, of) for cell in cells}) for of in ("draw", "order"))
    several = [f"{count} {word}" for count, word in ((draws, "draws"), (orders, "orders")) if count > 1]
    return f" ({' × '.join(several)} of {len(cells[0].answers):,} items)" if several else ""


def notes(result: Result) -> str:
    """Warnings about the data and the prompts."""
    return "".join(f"<li>{escape(line)}</li>" for line in result.notes.lines(_MOST_NOTES))


def left_out(shown: int, left: int) -> str:
    """Which items the examples lack, and why."""
    if not left:
        return ""
    return (
        f'<p class="notice"><b>{shown:,} of {shown + left:,} items are shown</b>, the same under every condition: a'
        f" page with all answers would be too large for a browser, so that {left:,} items, drawn at random, are left"
        " out here. All numbers above are of all items; <code>--out FOLDER</code> writes every answer to files.</p>"
    )
