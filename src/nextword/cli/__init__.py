"""The command line: one file per command, loaded when it is used.

`main` is the only place where an exception becomes a line on stderr and an exit code: 0 done, 1 failed at
run time, 2 wrong usage, 130 interrupted, 143 terminated. click is imported inside it, so that Ctrl-C is handled
from the start. NEXTWORD_DEBUG=1 adds tracebacks.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType

__all__ = ["main"]

_INTERRUPTED = 130
_TERMINATED = 143
_COLLECTED_AFTER = 50_000  # new objects; Python's 700 mean 80 collections while a model is loaded, which find nothing


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code.

    `arguments` defaults to `sys.argv[1:]`; the process is then this command's own, and ends after it.
    """
    owns_process = arguments is None
    if owns_process:
        gc.set_threshold(_COLLECTED_AFTER)
        # Threads of numpy's BLAS spin for 100 ms when they start, and our matrices there are small.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        _catch_interrupts()
        code = _run(sys.argv[1:] if arguments is None else list(arguments))
        _flush()
    except BaseException as error:
        code = _report(error)
    _ignore_interrupts()  # a late Ctrl-C must not break the exit
    if owns_process:
        gc.freeze()  # the interpreter's last collections need not look at what ends with the process
    return code


def _run(arguments: list[str]) -> int:
    _replace_closed_streams()
    _prepare_streams()
    import shlex

    import click

    from . import _console
    from ._app import COMPLETION_VARIABLE, PROGRAM, app

    _console.output.cache_clear()  # a console holds the streams of one command
    _console.messages.cache_clear()
    if instruction := os.environ.get(COMPLETION_VARIABLE):
        from click.shell_completion import shell_complete

        return shell_complete(app, {}, PROGRAM, COMPLETION_VARIABLE, instruction)
    typed = shlex.join([PROGRAM, *arguments])  # before click consumes the list
    try:
        # Not app.main(), which has its own exit codes for a closed pipe and Ctrl-C.
        with app.make_context(PROGRAM, arguments, color=False if _plain_terminal() else None) as context:
            context.meta["command line"] = typed
            app.invoke(context)
    except click.exceptions.Exit as end:
        return end.exit_code
    return 0


def _catch_interrupts() -> None:
    """Let Ctrl-C raise KeyboardInterrupt and SIGTERM SystemExit, so that unfinished work is cleaned up.

    While torch is being imported, both end the process instead.
    Code that runs during that import swallows exceptions, so that a raised one may be lost.
    """
    if threading.current_thread() is not threading.main_thread():
        return  # only the main thread may handle signals

    for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
        if signal.getsignal(number) is usual:  # not ignored (nohup, a background job) or handled elsewhere
            signal.signal(number, _on_signal)


def _on_signal(number: int, frame: FrameType | None) -> None:
    code = _INTERRUPTED if number == signal.SIGINT else _TERMINATED
    torch = sys.modules.get("torch")
    half_imported = torch is None or getattr(torch.__spec__, "_initializing", False)
    if half_imported and _is_importing(frame):
        _end_terminal_line(show_cursor=True)
        os._exit(code)
    raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(code)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def _ignore_interrupts() -> None:
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if signal.getsignal(signal.SIGTERM) is _on_signal:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _end_terminal_line(show_cursor: bool = False) -> None:
    """Leave the ^C on its own line; a progress bar may have hidden the cursor."""
    if sys.stderr is not None and sys.stderr.isatty():
        dumb = os.environ.get("TERM") == "dumb"  # rich does not hide the cursor there
        os.write(sys.stderr.fileno(), b"\x1b[?25h\n" if show_cursor and not dumb else b"\n")


def _plain_terminal() -> bool:
    """Whether text is printed without styles even on a terminal. rich obeys the same variables."""
    return os.environ.get("TERM") == "dumb" or bool(os.environ.get("NO_COLOR"))


def _replace_closed_streams() -> None:
    """Replace standard streams that the caller closed, which Python shows as None.

    Input is empty, messages go nowhere, and output fails when something is written, as for cat or ls. The stand-ins
    take the closed descriptors, in order, so that no file opened later gets them.
    """
    if sys.stdin is None:
        sys.stdin = os.fdopen(_nowhere(os.O_RDONLY))
    if sys.stdout is None:
        sys.stdout = os.fdopen(_nowhere(os.O_RDONLY), "w")
    if sys.stderr is None:
        sys.stderr = os.fdopen(_nowhere(os.O_WRONLY), "w")


def _nowhere(access: int) -> int:
    descriptor = os.open(os.devnull, access)
    os.set_inheritable(descriptor, True)  # the processes of a training run need standard streams too
    return descriptor


def _prepare_streams() -> None:
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a character the terminal lacks must not stop the command
    if not _debugging() and not sys.warnoptions:
        import warnings

        warnings.simplefilter("ignore")  # libraries' warnings are for developers


def _report(error: BaseException) -> int:
    """Print the error as one line, and return the exit code."""
    if isinstance(error, SystemExit) and (error.code is None or isinstance(error.code, int)):
        return error.code or 0
    if _was_interrupted(error):
        return _end_interrupted()
    if _debugging():
        import traceback

        traceback.print_exception(error)
    if isinstance(error, BrokenPipeError):
        _drop_output()  # the reader closed the pipe: it has what it needs
        return 0
    from ..base.errors import report_to_launcher
    from ._errors import explain

    message, code = explain(error)
    if _is_reported_elsewhere():
        return code
    with suppress(OSError):  # stderr may be closed
        print(f"nextword: {message}", file=sys.stderr, flush=True)
    report_to_launcher(message, code)
    try:
        _flush()
    except OSError:
        _drop_output()
    return code


def _is_reported_elsewhere() -> bool:
    """A launcher starts one command line many times: only the first process reports what is wrong with it.

    Once the processes know of each other, `one_voice` decides which of them speaks.
    """
    return os.environ.get("RANK", "0") != "0" and "nextword.train.distributed" not in sys.modules


def _was_interrupted(error: BaseException | None) -> bool:
    """Whether Ctrl-C is the cause: an extension module's import may wrap it in another error."""
    seen = 0
    while error is not None and seen < 20:
        if isinstance(error, KeyboardInterrupt) or type(error).__name__ == "Abort":
            return True
        error, seen = error.__cause__ or error.__context__, seen + 1
    return False


def _end_interrupted() -> int:
    _ignore_interrupts()
    try:
        _end_terminal_line()
        _flush()
    except OSError:
        _drop_output()
    return _INTERRUPTED


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and not stream.closed:
            stream.flush()


def _drop_output() -> None:
    """Discard buffered output, so that the interpreter's final flush cannot fail."""
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
