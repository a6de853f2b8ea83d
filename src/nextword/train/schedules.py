"""Learning rate schedules."""

from __future__ import annotations

import math

from ..plan.run_config import TrainConfig


def learning_rate(config: TrainConfig, step: float) -> float:
    """The rate at `step`, counted from 0; fractional if a run was shortened (deadline.py)."""
    rate, steps, warmup = config.learning_rate, config.steps, config.warmup_steps or 0
    final = rate / 10 if config.final_learning_rate is None else config.final_learning_rate
    if config.schedule == "cosine":
        return cosine(step, steps, warmup, rate, final)
    if config.schedule == "wsd":
        return rate * warmup_stable_decay(step, steps, warmup, config.decay_fraction, final / rate)
    return rate * min(1.0, (step + 1) / max(1, warmup))


def cosine(step: float, steps: int, warmup: int, most: float, least: float) -> float:
    """Linear warm-up, then half a cosine from `most` to `least` (Loshchilov and Hutter 2016, 1608.03983, eq. 5)."""
    if step < warmup:
        return most * (step + 1) / (warmup + 1)
    if step >= steps:
        return least
    done = (step - warmup) / (steps - warmup)
    return least + 0.5 * (1 + math.cos(math.pi * done)) * (most - least)


def warmup_stable_decay(step: float, steps: int, warmup: int, decay_share: float, floor: float) -> float:
    """Warm-up, stable, and linear decay to `floor` over the last `decay_share` of the steps; a factor on the rate.

    Hu et al. 2024, MiniCPM, 2404.06395, section 4.1.
    """
    if step < warmup:
        return (step + 1) / warmup
    start = decay_start(steps, decay_share)
    if step <= start or start == steps:
        return 1.0
    done = min(1.0, (step - start) / (steps - start))
    return 1.0 - done * (1.0 - floor)


def decay_start(steps: int, decay_share: float) -> int:
    """The last step at the full rate, with wsd: up to it, runs of any more steps are the same run."""
    return steps - round(decay_share * steps)
