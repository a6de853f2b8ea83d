"""Checkpoints: folders of safetensors that appear whole or not at all, and are checked before they are believed.

Written by torch.distributed.checkpoint, each process its share, so that a run saved by two goes on with one. No
pickle. Everything else a run needs is a function of the seed and the step: data order, dropout, learning rate.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..base import RunError
from .distributed import Process, from_first, wait

FORMAT = "nextword-checkpoint/1"
_STATE = "state.json"
_FILE_BYTES = 64 << 20  # of tensors in a file, unless one alone is larger


@dataclass(frozen=True)
class Checkpoint:
    """A folder that holds everything after `step` steps. `progress` is what the trainer counts."""

    folder: Path
    step: int
    progress: dict[str, Any]


def folder_name(step: int) -> str:
    """Sorts by step."""
    return f"step-{step:08d}"


def save(
    root: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, progress: dict[str, Any],
    process: Process, keep: int, carried: dict[str, Tensor] | None = None,
) -> Path:  # fmt: skip
    """Write `root`/step-…: weights, optimizer and progress; then remove all but the newest `keep`.

    Raises RunError if it cannot be written, for want of space for example; older checkpoints are then untouched.
    """
    final = root / folder_name(step)
    working = root / f".{folder_name(step)}.part"
    try:
        if process.first:
            shutil.rmtree(working, ignore_errors=True)
            working.mkdir(parents=True)
        wait(process)
        _write(_tensors(model, optimizer) | _carried(carried), working)
        wait(process)
        if process.first:
            _seal(working, step, progress)
            if final.exists():
                shutil.rmtree(final)
            os.replace(working, final)
            _sync(root)
            for old in sorted(root.glob("step-*"))[:-keep]:
                shutil.rmtree(old, ignore_errors=True)
        wait(process)
    except Exception as error:
        shutil.rmtree(working, ignore_errors=True)
        newest = max((path.name for path in root.glob("step-*")), default=None)
        kept = f"the last good one is {newest}" if newest else "there is none before it"
        raise RunError(f"{final}: the checkpoint could not be written ({_reason(error)}); {kept}") from error
    return final


def newest(root: Path, process: Process, say: Any = None) -> Checkpoint | None:
    """The newest checkpoint under `root` whose files are what they were written as; `say` hears of damaged ones."""
    found = _newest(root, say) if process.first else None
    return from_first(found, process)  # type: ignore[no-any-return]


def _newest(root: Path, say: Any) -> Checkpoint | None:
    for part in root.glob(".step-*.part"):  # a write that was cut off
        shutil.rmtree(part, ignore_errors=True)
    for folder in sorted(root.glob("step-*"), reverse=True):
        try:
            return read(folder)
        except RunError as damage:
            if say is not None:
                say(f"{damage}; trying the checkpoint before it")
    return None


def read(folder: Path) -> Checkpoint:
    """What `folder` says it holds, once every file's size and SHA-256 agree. Raises RunError if they do not."""
    try:
        state = json.loads((folder / _STATE).read_text(encoding="utf-8"))
        if state["format"] != FORMAT:
            raise ValueError(f"format {state['format']!r}, not {FORMAT!r}")
        for name, (size, digest) in state["files"].items():
            if Path(name).name != name:
                raise ValueError(f"{name!r} lies outside the folder")
            if (folder / name).stat().st_size != size or _sha256(folder / name) != digest:
                raise ValueError(f"{name} is not as it was written")
        return Checkpoint(folder, int(state["step"]), dict(state["progress"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{folder}: the checkpoint is damaged ({_reason(error)})") from error


def load(
    checkpoint: Checkpoint, model: nn.Module, optimizer: torch.optim.Optimizer | None = None,
    carried: dict[str, Tensor] | None = None,
) -> None:  # fmt: skip
    """Put the checkpoint's numbers into `model`, into `optimizer` and into the tensors of `carried`."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict, set_optimizer_state_dict
    from torch.distributed.checkpoint.state_dict_loader import load as load_shards

    tensors = _tensors(model, optimizer) | _carried(carried)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a single process is no mistake
            load_shards(tensors, storage_reader=HuggingFaceStorageReader(str(checkpoint.folder)))
    except Exception as error:
        raise RunError(f"{checkpoint.folder}: does not hold this model ({_reason(error)})") from error
    partly = StateDictOptions(strict=False)  # a tied head is there under its embedding's name alone
    set_model_state_dict(model, _under("model.", tensors), options=partly)
    if optimizer is not None:
        state = _optimizer_state(model, optimizer)
        for name, values in state["state"].items():
            for key in values:
                values[key] = tensors[f"optimizer.{name}|{key}"]
        set_optimizer_state_dict(model, optimizer, state)


def _tensors(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> dict[str, Any]:
    from torch.distributed.checkpoint.state_dict import get_model_state_dict

    tensors = get_model_state_dict(model)
    named = [name for part in (model.named_parameters(), model.named_buffers()) for name, _ in part]
    found = {f"model.{name}": tensors[name] for name in named if name in tensors}  # a tied head once, as the embedding
    if optimizer is not None:
        for name, values in _optimizer_state(model, optimizer)["state"].items():
            found |= {f"optimizer.{name}|{key}": value for key, value in values.items()}
    return found


def _optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    return get_optimizer_state_dict(model, optimizer)


def _under(prefix: str, tensors: dict[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _carried(carried: dict[str, Tensor] | None) -> dict[str, Any]:
    return {f"carried.{name}": tensor for name, tensor in (carried or {}).items()}


def _write(tensors: dict[str, Any], folder: Path) -> None:
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save as save_shards

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        writer = HuggingFaceStorageWriter(str(folder), _files(tensors), save_distributed=True)
        save_shards(tensors, storage_writer=writer)


def _files(tensors: dict[str, Any]) -> dict[str, int]:
    """The file, from 1, that each tensor goes to: the writer holds a file twice in memory before it is on disk."""
    found, number, size = {}, 1, 0
    for name, tensor in tensors.items():
        more = tensor.nbytes if isinstance(tensor, Tensor) else 0
        if size and size + more > _FILE_BYTES:
            number, size = number + 1, 0
        found[name], size = number, size + more
    return found


def _seal(folder: Path, step: int, progress: dict[str, Any]) -> None:
    """Write what the files are, last: a folder without it is no checkpoint."""
    files = {}
    for path in sorted(folder.iterdir()):
        _sync(path)
        files[path.name] = (path.stat().st_size, _sha256(path))
    state = {"format": FORMAT, "step": step, "progress": progress, "files": files}
    (folder / _STATE).write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
    _sync(folder / _STATE)
    _sync(folder)


def _sync(path: Path) -> None:
    with suppress(OSError):  # some systems do not sync folders
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _reason(error: BaseException) -> str:
    """The innermost message: torch wraps what went wrong."""
    failures = getattr(error, "failures", None)
    if failures:
        error = next(iter(failures.values()))[0]
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno).lower()
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__
