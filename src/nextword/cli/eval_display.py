"""An evaluation on the terminal: its cost before the run, a progress bar, and its results."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ..base import UsageError, units
from ._console import draws_unicode, emit_json, is_terminal, messages, output
from ._table import plain_table

if TYPE_CHECKING:
    from rich.console import Console

    from ..evals.collected import Collected, Cost
    from ..evals.evaluation import Evaluation
    from ..evals.power import Planned
    from ..evals.provenance import Provenance
    from ..evals.requirements import Requirement
    from ..evals.store import Kept, Store
    from ..evals.summary import Compared, Line, Result


def run(evaluation: Evaluation) -> Collected:
    """Run it, after printing its cost, with a progress bar; both on standard error."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = messages()
    costs = [evaluation.cost(number) for number in range(len(evaluation.models))]
    for model, cost in zip(evaluation.models, costs, strict=True):
        console.print(_cost_line(model.name, cost, evaluation), style="dim")
    for line in evaluation.notes.lines(_NOTES):
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


def say_interrupted(kept: bool) -> None:
    """What becomes of the answers so far."""
    more = (
        "the answers so far are in the store, and the same command asks only the others" if kept else "nothing is kept"
    )
    messages().print(f"interrupted; {more}")


def _cost_line(model: str, cost: Cost, evaluation: Evaluation) -> str:
    kept = f", {cost.known:,} already in the store" if cost.known else ""
    shared = f" ({cost.alone / cost.tokens:.1f}x as many without prefix sharing)" if cost.alone > cost.tokens else ""
    shared += f", {cost.embedded:,} of them already read to find similar shots" if cost.embedded else ""
    writes = f", up to {cost.written:,} tokens to generate" if cost.written else ""
    took = f", {'up to' * bool(cost.written) or 'about'} {units.format_seconds(cost.seconds)}" if cost.seconds else ""
    context = f" of {cost.context:,}" if cost.context is not None else ""
    return (
        f"{model}: {len(evaluation.items):,} items, {cost.requests:,} requests{kept}; {cost.tokens:,} tokens to read"
        f"{shared}{writes}{took}; longest prompt {cost.longest:,}{context} tokens"
    )


_NOTES = 5  # lines of a kind


def print_cost(evaluation: Evaluation, as_json: bool, power: Planned | None = None) -> None:
    """What an evaluation would cost, what it could detect (`power`), and one whole prompt."""
    costs = {model.name: evaluation.cost(number) for number, model in enumerate(evaluation.models)}
    longest = max(evaluation.questions(0), key=lambda question: question.shots)
    if as_json:
        from dataclasses import asdict

        request = longest.asked[0]
        emit_json({
            "items": len(evaluation.items), "costs": {name: asdict(cost) for name, cost in costs.items()},
            "units": {"tokens": "tokens read", "seconds": "s"}, "notes": evaluation.notes.lines(_NOTES),
            "prompt": request.context, "continuations": [each.continuation for each in longest.asked],
            "power": None if power is None else asdict(power),
        })  # fmt: skip
        return
    console = output()
    for name, cost in costs.items():
        console.print(_cost_line(name, cost, evaluation))
    for line in evaluation.notes.lines(_NOTES):
        messages().print(line, style="yellow")
    if power is not None:
        console.print(power.sentence)
    console.print(f"\none prompt, with {longest.shots} shot{'s' * (longest.shots != 1)}:", style="bold")
    console.print(longest.asked[0].context, soft_wrap=True)
    following = ", ".join(repr(each.continuation) for each in longest.asked)
    console.print(f"possible continuations: {following}", style="dim")


def print_result(result: Result, name: str | None, as_json: bool = False, show_draws: bool = False) -> None:
    """The tables, the comparisons and the conclusions of a new or a stored result."""
    if as_json:
        emit_json({"name": name, **result.to_dict()})
        return
    console = output()
    clustered = f", in {result.groups} groups" if result.groups else ""
    console.print(f"{result.task}: {result.metric} over {result.items:,} items{clustered}", style="bold")
    console.print(_table(result, console))
    for line in result.lines:
        if line.variant == "plain" and _more(line):
            console.print(f"{_full_name(line, result)}: {_more(line)}", style="dim")
    if result.majority is not None:
        console.print(f"always the most frequent label: {result.majority:.3f}", style="dim")
    for footnote in _footnotes(result):
        console.print(footnote)
    if show_draws:
        _print_draws(result, console)
    if result.comparisons:
        console.print()
    _print_comparisons(result.comparisons, console)
    if result.chosen is not None:
        console.print(f"\n{result.chosen.sentence}")
    if result.power:
        console.print(result.power)
    for requirement in result.requirements:
        if requirement.outcome == "met":  # `end_with` prints the others on standard error
            console.print(requirement.sentence)
    read = f"{result.read:,} tokens read" if result.read else "every answer was in the store"
    kept = "" if name is None else f"; stored as {name!r}"
    messages().print(f"{units.format_seconds(result.seconds)}, {read}{kept}", style="dim")


