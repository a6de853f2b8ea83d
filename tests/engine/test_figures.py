"""The next-token figure: written whole, and saying what the results say."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as xml

import pytest

from nextword.base import RunError, UsageError
from nextword.engine.figures import next_figure, plot_next
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
    assert [panel.get_title(loc="left") for panel in figure.axes] == ["T = 0.5", "T = 2"]
    for panel, distribution in zip(figure.axes, TWO, strict=True):
        widths = [patch.get_width() for patch in panel.patches]
        assert widths[:2] == [each.sampled_prob for each in distribution.top]
        assert widths[2] == pytest.approx(distribution.tail_mass)
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["␣the", "\\n", "others"]


@pytest.mark.parametrize(("kind", "start"), [("svg", b"<?xml"), ("png", b"\x89PNG"), ("PNG", b"\x89PNG")])
def test_the_files_ending_chooses_the_kind(tmp_path, kind, start):
    path = tmp_path / f"next.{kind}"
    plot_next(TWO, path)
    assert path.read_bytes().startswith(start)
    if kind == "svg":
        xml.parse(path)


def test_another_ending_and_a_place_that_cannot_be_written_are_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match=r"\.svg, \.png"):
        plot_next(TWO, tmp_path / "next.jpeg")
    with pytest.raises(UsageError, match="cannot be written"):
        plot_next(TWO, tmp_path / "file" / "next.svg")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_disk_that_is_full_names_the_file(monkeypatch, tmp_path):
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    with pytest.raises(RunError, match=r"next\.svg: cannot be written \(No space left on device\)"):
        plot_next(TWO, tmp_path / "next.svg")
    assert list(tmp_path.iterdir()) == []


def test_tokens_with_dollars_are_text_and_no_formula(tmp_path):
    dollars = [NextTokenDistribution("$x$ and $", 1.0, (Alternative(1, " $$\\frac$", 0.6, 0.6),), 1.0, 3, 0.4, 9)]
    plot_next(dollars, tmp_path / "next.png")
    assert (tmp_path / "next.png").stat().st_size > 1000


def test_without_matplotlib_the_extra_is_named_and_no_file_is_left(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageError, match=r"pip install 'nextword\[plot\]'"):
        plot_next(TWO, tmp_path / "next.svg")
    assert list(tmp_path.iterdir()) == []
