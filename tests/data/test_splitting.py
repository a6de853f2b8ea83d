"""Holding out: by the text alone, about the share that was asked for, and always something on both sides."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextword.base import UsageError
from nextword.data.documents import Document
from nextword.data.splitting import hash_of, limit_for, pieces

words = st.lists(st.sampled_from(["a", "word", "\n", "\n\n", " ", "längere Wörter", "x" * 30]), max_size=300).map(
    "".join
)


@given(words, st.integers(5, 200))
def test_pieces_are_the_text_together_and_none_is_empty_or_too_long(text: str, size: int) -> None:
    parts = [part.text for part in pieces(Document(text, ""), size)]
    assert "".join(parts) == text
    assert all(parts) or parts == [""]
    assert max(map(len, parts)) <= 2 * size + 1


def test_pieces_end_where_paragraphs_do_or_lines_or_words() -> None:
    for mark, text in (("\n\n", "some words\nof a line\n\n"), ("\n", "some words of a line\n"), (" ", "word ")):
        parts = [part.text for part in pieces(Document(text * 100, ""), 150)]
        assert len(parts) > 2
        assert all(part.endswith(mark) for part in parts[:-1])
        assert not any(part.startswith("\n") for part in parts)


def test_a_text_that_does_not_repeat_and_has_two_thousand_characters_can_be_split() -> None:
    text = "".join(map(str, range(1000)))[:2000]
    documents = list(pieces(Document(text, ""), 1000))
    limit = limit_for(documents, 0.05)
    assert 0 < sum(hash_of(document.text) < limit for document in documents) < len(documents)


@given(st.lists(st.integers(1, 500), min_size=2, max_size=80, unique=True), st.floats(0.01, 0.5))
def test_both_sides_have_something_and_no_other_limit_up_to_the_share_is_nearer(sizes: list[int], share: float) -> None:
    documents = [Document("x" * size, "") for size in sizes]
    limit = limit_for(documents, share)
    ordered = sorted(documents, key=lambda document: hash_of(document.text))
    held = [len(document.text) for document in ordered if hash_of(document.text) < limit]
    assert 0 < len(held) < len(documents)
    wanted = share * sum(sizes)
    if len(held) > 1:  # one fewer would have been further off
        assert abs(sum(held) - wanted) < abs(sum(held[:-1]) - wanted)
    if len(held) < len(documents) - 1:  # and so would one more
        assert abs(sum(held) + len(ordered[len(held)].text) - wanted) >= abs(sum(held) - wanted)


def test_text_that_only_repeats_itself_cannot_be_split_and_says_how_much_is_needed() -> None:
    with pytest.raises(UsageError, match=r"40 characters in 1 piece of its own.*at least 2,000"):
        limit_for([Document("the same again there", "")] * 2, 0.05)
