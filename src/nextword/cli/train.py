"""nextword train: a folder of text and a budget → a model, with the plan beside what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..base import UsageError
from ._options import OUTPUT_FOLDER
from .plan_options import COUNT, FLOPS, ROWS, STEPS, TOKENS, VOCABULARY, duration_in
from .train_options import check_options, options_named, processes

if TYPE_CHECKING:
    from ..train.pipeline import Request, Session
    from ..train.run_dir import Measured, RunRecord

_CHANGES = ("batch", "micro_batch", "learning_rate", "optimizer", "schedule", "dropout", "weight_decay", "clip", "seed",
            "packing", "recompute", "steps")  # fmt: skip


@click.command(name="train")
@click.argument("data", nargs=-1)
@click.option("--minutes", type=duration_in("min"), default=None, metavar="TIME", help="Time to train: 20, 90s, 2h.")
@click.option("--flops", type=FLOPS, default=None, metavar="C", help="Or compute to spend: 1e15.")
@click.option("--tokens", type=COUNT, default=None, metavar="D", help="Or tokens to see: 50M.")
@click.option("--config", type=click.Path(path_type=Path, dir_okay=False), default=None, metavar="FILE",
              help="Or a run that `nextword plan budget --out FILE` wrote.")  # fmt: skip
@click.option("--model", "kind", type=click.Choice(["transformer", "rnn", "lstm", "gru"]), default="transformer",
              show_default=True)  # fmt: skip
@click.option("--match", type=click.Choice(["params", "flops"]), default="params", show_default=True,
              help="A recurrent net takes the transformer's number of parameters, or its FLOPs a token.")  # fmt: skip
@click.option("--params", "count", type=COUNT, default=None, metavar="N", help="Parameters. Default: compute-optimal.")
@click.option("--context", type=TOKENS, default=None, metavar="TOKENS")
@click.option("--tokenizer", default="bpe", show_default=True, metavar="NAME",
              help="bpe, bytes, characters (made for the text), or a model whose tokenizer is taken.")  # fmt: skip
@click.option("--vocabulary", type=VOCABULARY, default=None, metavar="V", help="Tokens of a bpe tokenizer.")
@click.option("--from", "start_from", default=None, metavar="MODEL", help="Fine-tune open weights.")
@click.option("--lora", type=click.IntRange(1), default=None, metavar="RANK", help="Of adapters; with --from.")
@click.option("--batch", type=ROWS, default=None, metavar="ROWS", help="Sequences a step.")
@click.option("--micro-batch", type=ROWS, default=None, metavar="ROWS", help="Sequences at a time.")
@click.option("--steps", type=STEPS, default=None, metavar="N")
@click.option("--learning-rate", type=float, default=None, metavar="RATE", help="At its highest; it ends at a tenth.")
@click.option("--schedule", type=click.Choice(["cosine", "wsd", "constant"]), default=None)
@click.option("--optimizer", type=click.Choice(["adamw", "muon", "lion", "adafactor", "momentum", "sgd"]), default=None)
@click.option("--dropout", type=float, default=None, metavar="SHARE", help="Of the features, while training.")
@click.option("--weight-decay", type=float, default=None)
@click.option("--clip", type=float, default=None, metavar="NORM", help="Of gradients; 0: none.")
@click.option("--precision", type=click.Choice(["auto", "fp32", "amp"]), default="auto", show_default=True,
              help="amp: products in bfloat16. auto: amp where that is faster here.")  # fmt: skip
@click.option("--seed", type=int, default=None, metavar="N")
@click.option("--packing", type=click.Choice(["stream", "best-fit"]), default=None)
@click.option("--within-documents", is_flag=True, help="Tokens do not look into the document before theirs.")
@click.option("--carry-state", is_flag=True, help="Recurrent nets: rows go on where the step before ended.")
@click.option("--recompute", type=click.Choice(["none", "full"]), default=None, help="Less memory, more time.")
@click.option("--shard", type=click.Choice(["ddp", "fsdp"]), default="ddp", help="Under torchrun. Default: ddp.")
@click.option("--guard", type=click.Choice(["stop", "skip", "rewind"]), default="stop", show_default=True,
              help="What to do about a NaN loss or a loss spike.")  # fmt: skip
@click.option("--holdout", type=float, default=0.05, show_default=True, metavar="SHARE", help="Of the text.")
@click.option("--column", default=None, metavar="NAME", help="Of the text in .jsonl and .parquet.")
@click.option("--encoding", default="utf-8", show_default=True, metavar="NAME", help="Of text files: latin-1, ...")
@click.option("--skip-bad", is_flag=True, help="Skip broken rows, and files of another encoding, and count them.")
@click.option("--sample", "sample", default=None, metavar="TEXT", help="What sample completions begin with.")
@click.option("--out", type=OUTPUT_FOLDER, default=None, metavar="FOLDER",
              help="Default: runs/<kind>-<parameters>.")  # fmt: skip
@click.option("--checkpoint-every", type=click.IntRange(0), default=None, metavar="STEPS")
@click.option("--keep", type=click.IntRange(1), default=2, show_default=True, metavar="N", help="Checkpoints.")
@click.option("--evaluate-every", type=click.IntRange(0), default=None, metavar="STEPS")
@click.option("--tensorboard", is_flag=True, help="Write event files too; needs nextword[tensorboard].")
@click.option("--compile", "compiled", is_flag=True, help="torch.compile: a minute first, then faster on a GPU.")
@click.option("--device", default="auto", metavar="DEVICE")
@click.option("--threads", type=click.IntRange(1), default=None, metavar="N", help="Default: timed.")
@click.option("--dry-run", is_flag=True, help="Print the plan and stop.")
@click.option("--json", "as_json", is_flag=True, help="Print plan and measurement as JSON.")
@click.pass_context
def command(
    click_context: click.Context, /, data: tuple[str, ...], sample: str | None, tensorboard: bool, dry_run: bool,
    as_json: bool, **wishes: Any,
) -> None:  # fmt: skip
    """Train a language model on DATA: files or folders of .txt, .md, .jsonl, .parquet, or hf:owner/name.

    The budget is the one dial: this machine is measured, a compute-optimal model chosen and a tokenizer made for
    the text. The plan is printed before, and beside what was measured after. Ctrl-C writes a checkpoint.

    \b
    Examples:
      nextword train books/ --minutes 20
      nextword train books/ --minutes 20 --model lstm --match params
      nextword train notes.md --from smollm2-135m-instruct --lora 8 --minutes 5
      torchrun --nproc-per-node 2 -m nextword train books/ --minutes 20
      nextword complete --model runs/transformer-1.20M "Once upon a time"
    """
    if not data:
        raise UsageError("give the text to train on: files, folders or hf:owner/name, such as: nextword train books/")
    from ..train.distributed import one_voice

    with one_voice(), options_named(click_context):
        check_options(click_context)
        _train(_request(data, wishes), sample, tensorboard, dry_run, as_json)


def _train(request: Request, sample: str | None, tensorboard: bool, dry_run: bool, as_json: bool) -> None:
    from ..train import pipeline
    from ..weights.catalogue import cache_folder
    from ._console import messages
    from .train_display import Display, print_plan, print_report

    def say(text: str) -> None:
        messages().print(text, style="dim")

    session = pipeline.start(request, cache_folder(), say)
    if session.process.first and not as_json:
        print_plan(session)
    if dry_run:
        if as_json:
            emit(session.folder, session.record, None)
        return
    display = Display(session, sample, tensorboard)
    with display:
        outcome, measured = pipeline.train(session, display)
    if not session.process.first:
        return
    finish(session, outcome, measured, as_json, print_report)


def finish(session: Session, outcome: Any, measured: Any, as_json: bool, print_report: Any) -> None:
    """What is said at a run's end."""
    from ._console import messages

    if outcome.interrupted:
        from ..train.run_dir import resume_command

        messages().print(
            f"stopped after step {outcome.steps:,} of {session.run.steps:,}; the model so far is in {session.folder}."
            f" Go on: {resume_command(session.folder)}", soft_wrap=True,
        )  # fmt: skip
        raise KeyboardInterrupt
    if as_json:
        emit(session.folder, session.record, measured)
    elif measured is not None:
        print_report(session.record.expected, measured, session.folder)
    draw_curve(session.folder)  # last: a full disk must not keep the report back


