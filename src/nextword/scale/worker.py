"""`python -m nextword.scale.worker FOLDER`: trains the run in FOLDER to its end, or continues it.

A finished run returns at once. SIGINT and SIGTERM end it after the step under way, with a checkpoint, and so does the
end of the process that started it. Exit codes: 0 finished, 130 interrupted, 1 failed, with one line on stderr.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from ..base.errors import NextwordError
from ..train.callbacks import Callbacks

INTERRUPTED = 130


class _Stop(Callbacks):
    """Stops on a signal, or when the starting process is gone."""

    def __init__(self) -> None:
        self.asked, self.parent = False, os.getppid()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask)

    def _ask(self, number: int, frame: object) -> None:
        self.asked = True

    def should_stop(self) -> bool:
        return self.asked or os.getppid() != self.parent


def train_cell(folder: Path, callbacks: Callbacks) -> bool:
    """Train the run in `folder`; whether it is finished."""
    from ..train.pipeline import resume_run  # these take seconds, in which a signal is heard too
    from ..train.run import train_run
    from ..train.run_dir import read_report

    if read_report(folder) is not None:
        return True
    run = resume_run(folder, log=lambda text: None)
    return train_run(run.record.config, run.data, folder, callbacks, record=run.record).measured is not None


def work(folder: Path) -> int:
    """Train the run in `folder` and return the exit code. For the main thread of a process that does nothing else."""
    stop = _Stop()
    from ..train.memory import keep_freed_memory

    keep_freed_memory()
    try:
        return 0 if train_cell(folder, stop) else INTERRUPTED
    except NextwordError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(work(Path(sys.argv[1])))
