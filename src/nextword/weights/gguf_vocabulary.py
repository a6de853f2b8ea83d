"""A tokenizer → GGUF's `tokenizer.ggml.*`, if llama.cpp can split text the same way."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from ..base import UsageError
from ..text import Tokenizer
from ..text.pretokenize import rule_name
from ..text.vocab_engines import PieceType

_FOLDER = "Write a Hugging Face folder instead: a name without .gguf"
_NO_RULE = "gpt-2"  # for a vocabulary without merges, where the split does not matter
_NAMES = {"eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}  # GGUF's, transformers'


@dataclass(frozen=True)
class Vocabulary:
    """A byte-level BPE vocabulary in llama.cpp's terms."""

    rule: str  # tokenizer.ggml.pre
    tokens: list[str]
    types: list[int]
    merges: list[str]
    special: dict[str, int]  # "eos" → its id
    adds_bos: bool
    chat_template: str | None

    def add_to(self, writer: Any) -> None:
        """Add it to the metadata of a gguf.GGUFWriter."""
        from gguf import GGUFValueType

        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(self.rule)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        writer.add_key_value("tokenizer.ggml.merges", self.merges, GGUFValueType.ARRAY)
        for name, id in self.special.items():
            writer.add_uint32(f"tokenizer.ggml.{name}_token_id", id)
        writer.add_add_bos_token(self.adds_bos)
        if self.chat_template:
            writer.add_chat_template(self.chat_template)


def vocabulary_of(tokenizer: Tokenizer, count: int) -> Vocabulary:
    """The vocabulary of `tokenizer` for a model of `count` ids; ids without a token are written as unused.

    Raises UsageError if llama.cpp cannot split text as the tokenizer does.
    """
    data: dict[str, Any] = json.loads(tokenizer.to_json())
    if tokenizer.vocabulary > count:
        raise UsageError(f"the tokenizer has {tokenizer.vocabulary} tokens, but the model has {count}")
    rule, merges = _rule(data), data["model"].get("merges", [])
    added = {token["id"] for token in data.get("added_tokens", [])}
    by_id = {number: word for word, number in data["model"]["vocab"].items()}
    by_id |= {token["id"]: token["content"] for token in data.get("added_tokens", [])}

    def type_of(number: int) -> PieceType:
        if number in tokenizer.special.control:
            return PieceType.CONTROL
        if number in added:
            return PieceType.USER_DEFINED
        return PieceType.NORMAL if number in by_id else PieceType.UNUSED

    return Vocabulary(
        rule=rule,
        tokens=[by_id.get(number, f"[PAD{number}]") for number in range(count)],
        types=[int(type_of(number)) for number in range(count)],
        merges=[pair if isinstance(pair, str) else " ".join(pair) for pair in merges],
        special=_special(tokenizer),
        adds_bos=tokenizer.adds_bos,
        chat_template=tokenizer.chat_template,
    )


def _rule(data: dict[str, Any]) -> str:
    """llama.cpp's name of a tokenizer.json's pre-tokenizer.

    An NFC normalizer (Qwen's) is accepted: llama.cpp ignores it in all such models.
    """
    model, cutting = data["model"], data.get("pre_tokenizer")
    plain = (data.get("normalizer") or {"type": "NFC"})["type"] == "NFC"
    if model.get("type") != "BPE" or not plain or "ByteLevel" not in json.dumps(cutting):
        raise UsageError(f"llama.cpp does not support this kind of tokenizer, only bpe and bytes. {_FOLDER}")
    rule = rule_name(cutting, bool(model.get("ignore_merges"))) if model.get("merges") else _NO_RULE
    if rule is None:
        raise UsageError(f"llama.cpp has no name for this tokenizer's pre-tokenizer. {_FOLDER}")
    return rule


def _special(tokenizer: Tokenizer) -> dict[str, int]:
    texts = tokenizer.special.texts
    ids = {ours: tokenizer.token_id(texts[theirs]) for ours, theirs in _NAMES.items() if theirs in texts}
    if ids.get("eos") is None and tokenizer.stop_ids:
        ids["eos"] = min(tokenizer.stop_ids)
    return {name: id for name, id in ({"bos": tokenizer.bos_id} | ids).items() if id is not None}
