"""Several continuations of one text, read together as a tree: what they share is computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np


@dataclass
class Tree:
    """New tokens behind a state. `parents[n]` is the node before node n, an earlier one; -1 is the state's end."""

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.tokens)

    def add(self, parent: int, tokens: Sequence[int]) -> list[int]:
        """Grow a branch behind `parent`; returns its nodes."""
        first = len(self.tokens)
        nodes = list(range(first, first + len(tokens)))
        self.tokens += tokens
        self.parents += [parent, *nodes[:-1]][: len(nodes)]
        return nodes

    def path(self, node: int) -> list[int]:
        """The nodes from the state's end to `node`, itself included."""
        found = []
        while node >= 0:
            found.append(node)
            node = self.parents[node]
        return found[::-1]

    @cached_property
    def depths(self) -> list[int]:
        """How many tokens stand between the state's end and each node."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(depths[parent] + 1 if parent >= 0 else 0)
        return depths

    @cached_property
    def ancestry(self) -> np.ndarray:
        """True at [n, m] where node m is n or stands before it, (nodes, nodes)."""
        seen = np.eye(len(self), dtype=bool)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                seen[node] |= seen[parent]
        return seen

    def chains(self, ends: Sequence[int] = ()) -> list[list[list[int]]]:
        """The branches without a fork, level by level: those of a level need only what is before that level.

        A chain also ends at each node of `ends`.
        """
        children: list[list[int]] = [[] for _ in range(len(self) + 1)]  # the last: of the state's end
        for node, parent in enumerate(self.parents):
            children[parent].append(node)
        stops, levels, begins = set(ends), [], children[-1]
        while begins:
            level = []
            for node in begins:
                chain = [node]
                while len(children[chain[-1]]) == 1 and chain[-1] not in stops:
                    chain.append(children[chain[-1]][0])
                level.append(chain)
            levels.append(level)
            begins = [child for chain in level for child in children[chain[-1]]]
        return levels
