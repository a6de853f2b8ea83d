"""Builds engines of the `tokenizers` library: byte-level BPE and SentencePiece."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

from .byte_decoding import to_byte_level
from .pretokenize import WHOLE_WORDS, pre_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Engine
    from tokenizers.models import Model


class PieceType(IntEnum):
    """The type of a token, with SentencePiece's numbers, which GGUF uses as well."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class SentencePieceVocab:
    """A SentencePiece vocabulary and its text normalization."""

    tokens: Sequence[str]
    scores: Sequence[float]
    types: Sequence[int]
    unigram: bool = False
    prefix_space: bool = True  # add a space before the text
    squeezes_spaces: bool = False  # collapse runs of spaces, strip the ends
    charsmap: bytes = b""  # compiled normalization rules
    merges_by_position: bool = False  # earlier tokens merge first, whatever their scores (Gemma)
    merges: Sequence[tuple[str, str]] | None = None  # None: implied by the vocabulary

    @property
    def unknown(self) -> int | None:
        """The id of the unknown token."""
        return next(iter(of_type(self.types, PieceType.UNKNOWN)), None)


class ByteLevelVocab:
    """A byte-level BPE vocabulary, with merges as GGUF has them: "left right".

    Building an engine takes longer than starting Python. `part` is ready at once, but only for one short text.
    """

    def __init__(self, tokens: Sequence[str], types: Sequence[int], merges: Sequence[str], pre: str) -> None:
        self.tokens, self.merges, self.pre = tokens, merges, pre
        self.special = special_tokens(tokens, types)

    def whole(self) -> Engine:
        """The engine of the whole vocabulary."""
        return self._engine(range(len(self.tokens)), self.merges)

    def part(self, text: str) -> Engine:
        """An engine that encodes `text` as the whole one does: BPE makes only tokens that the text contains."""
        shown = to_byte_level(text)
        ids = [id for id, token in enumerate(self.tokens) if token in shown]
        tokens = (self.tokens[id] for id in ids)
        possible = {f"{token[:cut]} {token[cut:]}" for token in tokens for cut in range(1, len(token))}
        merges = [merge for merge in self.merges if merge in possible]
        return self._engine(sorted({*ids, *self.special.control, *self.special.defined}), merges)

    def _engine(self, ids: Iterable[int], merges: Sequence[str]) -> Engine:
        vocabulary = {self.tokens[id]: id for id in ids}
        engine = byte_level_engine(vocabulary, split_merges(merges), self.pre, self.pre in WHOLE_WORDS)
        add_special(engine, self.special)
        return engine


def byte_level_engine(
    vocabulary: dict[str, int],
    merges: Iterable[tuple[str, str]],
    pre: str,
    whole_words: bool = False,
) -> Engine:
    """A byte-level BPE engine. `pre` names the pre-tokenizer."""
    from tokenizers import Tokenizer as Engine
    from tokenizers import decoders, models

    engine = Engine(models.BPE(vocab=vocabulary, merges=list(merges), ignore_merges=whole_words))
    engine.pre_tokenizer = pre_tokenizer(pre)
    engine.decoder = decoders.ByteLevel()
    return engine


def split_merges(merges: Sequence[str]) -> list[tuple[str, str]]:
    """The two tokens of each merge "left right"."""
    halves = " ".join(merges).split(" ") if merges else []  # much faster than splitting each
    return list(zip(halves[::2], halves[1::2], strict=True))


def sentencepiece_engine(pieces: SentencePieceVocab) -> Engine:
    """A SentencePiece engine: BPE with the merges its scores imply, or unigram."""
    from tokenizers import Regex, decoders, normalizers
    from tokenizers import Tokenizer as Engine

    engine = Engine(_unigram(pieces) if pieces.unigram else _bpe(pieces))
    steps: list[normalizers.Normalizer] = []
    if pieces.charsmap:
        steps.append(normalizers.Precompiled(pieces.charsmap))
    if pieces.squeezes_spaces:
        steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if pieces.prefix_space:
        steps.append(normalizers.Prepend("\u2581"))
    steps.append(normalizers.Replace(" ", "\u2581"))
    engine.normalizer = normalizers.Sequence(steps)
    decoding: list[decoders.Decoder] = [
        decoders.Replace("\u2581", " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
    ]
    if pieces.prefix_space:
        decoding.append(decoders.Strip(content=" ", left=1))
    engine.decoder = decoders.Sequence(decoding)
    return engine


class SpecialTexts(NamedTuple):
    """Control tokens, which text never matches, and user-defined ones, which it always does, by id."""

    control: dict[int, str]
    defined: dict[int, str]


def add_special(engine: Engine, tokens: SpecialTexts) -> None:
    """Register control and user-defined tokens."""
    from tokenizers import AddedToken

    control, defined = tokens.control.values(), tokens.defined.values()
    engine.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in control])
    engine.add_tokens([AddedToken(token, normalized=False, special=False) for token in defined])


def special_tokens(tokens: Sequence[str], types: Sequence[int]) -> SpecialTexts:
    """The control and user-defined tokens of a vocabulary."""
    control = {id: tokens[id] for id in of_type(types, PieceType.CONTROL) if tokens[id]}
    # Runs of spaces result from merging: in normalized text they are ▁, not the literal spaces of their name.
    defined = {id: tokens[id] for id in of_type(types, PieceType.USER_DEFINED) if tokens[id].strip(" \u2581")}
    return SpecialTexts(control, defined)


def of_type(types: Sequence[int], wanted: PieceType) -> list[int]:
    """Ids of the tokens of a type."""
    number = int(wanted)  # comparing with an enum's member is ten times slower
    ids: list[int] = []
    with suppress(ValueError):  # no more of them
        while True:
            ids.append(types.index(number, ids[-1] + 1 if ids else 0))  # most tokens are of another type
    return ids


def _bpe(pieces: SentencePieceVocab) -> Model:
    from tokenizers import models

    vocabulary = {token: id for id, token in enumerate(pieces.tokens)}
    return models.BPE(
        vocab=vocabulary,
        merges=list(pieces.merges) if pieces.merges is not None else implied_merges(pieces),
        unk_token=None if pieces.unknown is None else pieces.tokens[pieces.unknown],
        fuse_unk=True,
        byte_fallback=PieceType.BYTE in pieces.types,
    )


def _unigram(pieces: SentencePieceVocab) -> Model:
    from tokenizers import models

    return models.Unigram(
        list(zip(pieces.tokens, pieces.scores, strict=True)),
        unk_id=pieces.unknown,
        byte_fallback=PieceType.BYTE in pieces.types,
    )


def implied_merges(pieces: SentencePieceVocab) -> list[tuple[str, str]]:
    """The merges implied by a SentencePiece BPE vocabulary: every split of a piece into two pieces.

    A piece with a higher score merges first; among the splits of one piece, the longer left half, as in
    transformers. Pieces that text cannot produce (control, byte, unknown) are excluded.
    """
    merged = {int(PieceType.NORMAL), int(PieceType.USER_DEFINED)}
    ids = [id for id, type in enumerate(pieces.types) if type in merged]
    tokens, scores = pieces.tokens, pieces.scores
    known = {tokens[id] for id in ids}
    cuts = [
        (id, cut)
        for id in ids
        for cut in range(len(tokens[id]) - 1, 0, -1)
        if tokens[id][:cut] in known and tokens[id][cut:] in known
    ]
    if not pieces.merges_by_position:
        cuts.sort(key=lambda at: (-scores[at[0]], -at[1], at[1] - len(tokens[at[0]])))
    return [(tokens[id][:cut], tokens[id][cut:]) for id, cut in cuts]
