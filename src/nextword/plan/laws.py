"""Published scaling laws, and the compute-optimal size and data by each.

N counts parameters, D tokens, C FLOPs; C = 6 N D throughout (Kaplan et al. 2020). No set of constants is
definitive: answers show several.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

from ..base import UsageError
from ..base.errors import closest
from .figure import Figure, figure
from .search import root

TOKENS_A_PARAMETER = 20
Unit = Literal["nats/token", "bits/byte"]  # of a loss


@dataclass(frozen=True)
class Law:
    """L(N, D) = E + A / N^alpha + B / D^beta, in `unit` (Hoffmann et al. 2022, 2203.15556, eq. 2)."""

    name: str
    E: float
    A: float
    B: float
    alpha: float
    beta: float
    source: str
    unit: Unit = "nats/token"

    def loss(self, parameters: float, tokens: float) -> float:
        """Predicted loss in `unit`, on the text and tokenizer that the law was fitted to."""
        return float(self.E + self.A * parameters**-self.alpha + self.B * tokens**-self.beta)

    def loss_parts(self, parameters: float, tokens: float) -> tuple[Figure, ...]:
        """The three terms of the loss; they sum to it."""
        return (
            figure("irreducible", self.unit, "E", self.source, E=self.E),
            figure("too few parameters", self.unit, "A / N ** alpha", self.source, A=self.A, N=parameters,
                   alpha=self.alpha),
            figure("too few tokens", self.unit, "B / D ** beta", self.source, B=self.B, D=tokens, beta=self.beta),
        )  # fmt: skip

    def tokens_for(self, loss: float, parameters: float) -> float:
        """Tokens at which a model of that size reaches `loss`; infinite if it never does."""
        left = loss - self.E - self.A * parameters**-self.alpha
        return float((self.B / left) ** (1 / self.beta)) if left > 0 else math.inf


HOFFMANN = Law("hoffmann", 1.69, 406.4, 410.7, 0.34, 0.28, "Hoffmann et al. 2022, 2203.15556, eq. 10, as printed")
UNROUNDED = Law(
    "hoffmann-unrounded", math.exp(0.5267228), math.exp(6.0073404), math.exp(6.0179186), 0.33917084, 0.2849083,
    "Hoffmann et al. 2022, constants of the paper's TeX source before rounding",
)  # fmt: skip
EPOCH = Law(
    "epoch", 1.8172, 482.01, 2085.43, 0.3478, 0.3658, "Besiroglu et al. 2024, 2404.10102: Chinchilla's runs refitted"
)
DATA_LIMITED = Law(
    "muennighoff", math.exp(0.6254804), math.exp(6.255414), math.exp(7.3049974), 0.3526596, 0.3526596,
    "Muennighoff et al. 2023, 2305.16264, appendix B, unrounded: C4, repeated data",
)  # fmt: skip
# Bits per byte of text, D in bytes: chooses sizes (docs/decisions.md). Losses are predicted by small_runs.py.
SMALL = Law(
    "small", 0.821, 31.95, 833.0, 0.343, 0.485, "12 runs of 68 k to 1.9 M parameters on 1 to 9 MB of speeches",
    "bits/byte",
)  # fmt: skip
LAWS: dict[str, Law] = {law.name: law for law in (EPOCH, UNROUNDED, HOFFMANN)}
DEFAULT = EPOCH


@dataclass(frozen=True)
class Optimum:
    """The optimal size and data for a budget, by one law. `loss_parts` sum to `loss`.

    For a rule that predicts no loss, it is the default law's at the rule's choice.
    """

    law: str
    budget: float
    parameters: float
    tokens: float
    figures: tuple[Figure, ...]
    loss_parts: tuple[Figure, ...]
    note: str = ""

    @property
    def units(self) -> dict[str, str]:
        unit = self.loss_parts[0].unit
        return {"budget": "FLOPs", "parameters": "parameters", "tokens": "tokens", "loss": unit}

    @property
    def loss(self) -> float:
        return sum(part.value for part in self.loss_parts)

    @property
    def ratio(self) -> float:
        """Tokens per parameter."""
        return self.tokens / self.parameters


def law(name: str) -> Law:
    """A law by name. Raises UsageError with the closest names."""
    if name not in LAWS:
        raise UsageError(f"law {name!r} is not known.{closest(name, LAWS)} Known: {', '.join(LAWS)}")
    return LAWS[name]


def optimum(budget: float, by: str | Law = "epoch") -> Optimum:
    """The compute-optimal parameters and tokens for `budget` FLOPs.

    `by` is a Law, the name of one, or of a rule: approach1, rule-of-20, kaplan. Raises UsageError for a budget
    that is not a positive number and for unknown names.
    """
    if not 0 < budget < math.inf:
        raise UsageError(f"a budget of compute is a number of FLOPs above 0, not {budget}")
    if isinstance(by, Law):
        return _by_law(budget, by)
    if by in RULES:
        size, note = RULES[by](budget)
        tokens = figure("tokens", "tokens", "C / (6 * N)", "C = 6 N D", C=budget, N=size.value)
        parts = DEFAULT.loss_parts(size.value, tokens.value)
        return Optimum(by, budget, size.value, tokens.value, (size, tokens), parts, note)
    if by not in LAWS:
        known = (*LAWS, *RULES)
        raise UsageError(f"law {by!r} is not known.{closest(by, known)} Known: {', '.join(known)}")
    return _by_law(budget, LAWS[by])


def optima(budget: float) -> tuple[Optimum, ...]:
    """The optimum by every set of constants and by every rule."""
    return tuple(optimum(budget, name) for name in (*LAWS, *RULES))


def _by_law(budget: float, chosen: Law) -> Optimum:
    sums = {"A": chosen.A, "B": chosen.B, "alpha": chosen.alpha, "beta": chosen.beta}
    scale = figure("G", "", "(alpha * A / (beta * B)) ** (1 / (alpha + beta))", "Hoffmann et al. 2022, eq. 4", **sums)
    powers = {"alpha": chosen.alpha, "beta": chosen.beta, "C": budget, "G": scale.value}
    size = figure("parameters", "parameters", "G * (C / 6) ** (beta / (alpha + beta))", chosen.source, **powers)
    tokens = figure("tokens", "tokens", "(C / 6) ** (alpha / (alpha + beta)) / G", chosen.source, **powers)
    parts = chosen.loss_parts(size.value, tokens.value)
    return Optimum(chosen.name, budget, size.value, tokens.value, (scale, size, tokens), parts)


def _approach1(budget: float) -> tuple[Figure, str]:
    """The power law through the rows of 400M and 10B of Hoffmann et al.'s Table 3."""
    formula = "N1 * (C / C1) ** (log(N2 / N1) / log(C2 / C1))"
    rows = {"N1": 4e8, "C1": 1.92e19, "N2": 1e10, "C2": 1.23e22}
    source = "Hoffmann et al. 2022, Table 3 (approach 1): power law through its rows of 400M and 10B"
    return figure(
        "parameters", "parameters", formula, source, C=budget, **rows
    ), "read off the envelope of training curves"


