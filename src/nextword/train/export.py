"""Exports a run's model as a Hugging Face folder or a GGUF file, or its adapters for peft."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..base import RunError, UsageError
from ..text import tokenizer_from_folder
from . import checkpoint as checkpoints
from .lora import add_adapters, merge_adapters, peft_adapters
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


def export_adapters(run: Path, out: Path, step: int | None = None, dtype: str = "float32", force: bool = False) -> Path:
    """Write the adapters of a run with `model.lora` as the folder `out`, which peft opens.

    Raises UsageError for a run without adapters.
    """
    from ..weights import floats
    from ..weights.catalogue import resolve
    from ..weights.conversion import DTYPES
    from ..weights.loading import open_source
    from ..weights.model_folder import new_folder
    from ..weights.safetensors_file import write_safetensors

    record = RunRecord.read(run)
    if not record.config.model.lora:
        raise UsageError(f"{run} was trained without adapters; export the model: leave out --adapter")
    if dtype not in DTYPES:
        raise UsageError(f"dtype {dtype!r} cannot be written as an adapter. Known: {', '.join(DTYPES)}")
    base = record.config.model.base
    family = open_source(resolve(base)).family
    config, tensors = peft_adapters(_loaded(run, record, step), record.config.spec, family, base)
    with new_folder(out, force) as working:
        encoded = {name: floats.encode(values, dtype) for name, values in tensors.items()}
        write_safetensors(working / "adapter_model.safetensors", encoded, dtype)
        (working / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return out


def model_at(run: Path, record: RunRecord, step: int | None) -> Any:
    """The run's model at checkpoint `step`, or at the newest checkpoint, with its adapters merged."""
    model = _loaded(run, record, step)
    if record.config.model.lora:
        merge_adapters(model)
    return model.eval()


def _loaded(run: Path, record: RunRecord, step: int | None) -> Any:
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
    return model
