"""hf:owner/name: a data set of the Hugging Face hub, streamed through `datasets` and kept as compressed text."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from ..base import RunError, UsageError, atomic_write, locked, read_json, require

PART = 64 << 20  # bytes of rows per file
_KEPT = ("messages", "tools")  # columns that are kept beside those of text


def fetch(name: str, store: Path | None = None) -> Path:
    """A folder with the rows of split `train` of owner/name[:configuration][@revision], as .jsonl.gz.

    Of a row only text and conversations are kept. Nothing else is downloaded to the disk, no code of the data set is
    run, and an interrupted download continues. What is there is not looked up again. Raises UsageError for a name that
    is not one, RunError where the hub cannot be reached.
    """
    require("datasets", f"hf:{name}")
    if store is None:
        from ..weights.catalogue import cache_folder

        store = cache_folder() / "datasets"
    readable = re.sub(r"[^\w.-]+", "-", name).strip("-.")[-80:]
    folder = store / f"{readable}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    folder.mkdir(parents=True, exist_ok=True)
    note = folder.with_name(f"{folder.name}.json")
    with locked(folder.with_name(f"{folder.name}.lock"), lambda: None):
        state = read_json(note) if note.exists() else {"parts": 0}
        if not state.get("complete"):
            _download(name, folder, note, state)
    return folder


def _download(name: str, folder: Path, note: Path, state: dict[str, Any]) -> None:
    try:
        rows = _open(name)
        if "position" in state:
            rows.load_state_dict(state["position"])
        _write_parts(rows, folder, note, state)
    except (UsageError, RunError):
        raise
    except Exception as error:  # of datasets, huggingface_hub, fsspec, pyarrow, ...
        reason = " ".join((str(error) or type(error).__name__).split())[:300]
        raise RunError(
            f"hf:{name} could not be read ({reason}). The next call continues; or give a folder of text instead"
        ) from None


def _open(name: str) -> Any:
    import datasets

    whole, _, revision = name.partition("@")
    repository, _, configuration = whole.partition(":")
    datasets.disable_progress_bars()
    settings: dict[str, Any] = {"name": configuration or None, "revision": revision or None}
    builder = datasets.load_dataset_builder(repository, **settings)
    if "train" not in (builder.info.splits or {"train": None}):
        raise UsageError(f"hf:{name} has no split train; it has {', '.join(builder.info.splits)}")
    if hasattr(builder.config, "sample_by"):  # files of text: a file is a document, not its every line
        settings["sample_by"] = "document"
    return datasets.load_dataset(repository, split="train", streaming=True, **settings)


def _write_parts(rows: Any, folder: Path, note: Path, state: dict[str, Any]) -> None:
    remaining = iter(rows)
    while not state.get("complete"):
        with atomic_write(folder / f"part-{state['parts']:05d}.jsonl.gz", "wb") as file:
            state["complete"] = _write_part(remaining, file)
        state |= {"parts": state["parts"] + 1, "position": rows.state_dict()}
        with atomic_write(note) as file:
            json.dump(state, file)


def _write_part(rows: Iterator[dict[str, Any]], file: IO[bytes]) -> bool:
    """Write about `PART` bytes of rows; whether they were the last."""
    with gzip.GzipFile(fileobj=file, mode="wb", compresslevel=1, mtime=0) as packed:
        size = 0
        for row in rows:
            kept = {key: value for key, value in row.items() if isinstance(value, str) or key in _KEPT}
            size += packed.write(json.dumps(kept, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
            if size >= PART:
                return False
    return True
