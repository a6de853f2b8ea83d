"""Any weights nextword reads, or a model in memory → a Hugging Face folder that transformers opens."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..base import UsageError, usual_mode
from ..models import Model
from ..spec import ModelSpec
from ..text import Tokenizer
from .families import Entry, Family, Piece, family_of
from .loading import open_source
from .source import Source

SHARD = 5_000_000_000  # bytes; transformers' own limit for one file
_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def convert(
    path: Path | str,
    out: Path | str,
    dtype: str = "float32",
    force: bool = False,
    progress: Callable[[float], None] | None = None,
) -> Path:
    """Write the model at `path` (GGUF file or folder) to the folder `out` as safetensors.

    Quantized weights are written as the numbers they stand for; float32 keeps them exactly. The folder
    appears whole or not at all. `progress` is called with the share done. Raises UsageError if `out` exists
    and `force` is not set, or if `dtype` is not float32, bfloat16 or float16.
    """
    floating = _type(dtype)
    source = open_source(Path(path))
    with _appearing(Path(out), force) as working:
        tensors = _tensors(source, floating, progress or (lambda share: None))
        write_folder(working, source.spec, source.family, tensors, source.tokenizer(), dtype)
    return Path(out)


def write_model(
    folder: Path | str, model: Model[Any], tokenizer: Tokenizer, dtype: str = "float32", force: bool = False
) -> Path:
    """Write a model in memory, its tokenizer beside it, to `folder` as safetensors.

    The folder is of the first family that holds the model's spec, appears whole or not at all, and loads with
    `nextword.load`. Raises UsageError where no family holds the spec, if the model's matrices are packed, and as
    `convert` does.
    """
    family = family_of(model.spec)
    tensors = _tensors_of(model, family, _type(dtype))
    with _appearing(Path(folder), force) as working:
        write_folder(working, model.spec, family, tensors, tokenizer, dtype)
    return Path(folder)


def _type(name: str) -> torch.dtype:
    if name not in _TYPES:
        raise UsageError(f"dtype {name!r} cannot be written. Known: {', '.join(_TYPES)}")
    return _TYPES[name]


@contextmanager
def _appearing(out: Path, force: bool) -> Iterator[Path]:
    """A folder to write into, which becomes `out` if the block ends well and is gone if not."""
    if out.exists() and not force:
        raise UsageError(f"{out} is already there. Choose another folder, or replace it with --force")
    out.parent.mkdir(parents=True, exist_ok=True)
    working = out.parent / f".{out.name}.{secrets.token_hex(4)}.part"  # mkdtemp's would stay closed to all others
    working.mkdir()
    try:
        yield working
        before = working.with_suffix(".old")  # what stands there is gone only once the new folder is in its place
        if out.exists():
            os.replace(out, before)
        os.replace(working, out)
        if before.is_dir() and not before.is_symlink():
            shutil.rmtree(before)
        else:
            before.unlink(missing_ok=True)
    except BaseException:
        shutil.rmtree(working, ignore_errors=True)
        raise


def write_folder(
    folder: Path,
    spec: ModelSpec,
    family: Family,
    tensors: Iterator[tuple[str, Tensor]],
    tokenizer: Tokenizer,
    dtype: str,
) -> None:
    """Write config, tokenizer and weights of a model into an existing folder."""
    config = {"architectures": [family.architecture], "model_type": family.model_type, "dtype": dtype}
    special = {"bos_token_id": tokenizer.bos_id, "eos_token_id": sorted(tokenizer.stop_ids)}
    _write_json(folder / "config.json", config | family.config(spec) | special)
    _write_json(folder / "generation_config.json", special)
    (folder / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
    _write_json(folder / "tokenizer_config.json", _tokenizer_config(tokenizer, spec))
    _write_shards(folder, tensors)


def _tokenizer_config(tokenizer: Tokenizer, spec: ModelSpec) -> dict[str, Any]:
    values: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": spec.context,
        "clean_up_tokenization_spaces": False,
        "add_bos_token": tokenizer.adds_bos,
        **tokenizer.special.texts,
    }
    return values | ({"chat_template": tokenizer.chat_template} if tokenizer.chat_template else {})


def _tensors(source: Source, dtype: torch.dtype, progress: Callable[[float], None]) -> Iterator[tuple[str, Tensor]]:
    """Every tensor under its name in transformers, one after the other."""
    stored = {entry.ours: entry for entry in source.entries}
    wanted = source.family.entries(source.spec)
    for done, entry in enumerate(wanted):
        whole = torch.cat([source.read(piece).float() for piece in stored[entry.ours].pieces])
        yield from _pieces(source.family, entry, whole, dtype)
        progress((done + 1) / len(wanted))


def _tensors_of(model: Model[Any], family: Family, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """`_tensors` of a model in memory."""
    parameters = dict(model.named_parameters())
    entries = family.entries(model.spec)
    if any(entry.ours not in parameters for entry in entries):
        raise UsageError("the model holds packed matrices, which safetensors have no type for. Load it as float32")
    for entry in entries:
        yield from _pieces(family, entry, parameters[entry.ours].detach().float().cpu(), dtype)


def _pieces(family: Family, entry: Entry, whole: Tensor, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """One of our parameters as the tensors it is stored in, under their names."""
    row = 0
    for piece in entry.pieces:
        name = piece.name[1:] if piece.name.startswith("^") else family.prefixes[0] + piece.name
        yield name, as_stored(whole[row : row + piece.shape[0]], piece).to(dtype).contiguous()
        row += piece.shape[0]


def as_stored(values: Tensor, piece: Piece) -> Tensor:
    """Our layout → the file's: the inverse of `source.arrange`."""
    if piece.offset:
        values = values - piece.offset
    order = piece.row_order()
    if order is not None:
        values = values[torch.from_numpy(np.argsort(order))]
    return values.t() if piece.transposed else values


def _write_shards(folder: Path, tensors: Iterator[tuple[str, Tensor]]) -> None:
    from safetensors.torch import save_file

    shards: list[dict[str, int]] = []
    held: dict[str, Tensor] = {}

    def write() -> None:
        part = folder / f"part-{len(shards)}"
        save_file(held, part, metadata={"format": "pt"})
        usual_mode(part)
        shards.append({name: tensor.nbytes for name, tensor in held.items()})
        held.clear()

    for name, tensor in tensors:
        if held and sum(each.nbytes for each in held.values()) + tensor.nbytes > SHARD:
            write()
        held[name] = tensor.clone()
    write()
    if len(shards) == 1:
        (folder / "part-0").rename(folder / "model.safetensors")
        return
    names = [f"model-{place + 1:05d}-of-{len(shards):05d}.safetensors" for place in range(len(shards))]
    for place, name in enumerate(names):
        (folder / f"part-{place}").rename(folder / name)
    index = {
        "metadata": {"total_size": sum(sum(shard.values()) for shard in shards)},
        "weight_map": {tensor: name for shard, name in zip(shards, names, strict=True) for tensor in shard},
    }
    _write_json(folder / "model.safetensors.index.json", index)


def _write_json(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
