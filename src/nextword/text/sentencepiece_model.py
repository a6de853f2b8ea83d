"""Reads the relevant fields of a SentencePiece `tokenizer.model` (a protocol buffer).

Field numbers are those of sentencepiece_model.proto: ModelProto.pieces = 1 (piece = 1, score = 2,
type = 3), trainer_spec = 2 (model_type = 3, treat_whitespace_as_suffix = 24, bos_id = 41, eos_id = 42),
normalizer_spec = 3 (precompiled_charsmap = 2, add_dummy_prefix = 3, remove_extra_whitespaces = 4,
escape_whitespaces = 5).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from ..base import UsageError
from .vocab_engines import PieceType, SentencePieceVocab

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_UNIGRAM, _BPE = 1, 2
_MAX_PIECES = 1 << 21


@dataclass(frozen=True)
class SentencePieceModel:
    """A vocabulary with its bos and eos ids (None if missing)."""

    pieces: SentencePieceVocab
    bos: int | None
    eos: int | None


def read_sentencepiece(data: bytes, where: object) -> SentencePieceModel:
    """Parse a `tokenizer.model`. Raises UsageError if it is invalid or of an unsupported kind."""
    try:
        return _read(memoryview(data), where)
    except (struct.error, IndexError, ValueError) as problem:
        if isinstance(problem, UsageError):
            raise
        raise UsageError(f"{where} is not a valid SentencePiece model: it is truncated or of another kind") from None


def _read(data: memoryview, where: object) -> SentencePieceModel:
    pieces: list[tuple[str, float, int]] = []
    trainer: dict[int, int | memoryview] = {}
    normalizer: dict[int, int | memoryview] = {}
    for number, value in _fields(data):
        if number == 1:
            pieces.append(_piece(_message(value)))
            if len(pieces) > _MAX_PIECES:
                raise UsageError(f"{where}: it claims more than {_MAX_PIECES} pieces")
        elif number == 2:
            trainer = dict(_fields(_message(value)))
        elif number == 3:
            normalizer = dict(_fields(_message(value)))
    kind = trainer.get(3, _UNIGRAM)
    if not pieces or kind not in (_UNIGRAM, _BPE):
        raise UsageError(f"{where}: only SentencePiece models of kind BPE and unigram are supported")
    if trainer.get(24, 0) or not normalizer.get(5, 1):
        raise UsageError(
            f"{where}: SentencePiece models that write spaces after words, or not at all, are not supported"
        )
    tokens, scores, types = zip(*pieces, strict=True)
    return SentencePieceModel(
        SentencePieceVocab(
            tokens,
            scores,
            types,
            unigram=kind == _UNIGRAM,
            prefix_space=bool(normalizer.get(3, 1)),
            squeezes_spaces=bool(normalizer.get(4, 1)),
            charsmap=bytes(_message(normalizer.get(2, memoryview(b"")))),
        ),
        bos=_id(trainer.get(41, 1), len(tokens)),
        eos=_id(trainer.get(42, 2), len(tokens)),
    )


def _piece(data: memoryview) -> tuple[str, float, int]:
    text, score, kind = "", 0.0, int(PieceType.NORMAL)
    for number, value in _fields(data):
        if number == 1:
            text = str(_message(value), "utf-8")
        elif number == 2:
            score = struct.unpack("<f", _message(value))[0]
        elif number == 3 and isinstance(value, int):
            kind = value
    return text, score, kind


def _id(value: int | memoryview, count: int) -> int | None:
    return value if isinstance(value, int) and 0 <= value < count else None  # -1 is read as 2^64 - 1


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number where bytes are expected")
    return value


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """The fields of a message: varints as int, everything else as bytes."""
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        wire = tag & 7
        if wire == _VARINT:
            value, position = _varint(data, position)
            yield tag >> 3, value
            continue
        if wire == _BYTES:
            length, position = _varint(data, position)
        else:
            length = {_FIXED64: 8, _FIXED32: 4}.get(wire, -1)
        if length < 0 or position + length > len(data):
            raise ValueError("a field reaches beyond its message")
        yield tag >> 3, data[position : position + length]
        position += length


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
