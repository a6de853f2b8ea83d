"""Preparing text on a Ray cluster: blocks of files and shards are tasks, and the driver merges what they report.

Ray's tasks rather than Ray Data: a shard is a range of documents in order, and only names of files travel.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from ..base import RunError, UsageError, require
from .reader import Advance

_TASKS_A_CPU = 4  # so that none waits long for the last one
_LONGEST = 16  # shards of one task: what is lost with a worker
_PATIENCE = 60  # seconds for a node to answer

Node = dict[str, Any]  # as ray.nodes() describes it

Shared = TypeVar("Shared")
Item = TypeVar("Item")
Result = TypeVar("Result")


@contextmanager
def connected(address: str, folder: Path, text: Path) -> Iterator[RunOnCluster]:
    """A running cluster, "auto" or HOST:PORT, every node of which sees `folder` and `text` and has this nextword.

    Raises UsageError for an address that is none, RunError where nothing answers or a node lacks something.
    """
    with attached(address) as ray:
        _check_folders(ray, folder, text)
        yield RunOnCluster(ray)


@contextmanager
def attached(address: str) -> Iterator[Any]:
    """The module `ray`, attached to a running cluster: "auto" or HOST:PORT.

    Raises UsageError for an address that is none, RunError where nothing answers or no node has a CPU.
    """
    check_address(address)
    os.environ.setdefault("RAY_task_oom_retries", "3")  # without end by default
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else it warns of the variable
    ray: Any = import_module("ray")

    try:
        if address != "auto":  # Ray would try for minutes
            host, _, port = address.rpartition(":")
            socket.create_connection((host.strip("[]"), int(port)), _PATIENCE / 6).close()
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    except (ray.exceptions.RayError, RuntimeError, ValueError, OSError) as error:
        reason = str(getattr(error, "strerror", None) or error).split("\n")[0].split(". ")[0].rstrip(".")
        raise RunError(f"--cluster {address}: no Ray cluster ({reason}). Start it on each machine: ray start") from None
    try:
        if not ray.cluster_resources().get("CPU"):
            raise RunError("no node of the cluster offers a CPU. Start one: ray start --address HEAD:PORT --num-cpus N")
        yield ray
    finally:
        ray.shutdown()


def check_address(address: str, option: str = "--cluster") -> None:
    """Raise UsageError if `address` is not a cluster address, or Ray is not installed."""
    require("ray", option)
    host, _, port = address.rpartition(":")
    if address != "auto" and not (host and port.isdecimal() and int(port) < 1 << 16):
        raise UsageError(f"--cluster {address!r}: give auto, on a machine of the cluster, or HOST:PORT of its head")


def check_nodes(
    ray: Any, look: Callable[..., str], arguments: Sequence[Any], nodes: Iterable[Node], patience: float = _PATIENCE
) -> None:
    """Raise RunError unless each node has this nextword and lacks nothing: `look(*arguments)`, run there, says what.

    `patience`: seconds for a node to answer.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=0)(_lack)
    waiting = {}
    for node in nodes:
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        waiting[task.options(scheduling_strategy=there).remote(_version(), look, arguments)] = node
    ready, silent = ray.wait(list(waiting), num_returns=len(waiting), timeout=patience)
    if silent:
        raise RunError(f"{waiting[silent[0]]['NodeManagerHostname']} of the cluster does not answer in {patience:g} s")
    for reference in ready:
        if lack := _value(ray, reference):
            raise RunError(f"{waiting[reference]['NodeManagerHostname']} of the cluster {lack}")


def _lack(version: str, look: Callable[..., str], arguments: Sequence[Any]) -> str:
    if _version() != version:
        return f"has nextword {_version()}, and here it is {version}. Install the same"
    return look(*arguments)


def nodes_of(ray: Any) -> list[Node]:
    """The nodes that are alive, as Ray describes them."""
    return [node for node in ray.nodes() if node["Alive"]]


def _check_folders(ray: Any, folder: Path, text: Path) -> None:
    """Raise RunError unless every node sees both."""
    folder.mkdir(parents=True, exist_ok=True)
    token = folder / f".seen-{secrets.token_hex(8)}"
    token.touch()
    try:
        check_nodes(ray, _look, (str(token.absolute()), str(text.absolute())), nodes_of(ray))
    finally:
        token.unlink(missing_ok=True)


def _version() -> str:
    return str(sys.modules["nextword"].__version__)


def _look(token: str, text: str) -> str:
    """What this node lacks."""
    missing = [path for path in (token, text) if not os.path.exists(path)]
    return f"does not see {missing[0]}. Put the text and the output where all machines see them" if missing else ""


class RunOnCluster:
    """Calls a function for each of several items, as tasks of one CPU. A task whose worker dies runs again."""

    def __init__(self, ray: Any) -> None:
        self.ray = ray

    def __call__(
        self, function: Callable[[Shared, Item, Advance], Result], shared: Shared, items: Sequence[Item],
        advance: Advance,
    ) -> list[Result]:  # fmt: skip
        """The results in the order of the items. Raises what the function raises, RunError if workers keep dying."""
        common, task = self.ray.put(shared), self.ray.remote(num_cpus=1)(_call)
        places = {task.remote(function, common, item): place for place, item in enumerate(items)}
        results: list[Any] = [None] * len(items)
        waiting = list(places)
        while waiting:
            ready, waiting = self.ray.wait(waiting)
            for reference in ready:
                results[places[reference]], done = _value(self.ray, reference)
                advance(done)
        return results

    def ranges(self, numbers: range) -> list[range]:
        """Consecutive numbers as the items of one call: those of one task need their file opened once."""
        size = min(_LONGEST, -(-len(numbers) // (_TASKS_A_CPU * int(self.ray.cluster_resources()["CPU"]))))
        return [numbers[start : start + size] for start in range(0, len(numbers), size)]


def _call(function: Callable[[Any, Any, Advance], Any], shared: Any, item: Any) -> tuple[Any, int]:
    """The result, and how much was done."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # of this worker, which has one CPU
    done: list[int] = []
    return function(shared, item, done.append), sum(done)


def _value(ray: Any, reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayError as error:
        reason = str(error).split("\n")[0][:200]
        raise RunError(f"a worker of the cluster failed ({reason}). The same command goes on") from None
