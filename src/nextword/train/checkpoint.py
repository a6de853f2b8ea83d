"""Checkpoints: folders of safetensors, written atomically and verified when read.

Written with torch.distributed.checkpoint, each process its share, so that a run saved by two can continue with one. No
pickle. Everything else a run needs is a function of seed and step: data order, dropout, learning rate.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..base import RunError, open_regular, read_regular
from .distributed import Process, from_first, total, wait
from .run_dir import free_name, resume_command

FORMAT = "nextword-checkpoint/2"
_STATE = "state.json"
_MOST_BYTES = 16_000_000  # of state.json
_FILE_BYTES = 64 << 20  # of tensors per file, unless a single one is larger


@dataclass(frozen=True)
class Checkpoint:
    """A folder with the complete state after `step` steps.

    `progress` has the trainer's counters, `configuration` everything that determines the results.
    """

    folder: Path
    step: int
    progress: dict[str, Any]
    configuration: dict[str, Any] = field(default_factory=dict)


def folder_name(step: int) -> str:
    """A folder name that sorts by step."""
    return f"step-{step:08d}"


def stored(root: Path) -> list[Path]:
    """The checkpoints under `root`, valid or not, by step."""
    named = [path for path in root.glob("step-*") if re.fullmatch(r"step-\d{8,}", path.name)]
    return sorted(named, key=lambda path: int(path.name.removeprefix("step-")))


def save(
    root: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, progress: dict[str, Any],
    process: Process, keep: int, recurrent_state: dict[str, Tensor] | None = None,
    configuration: dict[str, Any] | None = None,
) -> Path:  # fmt: skip
    """Write `root`/step-…: weights, optimizer and progress; then remove all but the newest `keep`.

    Raises RunError if a number is not finite, or if writing fails, such as for lack of space; older checkpoints are
    then untouched.
    """
    final = root / folder_name(step)
    working = root / f".{folder_name(step)}.part"
    tensors = _tensors(model, optimizer) | _named_states(recurrent_state)
    _check_finite(tensors, step, root, process)
    try:
        if process.first:
            shutil.rmtree(working, ignore_errors=True)
            working.mkdir(parents=True)
        wait(process)
        _write(tensors, working)
        wait(process)
        if process.first:
            _seal(working, step, progress, configuration or {})
            read(working)  # before anything older is removed
            os.replace(working, final)
            _sync(root)
            for old in stored(root)[:-keep]:
                shutil.rmtree(old, ignore_errors=True)
        wait(process)
    except BaseException as error:  # torch's own CheckpointException is not an Exception
        shutil.rmtree(working, ignore_errors=True)
        cause = _cause(error)
        lost = process.world > 1 and isinstance(cause, RuntimeError)  # another process: `joined` says which
        if lost or isinstance(cause, KeyboardInterrupt | SystemExit):
            raise cause from None
        raise RunError(
            f"{final}: the checkpoint could not be written ({_reason(cause)}); {_kept(root)}. Free some space,"
            f" then continue: {resume_command(root.parent)}"
        ) from cause
    return final


def _check_finite(tensors: dict[str, Any], step: int, root: Path, process: Process) -> None:
    """Raise RunError for NaN or infinity: every later checkpoint would have them too."""
    bad = [name for name, tensor in tensors.items() if not bool(torch.isfinite(_local(tensor)).all())]
    device = next((_local(tensor).device for tensor in tensors.values()), torch.device("cpu"))
    if total([float(len(bad))], process, device)[0]:
        where = f" ({bad[0].partition('.')[2]}, {len(bad):,} of {len(tensors):,} tensors)" if bad else ""
        raise RunError(
            f"after step {step:,} weights are not finite{where}: no checkpoint was written; {_kept(root)}."
            f" To continue from there: {resume_command(root.parent, '--learning-rate-scale 0.5')}"
        )


def _local(tensor: Any) -> Tensor:
    """This process's share of a sharded tensor."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor  # type: ignore[no-any-return]


def _kept(root: Path) -> str:
    there = stored(root)
    return f"the last one is {there[-1].name}" if there else "there is no earlier one"


def newest(root: Path, process: Process, log: Any = None) -> Checkpoint | None:
    """The newest undamaged checkpoint under `root`; None if there are no checkpoints.

    Damaged ones are logged, and moved aside if an earlier one is valid. Raises RunError with the problem of each if
    all are damaged.
    """
    newest_one: tuple[Checkpoint | None, str] = (None, "")
    if process.first:
        try:
            newest_one = (_newest(root, log), "")
        except RunError as error:
            newest_one = (None, str(error))
    checkpoint, trouble = from_first(newest_one, process)
    if trouble:
        raise RunError(trouble)
    return checkpoint  # type: ignore[no-any-return]


