"""Parameter counts by part; equal to sum(p.numel()) of the built model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..spec import ModelSpec
from .figure import Figure, figure
from .shapes import PARTS, Part, TensorShape, tensors


@dataclass(frozen=True)
class Parameters:
    """Counts of parameters. `parts` sum to `total`, and a part's `tensors` to the part."""

    units: ClassVar = dict.fromkeys(("total", "active", "multiplying", "looked_up", "non_embedding"), "parameters")
    parts: tuple[Figure, ...]
    tensors: tuple[Figure, ...]
    active: int  # used per token: all but the experts it is not routed to
    multiplying: int  # active, in matrix products: a tied head once, the input look-up not at all
    looked_up: int  # embedding and learned positions

    @property
    def total(self) -> int:
        return int(sum(part.value for part in self.parts))

    @property
    def non_embedding(self) -> int:
        """Without embeddings, learned positions and an untied head, as Kaplan et al. and Pythia count."""
        ends = {"embedding", "positions", "head"}
        return int(sum(part.value for part in self.parts if part.name not in ends))

    def part(self, name: Part) -> int:
        """The parameters of one part, or 0."""
        return int(sum(part.value for part in self.parts if part.name == name))


def parameters(spec: ModelSpec) -> Parameters:
    """Count the trained parameters of a model of `spec`."""
    shapes = tensors(spec)
    return Parameters(
        parts=tuple(_part(name, group) for name in PARTS if (group := [t for t in shapes if t.part == name])),
        tensors=tuple(_tensor(tensor) for tensor in shapes),
        active=sum(_active(tensor) for tensor in shapes),
        multiplying=sum(tensor.active * tensor.shape[0] * tensor.shape[1] for tensor in shapes if tensor.multiplies),
        looked_up=sum(tensor.numbers for tensor in shapes if tensor.part in ("embedding", "positions")),
    )


def _active(tensor: TensorShape) -> int:
    return min(tensor.copies, tensor.active) * (tensor.numbers // tensor.copies) if tensor.copies else 0


def _tensor(tensor: TensorShape) -> Figure:
    sizes = {"rows": tensor.shape[0]} | ({"columns": tensor.shape[1]} if tensor.is_matrix else {})
    formula = "copies * rows * columns" if tensor.is_matrix else "copies * rows"
    source = "tied: the embedding's own matrix" if not tensor.copies else ""
    return figure(tensor.name, "parameters", formula, source, copies=tensor.copies, **sizes)


def _part(name: Part, group: list[TensorShape]) -> Figure:
    terms = [f"{t.copies} * {' * '.join(map(str, t.shape))}" for t in group]
    return figure(name, "parameters", " + ".join(terms), "copies × shape of each tensor in the spec")
