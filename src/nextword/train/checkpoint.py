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
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from ..base import RunError, open_regular, read_regular, return_freed_memory
from .distributed import Process, from_first, own_group, total
from .run_dir import free_name, resume_command

FORMAT = "nextword-checkpoint/3"
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


def load_libraries() -> None:
    """Import what writing a checkpoint does, so that its memory is known before."""
    from torch.distributed.checkpoint import hf_storage, state_dict, state_dict_saver

    _ = hf_storage, state_dict, state_dict_saver


def folder_name(step: int) -> str:
    """A folder name that sorts by step."""
    return f"step-{step:08d}"


def stored(root: Path) -> list[Path]:
    """The checkpoints under `root`, valid or not, by step."""
    named = [path for path in root.glob("step-*") if re.fullmatch(r"step-\d{8,}", path.name)]
    return sorted(named, key=lambda path: int(path.name.removeprefix("step-")))


class Writer:
    """Writes a run's checkpoints under `root`, each process its share, and keeps the newest `keep`.

    `overlapped`: from a copy in memory, while training goes on, one after another. Then call `check` now and then, and
    `finish` before anything that needs the last checkpoint; the end of a `with` block waits for it. All of these raise
    RunError if a checkpoint could not be written, such as for lack of space; older ones are then untouched. `written`
    is called with step and folder of each that was.
    """

    def __init__(
        self, root: Path, process: Process, keep: int, overlapped: bool,
        written: Callable[[int, Path], None] = lambda step, folder: None,
    ) -> None:  # fmt: skip
        self.root, self.process, self.keep, self.written = root, process, keep, written
        self._group = own_group() if overlapped else None  # collectives of the main group must not come in between
        self._under_way: tuple[int, Future[Any]] | None = None

    def save(
        self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, progress: dict[str, Any],
        recurrent_state: dict[str, Tensor] | None = None, configuration: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """Write `root`/step-…: weights, optimizer and progress. Raises RunError if a number is not finite."""
        from torch.distributed.checkpoint.state_dict_saver import async_save

        self.finish()
        tensors = _tensors(model, optimizer) | _named_states(recurrent_state)
        _check_finite(tensors, step, self.root, self.process)
        state = {"format": FORMAT, "step": step, "progress": progress, "configuration": configuration or {}}
        with self._failures(step):
            storage = _folder_writer(self.root, step, _files(tensors), state, self.keep)
            if self._group is None:
                return_freed_memory()  # torch writes in a thread, where it cannot be used again
                _save_shards(tensors, storage)
                return_freed_memory()
                self.written(step, self.root / folder_name(step))
            else:
                writing = async_save(tensors, storage_writer=storage, process_group=self._group)
                self._under_way = (step, writing)  # type: ignore[assignment]

    def check(self) -> None:
        """See whether the checkpoint under way is written, without waiting for it."""
        if self._under_way is not None and self._under_way[1].done():
            self.finish()

    def finish(self) -> None:
        """Wait for the checkpoint under way, if any."""
        if self._under_way is None:
            return
        (step, writing), self._under_way = self._under_way, None
        with self._failures(step):
            writing.result()
        self.written(step, self.root / folder_name(step))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            self.finish()
        except (Exception, SystemExit):
            if error is None:  # else it has a reason of its own
                raise

    @contextmanager
    def _failures(self, step: int) -> Iterator[None]:
        """Turn errors of writing into a RunError, and remove what was written."""
        try:
            yield
        except BaseException as error:  # torch's own CheckpointException is not an Exception
            shutil.rmtree(_working(self.root, step), ignore_errors=True)
            cause = _cause(error)
            lost = self.process.world > 1 and isinstance(cause, RuntimeError)  # a process: `joined` says which
            if lost or isinstance(cause, KeyboardInterrupt | SystemExit):
                raise cause from None
            raise RunError(
                f"{self.root / folder_name(step)}: the checkpoint could not be written ({_reason(cause)});"
                f" {_kept(self.root)}. Free some space, then continue: {resume_command(self.root.parent)}"
            ) from cause


def _check_finite(tensors: dict[str, Any], step: int, root: Path, process: Process) -> None:
    """Raise RunError for NaN or infinity: every later checkpoint would have them too."""
    bad = [name for name, tensor in tensors.items() if not _is_finite(_local(tensor))]
    device = next((_local(tensor).device for tensor in tensors.values()), torch.device("cpu"))
    if total([float(len(bad))], process, device)[0]:
        where = f" ({bad[0].partition('.')[2]}, {len(bad):,} of {len(tensors):,} tensors)" if bad else ""
        raise RunError(
            f"after step {step:,} weights are not finite{where}: no checkpoint was written; {_kept(root)}."
            f" To continue from there: {resume_command(root.parent, '--learning-rate-scale 0.5')}"
        )


def _is_finite(tensor: Tensor) -> bool:
    """Whether all numbers are finite; `isfinite` itself takes 18 times as long on a CPU."""
    return not tensor.numel() or all(bool(torch.isfinite(extreme)) for extreme in torch.aminmax(tensor))


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


def copy(checkpoint: Checkpoint, root: Path, configuration: dict[str, Any]) -> None:
    """Copy a checkpoint to another run's `root`, with that run's `configuration`."""
    working = _working(root, checkpoint.step)
    shutil.rmtree(working, ignore_errors=True)
    shutil.copytree(checkpoint.folder, working, ignore=shutil.ignore_patterns(_STATE))
    state = {"format": FORMAT, "step": checkpoint.step, "progress": checkpoint.progress}
    _seal(working, state | {"configuration": configuration})
    os.replace(working, root / folder_name(checkpoint.step))
    _sync(root)


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


def _working(root: Path, step: int) -> Path:
    """The folder of a checkpoint while it is written."""
    return root / f".{folder_name(step)}.part"


def _save_shards(tensors: dict[str, Any], storage: Any) -> None:
    from torch.distributed.checkpoint.state_dict_saver import save

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a single process is intended
        save(tensors, storage_writer=storage)


def _folder_writer(root: Path, step: int, files: dict[str, int], state: dict[str, Any], keep: int) -> Any:
    """Writes the shards of a checkpoint; then the first process completes it and removes all but the newest `keep`."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

    working, final = _working(root, step), root / folder_name(step)

    class FolderWriter(HuggingFaceStorageWriter):
        def finish(self, metadata: Any, results: Any) -> None:
            _seal(working, state)
            read(working)  # before anything older is removed
            os.replace(working, final)
            _sync(root)
            for old in stored(root)[:-keep]:
                shutil.rmtree(old, ignore_errors=True)

    return FolderWriter(str(working), files, save_distributed=True)


def _files(tensors: dict[str, Any]) -> dict[str, int]:
    """The number of each tensor's file, from 1: the writer needs twice a file's size in memory."""
    files, number, size = {}, 1, 0
    for name, tensor in tensors.items():
        more = tensor.nbytes if isinstance(tensor, Tensor) else 0
        if size and size + more > _FILE_BYTES:
            number, size = number + 1, 0
        files[name], size = number, size + more
    return files


def _seal(folder: Path, state: dict[str, Any]) -> None:
    """Write the list of files, last: a folder without it is not a checkpoint."""
    from safetensors import safe_open

    files = {}
    for path in sorted(folder.iterdir()):
        _sync(path)
        if path.suffix == ".safetensors":
            with safe_open(path, "pt"):  # complete: as long as its header says
                pass
        files[path.name] = (path.stat().st_size, _sha256(path))
    (folder / _STATE).write_text(json.dumps(state | {"files": files}, indent=2) + "\n", encoding="utf-8")
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
