"""Write the generated pages: docs/cli.md (every help), the file tree in architecture.md, the keys in train.md.

python docs/make_reference.py           write them
python docs/make_reference.py --check   exit with 1 if one is stale
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from nextword.cli._app import PROGRAM, app
from nextword.plan.run_config import table_of_keys

ROOT = Path(__file__).resolve().parent.parent
CLI, ARCHITECTURE, TRAIN = (ROOT / "docs" / name for name in ("cli.md", "architecture.md", "train.md"))
SOURCE = ROOT / "src" / "nextword"
_HEAD = "# Command line\n\nThe help of every command, written by `python docs/make_reference.py`.\n"
_KEYS = re.compile(r"(?<=<!-- configuration keys -->\n\n).*?(?=\n<!-- end -->)", re.DOTALL)
_TREE = re.compile(r"(?<=<!-- file tree -->\n```text\n).*?(?=```)", re.DOTALL)


def help_pages(command: click.Command, context: click.Context) -> Iterator[tuple[str, str]]:
    """The name and the help text of a command and of those below it."""
    yield context.command_path, command.get_help(context)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            yield from help_pages(child, click.Context(child, info_name=name, parent=context))


def cli_reference() -> str:
    """The text of docs/cli.md."""
    root = click.Context(app, info_name=PROGRAM, terminal_width=100, **app.context_settings)
    sections = []
    for name, text in help_pages(app, root):
        lines = "\n".join(line.rstrip() for line in text.splitlines())
        sections.append(f"\n## {name}\n\n```text\n{lines}\n```\n")
    return _HEAD + "".join(sections)


def file_tree() -> str:
    """Every module with the first line of its docstring, packages in the order of their folders."""
    lines = []
    for path in sorted(SOURCE.rglob("*.py"), key=lambda path: (path.parent, path.name != "__init__.py", path.name)):
        relative = path.relative_to(SOURCE)
        name = f"{relative.parent}/" if path.name == "__init__.py" else path.name
        name = "nextword/" if name == "./" else name
        indent = "  " * (len(relative.parts) - (path.name == "__init__.py") * 1)
        comment = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n")[0]
        lines.append(f"{indent + name:<28} {comment}".rstrip())
    return "\n".join(lines) + "\n"


def architecture() -> str:
    """docs/architecture.md with the file tree of today."""
    tree = file_tree()
    return _TREE.sub(lambda _: tree, ARCHITECTURE.read_text(encoding="utf-8"))


def train() -> str:
    """docs/train.md with the table of the configuration's keys of today."""
    rows = [f"| `{key}` | {default and f'`{default}`'} | {what} |\n" for key, default, what in table_of_keys()]
    table = "".join(["| key | default | what |\n|---|---|---|\n", *rows])
    return _KEYS.sub(lambda _: table, TRAIN.read_text(encoding="utf-8"))


def main() -> int:
    """Write or compare; the exit code."""
    stale = False
    for page, text in ((CLI, cli_reference()), (ARCHITECTURE, architecture()), (TRAIN, train())):
        if "--check" not in sys.argv[1:]:
            page.write_text(text, encoding="utf-8")
        elif page.read_text(encoding="utf-8") != text:
            stale = True
            print(f"{page.name} is stale. Run: python docs/make_reference.py", file=sys.stderr)
    return int(stale)


if __name__ == "__main__":
    sys.exit(main())
