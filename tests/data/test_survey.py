"""Duplicates and held-out text: decided in the order of the text, whoever reads it, and however much there is."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from nextword.data import prepare, reader, survey
from nextword.data.shards import RunHere
from nextword.plan.run_config import DataConfig


@given(st.lists(st.integers(0, 30), max_size=200), st.integers(1, 50))
def test_a_document_repeats_if_an_earlier_one_has_its_hash(numbers: list[int], together: int) -> None:
    hashes = np.array([number * 0x9E3779B97F4A7C15 % 2**64 for number in numbers], np.uint64)

    def parts() -> Iterator[NDArray[np.uint64]]:
        yield from np.split(hashes, range(7, len(hashes), 7))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(survey, "_TOGETHER", together)
        bits, found = survey.find_repeats(parts, len(hashes))
    expected = [number in numbers[:place] for place, number in enumerate(numbers)]
    assert np.unpackbits(bits, bitorder="little")[: len(numbers)].tolist() == expected
    assert found == sum(expected)


class InAnyOrder(RunHere):
    """Four workers; what comes first is left to chance."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)

    def __call__(self, function: Any, shared: Any, items: Any, advance: Any) -> list[Any]:
        order = self.draw.sample(range(len(items)), len(items))
        with ThreadPoolExecutor(4) as pool:
            done = {place: pool.submit(function, shared, items[place], advance) for place in order}
            return [done[place].result() for place in range(len(items))]

    def ranges(self, numbers: range) -> list[range]:
        size = self.draw.randint(1, 4)
        return [numbers[start : start + size] for start in range(0, len(numbers), size)]


@pytest.mark.parametrize("deduplicate", [False, True])
@pytest.mark.parametrize("large", [False, True])
def test_neither_workers_nor_the_order_they_finish_in_change_anything(
    tmp_path: Path, deduplicate: bool, large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "SHARD", 4000)
    monkeypatch.setattr(survey, "SMALL", 0 if large else 1 << 30)
    (tmp_path / "text").mkdir()
    draw = random.Random(0)
    texts = [" ".join(draw.choices(["one", "two", "three", "four"], k=draw.randint(3, 60))) for _ in range(150)]
    for number in range(8):
        some = draw.choices(texts, k=60)
        (tmp_path / "text" / f"{number}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in some))
    config = DataConfig(tokenizer="bytes", deduplicate=deduplicate)
    whole = prepare([tmp_path / "text"], tmp_path / "whole", config)
    assert len(whole.manifest.train) > 8
    assert whole.manifest.duplicates > 200
    for seed in range(2):
        prepare([tmp_path / "text"], tmp_path / str(seed), config, run=InAnyOrder(seed))
        for file in (tmp_path / "whole").iterdir():
            assert (tmp_path / str(seed) / file.name).read_bytes() == file.read_bytes()


def test_bytes_of_the_text_are_counted_once_whatever_is_dropped(tmp_path: Path) -> None:
    """Against a plain set of texts."""
    texts = [f"a text of its own, number {number % 70}" for number in range(200)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    data = prepare([tmp_path / "a.jsonl"], tmp_path / "data", DataConfig(tokenizer="bytes", deduplicate=True))
    assert data.train.bytes + data.val.bytes == sum(map(len, set(texts)))
    assert data.manifest.duplicates == 130
