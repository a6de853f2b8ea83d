"""The store of answers and evaluations, so that only new requests are run.

One SQLite file. An answer's key is a hash of the model's weights and precision, the token ids and the sampling
settings, not of the name of a task or template, whose content may change.
"""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
import time
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..base import RunError, UsageError, open_regular, printable
from ..base.errors import closest
from ..weights.catalogue import cache_folder
from .task import Encoded, Generation, Ids, Likelihood, text_digest

_SCHEMA = """
create table if not exists answers (key blob primary key, value blob not null, greedy integer) without rowid;
create table if not exists weights (path text primary key, size integer, changed integer, hash text not null);
create table if not exists evaluations (name text primary key, made real not null, result text not null);
"""
_TABLES = {"answers", "weights", "evaluations"}
_VERSION = 1
_SECONDS_BETWEEN_COMMITS = 1.0
_LAST = re.compile(r"last(?:~(\d{1,9}))?")
_LONGEST_NAME = 100  # characters


@dataclass(frozen=True)
class Stored:
    """A finished evaluation in the store."""

    name: str
    finished: float  # seconds since 1970
    result: dict[str, Any]


class Store:
    """A file of answers; open it with `opened`."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection, self.path = connection, path
        self._waiting: dict[bytes, tuple[bytes, int | None]] = {}  # the file is only locked while these are written
        self._committed = time.monotonic()

    def likelihoods(self, model: str, requests: Sequence[Encoded]) -> dict[int, Likelihood]:
        """The stored likelihoods of requests, by index."""
        rows = self._read([_key(model, "likelihood", r.context, r.continuation) for r in requests])
        return {index: Likelihood(tuple(array("d", value)), bool(greedy)) for index, value, greedy in rows}

    def put_likelihood(self, model: str, request: Encoded, likelihood: Likelihood) -> None:
        """Store a likelihood."""
        key = _key(model, "likelihood", request.context, request.continuation)
        self._put(key, array("d", likelihood.logprobs).tobytes(), int(likelihood.greedy))

    def texts(self, model: str, prompts: Sequence[Ids], generation: Generation, seed: int = 0) -> dict[int, str]:
        """The stored texts, by the index of their prompt; if sampled, with the same seed."""
        how = _how(generation, seed)
        rows = self._read([_key(model, "text", prompt, how) for prompt in prompts])
        return {index: json.loads(value)[0] for index, value, _ in rows}

    def put_text(self, model: str, prompt: Ids, generation: Generation, seed: int, text: str) -> None:
        """Store a text."""
        self._put(_key(model, "text", prompt, _how(generation, seed)), json.dumps([text]).encode(), None)

    def hash_of(self, path: Path) -> str:
        """SHA-256 of a model's file or folder, cached by the size and modification time of its files."""
        files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
        digest = hashlib.sha256()
        for file in files:
            if file.suffix in (".safetensors", ".gguf", ".json", ".model") or file == path:
                digest.update(f"{file.relative_to(path) if file != path else ''} {self._hash_of_file(file)}".encode())
        return digest.hexdigest()

    def _hash_of_file(self, file: Path) -> str:
        status = file.stat()
        query = "select hash from weights where path = ? and size = ? and changed = ?"
        known = self._connection.execute(query, (str(file), status.st_size, status.st_mtime_ns)).fetchone()
        if known:
            return str(known[0])
        with open_regular(file) as opened_file:
            digest = hashlib.file_digest(opened_file, "sha256").hexdigest()
        row = (str(file), status.st_size, status.st_mtime_ns, digest)
        self._connection.execute("insert or replace into weights values (?, ?, ?, ?)", row)
        self.commit()
        return digest

    def check_name(self, name: str) -> None:
        """Raise UsageError for a name that is taken or invalid."""
        if not name.strip() or len(name) > _LONGEST_NAME or _LAST.fullmatch(name) or name.startswith("-"):
            raise UsageError(
                f"--name {printable(name, 40)!r} is not a valid name: use at most {_LONGEST_NAME} characters, no"
                " leading dash, and not last or last~1"
            )
        if name in self.names():
            raise UsageError(
                f"an evaluation {name!r} exists already. Give another --name, or remove it: nextword eval runs remove"
                f" {name}"
            )

    def keep(self, name: str, result: dict[str, Any]) -> str:
        """Store a finished evaluation and return its name: `name`, with a hash appended if that is taken.

        An evaluation is never overwritten.
        """
        text = json.dumps(result)
        for called in (name, f"{name}-{text_digest(text)[:6]}", f"{name}-{text_digest(text)}"):
            row = (called, time.time(), text)
            added = self._connection.execute("insert or ignore into evaluations values (?, ?, ?)", row).rowcount
            self.commit()
            if added:
                break
        return called

    def remove(self, names: Sequence[str]) -> list[str]:
        """Remove evaluations, by names as in `evaluation`, and return their full names; answers are kept.

        Raises UsageError, and removes none, if one of the names is unknown.
        """
        full = list(dict.fromkeys(map(self.full_name, names)))
        self._connection.executemany("delete from evaluations where name = ?", [(name,) for name in full])
        self.commit()
        return full

    def evaluation(self, name: str) -> Stored:
        """A stored evaluation, by its name, a unique prefix, `last`, or `last~1` for the one before.

        Raises UsageError for an unknown name or an ambiguous prefix.
        """
        query = "select name, made, result from evaluations where name = ?"
        full, finished, result = self._connection.execute(query, (self.full_name(name),)).fetchone()
        return Stored(full, finished, json.loads(result))

    def full_name(self, name: str) -> str:
        """The full name of a stored evaluation; `name` and errors as in `evaluation`."""
        names = self.names()
        if name in names:
            return name
        if not names:
            raise UsageError(f"no evaluation {name!r} in {self.path}: there are none yet")
        if counted := _LAST.fullmatch(name):
            back = int(counted[1] or 0)
            if back >= len(names):
                raise UsageError(f"{name}: {self.path} holds only {len(names):,} evaluation{'s' * (len(names) != 1)}")
            return names[-1 - back]
        matches = [other for other in names if name and other.startswith(name)]
        if len(matches) > 1:
            several = ", ".join(matches[-3:]) + (", ..." if len(matches) > 3 else "")
            raise UsageError(f"{name!r} matches {len(matches):,} evaluations ({several}); type more of the name")
        if not matches:
            near = closest(name, names)
            raise UsageError(f"no evaluation {name!r} in {self.path}.{near} See: nextword eval runs list")
        return matches[0]

    def names(self) -> list[str]:
        """Names of all stored evaluations, the newest last."""
        return [name for (name,) in self._connection.execute("select name from evaluations order by made, rowid")]

    def evaluations(self, task: str | None = None, most: int = -1) -> list[Stored]:
        """Stored evaluations, the newest last: of all tasks or one, all of them or the newest `most`."""
        start = "" if task is None else json.dumps({"task": task}).removesuffix("}")  # `Result` begins with its task
        query = (
            "select name, made, result from evaluations where substr(result, 1, ?) = ?"
            " order by made desc, rowid desc limit ?"
        )
        rows = self._connection.execute(query, (len(start), start, most)).fetchall()
        return [Stored(name, finished, json.loads(result)) for name, finished, result in reversed(rows)]

    def commit(self) -> None:
        """Write pending answers to the file."""
        rows = [(key, value, greedy) for key, (value, greedy) in self._waiting.items()]
        self._connection.executemany("insert or replace into answers values (?, ?, ?)", rows)
        self._connection.commit()
        self._waiting.clear()
        self._committed = time.monotonic()

    def _read(self, keys: Sequence[bytes]) -> Iterator[tuple[int, bytes, int | None]]:
        query = "select value, greedy from answers where key = ?"
        for number, key in enumerate(keys):
            row = self._waiting.get(key) or self._connection.execute(query, (key,)).fetchone()
            if row is not None:
                yield number, row[0], row[1]

    def _put(self, key: bytes, value: bytes, greedy: int | None) -> None:
        self._waiting[key] = value, greedy
        if time.monotonic() - self._committed > _SECONDS_BETWEEN_COMMITS:
            self.commit()


