"""Keeps control tokens such as "<|im_end|>" in a message from acting as such."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from .tokenizer import Tokenizer

_MARKS = range(0xF0000, 0xFFFFE)  # a plane of Unicode for private use


class Contents:
    """Texts of one conversation, with names of control tokens replaced by marks until they are tokenized.

    A template renders `hide(text)` for each text; `encode` tokenizes the result. Only what the template
    itself writes becomes control tokens. If no text has such a name, nothing changes.
    """

    def __init__(self, tokenizer: Tokenizer, texts: Iterable[str]) -> None:
        self._tokenizer = tokenizer
        texts, names = list(texts), tokenizer.control_names
        found = dict.fromkeys(name for text in texts for name in names.findall(text)) if names is not None else {}
        unused = (chr(code) for code in _MARKS if not any(chr(code) in text for text in texts))
        self._marks: Mapping[str, str] = dict(zip(found, unused, strict=False))  # of each name

    @property
    def hides(self) -> bool:
        """Whether any text contains a name to hide."""
        return bool(self._marks)

    def hide(self, text: str) -> str:
        """The text with marks, to be rendered by a template."""
        names = self._tokenizer.control_names
        if names is None or not self._marks:
            return text
        return names.sub(lambda match: self._marks[match[0]], text)

    def show(self, text: str) -> str:
        """The text with the original names restored."""
        for name, mark in self._marks.items():
            text = text.replace(mark, name)
        return text

    def encode(self, rendered: str) -> list[int]:
        """Tokens of a rendered text, without an extra beginning-of-text token."""
        if not self._marks:
            return self._tokenizer.encode(rendered, special=True)
        return [id for text, plain in self._parts(rendered) for id in self._tokenizer.encode(text, special=not plain)]

    def _parts(self, rendered: str) -> Iterator[tuple[str, bool]]:
        """Spans between control tokens that contain a mark (to be encoded as plain text), and the text between them."""
        names, begin = self._tokenizer.control_names, 0
        assert names is not None
        ends = [0, *(place for match in names.finditer(rendered) for place in match.span()), len(rendered)]
        for start, end in zip(ends[::2], ends[1::2], strict=True):
            if any(mark in rendered[start:end] for mark in self._marks.values()):
                yield rendered[begin:start], False
                yield self.show(rendered[start:end]), True
                begin = end
        yield rendered[begin:], False
