"""A tokenizer from the metadata of a GGUF file (keys `tokenizer.ggml.*`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import repeat
from operator import contains
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..base import UsageError
from .byte_decoding import ByteDecoding, byte_level, sentencepiece
from .errors import as_usage_error
from .pretokenize import BEGINS_WITH_BOS, known_or_default
from .tokenizer import SpecialTokens, Tokenizer
from .vocab_engines import (
    ByteLevelVocab,
    PieceType,
    SentencePieceVocab,
    add_special,
    of_type,
    sentencepiece_engine,
    special_tokens,
    split_merges,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Engine

# Control tokens that end a text or a turn in every vocabulary that has them.
ENDS = frozenset(
    ("<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<end_of_turn>", "<|end|>")
)
_KINDS = ("gpt2", "llama", "gemma4", "t5")


def tokenizer_from_gguf(metadata: Mapping[str, Any], path: Path | str = "the GGUF file") -> Tokenizer:
    """Build the tokenizer a GGUF file describes; `path` names the file in messages.

    Raises UsageError if the file has none, one of an unknown kind, or an inconsistent one.
    Warns if the pre-tokenizer is unknown.
    """
    facts = _Facts(metadata, path)
    kind = facts.text("model")
    if kind not in _KINDS:
        raise UsageError(f"{path}: its tokenizer is of kind {kind!r}; known kinds are {', '.join(_KINDS)}")
    tokens = facts.strings("tokens")
    if not tokens:
        raise UsageError(f"{path}: it holds no vocabulary (tokenizer.ggml.tokens)")
    types = _types(facts, len(tokens))
    if kind == "gpt2":
        pre = known_or_default(facts.text("pre", "default"), path)
        engine: Engine | ByteLevelVocab = ByteLevelVocab(tokens, types, _merges(facts), pre)
        decoding = ByteDecoding(byte_level)
    else:
        pieces = _pieces(facts, tokens, types)
        engine = as_usage_error(path, lambda: _sentencepiece(pieces, tokens, types))
        decoding = ByteDecoding(sentencepiece, strips_space=pieces.prefix_space)
    special = _special(facts, tokens, types)
    return Tokenizer(engine, decoding, special, _templates(metadata), str(path), tokens)


class _Facts:
    """Typed look-ups under `tokenizer.ggml.`; a value of the wrong type is a UsageError."""

    def __init__(self, metadata: Mapping[str, Any], path: Path | str) -> None:
        self.metadata = metadata
        self.path = path

    def _get(self, key: str, kind: type, default: Any) -> Any:
        value = self.metadata.get(f"tokenizer.ggml.{key}", default)
        if value is not default and type(value) is not kind:
            raise UsageError(f"{self.path}: tokenizer.ggml.{key} is a {type(value).__name__}, not a {kind.__name__}")
        return value

    def text(self, key: str, default: str = "") -> str:
        value: str = self._get(key, str, default)
        return value

    def flag(self, key: str, default: bool) -> bool:
        value: bool = self._get(key, bool, default)
        return value

    def strings(self, key: str) -> list[str]:
        return self.items(key, str)

    def integers(self, key: str, count: int) -> list[int]:
        return self.items(key, int, count)

    def numbers(self, key: str, count: int) -> list[float]:
        return self.items(key, float, count)

    def items(self, key: str, kind: type, count: int | None = None) -> list[Any]:
        values: list[Any] = self._get(key, list, [])
        if values and set(map(type, values)) != {kind}:
            raise UsageError(f"{self.path}: tokenizer.ggml.{key} is not a list of {kind.__name__} only")
        if values and count is not None and len(values) != count:
            raise UsageError(f"{self.path}: tokenizer.ggml.{key} has {len(values)} items for {count} tokens")
        return values

    def id(self, key: str, vocabulary: int, default: int | None = None) -> int | None:
        id: int | None = self._get(f"{key}_token_id", int, default)
        if id is not None and not 0 <= id < vocabulary:
            raise UsageError(f"{self.path}: {key}_token_id is {id}, but the vocabulary has {vocabulary} tokens")
        return id


def _types(facts: _Facts, count: int) -> list[int]:
    """The type of each token; bos and eos are control tokens, even if an old file says otherwise."""
    types = list(facts.integers("token_type", count)) or [int(PieceType.NORMAL)] * count
    for name in ("bos", "eos", "eot", "eom"):
        id = facts.id(name, count)
        if id is not None:
            types[id] = PieceType.CONTROL
    return types


def _sentencepiece(pieces: SentencePieceVocab, tokens: list[str], types: Sequence[int]) -> Engine:
    engine = sentencepiece_engine(pieces)
    add_special(engine, special_tokens(tokens, types))
    return engine


def _merges(facts: _Facts) -> list[str]:
    """Merges as "left right"."""
    merges = facts.strings("merges")
    # much faster than counting the spaces of each merge
    if "\n".join(merges).count(" ") != len(merges) or not all(map(contains, merges, repeat(" "))):
        number = next(number for number, merge in enumerate(merges) if merge.count(" ") != 1)
        raise UsageError(f"{facts.path}: merge {number} of its tokenizer is not two tokens with a space between")
    return merges


def _pieces(facts: _Facts, tokens: list[str], types: Sequence[int]) -> SentencePieceVocab:
    gemma = str(facts.metadata.get("general.architecture", "")).startswith("gemma")
    if gemma:  # such files have runs of spaces literally, while normalized text has ▁
        tokens = ["\u2581" * len(token) if token and not token.strip(" ") else token for token in tokens]
    unigram = facts.text("model") == "t5"
    scores = facts.numbers("scores", len(tokens))
    if not scores and unigram:
        raise UsageError(f"{facts.path}: its unigram tokenizer has no scores")
    return SentencePieceVocab(
        tokens=tokens,
        scores=scores or [-float(id) for id in range(len(tokens))],
        types=types,
        unigram=unigram,
        prefix_space=facts.flag("add_space_prefix", not gemma),
        squeezes_spaces=facts.flag("remove_extra_whitespaces", False),
        charsmap=_charsmap(facts),
        merges_by_position=gemma,
        merges=split_merges(_merges(facts)) or None,
    )


def _charsmap(facts: _Facts) -> bytes:
    values = facts.items("precompiled_charsmap", int)
    if any(not -128 <= value <= 255 for value in values):
        raise UsageError(f"{facts.path}: tokenizer.ggml.precompiled_charsmap holds more than bytes")
    return bytes(value & 0xFF for value in values)


def _special(facts: _Facts, tokens: list[str], types: Sequence[int]) -> SpecialTokens:
    count = len(tokens)
    sentencepiece_kind = facts.text("model") != "gpt2"
    control = frozenset(of_type(types, PieceType.CONTROL))
    default_bos, default_eos = (1, 2) if sentencepiece_kind and {1, 2} <= control else (None, None)
    bos = facts.id("bos", count, default_bos)
    named = {name: facts.id(name, count) for name in ("eot", "eom")}
    named |= {"eos": facts.id("eos", count, default_eos)}
    stop = {id for id in named.values() if id is not None}
    stop |= {id for id in control if tokens[id] in ENDS}
    texts = {"bos_token": bos, "eos_token": named["eos"], "unk_token": facts.id("unknown", count)}
    texts["pad_token"] = facts.id("padding", count)
    begins = sentencepiece_kind or facts.text("pre") in BEGINS_WITH_BOS
    return SpecialTokens(
        control=control,
        stop=frozenset(stop),
        bos=bos,
        adds_bos=facts.flag("add_bos_token", begins) and bos is not None,
        texts={name: tokens[id] for name, id in texts.items() if id is not None},
    )


def _templates(metadata: Mapping[str, Any]) -> dict[str, str]:
    key = "tokenizer.chat_template"
    found = {name.removeprefix(key + "."): text for name, text in metadata.items() if name.startswith(key + ".")}
    found["default"] = metadata.get(key)
    return {name: text for name, text in found.items() if isinstance(text, str)}
