"""A run from its request to its report: data, plan, training, model, ledger."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..base import RunError, UsageError, free_memory
from ..data import Dataset, Sources, find_sources, open_dataset
from ..data import prepare as prepare_data
from ..plan import Device, RunConfig, flops, parameters
from ..plan import device as plan_device
from ..spec import Kind, ModelSpec
from ..text import Tokenizer
from . import compiling, launch, ledger
from .changes import NOTHING, Change
from .distributed import Process, choose_device, from_first, joined, this_process, wait
from .folder import (
    Measured,
    Prediction,
    RunRecord,
    checked,
    held,
    read_report,
    resume_command,
    set_aside,
    sweep,
    write_report,
    writing,
)
from .guard import Action
from .lora import add_adapters, merge_adapters
from .memory import keep_freed_memory
from .module import new_model
from .probe import StepTime, half_pays
from .trainer import Observer, Options, Outcome, Silent, Trainer, last_step

Say = Callable[[str], None]
OWN = ("bpe", "bytes", "characters")
_CHECKPOINT_SECONDS = 120.0
_CHECKPOINTS = 10  # in a run, at least
_EVALUATIONS = 10
_SAMPLES = 4  # completions shown in the course of a run
_FINE_TUNING_RATE, _LORA_RATE = 5e-5, 3e-4


@dataclass(frozen=True)
class Request:
    """What a person asks for. `changes` are settings of `RunConfig` by name."""

    data: tuple[str, ...]
    budget: launch.Budget = field(default_factory=launch.Budget)
    kind: Kind = "transformer"
    match: str = "params"
    count: float | None = None  # parameters
    config: Path | None = None
    tokenizer: str = "bpe"  # or bytes, characters, a model's name or folder
    vocabulary: int | None = None
    context: int | None = None
    holdout: float = 0.05
    skip_bad: bool = False
    column: str | None = None
    start_from: str | None = None
    lora: int = 0
    precision: str = "auto"
    device: str = "auto"
    threads: int | None = None
    out: Path | None = None
    shard: str = "none"
    guard: Action = "stop"
    keep: int = 2
    checkpoint_every: int | None = None
    evaluate_every: int | None = None
    compile: bool = False
    changes: dict[str, Any] = field(default_factory=dict)


@dataclass
class Session:
    """A run that is ready to start or to go on, from then on with `change`; with `restart` from its beginning."""

    folder: Path
    record: RunRecord
    data: Dataset
    process: Process
    device: torch.device
    change: Change = NOTHING
    restart: bool = False

    @property
    def run(self) -> RunConfig:
        return self.record.current


# ---- starting


def start(request: Request, cache: Path, say: Say) -> Session:
    """Prepare the data, choose the model and the steps, predict, and write run.json. Every process calls it."""
    process = this_process()
    device = choose_device(request.device, process)
    with joined(process, device):
        return _on_first(process, device, lambda: _start(request, cache, say, process, device))


def resume(
    folder: Path, device: str = "", say: Say = print, change: Change = NOTHING, restart: bool = False
) -> Session:  # fmt: skip
    """The session of a run's folder, which goes on from its newest checkpoint with what `change` sets.

    Raises UsageError for a folder that is not whole. The step of `change` is found when training begins.
    """
    record = RunRecord.read(folder)
    _trainer_options(folder, record)
    data = open_dataset(record.data)
    if data.fingerprint != record.fingerprint:
        raise UsageError(f"{record.data} holds other tokens than {folder} was begun with; give the sources again")
    process = this_process()
    return Session(folder, record, data, process, choose_device(device or record.device, process), change, restart)


def _on_first(process: Process, device: torch.device, work: Callable[[], Session]) -> Session:
    """`work` on the first process; the others open what it wrote, or fail with it."""
    if process.world == 1:
        return work()
    found: tuple[str | None, str] = (None, "")
    made = None
    if process.first:
        try:
            made = work()
            found = (str(made.folder), "")
        except Exception as error:
            from_first((None, str(error)), process)
            raise
    found = from_first(found, process)
    if found[0] is None:
        raise RunError(f"the first process could not start: {found[1]}")
    if made is None:
        made = resume(Path(found[0]), device=str(device))
    return made


def _start(request: Request, cache: Path, say: Say, process: Process, device: torch.device) -> Session:
    if request.out is not None:
        _check_free(request.out)
    sources = find_sources(request.data)
    for reason, count in sources.skipped.items():
        say(f"passed over {count:,} {'file' if count == 1 else 'files'}: {reason}")
    here = plan_device("this", cache)
    say(f"this machine: {here.peak_fp32 / 1e9:.0f} GFLOP/s, {here.bandwidth / 1e9:.0f} GB/s (measured)")
    entries = ledger.read()
    if request.start_from is not None:
        model, tokenizer = _load(request.start_from)
        data = _prepare(request, sources, cache, tokenizer, request.start_from, say)
        run = _fine_tune(request, model.spec, data, here, process)
    else:
        spec, given, name = _shape(request, sources, here, entries)
        data = _prepare(request, sources, cache, given, name, say, spec.vocabulary)
        run = _configure(request, replace(spec, vocabulary=data.vocabulary), data, here, process, entries)
    run = replace(run, precision=_precision(request, device), shard=_shard(request, process))
    if request.compile:
        compiling.check(device, run.precision)
    timed = None
    if process.world == 1:
        say("timing some steps")
        timed = launch.probe(run, device, request.threads)
        run = _refit(request, run, timed, data, here)
    threads = request.threads or (timed.threads if timed else torch.get_num_threads())
    prediction = launch.predict(run, here, timed, data.train.tokens, data.bytes_per_token, entries, data.fingerprint)
    if request.start_from is not None:  # no law says how far open weights are from this text
        prediction = replace(prediction, nats_per_token=math.nan, low=math.nan, high=math.nan, bits_per_byte=math.nan)
    _check_memory(prediction, run, device)
    folder = request.out or launch.default_folder(run)
    _check_free(folder)
    record = RunRecord(
        run=run, data=str(data.folder.resolve()), fingerprint=data.fingerprint, sources=tuple(map(str, request.data)),
        prediction=prediction, threads=threads, device=request.device, peak=here.peak_fp32,
        options=_options(request, run, timed), origin=request.start_from or "",
    )  # fmt: skip
    return Session(folder, record, data, process, device)


def _check_free(folder: Path) -> None:
    if (folder / "run.json").exists():
        raise UsageError(f"{folder} holds a run already. Go on with it: nextword runs resume {folder}; or choose --out")


def _check_memory(prediction: Prediction, run: RunConfig, device: torch.device) -> None:
    """Refuse a run that the machine's free memory does not hold, before it is taken."""
    free = free_memory()
    if device.type == "cpu" and free is not None and prediction.memory > free:
        raise UsageError(
            f"the run needs {prediction.memory / 1e9:.1f} GB and {free / 1e9:.1f} GB are free. {_ways_out(run)}"
        )


