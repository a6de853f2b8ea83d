"""A compute budget → model size, tokens, loss, and warnings."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from ..base import UsageError
from ..base.units import format_count, format_flops
from ..spec import ModelSpec
from .compute import flops
from .data_constraints import DataLimited, InferenceAware, best_when_limited, data_limited, inference_aware
from .figure import Figure, figure
from .fitting import Interval
from .hardware import Device
from .laws import DEFAULT, FlatRegion, Law, Optimum, flat_region, law, optima, optimum
from .parameters import parameters
from .run_config import RunConfig
from .shape_search import LARGEST, SMALLEST, memory_setup, run_for, shape_for
from .training import MFU, Memory, duration, training_memory

FITTED_FROM, FITTED_TO = 1e18, 1e22  # FLOPs of the runs that the laws were fitted to, roughly
MANY_EPOCHS = 4  # up to this many epochs, repeated tokens are worth almost as much as fresh ones (2305.16264, §6)
LEAST_FLOPS, MOST_FLOPS = 1e9, 1e32  # no law applies outside
LEAST_TOKENS, MOST_TOKENS = 1e3, 1e16  # available, or to train on: from a page or two to more than all existing text
MOST_USE = 1e18  # tokens processed in deployment: a billion users for years
EPOCHS_FITTED, MOST_EPOCHS = (
    500,
    10_000,
)  # of the runs behind the law of repeated data (2305.16264, appendix A); the most accepted
RATIO_TRIED, MOST_RATIO = 10_000, 1e6  # tokens per parameter (Sardana et al. 2024, 2401.00448, §4); the most accepted
_SLACK = 1.02


@dataclass(frozen=True)
class Choice:
    """The size and data chosen for the concrete model, and the reason."""

    units: ClassVar = {"parameters": "parameters", "tokens": "tokens", "loss": "nats/token", "interval": "nats/token"}
    parameters: float
    tokens: float
    loss: float
    interval: Interval  # 95%, of the law's constants alone
    reason: str


@dataclass(frozen=True)
class ConcreteRun:
    """A model that can be built, and a run of it if the device holds it; None, with the reason in `warnings`."""

    model: ModelSpec | None = None
    run: RunConfig | None = None
    memory: Memory | None = None
    time: Figure | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class BudgetPlan:
    """The plan for a budget. `optima` has one entry per law or rule."""

    flops: Figure
    optima: tuple[Optimum, ...]
    best: Optimum
    flat: FlatRegion
    interval: Interval
    limited: DataLimited | None
    plain_limited: DataLimited | None  # the plain optimum trained on the available data
    aware: InferenceAware | None
    choice: Choice
    concrete: ConcreteRun
    device: Device | None
    devices: int
    warnings: tuple[str, ...]

    def _repr_mimebundle_(self, **_: object) -> dict[str, Any]:
        """In a notebook: the loss over parameters and tokens."""
        from .plots import budget_bundle

        return budget_bundle(self)


def budget_from(
    *,
    compute: float | None = None,
    seconds: float | None = None,
    dollars: float | None = None,
    price: float | None = None,
    device: Device | None = None,
    devices: int = 1,
    mfu: float = MFU,
) -> Figure:
    """FLOPs from FLOPs, from time on devices, or from money at a price per device and hour."""
    if compute is not None:
        return figure("budget", "FLOPs", "flops", "as given", flops=compute)
    assert device is not None, "time and money buy FLOPs on a device"
    inputs = {"devices": devices, "peak": device.peak, "mfu": mfu}
    source = f"{device.title}: {device.source}; the share of the peak is assumed"
    if seconds is not None:
        return figure("budget", "FLOPs", "devices * seconds * peak * mfu", source, seconds=seconds, **inputs)
    assert dollars is not None, "the budget is compute, time or money"
    assert price is not None, "money buys hours at a price"
    inputs.pop("devices")
    return figure(
        "budget", "FLOPs", "dollars / price * 3600 * peak * mfu", source, dollars=dollars, price=price, **inputs
    )


def plan_budget(
    work: Figure,
    *,
    by: str = DEFAULT.name,
    device: Device | None = None,
    devices: int = 1,
    mfu: float = MFU,
    tokens_available: float | None = None,
    inference_tokens: float | None = None,
) -> BudgetPlan:
    """Plan for a budget: optima, loss, flat region, warnings, and a model that can be trained."""
    chosen, compute = law(by), work.value
    if not LEAST_FLOPS <= compute <= MOST_FLOPS:
        raise UsageError(
            f"a budget of {compute:.3g} FLOPs: plans are made from {LEAST_FLOPS:g} to {MOST_FLOPS:g}."
            " A minute of one core is about 1e12, GPT-3 was 3e23"
        )
    _check_tokens(tokens_available, inference_tokens)
    best = optimum(compute, chosen)
    short = tokens_available is not None and tokens_available < best.tokens
    limited = best_when_limited(compute, tokens_available) if tokens_available and short else None
    plain = data_limited(best.parameters, best.tokens, tokens_available) if tokens_available and short else None
    aware = inference_aware(best, inference_tokens, chosen) if inference_tokens else None
    _check_reach(limited, aware)
    choice = _choose(best, chosen, limited, aware)
    run = _concrete_run(compute, choice, device, devices, mfu, keep_tokens=aware is not None and limited is None)
    return BudgetPlan(
        flops=work,
        optima=optima(compute),
        best=best,
        flat=flat_region(best, chosen),
        interval=prediction_interval(best.parameters, best.tokens),
        limited=limited,
        plain_limited=plain,
        aware=aware,
        choice=choice,
        concrete=run,
        device=device,
        devices=devices,
        warnings=(
            *_range_warning(compute), *_data_warnings(best, limited, plain), *_use_warnings(best, aware), *run.warnings
        ),
    )  # fmt: skip


def _concrete_run(
    compute: float, choice: Choice, device: Device | None, devices: int, mfu: float, keep_tokens: bool
) -> ConcreteRun:
    """A model near the choice, and a run of it with the budget in exact FLOPs, or the choice's tokens."""
    if not SMALLEST <= choice.parameters <= LARGEST:
        outside = f"{format_count(choice.parameters)} parameters are outside {SMALLEST:g} to {LARGEST:g}"
        return ConcreteRun(warnings=(f"no concrete model: {outside}",))
    model = shape_for(choice.parameters)
    warnings = [*_count_warning(model), *_guess_warning(model, choice.loss)]
    if device is None:
        return ConcreteRun(model, warnings=tuple(warnings))
    try:
        run = run_for(model, compute, device, devices, choice.tokens if keep_tokens else None)
    except UsageError as error:  # the optimum is still valid
        return ConcreteRun(model, warnings=(*warnings, f"no concrete run: {error}"))
    setup = memory_setup(run, device)
    memory = training_memory(run.spec, setup)
    needed = flops(run.spec, run.train.context, run.total_tokens).total
    time = duration(needed, devices, device.speed(setup.precision), mfu)
    return ConcreteRun(model, run, memory, time, tuple(warnings))


