"""The playground's Runs view: runs followed while they are written, compared, and completed with."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.datastructures import Headers

from nextword.serve import pages
from nextword.serve.pages import Pages
from nextword.train.run_dir import locked_run
from run_folders import add_evaluation, add_forecast, add_sample, add_step, begin_run, finish_run
from serving import Server
from web_pages import until, violations


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def server(start: Callable[..., Server], root: Path) -> Server:
    return start("--runs", str(root))


def finished(folder: Path, loss: float = 2.0, **train: Any) -> Path:
    begin_run(folder, **train)
    for step in range(10):
        add_step(folder, step, loss + 1 / (step + 1))
        if step % 5 == 4:
            add_evaluation(folder, step + 1, loss + 0.1)
            add_sample(folder, step + 1, f"<script>alert({step})</script> שלום")
    finish_run(folder)
    return folder


def test_an_empty_folder_says_how_to_begin(open_page: Any, server: Server) -> None:
    page = open_page(server, "#runs")
    page.get_by_text("No runs yet").wait_for()
    assert "nextword train" in page.locator(".run-list").inner_text()
    assert not violations(page)


def test_a_run_is_followed_while_it_is_written(open_page: Any, server: Server, root: Path) -> None:
    run = begin_run(root / "live")
    page = open_page(server, "#runs")
    with locked_run(run):
        page.get_by_text("running at step 0 of 10").first.wait_for()
        page.locator(".chart svg").wait_for()
        for step in range(4):
            add_step(run, step, 3.0)
        add_forecast(run, 4, 2.345)
        add_sample(run, 4, "the fourth")
        page.get_by_text("running at step 4 of 10").first.wait_for()
        assert page.locator(".sample").inner_text() == "the fourth"
        page.get_by_text("2.345 nats a token (2.245 to 2.445), 1.173 bits a byte, after 10 steps").wait_for()
        page.get_by_label("Steps", exact=True).check(force=True)
        asked = len(page.requests)
        for step in range(4, 10):
            add_step(run, step, 2.0)
        add_evaluation(run, 10, 2.1)
        page.get_by_text("running at step 10 of 10").first.wait_for()
        assert any("/v1/runs/live?after=" in path for path in page.requests[asked:])
    finish_run(run)
    page.get_by_text("finished", exact=True).wait_for()
    until(page, "document.querySelectorAll('.chart .mark-symbol path').length === 1")
    assert "2.1000 ± 0.1000" in page.get_by_role("row", name="held-out loss, nats a token").inner_text()
    assert page.get_by_role("row", name="time").inner_text().split("\t")[1:] == ["20.0 s", "5.00 s", "+300.0%"]


def test_a_hidden_page_asks_for_nothing(open_page: Any, server: Server, root: Path) -> None:
    run = begin_run(root / "live")
    with locked_run(run):
        page = open_page(server, "#runs")
        page.get_by_text("running at step 0 of 10").first.wait_for()
        page.evaluate("Object.defineProperty(document, 'hidden', { value: true, configurable: true })")
        page.wait_for_timeout(300)
        asked = len(page.requests)
        page.wait_for_timeout(2600)
        assert len(page.requests) == asked
        add_step(run, 0, 3.0)
        page.evaluate("delete document.hidden; document.dispatchEvent(new Event('visibilitychange'))")
        page.get_by_text("running at step 1 of 10").first.wait_for()


def test_runs_are_compared_and_the_link_keeps_it(open_page: Any, server: Server, root: Path) -> None:
    finished(root / "first", learning_rate=1e-3)
    finished(root / "second & third", loss=1.5, learning_rate=2e-3)
    page = open_page(server, "#runs?runs=first")
    page.get_by_role("heading", name="first").wait_for()
    page.get_by_label("Compare second & third").check()
    page.get_by_role("heading", name="2 runs").wait_for()
    results = page.get_by_role("table", name="Results of the runs")
    for row in ("first", "second & third"):
        assert "2.1000" in results.get_by_role("row", name=row).inner_text()
    differing = page.get_by_role("table", name="Settings that differ")
    assert differing.get_by_role("row", name="train.learning_rate").inner_text().split("\t")[1:] == ["0.001", "0.002"]
    assert not violations(page)
    page.reload()
    page.get_by_role("heading", name="2 runs").wait_for()
    page.get_by_role("button", name="first").focus()
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="first").wait_for()
    page.go_back()
    page.get_by_role("heading", name="2 runs").wait_for()


def test_samples_by_step_are_text_and_nothing_else(open_page: Any, server: Server, root: Path) -> None:
    finished(root / "run")
    page = open_page(server, "#runs")
    page.get_by_text("step 10").wait_for()
    page.get_by_label("Sample", exact=True).focus()
    page.keyboard.press("ArrowLeft")
    assert page.locator(".sample").inner_text() == "<script>alert(4)</script> שלום"
    until(page, "location.hash.includes('sample=0')")
    page.reload()
    page.get_by_text("step 5").wait_for()


def test_a_runs_model_completes_as_soon_as_it_is_there(
    open_page: Any, server: Server, root: Path, tiny_model: Callable[..., Path]
) -> None:
    run = finished(root / "mine")
    page = open_page(server, "#runs")
    page.get_by_text("Its folder has no model").wait_for()
    for file in tiny_model("gru").iterdir():
        shutil.copy(file, run)
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    page.get_by_role("link", name="Complete with it").click()
    until(page, "location.hash.startsWith('#complete') && document.querySelector('#model').value === 'runs/mine'")


def test_damage_and_a_lost_server_are_said(open_page: Any, server: Server, root: Path) -> None:
    finished(root / "good")
    begin_run(root / "damaged")
    (root / "damaged" / "run.json").write_text("{")
    page = open_page(server, "#runs")
    page.expected = ["ERR_"]
    page.get_by_role("heading", name="good").wait_for()
    assert "not valid JSON" in page.locator(".run.broken").inner_text()
    begin_run(root / "late")
    server.kill()
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    page.get_by_text("The server does not answer").wait_for()
    assert page.get_by_role("heading", name="good").is_visible()


def test_without_charts_there_are_tables(
    open_page: Any, server: Server, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "installed", lambda package: False)
    script = Pages().answer("/web/vega.js", Headers())
    assert script is not None
    finished(root / "run")
    page = open_page(server)
    page.route("**/web/vega.js", lambda route: route.fulfill(body=bytes(script.body), content_type="text/javascript"))
    page.goto(f"{server.url}/#runs")
    page.get_by_text("pip install 'nextword[plot]'").wait_for()
    assert page.get_by_role("table", name="Held-out loss").get_by_role("row").count() == 3
    page.goto(f"{server.url}/#plan?q=budget")
    page.get_by_text("pip install 'nextword[plot]'").wait_for()


@pytest.mark.parametrize(("width", "scheme"), [(1440, "dark"), (375, "light")])
def test_no_barriers_and_nothing_cut_off(open_page: Any, server: Server, root: Path, width: int, scheme: str) -> None:
    finished(root / "a run whose name is long enough to need more than one line")
    page = open_page(server, "#runs", width=width, color_scheme=scheme)
    page.locator(".chart svg").wait_for()
    assert not violations(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
