"""Text and entries of a choice: what is given out is the text, in whole characters, without a stop string."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import nextword
from nextword.engine import Token
from nextword.engine.request import Request
from nextword.engine.sampler import Draw
from nextword.engine.sampling_params import StopConfig
from nextword.engine.sequence import Sample
from nextword.serve.pieces import Pieces, name_of

TEXTS = ["plain", "naïve", "🙂🙃", "日本語", "a\ufffdb"]


class Handle:
    """The parts of a CompletionHandle that a Sample reads."""

    def __init__(self, count: int, stop: tuple[str, ...]) -> None:
        self.request, self.prompt, self.seed, self.context = Request((0,), stop=StopConfig(count, stop)), (0,), 0, None


@pytest.fixture(scope="module")
def tokenizer(tiny_path: Path) -> nextword.text.Tokenizer:
    return nextword.load(tiny_path).tokenizer


def id_of(tokenizer, byte: int) -> int:
    return next(id for id in range(256) if tokenizer.token_bytes(id) == bytes([byte]))


def tokens_of(tokenizer, ids: list[int], stop: tuple[str, ...]) -> list[Token]:
    """What the engine hands out for these ids, up to the end that it finds."""
    sample = Sample(Handle(len(ids), stop), 0, tokenizer, None)
    tokens = []
    for id in ids:
        tokens.append(sample.accept(Draw(id, 1.0, -1.0)))
        if tokens[-1].finish:
            break
    return tokens


bytes_or_text = st.binary(min_size=1, max_size=12) | st.lists(st.sampled_from(TEXTS), min_size=1).map(
    lambda texts: "".join(texts).encode()
)


stops = st.lists(st.sampled_from(["a", "in", "ïve", "語", "🙃"]), max_size=2)


@given(data=bytes_or_text, cut=st.integers(0, 3), stop=stops)
def test_pieces_joined_are_the_text_and_their_bytes_its_utf8(tokenizer, data: bytes, cut: int, stop: list[str]) -> None:
    data = data[: len(data) - cut] or data
    ids = [id_of(tokenizer, byte) for byte in data]
    pieces, text, entries = Pieces(tokenizer), "", []
    tokens = tokens_of(tokenizer, ids, tuple(stop))
    for token in tokens:
        delta, new = pieces.push(token)
        text, entries = text + delta, entries + new
        assert "\ufffd" not in delta
        assert text.startswith("".join(entry.piece for entry in entries))
        assert text.encode().startswith(b"".join(entry.data for entry in entries))
    assert [entry.token for entry in entries] == tokens
    assert "".join(entry.piece for entry in entries) == text
    assert b"".join(entry.data for entry in entries) == text.encode()
    whole = data[: len(tokens)].decode(errors="ignore").replace("\ufffd", "")
    ends = [whole.find(each) for each in stop if each in whole]
    assert text == (whole[: min(ends)] if ends else whole)


def test_a_part_of_a_character_is_named_by_its_bytes(tokenizer) -> None:
    assert name_of(tokenizer, id_of(tokenizer, 0xF0)) == "bytes:\\xf0"
    assert name_of(tokenizer, id_of(tokenizer, ord("a"))) == "a"
