"""Text from files and from models, made safe to print on a terminal."""

import unicodedata

_ELLIPSIS = "…"
_UNSAFE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}  # control, format (bidirectional overrides), surrogates, …
_JOINERS = "\u200c\u200d"  # used in emoji and in Persian and Indic scripts; harmless


def printable(text: str, limit: int | None = None, keep: str = "") -> str:
    r"""`text` with every character that a terminal might interpret escaped, cut to `limit` characters.

    ESC becomes `\x1b`, a line break `\n`, a bidirectional override `\u202e`; characters in `keep` stay as they are.
    Use it on everything that comes from a file, a template or a model's metadata before it reaches a terminal.
    """
    if limit is not None and len(text) > limit:
        text = text[: limit - 1] + _ELLIPSIS
    if text.isprintable():
        return text
    return "".join(character if _is_safe(character, keep) else _escaped(character) for character in text)


def _is_safe(character: str, keep: str) -> bool:
    return character in keep or character in _JOINERS or unicodedata.category(character) not in _UNSAFE


def _escaped(character: str) -> str:
    named = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
    code = ord(character)
    return named.get(character) or (
        f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"
    )
