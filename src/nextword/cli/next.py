"""nextword next: the distribution of the next token."""

from __future__ import annotations

from typing import Any

import click

from ..base import UsageError
from ..plots import save
from ._options import load_model, model_options, plot_option, read_prompt, sampling_options, sampling_settings


@click.command(name="next")
@click.argument("prompt", required=False)
@click.option("-f", "--file", metavar="FILE", help="Read the prompt from a file; - is standard input.")
@model_options
@click.option("-t", "--temperature", "temperatures", default="0.5,1,2", show_default=True, metavar="T,T,...",
              help="Temperatures to compare.")  # fmt: skip
@click.option("-k", "--top", type=int, default=12, show_default=True, metavar="K", help="Number of tokens to show.")
@sampling_options
@plot_option("Also draw it")
@click.option("--json", "as_json", is_flag=True, help="One JSON object with every number.")
def command(prompt: str | None, file: str | None, temperatures: str, **options: Any) -> None:
    """Show the distribution of the token after PROMPT, as bars, at several temperatures.

    \b
    nextword next "I like to eat"
    nextword next "The capital of France is" --temperature 0.2,1,5 --plot paris.svg
    """
    values = _numbers(temperatures)
    settings = sampling_settings(options)
    plot = options["plot"]
    text = read_prompt(prompt, file)
    model = load_model(options)
    distributions = model.next_token_distributions(text, values, options["top"], **settings)
    if options["as_json"]:
        from ._console import emit_json

        rows = [distribution.to_dict() for distribution in distributions]
        emit_json({"model": model.name, "precision": model.loaded.precision, "distributions": rows})
    else:
        from ._pictures import print_next

        print_next(distributions)
    if plot is not None:
        from ..engine.plots import next_figure

        save(next_figure(distributions), plot)


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"--temperature {text!r} is not a list of numbers, as in 0.5,1,2") from None
