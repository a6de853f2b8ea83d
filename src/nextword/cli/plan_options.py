"""Option types for numbers with units, and options shared by the plan commands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import click

from ..base import units
from ..plan import Device
from ..plan.activations import Kernel
from ..plan.compute import Recompute
from ..plan.hardware import device, split_count
from ..plan.laws import DEFAULT as DEFAULT_LAW
from ..plan.questions import LONGEST_CONTEXT, MOST_SEQUENCES, lora_matrices
from ..plan.states import BASES, Optimizer, Precision, Shard
from ..plan.training import DEVICES_PER_MACHINE, MFU
from ..spec import ModelKind
from ..weights.catalogue import cache_folder
from ._options import plot_option, stack


class Quantity(click.ParamType[float]):
    """A number with a unit; the error for a malformed one lists the accepted forms."""

    def __init__(self, name: str, parse: Callable[[str, str], float]) -> None:
        self.name, self.parse = name, parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        return self.parse(str(value), param.opts[0] if param else self.name)


class WholeNumber(click.ParamType[int]):
    """A whole number within limits, such as 8192, 8k, 1e9 or 1_000."""

    name = "integer"

    def __init__(self, least: int, most: int) -> None:
        self.least, self.most = least, most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        return units.parse_whole(str(value), param.opts[0] if param else self.name, self.least, self.most)


COUNT = Quantity("COUNT", units.parse_count)
STEPS = WholeNumber(1, 1 << 40)
ROWS = WholeNumber(1, MOST_SEQUENCES)
TOKENS = WholeNumber(2, LONGEST_CONTEXT)
VOCABULARY = WholeNumber(257, 1 << 20)  # of a byte-level tokenizer: every byte and the end of the text
FLOPS = Quantity("FLOPS", units.parse_flops)
MONEY = Quantity("MONEY", units.parse_money)


def duration_in(unit: str) -> Quantity:
    """A duration; a bare number counts `unit`s."""
    return Quantity("TIME", lambda text, what: units.parse_seconds(text, what, unit))


class DevicesType(click.ParamType[tuple[int, Device]]):
    """A number and a kind of devices: h100, 8xh100, this, NAME=24GB,1TB/s,165TFLOP/s."""

    name = "devices"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, Device]:
        if isinstance(value, tuple):
            return value
        count, name = split_count(str(value))
        return count, find_device(name)


def find_device(name: str) -> Device:
    """A device by name; "this" is measured once and remembered."""
    return device(name, cache_folder())


def devices_option(default: str | None = None, note: str = "", required: bool = False) -> Callable[[Any], Any]:
    defaults: dict[str, Any] = {"default": default, "show_default": True} if default else {"required": required}
    text = f"h100, 8xh100, `this` (measured), or NAME=24GB,1TB/s,165TFLOP/s.{note}"
    return click.option("--devices", type=DevicesType(), metavar="NAME", help=text, **defaults)


def choice(literal: Any) -> click.Choice[str]:
    """A choice of a Literal type's values."""
    return click.Choice(get_args(literal))


model_argument = stack(
    click.argument("model", required=False),
    click.option("--params", type=COUNT, metavar="N", help="Instead of MODEL: about N parameters, as in 1B."),
    click.option(
        "--arch", type=choice(ModelKind), default=None, help="Kind of model for --params. Default: transformer."
    ),
)
output_options = stack(
    click.option("--explain", is_flag=True, help="Print every number's formula, with values, and its source."),
    click.option("--json", "as_json", is_flag=True, help="Print JSON, with units, formulas and sources."),
    plot_option("Draw the plan"),
)  # fmt: skip
context_option = click.option(
    "--context", type=WholeNumber(1, LONGEST_CONTEXT), default=None, metavar="TOKENS",
    help="Tokens per sequence; default: the model's own, at most 8,192.",
)  # fmt: skip
mfu_option = click.option(
    "--mfu", type=float, default=MFU, show_default=True, help="Assumed share of the devices' peak."
)
price_option = click.option("--price", type=MONEY, default=None, metavar="$", help="Price per device hour.")
law_option = click.option(
    "--law", default=DEFAULT_LAW.name, show_default=True, metavar="NAME", help="Law whose optimum is chosen."
)
training_options = stack(
    click.option("--micro-batch", type=ROWS, default=1, show_default=True, metavar="N",
                 help="Sequences per device at a time."),
    context_option,
    click.option("--optimizer", type=choice(Optimizer), default="adamw", show_default=True),
    click.option("--train-dtype", type=choice(Precision), default=None,
                 help="mixed: bf16 with float32 master weights; amp: torch.autocast; bf16: nothing in float32."
                 " Default: mixed; fp32 on `this` CPU."),
    click.option("--recompute", type=choice(Recompute), default="none", show_default=True,
                 help="Activations recomputed in the backward pass."),
    click.option("--attention", type=choice(Kernel), default="flash", show_default=True,
                 help="plain stores the attention matrix; flash does not."),
    click.option("--loss", type=click.Choice(["whole", "chunked"]), default="whole", show_default=True,
                 help="chunked never holds all logits."),
    click.option("--shard", type=choice(Shard), default="none", show_default=True,
                 help="How weights, gradients and optimizer states are sharded."),
    click.option("--per-machine", type=WholeNumber(1, 1 << 16), default=DEVICES_PER_MACHINE, show_default=True,
                 metavar="N", help="Devices a machine has; --shard hybrid keeps a copy on each machine."),
    click.option("--lora", type=WholeNumber(0, 1 << 16), default=0, metavar="RANK",
                 help="Train adapters of this rank; the rest is frozen. Default: on every matrix of the layers as"
                 " nextword train has them (queries, keys and values are one, gate and up are one)."),
    click.option("--lora-targets", default="", metavar="NAMES",
                 callback=lambda context, option, names: lora_matrices(names) if names else (),
                 help="Separate adapters for these matrices, as in PEFT: q,k,v,o,gate,up,down or all."),
    click.option("--base", type=click.Choice(list(BASES)), default="bf16", show_default=True,
                 help="Type of the frozen weights with --lora."),
)  # fmt: skip
