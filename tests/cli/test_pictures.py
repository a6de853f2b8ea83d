"""The terminal pictures: what they say, that they fit, and that they survive plain terminals."""

from __future__ import annotations

import io
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from nextword.cli._pictures import bar, next_picture, probability_table
from nextword.engine.display import percent, rows, visible
from nextword.engine.results import Alternative, Completion, NextTokenDistribution, Timings, Token
from nextword.engine.sampling_params import SamplingParams

TEXTS = (" the", "\n", "日本", "a" * 40, " fish")
LOGITS = (4.0, 3.0, 2.0, 1.0, 0.0)


def _distribution(temperature: float, top: int = 5, prompt: str = "I like to eat") -> NextTokenDistribution:
    own = _softmax(LOGITS)
    drawn = _softmax([logit / temperature for logit in LOGITS])
    listed = tuple(Alternative(i, TEXTS[i], own[i], drawn[i]) for i in range(top))
    entropy = -sum(p * math.log(p) for p in drawn)
    covering = next(n for n in range(1, 6) if sum(drawn[:n]) >= 0.9)
    return NextTokenDistribution(prompt, temperature, listed, entropy, covering, sum(drawn[top:]), 5)


def _softmax(logits):
    weights = [math.exp(logit) for logit in logits]
    return [weight / sum(weights) for weight in weights]


ONE_TWO = [_distribution(0.5, 3), _distribution(1.0, 3), _distribution(2.0, 3)]


def test_every_number_of_the_picture_is_the_results_own():
    picture = next_picture(ONE_TWO, 100).plain
    for distribution in ONE_TWO:
        assert f"T = {distribution.temperature:g}" in picture
        assert f"{distribution.entropy / math.log(2):.2f} bits" in picture
        assert f"{distribution.entropy:.2f} nats" in picture
        for each in distribution.top:
            assert f"{100 * each.sampled_prob:.2f}%" in picture
    others = next(line for line in picture.splitlines() if line.strip().startswith("others"))
    assert all(percent(distribution.tail_mass) in others for distribution in ONE_TWO)
    mass = next(line for line in picture.splitlines() if "90% mass" in line)
    assert mass.split("90% mass")[1].split() == ["2", "tokens", "3", "tokens", "4", "tokens"]


def test_tokens_are_rows_in_the_models_order_with_spaces_and_newlines_shown():
    names = [line.split()[0] for line in next_picture(ONE_TWO, 100).plain.splitlines()[3:6]]
    assert names == ["␣the", "\\n", "日本"]


def test_equal_probabilities_have_equal_bars_in_all_columns():
    same = [_distribution(1.0, 3), _distribution(1.0, 3)]
    for line in next_picture(same, 100).plain.splitlines()[3:6]:
        _, first, left, second, right = line.split()
        assert (first, left) == (second, right)


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 200])
@pytest.mark.parametrize("unicode", [True, False])
def test_the_picture_fits_its_width(width, unicode):
    five = [_distribution(t) for t in (0.1, 0.5, 1.0, 2.0, 8.0)]
    picture = next_picture(five, width, unicode)
    assert max(cell_len(line) for line in picture.plain.splitlines()) <= width
    assert picture.plain.count("T = ") == 5  # those that do not fit beside each other stand below


def test_a_terminal_without_unicode_gets_ascii_alone():
    assert next_picture([_distribution(1.0, prompt="né")], 80, unicode=False).plain.replace("é", "e").isascii()
    assert probability_table(_completion(0.7), SamplingParams(temperature=0.7), 80, unicode=False).plain.isascii()


