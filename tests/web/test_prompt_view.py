"""The playground's Prompt view: columns of shots, their order by mouse and keyboard, its link, commands, and faults."""

from __future__ import annotations

import json
import shlex
from typing import Any

import pytest

from serving import Server
from web_pages import plain, until, until_read, violations

OWN = "#prompt?task=own"


def answered(page: Any) -> None:
    """Wait until every column has its answer."""
    until(page, "document.querySelector('.columns .sequence') && !document.querySelector('.body[aria-busy=true]')")


def last_asked(page: Any) -> Any:
    """The body of the page's last request for prompts."""
    return page.asked[-1]


@pytest.fixture
def open_prompt(open_page: Any) -> Any:
    """`open_page` for this view; `page.asked` has the bodies of its requests for prompts."""

    def begin(server: Server, path: str = "#prompt", **options: Any) -> Any:
        page = open_page(server, "#chat", **options)
        page.asked = []
        page.on(
            "request", lambda request: request.url.endswith("/v1/prompt") and page.asked.append(request.post_data_json)
        )
        page.goto(f"{server.url}/{path}")
        answered(page)
        return page

    return begin


def sent(page: Any, column: int) -> str:
    """The text of the tokens in a column."""
    return plain(page.locator(".columns .sequence").nth(column).text_content())


def test_a_first_visit_shows_zero_one_and_four_shots_of_a_question(open_prompt: Any, real_playground: Server) -> None:
    page = open_prompt(real_playground)
    assert page.locator(".columns h2").all_inner_texts() == ["Zero-shot", "One-shot", "Few-shot"]
    [asked] = page.asked
    expected = real_playground.post("/v1/prompt", asked).json
    for number, column in enumerate(expected["columns"]):
        shown = page.locator(".columns article").nth(number)
        assert sent(page, number) == column["prompt"]
        rows = [row.split("\n") for row in shown.locator("li.label-row").all_inner_texts()]
        percents = [[f"{100 * label['share']:.2f}%", label["label"]] for label in column["labels"]]
        assert [[row[-1], row[0].strip(" ✓")] for row in rows[:-1]] == percents
        assert rows[-1][:2] == ["none of them", f"{100 * column['none']:.2f}%"]
    assert page.locator(".command code").inner_text() == expected["command"]
    page.get_by_role("button", name="Next question").press("Enter")
    page.wait_for_timeout(100)
    answered(page)
    assert last_asked(page)["question"] != asked["question"]
    assert page.evaluate("document.activeElement.ariaLabel") == "Next question"
    page.go_back()
    answered(page)
    assert last_asked(page)["question"] == asked["question"]


def test_examples_move_by_keyboard_and_by_mouse_and_the_link_keeps_it(open_prompt: Any, playground: Server) -> None:
    page = open_prompt(playground, OWN)
    texts = [row["text"] for row in last_asked(page)["examples"]]
    page.get_by_role("button", name="Move down example 1").press("Enter")
    assert page.evaluate("document.activeElement.ariaLabel") == "Move down example 2"
    until_read(page, texts[1], 1)
    order = [texts[1], texts[0], *texts[2:]]
    page.locator(".example .grip").nth(3).drag_to(page.locator(".example").nth(0))
    until_read(page, texts[3], 1)
    order = [order[3], *order[:3]]
    assert [row["text"] for row in last_asked(page)["examples"]] == order
    assert "--shots-from examples.jsonl" in page.locator(".command code").inner_text()
    with page.expect_download() as download:
        page.get_by_role("button", name="Save examples.jsonl").click()
    lines = download.value.path().read_text().splitlines()
    assert [json.loads(line)["text"] for line in lines] == order
    few = sent(page, 2)
    assert [few.index(text) for text in order] == sorted(few.index(text) for text in order)
    page.get_by_role("button", name="Remove example 2").click()
    page.get_by_label("Question: text").fill("Hooray")
    page.locator("#shots-1").fill("2")
    page.locator("#shots-1").press("Enter")
    page.wait_for_timeout(400)
    answered(page)
    page.reload()
    answered(page)
    asked = last_asked(page)
    assert (asked["shots"], asked["question"]["text"]) == ([0, 2, 4], "Hooray")
    assert [row["text"] for row in asked["examples"]][:3] == [order[0], *order[2:]]


