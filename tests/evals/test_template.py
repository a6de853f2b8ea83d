"""Prompts from templates and shots, character for character."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextword.base import UsageError
from nextword.evals import Template, few_shot, parse_shot

FORM = "Question: what is the sentiment of this review: {input}\nAnswer: {output}"


def test_zero_shots_end_where_the_answer_begins_without_a_trailing_space() -> None:
    prompt = few_shot(Template.parse(FORM), [], {"input": "this movie is terrible!"})
    assert prompt.text == "Question: what is the sentiment of this review: this movie is terrible!\nAnswer:"
    assert prompt.shots == 0


def test_shots_stand_before_the_question_with_their_answers() -> None:
    shots = [parse_shot("great! => positive"), parse_shot("a waste of time => negative")]
    prompt = few_shot(Template.parse("{input}: {output}."), shots, {"input": "terrible"}, "\n##\n")
    assert prompt.text == "great!: positive.\n##\na waste of time: negative.\n##\nterrible:"
    assert prompt.shots == 2


def test_a_shot_splits_at_its_last_arrow() -> None:
    assert parse_shot("a => b => c") == {"input": "a => b", "output": "c"}


@pytest.mark.parametrize("text", ["no arrow", "=> x", "x =>", ""])
def test_a_shot_without_two_sides_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="input => output"):
        parse_shot(text)


def test_braces_are_written_twice() -> None:
    prompt = few_shot(Template.parse('{{"q": "{input}"}} {output}'), [], {"input": "x"})
    assert prompt.text == '{"q": "x"}'


@pytest.mark.parametrize("source", ["{input", "input}", "{a b}{output}", "{0}{output}", "{input.__class__}{output}"])
def test_a_lone_brace_is_refused_with_its_place(source: str) -> None:
    with pytest.raises(UsageError, match="lone"):
        Template.parse(source)


@pytest.mark.parametrize("source", ["{input}", "{output} {output}"])
def test_a_template_needs_one_answer(source: str) -> None:
    with pytest.raises(UsageError, match=r"exactly one \{output\}"):
        Template.parse(source)


def test_a_gap_that_nothing_fills_is_named() -> None:
    with pytest.raises(UsageError, match=r"\{imput\}.*Did you mean input"):
        few_shot(Template.parse("{imput} {output}"), [], {"input": "x", "label": "y"})


@given(st.text(), st.text(), st.text())
def test_values_are_put_in_as_they_are(before: str, value: str, answer: str) -> None:
    literal = before.replace("{", "{{").replace("}", "}}")
    template = Template.parse(literal + "|{input}|{output}")
    assert template.example({"input": value, "output": answer}) == f"{before}|{value}|{answer}"


def test_a_gap_may_be_an_entry_of_a_list() -> None:
    template = Template.parse("{options[1]} or {options[0]}: {output}")
    assert template.question({"options": ["a", {"b": 1}]}) == '{"b": 1} or a:'


@pytest.mark.parametrize(
    ("gap", "value", "said"),
    [
        ("x[2]", [1, 2], r"'x' has no entry 2: it is \[1, 2\]"),
        ("x[0]", "abc", "'x' has no entry 0: it is 'abc'"),
        ("x", None, "there is no 'x', which the template uses"),
    ],
)
def test_a_gap_that_a_row_cannot_fill_is_named(gap: str, value: object, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Template.parse(f"{{{gap}}} {{output}}").question({"x": value, "output": "y"})
