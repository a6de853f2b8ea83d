"""Dataclasses that check their fields, and the number of threads that a machine can take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest

from nextword.base import UsageError
from nextword.base.cores import check_threads, cores
from nextword.base.fields import FieldError, Within, check_fields, from_plain


@dataclass(frozen=True)
class Sample:
    share: Annotated[float, Within(least=0, below=1)]
    count: Annotated[int, Within(1, 1000)] | None = None
    names: tuple[str, ...] = ()
    pair: tuple[int, int] = (1, 2)
    colour: Literal["red", "blue"] = "red"
    on: bool = False

    def __post_init__(self) -> None:
        check_fields(self)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"share": 1}, "share 1: give a finite number of at least 0 and below 1"),
        ({"share": 10**400}, "share 1000"),
        ({"share": False}, "share False: give a finite number"),
        ({"share": 0, "count": 1001}, "count 1001: give a whole number from 1 to 1,000"),
        ({"share": 0, "count": 2.0}, "count 2.0: give a whole number"),
        ({"share": 0, "names": ("a", 3)}, "names ('a', 3): give a list, each text"),
        ({"share": 0, "names": "ab"}, "names 'ab': give a list"),
        ({"share": 0, "pair": (1, 2, 3)}, "pair (1, 2, 3): give a list of 2"),
        ({"share": 0, "colour": "green"}, "colour 'green': give one of red, blue"),
        ({"share": 0, "on": 1}, "on 1: give true or false"),
        ({"share": 0, "colour": "\x1b[2J" * 1000}, "colour '\\x1b[2J"),
    ],
)
def test_a_field_says_what_it_wants_in_place_of_what_it_got(values: dict[str, Any], said: str) -> None:
    with pytest.raises(FieldError) as refused:
        Sample(**values)
    assert str(refused.value).startswith(said)
    assert len(str(refused.value)) < 200
    assert str(refused.value).isprintable()


def test_an_error_can_be_said_of_the_option_the_value_came_from() -> None:
    with pytest.raises(FieldError) as refused:
        Sample(2)
    assert refused.value.said_as("--share").startswith("--share 2: give ")


def test_plain_data_becomes_the_dataclass_with_lists_as_tuples() -> None:
    assert from_plain(Sample, {"share": 0.5, "names": ["a"], "pair": [3, 4]}) == Sample(0.5, None, ("a",), (3, 4))


@pytest.mark.parametrize(
    ("data", "said"), [({}, "share is missing"), ({"share": 0, "sahre": 1}, "unknown setting 'sahre'")]
)
def test_a_missing_or_unknown_name_in_plain_data_is_said(data: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        from_plain(Sample, data)


def test_four_threads_a_core_are_taken_and_one_more_is_not() -> None:
    check_threads(None)
    check_threads(4 * cores())
    with pytest.raises(FieldError, match=f"at most {4 * cores()}"):
        check_threads(4 * cores() + 1)
