"""nextword plan: memory, time, cost, and the best model for a budget."""

from __future__ import annotations

import click

from ._app import LazyGroup

_QUESTIONS = {
    "inference": "Inference: memory, which devices it fits on, and speed.",
    "train": "Training: memory line by line, FLOPs, days and price.",
    "budget": "The best model and data size for a budget of compute, time or money.",
    "fit": "The cheapest change that makes a training run fit on a device.",
    "laws": "Scaling laws: published ones, and fits to your own runs.",
}


@click.command(name="plan", cls=LazyGroup, modules=_QUESTIONS, prefix="plan_")
def command() -> None:
    """Memory, compute, time and the compute-optimal model, with every formula shown.

    \b
    Examples:
      nextword plan inference llama-3-8b --devices rtx4090,h100
      nextword plan train --params 1B --micro-batch 8 --context 2048 --devices h100
      nextword plan budget --devices 8xh100 --days 3
      nextword plan budget --minutes 30 --devices this --out run.toml
      nextword plan fit llama-3-8b --devices rtx4090 --micro-batch 4
      nextword plan laws --data runs.csv --plot law.svg

    \b
    --explain prints each number's formula with the values put in, and its source.
    --json prints all of it with units; --plot FILE draws.
    """
