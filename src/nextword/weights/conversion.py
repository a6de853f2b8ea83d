"""Converts weights, or a model in memory, to a Hugging Face folder or a GGUF file."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..base import UsageError, usual_mode
from ..families import Family, FileTensor, Parameter, family_of
from ..models import Model
from ..spec import ModelSpec
from ..text import Tokenizer
from .loading import load_model, open_source
from .model_folder import CONFIG, INDEX, WEIGHTS, new_folder
from .source import Source, read_parameter

SHARD = 5_000_000_000  # bytes; transformers' own limit for one file
_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def convert(
    path: Path | str,
    out: Path | str,
    dtype: str = "float32",
    force: bool = False,
    progress: Callable[[float], None] | None = None,
) -> Path:
    """Write the model at `path` (GGUF file or folder) as `out`: a GGUF file if it ends in .gguf, otherwise a folder.

    Quantized weights are dequantized, exactly with float32. `out` is written completely or not at all; in an existing
    folder only the model's files are replaced. `progress` is called with the share done. Raises UsageError if `out`
    exists and `force` is not set, or if the format has no such `dtype`; RunError if it cannot be written, or another
    process is writing it.
    """
    out, advance = Path(out), progress or (lambda share: None)
    floating = check_dtype(out, dtype)
    source = open_source(Path(path))
    if is_gguf(out):
        write_model(out, load_model(source, "float32", "cpu"), source.tokenizer(), dtype, force)
        advance(1.0)
        return out
    with new_folder(out, force) as working:
        tensors = _tensors(source, floating, advance)
        write_folder(working, source.spec, source.family, tensors, source.tokenizer(), dtype)
    return out


def write_model(
    out: Path | str, model: Model, tokenizer: Tokenizer, dtype: str = "float32", force: bool = False
) -> Path:
    """Write a model in memory and its tokenizer as `out`: a GGUF file if it ends in .gguf, otherwise a folder.

    A folder is of the first family that can express the model's spec, and loads with `nextword.load`. Raises
    UsageError if no family can, if the model's matrices are packed, and as `convert` does.
    """
    out = Path(out)
    floating = check_dtype(out, dtype)
    if is_gguf(out):
        from .gguf_writing import write_gguf

        return write_gguf(out, model, tokenizer, dtype, force)
    family = family_of(model.spec)
    tensors = _tensors_of(model, family, floating)
    with new_folder(out, force) as working:
        write_folder(working, model.spec, family, tensors, tokenizer, dtype)
    return out


def is_gguf(out: Path) -> bool:
    """Whether `out` is the name of a GGUF file."""
    return out.suffix.lower() == ".gguf"


def check_dtype(out: Path, name: str) -> torch.dtype:
    """The type of matrices in `out`. Raises UsageError for a type its format does not have."""
    known = _TYPES | ({"q8_0": torch.float32} if is_gguf(out) else {})
    if name not in known:
        hint = " q8_0 is only for GGUF files; use an OUT that ends in .gguf" if name == "q8_0" else ""
        raise UsageError(f"dtype {name!r} cannot be written as {out}. Known: {', '.join(known)}.{hint}".rstrip("."))
    return known[name]


def write_folder(
    folder: Path,
    spec: ModelSpec,
    family: Family,
    tensors: Iterator[tuple[str, Tensor]],
    tokenizer: Tokenizer,
    dtype: str,
) -> None:
    """Write config, tokenizer and weights of a model into an existing folder."""
    config = {"architectures": [family.architecture], "dtype": dtype}
    special = {"bos_token_id": tokenizer.bos_id, "eos_token_id": sorted(tokenizer.stop_ids)}
    padding = tokenizer.special.texts.get("pad_token")
    pad = {"pad_token_id": None if padding is None else tokenizer.token_id(padding)}  # else transformers has a default
    _write_json(folder / CONFIG, config | family.config(spec) | special | pad)
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
    stored = {parameter.name: parameter for parameter in source.parameters}
    written = source.family.names.parameters(source.spec)
    for done, parameter in enumerate(written):
        values = torch.from_numpy(read_parameter(source, stored[parameter.name]))
        yield from _as_stored(source.family, parameter, values, dtype)
        progress((done + 1) / len(written))


def _tensors_of(model: Model, family: Family, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """`_tensors` of a model in memory."""
    held = dict(model.named_parameters())
    parameters = family.names.parameters(model.spec)
    if any(parameter.name not in held for parameter in parameters):
        raise UsageError("the model has quantized matrices, which safetensors cannot store. Load it as float32")
    for parameter in parameters:
        yield from _as_stored(family, parameter, held[parameter.name].detach().float().cpu(), dtype)


def _as_stored(
    family: Family, parameter: Parameter, values: Tensor, dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    """One of our parameters as the tensors it is stored in, by name."""
    for tensor in parameter.tensors:
        name = tensor.name[1:] if tensor.name.startswith("^") else family.names.prefixes[0] + tensor.name
        yield name, to_file(values[tensor.index], tensor).to(dtype).contiguous()


def to_file(values: Tensor, tensor: FileTensor) -> Tensor:
    """Our layout → the file's: the inverse of `source.from_file`."""
    values = tensor.rows_to_file(values - tensor.offset if tensor.offset else values)
    return values.mT if tensor.transposed else values


def _write_shards(folder: Path, tensors: Iterator[tuple[str, Tensor]]) -> None:
    shards: list[dict[str, int]] = []
    held: dict[str, Tensor] = {}

    def write() -> None:
        save_tensors(held, folder / f"part-{len(shards)}")
        shards.append({name: tensor.nbytes for name, tensor in held.items()})
        held.clear()

    for name, tensor in tensors:
        if held and sum(held_tensor.nbytes for held_tensor in held.values()) + tensor.nbytes > SHARD:
            write()
        held[name] = tensor.clone()
    write()
    if len(shards) == 1:
        (folder / "part-0").rename(folder / WEIGHTS)
        return
    names = [f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors" for number in range(len(shards))]
    for number, name in enumerate(names):
        (folder / f"part-{number}").rename(folder / name)
    index = {
        "metadata": {"total_size": sum(sum(shard.values()) for shard in shards)},
        "weight_map": {tensor: name for shard, name in zip(shards, names, strict=True) for tensor in shard},
    }
    _write_json(folder / INDEX, index)


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a safetensors file. Raises OSError with an errno, such as a full disk, like other files."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(dict(tensors), path, metadata={"format": "pt"})
    except SafetensorError as error:
        code = re.search(r"(?:os error|code:) (\d+)", str(error))
        number = int(code[1]) if code else errno.EIO
        raise OSError(number, os.strerror(number), str(path)) from error
    usual_mode(path)


def _write_json(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
