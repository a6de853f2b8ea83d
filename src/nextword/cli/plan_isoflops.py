"""nextword plan laws: the findings of runs at equal FLOPs, or of a table of optima, as tables and sentences."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from ..base import units
from ..plan.fitting import Interval, misfit_remark
from ._sections import Section, line, warning
from ._table import plain_table

if TYPE_CHECKING:
    from ..plan.isoflops import Frontier, Scaling
    from ..plan.sweep_checks import Checks

EXPLAINED = (
    "isoflops: for each budget a parabola of the loss in log size, by least squares over the runs within 10% of the"
    " lowest loss; its minimum. Hoffmann et al. 2022, 2203.15556, approach 2",
    "M = C / (6 D): a sixth of the FLOPs a token, with attention and head. DeepSeek LLM, 2401.02954, §3",
    "exponents: log size against log C over the minima, by least squares, under each way the runs count parameters",
    "frontier: log (L - E) against log C over the minima, by least squares. E is held: runs below some 1e20 FLOPs do"
    " not determine it",
    "intervals: 95% of a bootstrap: normal noise with the spread of the runs about the parabolas (Student's t, as"
    " few runs leave it uncertain) is added to the losses, and all is fitted again, with E drawn from its range",
)


def span(interval: Interval, shown: Callable[[float], str]) -> str:
    """An interval as text; empty without a bootstrap (--bootstrap 0)."""
    return f"{shown(interval.low)} – {shown(interval.high)}" if interval.low <= interval.high else ""


def _count(value: float) -> str:
    return units.format_count(value) if value < 1e18 else f"{value:.1e}"


def scaling_sections(found: Scaling, budgets: Sequence[float], most: float) -> Iterator[Section]:
    """Minima, exponents, the frontier, and what they predict; `most` is the largest budget of the runs."""
    if found.minima:
        yield _minima(found)
        for minimum in found.minima:
            if minimum.problem:
                yield warning(f"{minimum.flops:.3g} FLOPs: {minimum.problem}")
        yield line("")
    if not found.powers:
        yield warning("no exponents: they take the minima of at least two budgets")
        return
    yield _exponents(found)
    yield from _frontier(found.frontier, found.problem)
    yield line("")
    yield _predictions(found, budgets)
    if max(budgets) > most:
        yield line(f"above {most:.3g} FLOPs: projected, no run was made there", "dim")


def check_sections(checks: Checks, unit: str) -> Iterator[Section]:
    """The largest budget predicted from the others, other choices of runs, and a transient."""
    if (top := checks.left_out) is not None:
        predicted, shown = top.predicted.value, span(top.predicted.interval, "{:.4f}".format)
        yield line(
            f"left out: from the smaller budgets the minimum at {top.flops:.3g} FLOPs is predicted {predicted:.4f}"
            f"{f' (95% {shown})' if shown else ''}, measured {top.measured:.4f} {unit}:"
            f" {predicted / top.measured - 1:+.2%}", "dim",
        )  # fmt: skip
    if checks.by_filter:
        tried = "; ".join(f"{name} {loss:.4f}" for name, loss in checks.by_filter.items())
        yield line(f"the loss at {checks.budget:.3g} FLOPs by other choices of runs: {tried} {unit}", "dim")
    if checks.transient is not None:
        yield warning(checks.transient.text)


def _minima(found: Scaling) -> Section:
    size = found.size
    table = plain_table("C", "runs", f"{size} optimal", "95%", "within 0.5%", f"D/{size}", f"loss, {found.unit}", "95%",
                        least=((1,), (7,), (5,), (3,), (4,)))  # fmt: skip
    for each in found.minima:
        shown = [""] * 6
        if not each.problem:
            shown = [_count(each.size), span(each.size_interval, _count), span(each.flat, _count),
                     f"{each.tokens / each.size:.3g}", f"{each.loss:.4f}",
                     span(each.loss_interval, "{:.4f}".format)]  # fmt: skip
        table.add_row(f"{each.flops:.3g}", f"{each.runs} of {each.of}", *shown)
    return Section(table)


def _exponents(found: Scaling) -> Section:
    table = plain_table("power of C", "exponent", "95%")
    for name, power in found.powers.items():
        estimate = power.estimate
        table.add_row(name, f"{estimate.value:.3f}", span(estimate.interval, "{:.3f}".format))
    return Section(table)


def _frontier(frontier: Frontier | None, problem: str) -> Iterator[Section]:
    if frontier is None:
        yield warning(f"no frontier: {problem}")
        return
    held, gamma = frontier.held, span(frontier.gamma_interval, "{:.3f}".format)
    across = f" ({held.low:g} to {held.high:g})" if held.low < held.high else ""
    errors = f"{frontier.rms:.2%} root mean square" if frontier.budgets > 2 else "exactly through two budgets"
    yield line(
        f"frontier: L = E + K / C^γ with E held at {frontier.E:g}{across} {frontier.unit}, K {frontier.K:.4g},"
        f" γ {frontier.gamma:.4f}{f' (95% {gamma})' if gamma else ''}; {errors}"
    )
    free = span(frontier.free_interval, "{:.2f}".format)
    if frontier.identified:
        yield line(f"E left free: {frontier.free:.2f} (95% {free})", "dim")
    elif free:
        yield line(f"E left free: not identified (95% {free})", "dim")
    yield from map(warning, misfit_remark(frontier.rms))


def _predictions(found: Scaling, budgets: Sequence[float]) -> Section:
    main = [name for name in (found.size, "D") if name in found.powers]
    others = [name for name in found.powers if name not in main]
    heads = [head for name in main for head in (f"{name} optimal", "95%")]
    loss = (f"loss, {found.unit}", "95%") if found.frontier else ()
    end = 1 + len(heads) + len(loss)
    least = (tuple(range(end, end + len(others))), (4,), (2,))
    table = plain_table("C", *heads, *loss, *others, least=least[: len(main) + 1])
    for budget in budgets:
        predicted = found.predict(budget)
        sizes = [predicted.sizes[name] for name in main]
        cells = [text for size in sizes
                 for text in (_count(size.value), span(size.interval, _count))]  # fmt: skip
        if predicted.loss:
            cells += [f"{predicted.loss.value:.4f}", span(predicted.loss.interval, "{:.4f}".format)]
        cells += [_count(predicted.sizes[name].value) for name in others]
        table.add_row(f"{budget:.3g}", *cells)
    return Section(table)