def test_template_labels_and_chat_are_in_the_prompt_and_its_command(open_prompt: Any, playground: Server) -> None:
    page = open_prompt(playground, f"{OWN}&shots=0,1")
    page.get_by_label("Template", exact=True).fill("{text} I am {output}!")
    page.get_by_label("Labels").fill("glad, not glad")
    until_read(page, "The sun is out and I have the day off! I am glad!", 1)
    page.get_by_label("Example 1: output").select_option("not glad")
    until_read(page, "I am not glad!", 1)
    assert sent(page, 1).startswith("The sun is out and I have the day off! I am not glad!\n\n")
    names = page.locator("article").nth(0).locator("li.label-row .name").all_inner_texts()
    assert [plain(name) for name in names] == [" glad", " not glad", "none of them"]
    page.get_by_label("Through the model's chat template").check()
    answered(page)
    assert sent(page, 1).startswith("user: The sun is out and I have the day off! I am\nassistant: not glad!\nuser: ")
    page.get_by_label("System message").fill("Be kind.")
    until_read(page, "system: Be kind.", 0)
    words = shlex.split(page.locator(".command code").inner_text())
    for option, value in (
        ("--template", "{text} I am {output}!"),
        ("--labels", "glad,not glad"),
        ("--system", "Be kind."),
    ):
        assert words[words.index(option) + 1] == value
    page.get_by_label("Labels").fill("")
    page.get_by_text("It wrote, each token the likeliest").first.wait_for()


def test_a_stored_result_of_the_same_prompt_is_shown(open_prompt: Any, real_playground: Server) -> None:
    page = open_prompt(real_playground, "#prompt?shots=0")
    digest = real_playground.post("/v1/prompt", last_asked(page)).json["digest"]
    row = {"template": "sentiment", "variant": "plain", "one_set": False, "value": 0.5, "low": 0.25, "high": 0.75}
    rows = [row | {"digest": digest, "shots": 0}, row | {"digest": digest, "shots": 4, "variant": "random labels"}]
    report = {"name": "mine", "finished": 1e9, "metric": "accuracy", "items": 1234, "precision": "q8_0", "rows": rows}
    other = report | {"name": "other", "rows": [rows[0] | {"digest": "x"}]}
    answer = json.dumps({"model": "smollm2", "evaluations": [other, report]})
    page.route("**/v1/evaluations", lambda route: route.fulfill(body=answer, content_type="application/json"))
    page.reload()
    shown = page.locator(".report").first
    shown.get_by_text("Measured on 9 Sept 2001").wait_for()
    assert "1,234 questions" in shown.inner_text()
    cells = shown.locator("tbody td").all_inner_texts()
    assert [cells[0], *cells[3:6], cells[7]] == ["0", "0.250 – 0.750", "4, random labels", "0.500", "0.250 – 0.750"]
    page.get_by_text("1 other stored result").click()
    page.get_by_text("other", exact=False).last.wait_for()
    assert violations(page) == []


def test_what_is_wrong_is_said_where_it_is_and_can_be_mended(open_prompt: Any, start: Any) -> None:
    server = start()
    page = open_prompt(server, OWN)
    page.expected = ["400", "ERR_CONNECTION_REFUSED", "ERR_CONNECTION_RESET", "ERR_EMPTY_RESPONSE"]
    page.get_by_label("Template", exact=True).fill("{text} {missing}")
    page.locator("#template-error").get_by_text("exactly one {output}").wait_for()
    assert violations(page) == []
    page.get_by_label("Template", exact=True).fill("{text}: {output}")
    until(page, "!document.querySelector('#template-error').textContent")
    page.get_by_label("Question: text").fill("long " * 200)
    page.get_by_text("the context holds 512").first.wait_for()
    server.kill()
    page.get_by_label("Question: text").fill("short")
    page.get_by_text("The server does not answer").wait_for()
    page.get_by_role("button", name="Try again").wait_for()


def test_a_view_that_is_left_while_it_loads_stays_left(open_page: Any, playground: Server) -> None:
    page = open_page(playground, "#chat")
    page.get_by_label("Your message").wait_for()
    held = []
    page.route("**/v1/tasks", lambda route: held.append(route))
    page.get_by_role("link", name="Prompt").click()
    page.get_by_text("Reading the tasks").wait_for()
    page.get_by_role("link", name="Chat").click()
    page.get_by_label("Your message").wait_for()
    held[0].continue_()
    page.wait_for_timeout(200)
    assert page.get_by_label("Your message").is_visible()


def test_hostile_texts_are_shown_as_text(open_prompt: Any, playground: Server) -> None:
    hostile = "<script>document.title='bad'</script><img src=x onerror=alert(1)> \u202eevil שלום 👩‍👩‍👧"
    link = f"{OWN}&shots=0&labels=<b>a</b>,{hostile.replace('&', '')}&question={json.dumps({'text': hostile})}"
    page = open_prompt(playground, link)
    shown = page.locator(".sequence").inner_text()
    assert "<script>document.title='bad'</script>" in shown
    assert "\\u202e" not in page.get_by_label("Question: text").input_value()
    assert page.locator(".columns script, .columns img, .columns b b").count() == 0
    assert page.title().startswith("Prompt")


@pytest.mark.parametrize(("width", "scheme"), [(375, "light"), (1440, "dark")])
def test_the_view_has_no_barriers(open_prompt: Any, playground: Server, width: int, scheme: str) -> None:
    page = open_prompt(playground, f"{OWN}&chat=1&shots=0,1", width=width, color_scheme=scheme)
    assert violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
