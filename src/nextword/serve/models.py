"""The models of a server: loaded when they are first used, and unloaded least recently used first."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from ..base import NextwordError, RunError, UsageError
from ..base.units import format_bytes
from ..engine import Engine, LanguageModel, LoadConfig, Worker
from ..engine.loading import load_weights
from ..plan.questions import PlannedModel
from ..text import Tokenizer
from ..weights.catalogue import check_folder
from ..weights.planned import model_at, model_by_name
from .config import ServeConfig
from .errors import ApiError
from .runs import PREFIX, RunFolders, written

CONTEXT = 8192  # tokens of one request to a recurrent model, which has no limit of its own


@dataclass
class Model:
    """A loaded model. `users`: requests under way. `written`: when a run's weights were."""

    id: str
    lm: LanguageModel
    context: int
    written: float = 0.0
    users: int = 0
    used: float = field(default_factory=time.monotonic)

    @property
    def engine(self) -> Engine:
        return self.lm.engine

    @property
    def tokenizer(self) -> Tokenizer:
        return self.lm.tokenizer

    @property
    def vocabulary(self) -> int:
        return self.lm.spec.vocabulary

    @cached_property
    def bytes(self) -> int:
        """Its weights as stored, and its cache of keys and values."""
        path = self.lm.loaded.path
        files = path.rglob("*") if path.is_dir() else [path]
        return sum(file.stat().st_size for file in files if file.is_file()) + self.engine.cache_bytes


@dataclass(frozen=True)
class About:
    """What a server reports when it is ready. `cache_bytes`: for keys and values, of each replica.

    `chats`: whether the model has a chat template. `replicas`: None without a cluster.
    """

    model: str
    cache_bytes: int
    chats: bool
    replicas: int | None = None


class Models:
    """Models by id; the first one answers requests that name none or another.

    Loading and unloading happen one after the other. A model with requests under way stays.
    """

    def __init__(self, names: Sequence[str], config: ServeConfig, loading: LoadConfig) -> None:
        self._names = {_id(name, config.alias if number == 0 else None): name for number, name in enumerate(names)}
        if len(self._names) < len(names):
            raise UsageError(f"two models have the same name: {', '.join(map(_id, names))}. Rename a file or folder")
        self.ids = list(self._names)
        self.created = int(time.time())
        self.runs = RunFolders(config.runs)
        self._config, self._loading = config, loading
        self.loaded: dict[str, Model] = {}
        self._worker: Worker | None = None
        self._lock = asyncio.Lock()

    @property
    def all_ids(self) -> list[str]:
        """Also those of training runs, as far as they are there now."""
        return [*self.ids, *(id for id in self.runs.models() if id not in self._names)]

    def has(self, id: str) -> bool:
        """Whether a request may name it."""
        return id in self._names or self.runs.model(id) is not None

    def start(self, worker: Worker) -> None:
        """Load the first model. `worker` steps the engines of all."""
        self._worker = worker
        self._adopt(self._open(self.ids[0]))

    @property
    def about(self) -> About:
        """The first model, which `start` has loaded."""
        first = self.loaded[self.ids[0]]
        return About(first.id, first.engine.cache_bytes, first.tokenizer.chat_template is not None)

    async def use(self, name: str | None) -> Model:
        """The model for a request; `Model.users` counts it until `release`. Raises ApiError if it cannot be loaded."""
        id = name if name in self._names else await self._of_run(name) or self.ids[0]
        if id not in self.loaded:
            async with self._lock:
                if id not in self.loaded:
                    await self._load(id)
        model = self.loaded[id]
        model.users, model.used = model.users + 1, time.monotonic()
        return model

    async def _of_run(self, name: str | None) -> str | None:
        """`name` if it is the model of a run, unloaded if it was written anew since. Raises ApiError if it is gone."""
        if name is None or not name.startswith(PREFIX):
            return None
        folder = await asyncio.to_thread(self.runs.model, name)
        if folder is None:
            raise ApiError(404, f"{name[:80]!r} is not a run with a model. GET /v1/runs lists the runs", "model")
        known = self.loaded.get(name)
        if known is not None and not known.users and known.written != written(folder):
            self._unload(known)
        return name

    async def _load(self, id: str) -> None:
        try:
            self._adopt(await asyncio.to_thread(self._open, id))
        except NextwordError as error:
            raise ApiError(503, f"{id} cannot be loaded: {error}") from None

    def release(self, model: Model) -> None:
        model.users -= 1

    def planned(self, id: str) -> PlannedModel | None:
        """A served model's shape and size, from the headers of its files; nothing is downloaded for it."""
        name = self._name(id)
        path = self.loaded[id].lm.loaded.path if id in self.loaded else Path(name).expanduser()
        if not path.exists():
            return model_by_name(name)
        return replace(model_at(id, check_folder(path) if path.is_dir() else path), name=id)

    def _open(self, id: str) -> Model:
        name = self._name(id)
        at = written(Path(name))
        lm = LanguageModel(load_weights(name, self._loading), max_sequences=self._config.parallel)
        return Model(id, lm, _context(lm, self._config.context), at)

    def _name(self, id: str) -> str:
        """The name or path of a model. Raises UsageError for the model of a run that is gone."""
        if id in self._names:
            return self._names[id]
        folder = self.runs.model(id)
        if folder is None:
            raise UsageError(f"{id} is not a run with a model any more")
        return str(folder)

    def _adopt(self, model: Model) -> None:
        self._make_room(model)
        self.loaded[model.id] = model
        if self._worker is not None:
            self._worker.add(model.engine)

    def _make_room(self, model: Model) -> None:
        """Unload idle models until `model` fits in the budget too."""
        budget = self._config.memory
        while budget is not None:
            needed = model.bytes + sum(other.bytes for other in self.loaded.values())
            if needed <= budget:
                return
            idle = [other for other in self.loaded.values() if not other.users]
            if not idle:
                way_out = "Wait until one is idle, or raise --memory" if self.loaded else "Raise it"
                raise RunError(
                    f"{model.id} {'and the models in use need' if self.loaded else 'needs'} {format_bytes(needed)};"
                    f" --memory is {format_bytes(budget)}. {way_out}"
                )
            self._unload(min(idle, key=lambda other: other.used))

    def _unload(self, model: Model) -> None:
        del self.loaded[model.id]
        if self._worker is not None:
            self._worker.remove(model.engine)


def _id(name: str, alias: str | None = None) -> str:
    """What the API calls a model: its alias, its catalogue name, or the name of its file or folder."""
    path = Path(name)
    return alias or (path.resolve().name.removesuffix(".gguf") if path.exists() else name)


def _context(lm: LanguageModel, wanted: int | None) -> int:
    own = lm.engine.backend.context
    if wanted is not None and own is not None and wanted > own:
        raise UsageError(f"--context is {wanted}; {lm.name} was made for {own} tokens. Give at most that")
    return wanted or own or CONTEXT
