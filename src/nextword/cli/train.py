"""nextword train: text and a budget → a model, predicted and measured."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from ..base import UsageError, installed, require_torch
from ..base.fields import FieldError
from ..base.toml import read_toml, set_values
from ..plan.run_config import BUDGETS, RunConfig, TrackerName
from ..plots import save
from ..train.watching import run_json
from ._console import emit_json, messages
from ._options import OUTPUT_FOLDER
from .plan_options import COUNT, FLOPS, ROWS, STEPS, TOKENS, duration_in

if TYPE_CHECKING:
    from ..train.pipeline import PreparedRun
    from ..train.run import RunResult
    from ..train.run_dir import Measured, RunRecord

_KEYS = {  # command-line parameters that are configuration keys
    **{name: f"train.{name}" for name in ("minutes", "flops", "tokens", "steps", "context", "batch_size",
                                          "learning_rate", "seed", "tensor_parallel")},
    **{name: f"model.{name}" for name in ("arch", "params", "lora")},
    "base": "model.base", "train_dtype": "train.dtype", "log": "run.log",
}  # fmt: skip


def _number_or_auto(context: click.Context, option: click.Parameter, value: str) -> str:
    if value != "auto" and not (value.isdecimal() and 1 <= int(value) <= _MOST_PROCESSES):
        raise UsageError(f"--processes {value}: give a number from 1 to {_MOST_PROCESSES:,}, or auto for one a GPU")
    return value


def _trackers(context: click.Context, option: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    if value is None or value == "none":
        return () if value else None
    names, known = tuple(dict.fromkeys(value.split(","))), get_args(TrackerName)
    if not set(names) <= set(known):
        raise UsageError(f"--log {value}: give one or more of {', '.join(known)}, with commas between them, or none")
    return names


log_option = click.option(
    "--log", metavar="TRACKERS", callback=_trackers,
    help="Experiment trackers: tensorboard, wandb, mlflow, with commas between them, or none.",
)  # fmt: skip
_MOST_PROCESSES = 1024
processes_option = click.option(
    "--processes", default="1", show_default=True, metavar="N", callback=_number_or_auto,
    help="Processes that share the training, or auto: one a GPU.",
)  # fmt: skip
tensor_parallel_option = click.option(
    "--tensor-parallel", type=click.IntRange(1), metavar="N",
    help="How many of the processes share each layer of a transformer.",
)  # fmt: skip


@click.command(name="train")
@click.argument("data", nargs=-1)
@click.option("--minutes", type=duration_in("min"), metavar="TIME", help="Budget: training time, such as 20, 90s, 2h.")
@click.option("--flops", type=FLOPS, metavar="C", help="Or: compute, such as 1e15.")
@click.option("--tokens", type=COUNT, metavar="D", help="Or: tokens, such as 50M.")
@click.option("--steps", type=STEPS, metavar="N", help="Or: optimizer steps.")
@click.option("--arch", type=click.Choice(["transformer", "rnn", "lstm", "gru"]), help="Default: transformer.")
@click.option("--params", type=COUNT, metavar="N", help="Parameters. Default: compute-optimal.")
@click.option("--model", "base", metavar="MODEL", help="Fine-tune these weights, with their tokenizer.")
@click.option("--lora", type=click.IntRange(1), metavar="RANK", help="Train adapters of this rank; with --model.")
@click.option("--context", type=TOKENS, metavar="TOKENS", help="Tokens per sequence. Default: grows with the model.")
@click.option("--batch-size", type=ROWS, metavar="ROWS", help="Sequences per step.")
@click.option("--learning-rate", type=click.FloatRange(min=0, min_open=True), metavar="RATE",
              help="Peak learning rate; it decays to a tenth.")  # fmt: skip
@click.option("--train-dtype", type=click.Choice(["auto", "fp32", "amp"]),
              help="amp: matrix products in bfloat16. Default: amp if it is faster on this machine.")  # fmt: skip
@click.option("--seed", type=int, metavar="N", help="Seed of the weights, the data order and dropout.")
@click.option("--config", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="TOML configuration, such as a run's config.toml or from `nextword plan budget --out`.")  # fmt: skip
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE",
              help="Set any configuration key, such as train.dropout=0.1. Repeatable.")  # fmt: skip
@click.option("--out", type=OUTPUT_FOLDER, metavar="FOLDER", help="Default: runs/<arch>-<parameters>.")
@log_option
@processes_option
@tensor_parallel_option
@click.option("--dry-run", is_flag=True, help="Print the plan and stop.")
@click.option("--json", "as_json", is_flag=True, help="Print plan and measurement as JSON.")
def command(
    data: tuple[str, ...], config: Path | None, assignments: tuple[str, ...], out: Path | None, processes: str,
    dry_run: bool, as_json: bool, **options: Any,
) -> None:  # fmt: skip
    """Train a language model on DATA: files or folders of text (docs/data.md), or hf:owner/name.

    A budget is enough: this machine is measured, a compute-optimal model chosen, and a tokenizer trained on the
    text. The plan is printed before training, and compared with the measurements after it. Ctrl-C writes a
    checkpoint. Everything else is a configuration key (--config, --set), listed in docs/train.md.

    \b
    Examples:
      nextword train books/ --minutes 20
      nextword train books/ --minutes 20 --arch lstm --set train.dropout=0.1
      nextword train notes.md --model smollm2-135m-instruct --lora 8 --minutes 5
      nextword train books/ --config runs/transformer-1.20M/config.toml --out again
      nextword train books/ --minutes 20 --processes 2
      nextword complete --model runs/transformer-1.20M "Once upon a time"
    """
    if not data:
        raise UsageError("give the text to train on: files, folders or hf:owner/name, such as: nextword train books/")
    given = {name: value for name, value in options.items() if value is not None}
    with _options_named(given):
        settings = run_config(config, given, assignments)
        require_torch("training")
        if started_processes(processes):
            return
        from ..train.distributed import one_voice

        with one_voice():
            _train(settings, data, out, dry_run, as_json)


def started_processes(asked: str) -> bool:
    """Run this command line in several processes, if --processes says so; whether it did."""
    world = os.environ.get("WORLD_SIZE", "")
    if world:  # this is one of them, or of torchrun's
        if asked not in ("1", "auto", world):
            raise UsageError(f"--processes {asked} contradicts torchrun, which started {world}; leave it out")
        return False
    processes = _gpus() or 1 if asked == "auto" else int(asked)
    if processes == 1:
        return False
    from ..train.launch import launch

    launch(processes, shlex.split(click.get_current_context().meta["command line"])[1:])
    return True


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def run_config(file: Path | None, given: dict[str, Any], assignments: tuple[str, ...] = ()) -> RunConfig:
    """The configuration in `file`, overridden by command-line options and each KEY=VALUE."""
    table = read_toml(file) if file is not None else {}
    budgets = [f"--{name}" for name in BUDGETS if name in given]
    if len(budgets) > 1:
        raise UsageError(f"{' and '.join(budgets)} are separate budgets; give one")
    if budgets and isinstance(train := table.get("train"), dict):
        for name in BUDGETS:
            train.pop(name, None)
    if "arch" in given and "spec" in table.get("model", {}):
        raise UsageError(f"--arch has no effect: the shape is fixed by [model.spec] in {file}")
    for name, value in given.items():
        section, _, key = _KEYS[name].partition(".")
        table.setdefault(section, {})[key] = value / 60 if name == "minutes" else value
    set_values(table, assignments)
    try:
        return RunConfig.from_dict(table)
    except FieldError:
        raise
    except UsageError as error:
        raise UsageError(f"{file}: {error}" if file is not None else str(error)) from None


@contextmanager
def _options_named(given: dict[str, Any]) -> Iterator[None]:
    """In errors of the block, name the option (--learning-rate) that set a key (train.learning_rate)."""
    try:
        yield
    except FieldError as error:
        options = {_KEYS[name]: "--model" if name == "base" else f"--{name.replace('_', '-')}" for name in given}
        named = next((option for key, option in options.items() if error.name in (key, key.partition(".")[2])), None)
        raise UsageError(error.said_as(named or error.name)) from None


def _train(config: RunConfig, data: tuple[str, ...], out: Path | None, dry_run: bool, as_json: bool) -> None:
    from ..train.distributed import begun_run, this_process
    from ..train.memory import keep_freed_memory
    from ..train.pipeline import prepare_run
    from ..weights.catalogue import cache_folder
    from .train_display import print_plan

    if folder := begun_run():
        from .runs import resume_folder

        return resume_folder(folder, as_json)
    keep_freed_memory()  # before steps are probed, as when they are trained
    run = prepare_run(config, data, out, cache_folder(), lambda text: messages().print(text, style="dim"))
    first = this_process().first
    if first and not as_json:
        print_plan(run)
    if not dry_run:
        train(run, as_json)
    elif first and as_json:
        emit(run.folder, run.record, None)
    return None


def train(run: PreparedRun, as_json: bool, **how: Any) -> None:
    """Train a prepared run on the terminal, and print its report; `how` is passed to `train_run`."""
    from ..train import calibration
    from ..train.distributed import this_process
    from ..train.memory import keep_freed_memory
    from ..train.run import train_run
    from ..train.run_dir import RECORD, resume_command
    from .train_display import Display

    keep_freed_memory()
    try:
        with Display(run) as display:
            result = train_run(run.record.config, run.data, run.folder, display, record=run.record, **how)
    except KeyboardInterrupt:
        if this_process().first and (run.folder / RECORD).exists():
            messages().print(f"stopped at once. Resume: {resume_command(run.folder)}", soft_wrap=True)
        raise
    if this_process().first:
        if result.measured is not None:
            calibration.remember(result.folder, result.record, result.measured)
        _finish(result, display.steps, as_json)


def _finish(result: RunResult, steps: int, as_json: bool) -> None:
    """What is printed at the end of a run of `steps` steps."""
    from ..train.run_dir import resume_command
    from .train_display import print_report

    folder, record, outcome = result.folder, result.record, result.outcome
    if outcome.interrupted:
        messages().print(
            f"stopped after step {outcome.steps:,} of {steps:,}; the model so far is in {folder}."
            f" Resume: {resume_command(folder)}", soft_wrap=True,
        )  # fmt: skip
        raise KeyboardInterrupt
    if as_json:
        emit(folder, record, result.measured)
    elif result.measured is not None:
        print_report(record.expected, result.measured, folder)
    draw_curve(folder)  # last: a full disk must not suppress the report


def draw_curve(folder: Path) -> None:
    """Write curve.svg, if vl-convert is installed."""
    if installed("vl_convert"):
        from ..train.plots import curves_figure

        save(curves_figure([folder]), folder / "curve.svg")


def emit(folder: Path, record: RunRecord, measured: Measured | None) -> None:
    """Print a run as JSON."""
    emit_json(run_json(folder, record, measured))
