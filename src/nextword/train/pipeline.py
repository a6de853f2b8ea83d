"""A run from its request to its report: data, plan, training, model, calibration."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import nn

from ..base import RunError, UsageError, check_writable, free_memory
from ..base.cores import check_threads
from ..base.fields import Within, check_fields, from_plain
from ..data import (
    Dataset,
    Sources,
    Windows,
    check_encoding,
    find_sources,
    measure_bytes_per_token,
    open_dataset,
    prepare_in,
    save_tokenizer,
)
from ..plan import Device, RunConfig, flops, parameters
from ..plan import device as plan_device
from ..plan.shape_search import SMALLEST, Context, check_lora
from ..spec import ModelKind, ModelSpec, Positive
from ..text import Tokenizer, tokenizer_from_folder
from . import calibration, compile, planning
from .changes import NOTHING, Change
from .distributed import WHILE_PREPARING, Process, choose_device, from_first, joined, processes_here, this_process, wait
from .evaluate import MOST
from .lora import add_adapters, merge_adapters
from .loss_guard import Action
from .loss_module import new_model
from .memory import keep_freed_memory
from .peak import Peak, measured_peak
from .run_dir import (
    Measured,
    Prediction,
    RunRecord,
    held,
    read_report,
    resume_command,
    set_aside,
    sweep,
    write_report,
    writing,
)
from .timing import StepTime, half_pays
from .trainer import Observer, Options, Outcome, Silent, Trainer, last_step, read_metrics

Say = Callable[[str], None]
OWN = ("bpe", "bytes", "characters")
_FEWEST_IDS = 257  # of a bpe tokenizer: every byte and the end of the text
_MOST_IDS, _BYTES_AN_ID = 1 << 20, 8  # at most so many, and one for so many bytes of text: more are hardly ever seen
_FAR_OFF = 1.5  # times the share to hold out, or less than that part of it: said
_CHECKPOINT_SECONDS = 120.0
_CHECKPOINTS = 10  # in a run, at least
_EVALUATIONS = 10
_SAMPLES = 4  # completions shown in the course of a run
_FINE_TUNING_RATE, _LORA_RATE = 5e-5, 3e-4
_FINE_TUNED_MOST = 20_000  # held-out tokens: of a large model's, 200,000 would take minutes
_FINE_TUNING_ROWS = 8  # a step


@dataclass(frozen=True)
class Request:
    """What a person asks for. `changes` are settings of `RunConfig` by name.

    Raises UsageError for what no run can have, before anything is read.
    """

    data: tuple[str, ...]
    budget: planning.Budget = field(default_factory=planning.Budget)
    kind: ModelKind = "transformer"
    match: str = "params"
    count: Positive | None = None  # parameters
    config: Path | None = None
    tokenizer: str = "bpe"  # or bytes, characters, a model's name or folder
    vocabulary: Annotated[int, Within(_FEWEST_IDS, _MOST_IDS)] | None = None  # of a bpe tokenizer
    context: Context | None = None
    holdout: Annotated[float, Within(above=0, below=0.9)] = 0.05
    skip_bad: bool = False
    column: str | None = None
    encoding: str = "utf-8"
    start_from: str | None = None
    lora: Annotated[int, Within(least=0)] = 0
    precision: str = "auto"
    device: str = "auto"
    threads: Annotated[int, Within(least=1)] | None = None
    out: Path | None = None
    shard: str = "none"
    guard: Action = "stop"
    keep: Annotated[int, Within(least=1)] = 2
    checkpoint_every: Annotated[int, Within(least=0)] | None = None
    evaluate_every: Annotated[int, Within(least=0)] | None = None
    compile: bool = False
    changes: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self)
        check_threads(self.threads)
        planning.check_changes(self.changes)


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

    def tokenizer(self) -> Tokenizer:
        """The run's own, or before it has begun that of its data."""
        return tokenizer_from_folder(self.folder if (self.folder / "tokenizer.json").exists() else self.data.folder)


# ---- starting


