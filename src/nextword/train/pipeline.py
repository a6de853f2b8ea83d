"""Prepares a run: tokenizes the text, measures the machine, plans the run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..base import UsageError, check_writable, free_memory
from ..base.fields import FieldError
from ..base.units import compact_count
from ..data import (
    Batch,
    Dataset,
    Sources,
    Windows,
    check_encoding,
    find_sources,
    measure_bytes_per_token,
    open_dataset,
    prepare_in,
)
from ..data.progress import Progress
from ..data.tokenizer_training import TOKENIZERS, named_tokenizer
from ..plan import RunConfig, parameters
from ..plan import device as plan_device
from ..plan.run_config import FEWEST_IDS, MOST_IDS, DataConfig, TrackerName
from ..spec import ModelSpec
from ..text import Tokenizer, tokenizer_from_folder
from . import calibration, compile
from .distributed import WHILE_PREPARING, Process, choose_device, from_first, joined, processes_here, this_process
from .peak import measured_peak
from .planning import Machine, RunPlan, check_batch, choose_dtype, choose_shape, plan_run
from .run_dir import RECORD, RunRecord, free_name
from .run_memory import Host
from .timing import amp_is_faster, libraries_memory, time_part
from .trackers import check_installed

RUNS = Path("runs")  # the default parent folder of runs
BYTES_AN_ID = 8  # of text per vocabulary entry, at least: more entries would hardly occur
_FAR_OFF = 1.5  # a held-out fraction off by more than this factor is reported

Log = Callable[[str], None]


@dataclass(frozen=True)
class PreparedRun:
    """A run that is ready to start, or to be resumed."""

    folder: Path
    record: RunRecord
    data: Dataset


# ---- a new run


def prepare_run(config: RunConfig, sources: Sequence[str], folder: Path | None, cache: Path, log: Log) -> PreparedRun:
    """Tokenize the text, choose the model and the steps, and predict the cost. Every process calls it.

    `folder` None: runs/ with the kind and size as name. Raises UsageError for an invalid run as early as possible.
    """
    process = this_process()
    device = choose_device(config.run.device, process)
    with joined(process, device, patience=WHILE_PREPARING):
        return _on_first(process, lambda: _prepare_run(config, sources, folder, cache, log, process, device))


def _on_first(process: Process, work: Callable[[], PreparedRun]) -> PreparedRun:
    """Do `work` in the first process; the others get its record. If it fails, `joined` ends all processes."""
    prepared = work() if process.first else None
    folder, record = from_first((prepared.folder, prepared.record) if prepared else None, process)
    return prepared or PreparedRun(folder, record, open_dataset(record.data))


def _prepare_run(
    config: RunConfig, paths: Sequence[str], folder: Path | None, cache: Path, log: Log, process: Process,
    device: torch.device,
) -> PreparedRun:  # fmt: skip
    dtype = choose_dtype(config.train, config.train.dtype == "auto" and amp_is_faster(device, config.model.arch))
    _check_before_reading(config, folder, process.world)
    if config.run.compile:
        compile.check(device, dtype)
    config = config.with_train(dtype=dtype)
    sources = _find_sources(config, paths, folder, log)
    here = plan_device("this", cache)
    log(f"this machine: {here.peak_fp32 / 1e9:.0f} GFLOP/s, {here.bandwidth / 1e9:.0f} GB/s (measured)")
    peak = measured_peak(device, dtype, cache)
    machine = Machine(here, peak.flops, process.world, past=tuple(calibration.read()))
    config, data = _prepare_data(config, sources, machine, cache, log)
    host = Host(libraries_memory(config, data, device), device.type != "cpu", processes_here())
    machine = replace(machine, host=host)
    plan = plan_run(config, data, machine)
    _check_memory(plan, device)
    batch = _first_batch(plan.config, data, process)
    log("timing some steps")
    own_threads = torch.get_num_threads() if process.world > 1 else None  # the cores are divided among processes
    timed = time_part(plan.config, batch, device, config.run.threads or own_threads, peak.flops)
    plan = plan_run(config, data, replace(machine, step_time=timed))
    _check_memory(plan, device)
    _log_warmup(plan.config, log)
    folder = folder or default_folder(plan.config)
    _check_free(folder)
    record = RunRecord(
        plan.config, str(data.folder.resolve()), data.fingerprint, tuple(map(str, paths)), plan.prediction
    )
    return PreparedRun(folder, record, data)


def _check_before_reading(config: RunConfig, folder: Path | None, world: int) -> None:
    """Raise UsageError for errors in the configuration alone, before the text is read."""
    check_writable(folder or RUNS, "--out", folder=True)
    if folder is not None:
        _check_free(folder)
    check_combinations(config)
    check_installed(config.run.log)
    check_batch(config.train, world)


def check_combinations(config: RunConfig) -> None:
    """Raise UsageError for settings that have no effect with others, or contradict them."""
    model, data, train, run = config.model, config.data, config.train, config.run
    recurrent = model.arch != "transformer"
    fixed = f"with model.base={model.base}, which has its own"
    rules = (
        (not (train.steps or train.minutes or train.flops or train.tokens), "give a budget: --minutes 20, --flops 1e15,"
         " --tokens 50M or --steps 1000"),
        (model.lora and not model.base, "model.lora has no effect without model.base: name the weights to adapt"),
        (model.spec and model.params, "model.params has no effect with [model.spec]"),
        (model.base and model.params, f"model.params has no effect {fixed}"),
        (model.base and recurrent and model.spec is None, f"model.arch has no effect {fixed}"),
        (model.base and data.tokenizer != "bpe", f"data.tokenizer has no effect {fixed}"),
        (model.base and data.vocabulary, f"data.vocabulary has no effect {fixed}"),
        (data.vocabulary and data.tokenizer != "bpe", f"data.vocabulary has no effect with data.tokenizer="
         f"{data.tokenizer}: it is the size of a bpe tokenizer"),
        (model.match != "params" and not recurrent, "model.match has no effect with a transformer; choose model.arch"),
        (train.stateful and not recurrent, "train.stateful: a transformer has no state to carry"),
        (train.recompute != "none" and recurrent, "train.recompute has no effect with a recurrent model"),
        (train.packing != "stream" and train.stateful, "train.packing has no effect with train.stateful: rows continue"
         " where they ended"),
        (train.on_loss_spike == "rewind" and run.checkpoint_every == 0, "train.on_loss_spike=rewind goes back to a"
         " checkpoint, and run.checkpoint_every=0 writes none during the run"),
    )  # fmt: skip
    for applies, message in rules:
        if applies:
            raise UsageError(message)


def _find_sources(config: RunConfig, paths: Sequence[str], folder: Path | None, log: Log) -> Sources:
    """The files to train on. Raises UsageError for contradictions before reading them."""
    sources = find_sources(paths, check_encoding(config.data.encoding))
    if skipped := sources.skipped_line():
        log(skipped)
    for path in map(Path, paths):
        if folder is not None and path.is_dir() and folder.resolve().is_relative_to(path.resolve()):
            raise UsageError(
                f"--out {folder} is in the folder of text {path}, and would be read as text the next time. Choose a"
                " folder outside it, such as runs/NAME"
            )
    most = max(1024, min(MOST_IDS, sources.bytes // BYTES_AN_ID))
    if config.data.vocabulary > most:
        wanted = f"a number from {FEWEST_IDS} to {most:,}, one token for every {BYTES_AN_ID} bytes of this text"
        raise FieldError("data.vocabulary", config.data.vocabulary, wanted)
    return sources


def _check_free(folder: Path) -> None:
    if (folder / RECORD).exists():
        raise UsageError(f"{folder} already holds a run. Resume it: nextword runs resume {folder}; or choose --out")


def _prepare_data(
    config: RunConfig, sources: Sources, machine: Machine, cache: Path, log: Log
) -> tuple[RunConfig, Dataset]:
    """Tokenize the text with the base's tokenizer, a named one, or one trained for text and model."""
    tokenizer, spec = None, config.model.spec
    if config.model.base:
        spec, tokenizer = open_base(config.model.base)
        config = replace(config, model=replace(config.model, spec=spec))
    elif config.data.tokenizer not in TOKENIZERS:
        tokenizer = named_tokenizer(config.data.tokenizer, "data.tokenizer=")
    settings = config.data
    if tokenizer is None and settings.tokenizer == "bpe" and not settings.vocabulary:
        text_bytes = sources.bytes * (1 - settings.val_fraction)
        spec = spec or choose_shape(config, text_bytes, machine, lambda size: measured(sources, settings, size))
        settings = of_size(settings, spec.vocabulary)
    data = prepare_in(cache / "data", sources, settings, tokenizer, Progress(sources, log), log)
    _log_surprises(data, settings, log)
    return replace(config, data=settings), data


