"""What a sweep found, in sentences and as plain data, and the configuration it recommends."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..base import UsageError, atomic_write, units
from ..base.toml import to_toml
from ..plan import RunConfig, optimum, parameters
from ..plan.fitting import Interval
from ..plan.isoflops import FLAT, Estimate, Frontier, compute_by_kind
from ..spec import ModelKind
from .cells import config_of
from .design import shape_of
from .law import Forecast, KindLaw, law_json
from .sweep import TABLE, Sweep, json_text
from .table import Row, table_csv

LAW, BEST = "law.json", "best.toml"
_BETTER = 0.003  # of the loss: more than noise
_AHEAD = 10.0  # times the largest budget that was run: what is projected if nothing else is asked


@dataclass(frozen=True)
class HoldOut:
    """The hold-out run: predicted before it was made, and measured."""

    row: Row
    predicted: Estimate

    @property
    def error(self) -> float:
        """predicted / measured - 1; NaN until it is measured."""
        return self.predicted.value / self.row.loss - 1

    @property
    def inside(self) -> bool | None:
        """Whether what was measured lies in the interval; None without one."""
        interval = self.predicted.interval
        return self.row.loss in interval if math.isfinite(interval.low) else None


@dataclass(frozen=True)
class Findings:
    """What a sweep's finished runs say; `factors` are times the compute of `base` at an equal loss."""

    laws: dict[ModelKind, KindLaw]
    hold_out: HoldOut | None
    base: ModelKind | None
    loss: float
    factors: dict[ModelKind, Estimate]


def findings(sweep: Sweep) -> Findings:
    """Fit what is finished."""
    fitted = {kind: law for kind in sweep.design.kinds if (law := sweep.law(kind)) is not None}
    sound = {kind: law for kind, law in fitted.items() if not law.problem}
    base, loss, factors = _compared(sound) if len(sound) > 1 else (None, float("nan"), {})
    return Findings(fitted, hold_out_of(sweep), base, loss, factors)


def hold_out_of(sweep: Sweep) -> HoldOut | None:
    """The hold-out run, once it is predicted."""
    cell, predicted = sweep.hold_out, sweep.prediction
    if cell is None or predicted is None:
        return None
    low, high = (math.nan if end is None else end for end in predicted["interval"])
    return HoldOut(sweep.row(cell), Estimate(predicted["bits_per_byte"], Interval(low, high)))


def _compared(laws: dict[ModelKind, KindLaw]) -> tuple[ModelKind, float, dict[ModelKind, Estimate]]:
    """At the lowest loss that every kind has reached, how much more compute each takes than the best one."""
    frontiers = {kind: law.scaling.frontier for kind, law in laws.items() if law.scaling.frontier is not None}
    loss = max(min(one.loss for one in law.scaling.minima if not one.problem) for law in laws.values())
    base, factors = compute_by_kind(frontiers, loss)
    return base, loss, factors


def projection(law: KindLaw, flops: float | None = None) -> Forecast:
    """What `flops` reach, or ten times the largest budget that was run."""
    return law.at(flops or float(f"{_AHEAD * law.top:.1g}"))


def sentences(sweep: Sweep, found: Findings, flops: float | None = None) -> list[str]:
    """The closing lines: what to train, what it reaches, and how well a run was predicted that had not been made."""
    lines = []
    for kind, law in found.laws.items():
        if law.problem:
            lines.append(f"{kind}: nothing can be predicted. {law.problem[:1].upper()}{law.problem[1:]}")
        else:
            lines.append(_projected(sweep, law, projection(law, flops)))
    if (held := found.hold_out) is not None:
        lines.append(_held(held))
    for kind, factor in found.factors.items():
        lines.append(
            f"the {kind} needs {factor.value:.2g} times the compute of the {found.base} to reach {found.loss:.3f} bits"
            f" a byte (95% {factor.interval.low:.2g} to {factor.interval.high:.2g})"
        )
    return lines


