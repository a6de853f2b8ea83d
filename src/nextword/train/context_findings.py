"""A study of context in words: a sentence says no more than its numbers hold, whatever the seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from .context_tasks import ABLE, TaskResult, WidthResult
from .estimates import Estimate

if TYPE_CHECKING:
    from .context_study import KindResult, Study


def sentences(found: Study) -> list[str]:
    """What the numbers say, a sentence each."""
    said = [_losses(found)]
    for each in found.kinds:
        said.append(_distance(each, found.context))
        if each.carrying is not None and each.trained:
            said.append(
                f"{each.kind}: carrying the state from window to window changes the loss by"
                f" {_signed(each.carrying)} nats{_or_nothing(each.carrying, 0.0)}"
            )
    for task in dict.fromkeys(result.task for each in found.kinds for result in each.tasks):
        said.append(_task(task, found.kinds))
    for kind in dict.fromkeys(each.kind for each in found.widths):
        said.append(f"{kind}: to recall " + ", ".join(_needed(each) for each in found.widths if each.kind == kind))
    return [*said, *map(_speed, found.kinds)]


def plus_minus(value: Estimate, digits: int = 3) -> str:
    """The mean and half of its interval."""
    return f"{value.mean:,.{digits}f} ± {value.margin:,.{digits}f}"


def cell(value: Estimate, digits: int = 3) -> str:
    """The same for a table."""
    return plus_minus(value, digits).replace(" ", "")


def percent(value: Estimate) -> str:
    """The same of a share."""
    return f"{value.mean:.0%} ± {100 * value.margin:.0f}"


def _signed(value: Estimate) -> str:
    return f"{value.mean:+.3f} ± {value.margin:.3f}"


def _or_nothing(value: Estimate, nothing: float) -> str:
    return " (not told from no difference)" if value.low <= nothing <= value.high else ""


def _losses(found: Study) -> str:
    ordered = sorted(found.kinds, key=lambda each: each.loss.mean)
    losses = ", ".join(f"{each.kind} {plus_minus(each.loss)}" for each in ordered)
    said = f"held-out loss after {found.tokens:,} tokens, nats a token: {losses}"
    if not any(each.trained for each in found.kinds):
        return f"{said}; too little training to tell: no kind is surely better than the frequencies of tokens"
    if len(ordered) == 1:
        return said
    unclear = [kind for kind, behind in found.behind.items() if behind.low <= 0]
    return f"{said}; " + (
        f"{ordered[0].kind} is not told from {' and '.join(unclear)}" if unclear else f"{ordered[0].kind} is best here"
    )


def _distance(each: KindResult, context: int) -> str:
    if not each.trained:
        return f"{each.kind}: too little training to tell what it remembers"
    gains = {gain.at: gain.estimate for gain in each.gain_beyond}
    if each.useful:
        gain = plus_minus(gains[each.useful])
        said = (
            f"at least the last {each.useful + 1} of {context} tokens are of use (those beyond the last"
            f" {each.useful}: {gain} nats)"
        )
    else:
        said = "not shown to use more than the last token"
    beyond = next((at for at in gains if at > each.useful), None)
    if beyond is None:
        return f"{each.kind}: {said}; further was not looked"
    return (
        f"{each.kind}: {said}; a gain under {gains[beyond].detectable():.2g} nats from tokens beyond the last {beyond}"
        " would not be seen"
    )


def _task(task: str, kinds: Sequence[KindResult]) -> str:
    results = {each.kind: [result for result in each.tasks if result.task == task] for each in kinds}
    first = [some[0] for some in results.values()]
    steps = f"after {first[0].steps:,} steps"
    if not any(each.learned for each in first):
        return (
            f"{task}: too little training to tell: {steps} no kind is surely better than naming the symbol"
            f" shown most often ({first[0].guess:.0%}), even at {_size(first[0])}"
        )
    each_kind = "; ".join(f"{kind} {', '.join(_reached(some))}" for kind, some in results.items())
    return f"{task}, {ABLE:.0%} right {steps}: {each_kind}"


def _size(result: TaskResult) -> str:
    return f"a delay of {result.size}" if result.task == "copy" else f"{result.size} pairs"


def _reached(results: Sequence[TaskResult]) -> Iterator[str]:
    """In parts: up to which size it is able, where that is unclear, and that it is not beyond."""
    if not results[0].learned:
        yield "too little training to tell"
        return
    able = next((n for n, each in enumerate(results) if not each.able), len(results))
    if able:
        yield f"up to {_size(results[able - 1])}"
    rest = results[able:]
    if unclear := [str(each.size) for each in rest if each.able is not False]:
        yield f"unclear at {' and '.join(unclear)}"
    if unable := [str(each.size) for each in rest if each.able is False]:
        yield f"not yet at {' and '.join(unable)}"


def _needed(each: WidthResult) -> str:
    if each.width is None:
        return (
            f"{each.pairs} pairs no width up to that of 256 was enough within {each.steps:,} steps"
            f" ({percent(each.best)}% at best)"
        )
    return (
        f"{each.pairs} pairs width {each.width} was the first to learn it in {each.steps:,} steps"
        f" ({each.parameters:,} parameters, {each.state_bytes:,} bytes of state)"
    )


def _speed(each: KindResult) -> str:
    short, long = min(each.state_bytes), max(each.state_bytes)
    grows = each.state_bytes[long] / each.state_bytes[short]
    state = f"{grows:.0f} times that at {long:,}" if grows > 1 else f"the same at {long:,}"
    return (
        f"{each.kind}: two threads train one row {plus_minus(each.two_threads, 2)} times as fast as one"
        f"{_or_nothing(each.two_threads, 1.0)}; its state is {each.state_bytes[short] / 1e3:,.0f} kB at {short:,}"
        f" tokens and {state}"
    )