def start(request: Request, cache: Path, say: Say) -> Session:
    """Prepare the data, choose the model and the steps, and predict. Every process calls it; nothing is written."""
    process = this_process()
    device = choose_device(request.device, process)
    with joined(process, device, patience=WHILE_PREPARING):
        return _on_first(process, device, lambda: _start(request, cache, say, process, device))


def resume(
    folder: Path, device: str = "", say: Say = print, change: Change = NOTHING, restart: bool = False,
    sources: Sequence[str] = (),
) -> Session:  # fmt: skip
    """The session of a run's folder, which goes on from its newest checkpoint with what `change` sets.

    Where its prepared data is gone, `sources` are the files and folders that it was made of, and it is made again.
    Raises UsageError for a folder that is not whole. The step of `change` is found when training begins.
    """
    record = RunRecord.read(folder)
    _trainer_options(folder, record)
    data = _prepared_again(folder, record, sources, say) if sources else _kept_data(folder, record)
    process = this_process()
    if record.data != (place := str(data.folder.resolve())):
        record = replace(record, data=place)
        if process.first:
            record.write(folder)
    return Session(folder, record, data, process, choose_device(device or record.device, process), change, restart)


def _kept_data(folder: Path, record: RunRecord) -> Dataset:
    again = f"Give the text again: nextword runs resume {folder} {' '.join(record.sources)}"
    try:
        data = open_dataset(record.data)
    except UsageError as error:
        raise UsageError(f"{error}. {again}") from None
    if data.fingerprint != record.fingerprint:
        raise UsageError(f"{record.data} holds other tokens than {folder} was begun with. {again}")
    return data


def _prepared_again(folder: Path, record: RunRecord, sources: Sequence[str], say: Say) -> Dataset:
    from ..weights.catalogue import cache_folder

    found = find_sources(sources, record.preparation.get("encoding", "utf-8"))
    data = prepare_in(
        cache_folder() / "data", found, tokenizer_from_folder(folder), progress=_Progress(found, say), say=say,
        **record.preparation,
    )  # fmt: skip
    if data.fingerprint != record.fingerprint:
        raise UsageError(
            f"{' '.join(sources)} gives other tokens than {folder} was begun with: the text has changed. Resume it"
            " with the text as it was, or start another run with --out"
        )
    return data


def _on_first(process: Process, device: torch.device, work: Callable[[], Session]) -> Session:
    """`work` on the first process; the others go on with its record. If it fails there, `joined` ends them all."""
    made = work() if process.first else None
    folder, record = from_first((made.folder, made.record) if made else None, process)
    return made or Session(folder, record, open_dataset(record.data), process, device)


def _start(request: Request, cache: Path, say: Say, process: Process, device: torch.device) -> Session:
    planned = _check_request(request, process, device)
    sources = _find_sources(request, say)
    here = plan_device("this", cache)
    say(f"this machine: {here.peak_fp32 / 1e9:.0f} GFLOP/s, {here.bandwidth / 1e9:.0f} GB/s (measured)")
    entries = calibration.read()
    data, run = _data_and_run(request, sources, cache, here, entries, process, say)
    run = replace(run, precision=_precision(request, device, planned), shard=_shard(request, run, process))
    peak = measured_peak(device, run.precision, cache)
    here = replace(here, peak=peak.flops, peak_fp32=peak.flops)  # from here on the run's own products count

    def predicted(timed: StepTime | None) -> Prediction:
        return planning.predict(run, here, timed, data.train.tokens, data.bytes_per_token, entries, data.fingerprint)

    _check_memory(predicted(None), run, device)
    _check_text(run, data, process)
    say("timing some steps")
    own_threads = torch.get_num_threads() if process.world > 1 else None  # the cores are shared out among processes
    timed = planning.probe(run, device, request.threads or own_threads, here.peak_fp32)
    run = _refit(request, run, timed, data, here)
    prediction = predicted(timed)
    if request.start_from is not None:  # no law says how far open weights are from this text
        prediction = replace(prediction, nats_per_token=math.nan, low=math.nan, high=math.nan, bits_per_byte=math.nan)
    folder = request.out or planning.default_folder(run)
    _check_free(folder)
    record = RunRecord(
        run=run, data=str(data.folder.resolve()), fingerprint=data.fingerprint, sources=tuple(map(str, request.data)),
        prediction=prediction, threads=request.threads or timed.threads, device=request.device, peak=here.peak_fp32,
        options=_options(request, run, timed), origin=request.start_from or "", preparation=_preparation(request),
    )  # fmt: skip
    return Session(folder, record, data, process, device)


