"""From what a model wrote to its answer: the filters of lm-evaluation-harness's task files."""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from ..base import UsageError
from ..base.errors import closest
from .task import Filter, Row

_GSM8K = r"#### (\-?[0-9\.\,]+)"
Options = Mapping[str, Any]


def apply(chain: Filter, texts: list[str], row: Row) -> str | list[str]:
    """What the chain makes of the texts written for one row: one answer, or several where none was chosen."""
    answers: str | list[str] = list(texts)
    for name, options in chain.steps:
        answers = _STEPS[name](answers if isinstance(answers, list) else [answers], options, row)
    return answers


def check(chain: Filter) -> None:
    """Raises UsageError for a step that is not known, an option it does not have, or a pattern that is none."""
    for name, options in chain.steps:
        if name not in _STEPS:
            raise UsageError(f"filter {name!r} is not known.{closest(name, _STEPS)} There is: {', '.join(_STEPS)}")
        unknown = set(options) - _OPTIONS.get(name, set())
        if unknown:
            raise UsageError(f"filter {name!r} has no option {sorted(unknown)[0]!r}")
        for pattern in (options.get("regex_pattern", ""), *(options.get("regexes_to_ignore") or ())):
            try:
                re.compile(pattern)
            except (re.error, TypeError) as error:
                raise UsageError(f"filter {name!r}: {pattern!r} is not a regular expression ({error})") from None
        for number in ("group_select", "k"):
            if not isinstance(options.get(number, 0), int):
                raise UsageError(f"filter {name!r}: {number!r} is a whole number, not {options[number]!r}")
        if name == "take_first_k" and options.get("k", 0) < 1:
            raise UsageError(f"filter {name!r} needs 'k', the number of texts that it keeps")
        if not isinstance(options.get("mapping_dict") or {}, dict):
            raise UsageError(f"filter {name!r}: mapping_dict is a mapping of texts to answers")


def _each(change: Callable[[str], str]) -> Callable[[list[str], Options, Row], list[str]]:
    return lambda texts, options, row: [change(text) for text in texts]


def _take_first(texts: list[str], options: Options, row: Row) -> str:
    return texts[0]


def _take_first_k(texts: list[str], options: Options, row: Row) -> list[str]:
    return texts[: int(options["k"])]


def _majority(texts: list[str], options: Options, row: Row) -> list[str]:
    return [Counter(texts).most_common(1)[0][0]]


def _map(texts: list[str], options: Options, row: Row) -> list[Any]:
    mapping = options.get("mapping_dict") or {}
    return [mapping.get(text, options.get("default_value")) for text in texts]


def _regex(texts: list[str], options: Options, row: Row) -> list[str]:
    pattern = re.compile(options.get("regex_pattern", _GSM8K))
    fallback = str(options.get("fallback", "[invalid]"))
    found = [_found(pattern, text, int(options.get("group_select", 0))) for text in texts]
    return [fallback if each is None else each for each in found]


def _found(pattern: re.Pattern[str], text: str, which: int) -> str | None:
    """The match of that number (-1: the last), its first group that is not empty, without spaces around it."""
    matches = pattern.findall(text)
    if not matches or not -len(matches) <= which < len(matches):
        return None
    match = matches[which]
    if isinstance(match, tuple):
        match = next((part for part in match if part), None)
    return None if match is None else match.strip()


def _choice_regex(texts: list[str], options: Options, row: Row) -> list[str]:
    """The pattern; or else a choice's own words, told as "(A)"; or else a letter behind a colon."""
    pattern, which = re.compile(options.get("regex_pattern", _GSM8K)), int(options.get("group_select", 0))
    words = {_plain(str(choice).strip(), options): f"({letter})" for choice, letter in _lettered(row)}
    by_words = re.compile("|".join(sorted(map(re.escape, words), key=len, reverse=True)))
    letters = "|".join(letter for _, letter in _lettered(row))
    by_letter = re.compile(rf":[\s]*({letters})")
    answers = []
    for text in texts:
        answer = _found(pattern, text, which)
        if not answer:
            found = _found(by_words, _plain(text, options), which)
            answer = words.get(found, found) if found else None
        if not answer:
            found = _found(by_letter, text, which)
            answer = f"({found})" if found else None
        answers.append(answer or options.get("fallback", "[invalid]"))
    return answers


def _lettered(row: Row) -> list[tuple[Any, str]]:
    choices = row.get("choices")
    if not isinstance(choices, list | tuple) or len(choices) > len(string.ascii_uppercase):
        raise UsageError("the filter multi_choice_regex needs a column 'choices' with at most 26 answers")
    return list(zip(choices, string.ascii_uppercase, strict=False))


def _plain(text: str, options: Options) -> str:
    for pattern in options.get("regexes_to_ignore") or ():
        text = re.sub(pattern, "", text)
    if options.get("ignore_case"):
        text = text.lower()
    return text.translate(_punctuation()) if options.get("ignore_punctuation") else text


@cache
def _punctuation() -> dict[int, None]:
    """Every character of Unicode that is punctuation."""
    return dict.fromkeys(code for code in range(0x110000) if unicodedata.category(chr(code)).startswith("P"))


_STEPS: dict[str, Callable[[list[str], Options, Row], Any]] = {
    "take_first": _take_first,
    "take_first_k": _take_first_k,
    "majority_vote": _majority,
    "regex": _regex,
    "multi_choice_regex": _choice_regex,
    "remove_whitespace": _each(str.strip),
    "lowercase": _each(str.lower),
    "uppercase": _each(str.upper),
    "map": _map,
}
_CHOICE = {"regex_pattern", "group_select", "fallback", "ignore_case", "ignore_punctuation", "regexes_to_ignore"}
_OPTIONS: dict[str, set[str]] = {
    "take_first_k": {"k"},
    "regex": {"regex_pattern", "group_select", "fallback"},
    "multi_choice_regex": _CHOICE,
    "map": {"mapping_dict", "default_value"},
}
