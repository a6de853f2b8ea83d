"""An evaluation on the terminal: cost before the run, progress bar, results."""

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

    from ..evals.comparisons import PairedComparison
    from ..evals.eval_run import EvalRun
    from ..evals.power import Planned
    from ..evals.provenance import Provenance
    from ..evals.requirements import JudgedRequirement
    from ..evals.result_rows import ResultRow
    from ..evals.results import Collected, Cost
    from ..evals.store import Store, Stored
    from ..evals.summary import Result


def run_with_progress(run: EvalRun) -> Collected:
    """Print the cost, then run with a progress bar, both on standard error."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = messages()
    costs = [run.cost(number) for number in range(len(run.models))]
    for model, cost in zip(run.models, costs, strict=True):
        console.print(_cost_line(model.name, cost, run), style="dim")
    for line in run.notes.lines(_NOTES):
        console.print(line, style="yellow")
    if not is_terminal(sys.stderr):
        return run.run(costs=costs)
    bar = Progress(
        TextColumn("{task.completed:,.0f} of {task.total:,.0f} " + costs[0].unit), BarColumn(), TimeRemainingColumn(),
        console=console, transient=True,
    )  # fmt: skip
    with bar:
        shown = bar.add_task("", total=max(1, sum(cost.tokens for cost in costs)))
        return run.run(lambda done, total: bar.update(shown, completed=done, total=max(1, total)), costs)


def print_interrupted(stored: bool) -> None:
    """Say what happens to the answers so far."""
    kept = "the answers so far are in the store; run the same command to continue"
    messages().print(f"interrupted; {kept if stored else 'nothing is stored'}")


def _cost_line(model: str, cost: Cost, run: EvalRun) -> str:
    stored = f", {cost.known:,} already in the store" if cost.known else ""
    shared = f" ({cost.alone / cost.tokens:.1f}x as many without prefix sharing)" if cost.alone > cost.tokens else ""
    shared += f", {cost.embedded:,} of them already read to find similar shots" if cost.embedded else ""
    generates = f", up to {cost.generated:,} tokens to generate" if cost.generated else ""
    took = f", {'up to' * bool(cost.generated) or 'about'} {units.format_seconds(cost.seconds)}" if cost.seconds else ""
    context = f" of {cost.context:,}" if cost.context is not None else ""
    return (
        f"{model}: {len(run.items):,} items, {cost.requests:,} requests{stored}; {cost.tokens:,} {cost.unit} to read"
        f"{shared}{generates}{took}; longest prompt {cost.longest:,}{context} {cost.unit}"
    )


_NOTES = 5  # lines of each kind


def print_cost(run: EvalRun, as_json: bool, power: Planned | None = None) -> None:
    """Print what an evaluation would cost, what it could detect (`power`), and one complete prompt."""
    costs = {model.name: run.cost(number) for number, model in enumerate(run.models)}
    longest = max(run.questions(0), key=lambda question: question.shots)
    if as_json:
        from dataclasses import asdict

        first = longest.asked[0]
        emit_json({
            "items": len(run.items), "costs": {name: asdict(cost) for name, cost in costs.items()},
            "units": {"tokens": "tokens read", "seconds": "s"}, "notes": run.notes.lines(_NOTES),
            "prompt": first.context, "continuations": [request.continuation for request in longest.asked],
            "power": None if power is None else asdict(power),
        })  # fmt: skip
        return
    console = output()
    for name, cost in costs.items():
        console.print(_cost_line(name, cost, run))
    for line in run.notes.lines(_NOTES):
        messages().print(line, style="yellow")
    if power is not None:
        console.print(power.sentence)
    console.print(f"\none prompt, with {longest.shots} shot{'s' * (longest.shots != 1)}:", style="bold")
    console.print(longest.asked[0].context, soft_wrap=True)
    following = ", ".join(repr(request.continuation) for request in longest.asked)
    console.print(f"possible continuations: {following}", style="dim")


def print_result(result: Result, name: str | None, as_json: bool = False, show_seeds: bool = False) -> None:
    """The tables, the comparisons and the conclusions of a new or a stored result."""
    from ..evals.result_rows import full_names

    if as_json:
        emit_json({"name": name, **result.to_dict()})
        return
    console = output()
    clustered = f", in {result.groups} groups" if result.groups else ""
    console.print(f"{result.task}: {result.metric} over {result.items:,} items{clustered}", style="bold")
    console.print(_table(result, console))
    names = full_names(result.rows)
    for row in result.rows:
        if row.variant == "plain" and _more(row):
            console.print(f"{names[row.choice]}: {_more(row)}", style="dim")
    if result.majority is not None:
        console.print(f"always the most frequent label: {result.majority:.3f}", style="dim")
    for footnote in _footnotes(result):
        console.print(footnote)
    if show_seeds:
        _print_seeds(result, console)
    if result.comparisons:
        console.print()
    _print_comparisons(result.comparisons, console)
    if result.chosen is not None:
        console.print(f"\n{result.chosen.sentence}")
    if result.power:
        console.print(result.power)
    for requirement in result.requirements:
        if requirement.outcome == "met":  # `exit_unless_met` prints the others on standard error
            console.print(requirement.sentence)
    read = f"{result.read:,} tokens read" if result.read else "every answer was in the store"
    stored = "" if name is None else f"; stored as {name!r}"
    messages().print(f"{units.format_seconds(result.seconds)}, {read}{stored}", style="dim")


def print_provenance(record: Provenance) -> None:
    """Print a stored evaluation's date, model and command."""
    table = plain_table("", "", right=False)
    table.show_header = False
    table.add_row("made", f"{record.date}, nextword {record.version}")
    if record.command is not None:
        table.add_row("command", record.command)
    for model in record.models:
        weights = f"SHA-256 {model.weights[:16]}..." if model.weights else model.file
        table.add_row("model", f"{model.name}, {model.precision} on {model.device}, {weights}")
    output().print()
    output().print(table)


