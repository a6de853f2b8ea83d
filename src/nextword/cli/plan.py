"""nextword plan: what fits, what it costs, how large a model on how many tokens."""

from __future__ import annotations

from importlib import import_module

import click

from ._app import Suggesting

_QUESTIONS = {
    "inference": "Using a model: memory, what fits on which device, how fast.",
    "train": "Training a model: memory line by line, FLOPs, days, price.",
    "budget": "The best model and data for a budget of compute, time or money.",
    "fit": "The cheapest change that makes a training run fit on a device.",
    "laws": "Scaling laws: published ones, and fits to your own runs.",
}


class Questions(Suggesting):
    """Subcommands that live in a module each, imported when used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_QUESTIONS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _QUESTIONS:
            return None
        command = import_module(f"nextword.cli.plan_{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_QUESTIONS.items()))


@click.command(name="plan", cls=Questions, invoke_without_command=True)
@click.pass_context
def command(context: click.Context) -> None:
    """Memory, compute, time and the compute-optimal model, with every formula shown.

    \b
    Examples:
      nextword plan inference llama-3-8b --devices rtx4090,h100
      nextword plan train --params 1B --micro-batch 8 --context 2048 --devices h100
      nextword plan budget --devices 8xh100 --days 3
      nextword plan budget --minutes 30 --devices this --out run.json
      nextword plan fit llama-3-8b --devices rtx4090 --micro-batch 4
      nextword plan laws --data runs.csv --plot law.svg

    \b
    --explain prints each number's formula with the values put in, and its source.
    --json prints all of it with units; --plot FILE draws.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())
