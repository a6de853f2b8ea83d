"""A small run in processes of its own: KIND FOLDER DATA STEPS [--lose-position] [--shard ddp|fsdp|hybrid] [--until N].

--recompute selective|full; --every N: steps between checkpoints; --kill-at N: SIGKILL, of itself, once step N is
done and written down; --kill-writing N: while the checkpoint of step N is written and two more steps are done.
--write: the model at the end; --base FOLDER: adapt that model. --clock: a minute, of steps of a second on the first
process's clock, two on the second's, and so on.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from configs import config_of

from nextword.data import open_dataset
from nextword.plan import RunConfig
from nextword.plan.run_config import ModelConfig
from nextword.spec import ModelSpec
from nextword.train import checkpoint
from nextword.train.callbacks import Callbacks, TrainStep
from nextword.train.metrics import read_metrics
from nextword.train.pipeline import open_base
from nextword.train.run import train_run
from nextword.train.trainer import Trainer


class Killer(Callbacks):
    """Ends the process after a step, as nothing can be caught or cleaned up."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, step: TrainStep) -> None:
        if step.step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


class OwnClock(Callbacks):
    """Seconds that pass as steps are done."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds

    def should_stop(self) -> bool:
        self.seconds += 1.0 + int(os.environ.get("RANK", "0"))
        return False


def run_of(kind: str, vocabulary: int, steps: int) -> RunConfig:
    """Several epochs of little text, dropout, two micro-batches a step."""
    attention = {"heads": 4, "kv_heads": 2, "head_width": 16, "mlp_width": 48} if kind == "transformer" else {}
    spec = ModelSpec(kind=kind, vocabulary=vocabulary, width=32, layers=2, context=16, **attention)  # type: ignore[arg-type]
    return config_of(
        spec, context=16, batch_size=8, micro_batch=4, steps=steps, learning_rate=3e-3,
        final_learning_rate=3e-4, warmup_steps=5, dtype="fp32", dropout=0.1, seed=7, stateful=kind == "lstm",
    )  # fmt: skip


def kill_while_writing(step: int, folder: Path) -> None:
    """Have this process end before it completes the checkpoint of `step`, once training is two steps further."""
    seal = checkpoint._seal

    def killed(working: Path, state: dict[str, Any]) -> None:
        while state["step"] == step:
            if max(row["step"] for row in read_metrics(folder)) > step:
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(0.01)
        seal(working, state)

    checkpoint._seal = killed


def option(name: str, default: str) -> str:
    """The argument after `name`."""
    return sys.argv[sys.argv.index(name) + 1] if name in sys.argv else default


def main() -> None:
    kind, folder, data, steps = sys.argv[1], Path(sys.argv[2]), open_dataset(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(1)
    run = run_of(kind, data.vocabulary, steps).with_train(shard=option("--shard", "none"))  # type: ignore[arg-type]
    run = run.with_train(recompute=option("--recompute", "none"), tensor_parallel=int(option("--tensor", "1")))
    if "--shard" in sys.argv:  # dropout differs from process to process
        run = run.with_train(dropout=0.0, micro_batch=2).with_run(evaluate_tokens=100)
    run = run.with_run(checkpoint_every=int(option("--every", "10")))
    if "--kill-writing" in sys.argv:
        kill_while_writing(int(option("--kill-writing", "")), folder)
    callbacks, until = Killer(int(option("--kill-at", "-1"))), int(option("--until", str(steps)))
    if base := option("--base", ""):  # to adapt
        run = replace(run, model=ModelConfig(base=base, lora=2, spec=open_base(base)[0]))
    if "--write" in sys.argv:  # the model at the end too
        os.environ["NEXTWORD_CACHE"] = str(folder.parent / "cache")
        train_run(run, data, folder, callbacks, until=until)
        return
    if "--clock" in sys.argv:
        clock = OwnClock()
        Trainer(run.with_train(minutes=1.0, schedule="wsd"), data, folder, clock, now=clock).train()
        return
    trainer = Trainer(run, data, folder, callbacks)
    if "--lose-position" in sys.argv:  # what a trainer does that forgets where it was in its data
        restore = trainer.restore

        def forgetful() -> int:
            step = restore()
            trainer.progress.skipped = -step
            return step

        trainer.restore = forgetful  # type: ignore[method-assign]
    trainer.train(until)


if __name__ == "__main__":
    main()
