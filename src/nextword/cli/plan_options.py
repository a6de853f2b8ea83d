"""Options that the questions of `nextword plan` share, and the model they are about."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..base import UsageError, units
from ..base.errors import closest
from ..spec import ModelKind, ModelSpec
from ._options import PICTURE

if TYPE_CHECKING:
    from ..plan import Device

Command = TypeVar("Command", bound=Callable[..., Any])

OPTIMIZERS = ["adamw", "adam8bit", "adafactor", "muon", "lion", "momentum", "sgd"]
LONGEST_CONTEXT = 1 << 27
MOST_SEQUENCES = 1 << 24


class Quantity(click.ParamType[float]):
    """A number with a unit; what it may look like is said when it is not understood."""

    def __init__(self, name: str, parse: Callable[[str, str], float]) -> None:
        self.name, self.parse = name, parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        return self.parse(str(value), param.opts[0] if param else self.name)


class WholeNumber(click.ParamType[int]):
    """A whole number within limits, written as counts are anywhere in plans: 8192, 8k, 1e9, 1_000."""

    name = "integer"

    def __init__(self, least: int, most: int) -> None:
        self.least, self.most = least, most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        what = param.opts[0] if param else self.name
        if isinstance(value, int):
            number = float(value)
        else:
            text = str(value).strip()
            number = 0.0 if text == "0" else units.parse_count(text, what)
        if number != int(number) or not self.least <= number <= self.most:
            raise UsageError(f"{what} {str(value).strip()}: give a whole number from {self.least:,} to {self.most:,}")
        return int(number)


COUNT = Quantity("COUNT", units.parse_count)
STEPS = WholeNumber(1, 1 << 40)
ROWS = WholeNumber(1, MOST_SEQUENCES)
TOKENS = WholeNumber(2, LONGEST_CONTEXT)
VOCABULARY = WholeNumber(257, 1 << 20)  # of a byte-level tokenizer: every byte and the end of the text
FLOPS = Quantity("FLOPS", units.parse_flops)
MONEY = Quantity("MONEY", units.parse_money)


def _targets(context: click.Context, option: click.Parameter, names: str | None) -> tuple[str, ...]:
    """Names of matrices from a list with commas."""
    if names is None:
        return ()
    from ..plan.shapes import LORA_TARGETS

    found = tuple(dict.fromkeys(name.strip().lower() for name in names.split(",")))
    for name in found:
        if name not in (*LORA_TARGETS, "all"):
            known = ", ".join((*LORA_TARGETS, "all"))
            raise UsageError(f"--lora-targets: {name!r} is not a matrix.{closest(name, LORA_TARGETS)} Known: {known}")
    return found


def duration_in(unit: str) -> Quantity:
    """A time whose bare numbers count `unit`s."""
    return Quantity("TIME", lambda text, what: units.parse_seconds(text, what, unit))


def stack(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """One decorator that adds `options` in the order given."""
    return lambda command: functools.reduce(lambda made, option: option(made), reversed(options), command)


model_argument = stack(
    click.argument("model", required=False),
    click.option("--params", type=COUNT, metavar="N", help="Instead of MODEL: about N parameters, as in 1B."),
    click.option(
        "--kind", type=click.Choice(["transformer", "rnn", "lstm", "gru"]), default=None,
        help="What --params builds. Default: transformer.",
    ),
)  # fmt: skip
output_options = stack(
    click.option("--explain", is_flag=True, help="Print every number's formula, values put in, and source."),
    click.option("--json", "as_json", is_flag=True, help="Print JSON, with units, formulas and sources."),
    click.option("--plot", type=PICTURE, metavar="FILE",
                 help="Draw the plan (.svg, .png, .pdf); needs nextword[plot]."),
)  # fmt: skip
batch_option = click.option(
    "--batch", type=WholeNumber(1, MOST_SEQUENCES), default=1, show_default=True, metavar="N",
    help="Sequences a device holds at a time.",
)  # fmt: skip
context_option = click.option(
    "--context", type=WholeNumber(1, LONGEST_CONTEXT), default=None, metavar="TOKENS",
    help="Tokens a sequence; default: the model's own, 8,192 at most.",
)  # fmt: skip


training_options = stack(
    batch_option,
    context_option,
    click.option("--optimizer", type=click.Choice(OPTIMIZERS),
                 default="adamw", show_default=True),
    click.option("--precision", type=click.Choice(["fp32", "mixed", "amp", "bf16"]), default=None,
                 help="mixed: bf16 with float32 master weights; amp: torch.autocast; bf16: nothing in float32."
                 " Default: mixed; fp32 on `this` CPU."),
    click.option("--recompute", type=click.Choice(["none", "selective", "full"]), default="none", show_default=True,
                 help="Activations formed again in the backward pass."),
    click.option("--attention", "kernel", type=click.Choice(["flash", "plain"]), default="flash", show_default=True,
                 help="plain stores the scores of every pair of tokens."),
    click.option("--loss", type=click.Choice(["whole", "chunked"]), default="whole", show_default=True,
                 help="chunked never holds all logits."),
    click.option("--shard", type=click.Choice(["none", "ddp", "zero1", "zero2", "fsdp"]), default="none",
                 show_default=True, help="How --devices share weights, gradients and states."),
    click.option("--devices", type=WholeNumber(1, 1 << 20), default=1, show_default=True, metavar="N"),
    click.option("--lora", type=WholeNumber(0, 1 << 16), default=0, metavar="RANK",
                 help="Train adapters of this rank; the rest is frozen. Default: beside every matrix of the layers as"
                 " nextword train has them (queries, keys and values are one, gate and up are one)."),
    click.option("--lora-targets", default=None, metavar="NAMES", callback=_targets,
                 help="Adapters for these matrices, each by itself as PEFT has them: q,k,v,o,gate,up,down or all."),
    click.option("--base", type=click.Choice(["fp32", "bf16", "int8", "nf4"]), default="bf16", show_default=True,
                 help="How --lora keeps the frozen weights."),
)  # fmt: skip


@dataclass(frozen=True)
class Target:
    """The model a plan is about. `stored_bytes` where its file or folder is here."""

    name: str
    spec: ModelSpec
    stored_bytes: float | None = None
    note: str = ""
    expert_bits: float | None = None  # where `stored_bytes` has experts in fewer bits than the rest


def target(model: str | None, params: float | None, kind: str | None) -> Target:
    """The model from MODEL or --params. Raises UsageError that says what may be given."""
    if (model is None) == (params is None):
        raise UsageError(
            "give either MODEL (a name, a folder, a .gguf file, a config.json) or --params, such as --params 1B"
        )
    if params is not None:
        return _designed(params, kind or "transformer")  # type: ignore[arg-type]
    if kind is not None:
        raise UsageError(f"--kind {kind} says what --params builds; {model} is of the kind that it is. Leave one out")
    assert model is not None
    path = Path(model).expanduser()
    if path.suffix.lower() == ".toml":
        from ..plan import RunConfig

        return Target(str(path), RunConfig.read(path).spec)
    if path.suffix.lower() == ".json" or (path.is_dir() and not list(path.glob("*.gguf"))):
        return _from_json(path / "config.json" if path.is_dir() else path)
    return _from_weights(model, path)


def _designed(params: float, kind: ModelKind) -> Target:
    from ..plan.shape_search import recurrent_for, shape_for

    spec = shape_for(params) if kind == "transformer" else recurrent_for(params, kind)
    layout = "Llama's layout" if kind == "transformer" else "two layers, head tied"
    return Target(f"{kind} of about {units.format_count(params)}", spec, note=f"shape assumed: {layout}")


def _from_json(path: Path) -> Target:
    """A Hugging Face config.json, or a ModelSpec as plain data."""
    from ..families import spec_from_config, spec_from_dict
    from ..plan.serving import published_bytes
    from ..weights.json_file import read_json

    if not path.exists() and path.name != "config.json":
        raise UsageError(f"{path}: there is no such file; give a name, a folder, a .gguf file or a config.json")
    data = read_json(path)
    if "kind" in data and "model_type" not in data:
        return Target(str(path), spec_from_dict(data, str(path)))
    stored = sum(file.stat().st_size for file in path.parent.glob("*.safetensors")) if path.name == "config.json" else 0
    spec = spec_from_config(data, str(path))
    return Target(str(path), spec, stored) if stored else _published(str(path), spec, published_bytes(data, spec))


def _published(name: str, spec: ModelSpec, stored: float | None) -> Target:
    """A model whose weights are not here, of which is known how they are published."""
    from ..plan.serving import BITS

    if stored is None:
        return Target(name, spec)
    return Target(name, spec, stored, "experts in MXFP4, the rest in bf16", BITS["mxfp4"])


def _from_weights(model: str, path: Path) -> Target:
    from ..families.published import known_config, known_models, known_spec
    from ..plan.serving import published_bytes
    from ..weights.catalogue import cache_folder, cached_file, find, is_cached

    entry = find(model)
    here = cached_file(entry, cache_folder()) if entry and is_cached(entry, cache_folder()) else None
    if here is None and (spec := known_spec(model)) is not None:
        return _published(model, spec, published_bytes(known_config(model) or {}, spec))
    if here is None:
        here = _existing(model, path, (*known_models(),))
    from ..families.gguf_metadata import spec_from_gguf_metadata
    from ..weights.gguf import GGUFFile

    with GGUFFile.open(here) as file:
        spec = spec_from_gguf_metadata(file.metadata, tied="output.weight" not in file.tensors)
        stored = sum(tensor.nbytes for tensor in file.tensors.values())
    return Target(model, spec, stored)


def _existing(model: str, path: Path, known: tuple[str, ...]) -> Path:
    if model.startswith("hf:"):
        raise UsageError(
            f"{model} is not planned from the hub: fetch it with nextword models pull, and give its folder"
        )
    if path.is_dir():
        from ..weights.catalogue import check_folder

        return check_folder(path)
    if path.suffix.lower() == ".gguf":
        return path  # opening it says whether it is there
    if path.exists():
        raise UsageError(f"{path} is no model: give a folder, a .gguf file or a config.json")
    raise UsageError(
        f"model {model!r} is not known.{closest(model.lower(), known)} Known: {', '.join(known)};"
        " or a folder, a .gguf file, a config.json, --params N"
    )


def context_of(spec: ModelSpec, context: int | None) -> int:
    """The context asked for, or the model's own up to 8,192."""
    return context or min(spec.context, 8192)


def find_device(name: str) -> Device:
    """A device by name; "this" is measured once and remembered."""
    from ..plan.hardware import device
    from ..weights.catalogue import cache_folder

    return device(name, cache_folder())


def find_devices(names: str) -> list[Device]:
    """Devices from a list with commas; NAME=MEMORY,BANDWIDTH,SPEED keeps its own."""
    found, pieces = [], names.split(",")
    while pieces:
        take = 3 if "=" in pieces[0] else 1
        found.append(find_device(",".join(pieces[:take])))
        pieces = pieces[take:]
    return list(dict.fromkeys(found))