def _data_and_run(
    request: Request, sources: Sources, cache: Path, here: Device, entries: list[calibration.Entry], process: Process,
    say: Say,
) -> tuple[Dataset, RunConfig]:  # fmt: skip
    """The text as tokens, and the run on them: of open weights, of a planned run, or of a model that suits both."""
    if request.start_from is not None:
        model, tokenizer = _load(request.start_from)
        check_lora(request.lora, model.spec)
        data = _prepare(request, sources, cache, tokenizer, request.start_from, say)
        return data, _fine_tune(request, model.spec, data, here, process)
    spec, given, name = _shape(request, sources, here, entries)
    data = _prepare(request, sources, cache, given, name, say, spec.vocabulary)
    return data, _configure(request, replace(spec, vocabulary=data.vocabulary), data, here, process, entries)


def _check_request(request: Request, process: Process, device: torch.device) -> RunConfig | None:
    """Refuse what can be told from the request alone, before the text is read; the planned run, if one is given.

    Raises UsageError.
    """
    check_writable(request.out or planning.RUNS, "--out", folder=True)
    if request.out is not None:
        _check_free(request.out)
    planned = RunConfig.read(request.config) if request.config is not None else None
    batch = planned.batch if planned is not None else request.changes.get("batch")
    planning.check_batch(batch, request.changes.get("micro_batch"), process.world)
    if request.compile:
        compile.check(device, _precision(request, device, planned))
    return planned


def _check_text(run: RunConfig, data: Dataset, process: Process) -> None:
    """Refuse text that is too little for one batch, before steps are timed. Raises UsageError."""
    windows = Windows(data.train, run.context, run.seed, run.packing, run.across_documents)
    batch = windows.sequential_batch if run.carry_state else windows.batch
    batch(0, run.batch, process.rank, process.world)


def _find_sources(request: Request, say: Say) -> Sources:
    """The files to train on. What contradicts itself is refused before any of it is read."""
    sources = find_sources(request.data, check_encoding(request.encoding))
    if said := sources.skipped_line():
        say(said)
    if request.out is not None:
        _check_apart(request.out, request.data)
    if request.vocabulary is not None:
        _check_vocabulary(request, request.vocabulary, sources)
    return sources


def _check_apart(out: Path, data: Sequence[str]) -> None:
    """A run in a folder of text would be read as text the next time."""
    for given in map(Path, data):
        if given.is_dir() and out.resolve().is_relative_to(given.resolve()):
            raise UsageError(
                f"--out {out} is in the folder of text {given}. Choose a folder outside, such as runs/NAME"
            )