def draw_curve(folder: Path) -> None:
    """curve.svg, where matplotlib is there."""
    from importlib.util import find_spec

    if find_spec("matplotlib") is not None:
        from ..train.pictures import draw_curves

        draw_curves([folder], folder / "curve.svg")


def emit(folder: Path, record: RunRecord, measured: Measured | None) -> None:
    """A run as JSON."""
    from dataclasses import asdict

    from ._console import emit_json

    emit_json(
        {
            "folder": str(folder),
            "run": record.run.to_dict(),
            "predicted": asdict(record.expected) if record.expected else None,
            "measured": asdict(measured) if measured else None,
            "units": {"memory": "bytes", "seconds": "s", "tokens_per_second": "tokens/s",
                      "nats_per_token": "nats/token", "bits_per_byte": "bits/byte"},
        }
    )  # fmt: skip


def _request(data: tuple[str, ...], wishes: dict[str, Any]) -> Request:
    from ..train.pipeline import Request
    from ..train.planning import Budget, check_batch

    changes = {name: wishes[name] for name in _CHANGES if wishes[name] is not None}
    if wishes["within_documents"]:
        changes["across_documents"] = False
    if wishes["carry_state"]:
        changes["carry_state"] = True
    request = Request(
        data=data,
        budget=Budget(wishes["minutes"], wishes["flops"], wishes["tokens"]),
        changes=changes,
        lora=wishes["lora"] or 0,
        compile=wishes["compiled"],
        **{name: wishes[name] for name in (
            "kind", "match", "count", "config", "tokenizer", "vocabulary", "context", "holdout", "skip_bad", "column",
            "encoding",
            "start_from", "precision", "device", "threads", "out", "shard", "guard", "keep", "checkpoint_every",
            "evaluate_every")},
    )  # fmt: skip
    check_batch(wishes["batch"], wishes["micro_batch"], processes())
    return request
