"""Pre-tokenizers of byte-level vocabularies, by their GGUF names.

The expressions are public facts about the models: each vocabulary was trained on text split this way.
A rule is one or more expressions, each splitting the pieces left by the previous one.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers.pre_tokenizers import PreTokenizer

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    rf"|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
)
_GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTIONS}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
)
_DEEPSEEK3 = (
    r"\p{N}{1,3}",
    r"[一-龥぀-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}",
)
_DEFAULT = (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")

_RULES: dict[str, tuple[str, ...]] = {
    "default": _DEFAULT,
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "exaone4"), (_GPT2,)),
    **dict.fromkeys(
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), (r"\p{N}", _GPT2)
    ),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral"), (_LLAMA3,)),
    **dict.fromkeys(("dbrx", "smaug-bpe", "lfm2", "midm-2.0"), (_LLAMA3,)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "stablelm2", "hunyuan", "megrez"), (_QWEN2,)),
    "tekken": (_TEKKEN,),
    **dict.fromkeys(("gpt-4o", "llama4"), (_GPT4O,)),
    "deepseek-v3": _DEEPSEEK3,
}

# Vocabularies where whole words take precedence over merges (as in tiktoken), and those that begin with bos.
WHOLE_WORDS = frozenset(
    ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "lfm2", "midm-2.0", "tekken")
)
BEGINS_WITH_BOS = WHOLE_WORDS


def known_or_default(name: str, where: object) -> str:
    """`name` if its rule is known; else "default", with a warning."""
    if name in _RULES:
        return name
    warnings.warn(
        f"{where}: the pre-tokenizer {name!r} is not known; text is split by the default rule, so token"
        " ids may differ from those the model was trained on.",
        stacklevel=2,
    )
    return "default"


@lru_cache(maxsize=4)
def pre_tokenizer(name: str) -> PreTokenizer:
    """The pre-tokenizer of a known name, ending in the byte alphabet."""
    from tokenizers import Regex, pre_tokenizers

    *first, last = _RULES[name]
    steps: list[PreTokenizer] = [pre_tokenizers.Split(Regex(rule), behavior="isolated") for rule in first]
    if last != _GPT2:
        steps.append(pre_tokenizers.Split(Regex(last), behavior="isolated"))
    # The library has GPT-2's rule built in.
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=last == _GPT2))
    return pre_tokenizers.Sequence(steps)


def rule_name(pre_tokenizer: Mapping[str, Any] | None, whole_words: bool) -> str | None:
    """The name of a tokenizer.json's `pre_tokenizer` rule, or None if it has no name.

    `whole_words` is its model's `ignore_merges`, which distinguishes names with the same expressions.
    """
    steps = tuple(_expressions(pre_tokenizer or {}))
    named = (name for name, rule in _RULES.items() if rule == steps and (name in WHOLE_WORDS) is whole_words)
    return next(named, None)


def _expressions(step: Mapping[str, Any]) -> Iterator[str | None]:
    """The expressions of a pre-tokenizer in order; None for a step that byte-level vocabularies do not have."""
    match step:
        case {"type": "Sequence", "pretokenizers": [*steps]}:
            for each in steps:
                yield from _expressions(each)
        case {"type": "Split", "pattern": {"Regex": str(rule)}, "behavior": "Isolated", "invert": False}:
            yield rule.replace("'(?i:[sdmt]|ll|ve|re)", _CONTRACTIONS)  # GPT-4's spelling of the same
        case {"type": "Digits", "individual_digits": True}:
            yield r"\p{N}"
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}:
            yield _GPT2
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}:
            pass
        case _:
            yield None
