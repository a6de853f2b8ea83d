"""kill_me in processes that find torch imported: a run of two seconds does not pay four for that again."""

from __future__ import annotations

import gc
import multiprocessing
import sys
from multiprocessing.process import BaseProcess

import kill_me

# A server that imports and computes nothing forks each process; a fork of pytest itself would hold its threads' locks.
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["nextword.train.trainer", "torch._dynamo"])


def start(*arguments: object) -> BaseProcess:
    """A process that runs `kill_me ARGUMENTS`."""
    process = _context.Process(target=_run, args=([str(each) for each in arguments],))
    process.start()
    return process


def run(*arguments: object) -> int | None:
    """Run `kill_me ARGUMENTS` to its end; its exit code, minus the number of the signal that killed it."""
    process = start(*arguments)
    process.join(240)
    return process.exitcode


def _run(arguments: list[str]) -> None:
    gc.freeze()  # what the server imported is no rubbish, and to look at it is to copy it
    sys.argv[1:] = arguments
    kill_me.main()
