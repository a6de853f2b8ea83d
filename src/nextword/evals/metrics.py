"""How right an answer is, and what that makes over all items: the metrics of lm-evaluation-harness's task files."""

from __future__ import annotations

import math
import re
import string
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..base import UsageError
from ..base.errors import closest
from .task import Metric, Output, Row, Task

if TYPE_CHECKING:
    from .answers import Answer

OF_CHOICES = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info", "f1", "mcc", "brier_score", "exact_match")
OF_TEXTS = ("exact_match",)
OF_LIKELIHOOD = ("perplexity", "acc")
OF_ROLLING = ("word_perplexity", "byte_perplexity", "bits_per_byte")
KNOWN: dict[Output, tuple[str, ...]] = {
    "multiple_choice": OF_CHOICES,
    "generate_until": OF_TEXTS,
    "loglikelihood": OF_LIKELIHOOD,
    "loglikelihood_rolling": OF_ROLLING,
}
USUAL: dict[Output, tuple[str, ...]] = {
    "multiple_choice": ("acc", "acc_norm"),
    "generate_until": ("exact_match",),
    "loglikelihood": ("perplexity", "acc"),
    "loglikelihood_rolling": OF_ROLLING,
}
SMALLER_IS_BETTER = ("brier_score", "perplexity", *OF_ROLLING)
AGGREGATION = {  # what a metric's values make over all items, where that is not their mean
    "f1": "f1", "mcc": "matthews_corrcoef", "brier_score": "brier_score", "perplexity": "perplexity",
    "word_perplexity": "weighted_perplexity", "byte_perplexity": "weighted_perplexity",
    "bits_per_byte": "bits_per_byte",
}  # fmt: skip
_EXACT = {"ignore_case", "ignore_punctuation", "ignore_numbers", "regexes_to_ignore"}
MEASURE_OF = {"acc": "raw", "acc_norm": "chars", "acc_bytes": "bytes", "acc_mutual_info": "pmi"}  # how it chooses


def check(metric: Metric, output: Output) -> None:
    """Raises UsageError for a metric that is not known for this kind of task, or an option it does not have."""
    if metric.name not in KNOWN[output]:
        raise UsageError(
            f"metric {metric.name!r} is not known for {output}.{closest(metric.name, KNOWN[output])}"
            f" There is: {', '.join(KNOWN[output])}"
        )
    if unknown := set(metric.options) - (_EXACT if metric.name == "exact_match" else set()):
        raise UsageError(f"metric {metric.name!r} has no option {sorted(unknown)[0]!r}")
    for pattern in metric.options.get("regexes_to_ignore") or ():
        try:
            re.compile(pattern)
        except (re.error, TypeError) as error:
            raise UsageError(f"metric {metric.name!r}: {pattern!r} is not a regular expression ({error})") from None


def score_text(metric: Metric, gold: Any, answer: Any, row: Row | None = None) -> float:
    """1.0 where the answer is the gold text, or any of several; or what the metric's own function says of it."""
    golds = list(gold) if isinstance(gold, list | tuple) else [gold]
    answers = answer if isinstance(answer, list | tuple) else [answer]
    if metric.function is not None:
        return metric.function(answers[0], gold if isinstance(gold, str) else golds, row or {})
    return float(any(_plain(metric, each) == _plain(metric, right) for each in answers[:1] for right in golds))


def _plain(metric: Metric, text: Any) -> str:
    plain = str(text)
    for pattern in metric.options.get("regexes_to_ignore") or ():
        plain = re.sub(pattern, "", plain)
    if metric.options.get("ignore_case"):
        plain = plain.lower()
    if metric.options.get("ignore_punctuation"):
        plain = plain.translate(str.maketrans("", "", string.punctuation))
    if metric.options.get("ignore_numbers"):
        plain = plain.translate(str.maketrans("", "", string.digits))
    return plain


def aggregate(task: Task, answers: Sequence[Answer]) -> dict[str, float]:
    """Every metric of the task over all answers; those of free answers once for each chain of filters."""
    if task.output == "generate_until":
        names = [name for name in answers[0].values if name != "score"]
        return {name: _mean(answers, name) for name in names}
    return {metric.name: _over_all(metric.name, task.output, answers) for metric in task.metrics}