def _check_tokens(available: float | None, use: float | None) -> None:
    for option, value, least, most in (
        ("--tokens-available", available, LEAST_TOKENS, MOST_TOKENS),
        ("--inference-tokens", use, LEAST_TOKENS, MOST_USE),
    ):
        if value is not None and not least <= value <= most:
            raise UsageError(f"{option} {value:g}: plans are made from {least:g} to {most:g} tokens")


def _check_reach(limited: DataLimited | None, aware: InferenceAware | None) -> None:
    """Raise UsageError for a budget so far outside a law's runs that its numbers are meaningless."""
    if limited is not None and limited.epochs > MOST_EPOCHS:
        raise UsageError(
            f"--tokens-available {limited.unique:g}: this budget would see them {limited.epochs:,.0f} times; the law of"
            f" repeated data was fitted up to {EPOCHS_FITTED} and says nothing beyond {MOST_EPOCHS:,}. Give a smaller"
            " budget, or more tokens"
        )
    if aware is not None and (aware.tokens > MOST_TOKENS or aware.tokens / aware.parameters > MOST_RATIO):
        raise UsageError(
            f"--inference-tokens: so many call for {format_count(aware.parameters)} parameters on"
            f" {format_count(aware.tokens)} tokens; plans are made up to {MOST_TOKENS:g} tokens and {MOST_RATIO:,.0f} a"
            " parameter. Give fewer, or a larger budget"
        )


def _choose(best: Optimum, by: Law, limited: DataLimited | None, aware: InferenceAware | None) -> Choice:
    if limited is not None:
        spread = prediction_interval(limited.parameters, limited.effective_tokens)
        shift = limited.loss - DEFAULT.loss(limited.parameters, limited.effective_tokens)
        interval = Interval(spread.low + shift, spread.high + shift)
        reason = "optimal for this compute and the available tokens, repeated (Muennighoff et al. 2023)"
        return Choice(limited.parameters, limited.tokens, limited.loss, interval, reason)
    if aware is not None:
        interval = prediction_interval(aware.parameters, aware.tokens)
        reason = "cheapest for training and inference together (Sardana et al. 2024)"
        return Choice(aware.parameters, aware.tokens, aware.loss, interval, reason)
    interval = prediction_interval(best.parameters, best.tokens)
    return Choice(best.parameters, best.tokens, best.loss, interval, f"compute-optimal by {by.name}")