def _more(row: ResultRow) -> str:
    """The task's other metrics, if it has several."""
    return ", ".join(f"{name} {value:.4g}" for name, value in row.metrics.items()) if len(row.metrics) > 1 else ""


def _heads(result: Result) -> list[str]:
    """Heads of the model and template columns, if rows differ in these."""
    from ..evals.result_rows import differing, prefixes

    return prefixes("model", "template", differing(row.choice for row in result.rows))


def _differing(row: ResultRow, result: Result) -> list[str]:
    return [row.model if head == "model" else row.template for head in _heads(result)]


def exit_unless_met(requirements: Sequence[JudgedRequirement]) -> None:
    """If a requirement is not met, exit with code 1 and a line on standard error for each."""
    unmet = [requirement for requirement in requirements if requirement.outcome != "met"]
    for requirement in unmet:
        messages().print(requirement.sentence, style="red", soft_wrap=True)
    if unmet:
        raise SystemExit(1)


def _span(low: float, high: float, dash: str) -> str:
    return f"{low:.3f} {dash} {high:.3f}"


def _table(result: Result, console: Console) -> Any:
    heads, dash = _heads(result), "–" if draws_unicode(console) else "-"
    first = len(heads)
    spreads = ["range over seeds"] * any(row.spread is not None for row in result.rows)
    least = [(first + 3,), *[(first + 4,)] * len(spreads)]
    table = plain_table(*heads, "shots", result.metric, "95% interval", "", *spreads, left=first + 1, least=least,
                        names=range(first + 1))  # fmt: skip
    low = min(row.score.low for row in result.rows)
    high = max(row.score.high for row in result.rows)
    marks = _caveats(result)
    wide = max(map(len, marks.values()), default=0)
    for row in result.rows:
        score = f"{row.score.value:.3f}{marks.get(row.caveat, ''):{wide}}"
        spread = "" if row.spread is None else _span(row.lowest, row.highest, dash)
        table.add_row(
            *_differing(row, result), row.name + (f" ({row.shots_left})" if row.shots_left else ""), score,
            _span(row.score.low, row.score.high, dash), _whisker(row, low, high), *[spread] * len(spreads),
            style="" if row.variant == "plain" else "dim",
        )  # fmt: skip
    return table


