"""Tokenizers made for a text: every text comes back, and other programs read the same ids."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextword.base import UsageError
from nextword.data import save_tokenizer, train_tokenizer
from nextword.text import Tokenizer, tokenizer_from_folder

TEXT = "The whale, the whale! Up helm, up helm! It's 1851.\n\n  Oh — all ye sweet powers of air, café\r\n" * 20
KINDS = ("bpe", "bytes", "characters")


@pytest.fixture(scope="module")
def made() -> dict[str, Tokenizer]:
    return {kind: train_tokenizer([TEXT], kind, 300) for kind in KINDS}


@given(text=st.text())
@pytest.mark.parametrize("kind", ["bpe", "bytes"])
def test_every_text_comes_back_from_bytes(made: dict[str, Tokenizer], kind: str, text: str) -> None:
    assert made[kind].decode(made[kind].encode(text)) == text


@given(text=st.text(alphabet=sorted(set(TEXT))))
def test_text_of_known_characters_comes_back_one_token_each(made: dict[str, Tokenizer], text: str) -> None:
    ids = made["characters"].encode(text)
    assert made["characters"].decode(ids) == text
    assert len(ids) == len(text)


def test_a_character_never_seen_is_the_unknown_token(made: dict[str, Tokenizer]) -> None:
    tokenizer = made["characters"]
    unknown = tokenizer.token_id("<|unk|>")
    assert tokenizer.encode("aЖh") == [tokenizer.token_id("a"), unknown, tokenizer.token_id("h")]


@pytest.mark.parametrize("kind", KINDS)
def test_the_end_of_text_is_token_0_and_plain_text_never_leads_to_it(made: dict[str, Tokenizer], kind: str) -> None:
    tokenizer = made[kind]
    assert tokenizer.stop_ids == {0}
    assert tokenizer.token_id("<|endoftext|>") == 0
    assert tokenizer.bos_id is None
    assert 0 not in tokenizer.encode("a<|endoftext|>b")
    assert tokenizer.encode("a<|endoftext|>b", special=True)[1] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_tokenizer_has_equal_ids_here_and_in_transformers(
    made: dict[str, Tokenizer], kind: str, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    save_tokenizer(made[kind], tmp_path)
    ids = made[kind].encode(TEXT)
    assert tokenizer_from_folder(tmp_path).encode(TEXT) == ids
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs(TEXT)["input_ids"] == ids
    assert theirs.decode(ids) == TEXT
    assert theirs.eos_token_id == 0
    assert len(theirs) == made[kind].vocabulary


def test_vocabularies_have_the_size_that_was_asked_for_or_what_the_text_gives(made: dict[str, Tokenizer]) -> None:
    assert made["bpe"].vocabulary == 300
    assert made["bytes"].vocabulary == 257
    assert made["characters"].vocabulary == len(set(TEXT)) + 2
    assert 257 <= train_tokenizer(["ab"], "bpe", 4096).vocabulary < 300


def test_the_same_text_gives_the_same_tokenizer() -> None:
    first, second = (train_tokenizer([TEXT], "bpe", 350).to_json() for _ in range(2))
    assert first == second


def test_merges_do_not_cross_words_and_numbers_are_cut_after_three_digits() -> None:
    tokenizer = train_tokenizer(["the cat 123456 " * 2000], "bpe", 400)
    assert [tokenizer.token_text(id) for id in tokenizer.encode("the cat 123456")] == ["the", " cat", " ", "123", "456"]


@pytest.mark.parametrize(("kind", "size", "reason"), [("bpe", 256, "at least 257"), ("words", 500, "bpe, bytes")])
def test_what_cannot_be_made_says_what_can(kind: str, size: int, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        train_tokenizer([TEXT], kind, size)  # type: ignore[arg-type]
