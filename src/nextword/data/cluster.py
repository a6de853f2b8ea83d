"""Preparing text on a Ray cluster: blocks of files and shards are tasks, and the driver merges what they report.

Ray's tasks rather than Ray Data: a shard is a range of documents in order, and only names of files travel.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from ..base.cluster import attached, check_nodes, nodes_of, token_in, unseen, value
from .reader import Advance

_TASKS_A_CPU = 4  # so that none waits long for the last one
_LONGEST = 16  # shards of one task: what is lost with a worker

Shared = TypeVar("Shared")
Item = TypeVar("Item")
Result = TypeVar("Result")


@contextmanager
def connected(address: str, folder: Path, text: Path) -> Iterator[RunOnCluster]:
    """A running cluster, "auto" or HOST:PORT, every node of which sees `folder` and `text` and has this nextword.

    Raises UsageError for an address that is none, RunError where nothing answers or a node lacks something.
    """
    with attached(address) as ray:
        with token_in(folder) as token:
            check_nodes(ray, unseen, (token, str(text.absolute())), nodes_of(ray))
        yield RunOnCluster(ray)


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
                results[places[reference]], done = value(self.ray, reference)
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
