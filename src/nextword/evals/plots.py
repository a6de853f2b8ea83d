"""Evaluations as figures."""

from __future__ import annotations

from typing import Any

from ..plots import Spec, mime_bundle
from ..plots.shots import Score, shots
from .result_rows import differing, full_names, prefixes
from .statistics import with_interval
from .summary import Result

_VARIANTS = {"plain": "as the model answers", "random labels": "shots with random labels"}


def shots_figure(result: Result) -> Spec:
    """Scores against shots with their intervals: a line for each model and template, and for each variant of it."""
    series = list(dict.fromkeys((row.model, row.template) for row in result.rows))
    variants = list(dict.fromkeys(row.variant for row in result.rows))
    variants.sort(key=lambda variant: variant != "plain")
    scores = [
        Score(
            series.index((row.model, row.template)), variants.index(row.variant), row.shots, row.score.value,
            row.score.low, row.score.high, row.caveat or "with this one set of shots" * row.one_set,
        )
        for row in result.rows
    ]  # fmt: skip
    names = [", ".join(prefixes(*own, differing(series))) or own[0] for own in series]
    forms = [_VARIANTS.get(variant, f"{variant} calibration") for variant in variants]
    return shots(scores, names, forms, result.metric, result.majority)


def result_bundle(result: Result) -> dict[str, Any]:
    """An evaluation for notebooks: its table of scores."""
    from .report import tables

    names = full_names(result.rows)
    scores = [
        f"{names[row.choice]}: {with_interval(row.score.value, row.score.low, row.score.high)}" for row in result.rows
    ]
    head = f"{result.task}: {result.metric} over {result.items:,} items, with 95% intervals"
    return mime_bundle("\n".join([head, *scores]), html=tables.lead(result) + tables.table(result))
