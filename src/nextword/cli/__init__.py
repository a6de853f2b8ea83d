"""The command line: one file a verb, each loaded when it is used.

`main` is the only place where an exception becomes a line on stderr and an exit code: 0 done, 1 failed at
run time, 2 wrong usage, 130 interrupted. Nothing but the standard library is imported before it runs, so
that Ctrl-C is met from the first moment. NEXTWORD_DEBUG=1 adds tracebacks.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress

__all__ = ["main"]

_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code. `arguments` defaults to `sys.argv[1:]`."""
    try:
        code = _run(sys.argv[1:] if arguments is None else list(arguments))
        _flush()
        return code
    except BaseException as error:
        return _report(error)


def _run(arguments: list[str]) -> int:
    _prepare_streams()
    import click

    from ._app import COMPLETION_VARIABLE, PROGRAM, app

    if instruction := os.environ.get(COMPLETION_VARIABLE):
        from click.shell_completion import shell_complete

        return shell_complete(app, {}, PROGRAM, COMPLETION_VARIABLE, instruction)
    try:
        # Not app.main(): it would turn a closed pipe and Ctrl-C into codes of its own.
        with app.make_context(PROGRAM, arguments) as context:
            app.invoke(context)
    except click.exceptions.Exit as end:
        return end.exit_code
    return 0


def _prepare_streams() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a character the terminal lacks is no reason to stop
    if not _debugging() and not sys.warnoptions:
        import warnings

        warnings.simplefilter("ignore")  # libraries' warnings are for developers


def _report(error: BaseException) -> int:
    """Say in one line what went wrong, and return the exit code."""
    if isinstance(error, SystemExit) and (error.code is None or isinstance(error.code, int)):
        return error.code or 0
    if _was_interrupted(error):
        return _end_interrupted()
    if _debugging():
        import traceback

        traceback.print_exception(error)
    if isinstance(error, BrokenPipeError):
        _drop_output()  # whoever read our output has what it wanted
        return 0
    from ._faults import explain

    message, code = explain(error)
    with suppress(OSError):  # nobody may listen on stderr
        print(f"nextword: {message}", file=sys.stderr, flush=True)
    try:
        _flush()
    except OSError:
        _drop_output()
    return code


def _was_interrupted(error: BaseException | None) -> bool:
    """Whether Ctrl-C is at the root: an extension module's import may wrap it in another error."""
    seen = 0
    while error is not None and seen < 20:
        if isinstance(error, KeyboardInterrupt) or type(error).__name__ == "Abort":
            return True
        error, seen = error.__cause__ or error.__context__, seen + 1
    return False


def _end_interrupted() -> int:
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not break the clean end
    try:
        if sys.stderr is not None and sys.stderr.isatty():
            sys.stderr.write("\n")  # leave the ^C on its own line
        _flush()
    except OSError:
        _drop_output()
    return _INTERRUPTED


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and not stream.closed:
            stream.flush()


def _drop_output() -> None:
    """Send what is still buffered nowhere, so that the interpreter's own last flush cannot fail."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            try:
                os.dup2(nowhere, stream.fileno())
            except (OSError, ValueError, AttributeError):
                continue
    os.close(nowhere)


def _debugging() -> bool:
    return os.environ.get("NEXTWORD_DEBUG", "") not in ("", "0")