def of_the_choice(task: Task, answers: Sequence[Answer]) -> dict[str, float]:
    """Accuracy of what was chosen, and those of the task's metrics that a choice alone has: its F1, its correlation.

    `aggregate` takes the likeliest choice for these, as the harness does; here it is the one that a user's measure or
    a calibration chose.
    """
    pairs = [(first_gold(answer), int(answer.prediction)) for answer in answers]
    named = {metric.name: OF_PAIRS[metric.name](pairs) for metric in task.metrics if metric.name in OF_PAIRS}
    return {"acc": _mean(answers, "score"), **named}


def _mean(answers: Sequence[Answer], name: str) -> float:
    return float(np.mean([answer.values[name] for answer in answers]))


def _over_all(name: str, output: Output, answers: Sequence[Answer]) -> float:
    if output == "loglikelihood":
        return _mean(answers, "acc") if name == "acc" else math.exp(-_mean(answers, "logprob"))
    if output == "loglikelihood_rolling":
        total = sum(answer.values["logprob"] for answer in answers)
        units = sum(answer.values["words" if name == "word_perplexity" else "bytes"] for answer in answers)
        return -total / units / math.log(2) if name == "bits_per_byte" else math.exp(-total / units)
    if name in MEASURE_OF:
        return _mean(answers, MEASURE_OF[name])
    if name == "exact_match":  # the right choice would be written by greedy decoding
        return float(np.mean([any(answer.likelihoods[n].greedy for n in golds(answer)) for answer in answers]))
    if name == "brier_score":
        return float(np.mean([_brier(answer) for answer in answers]))
    return OF_PAIRS[name]([(first_gold(answer), int(np.argmax(answer.logprobs))) for answer in answers])


def golds(answer: Answer) -> list[int]:
    """The right choices' indices; none where the right answer is none of the choices (-1)."""
    gold = answer.gold if isinstance(answer.gold, list | tuple) else [answer.gold]
    return [each for each in gold if isinstance(each, int) and each >= 0]


def first_gold(answer: Answer) -> int:
    """The first of the right choices; -1 where there is none."""
    return (golds(answer) or [-1])[0]


def shares(answer: Answer) -> list[float]:
    """p of each choice over the choices alone."""
    logprobs = np.array(answer.logprobs)
    found = np.exp(logprobs - logprobs.max())
    return list(map(float, found / found.sum()))


def _brier(answer: Answer) -> float:
    """Sum over the choices of (p - 1 if right else 0)² (Brier 1950), p over the choices alone."""
    off = np.array(shares(answer))
    off[golds(answer)] -= 1
    return float((off**2).sum())


def words(text: str) -> int:
    """Words as the harness counts them: what stands between white space, also before the first and after the last."""
    return len(re.split(r"\s+", text))


def f1(pairs: Sequence[tuple[int, int]]) -> float:
    """F1 of label 1 from (gold, predicted): 2 tp / (2 tp + fp + fn)."""
    hits = sum(gold == 1 == predicted for gold, predicted in pairs)
    wrong = sum((gold == 1) != (predicted == 1) for gold, predicted in pairs)
    return 2 * hits / (2 * hits + wrong) if hits or wrong else 0.0


def matthews(pairs: Sequence[tuple[int, int]]) -> float:
    """Matthews' correlation of (gold, predicted) for any number of labels (Gorodkin 2004); 0 where one is constant."""
    labels = sorted({label for pair in pairs for label in pair})
    gold = np.array([[g == label for label in labels] for g, _ in pairs], float)
    predicted = np.array([[p == label for label in labels] for _, p in pairs], float)

    def covariance(a: np.ndarray, b: np.ndarray) -> float:
        return float(((a - a.mean(0)) * (b - b.mean(0))).sum())

    spread = covariance(gold, gold) * covariance(predicted, predicted)
    return covariance(gold, predicted) / math.sqrt(spread) if spread > 0 else 0.0


OF_PAIRS = {"f1": f1, "mcc": matthews}  # from (gold, predicted)
