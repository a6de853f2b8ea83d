"""Evaluates on a Ray cluster: actors hold the model and answer blocks of requests, this process keeps the store."""

from __future__ import annotations

import os
import socket
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from ..base import NextwordError, RunError, UsageError
from ..base.cluster import check_nodes, cpus_of, loss, nodes_of, reserve
from ..weights.catalogue import resolve
from .runner import ModelRunner, Writing
from .served import ServedModel, ServedRunner
from .store import Store, opened
from .task import Encoded, Likelihood

if TYPE_CHECKING:
    from ..engine import LanguageModel
    from ..engine.loading import LoadConfig
    from .served import EvalModel

_DOWNLOAD_SECONDS = 3600.0  # for a node to get the model
_BLOCKS = 8  # for each actor, so that none waits long for the last one
_LEAST = 16  # requests of a block: neighbours share prefixes
_TRIES = 3  # actors that one block may lose

Asked = TypeVar("Asked")


def runners_on(ray: Any, config: LoadConfig) -> Callable[[EvalModel, Store], ModelRunner]:
    """Makes the runner of a model: on the cluster that `ray` is attached to, unless the model is served."""

    def make(model: EvalModel, store: Store) -> ModelRunner:
        return ServedRunner(model, store) if isinstance(model, ServedModel) else _Runner(model, store, ray, config)

    return make


