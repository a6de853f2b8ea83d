"""A place that weights are read from: what every kind of file offers the loader."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from .. import native
from ..base import UsageError
from ..native.matmul import PackedMatrix, QuantType
from ..spec import ModelSpec
from . import rope_factors
from .families import GGUF_ARCHITECTURES, Entry, Family, Piece, family
from .families import gguf as gguf_names

if TYPE_CHECKING:
    from ..text import Tokenizer
    from .gguf import GGUFFile

# GGUF block types that the compiled kernels compute with as they are
_NATIVE: dict[str, QuantType] = {"q4_0": "q4_0", "q4_1": "q4_1", "q8_0": "q8_0"}
_FLOAT_KINDS = ("f32", "f16", "bf16", "f64")
# what follows from the metadata: old converters stored the plain rotary frequencies of each layer
_DERIVED = r"blk\.\d+\.attn_rot_embd(\.weight)?"


class Source(Protocol):
    """Weights somewhere: the spec they fill and a way to read each piece."""

    path: Path
    spec: ModelSpec
    family: Family
    entries: list[Entry]
    config: dict[str, Any]  # config.json, or the metadata of a GGUF

    def kind(self, piece: Piece) -> str:
        """How the piece is stored: "f32", "bf16", "q4_1", ..."""

    def shape(self, piece: Piece) -> tuple[int, ...] | None:
        """Its shape in our layout, or None where the file has no such tensor."""

    def read(self, piece: Piece) -> Tensor:
        """The piece as a float tensor in our layout and row order."""

    def blocks(self, piece: Piece) -> np.ndarray:
        """The piece's quantized blocks, uint8 (rows, bytes a row), in our row order."""

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that came with the weights."""


def is_quantized(kind: str) -> bool:
    """Whether a stored kind holds blocks rather than floating-point numbers."""
    return kind not in _FLOAT_KINDS


def native_kind(kind: str) -> QuantType | None:
    """The kernels' name of a stored kind, or None for one they cannot compute with."""
    return _NATIVE.get(kind)


def check_entries(source: Source, names_in_file: int) -> None:
    """Compare every tensor's name and shape with the spec, before anything is read."""
    pieces = [piece for entry in source.entries for piece in entry.pieces]
    shapes = {piece.name: source.shape(piece) for piece in pieces}
    missing = [piece.name for piece in pieces if shapes[piece.name] is None]
    if missing:
        raise UsageError(
            f"{source.path}: {_some(missing, len(pieces))} missing ({names_in_file} tensors present)."
            " The download may be incomplete, or the config may belong to another model"
        )
    wrong = [piece for piece in pieces if shapes[piece.name] != piece.shape]
    if wrong:
        first = wrong[0]
        raise UsageError(
            f"{source.path}: {_some([piece.name for piece in wrong], len(pieces))} not of the size that its"
            f" configuration says: {first.name} is {shapes[first.name]}, not {first.shape}."
            " The two do not belong together"
        )


def check_unread(path: Path, read: Iterable[str], names: Iterable[str], ignored: str, hint: str = "") -> None:
    """Refuse tensors that no entry reads: without them it would be another model.

    `ignored` is a regular expression of names that carry nothing of their own.
    """
    known, present = set(read), list(names)
    unread = [name for name in present if name not in known and not re.fullmatch(ignored, name)]
    if unread:
        raise UsageError(
            f"{path}: {_some(unread, len(present))} left over: its configuration has no place for them."
            f" Without them it would be another model{hint}"
        )


def _some(names: list[str], count: int) -> str:
    """3 of 290 tensors ('a', 'b', 'c') are, and the first few where there are more."""
    shown = ", ".join(map(repr, names[:3])) + (", ..." if len(names) > 3 else "")
    return f"{len(names)} of {count} tensors ({shown}) {'is' if len(names) == 1 else 'are'}"


def check_layers(path: Path, spec: ModelSpec, names_in_file: int) -> None:
    """Refuse a layer count that the file cannot hold, before any loop runs over layers."""
    if spec.layers > names_in_file:
        raise UsageError(f"{path}: its configuration says {spec.layers} layers, but it holds {names_in_file} tensors")


def arrange(tensor: Tensor, piece: Piece) -> Tensor:
    """A tensor as stored → our layout, row order and offset."""
    if piece.transposed:
        tensor = tensor.t()
    order = piece.row_order()
    if order is not None:
        tensor = tensor[torch.from_numpy(order)]
    return tensor.float() + piece.offset if piece.offset else tensor


class GGUFSource:
    """A GGUF file."""

    def __init__(self, path: Path) -> None:
        from ..plan.configs import spec_from_gguf_metadata
        from .gguf import GGUFFile

        self.path = path
        self.file: GGUFFile = GGUFFile.open(path)
        self.config = self.file.metadata
        architecture = str(self.config.get("general.architecture", ""))
        if architecture not in GGUF_ARCHITECTURES:
            raise UsageError(
                f"{path}: architecture {architecture!r} is not one nextword runs. Runs: {', '.join(GGUF_ARCHITECTURES)}"
            )
        tied = "output.weight" not in self.file.tensors
        self.spec = spec_from_gguf_metadata(self.config, tied=tied)
        check_layers(path, self.spec, len(self.file.tensors))
        self.family = family(GGUF_ARCHITECTURES[architecture])
        self.entries = gguf_names.entries(self.spec, architecture)
        check_entries(self, len(self.file.tensors))
        read = {piece.name for entry in self.entries for piece in entry.pieces} | {rope_factors.NAME}
        check_unread(path, read, self.file.tensors, _DERIVED, "; use the model's safetensors folder")
        if rope_factors.NAME in self.file.tensors:
            self.spec = self._stretched()

    def _stretched(self) -> ModelSpec:
        divisors = torch.from_numpy(self.file.float32(rope_factors.NAME)).flatten()
        rope = rope_factors.stretched(self.spec.rope, self.spec.head_width, divisors, self.path)
        return replace(self.spec, rope=rope)

    def kind(self, piece: Piece) -> str:
        return self.file.tensors[piece.name].kind.lower()

    def shape(self, piece: Piece) -> tuple[int, ...] | None:
        info = self.file.tensors.get(piece.name)
        return tuple(info.shape) if info else None

    def read(self, piece: Piece) -> Tensor:
        kind = native_kind(self.kind(piece))
        if kind is not None and len(piece.shape) == 2 and native.available():
            return PackedMatrix.pack(kind, self.blocks(piece), piece.shape[1]).dequantize()
        return arrange(torch.from_numpy(self.file.float32(piece.name)), piece)

    def blocks(self, piece: Piece) -> np.ndarray:
        raw = self.file.raw(piece.name)
        order = piece.row_order()
        return raw if order is None else raw[order]

    def tokenizer(self) -> Tokenizer:
        from ..text import tokenizer_from_gguf

        return tokenizer_from_gguf(self.config, self.path)
