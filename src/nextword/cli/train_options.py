"""Which options of `nextword train` exclude each other: an option that would have no effect is refused by name."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import click
from click.core import ParameterSource

from ..base import UsageError
from ..base.fields import FieldError

BUDGETS = ("minutes", "flops", "tokens", "steps", "config")
_OWN = ("bpe", "bytes", "characters")  # tokenizers that are made for the text


@dataclass(frozen=True)
class Given:
    """The options of one command line: their values, and which of them were typed."""

    values: Mapping[str, Any]
    typed: frozenset[str]
    processes: int = 1

    def has(self, name: str) -> bool:
        """Whether the option was typed."""
        return name in self.typed

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    @property
    def kind(self) -> str:
        """The kind of model asked for; "" where a file or a model's name decides."""
        return "" if self.has("config") or self.has("start_from") else str(self["kind"])

    @property
    def recurrent(self) -> bool:
        return self.kind in ("rnn", "lstm", "gru")


@dataclass(frozen=True)
class NoEffect:
    """`option` does nothing where `when` holds, which the user reads as `where`; `instead` is the way out."""

    option: str  # parameter's name
    where: str
    when: Callable[[Given], bool]
    instead: str


def _beside(other: str, flag: str, *options: str, why: str) -> list[NoEffect]:
    return [
        NoEffect(option, f"with {flag}", lambda given: given.has(other), f"leave it out: {why}") for option in options
    ]


NO_EFFECT: tuple[NoEffect, ...] = (
    *_beside("config", "--config", "kind", "match", "count", "context", "batch", "start_from", "lora",
             why="the file says which model and which batch"),
    *_beside("start_from", "--from", "kind", "match", "count", "tokenizer", "vocabulary",
             why="the model that --from names has its own"),
    NoEffect("lora", "without --from", lambda given: not given.has("start_from"),
             "name the model to adapt with --from MODEL, or leave it out"),
    NoEffect("match", "with --model transformer", lambda given: given.kind == "transformer",
             "leave it out or choose --model lstm"),
    NoEffect("carry_state", "with --model transformer", lambda given: given.kind == "transformer",
             "there is no state to carry; leave it out or choose --model lstm"),
    NoEffect("recompute", "with a recurrent net", lambda given: given.recurrent,
             "leave it out or choose --model transformer"),
    NoEffect("vocabulary", "with --tokenizer bytes", lambda given: given["tokenizer"] == "bytes",
             "it has 257 tokens; leave it out or choose --tokenizer bpe"),
    NoEffect("vocabulary", "with --tokenizer characters", lambda given: given["tokenizer"] == "characters",
             "the text says which there are; leave it out or choose --tokenizer bpe"),
    NoEffect("vocabulary", "with a model's tokenizer", lambda given: given["tokenizer"] not in _OWN,
             "the tokenizer has its own; leave it out or choose --tokenizer bpe"),
    NoEffect("packing", "with --carry-state", lambda given: bool(given["carry_state"]),
             "rows go on where they ended; leave one of the two out"),
    NoEffect("shard", "in a single process", lambda given: given.processes == 1,
             "start several, torchrun --nproc-per-node 2 -m nextword train ..., or leave it out"),
    NoEffect("sample", "with --shard fsdp", lambda given: given.processes > 1 and given["shard"] == "fsdp",
             "no process holds the whole model; leave it out or choose --shard ddp"),
    NoEffect("threads", "on a GPU", lambda given: str(given["device"]).startswith("cuda"),
             "leave it out or choose --device cpu"),
    NoEffect("keep", "with --checkpoint-every 0", lambda given: given["checkpoint_every"] == 0,
             "only the last checkpoint is written; leave one of the two out"),
)  # fmt: skip


def check_options(context: click.Context, environment: Mapping[str, str] = os.environ) -> None:
    """Raise UsageError for options that contradict each other, or of which one would be dropped."""
    given = _given(context, environment)
    typed = [option_name(context, name) for name in BUDGETS if given.has(name)]
    if len(typed) > 1:
        raise UsageError(f"{' and '.join(typed)} are budgets of their own; give one")
    if not typed:
        raise UsageError("give a budget: --minutes 20, --flops 1e15, --tokens 50M, --steps 1000 or --config FILE")
    for rule in NO_EFFECT:
        if given.has(rule.option) and rule.when(given):
            raise UsageError(f"{option_name(context, rule.option)} has no effect {rule.where}; {rule.instead}")
    if given["guard"] == "rewind" and given["checkpoint_every"] == 0:
        raise UsageError("--guard rewind goes back to a checkpoint, and --checkpoint-every 0 writes none under way")


@contextmanager
def options_named(context: click.Context) -> Iterator[None]:
    """Say --learning-rate for learning_rate in the errors of the block."""
    try:
        yield
    except FieldError as error:
        raise UsageError(error.said_as(option_name(context, error.name))) from None


def option_name(context: click.Context, name: str) -> str:
    """--from for start_from: the option as it is typed; the name itself where no option is called so."""
    return next((each.opts[0] for each in context.command.params if each.name == name), name)


def _given(context: click.Context, environment: Mapping[str, str]) -> Given:
    typed = (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT)
    names = {name for name in context.params if context.get_parameter_source(name) in typed}
    return Given(context.params, frozenset(names), processes(environment))


def processes(environment: Mapping[str, str] = os.environ) -> int:
    """How many processes torchrun started; 1 without it. Asked here without importing torch."""
    return int(environment.get("WORLD_SIZE", "1"))