def _projected(sweep: Sweep, law: KindLaw, forecast: Forecast) -> str:
    what = "projected, no such run was made" if forecast.flops > law.top else "by the law"
    size, flat = forecast.size.value, law.flat
    spec = shape_of(law.kind, size, sweep.design.vocabulary, sweep.design.context)
    return (
        f"{law.kind}, for {units.format_flops(forecast.flops)}: {units.format_count(parameters(spec).total)} parameters"
        f" (M {units.compact_count(size)}; {units.compact_count(size / flat)} to {units.compact_count(size * flat)} lie"
        f" within {FLAT:.1%}) on {units.format_count(forecast.tokens)} tokens:"
        f" {_loss(Estimate(forecast.loss, forecast.interval))} bits a byte, {what}"
    )


def _loss(loss: Estimate) -> str:
    """A loss, and the longer side of its interval where it has one."""
    half = max(loss.value - loss.interval.low, loss.interval.high - loss.value)
    return f"{loss.value:.3f} ± {half:.3f}" if math.isfinite(half) else f"{loss.value:.3f} (no interval)"


def _held(held: HoldOut) -> str:
    cell = held.row.cell
    run = (
        f"{units.format_flops(cell.flops)}, M {units.compact_count(cell.size)} on {units.format_count(cell.tokens)}"
        " tokens"
    )
    predicted = f"the hold-out ({run}) was predicted {_loss(held.predicted)}"
    if held.row.status != "done":
        return f"{predicted} bits a byte; not measured yet ({held.row.status})"
    measured = f"{predicted} and measured {held.row.loss:.3f} bits a byte: {held.error:+.1%}"
    if held.inside is None:
        return measured
    return f"{measured}, {'inside' if held.inside else 'outside'} the interval"


def assumptions(sweep: Sweep, found: Findings) -> list[str]:
    """What the law rests on besides the runs."""
    lines = []
    for kind, law in found.laws.items():
        if (rates := sweep.rate_rule(kind)) is not None:
            shown = ", ".join(
                f"{best.rate:g} at M {units.compact_count(best.size)}{'' if best.bracketed else ' (not bracketed)'}"
                for best in rates.best
            )
            lines.append(f"{kind}: learning rates {shown}; ∝ M^{rates.power:.2f} beyond")
        if law.scaling.frontier is not None and not law.problem:
            lines.append(_interval(law, law.scaling.frontier))
            published = optimum(law.top, "epoch")
            lines.append(
                f"{kind}: the published law (Besiroglu et al. 2024) would have N"
                f" {units.format_count(published.parameters)} at {law.top:.2g} FLOPs; it was fitted to runs of"
                f" {1e18 / law.top:.0e} times the compute and more"
            )
    lines += _half_rate(sweep)
    if sweep.design.left_out:
        lines.append(f"left out, since time was short: {', '.join(sweep.design.left_out)}")
    return lines


def _interval(law: KindLaw, frontier: Frontier) -> str:
    """What the interval of a loss holds."""
    if not len(frontier.draws):
        return f"{law.kind}: no interval, since no budget has a run besides the three that its parabola takes"
    seeds = f"{law.seeds:.2%} over seeds" if law.seeds == law.seeds else "no seed was repeated"
    return (
        f"{law.kind}: ± holds 95% of a bootstrap with E from {frontier.held.low:g} to {frontier.held.high:g} bits a"
        f" byte and a run's noise of {frontier.noise:.2%} ({seeds}), and the predictions of other choices of runs"
    )


def _half_rate(sweep: Sweep) -> list[str]:
    """What half the learning rate makes of the largest cell that was run with it."""
    lines = []
    for half in (sweep.row(cell) for cell in sweep.repeats() if cell.role == "half-rate"):
        whole = next(row for cell in sweep.grid(half.cell.kind) if (row := sweep.row(cell)).cell.size == half.cell.size
                     and cell.budget == half.cell.budget)  # fmt: skip
        if half.status == whole.status == "done":
            change = half.loss / whole.loss - 1
            verdict = "the rates are too high for large models" if change < -_BETTER else "the rates hold"
            lines.append(
                f"{half.cell.kind}: at half its learning rate the run of M {units.compact_count(half.cell.size)} and"
                f" {half.cell.budget:.3g} FLOPs reaches {half.loss:.4f} instead of {whole.loss:.4f} bits a byte"
                f" ({change:+.2%}): {verdict}"
            )
    return lines


