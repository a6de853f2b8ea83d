"""Scorers of generated answers: by text, number, words, pattern, or a user's function."""

from __future__ import annotations

import math
import re
import signal
import string
import threading
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from decimal import Decimal
from types import FrameType

from ..base import UsageError
from ..base.errors import closest
from .task import Row, Scorer, ScorerFunction, Task

NAMES = ("exact", "normalized", "contains", "number", "f1", "regex:PATTERN")
_SECONDS = 1.0  # limit for a pattern on one answer
_NUMBER = re.compile(
    r"(?P<sign>(?<![\w)\]])[-+\u2212])?[$€£¥]?"  # "3-4" does not contain -4
    r"(?P<digits>\d{1,3}(?:,\d{3})+(?!\d)|\d+|(?<!\d)(?=\.\d))"
    r"(?P<rest>(?:\.\d+)?(?:[eE][-+]?\d{1,3}(?!\d))?)"
)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def with_scorer(task: Task, scorer: str | ScorerFunction) -> Task:
    """The task with generated answers scored only by `scorer`: a name (see `NAMES`), or a function.

    A function takes the answer, the gold answer or list of them, and the row. Raises UsageError for a multiple-choice
    task, an unknown name, and a gold answer that no answer could match.
    """
    named = scorer_of(scorer) if isinstance(scorer, str) else _checked(scorer)
    if task.output != "generate_until":
        raise UsageError(
            f"--scorer {named.name} is for generated answers; in {task.name} the model chooses among labels (--generate"
            " lets it generate)"
        )
    task = replace(task, scorers=(named,))
    check_golds(task)
    return task


def scorer_of(text: str, name: str | None = None) -> Scorer:
    """The scorer that `--scorer` or a task file names, called `name`. Raises UsageError for an unknown one."""
    kind, colon, pattern = text.partition(":")
    if kind == "regex" and colon:
        return Scorer(name or kind, text, _best(_found_by(pattern)))
    known = {"exact": exact, "normalized": normalized, "contains": contains, "number": number, "f1": f1}
    if text not in known:
        raise UsageError(f"scorer {text!r} is not known.{closest(kind, NAMES)} Known: {', '.join(NAMES)}")
    return Scorer(name or text, text, _best(known[text]))


def _best(score: Callable[[str, str], float]) -> ScorerFunction:
    """The best score over several correct answers."""
    return lambda answer, gold, row: max(score(answer, text) for text in ([gold] if isinstance(gold, str) else gold))


def _checked(function: ScorerFunction) -> Scorer:
    """A user's function, whose result must be a number from 0 to 1."""
    name = getattr(function, "__name__", type(function).__name__).replace("<lambda>", "scorer")

    def score(answer: str, gold: str | list[str], row: Row) -> float:
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

    return Scorer(name, "", score)


def exact(answer: str, gold: str) -> float:
    """1 if both texts are equal, ignoring case and surrounding spaces."""
    return float(answer.strip().lower() == gold.strip().lower())


def normalized(answer: str, gold: str) -> float:
    """`exact`, also ignoring punctuation."""
    return exact(*(text.translate(_NO_PUNCTUATION) for text in (answer, gold)))


def contains(answer: str, gold: str) -> float:
    """1 if the answer contains the gold text as whole words, ignoring case and spaces.

    Chinese, Japanese or Korean characters count as word boundaries, since they are written without spaces.
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
    """Whether a character at a text's edge is not a letter or digit, or is from a script without spaces."""
    return unicodedata.east_asian_width(character) in "WF" or not (character.isalnum() or character == "_")


def number(answer: str, gold: str) -> float:
    """1 if the last numbers of the answer and the gold text are equal: 1,234.0 equals 1234, but -5 is not 5."""
    last = last_number(answer)
    return float(last is not None and last == last_number(gold))


def last_number(text: str) -> Decimal | None:
    """The last number in a text (English notation: 1,234.5); None if there is none."""
    match = None
    for match in _NUMBER.finditer(text):  # noqa: B007
        pass
    return None if match is None else _decimal(match)


def _decimal(match: re.Match[str]) -> Decimal:
    sign = "-" if match["sign"] in ("-", "\u2212") else ""
    return Decimal(sign + match["digits"].replace(",", "") + match["rest"])


def check_golds(task: Task) -> None:
    """Raise UsageError if numbers are compared and a correct answer contains none."""
    if not any(scorer.source == "number" for scorer in task.scorers):
        return
    for item in task.items:
        gold = task.format.gold(item.values)
        if all(last_number(str(text)) is None for text in (gold if isinstance(gold, list) else [gold])):
            raise UsageError(
                f"--scorer number: the correct answer of row {item.index + 1}, {gold!r:.80}, contains no number"
            )


def f1(answer: str, gold: str) -> float:
    """Harmonic mean of precision and recall of words (Rajpurkar et al. 2016, 1606.05250, section 6.1).

    Words are lower-case, without punctuation and articles, as in SQuAD's script; two texts with no words left are
    equal, as in SQuAD 2.0's.
    """
    said, right = _words(answer), _words(gold)
    if not said or not right:
        return float(said == right)
    shared = (Counter(said) & Counter(right)).total()
    return 2 * shared / (len(said) + len(right))


def _words(text: str) -> list[str]:
    return _ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split()


def _found_by(source: str) -> Callable[[str, str], float]:
    """`exact` on a pattern's first match (its first group, if any); numbers are compared by value."""
    try:
        pattern = re.compile(source)
    except (re.error, OverflowError, RecursionError) as error:
        raise UsageError(f"--scorer regex: {source!r} is not a regular expression ({error})") from None
    if not source:
        raise UsageError("--scorer regex: has no pattern. Write it after the colon, as in 'regex:answer is (.*)'")

    def score(answer: str, gold: str) -> float:
        with _time_limit(_SECONDS, f"--scorer regex: {source!r} took more than {_SECONDS:g} s on one answer"):
            match = pattern.search(answer)
        answered = None if match is None else match[1 if pattern.groups else 0]
        if answered is None:
            return 0.0
        numbers = [_NUMBER.fullmatch(text.strip()) for text in (answered, gold)]
        same = numbers[0] and numbers[1] and _decimal(numbers[0]) == _decimal(numbers[1])
        return 1.0 if same else exact(answered, gold)

    return score


@contextmanager
def _time_limit(seconds: float, message: str) -> Iterator[None]:
    """Raise UsageError after `seconds`: nested repeats can take exponential time.

    Only in the main thread, where signals are handled; Ctrl-C also ends a search.
    """
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
