"""The playground's Chat view: the template's tokens, streams, stop, editing, comparing, its link, and faults."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from serving import Server
from web_pages import plain, until, until_read, violations


def send(page: Any, text: str) -> None:
    """Type a message, send it with the keyboard, and wait for the answers."""
    page.get_by_label("Your message").fill(text)
    page.keyboard.press("Enter")
    page.wait_for_timeout(50)
    done(page)


def done(page: Any) -> None:
    page.get_by_role("button", name="Stop").wait_for(state="hidden")
    page.wait_for_timeout(50)


def messages(page: Any) -> list[str]:
    return page.locator(".message .content").all_inner_texts()


def tokens(page: Any, part: str = "") -> str:
    """The text of the sequence, or of the tokens of one part."""
    chips = page.locator(f".sequence .chip{f'[data-part={part}]' if part else ''}").all_text_contents()
    return plain("".join(chips))


def test_a_first_visit_shows_an_example_and_the_template_around_it(open_page: Any, real_playground: Server) -> None:
    page = open_page(real_playground, "#chat")
    until_read(page, "haiku about the sea")
    asked = {"messages": [{"role": "user", "content": "Write a haiku about the sea."}]}
    assert tokens(page) == real_playground.post("/apply-template", asked).json["prompt"] + tokens(page, "answer")
    assert tokens(page, "answer") == messages(page)[1]
    assert tokens(page, "user") == "Write a haiku about the sea."
    assert page.locator(".sequence .chip.control").all_text_contents() == ["<|im_start|>", "<|im_end|>"] * 2 + [
        "<|im_start|>"
    ]
    assert not any("completions" in path for path in page.requests)


def test_what_is_typed_is_read_through_the_template_at_once_and_control_tokens_in_it_are_text(
    open_page: Any, real_playground: Server
) -> None:
    page = open_page(real_playground, "#chat?turns=[]")
    page.get_by_label("System message").fill("Be brief.")
    page.get_by_label("Your message").fill("What is <|im_end|> 🌊?")
    until_read(page, "What is <|im_end|> ")
    assert (tokens(page, "system"), page.locator(".sequence .control").count()) == ("Be brief.", 5)
    assert tokens(page, "user") == "What is <|im_end|> <0xF0><0x9F><0x8C><0x8A>?"
    page.locator(".message").first.wait_for(state="detached")
    page.reload()
    until_read(page, "Be brief.")
    assert page.get_by_label("Your message").input_value() == "What is <|im_end|> 🌊?"


def test_a_conversation_is_answered_edited_and_answered_again_and_the_link_keeps_it(
    open_page: Any, playground: Server
) -> None:
    page = open_page(playground, "#chat?turns=[]&n=20&seed=3")
    send(page, "To be")
    first = messages(page)
    assert first[0] == "To be"
    assert tokens(page).startswith("user: To be\nassistant:")
    assert page.locator(".sequence .chip[data-part=answer]").count() == 20
    body = {"messages": [{"role": "user", "content": "To be"}], "temperature": 0.7, "seed": 3, "max_tokens": 20}
    expected = playground.post("/v1/chat/completions", body).json["choices"][0]["message"]["content"]
    assert page.locator(".message .content").nth(1).text_content() == expected
    send(page, "or not")
    assert len(messages(page)) == 4
    page.get_by_role("button", name="Edit message 1").click()
    page.locator(".message textarea").fill("To see")
    page.keyboard.press("Enter")
    done(page)
    assert (len(messages(page)), messages(page)[0]) == (2, "To see")
    page.get_by_role("button", name="Edit answer 1").click()
    page.locator(".message textarea").fill("I was told to say this")
    page.get_by_role("button", name="Save").click()
    page.get_by_label("Your message").fill("why?")
    until_read(page, "user: To see\nassistant: I was told to say this\nuser: why?")
    assert tokens(page, "assistant") == "I was told to say this"
    page.wait_for_timeout(250)
    page.reload()
    assert page.locator(".message").nth(1).wait_for() is None
    assert messages(page) == ["To see", "I was told to say this"]
    page.go_back()
    page.go_back()
    until(page, "document.querySelectorAll('.message').length === 4")
    assert messages(page)[:2] == first


def test_regenerating_draws_another_answer(open_page: Any, playground: Server) -> None:
    page = open_page(playground, "#chat?turns=[]&n=30&t=1")
    send(page, "To be")
    first = messages(page)[1]
    page.get_by_role("button", name="Regenerate answer 1").click()
    page.wait_for_timeout(50)
    done(page)
    assert len(messages(page)) == 2
    assert messages(page)[1] != first


def test_two_temperatures_answer_the_same_conversation(open_page: Any, playground: Server) -> None:
    page = open_page(playground, "#chat?turns=[]&n=12")
    page.get_by_label("Compare").check()
    page.locator("#temperature-0").fill("1.5")
    page.locator("#temperature-1").fill("0")
    page.keyboard.press("Tab")
    send(page, "To be")
    send(page, "again")
    assert len(messages(page)) == 6
    answers = page.locator(".message.assistant .content").evaluate_all("all => all.map(one => one.textContent)")
    for side, name in enumerate("AB"):
        page.get_by_role("button", name=name, exact=True).click()
        said = [("user", "To be"), ("assistant", answers[side]), ("user", "again")]
        asked = {"messages": [{"role": role, "content": text} for role, text in said], "with_pieces": True}
        read = playground.post("/apply-template", asked).json["tokens"]
        assert page.locator(".sequence .chip:not([data-part=answer])").count() == len(read)
        assert page.locator(".sequence .chip[data-part=answer]").count() <= 12
    greedy = {"messages": [{"role": "user", "content": "To be"}], "temperature": 0, "max_tokens": 12}
    assert playground.post("/v1/chat/completions", greedy).json["choices"][0]["message"]["content"] == answers[1]
    page.get_by_label("Compare").uncheck()
    until(page, "document.querySelectorAll('.message').length === 4")


def test_a_long_answer_stops_at_once_and_what_there_is_stays(open_page: Any, real_playground: Server) -> None:
    page = open_page(real_playground, "#chat?turns=[]&n=4000&t=0")
    page.get_by_label("Your message").fill("Write a very long story.")
    page.keyboard.press("Enter")
    until(page, "document.querySelectorAll('.sequence [data-part=answer]').length > 5")
    page.keyboard.press("Escape")
    done(page)
    page.get_by_text("stopped").wait_for()
    kept = messages(page)[1]
    assert len(kept) > 5
    real_playground.until(real_playground.is_idle)
    page.wait_for_timeout(250)
    page.reload()
    page.locator(".message").nth(1).wait_for()
    assert messages(page)[1] == kept
    page.get_by_label("Your message").fill("Go on.")
    page.keyboard.press("Enter")
    until(page, "document.querySelectorAll('.sequence [data-part=answer]').length > 5")
    page.go_back()
    done(page)
    assert messages(page) == ["Write a very long story.", kept]
    real_playground.until(real_playground.is_idle)


@pytest.fixture
def untemplated(tiny_model: Callable[..., Path]) -> Iterator[Server]:
    server = Server(str(tiny_model("lstm")), "--alias", "plain")
    yield server
    server.kill()


def test_a_model_without_a_template_says_so_and_offers_to_complete(open_page: Any, untemplated: Server) -> None:
    page = open_page(untemplated, "#chat")
    page.expected = ["400"]
    page.get_by_text("has no chat template").wait_for()
    assert violations(page) == []
    page.get_by_role("link", name="Complete a text").click()
    page.get_by_label("Prompt", exact=True).wait_for()


def test_a_server_that_ends_during_an_answer(open_page: Any, start_real: Any) -> None:
    server = start_real()
    page = open_page(server, "#chat?turns=[]&n=4000&t=0")
    page.expected = ["ERR_", "400"]
    page.get_by_label("Your message").fill("Write a very long story.")
    page.keyboard.press("Enter")
    until(page, "document.querySelectorAll('.sequence [data-part=answer]').length > 5")
    server.kill()
    page.get_by_text("The server does not answer").wait_for()
    assert len(messages(page)[1]) > 5


def test_hostile_texts_are_shown_as_text(open_page: Any, playground: Server) -> None:
    hostile = "<script>document.title='bad'</script><img src=x onerror=alert(1)> שלום"
    turns = json.dumps([[hostile, hostile]])
    page = open_page(playground, f"#chat?turns={turns}&system=<b>x</b>")
    until_read(page, "<script>document.title='bad'</script>")
    assert messages(page) == [hostile, hostile]
    assert page.locator("main script, main img, .sequence b").count() == 0
    assert page.title().startswith("Chat")


@pytest.mark.parametrize(("width", "scheme"), [(375, "dark"), (1440, "light")])
def test_the_view_has_no_barriers(open_page: Any, playground: Server, width: int, scheme: str) -> None:
    turns = json.dumps([["To be", "or not", "that is"], ["again"]])
    page = open_page(playground, f"#chat?b=1&system=x&turns={turns}", width=width, color_scheme=scheme)
    until_read(page, "again")
    assert violations(page) == []
    page.get_by_role("button", name="Edit message 1").click()
    assert violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
