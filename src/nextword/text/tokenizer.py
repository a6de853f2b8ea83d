"""Tokenizer: text → ids → text, over the `tokenizers` library."""

from __future__ import annotations

import codecs
import re
import threading
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..base import UsageError
from .byte_decoding import ByteDecoding
from .errors import as_usage_error
from .vocab_engines import ByteLevelVocab

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Engine

_SHORT = 500  # characters; looking for the tokens of a longer first text saves little


@dataclass(frozen=True)
class SpecialTokens:
    """A model's special tokens, from its files.

    `control`: ids that text never encodes to and that decoding omits; `stop`: those that end a text;
    `texts`: their names in chat templates ("bos_token" → "<s>").
    """

    control: frozenset[int] = frozenset()
    stop: frozenset[int] = frozenset()
    bos: int | None = None
    adds_bos: bool = False
    texts: Mapping[str, str] = field(default_factory=dict)


class Tokenizer:
    """Encodes text to token ids and decodes them. Thread-safe."""

    def __init__(
        self,
        engine: Engine | ByteLevelVocab,
        byte_decoding: ByteDecoding,
        special: SpecialTokens,
        chat_templates: Mapping[str, str] | None = None,
        name: str = "the model",
        tokens: Sequence[str] = (),
    ) -> None:
        """`engine`: the library's, or the vocabulary to build it from when it is needed.

        `tokens`, in order of their ids, are only needed with a vocabulary, or if two ids have the same token.
        """
        self._source = engine
        self.name = name
        self.special = special
        self.chat_templates: Mapping[str, str] = chat_templates or {}
        self._verbatim = _verbatim(engine)
        entries = len(tokens) if isinstance(engine, ByteLevelVocab) else engine.get_vocab_size()
        self.vocabulary = max(entries, max(self._verbatim, default=-1) + 1, len(tokens))  # ids are below this
        self._tokens = tokens
        self._has_encoded = False
        self._lock = threading.Lock()  # encoding special tokens is a mode of the engine
        self._byte_decoding = byte_decoding
        self._unknown = self._unknown_ids()
        self._forbidden = special.control.difference(self._unknown)  # plain text must not encode to these
        self._bytes: dict[int, bytes] = {}
        self._spelled_out: dict[int, list[int]] = {}

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end a text or an answer."""
        return self.special.stop

    @property
    def bos_id(self) -> int | None:
        return self.special.bos

    @property
    def adds_bos(self) -> bool:
        """Whether the model expects `bos_id` before a text. The caller of `encode` adds it."""
        return self.special.adds_bos

    @property
    def chat_template(self) -> str | None:
        """The Jinja source of the (default) chat template."""
        return self.chat_templates.get("default")

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Ids of `text`, without a beginning-of-text token.

        Special tokens written in the text ("<|im_end|>") stay text, unless `special` is set, as it
        is for the output of a chat template. Raises UsageError if the text is not valid Unicode.
        """
        ids = self._encode(text, special)
        if special or self._forbidden.isdisjoint(ids):
            return ids
        parts = [part for id in ids for part in self._as_text(id)]
        # A run of unknown characters is one unknown token.
        return [id for number, id in enumerate(parts) if not [id] == self._unknown == parts[number - 1 : number]]

    def encode_batch(self, texts: Sequence[str]) -> list[NDArray[np.uint32]]:
        """`encode` for several texts, on all cores."""
        for text in texts:
            if not text.isascii():
                _check_unicode(text)

        def encode() -> tuple[array[int], list[int]]:
            ids, ends = array("I"), []
            with self._lock:
                self._engine.encode_special_tokens = True
                encodings = self._engine.encode_batch_fast(list(texts), add_special_tokens=False)
            for encoding in encodings:
                ids.fromlist(encoding.ids)
                ends.append(len(ids))
            return ids, ends

        found, ends = as_usage_error(self.name, encode, "its tokenizer cannot encode these texts")
        ids = np.split(np.frombuffer(found, np.uint32), ends[:-1]) if ends else []
        if not self._is_forbidden[np.frombuffer(found, np.uint32)].any():
            return ids
        return [np.array(self.encode(text), np.uint32) if self._is_forbidden[own].any() else own
                for text, own in zip(texts, ids, strict=True)]  # fmt: skip

    def encode_with_starts(self, text: str) -> tuple[list[int], list[int]]:
        """The ids of the output of a chat template, as `encode(text, special=True)`, and where each begins in it."""
        if not text.isascii():
            _check_unicode(text)

        def encode() -> tuple[list[int], list[int]]:
            with self._lock:
                self._engine.encode_special_tokens = False
                encoding = self._engine.encode(text, add_special_tokens=False)
            return encoding.ids, [start for start, _ in encoding.offsets]

        return as_usage_error(self.name, encode, "its tokenizer cannot encode this text")

    def decode(self, ids: Iterable[int], special: bool = False, continues: bool = False) -> str:
        """Text of `ids`. Invalid UTF-8 becomes U+FFFD; ids outside the vocabulary are ignored.

        Control tokens are omitted, unless `special` is set. `continues`: the text follows another, so keep
        a leading space, which a SentencePiece model would strip at the beginning of a text.
        """
        decoder = self.stream(special, continues)
        return "".join([decoder.push(id) for id in ids]) + decoder.flush()

    def stream(self, special: bool = False, continues: bool = True) -> StreamDecoder:
        """An incremental decoder, by default for tokens that follow a prompt.

        Its pieces together equal `decode(ids, special, continues)`.
        """
        return StreamDecoder(self, special, strips_space=self._byte_decoding.strips_space and not continues)

    def token_text(self, id: int) -> str:
        """One token as text for display: control tokens by name, partial characters as U+FFFD."""
        return self.token_bytes(id).decode(errors="replace")

    def token_bytes(self, id: int) -> bytes:
        """The bytes of a token; empty for an id outside the vocabulary."""
        known = self._bytes.get(id)
        if known is None:
            known = self._bytes[id] = self._find_bytes(id)
        return known

    def token_id(self, token: str) -> int | None:
        """The id of a token by its text in the vocabulary, such as "<|im_end|>"."""
        id: int | None = self._engine.token_to_id(token)
        return id

    @cached_property
    def _is_forbidden(self) -> NDArray[np.bool_]:
        return np.isin(np.arange(self.vocabulary), list(self._forbidden))

    @cached_property
    def control_names(self) -> re.Pattern[str] | None:
        """A pattern that finds names of control tokens ("<|im_end|>") in a text; None without control tokens."""
        names = sorted(filter(None, map(self.token_text, self.special.control)), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, names))) if names else None

    def to_json(self) -> str:
        """The text of a tokenizer.json, which the tokenizers library and transformers open.

        If the model expects a beginning-of-text token, the file's post-processor adds it.
        """
        from tokenizers import Tokenizer as Engine
        from tokenizers.processors import TemplateProcessing

        text: str = self._engine.to_str(pretty=False)
        bos = self.bos_id
        if bos is None or not self.adds_bos or self._engine.post_processor is not None:
            return text
        engine = Engine.from_str(text)
        name = engine.id_to_token(bos)
        engine.post_processor = TemplateProcessing(
            single=[name, "$A"], pair=[name, "$A", name, "$B"], special_tokens=[(name, bos)]
        )
        whole: str = engine.to_str(pretty=False)
        return whole

    @cached_property
    def _engine(self) -> Engine:
        source = self._source
        engine = as_usage_error(self.name, source.whole) if isinstance(source, ByteLevelVocab) else source
        engine.no_truncation()
        engine.no_padding()
        return engine

    def _engine_for(self, text: str) -> Engine:
        """An engine that encodes `text`: the whole one, but for a first short text, which should not wait for it."""
        is_first, self._has_encoded = not self._has_encoded, True
        if is_first and len(text) <= _SHORT and isinstance(self._source, ByteLevelVocab):
            return self._source.part(text)
        return self._engine

    def _unknown_ids(self) -> list[int]:
        """The id of the unknown token, if there is one."""
        name = self.special.texts.get("unk_token")
        if name is None:
            return []
        known = [id for id, token in self._verbatim.items() if token == name]
        id = known[0] if known else self.token_id(name)
        return [] if id is None else [id]

    def _find_bytes(self, id: int) -> bytes:
        if id in self._verbatim:
            return self._verbatim[id].encode()
        if not 0 <= id < self.vocabulary:
            return b""
        token = self._tokens[id] if id < len(self._tokens) else self._engine.id_to_token(id)
        if token is None:
            return b""
        return token.encode() if id in self.special.control else self._byte_decoding.to_bytes(token)

    def _encode(self, text: str, special: bool) -> list[int]:
        def encode() -> list[int]:
            with self._lock:
                engine = self._engine_for(text)
                if engine.encode_special_tokens is special:
                    engine.encode_special_tokens = not special
                ids: list[int] = engine.encode(text, add_special_tokens=False).ids
            return ids

        if not text.isascii():
            _check_unicode(text)
        return as_usage_error(self.name, encode, "its tokenizer cannot encode this text")

    def _as_text(self, id: int) -> list[int]:
        """A control token that plain text encoded to (through the vocabulary), in smaller tokens."""
        if id not in self._forbidden:
            return [id]
        if id not in self._spelled_out:
            token = self._engine.id_to_token(id) or ""
            parts = [self._small(character) for character in token]
            self._spelled_out[id] = [part for group in parts for part in group]
        return self._spelled_out[id]

    def _small(self, character: str) -> list[int]:
        """A character as a single token, as byte tokens, or as the unknown token."""
        id = self.token_id(character)
        if id is not None and id not in self._forbidden:
            return [id]
        ids = [self.token_id(f"<0x{byte:02X}>") for byte in character.encode()]
        return [id for id in ids if id is not None] or self._unknown


