"""nextword eval: measure prompts on real models, with error bars."""

from __future__ import annotations

import shlex
import time
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ..base import UsageError
from ..weights.catalogue import DEFAULT_MODEL
from ._names import complete_model
from ._options import OUTPUT_FILE, OUTPUT_FOLDER, load_model
from .eval_runs import Measuring, complete_task, runs

if TYPE_CHECKING:
    from ..evals.settings import Settings
    from ..evals.store import Store
    from ..evals.summary import Result
    from ..evals.table import TableSettings
    from ..evals.task import Task
    from ..evals.trials import Design

_MEASURES = ("auto", "raw", "chars", "bytes", "tokens", "pmi", "constrained")


class Numbers(click.ParamType):  # type: ignore[type-arg]
    """Comma-separated whole numbers."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        try:
            return value if isinstance(value, tuple) else tuple(int(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of whole numbers. Write it as 0,1,4", param, ctx)


@click.group(name="eval", cls=Measuring, invoke_without_command=True)
@click.argument("task", required=False, shell_complete=complete_task)
@click.option(
    "-m", "--model", "models", multiple=True, metavar="NAME", shell_complete=complete_model,
    help=f"Model to evaluate; repeat it to compare several.  [default: {DEFAULT_MODEL}]",
)  # fmt: skip
@click.option(
    "--shots", type=Numbers(), metavar="0,1,4", help="Numbers of few-shot examples.  [default: the task's own]"
)
@click.option("--template", "templates", multiple=True, metavar="TEXT|FILES",
              help="Prompt template with {columns}, or comma-separated files; repeat it to compare "
                   "several.")  # fmt: skip
@click.option("--answer", metavar="COLUMN", help="Column with the right answer.  [default: output, label, answer, ...]")
@click.option("--labels", metavar="A,B", help="All choices; 0=negative renames one in the prompt.")
@click.option("--free", is_flag=True, help="Let the model generate its answer; scored by exact match.")
@click.option("--shots-from", type=click.Path(path_type=Path), metavar="FILE",
              help="File of few-shot examples.  [default: the task's; for a table, a fifth of its rows]")  # fmt: skip
@click.option(
    "--group",
    metavar="COLUMN",
    help="Column by which standard errors are clustered (rows that share it are not independent).",
)
@click.option("--description", default=None, metavar="TEXT", help="Text before the shots.  [default: the task's own]")
@click.option(
    "--separator", default=None, metavar="TEXT", help="Text between shots.  [default: the task's own, or \\n\\n]"
)
@click.option("--draws", "--seeds", "draws", type=int, default=5, show_default=True, metavar="N",
              help="Random sets of shots.")  # fmt: skip
@click.option("--orders", type=int, default=1, show_default=True, metavar="N", help="Orders of each set.")
@click.option("--select", type=click.Choice(["random", "balanced", "first", "similar"]), default="random",
              show_default=True, help="How shots are chosen; similar: those nearest to each item in the model's own "
                                      "states.")  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Random seed of the draws.")
@click.option("--score", "measure", type=click.Choice(_MEASURES), default="auto", show_default=True,
              help="How a choice is scored: ln p as it is, per character, byte or token, minus ln p "
                   "after a premise, or by constrained decoding.")  # fmt: skip
@click.option(
    "--premise", metavar="TEXT", help="Prompt without the question, for pmi.  [default: the template's last words]"
)
@click.option("--calibrate", metavar="contextual,batch", help="Also score with these calibration methods.")
@click.option(
    "--no-baselines", is_flag=True, help="Skip the baselines: shots with random labels, calibrated zero-shot."
)
@click.option("--overflow", type=click.Choice(["error", "drop-shots"]), default="error", show_default=True,
              help="If a prompt is longer than the context: stop with an error, or drop whole shots.")  # fmt: skip
@click.option("--chat-template", type=click.Choice(["off", "on", "both"]), metavar="off|on|both",
              help="Use the model's chat template, with shots as turns; both: compare it with raw "
                   "text.  [default: off]")  # fmt: skip
@click.option("--system", metavar="TEXT", help="System message; turns the chat template on.")
@click.option("--scorer", metavar="NAME|regex:PATTERN",
              help="How generated answers are scored: exact, contains, number (the last), f1, "
                   "regex:PATTERN.")  # fmt: skip
@click.option("--max-tokens", type=int, metavar="N", help="Longest generated answer, in tokens.")
@click.option("--limit", type=int, metavar="N", help="Score a random sample of N items.")
@click.option("--compat", type=click.Choice(["lm-eval"]), help="Run a task file exactly as lm-evaluation-harness does.")
@click.option("--dry-run", is_flag=True, help="Print the cost and one prompt; don't run the model.")
@click.option("--report", type=OUTPUT_FILE, metavar="FILE.html", help="Write an HTML report.")
@click.option("--out", type=OUTPUT_FOLDER, metavar="FOLDER",
              help="Write results_*.json and samples_*.jsonl in lm-evaluation-harness's format.")  # fmt: skip
@click.option("--name", metavar="NAME", help="Name in the store.  [default: task, time and a hash]")
@click.option(
    "--store", type=OUTPUT_FILE, metavar="FILE", help="Database of answers and evaluations.  [default: in the cache]"
)
@click.option("--no-store", is_flag=True, help="Neither read nor write the store.")
@click.option("--compare", nargs=2, metavar="A B", help="Compare two stored evaluations item by item.")
@click.option("--list", "as_list", is_flag=True, help="List the tasks that come with nextword.")
@click.option(
    "--power", type=float, metavar="DIFFERENCE", help="Also print how many items it takes to detect this difference."
)
@click.option("--require", multiple=True, metavar="'A > B'",
              help="Exit with code 1 unless A scores significantly higher than B (a line or a "
                   "number): '4 shots > 0 shots'.")  # fmt: skip
@click.option("--at-least", type=float, metavar="SCORE",
              help="Exit with code 1 unless every line's interval lies at or above this score.")  # fmt: skip
@click.option(
    "--skip-bad", is_flag=True, help="Skip invalid rows and rows whose answer is not a choice, and report them."
)
@click.option(
    "--dtype", default="auto", metavar="TYPE", help="Type of the weights: auto (as stored, if fast), float32, ..."
)
@click.option("--device", default="auto", metavar="DEVICE", help="auto, cpu, cuda, ...")
@click.option("--show-draws", is_flag=True, help="Also print a row for each draw and order.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def command(click_context: click.Context, /, task: str | None, **options: Any) -> None:
    """Evaluate prompts on real models: are four shots really better than none?

    TASK is a built-in task (--list), an lm-evaluation-harness task file (.yaml), or a table of rows (.csv, .jsonl, ...)
    with a --template.

    \b
    nextword eval sentiment --shots 0,1,4 --limit 200
    nextword eval reviews.csv --template "{text}\\nSentiment: {label}" --shots 0,4
    nextword eval sentiment --template a.txt,b.txt --orders 4
    nextword eval my_task.yaml --compat lm-eval --out results/
    nextword eval runs list
    """
    if click_context.invoked_subcommand is not None:
        return
    _check_together(click_context, task)
    from ..evals.store import default_path, opened

    path = None if options["no_store"] else options["store"] or default_path()
    with opened(path) as store:
        if options["as_list"]:
            from .eval_display import print_list

            print_list(options["as_json"])
        elif options["compare"]:
            _compare(store, options["compare"], options["as_json"])
        elif task is None:
            raise UsageError("no task given. Name a file or a built-in task; list these with: nextword eval --list")
        else:
            _evaluate(task, store, options)


def _evaluate(task: str, store: Store, options: dict[str, Any]) -> None:
    from ..evals.opening import open_task, read_templates

    if options["name"] is not None:
        store.check_free(options["name"])
    power = options["power"]
    if power is not None and not 0 < power < 1:
        raise UsageError(f"--power is {power}; it must be a difference between 0 and 1, such as 0.05")
    sources = read_templates([part for text in options["templates"] for part in _parts(text)])
    forms = open_task(task, sources, _table(options))
    forms = {name: _with_length(form, options["max_tokens"]) for name, form in forms.items()}
    if options["scorer"] is not None:
        from ..evals.scorers import scored_by

        forms = scored_by(forms, options["scorer"], options["compat"] is not None)
    from ..evals.evaluation import Evaluation  # imports torch: only once the task is known
    from ..evals.provenance import provenance
    from ..evals.requirements import asks_of, names_of
    from ..evals.store import default_name
    from ..evals.summary import planned, summarise
    from . import eval_display as display

    first = next(iter(forms.values()))
    shots = options["shots"] if options["shots"] is not None else (first.shots,)
    design, settings = _design(options, shots), _settings(options)
    models = [load_model(name, options["dtype"], options["device"]) for name in options["models"] or (DEFAULT_MODEL,)]
    evaluation = Evaluation(forms, models, design, settings, store)
    names = names_of([each.choice for each in evaluation.conditions()])
    asks = asks_of(options["require"], options["at_least"], names, first.output != "loglikelihood_rolling")
    if options["dry_run"]:
        display.print_cost(evaluation, options["as_json"], None if power is None else planned(evaluation, asks, power))
        return
    began = time.time()
    try:
        collected = display.run(evaluation)
    except KeyboardInterrupt:
        display.say_interrupted(kept=not options["no_store"])
        raise
    made = provenance(evaluation, _unnamed(click.get_current_context().meta["command line"]))
    result = replace(summarise(collected, design.seed, power, asks), provenance=made)
    name = options["name"] or default_name(result.to_dict(), began)
    with ExitStack() as files:  # run after printing, each even if another fails
        files.callback(_keep, store, name, result)
        if options["out"]:
            from ..evals.exporting import write_harness_results

            files.callback(write_harness_results, options["out"], collected)
        if options["report"]:
            from ..evals.page import write_report

            files.callback(write_report, options["report"], collected, result, {each.name: each for each in models})
        kept = None if options["no_store"] else name
        display.print_result(result, kept, options["as_json"], options["show_draws"])
    display.end_with(result.requirements)


def _unnamed(command: str) -> str:
    """A command line without --name: run again, it would be refused, since the name is taken."""
    words, kept = iter(shlex.split(command)), []
    for word in words:
        if word == "--name":
            next(words, None)
        elif not word.startswith("--name="):
            kept.append(word)
    return shlex.join(kept)


def _check_together(context: click.Context, task: str | None) -> None:
    """Raises UsageError for an option that would do nothing beside another one."""
    typed = [
        each.opts[0]
        for each in context.command.params
        if isinstance(each, click.Option)
        and context.get_parameter_source(str(each.name)) is ParameterSource.COMMANDLINE
    ]
    for option, only, why in (
        ("--compare", ("--store", "--json"), "it compares two kept evaluations, and measures nothing"),
        ("--list", ("--json",), "it lists tasks, and measures nothing"),
    ):
        others = [*[str(task)] * (task is not None), *(each for each in typed if each not in (option, *only))]
        if option in typed and others:
            raise UsageError(f"{option} cannot be used with {', '.join(others)}: {why}")
    for option, refused, why in (
        ("--no-store", ("--store", "--name"), "nothing is kept"),
        ("--compat", ("--draws", "--orders", "--select"), "lm-evaluation-harness draws shots anew for every item"),
    ):
        if option in typed and (others := [each for each in typed if each in refused]):
            raise UsageError(f"{option} cannot be used with {', '.join(others)}: {why}")


def _keep(store: Store, name: str, result: Result) -> None:
    from ._console import messages

    if (kept := store.keep(name, asdict(result))) != name:
        messages().print(
            f"another evaluation has taken the name {name!r} in the meantime; this one is stored as {kept!r}"
        )


def _compare(store: Store, names: tuple[str, str], as_json: bool) -> None:
    from ..evals.stored import compare_kept
    from .eval_display import print_compared

    print_compared(compare_kept(*(store.evaluation(name) for name in names)), as_json)


def _parts(text: str) -> list[str]:
    """A template's text, or comma-separated files."""
    return [text] if "{" in text else text.split(",")