def _ways_out(run: RunConfig) -> str:
    """What would make a run smaller, the cheapest first."""
    ways = []
    if run.micro_batch > 1:
        ways.append(f"--micro-batch {run.micro_batch // 2}")
    if run.recompute == "none" and run.model.kind == "transformer":
        ways.append("--recompute full")
    return f"Try {', '.join([*ways, 'fewer --params'])}; nextword plan fit ranks what helps"


def _options(request: Request, run: RunConfig, timed: StepTime | None) -> dict[str, Any]:
    step = timed.step(run) if timed else 1.0
    every = max(1, min(round(_CHECKPOINT_SECONDS / step), max(1, run.steps // _CHECKPOINTS)))
    return {
        "guard": request.guard,
        "keep": request.keep,
        "checkpoint_every": every if request.checkpoint_every is None else request.checkpoint_every,
        "evaluate_every": max(1, run.steps // _EVALUATIONS)
        if request.evaluate_every is None
        else request.evaluate_every,
        "sample_every": max(1, run.steps // _SAMPLES),
        "evaluate_tokens": min(200_000, max(10_000, run.tokens // 20)),
        "compile": request.compile,
    }


def _shape(
    request: Request, sources: Sources, here: Device, entries: list[ledger.Entry]
) -> tuple[ModelSpec, Tokenizer | None, str]:
    """The model's shape before its tokenizer is there, the tokenizer where one is given, and what it is called."""
    if request.config is not None:
        spec = RunConfig.read(request.config).model
    else:
        share = ledger.correction(entries, request.kind, "fp32").share or launch.FIRST_SHARE
        unique = sources.bytes / launch.BYTES_A_TOKEN * (1 - request.holdout)
        work = launch.compute(request.budget, here, share)
        if work is None:
            count = request.count or (request.budget.tokens or unique) / 20
            spec = launch.choose_shape(1.0, unique, request.kind, request.match, count, request.context)
        else:
            spec = launch.choose_shape(work, unique, request.kind, request.match, request.count, request.context)
    if request.vocabulary is not None:
        spec = replace(spec, vocabulary=request.vocabulary)
    if request.tokenizer in OWN:
        return spec, None, request.tokenizer
    from ..weights.catalogue import resolve
    from ..weights.loading import open_source

    tokenizer = open_source(resolve(request.tokenizer)).tokenizer()
    return replace(spec, vocabulary=tokenizer.vocabulary), tokenizer, request.tokenizer


def _prepare(
    request: Request, sources: Sources, cache: Path, tokenizer: Tokenizer | None, name: str, say: Say,
    vocabulary: int = 0,
) -> Dataset:  # fmt: skip
    kind = "bytes" if name == "bpe" and vocabulary <= 256 else name
    files = [str(file.resolve()) for file in sources.files]
    wishes = (request.holdout, request.column, request.skip_bad)
    folder = data_folder(cache, files, kind, vocabulary if kind == "bpe" else 0, wishes)
    said: set[str] = set()

    def progress(share: float, what: str) -> None:
        if what not in said:
            said.add(what)
            say(f"{what}: {sources.bytes / 1e6:,.1f} MB")

    data = prepare_data(
        sources, folder, tokenizer, tokenizer_kind=kind if kind in OWN else "bpe", vocabulary=vocabulary or 4096,  # type: ignore[arg-type]
        holdout=request.holdout, skip_bad=request.skip_bad, column=request.column, progress=progress,
    )  # fmt: skip
    found = data.manifest
    if found.duplicates:
        say(f"{found.duplicates:,} of {found.documents:,} texts occur more than once; none stands on both sides")
    if found.broken:
        say(f"passed over {found.broken:,} broken rows")
    return data


def data_folder(cache: Path, files: list[str], tokenizer: str, vocabulary: int, wishes: Any = ()) -> Path:
    """Where the tokens of some files are kept, so that they are made once."""
    key = repr(([str(Path(file).resolve()) for file in files], tokenizer, vocabulary, wishes))
    return cache / "data" / hashlib.sha256(key.encode()).hexdigest()[:16]


def _configure(
    request: Request, spec: ModelSpec, data: Dataset, here: Device, process: Process, entries: list[ledger.Entry]
) -> RunConfig:
    if request.config is not None:
        given = replace(RunConfig.read(request.config), model=spec)
        return replace(given, **{k: v for k, v in request.changes.items() if k != "batch"})
    share = ledger.correction(entries, request.kind, "fp32").share or launch.FIRST_SHARE
    work = launch.compute(request.budget, here, share)
    tokens = request.budget.tokens
    if work is None:
        tokens = tokens or 20.0 * parameters(spec).total
        work = flops(spec).per_token * tokens
    spec = _short_enough(spec, data, request)
    return launch.configure(spec, work, here, world=process.world, tokens=tokens, changes=request.changes)


def _short_enough(spec: ModelSpec, data: Dataset, request: Request) -> ModelSpec:
    """A shorter context where the text is too little for some rows of it, unless one was asked for."""
    if request.context is not None:
        return spec
    context = spec.context
    while context > 32 and data.train.tokens < 64 * context:
        context //= 2
    return replace(spec, context=context)


def _fine_tune(request: Request, spec: ModelSpec, data: Dataset, here: Device, process: Process) -> RunConfig:
    """Continue from open weights: a low rate, few epochs."""
    context = min(request.context or 512, spec.context, max(32, data.train.tokens // 16))
    work = launch.compute(request.budget, here, launch.FIRST_SHARE)
    tokens = request.budget.tokens or (None if work else float(data.train.tokens))
    work = work or flops(spec, context).per_token * (tokens or 1)
    rate = _LORA_RATE if request.lora else _FINE_TUNING_RATE
    changes = {"learning_rate": rate, "final_learning_rate": rate / 10, "batch": 8, **request.changes}
    run = launch.configure(
        replace(spec, context=context), work, here, world=process.world, tokens=tokens, changes=changes
    )
    return replace(run, model=spec, context=context, lora=request.lora)


def _precision(request: Request, device: torch.device) -> Any:
    if request.precision != "auto":
        return request.precision
    return "amp" if half_pays(device) else "fp32"


def _shard(request: Request, process: Process) -> Any:
    if process.world == 1:
        return "none"
    return "ddp" if request.shard == "none" else request.shard


def _refit(request: Request, run: RunConfig, timed: StepTime, data: Dataset, here: Device) -> RunConfig:
    """As many steps as the time allows, now that a step was timed."""
    if request.budget.seconds is None or "steps" in request.changes:
        return run
    return launch.fit_to_time(run, timed, request.budget.seconds)


def _load(name: str) -> tuple[Any, Tokenizer]:
    from ..weights import load

    loaded = load(name, dtype="float32", device="cpu")
    return loaded.model.requires_grad_(True), loaded.tokenizer


# ---- running


def train(
    session: Session, observer: Observer | None = None, until: int | None = None
) -> tuple[Outcome, Measured | None]:
    """Train to the end, or to an interruption; then write the model, the report, the curve and the ledger's line."""
    folder, process = session.folder, session.process
    if session.device.type == "cpu":
        keep_freed_memory()
    with joined(process, session.device):
        trainer = _trainer(session, observer)
        fresh = process.first and not (folder / "run.json").exists()
        if fresh:
            _begin(session)
        with held(folder) if process.first else nullcontext():
            if process.first:
                _tidy(session, trainer.observer)
            wait(process)
            try:
                outcome = _trained(trainer, session, until)
            except UsageError:
                if fresh and not last_step(folder):
                    _forget(folder)
                raise
            return outcome, _finish(session, outcome)


def _begin(session: Session) -> None:
    """Write run.json."""
    try:
        session.record.write(session.folder)
    except BaseException:
        _forget(session.folder)
        raise


def _trainer(session: Session, observer: Observer | None) -> Trainer:
    record = session.record
    options = _trainer_options(session.folder, record, str(session.device))
    return Trainer(
        record.run, session.data, options, observer or Silent(), _maker(record), record.origin, record.changes
    )


def _trainer_options(folder: Path, record: RunRecord, device: str = "auto") -> Options:
    """The options as run.json has them. Raises UsageError for one that is no such option."""
    values = {**record.options, "folder": folder, "device": device, "threads": record.threads}
    try:
        return checked(Options, values, "options.")
    except UsageError as error:
        raise UsageError(f"{folder / 'run.json'}: {error}. Put back what was there") from None


def _tidy(session: Session, observer: Observer) -> None:
    """Clear away what a killed process left, and for a new beginning all that the run has made.

    Raises UsageError if the run has ended: training nothing would write a report of nothing.
    """
    folder, record = session.folder, session.record
    if not session.restart and record.ended(read_report(folder), session.change):
        raise UsageError(f"{folder} has ended; there is nothing left to train")
    sweep(folder)
    if session.restart and (aside := set_aside(folder)) is not None:
        observer.said(f"what the run had made is now in {aside}")


def _finish(session: Session, outcome: Outcome) -> Measured | None:
    """Write the model, and at the run's end the report and the ledger's line."""
    plain = _whole(outcome.model, session)
    if not session.process.first:
        return None
    with writing(session.folder, f"go on: {resume_command(session.folder)}"):
        write_model(plain, session)
        if outcome.heldout is None or outcome.steps < session.run.steps:
            return None
        measured = _measured(outcome, session)
        write_report(session.folder, session.record.expected, measured)
    _remember(session, measured)
    return measured


def _forget(folder: Path) -> None:
    """Take away what a run wrote that could not begin, which would be in the way of the next try."""
    for name in ("run.json", "metrics.jsonl"):
        (folder / name).unlink(missing_ok=True)
    with suppress(OSError):  # something else is there
        folder.rmdir()


def _trained(trainer: Trainer, session: Session, until: int | None) -> Outcome:
    try:
        _take_on(session, trainer, trainer.restore())
        return trainer.train(until)
    except (MemoryError, RuntimeError) as error:
        said = str(error).lower()
        if isinstance(error, MemoryError) or "out of memory" in said or "can't allocate memory" in said:
            run = session.run
            raise RunError(
                f"out of memory with {run.micro_batch} rows of {run.context} at once. {_ways_out(run)}"
            ) from error
        raise


def _take_on(session: Session, trainer: Trainer, step: int) -> None:
    """Put what the session changes, from `step` on, into run.json and into the trainer."""
    record = session.record
    now, later = record.settings.after(record.changes, step), record.settings.after(record.changes)
    change = replace(session.change, step=step).beyond(now, later)
    if not change.values():
        return
    if change.steps is not None and change.steps < step:
        raise UsageError(f"--steps {change.steps}: the run is at step {step:,} already; give at least as many")
    session.record = record = replace(record, changes=(*record.changes, change))
    if session.process.first:
        with writing(session.folder / "run.json"):
            record.write(session.folder)
    trainer.changes = record.changes


def _maker(record: RunRecord) -> Callable[[bool], nn.Module] | None:
    """Makes the model that fine-tuning begins from, or for the weights of a checkpoint one without reading those."""
    if not record.origin:
        return None

    def make(begun: bool) -> nn.Module:
        model = new_model(record.run) if begun else _load(record.origin)[0]
        if record.run.lora:
            add_adapters(model, record.run.lora, record.run.seed)
        return model

    return make


def _whole(model: nn.Module, session: Session) -> nn.Module:
    """The model in one piece on the first process, adapters merged."""
    if session.process.world > 1 and session.run.shard == "fsdp":
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        tensors = get_model_state_dict(model, options=options)
        model = new_model(session.run)
        if session.process.first:
            model.load_state_dict(tensors, strict=False)
    if session.run.lora:
        merge_adapters(model)
    return model.eval()


def write_model(model: Any, session: Session) -> None:
    """The model and its tokenizer into the run's folder, as other programs open them."""
    from ..weights import write_model as write

    working = session.folder / ".model"
    try:
        write(working, model.cpu(), session.data.tokenizer(), force=True)
        for file in working.iterdir():
            os.replace(file, session.folder / file.name)
    finally:
        shutil.rmtree(working, ignore_errors=True)


def _measured(outcome: Outcome, session: Session) -> Measured:
    record, heldout = session.record, outcome.heldout
    assert heldout is not None
    work = flops(record.run.model, record.run.context, outcome.tokens).total
    return Measured(
        memory=outcome.peak_bytes,
        seconds=outcome.seconds,
        tokens=outcome.tokens,
        tokens_per_second=outcome.tokens / outcome.seconds,
        share_of_peak=work / outcome.seconds / (record.peak * record.run.devices),
        data_share=outcome.data_seconds / outcome.seconds,
        train_loss=outcome.loss,
        nats_per_token=heldout.nats_per_token,
        bits_per_byte=heldout.bits_per_byte,
        threads=outcome.threads,
        steps=outcome.steps,
    )


def _remember(session: Session, measured: Measured) -> None:
    record, predicted = session.record, session.record.expected
    if predicted is None or record.origin:
        return
    run = record.run
    ledger.append(
        ledger.Entry(
            machine=ledger.machine(), when=time.strftime("%Y-%m-%dT%H:%M:%S"), run=str(session.folder.resolve()),
            kind=run.model.kind, parameters=parameters(run.model).total,
            flops_per_token=flops(run.model, run.context).per_token, tokens=measured.tokens, context=run.context,
            micro_batch=run.micro_batch, precision=run.precision, threads=measured.threads, peak=record.peak,
            data=record.fingerprint, formula_memory=predicted.formula_memory, predicted_memory=predicted.memory,
            measured_memory=measured.memory, predicted_seconds=predicted.seconds, measured_seconds=measured.seconds,
            law_bits=predicted.law_bits, predicted_bits=predicted.bits_per_byte, measured_bits=measured.bits_per_byte,
            id=record.id,
        )
    )  # fmt: skip


def report_dict(prediction: Prediction | None, measured: Measured) -> dict[str, Any]:
    """Both as plain data."""
    return {"predicted": asdict(prediction) if prediction else None, "measured": asdict(measured)}