class _Runner(ModelRunner):
    """Runs requests on actors. Their answers are those of this process, which has the model too, to the last bit."""

    def __init__(self, model: LanguageModel, store: Store, ray: Any, config: LoadConfig) -> None:
        super().__init__(model, store)
        name = model.loaded.name
        self._name = os.path.abspath(name) if os.path.exists(name) else name
        self._ray = ray
        nodes = [node for node in nodes_of(ray) if cpus_of(node)]
        cpus, self._count = reserve(nodes, config.threads)
        self._config, self._resources = replace(config, threads=cpus), {"num_cpus": cpus, "num_gpus": 0}
        if config.device.startswith("cuda") or (config.device == "auto" and model.loaded.device != "cpu"):
            self._resources["num_gpus"] = 1
            self._count = min(self._count, sum(int(node["Resources"].get("GPU", 0)) for node in nodes))
        if not self._count:
            needs = f"{cpus} CPUs" + " and a GPU" * self._resources["num_gpus"]
            raise UsageError(f"no node of the cluster has {needs} for {name}. Give fewer --threads, or --device cpu")

    def tokens_to_score(self, missing: Sequence[Encoded]) -> int:
        return sum(map(super().tokens_to_score, self._scored(missing)))

    def tokens_of_prompts(self, missing: Sequence[Writing]) -> int:
        return sum(map(super().tokens_of_prompts, self._written(missing)))

    def seconds_to_score(self, missing: Sequence[Encoded], tokens: int) -> float:
        return super().seconds_to_score(missing, tokens) / self._count

    def seconds_to_write(self, missing: Sequence[Writing], tokens: int) -> float:
        return super().seconds_to_write(missing, tokens) / self._count

    def score(self, missing: Sequence[Encoded]) -> Iterator[tuple[dict[Encoded, Likelihood], int]]:
        for scores, read in self._answers("score", self._scored(missing)):
            self.tokens_read += read
            yield scores, read

    def generate(self, missing: Sequence[Writing], seed: int) -> Iterator[tuple[Writing, str, int]]:
        for writing, text, read in self._answers("generate", self._written(missing), seed):
            self.tokens_read += read
            yield writing, text, read

    def _scored(self, missing: Sequence[Encoded]) -> list[list[Encoded]]:
        return self._blocks(sorted(missing, key=lambda request: (request.context, request.continuation)))

    def _written(self, missing: Sequence[Writing]) -> list[list[Writing]]:
        return self._blocks(sorted(missing, key=lambda writing: writing[0]))

    def _blocks(self, requests: list[Asked]) -> list[list[Asked]]:
        """Neighbours, which share prefixes, as what an actor does at a time."""
        size = max(_LEAST, -(-len(requests) // (_BLOCKS * self._count)))
        return [requests[start : start + size] for start in range(0, len(requests), size)]

    def _answers(self, method: str, blocks: Sequence[Any], *more: Any) -> Iterator[Any]:
        """The answers to each block, in the order in which they come."""
        if not blocks:
            return
        self._check_nodes()
        crew = _Crew(self._ray, self._start)
        try:
            for answers in crew.answers(blocks, min(self._count, len(blocks)), method, more):
                yield from answers
        finally:
            crew.end()

    def _check_nodes(self) -> None:
        """Raise RunError unless each node has the same model; those of the catalogue and the hub are downloaded."""
        digest = self.store.hash_of(self.model.loaded.path)
        nodes = [node for node in nodes_of(self._ray) if cpus_of(node)]
        check_nodes(self._ray, _lacking, (self._name, digest), nodes, _DOWNLOAD_SECONDS)

    def _start(self) -> tuple[Any, Any]:
        """A new actor, and what is there when it has started."""
        actor = self._ray.remote(_Actor).options(**self._resources).remote()
        return actor, actor.start.remote(self._name, self._config, self.model.loaded.precision)


def _lacking(name: str, digest: str) -> str:
    try:
        path = resolve(name)
    except NextwordError as error:
        return f"lacks {name}: {error}"
    with opened(None) as store:
        return "" if store.hash_of(path) == digest else f"has other weights of {name}. Give it the same files"


class _Crew:
    """Actors of one kind that answer blocks. A block whose actor is lost goes to another, or to a new one."""

    def __init__(self, ray: Any, new: Callable[[], tuple[Any, Any]]) -> None:
        """`new` gives an actor, and what is there when it has started."""
        self._ray, self._new = ray, new
        self._actors: list[Any] = []
        self._waiting: dict[Any, tuple[Any, int | None]] = {}  # an actor and its block's number; None: it starts
        self._lost: Counter[int | None] = Counter()  # actors, by what they did

    def answers(self, blocks: Sequence[Any], count: int, method: str, more: tuple[Any, ...]) -> Iterator[Any]:
        """The answers of `count` actors to each block, as they come. Raises RunError if a block loses many actors."""
        todo, idle = deque(range(len(blocks))), []
        for _ in range(count):
            self._start()
        while todo or any(number is not None for _, number in self._waiting.values()):
            [reference], _ = self._ray.wait(list(self._waiting))
            actor, number = self._waiting.pop(reference)
            try:
                answers = self._ray.get(reference)
            except self._ray.exceptions.RayTaskError as error:
                raise error.cause from None
            except self._ray.exceptions.RayError as error:
                self._replace(number, error)
                todo.extendleft([] if number is None else [number])
            else:
                idle.append(actor)
                if number is not None:
                    yield answers
            while todo and idle:
                actor, number = idle.pop(), todo.popleft()
                self._waiting[getattr(actor, method).remote(blocks[number], *more)] = (actor, number)

    def _start(self) -> None:
        actor, started = self._new()
        self._actors.append(actor)
        self._waiting[started] = (actor, None)

    def _replace(self, number: int | None, error: BaseException) -> None:
        """Start an actor for one that was lost. Raises RunError if others were lost by the same before."""
        self._lost[number] += 1
        if self._lost[number] >= _TRIES:
            raise RunError(f"{loss(error)}. The same command goes on") from None
        self._start()

    def end(self) -> None:
        """End the actors."""
        for actor in self._actors:
            self._ray.kill(actor)


class _Actor:
    """A runner with the model on a node; `start` comes first."""

    def start(self, name: str, config: LoadConfig, precision: str) -> None:
        """Load the model. Raises RunError if this node runs it in another precision."""
        from ..engine import LanguageModel
        from ..engine.loading import load_weights

        loaded = load_weights(name, config)
        if loaded.precision != precision:
            raise RunError(
                f"{socket.gethostname()} of the cluster runs {name} in {loaded.precision}, and this machine in"
                f" {precision}. Give --device and --dtype"
            )
        unused = ExitStack().enter_context(opened(None))  # answers are stored by the process that asks
        self._runner = ModelRunner(LanguageModel(loaded), unused)

    def score(self, block: Sequence[Encoded]) -> list[tuple[dict[Encoded, Likelihood], int]]:
        """As the runner's."""
        return list(self._runner.score(block))

    def generate(self, block: Sequence[Writing], seed: int) -> list[tuple[Writing, str, int]]:
        """As the runner's."""
        return list(self._runner.generate(block, seed))
