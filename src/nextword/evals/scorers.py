"""Scorers of generated answers: by text, number, words or pattern, or by a function of the user's own."""

from __future__ import annotations

import math
import re
import signal
import string
import threading
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from decimal import Decimal
from types import FrameType
from typing import Any

from ..base import UsageError
from ..base.errors import closest
from .task import Filter, Metric, Row, Task

Gold = str | list[str]  # the right answer, or several, each of which is right
ScorerFunction = Callable[[str, Gold, Row], float]  # → a score from 0 to 1

NAMES = ("exact", "contains", "number", "f1", "regex:PATTERN")
_SECONDS = 1.0  # that a pattern may search one answer
_NUMBER = re.compile(
    r"(?P<sign>(?<![\w)\]])[-+\u2212])?[$€£¥]?"  # "3-4" is no -4
    r"(?P<digits>\d{1,3}(?:,\d{3})+(?!\d)|\d+|(?<!\d)(?=\.\d))"
    r"(?P<rest>(?:\.\d+)?(?:[eE][-+]?\d{1,3}(?!\d))?)"
)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def with_scorer(task: Task, scorer: str | ScorerFunction) -> Task:
    """The task with what the model writes scored by `scorer` alone, in place of its own metrics and filters.

    A name (see `NAMES`), or a function of the answer, the gold answer or list of them, and the row. Raises UsageError
    for a task that asks for a choice or a likelihood, an unknown name, and a gold answer that no answer could meet.
    """
    name, options, function = _named(scorer) if isinstance(scorer, str) else _given(scorer)
    if task.output != "generate_until":
        hint = "" if task.harness else " (--free lets it generate)"
        does = f"chooses among labels{hint}" if task.output == "multiple_choice" else "generates nothing"
        raise UsageError(f"--scorer {name} is for generated answers; in {task.name} the model {does}")
    if name == "number":
        _check_numbers(task)
    harness = {key: value for key, value in task.harness.items() if key != "filter_list"}
    return replace(
        task, metrics=(Metric(name, options=options, function=function),), filters=(Filter("none"),),
        harness=harness and {**harness, "metric_list": [{"metric": name, **options}]},
    )  # fmt: skip


def scored_by(forms: Mapping[str, Task], scorer: str | ScorerFunction, as_harness: bool) -> dict[str, Task]:
    """`with_scorer` of every form. lm-evaluation-harness's mode (`as_harness`) has its files' own metrics alone."""
    if as_harness:
        raise UsageError("--compat lm-eval uses the task file's metrics. Leave out --scorer")
    return {name: with_scorer(task, scorer) for name, task in forms.items()}


def _named(text: str) -> tuple[str, dict[str, Any], ScorerFunction]:
    name, colon, pattern = text.partition(":")
    if name == "regex" and colon:
        return name, {"pattern": pattern}, _best(_found_by(pattern))
    known = {"exact": exact, "contains": contains, "number": number, "f1": f1}
    if text not in known:
        raise UsageError(f"there is no scorer {text!r}.{closest(name, NAMES)} There is: {', '.join(NAMES)}")
    return text, {}, _best(known[text])


def _best(score: Callable[[str, str], float]) -> ScorerFunction:
    """The best score over several right answers."""
    return lambda answer, gold, row: max(score(answer, each) for each in _golds(gold))


def _golds(gold: str | Sequence[str]) -> list[str]:
    return [gold] if isinstance(gold, str) else list(gold)


def _given(function: ScorerFunction) -> tuple[str, dict[str, Any], ScorerFunction]:
    """A function of one's own, and what it says held to a number from 0 to 1."""
    name = getattr(function, "__name__", type(function).__name__).replace("<lambda>", "scorer")

    def score(answer: str, gold: Gold, row: Row) -> float:
        value = function(answer, gold, row)
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not 0 <= number <= 1:
            raise UsageError(
                f"the scorer {name} gave {value!r:.80} for {answer!r:.80}; it must return a number from 0 to 1"
            )
        return number

    return name, {}, score


def exact(answer: str, gold: str) -> float:
    """1 where both are the same text, but for case and spaces around it."""
    return float(answer.strip().lower() == gold.strip().lower())


def contains(answer: str, gold: str) -> float:
    """1 where the gold text stands in the answer as whole words, whatever its case and spaces.

    Beside Chinese, Japanese or Korean characters a word begins and ends anywhere: no spaces part them.
    """
    words, text = _folded(gold), _folded(answer)
    if not words:
        return float(not text)
    before = "" if _needs_no_border(words[0]) else r"(?<!\w)"
    after = "" if _needs_no_border(words[-1]) else r"(?!\w)"
    return float(re.search(before + re.escape(words) + after, text) is not None)


def _folded(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _needs_no_border(character: str) -> bool:
    """Whether a character at a text's edge is no letter or digit, or of a script without spaces."""
    return unicodedata.east_asian_width(character) in "WF" or not (character.isalnum() or character == "_")


def number(answer: str, gold: str) -> float:
    """1 where the last number of the answer is the last of the gold text: 1,234.0 is 1234, and -5 is not 5."""
    found = last_number(answer)
    return float(found is not None and found == last_number(gold))


def last_number(text: str) -> Decimal | None:
    """The last number in a text, exactly as it is written (English: 1,234.5); None where there is none."""
    found = None
    for found in _NUMBER.finditer(text):  # noqa: B007
        pass
    if found is None:
        return None
    sign = "-" if found["sign"] in ("-", "\u2212") else ""
    return Decimal(sign + found["digits"].replace(",", "") + found["rest"])


def _check_numbers(task: Task) -> None:
    for item in task.items:
        gold = task.form.gold(item.values)
        if all(last_number(str(each)) is None for each in _golds(gold)):  # type: ignore[arg-type]
            raise UsageError(
                f"--scorer number: the right answer of row {item.index + 1}, {gold!r:.80}, contains no number"
            )


def f1(answer: str, gold: str) -> float:
    """Harmonic mean of precision and recall of words (Rajpurkar et al. 2016, 1606.05250, section 6.1).

    Words are lower-case, without punctuation and articles, as in SQuAD's own script; two texts of which nothing is
    left agree, as in that of SQuAD 2.0.
    """
    said, right = _words(answer), _words(gold)
    if not said or not right:
        return float(said == right)
    shared = (Counter(said) & Counter(right)).total()
    return 2 * shared / (len(said) + len(right))


def _words(text: str) -> list[str]:
    return _ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split()


def _found_by(source: str) -> Callable[[str, str], float]:
    """`exact` of what a pattern's first group finds first in the answer, or, without a group, the whole match."""
    try:
        pattern = re.compile(source)
    except (re.error, OverflowError, RecursionError) as error:
        raise UsageError(f"--scorer regex: {source!r} is not a regular expression ({error})") from None
    if not source:
        raise UsageError("--scorer regex: has no pattern. Write it after the colon, as in 'regex:answer is (.*)'")

    def score(answer: str, gold: str) -> float:
        with _time_limit(_SECONDS, f"--scorer regex: {source!r} took more than {_SECONDS:g} s on one answer"):
            match = pattern.search(answer)
        found = None if match is None else match[1 if pattern.groups else 0]
        return 0.0 if found is None else exact(found, gold)

    return score


@contextmanager
def _time_limit(seconds: float, message: str) -> Iterator[None]:
    """Raises UsageError after `seconds`: nested repeats can search for years. In the main thread alone, where signals
    are handled; Ctrl-C ends a search too."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise UsageError(f"{message}. Avoid nested repeats")

    handler = signal.signal(signal.SIGALRM, stop)
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, left, interval)
        signal.signal(signal.SIGALRM, handler)