def print_provenance(made: Provenance) -> None:
    """When, with what and by which command a stored evaluation was made."""
    table = plain_table("", "", right=False)
    table.show_header = False
    table.add_row("made", f"{made.made}, nextword {made.version}")
    if made.command is not None:
        table.add_row("command", made.command)
    for model in made.models:
        table.add_row("model", f"{model.name}, {model.precision} on {model.device}, SHA-256 {model.weights[:16]}...")
    output().print()
    output().print(table)


def _more(line: Line) -> str:
    """The task's other metrics, where it has several."""
    return ", ".join(f"{name} {value:.4g}" for name, value in line.metrics.items()) if len(line.metrics) > 1 else ""


def _full_name(line: Line, result: Result) -> str:
    return ", ".join([*_differing(line, result), line.name])


def _heads(result: Result) -> list[str]:
    """Heads of the columns for models and templates, where lines differ in these."""
    from ..evals.lines import prefixes, several

    return prefixes("model", "template", several(each.choice for each in result.lines))


def _differing(line: Line, result: Result) -> list[str]:
    return [line.model if head == "model" else line.form for head in _heads(result)]


def end_with(requirements: Sequence[Requirement]) -> None:
    """Exit with code 1, and a line on standard error for each requirement that is not met."""
    unmet = [each for each in requirements if each.outcome != "met"]
    for each in unmet:
        messages().print(each.sentence, style="red", soft_wrap=True)
    if unmet:
        raise SystemExit(1)


def _span(low: float, high: float, dash: str) -> str:
    return f"{low:.3f} {dash} {high:.3f}"


def _table(result: Result, console: Console) -> Any:
    heads, dash = _heads(result), "–" if draws_unicode(console) else "-"
    first = len(heads)
    spreads = ["draws and orders"] * any(line.spread is not None for line in result.lines)
    least = [(first + 3,), *[(first + 4,)] * len(spreads)]
    table = plain_table(*heads, "shots", result.metric, "95% interval", "", *spreads, left=first + 1, least=least,
                        names=range(first + 1))  # fmt: skip
    low = min(line.score.low for line in result.lines)
    high = max(line.score.high for line in result.lines)
    marks = _caveats(result)
    wide = max(map(len, marks.values()), default=0)
    for line in result.lines:
        score = f"{line.score.value:.3f}{marks.get(line.caveat, ''):{wide}}"
        spread = "" if line.spread is None else _span(line.lowest, line.highest, dash)
        table.add_row(
            *_differing(line, result), line.name + (f" ({line.shots_left})" if line.shots_left else ""), score,
            _span(line.score.low, line.score.high, dash), _whisker(line, low, high), *[spread] * len(spreads),
            style="" if line.variant == "plain" else "dim",
        )  # fmt: skip
    return table


def _whisker(line: Line, low: float, high: float, width: int = 24) -> str:
    """The interval on one scale for all lines."""
    unit = (width - 1) / (high - low or 1.0)
    left, middle, right = (round((value - low) * unit) for value in (line.score.low, line.score.value, line.score.high))
    marks = ["-" if left <= place <= right else " " for place in range(width)]
    marks[min(width - 1, max(0, middle))] = "o"
    return "".join(marks)


def _caveats(result: Result) -> dict[str, str]:
    """Why scores may not hold for other shots, each reason with its footnote mark."""
    found = dict.fromkeys(line.caveat for line in result.lines if line.caveat)
    return {caveat: "*" * (number + 1) for number, caveat in enumerate(found)}