def test_without_colour_the_picture_has_no_escape_codes(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    file = io.StringIO()
    Console(file=file, width=100).print(next_picture(ONE_TWO, 100))
    assert "\x1b" not in file.getvalue()


def test_a_long_prompt_keeps_its_end():
    first = next_picture([_distribution(1.0, prompt="word " * 100 + "THE END")], 60).plain.splitlines()[0]
    assert first.strip().startswith("…")
    assert "THE END" in first


def test_a_certainty_has_no_others():
    certain = NextTokenDistribution("x", 0.0, (Alternative(7, "!", 0.4, 1.0),), 0.0, 1, 0.0, 10)
    picture = next_picture([certain], 80).plain
    assert "T = 0 (greedy)" in picture
    assert "100%" in picture
    assert "1 token" in picture
    assert "1 tokens" not in picture


def test_a_token_that_one_temperature_does_not_list_is_a_dot_there_or_a_zero():
    mixed = rows([_distribution(0.5, 2), _distribution(2.0, 3)])
    assert mixed[2].shares[0] is None
    cut = NextTokenDistribution(
        "x", 1.0, _distribution(1.0, 2).top, 0.5, 2, 0.0, 5
    )  # truncation left two, and no others
    assert rows([cut, _distribution(2.0, 3)])[2].shares[0] == 0.0


@given(st.text(max_size=30))
def test_a_visible_token_is_printable_and_keeps_its_letters(token):
    for unicode in (True, False):
        assert visible(token, unicode).isprintable()
        assert " " not in visible(token)
    assert "".join(c for c in token if c.isalnum()) in visible(token) or not token.isalnum()


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        (" the", "␣the"),
        ("\n\n", "\\n\\n"),
        ("\\n", "\\\\n"),
        ("\x00", "\\x00"),
        ("", "(empty)"),
        ("\u0301", "◌\u0301"),
    ],
)
def test_how_tokens_are_shown(token, shown):
    assert visible(token) == shown


@pytest.mark.parametrize(
    ("probability", "text"),
    [(0, "0.00%"), (1e-9, "<0.01%"), (0.0001, "0.01%"), (0.4123, "41.23%"), (0.99996, ">99.9%"), (1, "100%")],
)
def test_how_probabilities_are_shown(probability, text):
    assert percent(probability) == text


@given(st.floats(0, 1), st.integers(1, 60))
def test_a_bar_is_as_long_as_its_share(share, room):
    assert abs(len(bar(share, room)) - share * room) <= 1
    assert bool(bar(share, room)) == (share > 0)
    assert abs(len(bar(share, room, unicode=False)) - share * room) <= 1


def _completion(temperature: float) -> Completion:
    listed = _distribution(temperature).top
    steps = tuple(
        Token(0, place, each.id, each.text, each.text, math.log(each.probability), each.sampled_prob, listed)
        for place, each in enumerate(listed)
    )
    return Completion("p", (1,), "text", steps, "length", 0, 0, Timings(1, 0.0, len(steps), 0.0))


def test_the_table_has_a_row_a_step_with_both_probabilities():
    completion = _completion(0.5)
    lines = probability_table(completion, SamplingParams(temperature=0.5), 200).plain.splitlines()
    assert "temperature 0.5" in lines[0]
    assert lines[1].split() == ["#", "token", "model", "drawn", "alternatives"]
    assert len(lines) == 2 + len(completion.tokens)
    for line, step in zip(lines[2:], completion.tokens, strict=True):
        numbers = [part for part in line.split() if part.endswith("%")]
        assert numbers == [percent(math.exp(step.logprob)), percent(step.sampled_prob)]
        assert line.count("•") == 1
        assert line.count("→") == 5


def test_the_table_says_each_number_once_where_nothing_was_changed():
    table = probability_table(_completion(1.0), SamplingParams(), 200).plain
    assert "→" not in table


def test_a_greedy_table_shows_the_models_numbers_alone():
    table = probability_table(_completion(1.0), SamplingParams(temperature=0), 200).plain
    assert "greedy" in table
    assert "→" not in table


@pytest.mark.parametrize("width", [60, 80, 120, 160])
def test_the_table_fits_its_width_and_loses_no_alternative(width):
    lines = probability_table(_completion(0.5), SamplingParams(temperature=0.5), width).plain.splitlines()
    assert max(map(cell_len, lines)) <= width
    assert "\n".join(lines[2:]).count("→") == 25


def test_a_table_without_steps_is_its_heading():
    empty = Completion("p", (1,), "", (), "length", 0, 0, Timings(1, 0.0, 0, 0.0))
    assert len(probability_table(empty, SamplingParams(), 80).plain.splitlines()) == 2
