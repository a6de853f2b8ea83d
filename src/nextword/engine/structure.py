"""Structured output: which tokens may come next, so that a text is what was asked for. Computed by llguidance.

A structure becomes one grammar in llguidance's dialect of Lark. The matcher of a completion follows its tokens through
the grammar and says which may come next: the model's distribution over those, and nothing else, is what is drawn from.
No token is forced (`no_forcing`): where only one text can follow, the model still chooses how to cut it into tokens.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..base import RunError, UsageError, printable
from .checks import SHOWN, shown

if TYPE_CHECKING:
    from llguidance import LLMatcher

    from ..text import Tokenizer

Words = NDArray[np.uint32]
Result = TypeVar("Result")

LARGEST = 128 << 10  # characters of a JSON schema or a grammar
_STACK_BYTES = 256 << 20  # llguidance recurses up to 8 KB deeper for each level of a grammar, of at least 10 characters
_SEPARATORS = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}  # as json.dumps writes
_NO_FORCING = '\n%llguidance {"no_forcing": true}\n'
_OF_REGEX = "It takes Rust's syntax without look-around and \\b, and matches the whole text"
_stack = threading.Lock()


@dataclass(frozen=True)
class Structure:
    r"""What a completion's text must be, as a whole; exactly one of the four is given.

    json_schema: JSON that is valid under this schema (a JSON object, or its text), on one line.
    regex: a text that the whole of this regular expression matches (Rust's syntax, no look-around; \d is 0 to 9).
    choices: one of these texts.
    grammar: a text of this grammar in llguidance's dialect of Lark.

    Raises UsageError for one that cannot be followed.
    """

    json_schema: str | Mapping[str, Any] | None = None
    regex: str | None = None
    choices: tuple[str, ...] | None = None
    grammar: str | None = None

    def __post_init__(self) -> None:
        names = [field.name for field in fields(self)]
        given = [name for name in names if getattr(self, name) is not None]
        if len(given) != 1:
            raise UsageError(
                f"a structure is given {' and '.join(given) or 'nothing'}; it takes one of {', '.join(names)}"
            )
        [name] = given
        object.__setattr__(self, name, _CHECKS[name](getattr(self, name)))
        from llguidance import LLMatcher

        if message := _with_deep_stack(lambda: LLMatcher.validate_grammar(self.lark)):
            raise UsageError(f"{name} cannot be used: {_reason(message, name)}")

    @property
    def lark(self) -> str:
        """The grammar of these texts, in llguidance's dialect of Lark."""
        from llguidance import regex_to_lark

        if self.json_schema is not None:
            start = f"start: %json {self.json_schema}"
        elif self.regex is not None:
            start = f"start: /{regex_to_lark(self.regex, 'd')}/"
        elif self.choices is not None:
            start = f"start: /{'|'.join(map(_literal, self.choices))}/"
        else:
            start = f"{self.grammar}"
        return start + _NO_FORCING


def schema_text(schema: Any) -> str:
    """A schema as the text of a JSON object that says how JSON is spaced."""
    try:
        content = json.loads(schema) if isinstance(schema, str) else schema
        if not isinstance(content, Mapping):
            raise UsageError(f"json_schema is {shown(schema)}; it takes a JSON object")
        spacing = content.get("x-guidance", {})
        if isinstance(spacing, Mapping):
            content = {**content, "x-guidance": _SEPARATORS | dict(spacing)}
        text = json.dumps(content, allow_nan=False)
    except UsageError:
        raise
    except (ValueError, TypeError, RecursionError) as error:
        raise UsageError(f"json_schema is not valid JSON ({error})") from None
    return _bounded("json_schema", text)


def _regex(regex: Any) -> str:
    return _text("regex", regex)


def _choices(choices: Any) -> tuple[str, ...]:
    if isinstance(choices, str) or not isinstance(choices, Sequence):
        raise UsageError(f"choices is {shown(choices)}; it takes a list of texts")
    if not choices:
        raise UsageError("choices is empty; it takes at least one text")
    return tuple(_text("a choice", choice) for choice in choices)


def _grammar(grammar: Any) -> str:
    return _bounded("grammar", _text("grammar", grammar))


_CHECKS: dict[str, Callable[[Any], Any]] = {
    "json_schema": schema_text,
    "regex": _regex,
    "choices": _choices,
    "grammar": _grammar,
}


def _text(name: str, text: Any) -> str:
    if not isinstance(text, str):
        raise UsageError(f"{name} is {shown(text)}; it takes text")
    if not text:
        raise UsageError(f"{name} is empty; it takes at least one character")
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise UsageError(f"{name} is {shown(text)}, which is not valid Unicode: half a surrogate pair")
    return text


def _bounded(name: str, text: str) -> str:
    if len(text) > LARGEST:
        raise UsageError(f"{name} has {len(text):,} characters; at most {LARGEST:,} are read")
    return text


def _literal(text: str) -> str:
    """A regular expression that matches `text` alone."""
    return "".join(c if c.isascii() and c.isalnum() else f"\\x{{{ord(c):x}}}" for c in text)


def _reason(message: str, name: str) -> str:
    """What is wrong, out of a message of several lines that repeats the grammar."""
    lines = message.partition("<state>")[0].strip().splitlines() or [""]
    if lines[0] in ("", "NoExtensionBias"):
        return "no token of the vocabulary can come next"
    place = re.match(r"(?:at )?(\d+)\((\d+)\): ", lines[0])
    first = lines[0][place.end() :] if place else lines[0]
    reason = next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), first)
    reason = printable(reason.removeprefix("failed to compile JSON schema: ").strip(), 4 * SHOWN)
    if place and name == "grammar":
        return f"line {place[1]}, column {place[2]}: {reason}"
    return f"{reason}. {_OF_REGEX}" if name == "regex" else reason


