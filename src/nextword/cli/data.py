"""nextword data: prepare text for training, and look at what was prepared."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..base import UsageError, check_writable, units
from ..plan.run_config import DataConfig
from ._app import Suggesting
from ._console import emit_json, messages, output
from ._options import OUTPUT_FOLDER
from ._table import plain_table

if TYPE_CHECKING:
    from ..data import Dataset, Sources
    from ..data.report import DataReport
    from ..text import Tokenizer

_FOLDER = click.Path(path_type=Path, file_okay=False)
_SCRIPTS = 6  # listed by name


@click.group(name="data", cls=Suggesting)
def command() -> None:
    """Prepare text for training: tokens on disk, and what they were made of.

    \b
    Examples:
      nextword data prepare books/ --out tokens
      nextword data prepare chats.jsonl --tokenizer smollm2-135m-instruct --out tokens
      nextword data show tokens
      nextword data sample tokens --count 3
    """


@command.command(name="prepare")
@click.argument("data", nargs=-1)
@click.option("--tokenizer", default="bpe", show_default=True, metavar="NAME",
              help="bpe, bytes or characters, trained on the text; or a model whose tokenizer to use.")  # fmt: skip
@click.option("--vocabulary", type=int, default=0, metavar="V", help="Tokens of a bpe tokenizer. Default: 4,096.")
@click.option("--val-fraction", type=float, default=0.05, show_default=True, metavar="SHARE",
              help="Held-out share of the text, chosen by a hash of each document.")  # fmt: skip
@click.option("--deduplicate", is_flag=True, help="Drop documents whose text an earlier one has.")
@click.option("--skip-invalid", is_flag=True, help="Skip broken rows and files, and count them.")
@click.option("--column", default="", metavar="NAME", help="Text column. Default: text, content or messages.")
@click.option("--encoding", default="utf-8", show_default=True, metavar="NAME", help="Of text files and rows.")
@click.option("--out", type=OUTPUT_FOLDER, metavar="FOLDER",
              help="Default: the cache, where training on the same text with the same settings finds it.")  # fmt: skip
@click.option(
    "--cluster",
    default="",
    metavar="ADDRESS",
    help="Prepare on a Ray cluster: auto, or HOST:PORT of its head. All machines see the text and the output.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def prepare(data: tuple[str, ...], out: Path | None, cluster: str, as_json: bool, **settings: Any) -> None:
    """Tokenize DATA: files or folders of .txt, .md, .jsonl, .parquet (.gz, .zst, .zip), or hf:owner/name.

    An interrupted preparation continues where it stopped. Rows of .jsonl with `messages` are conversations; they
    need the tokenizer of a model with a chat template, and only the assistant's turns are learned.
    """
    if not data:
        raise UsageError("give the text: files, folders or hf:owner/name, such as: nextword data prepare books/")
    if out is not None:
        check_writable(out, "--out", folder=True)
    from ..base.cluster import check_address
    from ..data import check_encoding, find_sources
    from ..data.tokenizer_training import TOKENIZERS, named_tokenizer

    config = DataConfig(**settings)
    name = config.tokenizer
    if name not in TOKENIZERS and config.vocabulary:
        raise UsageError(f"--vocabulary has no effect with --tokenizer {name}, which has its own")
    tokenizer = None if name in TOKENIZERS else named_tokenizer(name, "--tokenizer ")
    if cluster:
        check_address(cluster)
    sources = find_sources(data, check_encoding(config.encoding))
    _show(_prepared(sources, out, config, tokenizer, cluster), as_json)


def _prepared(
    sources: Sources, out: Path | None, config: DataConfig, tokenizer: Tokenizer | None, cluster: str
) -> Dataset:
    from ..data import prepare as prepare_text
    from ..data import prepare_in
    from ..data.cluster import connected
    from ..data.progress import Progress
    from ..data.shards import Run, RunHere
    from ..weights.catalogue import cache_folder

    def log(text: str) -> None:
        messages().print(text, style="dim")

    progress, store = Progress(sources, log), cache_folder() / "data"
    place: AbstractContextManager[Run] = nullcontext(RunHere())
    if cluster:
        place = connected(cluster, out or store, sources.files[0])
    with place as run:
        if out is not None:
            return prepare_text(sources, out, config, tokenizer, progress, run)
        return prepare_in(store, sources, config, tokenizer, progress, log, run)


@command.command(name="show")
@click.argument("folder", type=_FOLDER)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(folder: Path, as_json: bool) -> None:
    """Show prepared text: documents and their sizes, duplicates, scripts, and what was skipped and why."""
    _show(_opened(folder), as_json)


@command.command(name="sample")
@click.argument("folder", type=_FOLDER)
@click.option("--count", "-n", type=click.IntRange(1), default=5, show_default=True, metavar="N", help="Texts.")
@click.option("--split", type=click.Choice(["train", "val"]), default="train", show_default=True)
@click.option("--tokens", "most", type=click.IntRange(1), default=100, show_default=True, metavar="N",
              help="At most, of each text.")  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, metavar="N")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def sample(folder: Path, count: int, split: str, most: int, seed: int, as_json: bool) -> None:
    """Show the beginnings of some texts, as the model reads them."""
    from ..data.report import sampled

    texts = list(sampled(_opened(folder), split, count, seed, most))
    if as_json:
        emit_json([asdict(text) for text in texts])
        return
    for text in texts:
        learned = "" if text.targets == text.tokens else f", {text.targets:,} learned"
        output().print(f"document {text.document:,}: {text.tokens:,} tokens{learned}", style="bold")
        output().print(text.text.strip("\n") + ("" if text.tokens <= most else " …") + "\n")


def _opened(folder: Path) -> Dataset:
    from ..data import open_dataset
    from ..data.report import folder_of

    return open_dataset(folder_of(folder))


def _show(data: Dataset, as_json: bool) -> None:
    from ..data.report import report

    found = report(data)
    if as_json:
        emit_json(asdict(found))
    else:
        _print(found)


def _print(found: DataReport) -> None:
    console = output()
    table = plain_table("", "documents", "tokens", "bytes", "targets", least=((4,),))
    for name, split in (("train", found.train), ("held out", found.val)):
        table.add_row(name, *(f"{value:,}" for value in (split.documents, split.tokens, split.bytes, split.targets)))
    console.print(table)
    table = plain_table("a document", *found.bytes_per_document)
    for name, sizes in (("bytes", found.bytes_per_document), ("tokens", found.tokens_per_document)):
        table.add_row(name, *(f"{value:,.0f}" for value in sizes.values()))
    console.print()
    console.print(table)
    console.print()
    table = plain_table("", "", right=False)
    table.show_header = False
    for name, text in _lines(found).items():
        table.add_row(name, text)
    console.print(table)


def _lines(found: DataReport) -> dict[str, str]:
    total = max(1, sum(found.scripts.values()))
    shares = [f"{name} {count / total:.1%}" for name, count in found.scripts.items()]
    if len(shares) > _SCRIPTS:
        shares[_SCRIPTS:] = [f"{len(shares) - _SCRIPTS} others"]
    fate = "dropped" if found.deduplicated else "kept, each in one split with its first; --deduplicate drops them"
    return {
        "documents": f"{found.documents:,}",
        "duplicates": f"{found.duplicates:,}" + (f" ({fate})" if found.duplicates else ""),
        "tokens": f"{units.format_count(found.train.tokens + found.val.tokens)} of {found.vocabulary:,} kinds,"
        f" {found.bytes_per_token:.2f} bytes each",
        "scripts": ", ".join(shares) or "no letters",
        "skipped": "; ".join(f"{reason} ({count:,})" for reason, count in found.skipped.items()) or "nothing",
        "folder": found.folder,
    }
