"""The playground's Plan view: what it shows is what the planner says, by mouse, by keyboard and from its link."""

from __future__ import annotations

from typing import Any

import pytest

from nextword import plan
from nextword.base import units
from nextword.plan import questions
from serving import Server
from web_pages import until, violations

READY = "document.querySelector('.results')?.getAttribute('aria-busy') === 'false'"


def results(page: Any) -> str:
    """The results' text, once they are those of the inputs."""
    page.wait_for_timeout(250)  # longer than a change waits for the next one
    until(page, READY)
    return page.locator(".results").inner_text()


def test_a_first_visit_shows_a_finished_plan(open_page: Any, playground: Server) -> None:
    page = open_page(playground, "#plan")
    text = results(page)
    expected = questions.inference(questions.known_model("llama-3-8b"), [plan.device("rtx4090")])  # type: ignore[arg-type]
    [row] = expected.devices
    assert f"Memory: {units.format_bytes(row.memory.total)}" in text
    for part in row.memory.parts:
        assert page.get_by_role("button", name=f"{part.name}: {units.format_bytes(part.value)}").count() == 1
    cells = page.get_by_role("row", name="rtx4090").inner_text()
    assert row.speed is not None
    assert f"≤ {units.format_rate(row.speed.decode.value)}" in cells
    assert f"{row.fit.longest_context:,}" in cells
    assert "nextword plan inference llama-3-8b" in text


def test_every_number_opens_its_formula_and_escape_closes_it(open_page: Any, playground: Server) -> None:
    page = open_page(playground, "#plan?q=train&name=gpt2&price=2")
    results(page)
    count = page.locator("button.figure:visible").count()
    assert count > 25
    for number in (0, 1, count // 2, count - 1):
        button = page.locator("button.figure:visible").nth(number)
        button.focus()
        page.keyboard.press("Enter")
        dialog = page.get_by_role("dialog")
        assert "=" in dialog.inner_text()
        assert not violations(page)
        page.keyboard.press("Escape")
        assert dialog.count() == 0
        assert button.evaluate("button => button === document.activeElement")
    page.locator(".parts li", has_text="weights").first.locator("button").click()
    text = page.get_by_role("dialog").inner_text()
    assert "parameters" in text
    assert "124,439,808" in text


def test_the_plan_follows_the_inputs_and_the_link(open_page: Any, playground: Server) -> None:
    page = open_page(playground, "#plan")
    page.expected = ["400"]  # for money without a price
    results(page)
    page.get_by_role("radio", name="Budget").check(force=True)
    page.get_by_role("textbox", name="Budget").fill("3 days")
    page.get_by_role("textbox", name="Devices").fill("8xh100")
    text = results(page)
    budget = questions.budget((8, plan.device("h100")), plan.device, hours=units.parse_seconds("3 days"))
    assert units.format_count(budget.choice.parameters) in text
    assert f"{budget.choice.loss:.3f}" in text
    assert "q=budget" in page.url
    assert "budget=3%20days" in page.url
    page.locator(".chart svg").wait_for()
    tiles = page.locator(".tiles").inner_text()
    page.reload()
    results(page)
    assert page.locator(".tiles").inner_text() == tiles
    page.get_by_role("textbox", name="Budget").fill("$500")
    assert "needs the price" in results(page)
    page.get_by_label("Price").fill("2.5")
    assert "needs the price" not in results(page)
    page.go_back()
    assert "Memory: " in results(page)


@pytest.mark.parametrize(("by", "fields", "says"), [
    ("By size", {"Parameters": "124M"}, f"{plan.parameters(plan.shape_for(124e6)).total:,} parameters"),
    ("By shape", {"Layers": "2", "Width": "256", "Heads": "4", "Key-value heads": "4", "Head width": "64",
                  "MLP width": "512", "Vocabulary": "1000"}, "2 layers of width 256, vocabulary 1,000"),
])  # fmt: skip
def test_models_by_size_and_by_shape(
    open_page: Any, playground: Server, by: str, fields: dict[str, str], says: str
) -> None:
    page = open_page(playground, "#plan?q=train")
    results(page)
    page.get_by_label(by, exact=True).check(force=True)
    for label, value in fields.items():
        page.get_by_label(label, exact=True).fill(value)
    assert says in results(page)


def test_what_is_wrong_is_said_at_the_field(open_page: Any, playground: Server) -> None:
    page = open_page(playground, "#plan?name=gpt2")
    page.expected = ["400"]
    before = results(page)
    for label, value in (("Context", "many"), ("Devices", "h1000"), ("Model", "gpt3000")):
        field = page.get_by_role("form").get_by_label(label, exact=True)
        kept = field.input_value()
        field.fill(value)
        assert "not " in results(page)
        assert field.get_attribute("aria-invalid") == "true"
        field.fill(kept)
        assert results(page) == before
        assert field.get_attribute("aria-invalid") is None


def test_a_remedy_becomes_a_plan(open_page: Any, playground: Server) -> None:
    page = open_page(playground, "#plan?q=train&name=gpt2&micro_batch=64&devices=rtx4090")
    assert "Does not fit" in results(page)
    page.get_by_role("link", name="What would make it fit?").click()
    assert "The cheapest changes" in results(page)
    page.get_by_role("link", name="Plan it").first.click()
    assert "Fits." in results(page)
    assert "--loss chunked" in page.locator(".command code").inner_text()


@pytest.mark.parametrize("link", ["#plan", "#plan?q=train&devices=8xh100&shard=fsdp&price=2.5",
                                  "#plan?q=fit&micro_batch=64",
                                  "#plan?q=budget&budget=1e21&tokens_available=5B"])  # fmt: skip
@pytest.mark.parametrize(("width", "scheme"), [(1440, "light"), (375, "dark")])
def test_no_barriers_and_nothing_cut_off(
    open_page: Any, playground: Server, link: str, width: int, scheme: str
) -> None:
    page = open_page(playground, link, width=width, color_scheme=scheme)
    results(page)
    assert not violations(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
