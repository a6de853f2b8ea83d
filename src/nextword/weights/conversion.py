"""Converts weights, in files or in memory, to a Hugging Face folder or a GGUF file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..base import UsageError
from ..families import Family, FileTensor, family_of
from ..spec import ModelSpec
from ..text import Tokenizer
from . import floats
from .loading import open_source
from .model_folder import CONFIG, INDEX, WEIGHTS, new_folder
from .quantizing import MIXES
from .safetensors_file import write_safetensors
from .source import SourceArrays

Floats = NDArray[np.float32]
Progress = Callable[[float], None]  # called with the share done

SHARD = 5_000_000_000  # bytes; transformers' own limit for one file
DTYPES = ("float32", "bfloat16", "float16")  # of a folder; a GGUF file may also be one of MIXES


@dataclass(frozen=True)
class ModelData:
    """A model to write. `arrays` are its parameters by our names; a tied head is not among them."""

    spec: ModelSpec
    arrays: Mapping[str, Floats]
    tokenizer: Tokenizer


def convert(
    path: Path | str,
    out: Path | str,
    dtype: str = "float32",
    force: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Write the model at `path` (GGUF file or folder) as `out`; see `write_data`.

    Quantized weights are dequantized, exactly with float32.
    """
    check_dtype(Path(out), dtype)
    source = open_source(Path(path))
    data = ModelData(source.spec, SourceArrays(source), source.tokenizer())
    return write_data(out, data, dtype, force, source.family, progress)


def write_data(
    out: Path | str,
    model: ModelData,
    dtype: str = "float32",
    force: bool = False,
    family: Family | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write a model as `out`: a GGUF file if it ends in .gguf, otherwise a folder that transformers opens.

    A folder is of `family`, by default the first that can express the model's spec. `out` is written completely or not
    at all; in an existing folder only the model's files are replaced. Raises UsageError if `out` exists and `force` is
    not set, if the format has no such `dtype`, or if it cannot express the model; RunError if it cannot be written, or
    another process is writing it.
    """
    out, advance = Path(out), progress or (lambda share: None)
    check_dtype(out, dtype)
    if is_gguf(out):
        from .gguf_writing import write_gguf

        return write_gguf(out, model, dtype, force, advance)
    family = family or family_of(model.spec)
    tensors = _tensors(model, family, dtype, advance)
    with new_folder(out, force) as working:
        _write_folder(working, model, family, tensors, dtype)
    return out


def is_gguf(out: Path) -> bool:
    """Whether `out` is the name of a GGUF file."""
    return out.suffix.lower() == ".gguf"


def check_dtype(out: Path, name: str) -> None:
    """Raise UsageError for a type that the format of `out` does not have."""
    known = (*DTYPES, *MIXES) if is_gguf(out) else DTYPES
    if name not in known:
        hint = f" {name} is only for GGUF files; use an OUT that ends in .gguf" if name in MIXES else ""
        raise UsageError(f"dtype {name!r} cannot be written as {out}. Known: {', '.join(known)}.{hint}".rstrip("."))


def _write_folder(
    folder: Path, model: ModelData, family: Family, tensors: Iterator[tuple[str, NDArray[Any]]], dtype: str
) -> None:
    """Write config, tokenizer and weights of a model into an existing folder."""
    spec, tokenizer = model.spec, model.tokenizer
    config = {"architectures": [family.architecture], "dtype": dtype}
    special = {"bos_token_id": tokenizer.bos_id, "eos_token_id": sorted(tokenizer.stop_ids)}
    padding = tokenizer.special.texts.get("pad_token")
    pad = {"pad_token_id": None if padding is None else tokenizer.token_id(padding)}  # else transformers has a default
    _write_json(folder / CONFIG, config | family.config(spec) | special | pad)
    _write_json(folder / "generation_config.json", special)
    (folder / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
    _write_json(folder / "tokenizer_config.json", _tokenizer_config(tokenizer, spec))
    _write_shards(folder, tensors, dtype)


def _tokenizer_config(tokenizer: Tokenizer, spec: ModelSpec) -> dict[str, Any]:
    values: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": spec.context,
        "clean_up_tokenization_spaces": False,
        "add_bos_token": tokenizer.adds_bos,
        **tokenizer.special.texts,
    }
    return values | ({"chat_template": tokenizer.chat_template} if tokenizer.chat_template else {})


def _tensors(model: ModelData, family: Family, dtype: str, progress: Progress) -> Iterator[tuple[str, NDArray[Any]]]:
    """Every tensor under its name in transformers, one after the other, encoded in `dtype`."""
    parameters = family.names.parameters(model.spec)
    for done, parameter in enumerate(parameters):
        values = model.arrays[parameter.name]
        for tensor in parameter.tensors:
            name = tensor.name[1:] if tensor.name.startswith("^") else family.names.prefixes[0] + tensor.name
            yield name, floats.encode(to_file(values[tensor.index], tensor), dtype)
        progress((done + 1) / len(parameters))


def to_file(values: Floats, tensor: FileTensor) -> Floats:
    """Our layout → the file's: the inverse of `source.from_file`."""
    values = tensor.rows_to_file(values - np.float32(tensor.offset) if tensor.offset else values)
    return values.swapaxes(-1, -2) if tensor.transposed else values


def _write_shards(folder: Path, tensors: Iterator[tuple[str, NDArray[Any]]], dtype: str) -> None:
    shards: list[dict[str, int]] = []
    held: dict[str, NDArray[Any]] = {}

    def write() -> None:
        write_safetensors(folder / f"part-{len(shards)}", held, dtype)
        shards.append({name: values.nbytes for name, values in held.items()})
        held.clear()

    for name, values in tensors:
        if held and sum(array.nbytes for array in held.values()) + values.nbytes > SHARD:
            write()
        held[name] = values
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


def _write_json(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
