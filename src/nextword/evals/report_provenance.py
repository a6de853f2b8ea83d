"""The report's section on how everything was measured."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from html import escape
from typing import Any

from .provenance import Provenance, ShotsRecord
from .report_html import cells_of, grid, scrolling


def how_measured(made: Provenance | None) -> str:
    """What it takes to run it again."""
    if made is None:
        return "<p>Not recorded.</p>"
    parts = [_command(made.command)]
    parts.append(_facts({"made": f"{made.made} (UTC)", "nextword": made.version, **made.machine}))
    parts += [f"<h3>Model</h3>{_facts(asdict(model))}" for model in made.models]
    parts.append(f"<h3>Task</h3>{_facts(asdict(made.task))}")
    parts += [f"<h3>Form of the prompt: {escape(form.name)}</h3>{_facts(_given(form.parts))}" for form in made.forms]
    parts.append(f"<h3>Conditions</h3>{_facts(made.design)}<h3>Scoring</h3>{_facts(made.scoring)}")
    if made.shots:
        parts.append(f"<details><summary>The shots of every draw</summary>{_shots(made.shots)}</details>")
    return "".join(parts)


def _shots(shots: Sequence[ShotsRecord]) -> str:
    rows = []
    for each in shots:
        cells = [each.form, each.shots, each.variant, each.draw + 1, each.order + 1, ", ".join(each.places)]
        rows.append(f"<tr>{cells_of([escape(str(cell)) for cell in cells])}</tr>")
    return scrolling("shots", grid(["form", "shots", "variant", "draw", "order", "rows, from 0 on"], rows))


def _command(command: str | None) -> str:
    if command is None:
        return "<p>Called from Python.</p>"
    return (
        f'<pre class="command" id="command" tabindex="0">{escape(command)}</pre>'
        '<button type="button" id="copy">copy the command</button>'
    )


def _given(parts: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a form that say something."""
    return {name: value for name, value in parts.items() if value not in (None, "", False, (), [], {})}


def _facts(facts: Mapping[str, Any]) -> str:
    """Names and values."""
    rows = [
        f"<dt>{escape(name.replace('_', ' '))}</dt><dd>{escape(_text(value))}</dd>" for name, value in facts.items()
    ]
    return f"<dl>{''.join(rows)}</dl>"


def _text(value: Any) -> str:
    """Texts as they stand, but in quotes where a reader would not see their ends; lists separated by commas."""
    if value is None or value == [] or value == ():
        return "none"
    if isinstance(value, list | tuple) and all(isinstance(each, str | int) for each in value):
        return ", ".join(map(_text, value))
    if isinstance(value, str) and value and value == value.strip():
        return value
    return json.dumps(value, ensure_ascii=False)
