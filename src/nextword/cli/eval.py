"""nextword eval: measure prompts on real models, with error bars."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click
from click.core import ParameterSource

from ..base import UsageError
from ..evals.design import Calibrate, ChatTemplate, ChoiceScoring, Design, Overflow, Sampler, ScoringConfig
from ..evals.scorers import NAMES
from ..evals.task_loader import TaskOptions, labels_of, open_task, read_templates
from ..weights.catalogue import DEFAULT_MODEL
from ._names import complete_model
from ._options import LOADING_OPTIONS, OUTPUT_FILE, OUTPUT_FOLDER, load_config, loading_options
from .eval_lm_eval import LM_EVAL_OPTIONS, run_lm_eval
from .eval_runs import EvalGroup, complete_task, runs

if TYPE_CHECKING:
    from ..engine.loading import LoadConfig
    from ..evals.runner import ModelRunner
    from ..evals.served import EvalModel
    from ..evals.store import Store
    from ..evals.summary import Result
    from ..evals.task import Task


class Numbers(click.ParamType):  # type: ignore[type-arg]
    """Comma-separated whole numbers."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        try:
            return value if isinstance(value, tuple) else tuple(int(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of whole numbers. Write it as 0,1,4", param, ctx)


@dataclass(frozen=True)
class Arguments:
    """The options of `nextword eval`, as typed."""

    models: tuple[str, ...]
    shots: tuple[int, ...] | None
    templates: tuple[str, ...]
    target: str | None
    labels: str | None
    generate: bool
    shots_from: Path | None
    group: str | None
    description: str | None
    separator: str | None
    fewshot_seeds: int
    permutations: int
    sampler: Sampler
    seed: int
    choice_scoring: ChoiceScoring
    premise: str | None
    calibrate: str | None
    no_baselines: bool
    overflow: Overflow
    chat_template: ChatTemplate | None
    system: str | None
    scorer: str | None
    max_tokens: int | None
    limit: int | None
    dry_run: bool
    report: Path | None
    out: Path | None
    name: str | None
    store: Path | None
    no_store: bool
    compare: tuple[str, str] | None
    as_list: bool
    power: float | None
    require: tuple[str, ...]
    at_least: float | None
    skip_invalid: bool
    dtype: str
    kv_dtype: str
    device: str
    threads: int | None
    cluster: str | None
    show_seeds: bool
    as_json: bool
    lm_eval: str | None
    include_path: Path | None
    concurrency: int
    timeout: float

    def task_options(self) -> TaskOptions:
        """Options about rows and prompts, which override the task file."""
        return TaskOptions(
            self.target, labels_of(self.labels or ""), self.generate, self.max_tokens, self.group,
            _unescape(self.separator), _unescape(self.description), self.shots_from, self.skip_invalid, self.seed,
            None if self.shots is None else max(self.shots) > 0,
        )  # fmt: skip

    def design(self, task: Task) -> Design:
        """The experiment's conditions; the default number of shots is the task's own."""
        shots = (task.shots,) if self.shots is None else self.shots
        return Design(
            shots, self.fewshot_seeds, self.permutations, self.sampler, self.seed, self.limit, not self.no_baselines
        )

    def scoring(self) -> ScoringConfig:
        """How choices are scored, and prompts written."""
        methods: Any = () if self.calibrate is None else tuple(self.calibrate.split(","))
        return ScoringConfig(
            self.choice_scoring, _unescape(self.premise), methods, self.overflow, self.chat_template, self.system
        )


def _choice(literal: Any) -> click.Choice[str]:
    return click.Choice(get_args(literal))


@click.group(name="eval", cls=EvalGroup, invoke_without_command=True)
@click.argument("task", required=False, shell_complete=complete_task)
@click.option(
    "-m", "--model", "models", multiple=True, metavar="NAME", shell_complete=complete_model,
    help="Model to evaluate, or openai:http://HOST:PORT/v1#NAME; repeat it to compare several.  [default: "
         f"{DEFAULT_MODEL}]",
)  # fmt: skip
@click.option("--shots", type=Numbers(), metavar="0,1,4",
              help="Numbers of few-shot examples.  [default: the task's own]")  # fmt: skip
@click.option("--template", "templates", multiple=True, metavar="TEXT|FILES",
              help="Prompt template with {columns}, or comma-separated files (*.jinja: Jinja); repeat it to compare "
                   "several.")  # fmt: skip
@click.option("--target", metavar="COLUMN", help="Column with the right answer.  [default: output, label, answer, ...]")
@click.option("--labels", metavar="A,B", help="All choices; 0=negative renames one in the prompt.")
@click.option("--generate", is_flag=True, help="Let the model generate its answer; scored by exact match.")
@click.option("--shots-from", type=click.Path(path_type=Path), metavar="FILE",
              help="File of few-shot examples.  [default: the task's; for a table, a fifth of its rows]")  # fmt: skip
@click.option("--group", metavar="COLUMN",
              help="Column by which standard errors are clustered (rows that share it are not "
                   "independent).")  # fmt: skip
@click.option("--description", metavar="TEXT", help="Text before the shots.  [default: the task's own]")
@click.option("--separator", metavar="TEXT", help="Text between shots.  [default: the task's own, or \\n\\n]")
@click.option("--fewshot-seeds", type=int, default=5, show_default=True, metavar="N", help="Random sets of shots.")
@click.option("--permutations", type=int, default=1, show_default=True, metavar="N", help="Orders of each set.")
@click.option("--fewshot-sampler", "sampler", type=_choice(Sampler), default="random", show_default=True,
              help="How shots are chosen; similar: those nearest to each item in the model's own "
                   "states.")  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Random seed of everything drawn.")
@click.option("--choice-scoring", type=_choice(ChoiceScoring), default="raw", show_default=True,
              help="How a choice is scored: ln p, ln p per character, byte or token, minus ln p "
                   "after a premise, or by constrained decoding.")  # fmt: skip
@click.option("--premise", metavar="TEXT",
              help="Prompt without the question, for pmi.  [default: the template's last words]")  # fmt: skip
@click.option("--calibrate", metavar=",".join(get_args(Calibrate)), help="Also score with these calibration methods.")
@click.option("--no-baselines", is_flag=True,
              help="Skip the baselines: shots with random labels, calibrated zero-shot.")  # fmt: skip
@click.option("--overflow", type=_choice(Overflow), default="error", show_default=True,
              help="If a prompt is longer than the context: stop with an error, or drop whole shots.")  # fmt: skip
@click.option("--chat-template", type=_choice(ChatTemplate), metavar="off|on|both",
              help="Use the model's chat template, with shots as turns; both: compare it with raw "
                   "text.  [default: off]")  # fmt: skip
@click.option("--system", metavar="TEXT", help="System message; turns the chat template on.")
@click.option("--scorer", metavar="NAME", help=f"How generated answers are scored: {', '.join(NAMES)}.")
@click.option("--max-tokens", type=int, metavar="N", help="Longest generated answer, in tokens.")
@click.option("--limit", type=int, metavar="N", help="Score a random sample of N items.")
@click.option("--lm-eval", metavar="TASK,...", help="Run lm-evaluation-harness's tasks, with its own numbers.")
@click.option("--include-path", type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="FOLDER",
              help="Folder with more task files for --lm-eval.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Print the cost and one prompt; don't run the model.")
@click.option("--report", type=OUTPUT_FILE, metavar="FILE.html", help="Write an HTML report.")
@click.option("--out", type=OUTPUT_FOLDER, metavar="FOLDER",
              help="Write result.json, and samples.jsonl with every answer.")  # fmt: skip
@click.option("--name", metavar="NAME", help="Name in the store.  [default: task, time and a hash]")
@click.option("--store", type=OUTPUT_FILE, metavar="FILE",
              help="Database of answers and evaluations.  [default: in the cache]")  # fmt: skip
@click.option("--no-store", is_flag=True, help="Neither read nor write the store.")
@click.option("--compare", nargs=2, metavar="A B", help="Compare two stored evaluations item by item.")
@click.option("--list", "as_list", is_flag=True, help="List the built-in tasks.")
@click.option("--power", type=float, metavar="DIFFERENCE",
              help="Also print how many items it takes to detect this difference.")  # fmt: skip
@click.option("--require", multiple=True, metavar="'A > B'",
              help="Exit with code 1 unless A scores significantly higher than B (a row or a "
                   "number): '4 shots > 0 shots'.")  # fmt: skip
@click.option("--at-least", type=float, metavar="SCORE",
              help="Exit with code 1 unless every row's interval lies at or above this score.")  # fmt: skip
@click.option("--skip-invalid", is_flag=True,
              help="Skip invalid rows and rows whose answer is not a choice, and report them.")  # fmt: skip
@loading_options
@click.option("--cluster", metavar="ADDRESS", help="Run on a Ray cluster: auto, or HOST:PORT of its head.")
@click.option("--concurrency", type=int, default=8, show_default=True, metavar="N",
              help="Concurrent requests, for openai:http://host:port/v1#model.")  # fmt: skip
@click.option("--timeout", type=float, default=120.0, show_default=True, metavar="SECONDS",
              help="Timeout of a request to such a server.")  # fmt: skip
@click.option("--show-seeds", is_flag=True, help="Also print a row for each few-shot seed and permutation.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def command(click_context: click.Context, /, task: str | None = None, **options: Any) -> None:
    """Evaluate prompts on real models: are four shots really better than none?

    TASK is a built-in task (--list), a task file (.yaml), or a table of rows (.csv, .jsonl, ...) with a --template.

    \b
    nextword eval sentiment --shots 0,1,4 --limit 200
    nextword eval reviews.csv --template "{text}\\nSentiment: {label}" --shots 0,4
    nextword eval sentiment --template a.txt,b.txt --permutations 4
    nextword eval my_task.yaml --out results/
    nextword eval runs list
    """
    if click_context.invoked_subcommand is not None:
        return
    arguments = Arguments(**options)
    _check_together(click_context, task)
    if arguments.as_list:
        from .eval_display import print_list

        print_list(arguments.as_json)
        return
    if arguments.lm_eval is not None:
        run_lm_eval(arguments, click_context.get_parameter_source("seed") is ParameterSource.COMMANDLINE)
        return
    if arguments.include_path is not None:
        raise UsageError("--include-path is only used by --lm-eval. Add --lm-eval TASK, or leave it out")
    if task is None and not arguments.compare:
        raise UsageError("no task given. Name a file or a built-in task; list these with: nextword eval --list")
    from ..evals.store import default_path, opened

    with opened(None if arguments.no_store else arguments.store or default_path()) as store, ExitStack() as stack:
        if arguments.compare:
            _compare(store, arguments.compare, arguments.as_json)
        else:
            _evaluate(str(task), store, arguments, stack)


def _evaluate(task: str, store: Store, arguments: Arguments, stack: ExitStack) -> None:
    if arguments.name is not None:
        store.check_name(arguments.name)
    power = arguments.power
    if power is not None and not 0 < power < 1:
        raise UsageError(f"--power is {power}; it must be a difference between 0 and 1, such as 0.05")
    templates = read_templates([part for text in arguments.templates for part in _template_names(text)])
    tasks = open_task(task, templates, arguments.task_options())
    if arguments.scorer is not None:
        from ..evals.scorers import with_scorer

        tasks = {name: with_scorer(own, arguments.scorer) for name, own in tasks.items()}
    from ..evals.eval_run import EvalRun
    from ..evals.openai_client import Connection
    from ..evals.provenance import provenance
    from ..evals.requirements import names_of, read_requirements
    from ..evals.served import open_model
    from ..evals.store import default_name
    from ..evals.summary import planned, summarise
    from . import eval_display as display

    design, scoring = arguments.design(next(iter(tasks.values()))), arguments.scoring()
    names = arguments.models or (DEFAULT_MODEL,)
    connection = Connection(arguments.concurrency, arguments.timeout)
    config = load_config(vars(arguments))
    models = [open_model(name, config, connection) for name in names]
    run = EvalRun(tasks, models, design, scoring, store, _runners(arguments.cluster, config, stack))
    row_names = names_of([condition.choice for condition in run.conditions()])
    requirements = read_requirements(arguments.require, arguments.at_least, row_names)
    if arguments.dry_run:
        display.print_cost(run, arguments.as_json, None if power is None else planned(run, requirements, power))
        return
    began = time.time()
    try:
        collected = display.run_with_progress(run)
    except KeyboardInterrupt:
        display.print_interrupted(stored=not arguments.no_store)
        raise
    record = provenance(run, _without_name(click.get_current_context().meta["command line"]))
    result = replace(summarise(collected, design.seed, power, requirements), provenance=record)
    name = arguments.name or default_name(result.to_dict(), began)
    with ExitStack() as files:  # run after printing, each even if another fails
        files.callback(_keep, store, name, result)
        if arguments.out:
            from ..evals.export import write_results

            files.callback(write_results, arguments.out, collected, result)
        if arguments.report:
            from ..evals.report import write_report

            files.callback(write_report, arguments.report, collected, result, {model.name: model for model in models})
        stored_as = None if arguments.no_store else name
        display.print_result(result, stored_as, arguments.as_json, arguments.show_seeds)
    display.exit_unless_met(result.requirements)


def _runners(cluster: str | None, config: LoadConfig, stack: ExitStack) -> Callable[[EvalModel, Store], ModelRunner]:
    """What runs a model's requests: this process, or actors of a cluster, which `stack` detaches from."""
    if cluster is None:
        from ..evals.served import runner_for

        return runner_for
    from ..base.cluster import attached
    from ..evals.cluster import runners_on

    return runners_on(stack.enter_context(attached(cluster)), config)


def _without_name(command: str) -> str:
    """The command line without --name, so that running it again is not refused for a taken name."""
    words, kept = iter(shlex.split(command)), []
    for word in words:
        if word == "--name":
            next(words, None)
        elif not word.startswith("--name="):
            kept.append(word)
    return shlex.join(kept)


def _check_together(context: click.Context, task: str | None) -> None:
    """Raise UsageError for an option that has no effect with another one."""
    typed = [
        option.opts[0]
        for option in context.command.params
        if isinstance(option, click.Option)
        and context.get_parameter_source(str(option.name)) is ParameterSource.COMMANDLINE
    ]
    for option, allowed, why in (
        ("--compare", ("--store", "--json"), "it compares two stored evaluations, and measures nothing"),
        ("--list", ("--json",), "it lists tasks, and measures nothing"),
        ("--lm-eval", LM_EVAL_OPTIONS, "lm-evaluation-harness decides how its tasks are run"),
    ):
        others = [*[str(task)] * (task is not None), *(name for name in typed if name not in (option, *allowed))]
        if option in typed and others:
            raise UsageError(f"{option} cannot be used with {', '.join(others)}: {why}")
    served = [name.startswith("openai:") for name in context.params["models"]]
    for options, useless, fix in (
        (
            ("--concurrency", "--timeout"),
            not any(served),
            "for served models. Add --model openai:http://host:port/v1#name",
        ),
        ((*LOADING_OPTIONS, "--cluster"), served and all(served), "for local models, and these are served"),
    ):
        if useless and (others := [name for name in typed if name in options]):
            raise UsageError(f"{', '.join(others)} only count{'s' * (len(others) == 1)} {fix}")
    if "--no-store" in typed and (others := [name for name in typed if name in ("--store", "--name")]):
        raise UsageError(f"--no-store cannot be used with {', '.join(others)}: nothing is stored")


def _keep(store: Store, name: str, result: Result) -> None:
    from ._console import messages

    if (stored_as := store.keep(name, asdict(result))) != name:
        messages().print(
            f"another evaluation took the name {name!r} in the meantime; this one is stored as {stored_as!r}"
        )


def _compare(store: Store, names: tuple[str, str], as_json: bool) -> None:
    from ..evals.stored import compare_stored
    from .eval_display import print_compared

    print_compared(compare_stored(*(store.evaluation(name) for name in names)), as_json)


def _template_names(text: str) -> list[str]:
    """A template's text, or comma-separated files."""
    return [text] if "{" in text else text.split(",")


def _unescape(text: str | None) -> str | None:
    return None if text is None else text.replace("\\n", "\n").replace("\\t", "\t")


command.add_command(runs)
