"""A model in memory → a GGUF file, in llama.cpp's conventions."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..base import RunError, UsageError
from ..models import Model
from ..spec import ModelSpec
from ..text import Tokenizer
from .conversion import as_stored
from .families import family_of
from .families import gguf as names

DTYPES = ("float32", "float16", "bfloat16", "q8_0")
_FILE_TYPES = {"float32": 0, "float16": 1, "q8_0": 7, "bfloat16": 32}  # llama_ftype
_BLOCK = 32  # numbers that share a scale in q8_0
_SPLIT = "dbrx"  # llama.cpp's name of the rule by which Llama 3 cuts text, every token made by merges
_ARCHITECTURES = {"llama": "llama", "qwen3": "qwen3"}


def write_gguf(
    out: Path | str, model: Model[Any], tokenizer: Tokenizer, dtype: str = "float32", force: bool = False
) -> Path:
    """Write a Llama or Qwen3 layout and its byte-level BPE tokenizer as `out`, whole or not at all.

    `dtype` is of the matrices (float32, float16, bfloat16, q8_0); norms stay float32. Raises UsageError for models and
    tokenizers that the format has no place for, RunError where the file cannot be written.
    """
    import gguf

    out, spec = Path(out), model.spec
    if dtype not in DTYPES:
        raise UsageError(f"dtype {dtype!r} cannot be written as GGUF. Known: {', '.join(DTYPES)}")
    if out.exists() and not force:
        raise UsageError(f"{out} is already there. Choose another name, or replace it with --force")
    architecture = _architecture(spec)
    words = _words(tokenizer)
    out.parent.mkdir(parents=True, exist_ok=True)
    descriptor, part = tempfile.mkstemp(dir=out.parent, prefix=f".{out.name}.", suffix=".part")
    os.close(descriptor)
    writer = gguf.GGUFWriter(part, architecture)
    try:
        _describe(writer, spec, dtype)
        _add_tokenizer(writer, words, tokenizer)
        for name, values, kind in _tensors(model, architecture, dtype):
            writer.add_tensor(name, values, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        os.replace(part, out)
    except OSError as error:
        raise RunError(f"{out} could not be written ({(error.strerror or str(error)).lower()})") from error
    finally:
        writer.close()
        with suppress(FileNotFoundError):
            os.unlink(part)
    return out


def _architecture(spec: ModelSpec) -> str:
    if spec.kind != "transformer":
        raise UsageError(f"GGUF has no place for an {spec.kind}. Write a folder instead")
    family = family_of(spec).model_type
    if family not in _ARCHITECTURES or spec.rope.scaling != "none":
        raise UsageError(f"a model of {family}'s layout is not written as GGUF yet. Write a folder instead")
    return _ARCHITECTURES[family]


def _words(tokenizer: Tokenizer) -> dict[str, Any]:
    """tokenizer.json, of which tokens and merges are taken. Refuses what llama.cpp cannot cut as it does."""
    data: dict[str, Any] = json.loads(tokenizer.to_json())
    model = data["model"]
    byte_level = "ByteLevel" in json.dumps(data.get("pre_tokenizer"))
    if model.get("type") != "BPE" or not model.get("merges") or not byte_level:
        raise UsageError("GGUF takes the byte-level BPE tokenizers that nextword makes. Write a folder instead")
    return data


def _describe(writer: Any, spec: ModelSpec, dtype: str) -> None:
    writer.add_context_length(spec.context)
    writer.add_embedding_length(spec.width)
    writer.add_block_count(spec.layers)
    writer.add_feed_forward_length(spec.mlp_width)
    writer.add_head_count(spec.heads)
    writer.add_head_count_kv(spec.kv_heads)
    writer.add_key_length(spec.head_width)
    writer.add_value_length(spec.head_width)
    writer.add_rope_dimension_count(spec.head_width)
    writer.add_rope_freq_base(spec.rope.theta)
    writer.add_layer_norm_rms_eps(spec.norm_eps)
    writer.add_vocab_size(spec.vocabulary)
    writer.add_file_type(_FILE_TYPES[dtype])


def _add_tokenizer(writer: Any, data: dict[str, Any], tokenizer: Tokenizer) -> None:
    import gguf

    added = {token["id"]: token for token in data.get("added_tokens", [])}
    by_id = {number: word for word, number in data["model"]["vocab"].items()}
    by_id |= {number: token["content"] for number, token in added.items()}
    count = tokenizer.vocabulary
    kinds = gguf.TokenType
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_SPLIT)
    writer.add_token_list([by_id.get(number, f"[unused{number}]") for number in range(count)])
    writer.add_token_types(
        [
            (kinds.CONTROL if added[number].get("special") else kinds.USER_DEFINED)
            if number in added
            else kinds.NORMAL
            if number in by_id
            else kinds.UNUSED
            for number in range(count)
        ]
    )
    merges = data["model"]["merges"]
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in merges])
    if tokenizer.bos_id is not None:
        writer.add_bos_token_id(tokenizer.bos_id)
    if tokenizer.stop_ids:
        writer.add_eos_token_id(min(tokenizer.stop_ids))
    writer.add_add_bos_token(tokenizer.adds_bos)


def _tensors(model: Model[Any], architecture: str, dtype: str) -> Iterator[tuple[str, np.ndarray, Any]]:
    """Name, numbers and type of every tensor as llama.cpp stores it."""
    import gguf

    kinds = gguf.GGMLQuantizationType
    wanted = {"float32": kinds.F32, "float16": kinds.F16, "bfloat16": kinds.BF16, "q8_0": kinds.Q8_0}[dtype]
    parameters = dict(model.named_parameters())
    for entry in names.entries(model.spec, architecture):
        whole = parameters[entry.ours].detach().to(device="cpu", dtype=torch.float32)
        row = 0
        for piece in entry.pieces:
            values = as_stored(whole[row : row + piece.shape[0]], piece).contiguous().numpy()
            row += piece.shape[0]
            kind = kinds.F32 if values.ndim < 2 else wanted
            if kind == kinds.Q8_0 and values.shape[-1] % _BLOCK:
                kind = kinds.F16
            yield piece.name, gguf.quants.quantize(values, kind), kind
