"""Starts a command line in several processes on this machine, as torchrun does, and ends as they end."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sys
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..base import RunError
from ..base.cores import cores

_SECONDS_TO_STOP = 600  # after Ctrl-C, to finish a step and write a checkpoint


def launch(processes: int, arguments: Sequence[str], module: str = "nextword") -> None:
    """Run `python -m MODULE ARGUMENTS` in many processes through torch's elastic launcher; return when all succeed.

    A process that fails reports why, and the others are ended; this one exits with the same code.
    Raises RunError if one was killed before any could say so, KeyboardInterrupt for Ctrl-C.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // processes)))
    logging.disable(logging.CRITICAL)  # the processes report their own errors
    with tempfile.TemporaryDirectory(prefix="nextword-") as reports:
        config = LaunchConfig(
            min_nodes=1, max_nodes=1, nproc_per_node=processes, run_id=uuid.uuid4().hex, rdzv_backend="c10d",
            rdzv_endpoint="localhost:0", local_addr="localhost", max_restarts=0, shutdown_timeout=_SECONDS_TO_STOP,
            logs_specs=DefaultLogsSpecs(log_dir=reports),
        )  # fmt: skip
        try:
            elastic_launch(config, sys.executable)("-m", module, *arguments)
        except ChildFailedError as failed:
            _end(failed.failures, Path(reports))
        except SignalException as stopped:
            if stopped.sigval == signal.SIGINT:
                raise KeyboardInterrupt from None
            raise SystemExit(128 + stopped.sigval) from None


def _end(failures: Mapping[int, Any], reports: Path) -> None:
    """Exit as the process that reported an error; raise RunError for one that could not."""
    codes = [json.loads(path.read_text())["exit_code"] for path in sorted(reports.rglob("error.json"))]
    if codes:
        raise SystemExit(codes[0])
    rank, failure = min(failures.items(), key=lambda item: item[1].timestamp)
    cause = f"killed by signal {-failure.exitcode}" if failure.exitcode < 0 else f"exit code {failure.exitcode}"
    raise RunError(
        f"rank {rank} on {socket.gethostname()} ended ({cause}). `nextword runs list` shows how far the run is,"
        " `nextword runs resume RUN` continues it"
    )