def _with_deep_stack(call: Callable[[], Result]) -> Result:
    """Run `call` in a thread of its own, whose stack no grammar of `LARGEST` characters exhausts."""
    with _stack:
        from concurrent.futures import ThreadPoolExecutor  # here, since it imports logging

        usual = threading.stack_size(_STACK_BYTES)
        try:
            pool = ThreadPoolExecutor(1)
            result = pool.submit(call)
        finally:
            threading.stack_size(usual)
    with pool:
        return result.result()


class Matcher:
    """Follows the tokens of one completion through a structure.

    `finished`: the text is whole and nothing can follow. `error`: why no token can be drawn any more, if so.
    """

    error: RunError | None = None

    def __init__(self, inner: LLMatcher, vocabulary: _Vocabulary) -> None:
        self._inner, self._vocabulary = inner, vocabulary
        self._look()

    def copy(self) -> Matcher:
        """Another one at the same place."""
        return Matcher(self._inner.deep_copy(), self._vocabulary)

    def mask(self) -> Words:
        """The tokens that may come next, stop tokens where the text may end: bit i % 32 of word i // 32 for token i."""
        return self._mask

    def accept(self, token: int) -> None:
        """Go on behind a token that was drawn. Never raises: what goes wrong is told by `error`."""
        self._inner.consume_token(token)
        self._look()

    def _look(self) -> None:
        """See what may come next."""
        vocabulary = self._vocabulary
        words = np.empty(vocabulary.words, np.uint32)
        self._inner.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
        self._mask = words[: vocabulary.usable.size] & vocabulary.usable
        whole = self._inner.is_accepting()
        if self._inner.is_error() or not (whole or self._mask.any()):
            self._mask = np.zeros_like(self._mask)
            reason = _reason(self._inner.get_error(), "structure")
            self.error = RunError(f"the structure cannot be continued ({reason}). Try a simpler one")
        self.finished = whole and not (self._mask & ~vocabulary.stops).any()


class Grammars:
    """Makes the matchers of one model. Its tokens are handed to llguidance when the first structure comes.

    vocabulary: the width of the model's logits. Ids for which the tokenizer has no token are never allowed.
    """

    def __init__(self, tokenizer: Tokenizer, vocabulary: int) -> None:
        self._tokenizer, self._size = tokenizer, vocabulary
        self._vocabulary: _Vocabulary | None = None
        self._lock = threading.Lock()

    def matcher(self, structure: Structure) -> Matcher:
        """A matcher at the beginning of a text. Raises UsageError for what these tokens cannot write."""
        from llguidance import LLMatcher

        if not isinstance(structure, Structure):
            raise UsageError(f"structure is {shown(structure)}; it takes a Structure")
        with self._lock:
            vocabulary = self._vocabulary = self._vocabulary or _Vocabulary(self._tokenizer, self._size)
        inner = _with_deep_stack(lambda: LLMatcher(vocabulary.tokenizer, structure.lark, log_level=0))
        matcher = Matcher(inner, vocabulary)
        if matcher.error is not None:
            reason = _reason(inner.get_error(), "grammar")
            raise UsageError(f"the structure does not fit this model: {reason}")
        if matcher.finished:
            raise UsageError("the structure allows the empty text alone; allow at least one character")
        return matcher

    def matchers(self, structure: Structure | None, count: int) -> list[Matcher | None]:
        """A matcher for each of `count` completions; None where anything may be written."""
        if structure is None:
            return [None] * count
        first = self.matcher(structure)
        return [first, *(first.copy() for _ in range(count - 1))]


class _Vocabulary:
    """A model's tokens as llguidance takes them.

    words: of a mask that llguidance writes. usable, stops: masks of the tokens that may be drawn at all, and of those
    that end a text.
    """

    def __init__(self, tokenizer: Tokenizer, size: int) -> None:
        from llguidance import LLTokenizer, TokenizerWrapper

        tokens = [tokenizer.token_bytes(token) for token in range(size)]
        stops = [token for token in sorted(tokenizer.stop_ids) if token < size]
        special = [token for token in sorted({*tokenizer.special.control, *stops}) if token < size]
        self.stops = _mask(stops, size)
        self.usable = _mask([token for token in range(size) if tokens[token]], size) | self.stops
        if not stops:  # llguidance needs one: an id that the model does not have
            stops, tokens = [size], [*tokens, b""]
        self.words = -(-len(tokens) // 32)
        wrapper = TokenizerWrapper(_Tokens(tokens, special, stops[0]))
        self.tokenizer = LLTokenizer(wrapper, eos_token=stops)


@dataclass(frozen=True)
class _Tokens:
    """What `TokenizerWrapper` asks of a tokenizer. Encoding is not part of it: without forcing, nothing is encoded."""

    tokens: list[bytes]
    special_token_ids: list[int]
    eos_token_id: int
    bos_token_id: int | None = None


def _mask(tokens: list[int], size: int) -> Words:
    """The mask of some of `size` tokens."""
    bits = np.zeros(-(-size // 32) * 32, np.uint8)
    bits[tokens] = 1
    return np.packbits(bits, bitorder="little").view(np.uint32)