@cache
def epoch_draws() -> tuple[Law, ...]:
    """Bootstrap fits of the Epoch points, from tests/oracles/make_epoch_draws.py."""
    data = json.loads((Path(__file__).parent / "epoch_draws.json").read_text(encoding="utf-8"))
    return tuple(Law("draw", E, A, B, alpha, beta, data["source"]) for E, A, B, alpha, beta in data["draws"])


def prediction_interval(size: float, tokens: float) -> Interval:
    """95% interval of the bootstrap fits' predictions; it does not cover other text."""
    losses = sorted(draw.loss(size, tokens) for draw in epoch_draws())
    last = len(losses) - 1
    return Interval(losses[round(0.025 * last)], losses[round(0.975 * last)])


def _range_warning(compute: float) -> list[str]:
    if FITTED_FROM <= compute <= FITTED_TO:
        return []
    side = "below" if compute < FITTED_FROM else "above"
    return [
        f"{format_flops(compute)} is {side} the runs that these laws were fitted to ({FITTED_FROM:g} to {FITTED_TO:g}"
        " FLOPs): sizes and losses are extrapolated"
    ]


def _data_warnings(best: Optimum, limited: DataLimited | None, plain: DataLimited | None) -> list[str]:
    if limited is None or plain is None:
        return []
    said = [
        f"the optimum needs {format_count(best.tokens)} tokens and {format_count(plain.unique)} are available:"
        f" {plain.epochs:.1f} epochs, worth {format_count(plain.effective_tokens)} fresh tokens; loss"
        f" {plain.loss:.3f} instead of {plain.loss_if_fresh:.3f}. Better: {format_count(limited.parameters)} parameters"
        f" for {limited.epochs:.1f} epochs, loss {limited.loss:.3f} (Muennighoff et al. 2023)"
    ]
    if limited.epochs > EPOCHS_FITTED:
        said.append(
            f"{limited.epochs:,.0f} epochs are beyond the {EPOCHS_FITTED} that the law of repeated data was fitted up"
            " to: the loss is extrapolated, and real runs overfit"
        )
    if limited.epochs > MANY_EPOCHS:
        said.append(
            f"beyond {MANY_EPOCHS} epochs repeated tokens teach little more: get more data, or spend less compute"
        )
    return said


def _use_warnings(best: Optimum, aware: InferenceAware | None) -> list[str]:
    if aware is None or aware.parameters > best.parameters / _SLACK:
        return []
    said = []
    if aware.tokens / aware.parameters > RATIO_TRIED:
        said.append(
            f"{aware.tokens / aware.parameters:,.0f} tokens a parameter are beyond the {RATIO_TRIED:,} that were tried"
            " (Sardana et al. 2024): sizes and losses are extrapolated"
        )
    return [
        *said,
        f"much use to come: {format_count(aware.parameters)} parameters on {format_count(aware.tokens)} tokens reach"
        f" the same loss {aware.loss:.3f}; training takes {format_flops(aware.training)}"
        f" ({aware.training / best.budget - 1:.0%} above the budget), use {format_flops(aware.inference)},"
        f" together {aware.saved / (aware.total + aware.saved):.0%} less than with the compute-optimal model"
        " (Sardana et al. 2024)",
    ]


def _count_warning(model: ModelSpec) -> list[str]:
    exact, rule = flops(model).per_token, 6 * parameters(model).total
    if abs(exact / rule - 1) < 0.1:
        return []
    return [
        f"6ND is {abs(exact / rule - 1):.0%} {'below' if exact > rule else 'above'} the model's exact FLOPs; the run's"
        " tokens are by the exact count"
    ]


def _guess_warning(model: ModelSpec, loss: float) -> list[str]:
    """The laws hold for one text and tokenizer; far below their runs they are worse than a guess."""
    guess = math.log(model.vocabulary)
    if loss < guess:
        return []
    return [
        f"a loss of {loss:.2f} is not a prediction: guessing among {model.vocabulary:,} tokens alone gives"
        f" {guess:.2f}. Runs of your own (nextword train) correct it"
    ]


def surface(best: Optimum, by: Law, steps: int = 60) -> tuple[list[float], list[float], list[list[float]]]:
    """Sizes, tokens and the losses over them, for a picture around an optimum."""
    reach = math.log(1e2)
    sizes = [best.parameters * math.exp(reach * (2 * i / (steps - 1) - 1)) for i in range(steps)]
    tokens = [best.tokens * math.exp(reach * (2 * i / (steps - 1) - 1)) for i in range(steps)]
    return sizes, tokens, [[by.loss(n, d) for n in sizes] for d in tokens]