def _unescape(text: str) -> str:
    return text.replace("\\n", "\n").replace("\\t", "\t")


def _table(options: dict[str, Any]) -> TableSettings:
    """The options about rows and prompts, which override those of a task file."""
    from ..evals.table import TableSettings, labels_of

    separator, description = (
        None if options[name] is None else _unescape(options[name]) for name in ("separator", "description")
    )
    return TableSettings(
        answer=options["answer"], labels=labels_of(options["labels"] or ""),
        free=options["free"], group=options["group"], shots_from=options["shots_from"], skip_bad=options["skip_bad"],
        seed=options["seed"], hold_back=max(options["shots"] or (0,)) > 0, compat=options["compat"] == "lm-eval",
        separator=separator, description=description,
    )  # fmt: skip


def _with_length(task: Task, most: int | None) -> Task:
    from ..evals.opening import with_length

    if most is None:
        return task
    if task.output != "generate_until":
        raise UsageError(f"--max-tokens: the model writes no answer in {task.name}. Add --free, or leave it out")
    if most < 1:
        raise UsageError(f"--max-tokens is {most}; it must be a whole number of at least 1")
    return with_length(task, most)


def _design(options: dict[str, Any], shots: tuple[int, ...]) -> Design:
    from ..evals.trials import Design

    compat = options["compat"] == "lm-eval"
    return Design(
        shots, 1 if compat else options["draws"], 1 if compat else options["orders"], options["select"],
        options["seed"], options["limit"], not options["no_baselines"] and not compat, compat,
    )  # fmt: skip


def _settings(options: dict[str, Any]) -> Settings:
    from ..evals.settings import Settings

    ways = () if options["calibrate"] is None else tuple(options["calibrate"].split(","))
    premise = None if options["premise"] is None else _unescape(options["premise"])
    return Settings(options["measure"], premise, ways, options["overflow"], options["chat_template"], options["system"])


command.add_command(runs)
