"""nextword runs: list, show, compare, resume and export training runs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import click

from ..base import UsageError, require_torch, units
from ..base.fields import FieldError
from ..plan.run_config import RunShard, TrackerName
from ..plots import save
from ..train import calibration
from ..train.changes import NO_CHANGE, Change
from ..train.metrics import rejected_steps
from ..train.plots import curves_figure, terminal_curve
from ..train.run_dir import Measured, RunRecord, differences, read_report, runs_under
from ..train.watching import measured_of, run_json, summary
from ._app import Suggesting
from ._console import emit_json, messages, output
from ._options import OUTPUT_MODEL, WRITTEN_DTYPE, plot_option
from ._table import plain_table
from .plan_options import STEPS, choice
from .runs_calibration import command as calibration_command
from .train import emit, log_option, processes_option, started_processes, tensor_parallel_option, train
from .train_display import print_report

_FOLDER = click.Path(path_type=Path, file_okay=False)


@click.group(name="runs", cls=Suggesting)
def command() -> None:
    """Training runs: list, show, compare, resume, export, calibrate, forget.

    \b
    Examples:
      nextword runs list
      nextword runs compare runs/transformer-1.20M runs/lstm-1.20M --plot both.svg
      nextword runs resume runs/transformer-1.20M
      nextword runs export runs/transformer-1.20M model.gguf
      nextword runs calibration
    """


command.add_command(calibration_command)


@command.command(name="list")
@click.argument("root", type=_FOLDER, default=Path("runs"))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_runs(root: Path, as_json: bool) -> None:
    """The runs in a folder, oldest first."""
    rows = []
    for folder in runs_under(root):
        try:
            rows.append(summary(folder, RunRecord.read(folder)))
        except UsageError as error:  # written by another version, or damaged
            messages().print(f"skipped: {error}", style="dim", soft_wrap=True)
    if as_json:
        emit_json(rows)
        return
    if not rows:
        messages().print(f"no runs in {root}. Start one: nextword train FOLDER --minutes 20")
        return
    table = plain_table("run", "kind", "parameters", "tokens", "steps", "held-out", "bits/byte", "state",
                        least=((4,), (3,), (1,), (5,)))  # fmt: skip
    for row in rows:
        table.add_row(
            row["folder"], row["kind"], units.format_count(row["parameters"]), units.format_count(row["tokens"]),
            f"{row['step']:,}/{row['steps']:,}", _number(row["nats_per_token"]), _number(row["bits_per_byte"]),
            _state(row),
        )  # fmt: skip
    output().print(table)


@command.command(name="show")
@click.argument("run", type=_FOLDER)
@plot_option("Draw the loss curve")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(run: Path, plot: Path | None, as_json: bool) -> None:
    """Show one run: its plan, measurements and loss curve."""
    record = RunRecord.read(run)
    measured = measured_of(run, record)
    if as_json:
        emit_json(summary(run, record) | run_json(run, record, measured) | {"rejected": rejected_steps(run)})
    else:
        _print_run(run, record, measured)
    if plot is not None:
        save(curves_figure([run]), plot)


def _print_run(run: Path, record: RunRecord, measured: Measured | None) -> None:
    changes = "; ".join(map(str, record.changes)) or None
    row = summary(run, record)
    row |= {"state": _state(row), "changes": changes, "rejected": _rejected(run), "forecast": _forecast(row)}
    table = plain_table("", "", right=False)
    table.show_header = False
    for name, value in row.items():
        number = value is None or isinstance(value, float)
        table.add_row(name, _number(value) if number else f"{value:,}" if isinstance(value, int) else str(value))
    output().print(table)
    output().print("\n" + _terminal_curve([run]))
    if measured is not None:
        print_report(record.expected, measured, run)


@command.command(name="compare")
@click.argument("runs", type=_FOLDER, nargs=-1)
@plot_option("Draw the loss curves")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def compare(runs: tuple[Path, ...], plot: Path | None, as_json: bool) -> None:
    """Compare runs: settings that differ, losses, curves."""
    if len(runs) < 2:
        raise UsageError("give at least two runs to compare, such as: nextword runs compare runs/a runs/b")
    records = [RunRecord.read(run) for run in runs]
    rows = [summary(run, record) for run, record in zip(runs, records, strict=True)]
    configs = [record.config.to_dict() for record in records]
    differing = {str(run): differences(configs[0], config) for run, config in zip(runs, configs, strict=True)}
    if as_json:
        emit_json({"runs": rows, "differs_from_the_first": differing})
    else:
        _print_compared(runs, records, rows, differing)
    if plot is not None:
        save(curves_figure(runs), plot)


def _print_compared(
    runs: tuple[Path, ...], records: list[RunRecord], rows: list[dict[str, Any]], differing: dict[str, list[str]]
) -> None:
    table = plain_table("run", "parameters", "tokens", "held-out", "bits/byte", "tokens/s", "memory",
                        least=((2,), (6,), (5,), (1,)))  # fmt: skip
    for run, row, record in zip(runs, rows, records, strict=True):
        measured = measured_of(run, record)
        table.add_row(
            row["folder"], f"{row['parameters']:,}", units.format_count(row["tokens"]), _number(row["nats_per_token"]),
            _number(row["bits_per_byte"]), units.format_rate(measured.tokens_per_second) if measured else "",
            units.format_bytes(measured.memory) if measured else "",
        )  # fmt: skip
    console = output()
    console.print(table)
    if len({record.fingerprint for record in records}) > 1:
        console.print("! the runs saw different data or tokens: compare bits a byte, if at all", style="yellow")
    console.print("\n" + _terminal_curve(list(runs)))
    for run in runs[1:]:
        if differing[str(run)]:
            console.print(f"\n{run} differs from {runs[0]} in {'; '.join(differing[str(run)])}", style="dim")


@command.command(name="resume")
@click.argument("run", type=_FOLDER)
@click.argument("data", nargs=-1)
@click.option("--on-loss-spike", type=click.Choice(["stop", "skip", "rewind"]), default=None,
              help="From now on, what to do at a NaN loss or a loss spike.")  # fmt: skip
@click.option("--learning-rate-scale", type=float, default=None, metavar="FACTOR",
              help="From now on, multiply the planned learning rate by this. A later one replaces it.")  # fmt: skip
@click.option("--steps", type=STEPS, default=None, metavar="N",
              help="New total of steps, to make the run longer or shorter.")  # fmt: skip
@click.option("--threads", type=click.IntRange(1), default=None, metavar="N", help="CPU threads from now on.")
@click.option("--restart", is_flag=True, help="Start over. The files written so far are moved aside.")
@processes_option
@click.option("--shard", type=choice(RunShard), default=None, help="How several processes share the model from now on.")
@tensor_parallel_option
@click.option("--device", default="", metavar="DEVICE", help="Default: the device it was started on.")
@log_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON at the end.")
def resume(
    run: Path, data: tuple[str, ...], restart: bool, processes: str, shard: RunShard | None,
    tensor_parallel: int | None, device: str, log: tuple[TrackerName, ...] | None, as_json: bool, **changes: Any,
) -> None:  # fmt: skip
    """Resume an interrupted run, bit-exactly.

    Changes are recorded in run.json with the step they take effect at, so that resuming again gives the same bits.
    DATA: the text the run was started with, if the prepared data is no longer in the cache.

    \b
    Examples:
      nextword runs resume runs/transformer-1.20M
      nextword runs resume runs/transformer-1.20M --on-loss-spike skip
      nextword runs resume runs/transformer-1.20M --steps 20000
      nextword runs resume runs/transformer-1.20M --processes 2 --shard fsdp
    """
    try:
        change = Change(**changes)
    except FieldError as error:
        raise UsageError(error.said_as(f"--{error.name.replace('_', '-')}")) from None
    require_torch("training")
    if started_processes(processes):
        return
    from ..train.distributed import begun_run, one_voice

    with one_voice():
        restart = restart and begun_run() is None
        placement = {"shard": shard, "tensor_parallel": tensor_parallel}
        resume_folder(run, as_json, data, change, restart=restart, device=device, trackers=log, placement=placement)


def resume_folder(
    run: Path, as_json: bool, data: tuple[str, ...] = (), change: Change = NO_CHANGE, *, restart: bool = False,
    **how: Any,
) -> None:  # fmt: skip
    """Resume the run in folder `run` on the terminal, unless it has ended; `how` is passed to `resume_run`."""
    record, ended = RunRecord.read(run), read_report(run)
    if not restart and ended is not None and record.ended(ended, change):
        messages().print(f"{run} finished after {ended.steps:,} steps: nothing to do."
                         " --steps N makes it longer, --restart starts over", soft_wrap=True)  # fmt: skip
        if as_json:
            emit(run, record, ended)
        return
    from ..train.pipeline import resume_run

    prepared = resume_run(run, data, lambda text: messages().print(text, style="dim"), **how)
    train(prepared, as_json, change=change, restart=restart)


@command.command(name="export")
@click.argument("run", type=_FOLDER)
@click.argument("out", type=OUTPUT_MODEL)
@click.option("--step", type=click.IntRange(1), default=None, metavar="N", help="Checkpoint; default: the last one.")
@click.option("--dtype", type=WRITTEN_DTYPE, default="float32", show_default=True,
              help="Type of the written weights. q...: llama.cpp's mixes, .gguf only.")  # fmt: skip
@click.option("--adapter", is_flag=True, help="Write only the LoRA adapters, as a folder that peft opens.")
@click.option("--force", is_flag=True, help="Replace existing files.")
def export(run: Path, out: Path, step: int | None, dtype: str, adapter: bool, force: bool) -> None:
    """Write the model as a Hugging Face folder, or as a .gguf file if OUT ends in .gguf."""
    require_torch("reading a checkpoint")
    from ..train.export import export_adapters, export_run

    written = (export_adapters if adapter else export_run)(run, out, step, dtype, force)
    messages().print(f"wrote {written}")


@command.command(name="forget")
@click.argument("run", type=click.Path(), required=False)
@click.option("--all", "every", is_flag=True, help="Every run.")
def forget(run: str | None, every: bool) -> None:
    """Remove a run from the ledger, so that it no longer corrects plans. Its folder is kept, and need not exist."""
    if (run is None) != every:
        raise UsageError("give the folder of the run to forget, or --all")
    count = calibration.forget(run)
    messages().print(f"{count:,} {'entry' if count == 1 else 'entries'} removed from {calibration.path()}")


def _state(row: dict[str, Any]) -> str:
    """A run's state in words."""
    state = "stopped by a loss spike" if row["state"] == "stopped" else row["state"]
    return state if state == "finished" else f"{state} at step {row['step']:,}"


def _forecast(row: dict[str, Any]) -> str | None:
    """The held-out loss forecast for a run's end, in words."""
    forecast = row["forecast"]
    if forecast is None:
        return None
    loss = f"{forecast['nats_per_token']:.3f} ({forecast['low']:.3f} to {forecast['high']:.3f}) nats a token"
    steps = f"{'about ' * forecast['about']}{forecast['steps']:,} steps"
    return f"{loss}, {forecast['bits_per_byte']:.3f} bits a byte after {steps}"


def _rejected(folder: Path) -> str | None:
    """The steps that the loss guard rejected, in a line."""
    steps = rejected_steps(folder)
    if not steps:
        return None
    counts, last = Counter(step["action"] for step in steps), steps[-1]
    by_action = ", ".join(f"{count:,} x {action}" for action, count in counts.items())
    return f"{by_action}; the last at step {last['step']:,}: {last['reason']}"


def _terminal_curve(folders: list[Path]) -> str:
    return terminal_curve(folders, output().width)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
