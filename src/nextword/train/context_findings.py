"""Findings of a context study as sentences that claim no more than the numbers show."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .context_results import ABLE, KindResult, Study, TaskResult, WidthResult
from .estimates import Estimate


def sentences(study: Study) -> list[str]:
    """The findings, one sentence each."""
    text = [_losses(study)]
    for model in study.kinds:
        text.append(_distance(model, study.context))
        if model.carrying is not None and model.trained:
            text.append(
                f"{model.kind}: carrying the state from window to window changes the loss by"
                f" {_signed(model.carrying)} nats{_or_nothing(model.carrying, 0.0)}"
            )
    for task in dict.fromkeys(result.task for model in study.kinds for result in model.tasks):
        text.append(_task(task, study.kinds))
    for kind in dict.fromkeys(model.kind for model in study.widths):
        text.append(f"{kind}: to recall " + ", ".join(_needed(model) for model in study.widths if model.kind == kind))
    return [*text, *map(_speed, study.kinds)]


def plus_minus(value: Estimate, digits: int = 3) -> str:
    """The mean and half the width of its interval."""
    return f"{value.mean:,.{digits}f} ± {value.margin:,.{digits}f}"


def cell(value: Estimate, digits: int = 3) -> str:
    """A table cell: mean and half-width."""
    return plus_minus(value, digits).replace(" ", "")


def percent(value: Estimate) -> str:
    """Mean and half-width of a share, in percent."""
    return f"{value.mean:.0%} ± {100 * value.margin:.0f}"


def _signed(value: Estimate) -> str:
    return f"{value.mean:+.3f} ± {value.margin:.3f}"


def _or_nothing(value: Estimate, nothing: float) -> str:
    return " (no significant difference)" if value.low <= nothing <= value.high else ""


def _losses(study: Study) -> str:
    ordered = sorted(study.kinds, key=lambda model: model.loss.mean)
    losses = ", ".join(f"{model.kind} {plus_minus(model.loss)}" for model in ordered)
    text = f"held-out loss after {study.tokens:,} tokens, nats per token: {losses}"
    if not any(model.trained for model in study.kinds):
        return f"{text}; too little training: no kind is significantly better than token frequencies"
    if len(ordered) == 1:
        return text
    unclear = [kind for kind, behind in study.behind.items() if behind.low <= 0]
    return f"{text}; " + (
        f"{ordered[0].kind} is not clearly better than {' and '.join(unclear)}"
        if unclear
        else f"{ordered[0].kind} is best here"
    )


def _distance(model: KindResult, context: int) -> str:
    if not model.trained:
        return f"{model.kind}: too little training to measure what it remembers"
    gains = {gain.at: gain.estimate for gain in model.gain_beyond}
    if model.useful:
        gain = plus_minus(gains[model.useful])
        text = (
            f"at least the last {model.useful + 1} of {context} tokens are useful (those beyond the last"
            f" {model.useful}: {gain} nats)"
        )
    else:
        text = "not shown to use more than the last token"
    beyond = next((at for at in gains if at > model.useful), None)
    if beyond is None:
        return f"{model.kind}: {text}; longer distances were not tested"
    return (
        f"{model.kind}: {text}; a gain under {gains[beyond].detectable():.2g} nats from tokens beyond the last {beyond}"
        " would not be detected"
    )


def _task(task: str, kinds: Sequence[KindResult]) -> str:
    results = {model.kind: [result for result in model.tasks if result.task == task] for model in kinds}
    first = [some[0] for some in results.values()]
    steps = f"after {first[0].steps:,} steps"
    if not any(model.learned for model in first):
        return (
            f"{task}: too little training: {steps} no kind is significantly better than guessing the most"
            f" frequent symbol ({first[0].guess:.0%}), even at {_size(first[0])}"
        )
    each_kind = "; ".join(f"{kind} {', '.join(_reached(some))}" for kind, some in results.items())
    return f"{task}, {ABLE:.0%} correct {steps}: {each_kind}"


def _size(result: TaskResult) -> str:
    return f"a delay of {result.size}" if result.task == "copy" else f"{result.size} pairs"


def _reached(results: Sequence[TaskResult]) -> Iterator[str]:
    """Up to which size it succeeds, where that is unclear, and where it fails."""
    if not results[0].learned:
        yield "too little training"
        return
    able = next((n for n, result in enumerate(results) if not result.able), len(results))
    if able:
        yield f"up to {_size(results[able - 1])}"
    rest = results[able:]
    if unclear := [str(result.size) for result in rest if result.able is not False]:
        yield f"unclear at {' and '.join(unclear)}"
    if unable := [str(result.size) for result in rest if result.able is False]:
        yield f"not yet at {' and '.join(unable)}"


def _needed(result: WidthResult) -> str:
    if result.width is None:
        return (
            f"{result.pairs} pairs no width up to 256 was enough within {result.steps:,} steps"
            f" ({percent(result.best)}% at best)"
        )
    return (
        f"{result.pairs} pairs width {result.width} was the first to learn it in {result.steps:,} steps"
        f" ({result.parameters:,} parameters, {result.state_bytes:,} bytes of state)"
    )


def _speed(model: KindResult) -> str:
    short, long = min(model.state_bytes), max(model.state_bytes)
    grows = model.state_bytes[long] / model.state_bytes[short]
    state = f"{grows:.0f} times that at {long:,}" if grows > 1 else f"the same at {long:,}"
    speed = ""
    if model.two_threads is not None:
        speed = f"two threads train one row {plus_minus(model.two_threads, 2)} times as fast as one"
        speed += f"{_or_nothing(model.two_threads, 1.0)}; "
    return f"{model.kind}: {speed}its state is {model.state_bytes[short] / 1e3:,.0f} kB at {short:,} tokens and {state}"