def _newest(root: Path, log: Any) -> Checkpoint | None:
    for path in root.glob(".step-*.part"):  # an interrupted write
        shutil.rmtree(path, ignore_errors=True)
    damaged: list[tuple[Path, RunError]] = []
    for folder in reversed(stored(root)):
        try:
            sound = read(folder)
        except RunError as error:
            damaged.append((folder, error))
            continue
        for path, damage in damaged:
            aside = _set_aside(path)
            if log is not None:
                log(f"{damage}; it is now {aside.name}, and {sound.folder.name} is used")
        return sound
    if damaged:
        details = "; ".join(str(damage).removeprefix(f"{root}{os.sep}") for _, damage in damaged)
        raise RunError(
            f"{root}: all checkpoints are damaged. {details}. Restore one, or start over, which moves them"
            f" aside: {resume_command(root.parent, '--restart')}"
        )
    return None


def _set_aside(folder: Path) -> Path:
    """Rename a damaged checkpoint, so that it is not counted and a new one can take its name."""
    aside = free_name(folder.with_name(f"damaged-{folder.name}"))
    folder.rename(aside)
    return aside


def read(folder: Path) -> Checkpoint:
    """Read a checkpoint's state after verifying the size and SHA-256 of its files. Raises RunError if damaged."""
    try:
        state = json.loads(read_regular(folder / _STATE, _MOST_BYTES))
        if state["format"] != FORMAT:
            raise ValueError(f"format {state['format']!r}, not {FORMAT!r}")
        for name, (size, digest) in state["files"].items():
            if Path(name).name != name:
                raise ValueError(f"{name!r} lies outside the folder")
            if (folder / name).stat().st_size != size or _sha256(folder / name) != digest:
                raise ValueError(f"{name} has changed since it was written")
        if not state["files"]:
            raise ValueError("no files")
        return Checkpoint(folder, int(state["step"]), dict(state["progress"]), dict(state.get("configuration", {})))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RunError(f"{folder}: the checkpoint is damaged ({_reason(error)})") from error


def load(
    checkpoint: Checkpoint, model: nn.Module, optimizer: torch.optim.Optimizer | None = None,
    recurrent_state: dict[str, Tensor] | None = None,
) -> None:  # fmt: skip
    """Load the checkpoint into `model`, `optimizer` and the tensors of `recurrent_state`."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict, set_optimizer_state_dict
    from torch.distributed.checkpoint.state_dict_loader import load as load_shards

    tensors = _tensors(model, optimizer) | _named_states(recurrent_state)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a single process is intended
            load_shards(tensors, storage_reader=HuggingFaceStorageReader(str(checkpoint.folder)))
    except BaseException as error:
        cause = _cause(error)
        if isinstance(cause, KeyboardInterrupt | SystemExit):
            raise cause from None
        raise RunError(f"{checkpoint.folder}: does not hold this model ({_reason(cause)})") from cause
    partly = StateDictOptions(strict=False)  # a tied head is only stored as the embedding
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
    named_tensors = {
        f"model.{name}": tensors[name] for name in named if name in tensors
    }  # a tied head once, as the embedding
    if optimizer is not None:
        for name, values in _optimizer_state(model, optimizer)["state"].items():
            named_tensors |= {f"optimizer.{name}|{key}": value for key, value in values.items()}
    return named_tensors


def _optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    return get_optimizer_state_dict(model, optimizer)


def _under(prefix: str, tensors: dict[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _named_states(states: dict[str, Tensor] | None) -> dict[str, Any]:
    return {f"recurrent_state.{name}": tensor for name, tensor in (states or {}).items()}


def _write(tensors: dict[str, Any], folder: Path) -> None:
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save as save_shards

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        writer = HuggingFaceStorageWriter(str(folder), _files(tensors), save_distributed=True)
        save_shards(tensors, storage_writer=writer)


def _files(tensors: dict[str, Any]) -> dict[str, int]:
    """The number of each tensor's file, from 1: the writer needs twice a file's size in memory."""
    files, number, size = {}, 1, 0
    for name, tensor in tensors.items():
        more = tensor.nbytes if isinstance(tensor, Tensor) else 0
        if size and size + more > _FILE_BYTES:
            number, size = number + 1, 0
        files[name], size = number, size + more
    return files


def _seal(folder: Path, step: int, progress: dict[str, Any], configuration: dict[str, Any]) -> None:
    """Write the list of files, last: a folder without it is not a checkpoint."""
    from safetensors import safe_open

    files = {}
    for path in sorted(folder.iterdir()):
        _sync(path)
        if path.suffix == ".safetensors":
            with safe_open(path, "pt"):  # complete: as long as its header says
                pass
        files[path.name] = (path.stat().st_size, _sha256(path))
    state = {"format": FORMAT, "step": step, "progress": progress, "configuration": configuration, "files": files}
    (folder / _STATE).write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
    _sync(folder / _STATE)
    _sync(folder)


def _sync(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:  # some systems cannot sync folders
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise


def _sha256(path: Path) -> str:
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _cause(error: BaseException) -> BaseException:
    """The underlying error, unwrapped from torch's."""
    failures = getattr(error, "failures", None)
    return next(iter(failures.values()))[0] if failures else error


def _reason(error: BaseException) -> str:
    """The last line of an error's message."""
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno).lower()
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__
