"""nextword eval: measure prompts on real models, with error bars."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..base import UsageError
from ._names import complete_model
from ._options import DEFAULT_MODEL, OUTPUT_FILE, OUTPUT_FOLDER, load_model

if TYPE_CHECKING:
    from ..prompt.evaluation import Evaluation, Settings
    from ..prompt.store import Store
    from ..prompt.trials import Design

_MEASURES = ("auto", "raw", "chars", "bytes", "tokens", "pmi", "constrained")


class Numbers(click.ParamType):  # type: ignore[type-arg]
    """Whole numbers, parted by commas."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        try:
            return value if isinstance(value, tuple) else tuple(int(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of whole numbers. Write it as 0,1,4", param, ctx)


@click.command(name="eval")
@click.argument("task", required=False)
@click.option(
    "-m", "--model", "models", multiple=True, metavar="NAME", shell_complete=complete_model,
    help=f"A model; repeat it to compare several. [default: {DEFAULT_MODEL}]",
)  # fmt: skip
@click.option(
    "--shots", type=Numbers(), metavar="0,1,4", help="Examples before the question.  [default: the task's own]"
)
@click.option("--template", "templates", multiple=True, metavar="TEXT|FILES",
              help="Form with {columns}; files parted by commas, or repeat it, to compare several.")  # fmt: skip
@click.option(
    "--answer", metavar="COLUMN", help="Column that holds the right answer. [default: output, label, answer ...]"
)
@click.option("--labels", metavar="A,B", help="The labels; 0=negative says what a raw one is called in the prompt.")
@click.option("--free", is_flag=True, help="The model writes its answer; it does not choose.")
@click.option("--shots-from", type=click.Path(path_type=Path), metavar="FILE",
              help="Rows to take shots from. [default: a fifth of the rows, then not scored]")  # fmt: skip
@click.option("--group", metavar="COLUMN", help="Rows that share it are not independent: errors are clustered by it.")
@click.option("--description", default=None, metavar="TEXT", help="Stands before everything.")
@click.option("--separator", default=None, metavar="TEXT", help="Stands between shots. [default: \\n\\n]")
@click.option("--draws", "--seeds", "draws", type=int, default=5, show_default=True, metavar="N",
              help="Sets of shots, each drawn anew.")  # fmt: skip
@click.option("--orders", type=int, default=1, show_default=True, metavar="N", help="Orders of each set.")
@click.option("--select", type=click.Choice(["random", "balanced", "first", "similar"]), default="random",
              show_default=True, help="similar: the nearest to each item, by the model itself.")  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Of every draw.")
@click.option("--score", "measure", type=click.Choice(_MEASURES), default="auto", show_default=True,
              help="ln p of a choice: raw, over its length, less that after a premise, token by token.")  # fmt: skip
@click.option("--premise", metavar="TEXT", help="What pmi compares with. [default: the template's last words]")
@click.option("--calibrate", metavar="contextual,batch", help="Also show the scores after these corrections.")
@click.option("--no-baselines", is_flag=True, help="Leave out shots with random labels and calibrated zero-shot.")
@click.option("--beyond", type=click.Choice(["refuse", "drop"]), default="refuse", show_default=True,
              help="Prompts longer than the context: refuse them, or drop whole shots.")  # fmt: skip
@click.option("--chat-template", type=click.Choice(["off", "on", "both"]), metavar="off|on|both",
              help="Prompt by the model's chat template, shots as turns; both: also raw.  [default: off]")  # fmt: skip
@click.option("--system", metavar="TEXT", help="System message of the chat; turns the chat template on.")
@click.option("--scorer", metavar="NAME|regex:PATTERN",
              help="Score written answers: exact, contains, number (the last), f1, regex:PATTERN.")  # fmt: skip
@click.option("--max-tokens", type=int, metavar="N", help="Tokens that an answer may have.")
@click.option("--limit", type=int, metavar="N", help="Score a sample of N items.")
@click.option(
    "--compat", type=click.Choice(["lm-eval"]), help="Draw shots for each item as lm-evaluation-harness does."
)
@click.option("--dry-run", is_flag=True, help="Say what it takes, and show one prompt; ask nothing.")
@click.option("--report", type=OUTPUT_FILE, metavar="FILE.html", help="Write a page to look at.")
@click.option("--out", type=OUTPUT_FOLDER, metavar="FOLDER",
              help="Write results_*.json and samples_*.jsonl as lm-evaluation-harness does.")  # fmt: skip
@click.option(
    "--name", metavar="NAME", help="What the evaluation is called in the store. [default: made from the task]"
)
@click.option("--store", type=OUTPUT_FILE, metavar="FILE", help="Where answers are kept. [default: the cache]")
@click.option("--no-store", is_flag=True, help="Keep nothing and look nothing up.")
@click.option("--compare", nargs=2, metavar="A B", help="Compare two evaluations of the store, item by item.")
@click.option("--list", "as_list", is_flag=True, help="List the tasks that come with nextword, and kept evaluations.")
@click.option("--power", type=float, metavar="DIFFERENCE", help="Also say how many items would show this difference.")
@click.option("--skip-bad", is_flag=True, help="Leave out broken rows, and tell which.")
@click.option("--dtype", default="auto", metavar="TYPE", help="auto (as stored where that is fast), float32, ...")
@click.option("--device", default="auto", metavar="DEVICE", help="auto, cpu, cuda, ...")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(task: str | None, **options: Any) -> None:
    """Measure TASK's prompts: are four shots really better than none?

    TASK is a task of nextword's own (--list), a task file of lm-evaluation-harness (.yaml), or rows (.csv, .jsonl, ...)
    with a --template.

    \b
    nextword eval sentiment --shots 0,1,4 --limit 200
    nextword eval reviews.csv --template "Review: {text}\\nSentiment: {label}" --shots 0,4,8 --report out.html
    nextword eval sentiment --template a.txt,b.txt --orders 4
    nextword eval my_task.yaml --compat lm-eval --out results/
    """
    from ..prompt.store import default_path, opened

    path = None if options["no_store"] else options["store"] or default_path()
    with opened(path) as store:
        if options["as_list"]:
            from .eval_display import print_list

            print_list(store, options["as_json"])
        elif options["compare"]:
            _compare(store, options["compare"], options["as_json"])
        elif task is None:
            raise UsageError("which task? Name a file, or one of those that come with nextword: nextword eval --list")
        else:
            _evaluate(task, store, options)


def _evaluate(task: str, store: Store, options: dict[str, Any]) -> None:
    from ..prompt.opening import Templates, open_task, read_templates

    power = options["power"]
    if power is not None and not 0 < power < 1:
        raise UsageError(f"--power is {power}; it takes a difference between 0 and 1, as 0.05")
    sources = read_templates([part for text in options["templates"] for part in _parts(text)])
    separator = None if options["separator"] is None else _unescape(options["separator"])
    description = None if options["description"] is None else _unescape(options["description"])
    forms = open_task(task, Templates(sources, separator, description), _table(options, separator, description))
    forms = {name: _with_length(form, options["max_tokens"]) for name, form in forms.items()}
    if options["scorer"] is not None:
        from ..prompt.scorers import scored_by

        forms = scored_by(forms, options["scorer"], options["compat"] is not None)
    from ..prompt.evaluation import Evaluation  # brings torch: not before the task is known
    from ..prompt.summary import summarise
    from . import eval_display as display

    first = next(iter(forms.values()))
    shots = options["shots"] if options["shots"] is not None else (first.shots,)
    design, settings = _design(options, shots), _settings(options, first, shots)
    models = [load_model(name, options["dtype"], options["device"]) for name in options["models"] or (DEFAULT_MODEL,)]
    evaluation = Evaluation(forms, models, design, settings, store)
    if options["dry_run"]:
        display.print_cost(evaluation, options["as_json"])
        return
    collected = display.run(evaluation)
    result = summarise(collected, design.seed, power)
    name = options["name"] or _name(evaluation)
    with ExitStack() as files:  # after the printing, each is tried whatever becomes of it and of the others
        files.callback(store.keep, name, result.to_dict())
        if options["out"]:
            from ..prompt.exporting import write_harness_results

            files.callback(write_harness_results, options["out"], collected)
        if options["report"]:
            from ..prompt.page import write_report

            files.callback(write_report, options["report"], collected, result, {each.name: each for each in models})
        display.print_result(result, None if options["no_store"] else name, options["as_json"])


def _compare(store: Store, names: tuple[str, str], as_json: bool) -> None:
    from ..prompt.summary import compare_kept
    from .eval_display import print_compared

    print_compared(compare_kept(*(store.evaluation(name) for name in names)), as_json)


def _parts(text: str) -> list[str]:
    """A template text as it stands, or files parted by commas."""
    return [text] if "{" in text else text.split(",")


def _unescape(text: str) -> str:
    return text.replace("\\n", "\n").replace("\\t", "\t")


def _table(options: dict[str, Any], separator: str | None, description: str | None) -> Any:
    from ..prompt.table import TableSettings

    given: dict[str, Any] = {} if separator is None else {"separator": separator}
    labels = tuple(options["labels"].split(",")) if options["labels"] else ()
    return TableSettings(
        "", options["answer"], labels, options["free"], options["group"], description=description or "",
        shots_from=options["shots_from"], skip_bad=options["skip_bad"], seed=options["seed"], **given,
    )  # fmt: skip


def _with_length(task: Any, most: int | None) -> Any:
    from dataclasses import replace

    if most is None:
        return task
    if most < 1:
        raise UsageError(f"--max-tokens is {most}; it takes a whole number of at least 1")
    return replace(task, generation=replace(task.generation, max_tokens=most))


def _design(options: dict[str, Any], shots: tuple[int, ...]) -> Design:
    from ..prompt.trials import Design

    compat = options["compat"] == "lm-eval"
    return Design(
        shots, 1 if compat else options["draws"], 1 if compat else options["orders"], options["select"],
        options["seed"], options["limit"], not options["no_baselines"] and not compat, compat,
    )  # fmt: skip


def _settings(options: dict[str, Any], task: Any, shots: tuple[int, ...]) -> Settings:
    from ..prompt.evaluation import Settings

    ways = tuple(options["calibrate"].split(",")) if options["calibrate"] else ()
    for way in ways:
        if way not in ("contextual", "batch"):
            raise UsageError(f"--calibrate {way!r} is not known. Use contextual, batch or both")
    return Settings(
        options["measure"], options["premise"], ways, options["beyond"], options["chat_template"], options["system"]
    )


def _name(evaluation: Evaluation) -> str:
    """The task and the model; a later evaluation of the same takes its place."""
    return f"{evaluation.task.name}/{evaluation.models[0].name}"
