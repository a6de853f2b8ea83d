"""An evaluation on the terminal: its cost before, a bar while it runs, and what it found."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ..base import units
from ._console import emit_json, is_terminal, messages, output
from .plan_tables import plain_table

if TYPE_CHECKING:
    from ..prompt.evaluation import Collected, Cost, Evaluation
    from ..prompt.store import Store
    from ..prompt.summary import Compared, Line, Result


def run(evaluation: Evaluation) -> Collected:
    """Run it, with what it takes said before and a bar with the time left, both on standard error."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = messages()
    costs = [evaluation.cost(number) for number in range(len(evaluation.models))]
    for model, cost in zip(evaluation.models, costs, strict=True):
        console.print(_cost_line(model.name, cost, evaluation), style="dim")
    for line in note_lines(evaluation):
        console.print(line, style="yellow")
    if not is_terminal(sys.stderr):
        return evaluation.run()
    bar = Progress(
        TextColumn("{task.completed:,.0f} of {task.total:,.0f} tokens"), BarColumn(), TimeRemainingColumn(),
        console=console, transient=True,
    )  # fmt: skip
    with bar:
        shown = bar.add_task("", total=max(1, sum(cost.tokens for cost in costs)))
        return evaluation.run(lambda done, total: bar.update(shown, completed=done, total=max(1, total)))


def _cost_line(model: str, cost: Cost, evaluation: Evaluation) -> str:
    kept = f", {cost.known:,} of them in the store" if cost.known else ""
    shared = f" ({cost.alone / cost.tokens:.1f}x as many without sharing)" if cost.tokens else ""
    writes = f", up to {cost.written:,} tokens written" if cost.written else ""
    took = f", about {units.format_seconds(cost.seconds)}" if cost.tokens else ""
    context = f" of {cost.context:,}" if cost.context is not None else ""
    return (
        f"{model}: {len(evaluation.items):,} items, {cost.requests:,} requests{kept}; {cost.tokens:,} tokens to read"
        f"{shared}{writes}{took}; the longest prompt has {cost.longest:,}{context} tokens"
    )


def note_lines(evaluation: Evaluation) -> list[str]:
    """Warnings about the data and the prompts."""
    notes, lines = evaluation.notes, list(evaluation.notes.reading[:5])
    if len(notes.reading) > 5:
        lines.append(f"... and {len(notes.reading) - 5} more such rows")
    if notes.repeated:
        lines.append(f"{notes.repeated} scored items say the same as an example that shots are drawn from")
    for last, first in notes.apart[:3]:
        lines.append(
            f"an answer does not begin with a token of its own: the prompt ends in {last!r}, and together they become"
            f" {first!r} .... Let the template end before a space or a newline"
        )
    lines += notes.chat
    if notes.short_of_shots:
        lines.append(f"{notes.short_of_shots} prompts were longer than the context and lost whole shots")
    return lines


def print_cost(evaluation: Evaluation, as_json: bool) -> None:
    """What an evaluation would take, and one whole prompt."""
    costs = {model.name: evaluation.cost(number) for number, model in enumerate(evaluation.models)}
    longest = max(evaluation.questions(0), key=lambda question: question.shots)
    if as_json:
        from dataclasses import asdict

        request = longest.asked[0]
        emit_json({
            "items": len(evaluation.items), "costs": {name: asdict(cost) for name, cost in costs.items()},
            "units": {"tokens": "tokens read", "seconds": "s"}, "notes": note_lines(evaluation),
            "prompt": request.context, "continuations": [each.continuation for each in longest.asked],
        })  # fmt: skip
        return
    console = output()
    for name, cost in costs.items():
        console.print(_cost_line(name, cost, evaluation))
    for line in note_lines(evaluation):
        messages().print(line, style="yellow")
    console.print(f"\none prompt, with {longest.shots} shots:", style="bold")
    console.print(longest.asked[0].context, soft_wrap=True)
    following = ", ".join(repr(each.continuation) for each in longest.asked)
    console.print(f"and what may follow it: {following}", style="dim")


