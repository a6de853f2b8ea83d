"""Exports a run's model as a Hugging Face folder or a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..base import RunError, UsageError
from ..text import tokenizer_from_folder
from . import checkpoint as checkpoints
from .lora import add_adapters, merge_adapters
from .loss_module import new_model
from .run_dir import RunRecord


def export_run(run: Path, out: Path, step: int | None = None, dtype: str = "float32", force: bool = False) -> Path:
    """Write the model of the folder `run` to `out`: a GGUF file if it ends in .gguf, otherwise a folder.

    Raises UsageError for a step without a checkpoint, and for a kind of model that the format does not support.
    """
    from ..models.weights import write_model
    from ..weights.conversion import check_dtype

    check_dtype(out, dtype)  # before loading anything
    record = RunRecord.read(run)
    model = model_at(run, record, step)
    return write_model(out, model, tokenizer_from_folder(run), dtype=dtype, force=force)


def model_at(run: Path, record: RunRecord, step: int | None) -> Any:
    """The run's model at checkpoint `step`, or at the newest checkpoint."""
    root = run / "checkpoints"
    if step is None:
        folder = max(root.glob("step-*"), default=None)
        if folder is None:
            raise UsageError(f"{run} has no checkpoint yet")
    else:
        folder = root / checkpoints.folder_name(step)
        if not folder.exists():
            known = ", ".join(str(int(path.name.removeprefix("step-"))) for path in sorted(root.glob("step-*")))
            raise UsageError(f"{run} has no checkpoint of step {step}; it has {known or 'none'}")
    config = record.config
    model = new_model(config)
    if config.model.lora:
        add_adapters(model, config.model.lora, config.train.seed)
    try:
        checkpoints.load(checkpoints.read(folder), model)
    except RunError as error:
        raise RunError(f"{error}. Another one: --step N") from error
    if config.model.lora:
        merge_adapters(model)
    return model.eval()
