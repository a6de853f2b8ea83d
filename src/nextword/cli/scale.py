"""nextword scale: one's own scaling law from small runs, and the prediction of a larger one."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

import click

from ..base import UsageError, require_torch
from ..spec import ModelKind
from ._app import CommandGroup
from ._console import emit_json, messages
from ._options import OUTPUT_FILE, OUTPUT_FOLDER
from ._sections import emit
from .plan_options import COUNT, FLOPS, TOKENS, VOCABULARY, WholeNumber, duration_in

if TYPE_CHECKING:
    from ..scale.create import Request
    from ..scale.design import DeviceType
    from ..scale.report import Findings
    from ..scale.sweep import Sweep, Workers
    from ..train.planning import Machine

SWEEPS = Path("sweeps")  # the default parent folder
_MOST_WORKERS = 1024


def _kinds(context: click.Context, option: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    if value is None:
        return None
    names, known = tuple(dict.fromkeys(part.strip() for part in value.split(","))), get_args(ModelKind)
    if unknown := [name for name in names if name not in known]:
        raise UsageError(f"--arch {unknown[0]!r} is not known. Known: {', '.join(known)}")
    return names


def _listed(parse: click.ParamType[float]) -> Callable[..., tuple[float, ...] | None]:
    def convert(context: click.Context, option: click.Parameter, value: str | None) -> tuple[float, ...] | None:
        if value is None:
            return None
        return tuple(sorted({parse.convert(part, option, context) for part in value.split(",")}))

    return convert


@click.group(name="scale", cls=CommandGroup, invoke_without_command=True)
@click.argument("text", nargs=-1)
@click.option("--minutes", type=duration_in("min"), metavar="TIME", help="Time for all of it, such as 30 or 4h.")
@click.option("--flops", type=FLOPS, metavar="C", help="Or: compute for all of it, such as 1e14.")
@click.option("--out", type=OUTPUT_FOLDER, metavar="FOLDER", help="Default: sweeps/<name of the text>.")
@click.option(
    "--arch", callback=_kinds, metavar="LIST", help="transformer,lstm,gru,rnn: a law each. Default: transformer."
)
@click.option("--sizes", callback=_listed(COUNT), metavar="LIST",
              help="Sizes M = FLOPs a token / 6, such as 50k,100k. Default: around the expected optima.")  # fmt: skip
@click.option("--vocabulary", type=VOCABULARY, metavar="V", help="Of every model. Default: 512 and more, by compute.")
@click.option("--context", type=TOKENS, metavar="TOKENS", help="Of every model. Default: 128 and more, by compute.")
@click.option("--seed", type=WholeNumber(0, 1 << 32), metavar="N", help="Of the weights and the order of the data.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True,
              help="Of every run; auto: a GPU if there is one. Several runs share it.")  # fmt: skip
@click.option("--processes", type=WholeNumber(1, _MOST_WORKERS), metavar="N",
              help="Of each run, with a GPU each if runs are on GPUs. Default: 1.")  # fmt: skip
@click.option("--workers", type=WholeNumber(1, _MOST_WORKERS), metavar="N", help="Runs at once. Default: the cores.")
@click.option("--cluster", metavar="ADDRESS", help="Run on a Ray cluster: auto, or HOST:PORT of its head.")
@click.option("--add-budget", "budgets", type=FLOPS, multiple=True, metavar="C", help="Widen a sweep. Repeatable.")
@click.option("--add-size", "more_sizes", type=COUNT, multiple=True, metavar="M", help="Widen a sweep. Repeatable.")
@click.option("--dry-run", is_flag=True, help="Print the plan and stop.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan or the results as JSON.")
@click.pass_context
def command(click_context: click.Context, /, text: tuple[str, ...] = (), **options: Any) -> None:
    """Fit a scaling law to small runs on TEXT, predict a larger run, and make it.

    Sizes, budgets and learning rates are chosen for the time. The same command continues an interrupted sweep; Ctrl-C
    leaves one that can be fitted.

    \b
    Examples:
      nextword scale books/ --minutes 30
      nextword scale books/ --minutes 30 --dry-run
      nextword scale books/ --minutes 120 --arch transformer,lstm --out sweeps/kinds
      nextword scale --out sweeps/books --add-budget 4e13
      nextword scale show sweeps/books --config best.toml
    """
    if click_context.invoked_subcommand is not None:
        return
    require_torch("training")
    _scale(text, **options)


def _scale(
    text: tuple[str, ...], out: Path | None, cluster: str | None, workers: int | None, budgets: tuple[float, ...],
    more_sizes: tuple[float, ...], dry_run: bool, as_json: bool, **asked: Any,
) -> None:  # fmt: skip
    from ..scale.design import planned
    from .scale_display import plan_sections

    start, folder = time.monotonic(), _folder(text, out)
    _check_start(folder, text, asked, bool(budgets or more_sizes))
    with ExitStack() as stack:
        ray = None
        if cluster:
            from ..base.cluster import attached
            from ..scale.cluster import message_log

            ray = stack.enter_context(attached(cluster, message_log(folder)))
        crew = _Crew(ray, cluster, workers or 0)
        sweep, machine = _opened(folder, text, asked, crew, start)
        if budgets or more_sizes:
            sweep.design, sweep.deadline = sweep.design.widened(budgets, more_sizes), None
        if dry_run or not as_json:
            result = {"design": sweep.design.to_dict(), "runs": len(planned(sweep.design))}
            emit(result, lambda: plan_sections(sweep), as_json=as_json, explain=False)
        if not dry_run:
            _run(sweep, machine, crew, as_json)


@dataclass(frozen=True)
class _Crew:
    """Where runs are made: on a cluster, or without `ray` here; `count` at once, 0 for as many as there is room for."""

    ray: Any
    address: str | None
    count: int

    def workers(self, device: DeviceType, processes: int) -> Workers:
        """The workers for runs of some processes on a device. Raises UsageError for one that is not there."""
        if self.ray is not None:
            from ..scale.cluster import RayWorkers

            return RayWorkers(self.ray, self.count, device, processes)
        from ..scale.gpus import free_gpus
        from ..scale.local import LocalWorkers

        return LocalWorkers(self.count, free_gpus() if device == "cuda" else None, processes)


def _note(text: str) -> None:
    messages().print(text, style="dim", soft_wrap=True)


def _folder(text: tuple[str, ...], out: Path | None) -> Path:
    if out is None and not text:
        raise UsageError("give the text to train on, such as: nextword scale books/ --minutes 30")
    return out or SWEEPS / Path(text[0]).stem


def _check_start(folder: Path, text: tuple[str, ...], asked: dict[str, Any], widens: bool) -> None:
    """Raise UsageError for a new sweep that lacks something, before anything takes time."""
    from ..scale.sweep import STATE

    if (folder / STATE).exists():
        return
    if widens:
        raise UsageError(f"{folder} holds no sweep that could be widened. Start one: nextword scale TEXT --minutes 30")
    if len(budget := [name for name in ("minutes", "flops") if asked[name] is not None]) != 1:
        many = "are separate budgets; give one" if budget else "is missing"
        raise UsageError(f"--minutes {'and' if budget else 'or'} --flops {many}, such as --minutes 30")
    if not text:
        raise UsageError(f"{folder} holds no sweep; give the text to train on")


def _opened(
    folder: Path, text: tuple[str, ...], asked: dict[str, Any], crew: _Crew, start: float
) -> tuple[Sweep, Machine]:
    """The sweep in `folder`, or a new one. `start`: when the command was started."""
    from ..scale.create import new_sweep, same_text, this_machine
    from ..scale.sweep import STATE, Sweep, check_request
    from ..weights.catalogue import cache_folder

    given = {name: value for name, value in asked.items() if value is not None}
    if "minutes" in given:
        given["minutes"] /= 60
    device, cache = given.pop("device"), cache_folder()
    if not (folder / STATE).exists():
        request = _request(given, device, crew)
        workers = crew.workers(request.device, request.processes).planned
        return new_sweep(request, text, folder, cache, workers, _note, time.monotonic() - start)
    sweep = Sweep.read(folder)
    check_request(folder, sweep.request, given)
    if device not in ("auto", sweep.design.device):
        raise UsageError(f"{folder} holds a sweep of runs on {sweep.design.device}, not {device}. Choose another --out")
    if text:
        same_text(sweep, text, _note)
    return sweep, this_machine(cache, sweep.design.device)


def _request(given: dict[str, Any], device: str, crew: _Crew) -> Request:
    from ..scale.create import Request, chosen_device

    kinds = cast("tuple[ModelKind, ...]", given.get("arch", ("transformer",)))
    return Request(given.get("minutes"), given.get("flops"), kinds, given.get("sizes", ()), given.get("vocabulary"),
                   given.get("context"), given.get("seed", 0), chosen_device(device), given.get("processes", 1),
                   crew.ray is not None)  # fmt: skip


def _run(sweep: Sweep, machine: Machine, crew: _Crew, as_json: bool) -> None:
    """Run what is left and print what was found, also after Ctrl-C."""
    from ..scale.report import write_results
    from .scale_display import SweepDisplay

    workers = crew.workers(sweep.design.device, sweep.design.processes)
    if crew.ray is not None:
        from ..scale.cluster import check_cluster

        check_cluster(crew.ray, sweep)
    sweep.folder.mkdir(parents=True, exist_ok=True)
    sweep.write()
    interrupted: KeyboardInterrupt | None = None
    try:
        with SweepDisplay(sweep) as display:
            sweep.run(workers, machine, display, display.say)
    except KeyboardInterrupt as error:
        interrupted = error
        again = f"nextword scale --out {sweep.folder}" + (f" --cluster {crew.address}" if crew.address else "")
        messages().print(f"stopped. Continue: {again}", soft_wrap=True)
    _print_results(sweep, write_results(sweep, _note), as_json)
    if interrupted is not None:
        raise interrupted


def _print_results(sweep: Sweep, found: Findings, as_json: bool, flops: float | None = None) -> None:
    from ..scale.report import results_json
    from .scale_display import result_sections

    if as_json:
        emit_json(results_json(sweep, found, flops))
    else:
        emit({}, lambda: result_sections(sweep, found, flops), as_json=False, explain=False)


@command.command(name="show")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--at", "flops", type=FLOPS, metavar="C", help="Budget to project. Default: ten times the largest one run."
)
@click.option("--config", type=OUTPUT_FILE, metavar="FILE",
              help="Write the best configuration for --at, for `nextword train --config`.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(folder: Path, flops: float | None, config: Path | None, as_json: bool) -> None:
    """What the runs of a sweep say by now, also while it is under way."""
    require_torch("training")
    from ..scale.report import best_config, write_results
    from ..scale.sweep import Sweep

    sweep = Sweep.read(folder)
    found = write_results(sweep, _note)
    if config is not None:
        best_config(sweep, found, flops).write(config)
    _print_results(sweep, found, as_json, flops)
