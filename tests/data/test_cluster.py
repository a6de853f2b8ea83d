"""Preparing on a cluster: the same bytes as here, also where a worker or a whole machine is lost."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from nextword.base import RunError, UsageError
from nextword.base.cluster import check_address
from nextword.data import find_sources, prepare, reader, shards, tokenizing
from nextword.data.cluster import connected
from nextword.plan.run_config import DataConfig
from ray_machines import Machines

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning"
)


def rows(path: Path, count: int, seed: int) -> None:
    draw = random.Random(seed)
    words = ["".join(draw.choices("abcdefghijklmnoprstuvwz", k=draw.randint(2, 9))) for _ in range(300)]
    texts = [" ".join(draw.choices(words, k=60)) for _ in range(count)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in [*texts, *texts[:5]]))


def files_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_the_shards_of_a_cluster_are_those_of_one_machine_though_a_worker_and_a_machine_are_lost(
    tmp_path: Path, machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text").mkdir()
    for number in range(6):
        rows(tmp_path / "text" / f"{number}.jsonl", 100, number)
    monkeypatch.setattr(reader, "SHARD", 12_000)
    sources, config = find_sources([tmp_path / "text"]), DataConfig(vocabulary=300, deduplicate=True)
    whole = prepare(sources, tmp_path / "here", config)
    assert len(whole.manifest.train) > 12
    make, died = shards.make_shards, tmp_path / "died"

    def make_and_die_once(job: Any, numbers: range, advance: Any) -> None:
        make(job, numbers[:1], advance)
        try:
            died.touch(exist_ok=False)
        except FileExistsError:
            time.sleep(0.3)  # so that the lost machine has work left
        else:
            os.kill(os.getpid(), signal.SIGKILL)
        make(job, numbers[1:], advance) if numbers[1:] else None

    def lose_a_machine() -> None:
        while not (tmp_path / "there" / tokenizing.WORK / "shard-00004.json").exists():
            time.sleep(0.01)
        machines.lose_second()

    monkeypatch.setattr(shards, "make_shards", make_and_die_once)
    losing = threading.Thread(target=lose_a_machine, daemon=True)
    losing.start()
    with connected(machines.address, tmp_path / "there", sources.files[0]) as run:
        prepare(sources, tmp_path / "there", config, run=run)
    losing.join(10)
    assert died.exists()
    assert not losing.is_alive()
    assert files_of(tmp_path / "there") == files_of(tmp_path / "here")


def test_an_error_in_the_text_is_the_same_line_as_here(tmp_path: Path, machines: Machines) -> None:
    rows(tmp_path / "a.jsonl", 60, 0)
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write("{broken\n")
    sources = find_sources([tmp_path / "a.jsonl"])
    with pytest.raises(UsageError) as here:
        prepare(sources, tmp_path / "here", DataConfig(tokenizer="bytes"))
    place = connected(machines.address, tmp_path / "there", sources.files[0])
    with place as run, pytest.raises(UsageError) as there:
        prepare(sources, tmp_path / "there", DataConfig(tokenizer="bytes"), run=run)
    assert str(there.value) == str(here.value)
    with pytest.raises(RunError, match=r"does not see /nowhere/a\.txt\. Put the text"):
        connected(machines.address, tmp_path / "there", Path("/nowhere/a.txt")).__enter__()


@pytest.mark.parametrize("address", ["head", "head:", ":6379", "head:99999", "ray://head:10001x"])
def test_what_is_no_address_is_refused(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nextword.base.extras.installed", lambda package: True)
    with pytest.raises(UsageError, match="give auto, on a machine of the cluster, or HOST:PORT"):
        check_address(address)


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nextword.base.extras.installed", lambda package: False)
    with pytest.raises(UsageError, match=r"nextword\[cluster\]"):
        check_address("auto")
