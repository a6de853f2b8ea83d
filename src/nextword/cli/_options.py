"""Options shared by several commands, turned into a model, SamplingParams and a prompt."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..base import UsageError, check_writable, read_regular
from ..plots import KINDS, check_plot
from ..weights.catalogue import DEFAULT_MODEL
from ._names import complete_model

if TYPE_CHECKING:
    from ..engine import LanguageModel
    from ..engine.loading import LoadConfig

Command = TypeVar("Command", bound=Callable[..., Any])

_LARGEST_PROMPT = 64 << 20  # bytes of a prompt file; a million tokens take about 4 MB
_SAMPLING = ("top_k", "top_p", "min_p", "typical_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
             "seed")  # fmt: skip


class OutputPath(click.Path):
    """An output path, checked while the command line is parsed, so that no work is wasted.

    `kind` is "file", "folder", "model" (a folder, or a file if its name ends in .gguf) or "plot".
    """

    def __init__(self, kind: str) -> None:
        super().__init__(path_type=Path)
        self.kind = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path = Path(str(super().convert(value, param, ctx)))
        what = _called(param)
        if self.kind == "plot":
            check_plot(path, what)
        else:
            check_writable(path, what, self.kind == "folder" or (self.kind == "model" and path.suffix != ".gguf"))
        return path


def _called(param: click.Parameter | None) -> str:
    if param is None:
        return "output"
    return param.opts[0] if isinstance(param, click.Option) else param.human_readable_name


OUTPUT_FILE, OUTPUT_FOLDER, OUTPUT_MODEL, PLOT = map(OutputPath, ("file", "folder", "model", "plot"))
WRITTEN_DTYPE = click.Choice(  # of a converted or exported model
    ["float32", "bfloat16", "float16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q3_k_m", "q2_k"]
)


def plot_option(what: str) -> Callable[[Command], Command]:
    """--plot, whose help begins with `what` it does."""
    kinds = ", ".join(kind for kind in KINDS if kind != ".json")
    said = f"{what}: {kinds} need nextword[plot]; .json does not."
    return click.option("--plot", type=PLOT, metavar="FILE", help=said)


def stack(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """One decorator that adds `options` in the order given."""
    return lambda command: functools.reduce(lambda decorated, option: option(decorated), reversed(options), command)


LOADING_OPTIONS = ("--dtype", "--kv-dtype", "--device", "--threads")
loading_options = stack(
    click.option("--dtype", default="auto", metavar="TYPE",
                 help="Type of the weights: auto (as stored), float32, bfloat16, float16, q8_0 or q4_k."),
    click.option("--kv-dtype", default="auto", metavar="TYPE",
                 help="Type of keys and values: auto (float16, or float32 as the weights), float32, float16 or q8_0."),
    click.option("--device", default="auto", metavar="DEVICE", help="auto, cpu, cuda, cuda:1, mps, ..."),
    click.option("--threads", type=int, metavar="N", help="CPU threads. Default: the number of cores."),
)  # fmt: skip
model_options = stack(
    click.option("-m", "--model", default=DEFAULT_MODEL, show_default=True, metavar="NAME",
                 shell_complete=complete_model,
                 help="A name from `nextword models list`, a Hugging Face folder, a .gguf file, or hf:owner/name."),
    loading_options,
)  # fmt: skip
sampling_options = stack(
    click.option("--top-k", type=int, default=0, metavar="K", help="Sample from the K most likely tokens; 0: all."),
    click.option("--top-p", type=float, default=1.0, metavar="P", help="Sample from the top tokens holding P; 1: all."),
    click.option("--min-p", type=float, default=0.0, metavar="P",
                 help="Drop tokens less likely than P times the most likely one."),
    click.option("--typical-p", type=float, default=1.0, metavar="P", help="Locally typical sampling; 1: off."),
    click.option("--repetition-penalty", type=float, default=1.0, metavar="R", help="Over prompt and output; 1: off."),
    click.option("--presence-penalty", type=float, default=0.0, metavar="X",
                 help="Subtracted from the logits of tokens already in the text."),
    click.option("--frequency-penalty", type=float, default=0.0, metavar="X",
                 help="The same, times the token's number of occurrences."),
    click.option("--logit-bias", multiple=True, metavar="ID=BIAS",
                 help="Add to a token's logit; -inf forbids it. Repeatable."),
    click.option("--seed", type=int, default=None, metavar="N",
                 help="Same seed, same text. Default: random, and reported."),
    click.option("--sampler-order", default=None, metavar="STEPS",
                 help="Order of sampling filters. Default: temperature,top_k,top_p,min_p,typical_p."),
)  # fmt: skip


def sampling_settings(values: dict[str, Any]) -> dict[str, Any]:
    """The sampling options among `values`, as keywords of `SamplingParams`."""
    settings = {name: values[name] for name in _SAMPLING}
    settings["logit_bias"] = dict(map(_bias, values["logit_bias"]))
    if order := values["sampler_order"]:
        settings["order"] = tuple(name.strip().replace("-", "_") for name in order.split(","))
    return settings


def _bias(text: str) -> tuple[int, float]:
    token, equals, bias = text.partition("=")
    try:
        if not equals:
            raise ValueError
        return int(token), float(bias)
    except ValueError:
        raise UsageError(f"logit bias {text!r} is not of the form ID=BIAS, as in 198=-inf or 4=2.5") from None


def read_prompt(argument: str | None, file: str | None) -> str:
    """The prompt from the argument, a file or standard input. A file's final newline is dropped."""
    if argument is not None and file is not None:
        raise UsageError("the prompt is given twice: as an argument and with -f. Give one of them")
    if argument is not None:
        text = argument
    elif file is not None and file != "-":
        text = _read_file(file)
    elif sys.stdin is None or sys.stdin.isatty():
        raise UsageError('there is no prompt. Give one: nextword complete "I like to eat", -f FILE, or a pipe')
    else:
        text = _decode(sys.stdin.buffer.read(), "standard input")
    if not text:
        raise UsageError("the prompt is empty: there is nothing to continue. Give at least one character")
    return text


def _read_file(file: str) -> str:
    try:
        return _decode(read_regular(file, _LARGEST_PROMPT), file)
    except OSError as error:
        raise UsageError(f"prompt file {file}: {error.strerror}") from None


def _decode(data: bytes, where: str) -> str:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{where}: not UTF-8 text (byte {error.start}). Convert it first, as with iconv") from None
    return text.removesuffix("\n").removesuffix("\r")


def load_config(values: dict[str, Any]) -> LoadConfig:
    """The `loading_options` among `values`, checked."""
    from ..engine.loading import LoadConfig

    config = LoadConfig(values["dtype"], values["device"], values["kv_dtype"], values["threads"])
    config.check()
    return config


def load_model(values: dict[str, Any]) -> LanguageModel:
    """Load the model of `model_options`."""
    from ..engine import LanguageModel
    from ..engine.loading import load_weights

    return LanguageModel(load_weights(values["model"], load_config(values)))
