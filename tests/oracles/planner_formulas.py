"""Published formulas that the planner is compared with; plain arithmetic, apart from the planner's own."""

from __future__ import annotations

import math

import numpy as np

from nextword.plan import Runs, States
from nextword.plan.laws import DEFAULT, Law
from nextword.spec import ModelSpec


def palm_flops_per_token(spec: ModelSpec, parameters: int) -> int:
    """Training FLOPs a token as PaLM counts them for MFU: 6 N + 12 L H Q T (2204.02311, appendix B).

    `parameters` without learned positions; biases and norms count.
    """
    return 6 * parameters + 12 * spec.layers * spec.heads * spec.head_width * spec.context


def megatron_layer_bytes(
    batch: int, sequence: int, width: int, heads: int, tensor_parallel: int = 1, sequence_parallel: bool = False,
    recompute: str = "none",
) -> float:  # fmt: skip
    """Activations of a layer of Megatron's 16-bit GPT, with dropout (Korthikanti et al. 2022, 2205.05198, table 2)."""
    s, b, h, a, t = sequence, batch, width, heads, tensor_parallel
    if recompute == "full":
        return 2 * s * b * h
    scores = 0 if recompute == "selective" else 5 * a * s / h
    return s * b * h / t * (34 + scores) if sequence_parallel else s * b * h * (10 + 24 / t + scores / t)


def isoflop_power(runs: Runs) -> tuple[float, float]:
    """Approach 2 of Hoffmann et al.: a parabola in log D for each budget, then D_opt = k C^b. Returns (k, b)."""
    budgets: dict[float, list[int]] = {}
    for row, flops in enumerate(runs.flops):
        budget = next((known for known in budgets if abs(math.log(flops / known)) < 0.05), flops)
        budgets.setdefault(budget, []).append(row)
    bottoms = []
    for rows in budgets.values():
        curve = np.polyfit(np.log([runs.tokens[row] for row in rows]), [runs.losses[row] for row in rows], 2)
        bottoms.append(-curve[1] / (2 * curve[0]))
    slope, level = np.polyfit(np.log(list(budgets)), bottoms, 1)
    return float(np.exp(level)), float(slope)


def optimal_budget(parameters: float, law: Law = DEFAULT) -> float:
    """FLOPs for which `parameters` is the optimal size: N = G (C / 6)^a solved for C (Hoffmann et al. 2022, eq. 4)."""
    scale = (law.alpha * law.A / (law.beta * law.B)) ** (1 / (law.alpha + law.beta))
    return 6 * (parameters / scale) ** ((law.alpha + law.beta) / law.beta)


def model_states(states: States) -> float:
    """ZeRO's term: weights, gradients and optimizer, without the layers that FSDP gathers for a moment."""
    return states.total - states.part("gathered layers")
