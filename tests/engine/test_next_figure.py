"""The next-token figure: saying what the results say, whatever the tokens are."""

from __future__ import annotations

import pytest

import vega_lite
from nextword.engine.display import visible
from nextword.engine.plots import next_figure
from nextword.engine.results import Alternative, NextTokenDistribution

TWO = [
    NextTokenDistribution(
        "costs $5 or $6",
        t,
        (Alternative(1, " the", 0.6, p), Alternative(2, "\n", 0.2, 0.1)),
        1.0,
        3,
        0.9 - p,
        9,
    )
    for t, p in ((0.5, 0.8), (2.0, 0.3))
]


def test_the_figure_has_a_panel_a_temperature_and_a_bar_a_token():
    figure = next_figure(TWO)
    svg = vega_lite.drawn(figure)
    assert [panel["title"]["text"] for panel in figure["concat"]] == ["T = 0.5", "T = 2"]
    for bars, distribution in zip(vega_lite.marks(figure, "bar"), TWO, strict=True):
        expected = [*(each.sampled_prob for each in distribution.top), distribution.tail_mass]
        assert vega_lite.column(bars, "probability") == pytest.approx(expected)
    assert vega_lite.texts(figure, "tokens") == ["␣the", "\\n", "others"]
    assert ">costs $5 or $6<" in svg
    assert svg.count(">80.00%<") == 1


def test_others_end_at_the_edge_that_the_likeliest_token_sets_and_say_so():
    many = NextTokenDistribution("x", 1.0, (Alternative(1, "a", 0.1, 0.1),), 1.0, 3, 0.9, 9)
    figure = next_figure([many])
    (bars,) = vega_lite.marks(figure, "bar")
    drawn = vega_lite.column(bars, "drawn")
    assert drawn[0] == 0.1
    assert drawn[1] == bars["encoding"]["x"]["scale"]["domain"][1] < 0.9
    assert vega_lite.column(bars, "text") == ["10.00%", "90.00% →"]


HOSTILE = {
    "markup": "</text><script>alert(1)</script>",
    "an expression": "'+alert(1)+'",
    "a signal": '{"signal": "alert(1)"}',
    "a link": "https://example.org/ javascript:alert(1)",
    "dollars": " $$\\frac$ {x}",
    "lines": "one\ntwo\r\n\tthree",
    "emoji": "👩‍🔬🇩🇪",
    "right to left": "שלום عالم",
    "a path of a field": "a.b['c'][0]",
    "a control character": "\x00\x1b[31m",
    "half a surrogate pair": "\ud83d",
    "nothing": "",
    "a number": "12",
    "null": "null",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_a_token_of_any_text_is_shown_as_text(text):
    top = (Alternative(1, text, 0.6, 0.6), Alternative(2, text, 0.2, 0.2))  # equal texts are two rows
    figure = next_figure([NextTokenDistribution(text, 1.0, top, 1.0, 3, 0.2, 9)])
    svg = vega_lite.drawn(figure)
    assert "<script" not in svg
    assert "href" not in svg.replace("xlink=", "").replace("http://www.w3.org/1999/xlink", "")
    assert vega_lite.texts(figure, "tokens") == [visible(text), visible(text), "others"]
    if text.isascii() and text.isalnum():
        assert svg.count(f">{text}<") >= 2
