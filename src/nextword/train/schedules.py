"""Learning rate schedules."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..plan.run_config import TrainConfig
from .deadline import End


def learning_rate(config: TrainConfig, step: int, ends: Sequence[End] | None = None) -> float:
    """The rate at `step`, counted from 0.

    `ends`: those of a run whose end the clock decides (deadline.py), so far; None: of any other run.
    """
    rate, steps, warmup = config.learning_rate, config.steps, config.warmup_steps or 0
    final = rate / 10 if config.final_learning_rate is None else config.final_learning_rate
    if config.schedule == "cosine":
        return cosine(stretched(step, ends or ()), steps, warmup, rate, final)
    if config.schedule == "wsd" and ends is None:
        return rate * warmup_stable_decay(step, steps, warmup, config.decay_fraction, final / rate)
    if config.schedule == "wsd" and ends:
        highest = rate * _warmed(min(step, ends[0].step), warmup)  # the decay may begin within the warm-up
        return highest * (1.0 - decayed(step, ends) * (1.0 - min(1.0, final / highest)))
    return rate * _warmed(step, warmup)


def _warmed(step: int, warmup: int) -> float:
    """The share of the highest rate at `step` of a linear warm-up."""
    return min(1.0, (step + 1) / max(1, warmup))


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


def decayed(step: int, ends: Sequence[End]) -> float:
    """The share of a linear decay that is done at `step`: it begins with the first of `ends`, and 1 is at the last.

    Where the end is moved, the decay goes on from where it is, and is steeper or flatter from there.
    """
    done = 0.0
    for number, end in enumerate(ends):
        until = min(step, ends[number + 1].step if number + 1 < len(ends) else end.after)
        if until > end.step:
            done += (1.0 - done) * ((until - end.step) / (end.after - end.step))
    return done


def stretched(step: int, ends: Sequence[End]) -> float:
    """The step of the original schedule whose rate `step` has: with each of `ends` its rest is stretched or squeezed.

    A step at which the end is moved keeps its rate, the last one gets the original last one's.
    """
    position = float(step)
    for end in reversed(ends):
        if position >= end.after - 1:
            position = end.before - 1.0
        elif position > end.step:
            share = (position - end.step) / (end.after - 1 - end.step)
            position = end.step + share * (end.before - 1 - end.step)
    return position
