"""Write docs/cli.md, the help page of every command.

python docs/make_cli_reference.py           write the page
python docs/make_cli_reference.py --check   exit with 1 if the page is stale
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import click

from nextword.cli._app import PROGRAM, app

PAGE = Path(__file__).resolve().parent / "cli.md"
_HEAD = """# Command line

The help page of every command, written by `python docs/make_cli_reference.py`.
"""


def help_pages(command: click.Command, context: click.Context) -> Iterator[tuple[str, str]]:
    """The name and the help text of a command and of those below it."""
    yield context.command_path, command.get_help(context)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from help_pages(below, click.Context(below, info_name=name, parent=context))


def reference() -> str:
    """The text of the page."""
    root = click.Context(app, info_name=PROGRAM, terminal_width=100, **app.context_settings)
    sections = [
        f"\n## {name}\n\n```text\n{chr(10).join(line.rstrip() for line in text.splitlines())}\n```\n"
        for name, text in help_pages(app, root)
    ]
    return _HEAD + "".join(sections)


def main() -> int:
    """Write or compare; the exit code."""
    text = reference()
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(text, encoding="utf-8")
        return 0
    stale = PAGE.read_text(encoding="utf-8") != text
    if stale:
        print("docs/cli.md is stale. Run: python docs/make_cli_reference.py", file=sys.stderr)
    return int(stale)


if __name__ == "__main__":
    sys.exit(main())
