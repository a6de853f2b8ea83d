"""Figures as files: of every kind, whole or not at all, and pages that need nothing and run no code of a token."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as xml

import pytest

from nextword import plots
from nextword.base import RunError, UsageError
from nextword.plots import theme
from nextword.plots.next_tokens import Column, Share, next_tokens

TOKEN = "</script><script>document.title='broken'</script>"
SPEC = next_tokens(TOKEN, [TOKEN], [Column("T = 1", "", "blue", [Share(0.5, "50%")], Share(0.5, "50%"))])
STARTS = {
    ".svg": b"<svg",
    ".png": b"\x89PNG",
    ".PNG": b"\x89PNG",
    ".html": b"<!doctype html>",
    ".pdf": b"%PDF",
    ".json": b"{",
}


@pytest.mark.parametrize("kind", STARTS)
def test_the_files_ending_chooses_the_kind(tmp_path, kind):
    path = tmp_path / f"figure{kind}"
    plots.save(SPEC, path)
    assert path.read_bytes().startswith(STARTS[kind])
    if kind == ".svg":
        xml.parse(path)
    if kind == ".json":
        assert json.loads(path.read_text()) == SPEC


def test_a_theme_is_a_matter_of_colours(tmp_path):
    light, dark, page = (plots.svg(SPEC, each) for each in ("light", "dark", "page"))
    assert theme.LIGHT["blue"] in light
    assert theme.DARK["blue"] in dark
    assert 'fill="var(--blue)"' in page
    assert not re.search(r'"#[0-9a-f]{6}"', page)
    plain = [re.sub(r"#[0-9a-f]{6}|var\(--\w+\)|clip\d+", "", each) for each in (light, dark, page)]
    assert len(set(plain)) == 1


def test_a_png_has_two_pixels_for_each_of_the_figures(tmp_path):
    image = pytest.importorskip("PIL.Image")
    plots.save(SPEC, tmp_path / "figure.png")
    size = image.open(io.BytesIO((tmp_path / "figure.png").read_bytes())).size
    root = xml.fromstring(plots.svg(SPEC))
    assert size == pytest.approx([2 * float(root.attrib[side]) for side in ("width", "height")], abs=2)


def test_another_ending_and_a_place_that_cannot_be_written_are_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match=r"figure\.jpeg: the name must end in \.svg, \.png, \.html, \.pdf, \.json"):
        plots.save(SPEC, tmp_path / "figure.jpeg")
    with pytest.raises(UsageError, match="cannot be written"):
        plots.save(SPEC, tmp_path / "file" / "figure.svg")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_disk_that_is_full_names_the_file_and_keeps_the_old_one(monkeypatch, tmp_path):
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "figure.svg").write_text("old")
    monkeypatch.setattr("vl_convert.vegalite_to_svg", full)
    with pytest.raises(RunError, match=r"figure\.svg: cannot be written \(No space left on device\)"):
        plots.save(SPEC, tmp_path / "figure.svg")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_without_vl_convert_json_is_written_and_for_the_rest_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    plots.save(SPEC, tmp_path / "figure.json")
    for kind in (".svg", ".png", ".html", ".pdf"):
        with pytest.raises(UsageError, match=r"pip install 'nextword\[plot\]'"):
            plots.save(SPEC, tmp_path / f"figure{kind}")
    with pytest.raises(UsageError, match=r"pip install 'nextword\[plot\]'"):
        plots.chart_bundle.__wrapped__()
    assert [path.name for path in tmp_path.iterdir()] == ["figure.json"]


def test_a_page_allows_its_own_scripts_and_nothing_else():
    page = plots.page(SPEC)
    policy = re.search(r'Content-Security-Policy" content="(.*?)"', page)[1]
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    for inside in (
        *re.findall(r"<style>(.*?)</style>", page, re.S),
        *re.findall(r"<script>(.*?)</script>", page, re.S),
    ):
        assert f"'sha256-{base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()}'" in policy
    assert TOKEN not in page


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_is_drawn_in_a_browser_without_eval_or_a_request_in_the_readers_theme(tmp_path, scheme):
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs chromium")
    plots.save(SPEC, tmp_path / "figure.html")
    arguments = [
        "--headless", f"--user-data-dir={tmp_path / 'profile'}", *["--no-sandbox"] * (os.geteuid() == 0),
        "--enable-logging=stderr", "--virtual-time-budget=10000",
        *["--blink-settings=preferredColorScheme=0"] * (scheme == "dark"),
    ]  # fmt: skip
    path = tmp_path / "figure.html"
    done = subprocess.run([chromium, *arguments, "--dump-dom", path.as_uri()], capture_output=True, timeout=120)
    dom, log = done.stdout.decode(), done.stderr.decode()
    assert "CONSOLE" not in log, [line for line in log.splitlines() if "CONSOLE" in line]
    figure = dom.split('<div id="figure"')[1].split("<script")[0]
    assert 'aria-roledescription="bar"' in figure
    assert 'fill="var(--blue)"' in figure
    assert "<title>nextword</title>" in dom
