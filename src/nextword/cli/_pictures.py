"""Bar charts and probability tables for the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from ..engine.display import Row, bits, label, mass, percent, rows, visible
from ..engine.results import Alternative, Completion, NextTokenDistribution, Token
from ..engine.sampling_params import SamplingParams
from ..plots.theme import LIGHT, heat
from ._console import draws_unicode, output

_EIGHTHS = " ▏▎▍▌▋▊▉"
_NARROWEST, _WIDEST = 16, 40  # characters per temperature column
_GAP = 2
_PERCENT = 6
_LONGEST_TOKEN = 18

# from unlikely to likely
_LIKELIHOOD = (
    (0.5, "green3"),
    (0.2, "chartreuse3"),
    (0.05, "gold3"),
    (0.01, "dark_orange3"),
    (0.0, "indian_red"),
)


def print_next(distributions: Sequence[NextTokenDistribution]) -> None:
    """Print the next-token picture on standard output."""
    console = output()
    console.print(next_picture(distributions, console.width, draws_unicode(console)))


def print_probabilities(completion: Completion, sampling: SamplingParams) -> None:
    """Print the table of every step's alternatives on standard output."""
    console = output()
    console.print(probability_table(completion, sampling, console.width, draws_unicode(console)))


# --- the next token, at several temperatures