def of_size(config: DataConfig, vocabulary: int) -> DataConfig:
    """The settings with a bpe tokenizer of `vocabulary`, if applicable; bytes for fewer ids than bytes."""
    if config.tokenizer != "bpe":
        return config
    few = vocabulary < FEWEST_IDS
    return replace(config, tokenizer="bytes" if few else "bpe", vocabulary=0 if few else vocabulary)


def measured(sources: Sources, config: DataConfig, vocabulary: int) -> float:
    """Bytes per token of the text with a vocabulary of that size."""
    return measure_bytes_per_token(sources, of_size(config, vocabulary))


def open_base(name: str) -> tuple[ModelSpec, Tokenizer]:
    """The shape and tokenizer of weights, without reading tensors."""
    from ..weights.catalogue import resolve
    from ..weights.loading import open_source

    source = open_source(resolve(name))
    return source.spec, source.tokenizer()


def _log_surprises(data: Dataset, config: DataConfig, log: Log) -> None:
    manifest, share = data.manifest, data.val_share
    if manifest.duplicates:
        what = "dropped" if config.deduplicate else "no text is in both splits"
        log(f"{manifest.duplicates:,} of {manifest.documents:,} documents have the text of an earlier one; {what}")
    if manifest.broken:
        log(f"skipped {manifest.broken:,} broken {'row or file' if manifest.broken == 1 else 'rows or files'}")
    if not 1 / _FAR_OFF < share / config.val_fraction < _FAR_OFF:
        log(f"held out {share:.1%} of the text instead of {config.val_fraction:.1%}: it cannot be divided more finely,"
            " since equal texts stay together")  # fmt: skip
    if data.vocabulary < config.vocabulary:
        log(f"the text fills {data.vocabulary:,} of {config.vocabulary:,} tokens of the vocabulary; reduced to that")


