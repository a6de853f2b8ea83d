"""`nextword tour`: the path of a notebook that tests what introductions say about language models."""

from __future__ import annotations

import shlex
from importlib.resources import files
from pathlib import Path

import click

from ..base import RunError, UsageError, atomic_write
from ._options import OUTPUT_FILE


@click.command(name="tour")
@click.option("--copy", type=OUTPUT_FILE, metavar="FILE", help="Write a copy to run and change.")
def command(copy: Path | None) -> None:
    """Print the path of the tour, a notebook that tests what introductions say about language models.

    \b
    Examples:
      nextword tour --copy tour.ipynb
      jupyter lab "$(nextword tour)"
    """
    tour = files("nextword") / "tour.ipynb"
    place = Path(str(tour))
    if copy is not None:
        if copy.exists():
            raise UsageError(f"--copy {copy}: there is already a file; choose another name")
        try:
            with atomic_write(copy) as file:
                file.write(tour.read_text(encoding="utf-8"))
        except OSError as error:
            raise RunError(f"{copy}: cannot be written ({error.strerror or error})") from error
        place = copy
    click.echo(place)
    click.echo(f"open it: jupyter lab {shlex.quote(str(place))}", err=True)
