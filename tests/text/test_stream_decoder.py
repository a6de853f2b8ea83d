"""Decoding token by token: the same text as at once, and never half a character."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_gguf_tokenizer import small

from nextword.text import Tokenizer, tokenizer_from_gguf

BYTE_LEVEL = tokenizer_from_gguf(small())


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return BYTE_LEVEL


def pieces(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    stream = tokenizer.stream()
    return [*map(stream.push, ids), stream.flush()]


@given(text=st.text())
def test_decoding_undoes_encoding(text):
    assert BYTE_LEVEL.decode(BYTE_LEVEL.encode(text)) == text


@given(text=st.text(alphabet="aé 漢🤷🏽\u200d♀\ufe0f👩👧1\n"))
def test_pieces_join_to_the_text_and_hold_no_broken_character(text):
    parts = pieces(BYTE_LEVEL, BYTE_LEVEL.encode(text))
    assert "".join(parts) == text
    assert not any("\ufffd" in part for part in parts)


@given(ids=st.lists(st.integers(0, BYTE_LEVEL.vocabulary - 1), max_size=40))
def test_pieces_join_to_what_decode_gives_for_any_tokens(ids):
    assert "".join(pieces(BYTE_LEVEL, ids)) == BYTE_LEVEL.decode(ids)
    data = b"".join(BYTE_LEVEL.token_bytes(id) for id in ids if id not in BYTE_LEVEL.special.control)
    assert BYTE_LEVEL.decode(ids) == data.decode(errors="replace")


@given(text=st.text(), cut=st.integers(0, 100))
def test_a_text_that_goes_on_joins_to_its_beginning(text, cut):
    ids = BYTE_LEVEL.encode(text)
    stream = BYTE_LEVEL.stream()
    before = "".join(map(stream.push, ids[:cut]))
    assert before + "".join(map(stream.push, ids[cut:])) + stream.flush() == text


def test_an_emoji_split_over_tokens_waits_for_its_last_byte(tokenizer):
    ids = [tokenizer.encode(text)[0] for text in ("\x00",)]  # a token that is whole, to start with
    emoji = [id for id in range(tokenizer.vocabulary) if len(tokenizer.token_bytes(id)) == 1]
    by_byte = {tokenizer.token_bytes(id): id for id in emoji}
    ids += [by_byte[bytes([byte])] for byte in "🦖".encode()]
    assert pieces(tokenizer, ids) == ["\x00", "", "", "", "🦖", ""]


def test_a_text_that_ends_inside_a_character_says_so_at_the_end(tokenizer):
    by_byte = {tokenizer.token_bytes(id): id for id in range(tokenizer.vocabulary)}
    ids = [by_byte[bytes([byte])] for byte in "🦖".encode()[:3]]
    assert pieces(tokenizer, ids) == ["", "", "", "\ufffd"]


def test_bytes_that_are_no_text_come_out_at_once_as_what_they_are(tokenizer):
    by_byte = {tokenizer.token_bytes(id): id for id in range(tokenizer.vocabulary)}
    assert pieces(tokenizer, [by_byte[b"\xff"], by_byte[b"a"]]) == ["\ufffd", "a", ""]


def test_a_control_token_inside_a_character_does_not_break_it(tokenizer):
    by_byte = {tokenizer.token_bytes(id): id for id in range(tokenizer.vocabulary)}
    first, *rest = (by_byte[bytes([byte])] for byte in "é".encode())
    control = next(iter(tokenizer.special.control))
    assert "".join(pieces(tokenizer, [first, control, *rest])) == "é"


def test_threads_may_encode_with_and_without_special_tokens_at_once(tokenizer):
    text = "a <|im_end|> b" * 50
    expected = {special: tokenizer.encode(text, special=special) for special in (False, True)}
    assert expected[False] != expected[True]
    wrong: list[bool] = []

    def work(special: bool) -> None:
        wrong.extend(special for _ in range(200) if tokenizer.encode(text, special=special) != expected[special])

    threads = [threading.Thread(target=work, args=(number % 2 == 0,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