def next_picture(distributions: Sequence[NextTokenDistribution], width: int, unicode: bool = True) -> Text:
    """Bars of the next token's probabilities, one column per temperature, at most `width` characters wide.

    All columns share one scale, set by the most likely token; the 'others' row may exceed it.
    Temperatures that do not fit side by side go below.
    """
    shown = rows(distributions)
    names = [_fit(visible(row.text, unicode), _LONGEST_TOKEN, unicode) for row in shown]
    margin = 2 + max(map(cell_len, [*names, "90% mass"])) + _GAP
    abreast = max(1, min(len(distributions), (width - margin + _GAP) // (_NARROWEST + _GAP)))
    column = min(_WIDEST, (width - margin + _GAP) // abreast - _GAP)
    picture = _prompt_line(distributions[0].prompt, width, unicode)
    for start in range(0, len(distributions), abreast):
        block = slice(start, start + abreast)
        picture.append("\n\n")
        picture.append(_block(distributions, block, shown, names, margin, max(column, _PERCENT + 2), unicode))
    return picture


def _prompt_line(prompt: str, width: int, unicode: bool) -> Text:
    text = " ".join(prompt.split(" ")) if prompt.isprintable() else visible(prompt, unicode).replace("␣", " ")
    room = max(width - 6, 8)
    if cell_len(text) > room:
        ellipsis = "…" if unicode else "..."
        while cell_len(text) > room - len(ellipsis):
            text = text[1:]
        text = ellipsis + text
    cursor = "▁" if unicode else "_"
    return Text.assemble("  ", (text, "bold"), " ", (cursor, "bold blink"))


def _block(
    distributions: Sequence[NextTokenDistribution],
    block: slice,
    shown: Sequence[Row],
    names: Sequence[str],
    margin: int,
    column: int,
    unicode: bool,
) -> Text:
    """The lines of the temperatures in `block`."""
    panels = distributions[block]
    colours = [LIGHT[heat(panel.temperature)] for panel in panels]
    full = max((share for row in shown for share in row.shares if share is not None), default=1.0)
    lines = []

    def add(name: str, cells: Sequence[Text], style: str = "") -> None:
        lines.append(_line(name, cells, margin, column, style))

    add("", [Text(label(panel), f"bold {colour}") for panel, colour in zip(panels, colours, strict=True)])
    for name, row in zip(names, shown, strict=True):
        shares = zip(row.shares[block], colours, strict=True)
        add(name, [_cell(share, full, colour, column, unicode) for share, colour in shares])
    add("others", [_others(panel, full, column, unicode) for panel in panels], "dim")
    lines.append(Text())
    add("entropy", [Text(f"{bits(panel.entropy):.2f} bits") for panel in panels], "dim")
    add("", [Text(f"{panel.entropy:.2f} nats", "dim") for panel in panels])
    add("90% mass", [Text(mass(panel)) for panel in panels], "dim")
    return Text("\n").join(lines)


def _line(name: str, cells: Sequence[Text], margin: int, column: int, style: str = "") -> Text:
    line = Text("  ")
    line.append(set_cell_size(name, margin - 2), style)
    for cell in cells:
        cell.truncate(column, pad=True)
        line.append(cell)
        line.append(" " * _GAP)
    line.rstrip()
    return line


def _cell(share: float | None, full: float, colour: str, column: int, unicode: bool) -> Text:
    if share is None:
        return Text(f"{'·' if unicode else '.':>{_PERCENT}}", "dim")
    text = Text(f"{percent(share):>{_PERCENT}}")
    text.append(" ")
    text.append(bar(share / full, column - _PERCENT - 1, unicode), colour)
    return text


def _others(distribution: NextTokenDistribution, full: float, column: int, unicode: bool) -> Text:
    """The probability of all tokens not shown, on the same scale; an arrow if it exceeds it."""
    text = Text(f"{percent(distribution.tail_mass):>{_PERCENT}} ", "dim")
    room = column - _PERCENT - 1
    length = math.ceil(distribution.tail_mass / full * room)
    fill, arrow = ("░", "▸") if unicode else ("-", ">")
    text.append(fill * length if length <= room else fill * (room - 1) + arrow, "dim")
    return text


def bar(share: float, room: int, unicode: bool = True) -> str:
    """A bar over `share` (0 to 1) of `room` characters, to an eighth of one; any share above 0 is visible."""
    if not unicode:
        return "#" * max(round(share * room), share > 0)
    eighths = max(round(share * room * 8), share > 0)
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


# --- every step's alternatives


def probability_table(completion: Completion, sampling: SamplingParams, width: int, unicode: bool = True) -> Text:
    """One row per step: the token, its probability by the model and as sampled, then the alternatives.

    Alternatives that do not fit side by side continue below. Numbers are percentages.
    """
    steps = completion.tokens
    longest = min(_LONGEST_TOKEN, width // 5)
    names = [_fit(visible(step.token, unicode), longest, unicode) for step in steps]
    wide = max(map(cell_len, [*names, "token"]))
    number = len(str(len(steps)))
    same = sampling.greedy or all(
        math.isclose(alternative.probability, alternative.sampled_prob, rel_tol=1e-6)
        for step in steps
        for alternative in step.alternatives
    )
    indent = number + wide + 2 * _PERCENT + 8
    layout = _best_layout(steps, same, width - indent, unicode)
    head = f"{'#':>{number}}  {set_cell_size('token', wide)}  {'model':>{_PERCENT}}  {'drawn':>{_PERCENT}}"
    lines = [_explain_table(sampling, same, unicode), Text(f"{head}   alternatives", "bold")]
    for position, (step, name) in enumerate(zip(steps, names, strict=True), 1):
        line = Text.assemble(
            (f"{position:>{number}}  ", "dim"),
            (set_cell_size(name, wide), "bold"),
            f"  {percent(math.exp(step.logprob)):>{_PERCENT}}  {percent(step.sampled_prob):>{_PERCENT}}  ",
        )
        items = [_alternative(token, step, same, layout.longest, unicode) for token in step.alternatives]
        lines += _flow(line, items, layout, indent)
    return Text("\n").join(lines)


@dataclass(frozen=True)
class _Layout:
    longest: int  # characters of an alternative's token
    item: int  # characters of an alternative
    abreast: int  # alternatives per line


def _best_layout(steps: Sequence[Token], same: bool, room: int, unicode: bool) -> _Layout:
    """The fewest lines per step, then the longest tokens, then lines of equal length."""
    count = max((len(step.alternatives) for step in steps), default=1) or 1
    layouts = []
    for longest in (14, 11, 8):  # characters
        items = [_alternative(token, step, same, longest, unicode) for step in steps for token in step.alternatives]
        item = max((text.cell_len for text in items), default=1)
        lines = math.ceil(count / max(1, (room + _GAP) // (item + _GAP)))
        layouts.append((lines, _Layout(longest, item, math.ceil(count / lines))))
    return min(layouts, key=lambda layout: layout[0])[1]


def _explain_table(sampling: SamplingParams, same: bool, unicode: bool) -> Text:
    arrow, dot = ("→", "•") if unicode else (">", "*")
    if sampling.greedy:
        numbers = "% by the model (greedy: the most likely is chosen)"
    elif same:
        numbers = "% by the model, and as drawn"
    else:
        numbers = f"% by the model {arrow} % as drawn (temperature {sampling.temperature:g})"
    return Text(f"{numbers}; {dot} chosen", "dim")


def _flow(line: Text, items: Sequence[Text], layout: _Layout, indent: int) -> list[Text]:
    """`line` followed by its items, in columns that continue below."""
    lines = []
    for start in range(0, max(len(items), 1), layout.abreast):
        if start:
            line = Text(" " * indent)
        for item in items[start : start + layout.abreast]:
            item.truncate(layout.item, pad=True)
            line.append(item)
            line.append(" " * _GAP)
        line.rstrip()
        lines.append(line)
    return lines


def _alternative(alternative: Alternative, step: Token, same: bool, longest: int, unicode: bool) -> Text:
    chosen = alternative.id == step.id
    mark = ("•" if unicode else "*") if chosen else " "
    arrow = "→" if unicode else ">"
    name = _fit(visible(alternative.text, unicode), longest, unicode)
    numbers = _short(alternative.probability) + ("" if same else arrow + _short(alternative.sampled_prob))
    style = likelihood(alternative.probability)
    return Text.assemble((mark + name, f"bold {style}" if chosen else style), " ", (numbers, style))


def _short(probability: float) -> str:
    """A percentage to about two digits, without the sign; "-" for zero."""
    hundredths = 100 * probability
    if probability <= 0:
        return "-"
    return f"{hundredths:.0f}" if hundredths >= 9.95 else f"{hundredths:.1f}" if hundredths >= 0.05 else "<.1"


def likelihood(probability: float) -> str:
    """The colour of a probability, green when likely."""
    return next(colour for least, colour in _LIKELIHOOD if probability >= least)


def _fit(text: str, room: int, unicode: bool) -> str:
    if cell_len(text) <= room:
        return text
    ellipsis = "…" if unicode else "..."
    return set_cell_size(text, room - len(ellipsis)).rstrip() + ellipsis