def _footnotes(result: Result) -> list[str]:
    """The caveats after their marks, and whether orders differ."""
    caveats = [f"{mark} {caveat}" for caveat, mark in _caveats(result).items()]
    tests = [f"{_full_name(line, result)}: {line.orders_test.sentence}" for line in result.lines if line.orders_test]
    return caveats + tests


def _print_draws(result: Result, console: Console) -> None:
    """A row for each draw of shots in each order."""
    heads = _heads(result)
    lines = [line for line in result.lines if line.shots and line.per_draw]
    dropped = any(line.shots_left for line in lines)
    table = plain_table(*heads, "shots", "draw", "order", result.metric, *["in the prompts"] * dropped,
                        left=len(heads) + 1, names=range(len(heads) + 1))  # fmt: skip
    for line in lines:
        for each in line.per_draw:
            numbers = [str(each.draw + 1), str(each.order + 1), f"{each.score:.3f}", *[f"{each.shots:.2f}"] * dropped]
            table.add_row(*_differing(line, result), line.name, *numbers)
    if lines:
        console.print()
        console.print(table)


def _print_comparisons(comparisons: Sequence[Compared], console: Console) -> None:
    """The requested ones, then those with baselines, and how each family is corrected."""
    from ..evals.comparisons import families

    for number, family in enumerate(families(comparisons)):
        if number:
            console.print()
        if not family.primary:
            console.print(f"baselines{', corrected separately' * (number > 0)}:", style="dim")
        for each in comparisons:
            if each.primary is family.primary:
                _print_point(each.sentence, console)
        if family.comparisons > 1:
            console.print(family.sentence, style="dim")


def _print_point(sentence: str, console: Console) -> None:
    """A sentence as a list item, with a hanging indent."""
    lines = textwrap.wrap(sentence, console.width, initial_indent="- ", subsequent_indent="  ", break_long_words=False,
                          break_on_hyphens=False)  # fmt: skip
    console.print("\n".join(lines))


def print_compared(compared: Sequence[Compared], as_json: bool) -> None:
    """The comparisons of two evaluations of the store."""
    if as_json:
        from dataclasses import asdict

        emit_json([asdict(each) for each in compared])
        return
    _print_comparisons(compared, output())


def print_list(as_json: bool) -> None:
    """Tasks that come with nextword."""
    from ..evals.shipped import shipped_tasks

    if as_json:
        emit_json({"tasks": shipped_tasks()})
        return
    table = plain_table("task", "description", left=2, wraps=(1,))
    for name, summary in shipped_tasks().items():
        table.add_row(name, summary)
    output().print(table)
    messages().print("\nstored evaluations: nextword eval runs list", style="dim")


def print_runs(store: Store, as_json: bool) -> None:
    """Stored evaluations, newest last."""
    rows = [_run_row(kept) for kept in store.evaluations()]
    if as_json:
        emit_json(rows)
        return
    if not rows:
        messages().print(f"no evaluations in {store.path} yet. Start one: nextword eval sentiment --limit 50")
        return
    table = plain_table("name", "finished", "task", "items", "models", "best", "with", left=3,
                        least=((2,), (4,), (3,), (6,), (1,), (5,)))  # fmt: skip
    table.columns[4].justify = table.columns[6].justify = "left"
    for row in rows:
        made = datetime.fromtimestamp(row["finished"]).strftime("%Y-%m-%d %H:%M")
        best = ("", "") if row["best"] is None else (f"{row['best']['score']:.3f}", row["best"]["name"])
        table.add_row(row["name"], made, row["task"], f"{row['items']:,}", ", ".join(row["models"]), *best)
    output().print(table)


def _run_row(kept: Kept) -> dict[str, Any]:
    """A summary of an evaluation; without its best line if another version stored it in another form."""
    from ..evals.stored import result_of

    try:
        result = result_of(kept)
    except UsageError:
        return {"name": kept.name, "finished": kept.made, "task": str(kept.result.get("task", "")),
                "items": int(kept.result.get("items", 0)), "models": [], "best": None}  # fmt: skip
    best = max((line for line in result.lines if not line.baseline), key=lambda line: line.score.value)
    return {
        "name": kept.name, "finished": kept.made, "task": result.task, "items": result.items,
        "models": list(dict.fromkeys(line.model for line in result.lines)),
        "best": {"name": best.name, "model": best.model, "template": best.form, "score": best.score.value},
    }  # fmt: skip