def begun(tokenizer: Tokenizer, ids: Sequence[int]) -> list[int]:
    """`ids` after the beginning-of-text token, if the model expects it and they do not have it yet."""
    bos = tokenizer.bos_id
    return [bos, *ids] if tokenizer.adds_bos and bos is not None and bos not in ids[:1] else list(ids)


def _verbatim(source: Engine | ByteLevelVocab) -> dict[int, str]:
    """Tokens that stand for their own text, by id: control and user-defined ones."""
    if isinstance(source, ByteLevelVocab):
        return source.special.control | source.special.defined
    return {id: token.content for id, token in source.get_added_tokens_decoder().items()}


def _check_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as problem:
        raise UsageError(f"the text is not valid Unicode at character {problem.start}: half a surrogate pair") from None


class StreamDecoder:
    """Decodes tokens as they arrive, without splitting characters."""

    def __init__(self, tokenizer: Tokenizer, special: bool, strips_space: bool) -> None:
        self._tokenizer = tokenizer
        self._hidden = frozenset[int]() if special else tokenizer.special.control
        self._strips_space = strips_space
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, id: int) -> str:
        """The text this token adds; "" while a character is incomplete."""
        if id in self._hidden:
            return ""
        data = self._tokenizer.token_bytes(id)
        if self._strips_space and data:
            data = data.removeprefix(b" ")
            self._strips_space = False
        return self._decoder.decode(data)

    def flush(self) -> str:
        """End the text: an incomplete character becomes U+FFFD."""
        return self._decoder.decode(b"", final=True)
