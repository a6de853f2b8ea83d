"""`nextword completion`: the script that lets a shell complete commands and options."""

from __future__ import annotations

import click

_WHERE = {
    "bash": 'eval "$(nextword completion bash)"      # in ~/.bashrc',
    "zsh": 'eval "$(nextword completion zsh)"       # in ~/.zshrc, after compinit',
    "fish": "nextword completion fish > ~/.config/fish/completions/nextword.fish",
}

_HELP = "Print the script that lets your shell complete nextword's commands, options and models.\n\n\b\n" + "\n".join(
    f"  {line}" for line in _WHERE.values()
)


@click.command(help=_HELP)
@click.argument("shell", type=click.Choice(list(_WHERE)))
def command(shell: str) -> None:
    from click.shell_completion import get_completion_class

    from ._app import COMPLETION_VARIABLE, PROGRAM, app

    script = get_completion_class(shell)
    assert script is not None
    click.echo(script(app, {}, PROGRAM, COMPLETION_VARIABLE).source())