def _whisker(row: ResultRow, low: float, high: float, width: int = 24) -> str:
    """The interval, drawn on a scale shared by all rows."""
    unit = (width - 1) / (high - low or 1.0)
    left, middle, right = (round((value - low) * unit) for value in (row.score.low, row.score.value, row.score.high))
    marks = ["-" if left <= column <= right else " " for column in range(width)]
    marks[min(width - 1, max(0, middle))] = "o"
    return "".join(marks)


def _caveats(result: Result) -> dict[str, str]:
    """Reasons why scores may not hold for other shots, each with its footnote mark."""
    caveats = dict.fromkeys(row.caveat for row in result.rows if row.caveat)
    return {caveat: "*" * (number + 1) for number, caveat in enumerate(caveats)}


def _footnotes(result: Result) -> list[str]:
    """The caveats after their marks, and whether permutations differ."""
    from ..evals.result_rows import permutation_notes

    caveats = [f"{mark} {caveat}" for caveat, mark in _caveats(result).items()]
    return caveats + permutation_notes(result.rows)


def _print_seeds(result: Result, console: Console) -> None:
    """A row for each few-shot seed in each order."""
    heads = _heads(result)
    rows = [row for row in result.rows if row.shots and row.per_seed]
    dropped = any(row.shots_left for row in rows)
    table = plain_table(*heads, "shots", "seed", "permutation", result.metric, *["in the prompts"] * dropped,
                        left=len(heads) + 1, names=range(len(heads) + 1))  # fmt: skip
    for row in rows:
        for own in row.per_seed:
            numbers = [str(own.fewshot_seed + 1), str(own.permutation + 1), f"{own.score:.3f}"]
            numbers += [f"{own.shots:.2f}"] * dropped
            table.add_row(*_differing(row, result), row.name, *numbers)
    if rows:
        console.print()
        console.print(table)


def _print_comparisons(comparisons: Sequence[PairedComparison], console: Console) -> None:
    """Print the requested comparisons, then those with baselines, and how each family is corrected."""
    from ..evals.comparisons import families

    for number, family in enumerate(families(comparisons)):
        if number:
            console.print()
        if not family.primary:
            console.print(f"baselines{', corrected separately' * (number > 0)}:", style="dim")
        for pair in comparisons:
            if pair.primary is family.primary:
                _print_point(pair.sentence, console)
        if family.comparisons > 1:
            console.print(family.sentence, style="dim")


def _print_point(sentence: str, console: Console) -> None:
    """A sentence as a list item, with a hanging indent."""
    lines = textwrap.wrap(sentence, console.width, initial_indent="- ", subsequent_indent="  ", break_long_words=False,
                          break_on_hyphens=False)  # fmt: skip
    console.print("\n".join(lines))


def print_compared(compared: Sequence[PairedComparison], as_json: bool) -> None:
    """Print the comparisons of two stored evaluations."""
    if as_json:
        from dataclasses import asdict

        emit_json([asdict(pair) for pair in compared])
        return
    _print_comparisons(compared, output())


def print_list(as_json: bool) -> None:
    """The built-in tasks."""
    from ..evals.task_files import builtin_tasks

    if as_json:
        emit_json({"tasks": builtin_tasks()})
        return
    table = plain_table("task", "description", left=2, wraps=(1,))
    for name, summary in builtin_tasks().items():
        table.add_row(name, summary)
    output().print(table)
    messages().print("\nstored evaluations: nextword eval runs list", style="dim")


def print_runs(store: Store, as_json: bool) -> None:
    """Stored evaluations, newest last."""
    rows = [_run_row(stored) for stored in store.evaluations()]
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


def _run_row(stored: Stored) -> dict[str, Any]:
    """A summary of an evaluation, without its best row if that was stored in an older format."""
    from ..evals.stored import result_of

    try:
        result = result_of(stored)
    except UsageError:
        return {"name": stored.name, "finished": stored.finished, "task": str(stored.result.get("task", "")),
                "items": int(stored.result.get("items", 0)), "models": [], "best": None}  # fmt: skip
    best = max((row for row in result.rows if not row.baseline), key=lambda row: row.score.value)
    return {
        "name": stored.name, "finished": stored.finished, "task": result.task, "items": result.items,
        "models": list(dict.fromkeys(row.model for row in result.rows)),
        "best": {"name": best.name, "model": best.model, "template": best.template, "score": best.score.value},
    }  # fmt: skip
