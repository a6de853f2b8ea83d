"""Numbers as people type them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextword.base import UsageError, units


@pytest.mark.parametrize(
    ("text", "value"),
    [("1B", 1e9), ("1.3e9", 1.3e9), ("7b", 7e9), ("350M", 350e6), ("20k", 20e3), ("1,000,000", 1e6), ("1_000", 1e3),
     (" 2 T ", 2e12), ("0.5 billion", 5e8), ("8B params", 8e9), ("300B tokens", 3e11), (".5M", 5e5), ("1e3k", 1e6)],
)  # fmt: skip
def test_counts(text: str, value: float) -> None:
    assert units.parse_count(text) == pytest.approx(value)


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (units.parse_bytes, "2 TB", 2e12),
        (units.parse_bytes, "24GiB", 24 * 2**30),
        (units.parse_bytes, "80G", 80e9),
        (units.parse_bytes, "512 bytes", 512),
        (units.parse_seconds, "3 days", 259_200),
        (units.parse_seconds, "30min", 1800),
        (units.parse_seconds, "2h", 7200),
        (units.parse_money, "$500", 500),
        (units.parse_money, "2.5 USD", 2.5),
        (units.parse_money, "1.2k$", 1200),
        (units.parse_flops, "5.76e23", 5.76e23),
        (units.parse_flops, "300 EFLOP", 3e20),
        (units.parse_flops, "1 PF-day", 8.64e19),
        (units.parse_flop_rate, "989 TFLOP/s", 989e12),
        (units.parse_flop_rate, "40GFLOPS", 40e9),
        (units.parse_bandwidth, "3.35 TB/s", 3.35e12),
        (units.parse_bandwidth, "900GB/s", 9e11),
    ],
)
def test_units_of_every_kind(parse, text: str, value: float) -> None:
    assert parse(text) == pytest.approx(value)


def test_a_bare_time_counts_the_unit_of_its_option_and_needs_one() -> None:
    assert units.parse_seconds("3", unit="d") == 259_200
    assert units.parse_seconds("3 h", unit="d") == 10_800
    with pytest.raises(UsageError, match="3 days"):
        units.parse_seconds("3")


@pytest.mark.parametrize(
    "text", ["7q", "", "B", "1..5", "1e", "one", "1 B B", "--5", "1e9x", "nan", "inf", "0x10", "1 2"]
)
def test_what_is_not_understood_is_refused_with_the_accepted_forms(text: str) -> None:
    with pytest.raises(UsageError, match=r"Accepted forms: 1B, 7b, 350M"):
        units.parse_count(text)


@pytest.mark.parametrize("text", ["0", "-1", "-7B", "1e999", "1e60"])
def test_zero_negative_and_absurd_values_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="must be"):
        units.parse_count(text)


@pytest.mark.parametrize(
    ("shown", "value"),
    [
        (
            units.format_count,
            {1_235_814_400: "1.24 B", 134_515_008: "135 M", 97: "97", 1234: "1,234", 65_000: "65.0 k"},
        ),
        (units.format_bytes, {16_060_522_496: "16.1 GB", 0: "0 bytes", 999: "999 bytes", 1000: "1.00 kB"}),
        (units.format_seconds, {90: "90.0 s", 1800: "30.0 min", 259_200: "3.00 days", 0: "0 s", float("inf"): "never"}),
        (units.format_flops, {5_168_640: "5.17 MFLOPs", 3.14e23: "3.14e+23 FLOPs"}),
        (units.format_count, {999_885_952: "1.00 B", 999_400_000: "999 M"}),
        (units.format_money, {0.4: "$0.40", 1234: "$1,234", 2.5e8: "$250 M"}),
    ],
)
def test_numbers_are_shown_with_about_three_digits(shown, value: dict[float, str]) -> None:
    assert {number: shown(number) for number in value} == value


@given(st.floats(1e-3, 1e17))
def test_bytes_read_back_what_was_shown(value: float) -> None:
    text = units.format_bytes(value)
    if value >= 1000:
        assert units.parse_bytes(text) == pytest.approx(value, rel=0.006)


@given(st.text(max_size=12))
def test_any_text_is_a_number_above_zero_or_a_usage_error(text: str) -> None:
    for parse in (units.parse_count, units.parse_bytes, units.parse_money, units.parse_flops, units.parse_bandwidth):
        refusal, value = "", 0.0
        try:
            value = parse(text)
        except UsageError as error:
            refusal = str(error)
        assert "Accepted forms" in refusal or (value > 0 and not refusal)