def default_name(result: dict[str, Any], began: float) -> str:
    """The default name of an evaluation: its task, the local time it `began` (seconds since 1970), and a hash."""
    task = re.sub(r"[^\w.]+", "-", str(result["task"])).strip("-")[: _LONGEST_NAME // 2] or "evaluation"
    when = time.strftime("%Y%m%d-%H%M", time.localtime(began))
    return f"{task}-{when}-{text_digest(json.dumps(result))[:6]}"


def _key(model: str, *what: object) -> bytes:
    digest = hashlib.sha256(f"{_VERSION} {model}".encode())
    for entry in what:
        data = array("q", entry).tobytes() if isinstance(entry, tuple) else str(entry).encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.digest()


def _how(generation: Generation, seed: int) -> str:
    # "by": what keys the random numbers; formerly the prompt's index in a list
    drawn = {"seed": seed, "by": "sample"} if generation.temperature > 0 else {}
    given = {name: value for name, value in asdict(generation).items() if name != "choices" or value}
    return json.dumps({"repeats": 1} | given | drawn, sort_keys=True)  # repeats: for compatibility with stored answers


def default_path() -> Path:
    """The default store, in the folder of downloaded models."""
    return cache_folder() / "evaluations.sqlite"


def _connect(where: str) -> sqlite3.Connection:
    """Open the database. Raises sqlite3.Error for a file that is not a store, and leaves it unchanged."""
    connection = sqlite3.connect(where, timeout=30)
    try:
        tables = {name for (name,) in connection.execute("select name from sqlite_master where type = 'table'")}
        if tables - _TABLES:
            raise sqlite3.DatabaseError("it is a database of another program")
        connection.executescript(_SCHEMA)
    except sqlite3.Error:
        connection.close()
        raise
    return connection


@contextmanager
def opened(path: Path | None) -> Iterator[Store]:
    """The store at `path`, created if missing; in memory if None.

    Pending answers are written even if the run is interrupted. Raises UsageError for a file that is not a store,
    RunError if the disk is full.
    """
    where = ":memory:" if path is None else str(path)
    try:
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
        connection = _connect(where)
    except (OSError, sqlite3.Error) as error:
        raise UsageError(f"{where}: cannot be used as a store ({error}). Choose another with --store") from None
    store = Store(connection, Path(where))
    try:
        yield store
        store.commit()
    except sqlite3.Error as error:
        raise RunError(
            f"{where}: {error}. Earlier answers are kept; free some space and run the same command again"
        ) from error
    finally:
        with suppress(sqlite3.Error):  # reported already, or another error is being raised
            store.commit()
        connection.close()