def _check_vocabulary(request: Request, wanted: int, sources: Sources) -> None:
    if request.start_from is not None:
        raise UsageError("--vocabulary does not go with --from, which keeps the model's own tokenizer; leave it out")
    if request.tokenizer != "bpe":
        raise UsageError(
            f"--vocabulary is the size of a bpe tokenizer; leave it out with --tokenizer {request.tokenizer}"
        )
    most = max(1024, min(_MOST_IDS, sources.bytes // _BYTES_AN_ID))
    if wanted > most:
        raise UsageError(
            f"--vocabulary {wanted}: for this text between {_FEWEST_IDS} (every byte and the end of the text) and"
            f" {most:,} (one token for every {_BYTES_AN_ID} bytes of text)"
        )


def _preparation(request: Request) -> dict[str, Any]:
    """How the text becomes tokens, but for the tokenizer."""
    names = ("holdout", "skip_bad", "column", "encoding")
    return {name: getattr(request, name) for name in names}


def _check_free(folder: Path) -> None:
    if (folder / "run.json").exists():
        raise UsageError(f"{folder} holds a run already. Go on with it: nextword runs resume {folder}; or choose --out")


def _check_memory(prediction: Prediction, run: RunConfig, device: torch.device) -> None:
    """Refuse a run that the machine's free memory does not hold, before it is taken."""
    free, needed = free_memory(), prediction.memory * processes_here()
    if device.type == "cpu" and free is not None and needed > free:
        raise UsageError(f"the run needs {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free. {_ways_out(run)}")


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
        "evaluate_tokens": MOST if request.start_from is None else _FINE_TUNED_MOST,
        "compile": request.compile,
        "seconds": request.budget.seconds,
    }


def _shape(
    request: Request, sources: Sources, here: Device, entries: list[calibration.Entry]
) -> tuple[ModelSpec, Tokenizer | None, str]:
    """The model's shape before its tokenizer is there, the tokenizer where one is given, and what it is called."""
    tokenizer = None if request.tokenizer in OWN else _open_tokenizer(request.tokenizer)
    if request.config is not None:
        spec = RunConfig.read(request.config).model
    else:
        spec = _choose_shape(request, sources, here, entries, tokenizer)
    if request.vocabulary is not None:
        spec = replace(spec, vocabulary=request.vocabulary)
    if tokenizer is not None:
        spec = replace(spec, vocabulary=tokenizer.vocabulary)
    return spec, tokenizer, request.tokenizer


def _open_tokenizer(name: str) -> Tokenizer:
    from ..weights.catalogue import resolve
    from ..weights.loading import open_source

    return open_source(resolve(name)).tokenizer()


def _choose_shape(
    request: Request, sources: Sources, here: Device, entries: list[calibration.Entry], tokenizer: Tokenizer | None
) -> ModelSpec:
    share = calibration.correction(entries, request.kind, "fp32").share or planning.FIRST_SHARE
    work = planning.compute(request.budget, here, share)
    unique = sources.bytes * (1 - request.holdout)

    def measured(vocabulary: int) -> float:
        kind = "bytes" if request.tokenizer == "bpe" and vocabulary < _FEWEST_IDS else request.tokenizer
        wishes = {name: value for name, value in _preparation(request).items() if name != "holdout"}
        return measure_bytes_per_token(sources, tokenizer, kind, vocabulary, **wishes)  # type: ignore[arg-type]

    def shape(bytes_per_token: float) -> ModelSpec:
        count = request.count
        if work is None:
            count = count or max(SMALLEST, (request.budget.tokens or unique / bytes_per_token) / 20)
        return planning.choose_shape(
            work or 1.0, unique, bytes_per_token, request.kind, request.match, count, request.context
        )

    if request.count is not None or (work is None and request.budget.tokens is not None):
        return shape(1.0)  # which does not matter then
    spec = shape(measured(request.vocabulary or 4096))
    if tokenizer is None and request.tokenizer == "bpe" and request.vocabulary is None:
        spec = shape(measured(spec.vocabulary))  # which grows with the model
    return spec


def _prepare(
    request: Request, sources: Sources, cache: Path, tokenizer: Tokenizer | None, name: str, say: Say,
    vocabulary: int = 0,
) -> Dataset:  # fmt: skip
    kind = "bytes" if name == "bpe" and vocabulary < _FEWEST_IDS else name
    data = prepare_in(
        cache / "data", sources, tokenizer, tokenizer_kind=kind if kind in OWN else "bpe",  # type: ignore[arg-type]
        vocabulary=vocabulary or 4096, progress=_Progress(sources, say), say=say, **_preparation(request),
    )  # fmt: skip
    _say_of_data(data, request, vocabulary if kind == "bpe" else 0, say)
    return data


def _say_of_data(data: Dataset, request: Request, vocabulary: int, say: Say) -> None:
    """What is not as one would expect."""
    found, share = data.manifest, data.heldout_share
    if found.duplicates:
        say(f"{found.duplicates:,} of {found.pieces:,} texts occur more than once; none is on both sides")
    if found.broken:
        say(f"skipped {found.broken:,} broken {'row or file' if found.broken == 1 else 'rows or files'}")
    if not 1 / _FAR_OFF < share / request.holdout < _FAR_OFF:
        say(f"held out {share:.1%} of the text for the {request.holdout:.1%} asked: it does not divide more finely,"
            " for equal texts stay together")  # fmt: skip
    if data.vocabulary < vocabulary:
        say(f"the text fills {data.vocabulary:,} of {vocabulary:,} tokens of the vocabulary; that many are made")


class _Progress:
    """Says what is under way and how far it is: a line each 10 seconds, or each 10% that took 2 seconds."""

    def __init__(self, sources: Sources, say: Say, clock: Callable[[], float] = time.monotonic) -> None:
        self.sources, self.say, self.clock = sources, say, clock
        self.what, self.share, self.spoke = "", 0.0, 0.0

    def __call__(self, share: float, what: str) -> None:
        now = self.clock()
        if what != self.what:
            self.say(f"{what}: {self.sources.bytes / 1e6:,.1f} MB")
        elif not (now - self.spoke >= 10 or (now - self.spoke >= 2 and share - self.share >= 0.1)):
            return
        else:
            self.say(f"{what}: {share:.0%}")
        self.what, self.share, self.spoke = what, share, now


def _configure(
    request: Request, spec: ModelSpec, data: Dataset, here: Device, process: Process, entries: list[calibration.Entry]
) -> RunConfig:
    if request.config is not None:
        given = replace(RunConfig.read(request.config), model=spec)
        return planning.changed(given, request.changes)
    share = calibration.correction(entries, request.kind, "fp32").share or planning.FIRST_SHARE
    work = planning.compute(request.budget, here, share)
    tokens = request.budget.tokens
    if work is None:
        tokens = tokens or 20.0 * parameters(spec).total
        work = flops(spec).per_token * tokens
    spec = _short_enough(spec, data, request)
    return planning.configure(spec, work, here, world=process.world, tokens=tokens, changes=request.changes)


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
    work = planning.compute(request.budget, here, planning.FIRST_SHARE)
    tokens = request.budget.tokens or (None if work else float(data.train.tokens))
    work = work or flops(spec, context, lora=request.lora).per_token * (tokens or 1)
    rate = _LORA_RATE if request.lora else _FINE_TUNING_RATE
    rows = math.ceil(max(_FINE_TUNING_ROWS / process.world, request.changes.get("micro_batch", 1))) * process.world
    changes = {"learning_rate": rate, "final_learning_rate": rate / 10, "batch": rows, **request.changes}
    run = planning.configure(
        replace(spec, context=context), work, here, world=process.world, tokens=tokens, changes=changes
    )
    return replace(run, model=spec, context=context, lora=request.lora)


def _precision(request: Request, device: torch.device, planned: RunConfig | None = None) -> Any:
    """What was asked for, or what a planned run has, or what is faster here."""
    if request.precision != "auto":
        return request.precision
    if planned is not None:
        return planned.precision
    return "amp" if half_pays(device) else "fp32"


def _shard(request: Request, run: RunConfig, process: Process) -> Any:
    if process.world == 1:
        return "none"
    shard = next((asked for asked in (request.shard, run.shard) if asked != "none"), "ddp")
    if shard not in ("ddp", "fsdp"):
        raise UsageError(f"--shard {shard} can be planned but not run; give --shard ddp or --shard fsdp")
    return shard


def _refit(request: Request, run: RunConfig, timed: StepTime, data: Dataset, here: Device) -> RunConfig:
    """As many steps as the time allows, now that a step was timed."""
    if request.budget.seconds is None or "steps" in request.changes:
        return run
    return planning.fit_to_time(run, timed, request.budget.seconds)


def _load(name: str) -> tuple[Any, Tokenizer]:
    from ..weights.loading import load

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
    with joined(process, session.device, f"go on: {resume_command(folder)}"):
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
    """Write the run's own tokenizer, then run.json."""
    try:
        save_tokenizer(session.data.tokenizer(), session.folder)
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
        return from_plain(Options, values, "options.")
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
        if outcome.heldout is None or not outcome.complete:
            return None
        measured = _measured(outcome, session)
        write_report(session.folder, session.record.expected, measured)
    _remember(session, measured)
    return measured


def _forget(folder: Path) -> None:
    """Take away what a run wrote that could not begin, which would be in the way of the next try."""
    for name in ("run.json", "metrics.jsonl", "tokenizer.json", "tokenizer_config.json"):
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
        if session.run.lora:
            add_adapters(model, session.run.lora, session.run.seed)  # the tensors have their names
        if session.process.first:
            missing, unknown = model.load_state_dict(tensors, strict=False)  # a tied head is there as the embedding
            assert not unknown
            assert set(missing) <= {"head.weight"}
    if session.run.lora:
        merge_adapters(model)
    return model.eval()


def write_model(model: Any, session: Session) -> None:
    """The model and its tokenizer into the run's folder, as other programs open them."""
    from ..weights.conversion import write_model as write

    write(session.folder, model.cpu(), session.tokenizer(), force=True)


def _measured(outcome: Outcome, session: Session) -> Measured:
    record, heldout = session.record, outcome.heldout
    assert heldout is not None
    run, peak = record.run, _peak(session, outcome)
    work = flops(run.model, run.context, outcome.tokens, lora=run.lora).total
    return Measured(
        memory=outcome.peak_bytes,
        seconds=outcome.seconds,
        tokens=outcome.tokens,
        tokens_per_second=outcome.tokens / outcome.seconds,
        share_of_peak=work / outcome.seconds / (peak.flops * run.devices),
        data_share=outcome.data_seconds / outcome.seconds,
        train_loss=outcome.loss,
        nats_per_token=heldout.nats_per_token,
        bits_per_byte=heldout.bits_per_byte,
        threads=outcome.threads,
        error=heldout.error,
        clusters=heldout.clusters,
        over=heldout.over,
        steps=outcome.steps,
        shortened=outcome.shortened,
        nats_before=_loss_before(session),
        peak=peak.flops,
        peak_is=peak.what,
    )


def _loss_before(session: Session) -> float | None:
    """The held-out loss that fine-tuning began from, which its first session measured."""
    if not session.record.origin:
        return None
    first = (row["heldout"] for row in read_metrics(session.folder) if "heldout" in row and row["step"] == 0)
    return next((loss["nats_per_token"] for loss in first), None)


def _peak(session: Session, outcome: Outcome) -> Peak:
    """What the device was measured to do; measured again where the run did more."""
    from ..weights.catalogue import cache_folder

    run = session.run
    peak = measured_peak(session.device, run.precision, cache_folder())
    work = flops(run.model, run.context, outcome.tokens, lora=run.lora).total
    if work / outcome.seconds <= peak.flops * run.devices:
        return peak
    return measured_peak(session.device, run.precision, cache_folder(), anew=True)


def _remember(session: Session, measured: Measured) -> None:
    record, predicted = session.record, session.record.expected
    if predicted is None or record.origin or measured.shortened:
        return
    run = record.run
    calibration.append(
        calibration.Entry(
            machine=calibration.machine(), when=time.strftime("%Y-%m-%dT%H:%M:%S"), run=str(session.folder.resolve()),
            kind=run.model.kind, parameters=parameters(run.model).total,
            flops_per_token=flops(run.model, run.context).per_token, tokens=measured.tokens, context=run.context,
            micro_batch=run.micro_batch, precision=run.precision, threads=measured.threads, peak=record.peak,
            data=record.fingerprint, formula_memory=predicted.formula_memory, predicted_memory=predicted.memory,
            measured_memory=measured.memory, predicted_seconds=predicted.seconds, measured_seconds=measured.seconds,
            law_bits=predicted.law_bits, predicted_bits=predicted.bits_per_byte, measured_bits=measured.bits_per_byte,
            id=record.id,
            steps=run.steps,
        )
    )  # fmt: skip