def _rule_of_20(budget: float) -> tuple[Figure, str]:
    formula = "sqrt(C / (6 * ratio))"
    source = "D = 20 N, a summary of Hoffmann et al. 2022"
    return figure(
        "parameters", "parameters", formula, source, C=budget, ratio=TOKENS_A_PARAMETER
    ), "20 tokens a parameter"


def _kaplan(budget: float) -> tuple[Figure, str]:
    formula = "1.3e9 * (C / (1e15 * 86400)) ** 0.73"
    source = "Kaplan et al. 2020, 2001.08361, §6.1; N without embeddings, C in PF-days"
    note = (
        "for contrast: its runs left the head's FLOPs out, warmed up too long for small models and kept one optimizer"
        " setting (Porian et al. 2024, 2406.19146)"
    )
    return figure("parameters", "parameters", formula, source, C=budget), note


RULES: dict[str, Callable[[float], tuple[Figure, str]]] = {
    "approach1": _approach1,
    "rule-of-20": _rule_of_20,
    "kaplan": _kaplan,
}


@dataclass(frozen=True)
class FlatRegion:
    """Sizes with a loss within `tolerance` of the best at the same budget, and the cost of half and double the size."""

    units: ClassVar = {"smallest": "parameters", "largest": "parameters"}
    smallest: float
    largest: float
    tolerance: float
    half_costs: float  # share of the loss, 0.0045 is 0.45%
    double_costs: float


def flat_region(best: Optimum, by: Law = DEFAULT, tolerance: float = 0.005) -> FlatRegion:
    """How far the size may be from the optimum at little cost."""

    def excess(parameters: float) -> float:
        return by.loss(parameters, best.budget / (6 * parameters)) / lowest - 1

    centre = _by_law(best.budget, by).parameters
    lowest = by.loss(centre, best.budget / (6 * centre))
    middle = math.log(centre)

    def edge(towards: float) -> float:
        return math.exp(root(lambda log_n: excess(math.exp(log_n)) - tolerance, middle, middle + towards))

    return FlatRegion(edge(-40), edge(40), tolerance, excess(centre / 2), excess(2 * centre))