def print_result(result: Result, name: str | None, as_json: bool) -> None:
    """The table, the comparisons, and the answer in a sentence."""
    if as_json:
        emit_json({"name": name, **result.to_dict()})
        return
    console = output()
    clustered = f", in {result.groups} groups" if result.groups else ""
    console.print(f"{result.task}: {result.metric} over {result.items:,} items{clustered}", style="bold")
    console.print(_table(result))
    for line in result.lines:
        if line.variant == "plain" and _more(line):
            console.print(f"{_full_name(line, result)}: {_more(line)}", style="dim")
    if result.majority is not None:
        console.print(f"always the most frequent label: {result.majority:.3f}", style="dim")
    if result.comparisons:
        console.print()
        for each in result.comparisons:
            console.print(each.sentence)
    if result.chosen is not None:
        chosen = result.chosen
        console.print(
            f"\nbest of {chosen.alternatives}: {chosen.name}. Chosen on one half of the items, it scores"
            f" {_interval(chosen.honest)} on the other ({chosen.optimistic:.3f} on all, which is optimistic)."
        )
    if result.power:
        console.print(result.power)
    read = f"{result.read:,} tokens read" if result.read else "every answer was in the store"
    kept = "" if name is None else f"; kept as {name!r}"
    messages().print(f"{units.format_seconds(result.seconds)}, {read}{kept}", style="dim")


def _more(line: Line) -> str:
    """The task's other metrics, where it has several."""
    return ", ".join(f"{name} {value:.4g}" for name, value in line.metrics.items()) if len(line.metrics) > 1 else ""


def _full_name(line: Line, result: Result) -> str:
    several = [len({getattr(each, name) for each in result.lines}) > 1 for name in ("model", "form")]
    return ", ".join([line.model] * several[0] + [line.form] * several[1] + [line.name])


def _interval(estimate: Any) -> str:
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def _table(result: Result) -> Any:
    several = [len({getattr(line, name) for line in result.lines}) > 1 for name in ("model", "form")]
    heads = [name for name, shown in zip(("model", "template"), several, strict=True) if shown]
    table = plain_table(*heads, "shots", result.metric, "95% interval", "", "draws and orders", left=len(heads) + 1,
                        least=((len(heads) + 3,), (len(heads) + 4,)))  # fmt: skip
    low = min(line.score.low for line in result.lines)
    high = max(line.score.high for line in result.lines)
    for line in result.lines:
        names = [value for value, shown in zip((line.model, line.form), several, strict=True) if shown]
        table.add_row(
            *names, line.name, f"{line.score.value:.3f}", f"{line.score.low:.3f} to {line.score.high:.3f}",
            _whisker(line, low, high), _spread(line), style="" if line.variant == "plain" else "dim",
        )  # fmt: skip
    return table


def _whisker(line: Line, low: float, high: float, width: int = 24) -> str:
    """The interval on one scale for all lines."""
    unit = (width - 1) / (high - low or 1.0)
    left, middle, right = (round((value - low) * unit) for value in (line.score.low, line.score.value, line.score.high))
    marks = ["-" if left <= place <= right else " " for place in range(width)]
    marks[min(width - 1, max(0, middle))] = "o"
    return "".join(marks)


def _spread(line: Line) -> str:
    return "" if line.spread is None else f"{line.lowest:.3f} to {line.highest:.3f}"


def print_compared(compared: Sequence[Compared], as_json: bool) -> None:
    """Two evaluations of the store."""
    if as_json:
        from dataclasses import asdict

        emit_json([asdict(each) for each in compared])
        return
    for each in compared:
        output().print(each.sentence)


def print_list(store: Store, as_json: bool) -> None:
    """Tasks that come with nextword, and evaluations that were kept."""
    from ..prompt.shipped import shipped_tasks

    kept = store.evaluations()
    if as_json:
        emit_json({
            "tasks": shipped_tasks(),
            "evaluations": [{"name": each.name, "made": each.made, "task": each.result["task"]} for each in kept],
        })  # fmt: skip
        return
    table = plain_table("task", "what it asks", left=2, wraps=(1,))
    for name, summary in shipped_tasks().items():
        table.add_row(name, summary)
    output().print(table)
    if kept:
        table = plain_table("evaluation", "made", "items", left=2, least=((1,),))
        for each in kept:
            made = datetime.fromtimestamp(each.made).strftime("%Y-%m-%d %H:%M")
            table.add_row(each.name, made, f"{each.result['items']:,}")
        output().print(table)