def best_config(sweep: Sweep, found: Findings, flops: float | None = None) -> RunConfig:
    """The configuration of the best run of `flops`, for `nextword train --config`.

    Default: the hold-out's FLOPs, or the largest budget of the runs. Raises UsageError where no law was found.
    """
    kind = found.base or next(iter(found.laws), None)
    rates = sweep.rate_rule(kind) if kind else None
    if kind is None or rates is None or found.laws[kind].problem:
        raise UsageError(f"{sweep.folder}: no law to choose a configuration by; finish the sweep, or add sizes")
    law = found.laws[kind]
    flops = flops or (found.hold_out.row.cell.flops if found.hold_out else law.top)
    design = replace(sweep.design, hold_out=flops)
    cell = design.hold_out_of(kind, law.at(flops).size.value)
    config = config_of(replace(cell, rate=rates.at(cell.size)), design, sweep.place.settings)
    return config.with_run(threads=0, follow_load=None, checkpoint_every=None, evaluate_every=None, sample_every=None)


def write_results(sweep: Sweep, log: Callable[[str], None] = lambda text: None) -> Findings:
    """Write table.csv, law.json, best.toml and report.html from the runs, those that changed; returns what they say.

    What cannot be written, such as into a folder that is read-only, is told to `log`.
    """
    from .page import REPORT, report_page

    found = findings(sweep)
    files = {TABLE: table_csv(sweep.rows(), sweep.design.seed), LAW: json_text(results_json(sweep, found))}
    with suppress(UsageError):  # no law yet
        files[BEST] = to_toml(best_config(sweep, found).to_dict())
    changed = [name for name, text in files.items() if _stored(sweep.folder / name) != text]
    if changed or not (sweep.folder / REPORT).exists():
        files[REPORT] = report_page(sweep, found)
        changed.append(REPORT)
    for name in changed:
        try:
            with atomic_write(sweep.folder / name) as file:
                file.write(files[name])
        except OSError as error:
            log(f"{sweep.folder / name} was not written: {error.strerror}")
    return found


def _stored(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeError):
        return None


def results_json(sweep: Sweep, found: Findings, flops: float | None = None) -> dict[str, Any]:
    """All of it as plain data. Losses in bits a byte."""
    held = found.hold_out
    return {
        "folder": str(sweep.folder),
        "units": {"loss": "bits/byte", "M": "FLOPs a token / 6", "flops": "FLOPs"},
        "runs": [_row_json(row) for row in sweep.rows()],
        "laws": {kind: law_json(law) for kind, law in found.laws.items()},
        "projections": {kind: _forecast_json(projection(law, flops)) for kind, law in found.laws.items()
                        if not law.problem},
        "hold_out": None if held is None else {
            "flops": held.row.cell.flops, "M": held.row.cell.size, "tokens": held.row.cell.tokens,
            "predicted": held.predicted.value, "interval": [held.predicted.interval.low, held.predicted.interval.high],
            "measured": held.row.loss,
            "error": held.error, "inside": held.inside if held.row.status == "done" else None,
        },
        "compute_at_equal_loss": {"than": found.base, "loss": found.loss,
                                  "factors": {kind: asdict(factor) for kind, factor in found.factors.items()}},
        "sentences": sentences(sweep, found, flops),
    }  # fmt: skip


def _row_json(row: Row) -> dict[str, Any]:
    cell = row.cell
    return {
        "role": cell.role, "kind": cell.kind, "M": cell.size, "tokens": cell.tokens, "flops": cell.flops,
        "budget": cell.budget, "steps": cell.steps, "learning_rate": cell.rate, "loss": row.loss, "status": row.status,
        "reason": row.reason, "folder": cell.name,
    }  # fmt: skip


def _forecast_json(forecast: Forecast) -> dict[str, Any]:
    return {
        "flops": forecast.flops, "M": asdict(forecast.size), "tokens": forecast.tokens, "loss": forecast.loss,
        "interval": asdict(forecast.interval), "fitted": asdict(forecast.fitted), "filters": forecast.filters,
    }  # fmt: skip
