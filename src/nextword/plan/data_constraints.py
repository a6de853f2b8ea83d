"""Corrections of the optimum for limited data and for inference cost."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from ..base import UsageError
from .figure import Figure, figure
from .laws import DATA_LIMITED, DEFAULT, Law, Optimum, optimum
from .search import lowest

REPEATED_TOKENS = 15.387756  # R*_D, Muennighoff et al. 2023, 2305.16264, §6
REPEATED_PARAMETERS = 5.309743  # R*_N


@dataclass(frozen=True)
class DataLimited:
    """Training on `unique` tokens several times. Losses in nats a token by Muennighoff et al.'s law."""

    units: ClassVar = {"unique": "tokens", "tokens": "tokens", "effective_tokens": "tokens", "loss": "nats/token"}
    unique: float
    parameters: float
    tokens: float  # seen in all
    epochs: float
    effective_tokens: float  # fresh tokens of the same value as the tokens seen
    loss: float
    loss_if_fresh: float  # for the same model and tokens without repetition

    @property
    def figures(self) -> tuple[Figure, ...]:
        """Its derivation from size, tokens and unique tokens."""
        law, source = DATA_LIMITED, "Muennighoff et al. 2023, 2305.16264, eq. 5 and 7"
        unique = min(self.unique, self.tokens)
        enough = min(_optimal_parameters(unique), self.parameters)
        formula = "{0} + {0} * R * (1 - exp(-({1} / {0} - 1) / R))"
        fresh = figure("effective tokens", "tokens", formula.format("U", "D"), source, U=unique,
                       D=self.tokens, R=REPEATED_TOKENS)  # fmt: skip
        size = figure("effective parameters", "parameters", formula.format("enough", "N"), source, enough=enough,
                      N=self.parameters, R=REPEATED_PARAMETERS)  # fmt: skip
        return (
            figure("epochs", "", "D / U", "tokens seen over different ones", D=self.tokens, U=unique),
            fresh,
            size,
            figure("loss", "nats/token", "E + A / N ** alpha + B / D ** beta", law.source, E=law.E, A=law.A, B=law.B,
                   alpha=law.alpha, beta=law.beta, N=size.value, D=fresh.value),
        )  # fmt: skip


def data_limited(parameters: float, tokens: float, unique: float) -> DataLimited:
    """The loss after `tokens` when only `unique` of them are different.

    D' = U + U R* (1 − exp(−R / R*)) with R = D / U − 1 repetitions, and the same for parameters beyond those
    that are optimal for the unique tokens (Muennighoff et al. 2023, eq. 5 and 7).
    """
    if min(parameters, tokens, unique) <= 0:
        raise UsageError("the law of repeated data needs parameters and tokens above 0")
    fresh_tokens = effective(tokens, min(unique, tokens))
    enough = min(_optimal_parameters(min(unique, tokens)), parameters)
    size = effective(parameters, enough, REPEATED_PARAMETERS)
    loss = DATA_LIMITED.loss(size, fresh_tokens)
    fresh = DATA_LIMITED.loss(parameters, tokens)
    return DataLimited(unique, parameters, tokens, max(1.0, tokens / unique), fresh_tokens, loss, fresh)


def best_when_limited(budget: float, unique: float) -> DataLimited:
    """The optimal size for `budget` FLOPs with `unique` tokens: a smaller model, for more epochs."""
    free = optimum(budget, DATA_LIMITED)
    low, high = math.log(free.parameters) - 6, math.log(free.parameters) + 6

    def loss(log_n: float) -> float:
        size = math.exp(log_n)
        return data_limited(size, budget / (6 * size), unique).loss

    size = math.exp(lowest(loss, low, high))
    return data_limited(size, budget / (6 * size), unique)


def effective(used: float, unique: float, decay: float = REPEATED_TOKENS) -> float:
    """The number of fresh ones equivalent to `used`, of which `unique` are different: eq. 5, `decay` is R*."""
    return unique + unique * decay * -math.expm1(-(used / unique - 1) / decay)


def _optimal_parameters(tokens: float) -> float:
    """Parameters for which `tokens` are optimal; alpha = beta here, so N and D grow alike."""
    law = DATA_LIMITED
    scale = (law.alpha * law.A / (law.beta * law.B)) ** (1 / (law.alpha + law.beta))
    return float(scale**2 * tokens)


@dataclass(frozen=True)
class InferenceAware:
    """The cheapest way to reach a loss by `law`, training and inference together. All costs in FLOPs."""

    units: ClassVar = dict.fromkeys(("training", "inference", "saved", "total"), "FLOPs")
    law: Law
    loss: float
    parameters: float
    tokens: float
    training: float
    inference: float
    saved: float  # FLOPs saved compared with the compute-optimal model of the same loss

    @property
    def total(self) -> float:
        return self.training + self.inference

    @property
    def figures(self) -> tuple[Figure, ...]:
        """Tokens needed at this size, and the FLOPs of training and inference. The size comes from a search."""
        law, use = self.law, self.inference / (2 * self.parameters)
        source = "Sardana et al. 2024, 2401.00448, eq. 3: the size at which training and use together are least"
        return (
            figure("tokens", "tokens", "(B / (L - E - A / N ** alpha)) ** (1 / beta)", law.source, L=self.loss, E=law.E,
                   A=law.A, B=law.B, alpha=law.alpha, beta=law.beta, N=self.parameters),
            figure("training", "FLOPs", "6 * N * D", source, N=self.parameters, D=self.tokens),
            figure("inference", "FLOPs", "2 * N * D_use", source, N=self.parameters, D_use=use),
        )  # fmt: skip


def inference_aware(best: Optimum, inference_tokens: float, by: Law = DEFAULT) -> InferenceAware:
    """Minimise 6 N D + 2 N D_inference at the loss of `best` (Sardana et al. 2024, 2401.00448, eq. 3)."""
    if not 0 < inference_tokens < math.inf:
        raise UsageError(f"inference tokens are a number above 0, not {inference_tokens}")
    plain = optimum(best.budget, by)
    target = by.loss(plain.parameters, plain.tokens)

    def work(log_n: float) -> float:
        size = math.exp(log_n)
        tokens = by.tokens_for(target, size)
        return 6 * size * tokens + 2 * size * inference_tokens

    high = math.log(plain.parameters) + 1e-9
    smallest = math.log((by.A / (target - by.E)) ** (1 / by.alpha))  # below this size no number of tokens is enough
    size = math.exp(lowest(work, smallest + 1e-9, high))
    tokens = by.tokens_for(target, size)
    before = plain.budget + 2 * plain.parameters * inference_tokens
    training, use = 6 * size * tokens, 2 * size * inference_tokens
    return InferenceAware(by, target, size, tokens, training, use, before - training - use)
