"""The top-level command group. A command's module is imported when it runs, not for `--help`."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import click

from .. import __version__
from ..base.errors import closest

PROGRAM = "nextword"
COMPLETION_VARIABLE = "_NEXTWORD_COMPLETE"
_SUBCOMMAND = "nextword.subcommand"  # key of a context's meta

VERBS = {
    "complete": "Complete a prompt with a language model.",
    "next": "Show the distribution of the next token at several temperatures.",
    "serve": "Serve models to clients of OpenAI's API.",
    "chat": "Chat with a model through its own chat template.",
    "eval": "Measure zero-, one- and few-shot prompts on real models, with error bars.",
    "plan": "Plan memory, compute, time and the compute-optimal model.",
    "data": "Prepare text for training, and look at what was prepared.",
    "train": "Train a transformer, RNN, LSTM or GRU on your text.",
    "scale": "Find your own scaling law with a sweep of small runs, and predict a larger one.",
    "runs": "List, show, compare, resume and export training runs.",
    "compare-context": "Measure how much context each architecture makes use of.",
    "models": "List, download, inspect, convert and remove models.",
    "tour": "Print the path of the tour of language models, a notebook.",
    "completion": "Print the shell completion script.",
}

_HELP = """Plan, train, prompt, serve and measure language models.

\b
Examples:
  nextword complete "The history of the printing press begins with"
  nextword next "I like to eat" --temperature 0.5,1,2
  echo "Once upon a time" | nextword complete --max-tokens 60 --seed 1
  nextword chat
  nextword models list

A model is a name from `nextword models list`, a folder with safetensors, a .gguf file, or
hf:owner/name. A named model is downloaded on first use.
"""

_ENDING = """Exit codes: 0 done, 1 failed at run time, 2 wrong usage, 130 interrupted, 143 terminated.
Environment: NEXTWORD_CACHE sets the model folder, NO_COLOR disables colour, NEXTWORD_DEBUG=1 shows tracebacks."""


class Suggesting(click.Group):
    """A click group that keeps its commands in order and suggests the nearest for an unknown one."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        known = self.list_commands(ctx)
        if args[0] not in known and not args[0].startswith("-"):
            ctx.fail(f"there is no command {args[0]!r}.{closest(args[0], known)}")
        return super().resolve_command(ctx, args)


class CommandGroup(Suggesting):
    """A command that is also a group, if the first word is a subcommand: `eval TASK`, `eval runs`.

    Before a subcommand its arguments are not parsed, and need a default.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[_SUBCOMMAND] = bool(args) and args[0] in self.commands
        if not ctx.meta[_SUBCOMMAND]:
            ctx.allow_interspersed_args, ctx.allow_extra_args = True, False
        return super().parse_args(ctx, args)

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        if ctx.command is not self:  # subcommands ask too, to show the arguments in their usage
            return []
        params = super().get_params(ctx)
        if ctx.meta.get(_SUBCOMMAND):
            return [param for param in params if not isinstance(param, click.Argument)]
        return params

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return click.Command.collect_usage_pieces(self, ctx)


class LazyGroup(Suggesting):
    """Commands with one module each, listed in help without importing it.

    `modules` maps each command to its line of help; the command itself is `nextword.cli.<prefix><command>:command`.
    """

    def __init__(self, *args: Any, modules: dict[str, str], prefix: str = "", **options: Any) -> None:
        super().__init__(*args, **{**options, "invoke_without_command": True})
        self.modules, self.prefix = modules, prefix

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.modules)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.modules:
            return None
        command = import_module(f"nextword.cli.{self.prefix}{cmd_name.replace('-', '_')}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(self.modules.items()))

    def invoke(self, ctx: click.Context) -> Any:
        result = super().invoke(ctx)
        if ctx.invoked_subcommand is None:
            click.echo(ctx.get_help())
        return result


@click.command(
    cls=LazyGroup,
    modules=VERBS,
    help=_HELP,
    epilog=_ENDING,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, "-V", "--version", prog_name=PROGRAM, message="%(prog)s %(version)s")
def app() -> None:
    """The command line."""
