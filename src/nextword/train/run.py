"""train_run(config, data, folder, callbacks): trains or continues a run, to its report."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..base import RunError, UsageError
from ..data import Dataset, save_tokenizer
from ..plan import RunConfig, flops
from ..plan.run_config import PLACEMENT
from ..text import tokenizer_from_folder
from .callbacks import Callbacks
from .changes import NO_CHANGE, Change
from .distributed import Process, joined, remember_run, this_process, wait
from .lora import add_adapters, merge_adapters
from .loss_module import new_model
from .metrics import METRICS, progress_of, read_metrics
from .peak import Peak, measured_peak
from .pipeline import ways_to_shrink
from .run_dir import (
    CONFIG,
    RECORD,
    Measured,
    RunRecord,
    differences,
    locked_run,
    read_report,
    remove_partial_files,
    resume_command,
    set_aside,
    write_report,
    writing,
)
from .threads import restored_threads
from .trackers import check_installed, tracked
from .trainer import Outcome, Trainer

_PEAK_OF_PROCESS = "the process's since its start: this system does not let it be reset"


@dataclass(frozen=True)
class RunResult:
    """The result of a run. `measured` is None unless it finished, and in all processes but the first."""

    folder: Path
    record: RunRecord
    outcome: Outcome
    measured: Measured | None

    @property
    def model(self) -> nn.Module:
        """The trained model, in eval mode."""
        return self.outcome.model

    def _repr_mimebundle_(self, **_: object) -> dict[str, Any]:
        """In a notebook: the loss curves."""
        from .plots import run_bundle

        return run_bundle(self.folder, self.measured)


@restored_threads()
def train_run(
    config: RunConfig, data: Dataset, folder: Path, callbacks: Callbacks | None = None, *,
    record: RunRecord | None = None, change: Change = NO_CHANGE, restart: bool = False, until: int | None = None,
) -> RunResult:  # fmt: skip
    """Train a resolved `config` on `data` to its end, or to step `until`; then write the model and the report.

    If `folder` already holds this run, it is continued from its newest checkpoint, with `change` from there on, or from
    the beginning with `restart`. `record` has the run's sources and prediction, to be stored. Under torchrun every
    process calls it. Prints nothing, handles no signals, and sets the number of threads only for `config.run.threads`,
    while it runs. Two runs may train in two threads of a process; with dropout they would share torch's generator, and
    not be reproducible.

    Raises UsageError for an invalid run, RunError for one that fails.
    """
    record = _stored(folder, record or RunRecord(config, str(data.folder.resolve()), data.fingerprint))
    process, callbacks = this_process(), callbacks or Callbacks()
    check_installed(record.config.run.log)
    with tracked(record, folder, callbacks) if process.first else nullcontext(callbacks) as heard:
        return _Run(folder, record, data, process, heard).train(change, restart, until)


def _stored(folder: Path, record: RunRecord) -> RunRecord:
    """The record of the run in `folder`, if any. Raises UsageError if its configuration differs (except `run`)."""
    if not (folder / RECORD).exists():
        return record
    stored = RunRecord.read(folder)
    ours, theirs = (one.config.to_dict() | {"run": {}} for one in (record, stored))
    for one in (ours, theirs):
        one["train"] = {name: value for name, value in one["train"].items() if name not in PLACEMENT}
    if different := differences(theirs, ours):
        raise UsageError(f"{folder} holds another run: {'; '.join(different)}. Choose another folder")
    train = replace(stored.config.train, **{name: getattr(record.config.train, name) for name in PLACEMENT})
    return replace(stored, config=replace(record.config, train=train))


@dataclass
class _Run:
    """A run in training."""

    folder: Path
    record: RunRecord
    data: Dataset
    process: Process
    callbacks: Callbacks

    @property
    def config(self) -> RunConfig:
        """The run's configuration, in as many processes as there are now."""
        return self.record.config.with_train(devices=self.process.world)

    def train(self, change: Change, restart: bool, until: int | None) -> RunResult:
        folder, process = self.folder, self.process
        trainer = Trainer(
            self.config, self.data, folder, self.callbacks, _model_maker(self.config), self.record.changes
        )
        with joined(process, trainer.device, f"continue: {resume_command(folder)}"):
            fresh = process.first and not (folder / RECORD).exists()
            if fresh:
                self._begin()
            with locked_run(folder) if process.first else nullcontext():
                if process.first:
                    self._tidy(change, restart)
                    remember_run(folder, process)
                wait(process)
                try:
                    outcome = self._train(trainer, change, until)
                except UsageError:
                    if fresh and not progress_of(folder)[0]:
                        _remove_new_run(folder)
                    raise
                return RunResult(folder, self.record, outcome, self._finish(outcome, trainer))

    def _begin(self) -> None:
        """Write the run's own tokenizer, then its record."""
        try:
            with writing(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                save_tokenizer(self.data.tokenizer(), self.folder)
                self.record.write(self.folder)
        except BaseException:
            _remove_new_run(self.folder)
            raise

    def _tidy(self, change: Change, restart: bool) -> None:
        """Remove a killed process's partial files, and for a restart move the run's files aside.

        Raises UsageError if the run is finished.
        """
        if not restart and self.record.ended(read_report(self.folder), change):
            raise UsageError(f"{self.folder} is finished; there is nothing left to train")
        with writing(self.folder):
            remove_partial_files(self.folder)
            aside = set_aside(self.folder) if restart else None
        if aside is not None:
            self.callbacks.on_message(f"the run's earlier files are now in {aside}")

    def _train(self, trainer: Trainer, change: Change, until: int | None) -> Outcome:
        if self.process.first:
            trainer.peak = _peak(trainer.device, self.config.train.dtype).flops
        try:
            self._apply(trainer, replace(change, step=trainer.restore()))
            with _own_dropout(self.config, trainer.device):
                return trainer.train(until)
        except (MemoryError, RuntimeError) as error:
            text, train = str(error).lower(), self.config.train
            if isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text:
                rows = f"{train.micro_batch} rows of {train.context}"
                raise RunError(f"out of memory with {rows} at once. {ways_to_shrink(self.config)}") from error
            raise

    def _apply(self, trainer: Trainer, change: Change) -> None:
        """Record a change in run.json and apply it."""
        record, step = self.record, change.step
        change = change.beyond(record.settings.after(record.changes, step), record.settings.after(record.changes))
        if not change.values():
            return
        if change.steps is not None and change.steps < step:
            raise UsageError(f"--steps {change.steps}: the run is at step {step:,} already; give at least as many")
        self.record = replace(record, changes=(*record.changes, change))
        if self.process.first:
            with writing(self.folder / RECORD):
                self.record.write(self.folder)
        trainer.changes = self.record.changes

    def _finish(self, outcome: Outcome, trainer: Trainer) -> Measured | None:
        """Write the model and, at the run's end, the report."""
        from ..models.weights import write_model

        model: Any = _full_model(outcome.model, self.config, self.process)
        if not self.process.first:
            return None
        with writing(self.folder, f"continue: {resume_command(self.folder)}"):
            write_model(self.folder, model.cpu(), tokenizer_from_folder(self.folder), force=True)
            if outcome.val is None or not outcome.complete:
                return None
            measured = _measure(self.folder, self.config, outcome, trainer)
            write_report(self.folder, self.record.expected, measured)
        return measured


def _own_dropout(config: RunConfig, device: torch.device) -> AbstractContextManager[None]:
    """Leave torch's generator, which dropout draws from, as it was."""
    devices = [device] if device.type == "cuda" else []
    return torch.random.fork_rng(devices, enabled=bool(config.train.dropout))


def _remove_new_run(folder: Path) -> None:
    """Remove the files of a run that failed to start, so that it can be tried again."""
    for name in (RECORD, CONFIG, METRICS, "tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink(missing_ok=True)
    with suppress(OSError):  # it holds other files
        folder.rmdir()


def _model_maker(config: RunConfig) -> Callable[[bool], nn.Module] | None:
    """A function that builds the model to fine-tune, or one without weights for those of a checkpoint."""
    if not config.model.base:
        return None

    def make(resumed: bool) -> nn.Module:
        from ..models.weights import load_torch_model
        from ..weights.catalogue import resolve
        from ..weights.loading import open_source

        if resumed:
            model = new_model(config)
        else:
            model = load_torch_model(open_source(resolve(config.model.base))).requires_grad_(True)
        if config.model.lora:
            add_adapters(model, config.model.lora, config.train.seed)
        return model

    return make


def _full_model(model: nn.Module, config: RunConfig, process: Process) -> nn.Module:
    """The complete model in the first process, with adapters merged."""
    if config.train.sharded:
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        tensors = get_model_state_dict(model, options=options)
        model = new_model(config)
        if config.model.lora:
            add_adapters(model, config.model.lora, config.train.seed)  # the tensors use their names
        if process.first:
            missing, unknown = model.load_state_dict(tensors, strict=False)  # a tied head is stored as the embedding
            assert not unknown
            assert set(missing) <= {"head.weight"}
    if config.model.lora:
        merge_adapters(model)
    return model.eval()


def _measure(folder: Path, config: RunConfig, outcome: Outcome, trainer: Trainer) -> Measured:
    val, train = outcome.val, config.train
    assert val is not None
    work = flops(config.spec, train.context, outcome.tokens, lora=config.model.lora).total
    peak = _peak(trainer.device, train.dtype, work / outcome.seconds / train.devices)
    return Measured(
        memory=outcome.peak_bytes, seconds=outcome.seconds, tokens=outcome.tokens,
        tokens_per_second=outcome.tokens / outcome.seconds, data_share=outcome.data_seconds / outcome.seconds,
        share_of_peak=work / outcome.seconds / (peak.flops * train.devices), train_loss=outcome.loss,
        nats_per_token=val.nats_per_token, bits_per_byte=val.bits_per_byte, error=val.error, clusters=val.clusters,
        over=val.over, threads=outcome.threads, steps=outcome.steps, ends=outcome.ends,
        wall_seconds=trainer.clock.spent.elapsed, requested_seconds=trainer.requested_seconds, peak=peak.flops,
        peak_is=peak.what, memory_is="" if outcome.peak_is_own else _PEAK_OF_PROCESS,
        nats_before=_loss_before(folder) if config.model.base else None,
    )  # fmt: skip


def _loss_before(folder: Path) -> float | None:
    """The held-out loss before fine-tuning, measured in the first session."""
    first = (row["val"] for row in read_metrics(folder) if "val" in row and row["step"] == 0)
    return next((loss["nats_per_token"] for loss in first), None)


def _peak(device: torch.device, dtype: str, reached: float = 0.0) -> Peak:
    """The device's measured peak; measured again if the run exceeded it, with `reached` FLOP/s."""
    from ..weights.catalogue import cache_folder

    peak = measured_peak(device, dtype, cache_folder())
    return peak if reached <= peak.flops else measured_peak(device, dtype, cache_folder(), anew=True)
