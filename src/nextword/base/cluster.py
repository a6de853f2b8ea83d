"""A running Ray cluster: attaching to it, and checking that its nodes have what the work takes.

ray is imported in the functions: it is an extra, and takes a second.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any

from .errors import NextwordError, RunError, UsageError
from .extras import require

_PATIENCE = 60.0  # seconds for a node to answer
_CONNECT_SECONDS = 10.0

Node = dict[str, Any]  # as ray.nodes() describes it


def check_address(address: str, option: str = "--cluster") -> None:
    """Raise UsageError if `address` is not a cluster address, or Ray is not installed."""
    require("ray", option)
    host, _, port = address.rpartition(":")
    if address != "auto" and not (host and port.isdecimal() and int(port) < 1 << 16):
        raise UsageError(f"--cluster {address!r}: give auto, on a machine of the cluster, or HOST:PORT of its head")


@contextmanager
def attached(address: str, on_message: Callable[[str], None] = lambda text: None) -> Iterator[Any]:
    """The module `ray`, attached to a running cluster: "auto" or HOST:PORT. Ray's messages go to `on_message`.

    Raises UsageError for an address that is none, RunError where nothing answers or no node has a CPU.
    """
    check_address(address)
    os.environ.setdefault("RAY_task_oom_retries", "3")  # without end by default
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else it warns of the variable
    ray: Any = import_module("ray")
    with _sigterm_kept(), _messages_to(on_message):
        _attach(ray, address)
        try:
            if not ray.cluster_resources().get("CPU"):
                raise RunError(
                    "no node of the cluster offers a CPU. Start one: ray start --address HEAD:PORT --num-cpus N"
                )
            yield ray
        finally:
            ray.shutdown()


def _attach(ray: Any, address: str) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    try:
        if address != "auto":  # Ray would try for minutes
            host, _, port = address.rpartition(":")
            socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    except (ray.exceptions.RayError, RuntimeError, ValueError, OSError) as error:
        reason = str(getattr(error, "strerror", None) or error).split("\n")[0].split(". ")[0].rstrip(".")
        raise RunError(
            f"--cluster {address}: no Ray cluster ({reason}). Start it on each machine: ray start. All take the same"
            " RAY_AUTH_MODE and token"
        ) from None
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)  # Ray's own undoes nothing


@contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Let SIGTERM end the block as its handler says: in a call of Ray, the code of a SystemExit becomes 1."""
    handler, codes = signal.getsignal(signal.SIGTERM), []

    def noted(number: int, frame: FrameType | None) -> None:
        try:
            handler(number, frame)  # type: ignore[operator, misc]
        except SystemExit as end:
            codes.append(end.code)
            raise

    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    signal.signal(signal.SIGTERM, noted)
    try:
        yield
    except SystemExit:
        if codes:
            raise SystemExit(codes[0]) from None
        raise
    finally:
        signal.signal(signal.SIGTERM, handler)


@contextmanager
def _messages_to(take: Callable[[str], None]) -> Iterator[None]:
    """Ray prints blocks of lines about lost workers on standard output, where results belong, and has no option."""
    worker: Any = import_module("ray._private.worker")
    usual = worker.print_to_stdstream
    worker.print_to_stdstream = lambda data, ignore_prefix: take("\n".join(data["lines"]))
    try:
        yield
    finally:
        worker.print_to_stdstream = usual


# ---- nodes


def nodes_of(ray: Any) -> list[Node]:
    """The nodes that are alive, as Ray describes them."""
    return [node for node in ray.nodes() if node["Alive"]]


def cpus_of(node: Node) -> int:
    """The CPUs that a node offers."""
    return int(node["Resources"].get("CPU", 0))


def reserve(nodes: Sequence[Node], threads: int | None) -> tuple[int, int]:
    """CPUs of each of several equal workers, by default those of the smallest node, and for how many there is room."""
    sizes = [size for node in nodes if (size := cpus_of(node))]
    cpus = threads or min(sizes)
    return cpus, sum(size // cpus for size in sizes)


def ask_nodes(
    ray: Any,
    look: Callable[..., Any],
    arguments: Sequence[Any],
    nodes: Iterable[Node],
    patience: float = _PATIENCE,
    gpus: float = 0,
) -> list[tuple[str, Any]]:
    """Each node's host and what `look(*arguments)` returns there. Raises RunError for one without this nextword.

    `patience`: seconds for a node to answer; `gpus`: what `look` takes of them, without which it sees none.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=0, num_gpus=gpus)(_look)
    waiting = {}
    for node in nodes:
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        waiting[task.options(scheduling_strategy=there).remote(_version(), look, arguments)] = node
    ready, silent = ray.wait(list(waiting), num_returns=len(waiting), timeout=patience)
    if silent:
        raise RunError(f"{waiting[silent[0]]['NodeManagerHostname']} of the cluster does not answer in {patience:g} s")
    hosts = [waiting[reference]["NodeManagerHostname"] for reference in ready]
    return [(host, answer) for reference, host in zip(ready, hosts, strict=True)
            for answer in _answer(ray, reference, host)]  # fmt: skip


def _answer(ray: Any, reference: Any, host: str) -> list[Any]:
    """What a node says; nothing if it was lost just now, which Ray notices with some delay."""
    try:
        version, answer = value(ray, reference)
    except RunError as error:
        if isinstance(error.__cause__, ray.exceptions.TaskUnschedulableError):
            return []
        raise
    except ImportError as error:
        raise RunError(f"{host} of the cluster cannot run this ({_last_line(error)})") from error
    if version != _version():
        raise RunError(f"{host} of the cluster has nextword {version}, and here it is {_version()}. Install the same")
    return [answer]


def _look(version: str, look: Callable[..., Any], arguments: Sequence[Any]) -> tuple[str, Any]:
    """This node's version, and if it is the same, what `look` finds."""
    return _version(), look(*arguments) if _version() == version else None


def check_nodes(
    ray: Any, lacking: Callable[..., str], arguments: Sequence[Any], nodes: Iterable[Node], patience: float = _PATIENCE
) -> None:
    """Raise RunError unless each node lacks nothing: `lacking(*arguments)`, run there, says what."""
    for host, lack in ask_nodes(ray, lacking, arguments, nodes, patience):
        if lack:
            raise RunError(f"{host} of the cluster {lack}")


@contextmanager
def token_in(folder: Path) -> Iterator[str]:
    """The path of a file that was written into `folder` just now, to see which nodes see it."""
    folder.mkdir(parents=True, exist_ok=True)
    token = folder / f".seen-{secrets.token_hex(8)}"
    token.touch()
    try:
        yield str(token.absolute())
    finally:
        token.unlink(missing_ok=True)


def unseen(*paths: str) -> str:
    """Which of `paths` this node does not see, as an answer for `check_nodes`."""
    missing = [path for path in paths if not os.path.exists(path)]
    return f"does not see {missing[0]}. Put the text and the output where all machines see them" if missing else ""


def _version() -> str:
    return str(sys.modules["nextword"].__version__)


# ---- results


def value(ray: Any, reference: Any) -> Any:
    """The result of a task. Raises what it raised, RunError if its worker was lost."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayError as error:
        raise RunError(f"{loss(error)}. The same command goes on") from error


def _last_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[-1]


def loss(error: BaseException) -> str:
    """One line that says why Ray lost a worker."""
    if isinstance(error, NextwordError):
        return str(error)
    return f"a worker of the cluster failed ({str(error).splitlines()[0][:200]})"
