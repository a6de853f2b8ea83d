"""`python -m nextword.scale.worker FOLDER`: trains the run in FOLDER to its end, or continues it.

A run of several processes is trained in as many, on this machine, through torch's elastic launcher. A finished run
returns at once. SIGINT and SIGTERM end it after the step under way, with a checkpoint, and so does the end of the
process that started it. Exit codes: 0 finished, 130 interrupted, 1 failed, with one line on stderr.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

from ..base.errors import NextwordError, report_to_launcher
from ..train.callbacks import Callbacks

INTERRUPTED = 130
_MODULE = "nextword.scale.worker"
_LOOK_SECONDS = 1.0  # between looks for the process that started this one
_SIGNALLED = 128  # and more: exit codes of processes that a signal ended


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
    return train_run(run.record.config, run.data, folder, callbacks, record=run.record).outcome.complete


def work(folder: Path) -> int:
    """Train the run in `folder` and return the exit code. For the main thread of a process that does nothing else."""
    stop = _Stop()
    try:
        return _work(folder, stop)
    except NextwordError as error:
        print(error, file=sys.stderr)
        report_to_launcher(str(error), 1)
        return 1


def _work(folder: Path, stop: _Stop) -> int:
    from ..train.distributed import this_process
    from ..train.memory import keep_freed_memory
    from ..train.run_dir import RunRecord

    processes = RunRecord.read(folder).config.train.devices
    if this_process().world != processes:
        return INTERRUPTED if stop.asked else _launched(folder, processes, stop.parent)
    keep_freed_memory()
    return 0 if train_cell(folder, stop) else INTERRUPTED


def _launched(folder: Path, processes: int, parent: int) -> int:
    """Train the run in several processes, and return the exit code."""
    from ..train.launch import launch

    threading.Thread(target=_end_with, args=[parent], daemon=True).start()
    try:
        launch(processes, [str(folder)], _MODULE)
    except KeyboardInterrupt:
        return INTERRUPTED
    except SystemExit as ended:
        return INTERRUPTED if int(ended.code or 0) >= _SIGNALLED else 1
    return 0


def _end_with(parent: int) -> None:
    """Interrupt this process once the one that started it is gone."""
    while os.getppid() == parent:
        time.sleep(_LOOK_SECONDS)
    os.kill(os.getpid(), signal.SIGINT)


if __name__ == "__main__":
    sys.exit(work(Path(sys.argv[1])))
