"""Errors meant for the user: one line with the value, the reason and the fix."""

import difflib
import json
import os
import time
from collections.abc import Iterable
from contextlib import suppress


class NextwordError(Exception):
    """An error whose message is meant for the user. The CLI prints it and exits with `exit_code`."""

    exit_code = 1


class UsageError(NextwordError, ValueError):
    """The request cannot be carried out: a bad setting, an unknown name, a damaged file."""

    exit_code = 2


class RunError(NextwordError, RuntimeError):
    """The request was sound but failed at run time: no network, no space, out of memory."""

    exit_code = 1


def report_to_launcher(message: str, code: int) -> None:
    """Leave the error where the launcher of several processes looks: torchrun prints it, ours exits with `code`."""
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        with suppress(OSError), open(path, "w", encoding="utf-8") as file:
            json.dump({"message": message, "timestamp": int(time.time()), "exit_code": code}, file)


def closest(name: str, known: Iterable[str], count: int = 3) -> str:
    """Return ' Did you mean a, b or c?' with the known names closest to `name`, or '' if none is close.

    `name` is also compared with prefixes of longer names: people type "smolm" for "smollm2-135m".
    """

    def likeness(candidate: str) -> float:
        whole, beginning = candidate, candidate[: len(name) + 1]
        return max(difflib.SequenceMatcher(None, name, part).ratio() for part in (whole, beginning))

    near = sorted((-likeness(candidate), candidate) for candidate in known)[:count]
    names = [candidate for distance, candidate in near if -distance >= 0.5]
    listed = " or ".join(filter(None, (", ".join(names[:-1]), names[-1]))) if names else ""
    return f" Did you mean {listed}?" if names else ""