def _log_warmup(config: RunConfig, log: Log) -> None:
    """Say so where the learning rate never gets to its highest: a longer run's config.toml has its warm-up."""
    train = config.train
    if (warmup := train.warmup_steps or 0) > train.steps:
        log(f"the run has {train.steps:,} steps and its warm-up {warmup:,}: the learning rate stays below"
            f" {train.learning_rate:g}. Give a smaller train.warmup_steps")  # fmt: skip


def _first_batch(config: RunConfig, data: Dataset, process: Process) -> Batch:
    """This process's share of the first batch. Raises UsageError for too little text."""
    train = config.train
    windows = Windows(data.train, train.context, train.seed, train.packing, train.mask_documents)
    batch = windows.sequential_batch if train.stateful else windows.batch
    readers = process.world // train.tensor_parallel
    return batch(0, train.batch_size, process.rank // train.tensor_parallel, readers)


def _check_memory(plan: RunPlan, device: torch.device) -> None:
    """Raise UsageError for a run that does not fit in free memory, beside what the processes hold already."""
    own = plan.prediction
    free, needed = free_memory(), (own.memory - own.memory_parts.get("runtime", 0.0)) * processes_here()
    if device.type == "cpu" and free is not None and needed > free:
        ways = ways_to_shrink(plan.config)
        more = f"the run needs {needed / 1e9:.1f} GB more ({own.memory_is})"
        raise UsageError(f"{more} and {free / 1e9:.1f} GB are free. {ways}")


def ways_to_shrink(config: RunConfig) -> str:
    """Ways to reduce a run's memory, cheapest first."""
    ways = []
    if config.train.micro_batch > 1:
        ways.append(f"--set train.micro_batch={config.train.micro_batch // 2}")
    if config.train.recompute == "none" and config.spec.kind == "transformer":
        ways.append("--set train.recompute=full")
    return f"Try {', '.join([*ways, 'fewer --params'])}; nextword plan fit ranks what helps"


def default_folder(config: RunConfig, root: Path = RUNS) -> Path:
    """runs/transformer-1.2M, with -2, -3 … appended if taken."""
    return free_name(root / f"{config.spec.kind}-{compact_count(parameters(config.spec).total)}")


# ---- an interrupted run


def resume_run(
    folder: Path, sources: Sequence[str] = (), log: Log = print, *, device: str = "",
    trackers: tuple[TrackerName, ...] | None = None, placement: Mapping[str, Any] | None = None,
) -> PreparedRun:  # fmt: skip
    """The run in `folder`, for `train_run` to continue from its newest checkpoint.

    If its prepared data is gone, it is prepared again from the files and folders in `sources`. `device`, `trackers` and
    `placement` (keys of [train] in `PLACEMENT`; None: as it was) replace the run's own: none changes its results.
    Raises UsageError for a folder that is incomplete.
    """
    record = RunRecord.read(folder)
    data = _prepare_again(folder, record, sources, log) if sources else _kept_data(folder, record)
    if record.data != (path := str(data.folder.resolve())):
        record = replace(record, data=path)
        if this_process().first:
            record.write(folder)
    if device:
        record = replace(record, config=record.config.with_run(device=device))
    given = {name: value for name, value in (placement or {}).items() if value is not None}
    record = replace(record, config=record.config.with_train(**given))
    if trackers is not None:
        record = replace(record, config=record.config.with_run(log=trackers))
    return PreparedRun(folder, record, data)


def _kept_data(folder: Path, record: RunRecord) -> Dataset:
    again = f"Give the text again: nextword runs resume {folder} {' '.join(record.sources)}"
    try:
        data = open_dataset(record.data)
    except UsageError as error:
        raise UsageError(f"{error}. {again}") from None
    if data.fingerprint != record.fingerprint:
        raise UsageError(f"{record.data} differs from the data that {folder} was started with. {again}")
    return data


def _prepare_again(folder: Path, record: RunRecord, paths: Sequence[str], log: Log) -> Dataset:
    from ..weights.catalogue import cache_folder

    sources = find_sources(paths, record.config.data.encoding)
    tokenizer = tokenizer_from_folder(folder)
    data = prepare_in(cache_folder() / "data", sources, record.config.data, tokenizer, Progress(sources, log), log)
    if data.fingerprint != record.fingerprint:
        raise UsageError(
            f"{' '.join(paths)} differs from the text that {folder} was started with. Resume it"
            " with the original text, or start another run with --out"
        )
    return data
