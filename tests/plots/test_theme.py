"""The palette: readable on its background, and distinct under colour blindness."""

from __future__ import annotations

import itertools
import math
import re

import numpy as np
import pytest

from nextword.plots import theme

pytestmark = pytest.mark.smoke

# Machado, Oliveira and Fernandes 2009, table 1, severity 1: dichromats' view of linear RGB
SIGHT = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def _linear(colour: str) -> np.ndarray:
    parts = np.array([int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)])
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def _contrast(one: str, other: str) -> float:
    """WCAG 2's contrast ratio."""
    low, high = sorted(float(_linear(colour) @ [0.2126, 0.7152, 0.0722]) for colour in (one, other))
    return (high + 0.05) / (low + 0.05)


def _lab(linear: np.ndarray) -> np.ndarray:
    """CIE L*a*b* under D65."""
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = to_xyz @ np.clip(linear, 0, 1) / [0.9505, 1.0, 1.089]
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("own", [theme.LIGHT, theme.DARK], ids=["light", "dark"])
def test_marks_and_text_stand_out_from_the_background(own):
    assert min(_contrast(own[name], own["background"]) for name in theme.SERIES) >= 3
    assert min(_contrast(own[name], own["background"]) for name in ("ink", "grey")) >= 4.5


def test_light_colours_are_seen_on_a_black_terminal_too():
    assert min(_contrast(theme.LIGHT[name], "#000000") for name in theme.SERIES) >= 3


@pytest.mark.parametrize("sight", SIGHT)
@pytest.mark.parametrize("own", [theme.LIGHT, theme.DARK], ids=["light", "dark"])
def test_any_two_series_are_distinct_to_the_colour_blind(own, sight):
    seen = {name: _lab(np.asarray(SIGHT[sight]) @ _linear(own[name])) for name in theme.SERIES}
    apart = {pair: math.dist(seen[pair[0]], seen[pair[1]]) for pair in itertools.combinations(theme.SERIES, 2)}
    assert min(apart.values()) >= 10, min(apart, key=apart.get)  # 2.3 is just noticeable
    assert min(apart[pair] for pair in itertools.pairwise(theme.SERIES)) >= 40


def test_the_pages_colours_and_vegas_are_the_palettes():
    light, dark = re.findall(r"^:root.*?\{(.*)\}$", theme.css(), re.MULTILINE)
    for own, rules in ((theme.LIGHT, light), (theme.DARK, dark)):
        assert dict(re.findall(r"--(\w+): (#\w+);", rules)) == own
    assert theme.css().count(theme.DARK["blue"]) == 2  # for the system's wish and for the page's own
    for name, own in (("light", theme.LIGHT), ("dark", theme.DARK)):
        config = theme.vega_config(name)
        assert {each["name"]: each["value"] for each in config["params"]} == own
        assert config["background"] == own["background"]
    assert theme.vega_config("page")["title"]["color"] == "var(--ink)"


def test_temperatures_go_from_blue_to_red():
    assert [theme.heat(t) for t in (0.25, 0.5, 1, 2, 4)] == ["blue", "cyan", "green", "orange", "red"]
    assert theme.heat(0) == theme.heat(0.01) == "blue"
    assert theme.heat(100) == "red"
