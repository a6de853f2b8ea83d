"""A Ray cluster of two machines of one CPU each, as far as Ray knows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Machines:
    """The cluster, and its second machine, which may be lost; the first one is the driver's."""

    cluster: Any
    second: Any

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def lose_second(self) -> None:
        """Take the second machine away, with all that runs on it."""
        self.cluster.remove_node(self.second, allow_graceful=False)


@contextmanager
def two_machines() -> Iterator[Machines]:
    from ray.cluster_utils import Cluster

    small: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 100 << 20}
    cluster = Cluster(initialize_head=True, head_node_args=small | {"include_dashboard": False})
    try:
        second = cluster.add_node(**small)
        cluster.wait_for_nodes()
        yield Machines(cluster, second)
    finally:
        cluster.shutdown()
