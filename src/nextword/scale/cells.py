"""A cell as a run: its configuration, and its folder, made from the trunk of its size where there is one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from ..base import UsageError
from ..data import Dataset, save_tokenizer
from ..plan import RunConfig
from ..plan.run_config import DataConfig, ModelConfig, RunSettings, RunShard, TrainConfig
from ..train.branches import start_from
from ..train.planning import MOST_TOKENS_AT_ONCE, Machine, plan_run
from ..train.run_dir import RECORD, RunRecord, differences, writing
from .design import DECAY, Cell, SweepDesign

_BETAS = (0.9, 0.99)  # for batches below 500,000 tokens (Porian et al. 2024)
_LARGE_BATCH, _LARGE_BETAS = 500_000, (0.9, 0.95)
_KEPT = 5  # checkpoints: where the decay begins, those after it, and those of interruptions


@dataclass(frozen=True)
class Place:
    """Where a sweep's runs are made, `runs` being the folder of their folders, and of which text."""

    runs: Path
    data: Dataset
    settings: DataConfig
    sources: tuple[str, ...]


def config_of(
    cell: Cell, design: SweepDesign, settings: DataConfig = DataConfig(), threads: int = 1,  # noqa: B008 - frozen
) -> RunConfig:  # fmt: skip
    """The configuration of a cell's run. All runs of a sweep differ in size, steps and learning rate only."""
    rows, at_once = design.batch_size, max(1, MOST_TOKENS_AT_ONCE // design.context)
    shared: RunShard = "ddp" if design.processes > 1 else "none"
    train = TrainConfig(
        steps=cell.steps, context=design.context, batch_size=rows,
        micro_batch=min(rows // design.processes, at_once), devices=design.processes, shard=shared,
        learning_rate=cell.rate, final_learning_rate=0.0, warmup_steps=design.warmup_steps, schedule="wsd",
        decay_fraction=DECAY, betas=_BETAS if design.batch_tokens < _LARGE_BATCH else _LARGE_BETAS, dtype=design.dtype,
        seed=design.seed + cell.seed,
    )  # fmt: skip
    run = RunSettings(
        device=design.device, threads=threads, follow_load=False, checkpoint_every=cell.checkpoint_every,
        keep_checkpoints=_KEPT, evaluate_every=0, sample_every=0,
    )  # fmt: skip
    return RunConfig(ModelConfig(arch=cell.kind, spec=cell.spec), settings, train, run)


def make_folder(
    cell: Cell, design: SweepDesign, place: Place, machine: Machine, trunks: Iterable[Cell] = (), threads: int = 1
) -> Path:
    """The folder of a cell's run, ready to be trained or continued; made if it is not there yet.

    It starts from the longest trunk among the runs `trunks`. Raises UsageError if the folder holds another run.
    """
    folder = place.runs / cell.name
    config = config_of(cell, design, place.settings, threads)
    if (folder / RECORD).exists():
        _check_same(folder, config, place.data)
        return folder
    plan = plan_run(config, place.data, replace(machine, world=design.processes))
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for trunk in sorted(trunks, key=lambda each: -each.steps):
            if start_from(place.runs / trunk.name, folder, plan.config):
                break
        save_tokenizer(place.data.tokenizer(), folder)
        record = RunRecord(plan.config, str(place.data.folder.resolve()), place.data.fingerprint, place.sources,
                           plan.prediction)  # fmt: skip
        record.write(folder)
    return folder


def _check_same(folder: Path, config: RunConfig, data: Dataset) -> None:
    stored = RunRecord.read(folder)
    old, new = ({name: one.to_dict()[name] for name in ("model", "train")} for one in (stored.config, config))
    changed = differences(old, new)
    if stored.fingerprint != data.fingerprint:
        changed.append("the text")
    if changed:
        raise UsageError(f"{folder} holds another run: {'; '.join(changed)}. Choose another --out")
