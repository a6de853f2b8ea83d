"""The playground's Complete view: tokens, alternatives, branches, sliders, its link, and what can go wrong."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import pytest

from serving import Server
from web_pages import until, violations

PROMPT = "To be"


def complete(page: Any, prompt: str = PROMPT, **settings: Any) -> None:
    """Type a prompt, run it with the keyboard, and wait until it is done."""
    settings.setdefault("seed", 1)
    for name, value in settings.items():
        page.locator(f"#{name}").fill(str(value))
    page.get_by_label("Prompt", exact=True).fill(prompt)
    page.keyboard.press("Control+Enter")
    done(page)


def done(page: Any) -> None:
    """Wait until the tokens are there and nothing more is coming."""
    until(page, "document.querySelector('.output .status')?.textContent.includes('seed')"
                           " && !document.querySelector('[data-running]')")  # fmt: skip


def chips(page: Any) -> list[str]:
    return page.locator(".chips .chip:not(.next)").all_text_contents()


def title(page: Any) -> str:
    return page.locator(".inspector .position h2").inner_text()


def rows(page: Any) -> list[list[str]]:
    """The bars as text: token, probability under the model, and now; everything else last."""
    script = "rows => rows.map(row => [0, 2, 3].map(i => row.children[i].textContent))"
    return page.locator(".bars .bar-row, .bar-row.others").evaluate_all(script)


def test_a_first_visit_shows_a_finished_example_without_asking_the_model(open_page: Any, playground: Server) -> None:
    page = open_page(playground)
    page.locator(".bars button").first.wait_for()
    assert len(chips(page)) > 20
    assert title(page).startswith("Token 11")
    assert {path for path in page.requests if not path.startswith("/web/")} == {"/", "/v1/models"}
    assert page.locator(".bars button:enabled").count() == 1  # another model's tokens cannot be taken
    assert page.locator(".branches li").count() == 2


def test_by_keyboard_complete_look_at_a_token_branch_and_go_back(open_page: Any, playground: Server) -> None:
    page = open_page(playground)
    complete(page, count=12)
    first = chips(page)
    assert len(first) == len(PROMPT) + 12
    page.locator(".chips").focus()
    for key in ("End", "ArrowLeft", "ArrowLeft"):
        page.keyboard.press(key)
    page.keyboard.press("Enter")  # to the alternatives, which may have to come first
    until(page, "document.activeElement.classList.contains('bar-row')")
    assert title(page).startswith(f"Token {len(first) - 1}")
    chosen = page.locator(".bars li:not(.chosen) button").first
    token = chosen.locator(".name").inner_text()
    while not chosen.evaluate("button => button === document.activeElement"):
        page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    done(page)
    second = chips(page)
    assert second[: len(first) - 2] == first[: len(first) - 2]
    assert page.locator(f"#chip-{len(first) - 2}").get_attribute("aria-label").startswith(f"{token}, ")
    assert len(second) == len(first) - 2 + 1 + 12
    assert page.locator(".branches li").count() == 2

    page.reload()
    done(page)
    assert chips(page) == second
    page.get_by_text(f"Token {len(first) - 1}").wait_for()
    page.go_back()
    done(page)
    assert chips(page) == first
    page.go_forward()
    done(page)
    assert chips(page) == second
    page.locator(".branches button").first.click()
    assert chips(page) == first


def test_a_branch_may_leave_the_prompt_and_another_branch(open_page: Any, playground: Server) -> None:
    page = open_page(playground)
    complete(page, count=6, seed=1)
    for position in (2, 6):
        page.locator(f"#chip-{position}").click()
        page.get_by_text(f"Token {position + 1}").wait_for()
        page.locator(".bars li:not(.chosen) button").nth(1).click()
        done(page)
    inner = chips(page)
    assert page.locator(".branches ul ul ul li").count() == 1
    assert page.locator(".chip.prompt").count() == 2
    page.reload()
    done(page)
    assert chips(page) == inner
    page.locator(".branches button").nth(1).click()
    done(page)
    assert len(chips(page)) == 2 + 1 + 6


def settings_of(number: int) -> dict[str, float]:
    draw = random.Random(number)
    return {
        "temperature": [0, 0.3, 0.5, 0.8, 1, 1.5, 2][number % 7],
        "top_k": draw.choice([0, 0, 1, 5, 40, 100]),
        "top_p": draw.choice([1, 1, 0.1, 0.3, 0.5]),
        "min_p": draw.choice([0, 0, 0.05, 0.2]),
    }


def test_sliders_ask_nothing_and_agree_with_the_server_at_20_settings(
    open_page: Any, real_playground: Server
) -> None:  # fmt: skip
    page = open_page(real_playground)
    complete(page, "I like to eat", count=3, seed=1)
    page.locator("#chip-4").click()
    page.locator(".bars button").first.wait_for()
    until(page, "document.querySelector('#chip-1').dataset.level")  # the prompt is scored
    asked = len(page.requests)
    shown = []
    for number in range(20):
        for name, value in settings_of(number).items():
            id, off = {"temperature": ("Temperature", None), "top_k": ("Top-k", 0), "top_p": ("Top-p", 1),
                       "min_p": ("Min-p", 0)}[name]  # fmt: skip
            box = page.get_by_label(f"{id}, exactly")
            box.fill("" if value == off else str(value))
            box.blur()
        shown.append(rows(page))
    slider = page.get_by_label("Temperature", exact=True)
    before = rows(page)
    slider.focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    assert slider.get_attribute("aria-valuetext") == "0.05"
    assert rows(page) != before
    assert page.requests[asked:] == []

    prompt = real_playground.post("/tokenize", {"content": "I like to eat", "with_pieces": True}).json["tokens"]
    for number, (*single, others) in enumerate(shown):
        body = {"prompt": [token["id"] for token in prompt], "n_predict": 1, "n_probs": 20,
                "post_sampling_probs": True, "seed": 1, **settings_of(number)}  # fmt: skip
        drawn = real_playground.post("/completion", body).json["completion_probabilities"][0]
        exact = {token["token"]: token["prob"] for token in [*drawn["top_probs"], drawn]}
        left = 1.0
        for token, _, now in single:
            probability = exact.get(token.replace("␣", " ").replace("\\n", "\n"), 0.0)
            left -= probability
            assert number_of(now) == pytest.approx(probability, abs=1e-4), (settings_of(number), token)
        assert number_of(others[2]) == pytest.approx(left, abs=1e-4), settings_of(number)


def number_of(shown: str) -> float:
    return 0.0 if shown == "–" else float(shown.strip("<>%")) / 100


def answer_with(page: Any, tokens: list[bytes]) -> None:
    """Let the server's answer be these tokens, which no test can make a model say."""
    events = [
        {
            "content": "",
            "stop": False,
            "completion_probabilities": [{"id": i % 256, "bytes": list(token), "logprob": -1}],
        }
        for i, token in enumerate(tokens)
    ]
    end = {"stop": True, "stop_type": "limit", "tokens_predicted": len(tokens), "timings": {"predicted_per_second": 9}}
    body = "".join(f"data: {json.dumps(event)}\n\n" for event in [*events, end])
    page.route("**/completion", lambda route: route.fulfill(body=body, content_type="text/event-stream"))


HOSTILE = {  # what a model may write → what is shown
    b"<script>window.hacked = 1</script>": "<script>window.hacked = 1</script>",
    b"<img src=x onerror='window.hacked = 1'>": "<img src=x onerror='window.hacked = 1'>",
    "\u202etxet".encode(): "\\u202etxet",
    "שלום".encode(): "שלום",
    "\u0301".encode(): "◌\u0301",
    " 日".encode()[:2]: " <0xE6>",
    b"\x97\xa5x": "<0x97><0xA5>x",
    "👩\u200d👧".encode(): "👩\\u200d👧",
    b"\x00\x1b[31m": "\\x00\\x1b[31m",
    b"  ": "␣␣",
    b"\n\n": "⏎\n⏎\n",
    b"": "∅",
    b"{{constructor}}</div>": "{{constructor}}</div>",
}


def test_whatever_a_model_writes_is_text(open_page: Any, playground: Server) -> None:
    page = open_page(playground)
    answer_with(page, list(HOSTILE))
    hostile = "<b onclick='window.hacked = 1'>x</b>"
    complete(page, hostile, count=len(HOSTILE))
    shown = chips(page)
    assert "".join(shown[: len(hostile)]).replace("␣", " ") == hostile
    assert shown[len(hostile) :] == list(HOSTILE.values())
    page.locator("#chip-3").click()
    page.locator(".bars button").first.wait_for()
    assert page.evaluate("window.hacked") is None
    assert page.locator(".chips img, .chips script, .chips b").count() == 0
    assert violations(page) == []


def test_ten_thousand_tokens_are_shown_and_reached(open_page: Any, playground: Server) -> None:
    page = open_page(playground)
    page.expected = ["400"]  # the model's own context is shorter
    answer_with(page, [b"word ", b"of\n", "é".encode()] * 3334)
    complete(page, count=10_002)
    assert page.locator(".chips .chip").count() == len(PROMPT) + 10_002 + 1
    page.locator(".chips").focus()
    for key in ("End", "ArrowLeft", "ArrowUp", "PageUp"):
        page.keyboard.press(key)
    position = int(page.evaluate("document.querySelector('[aria-selected=true]').id").removeprefix("chip-"))
    assert len(PROMPT) + 9_890 < position < len(PROMPT) + 9_902
    page.locator("[aria-selected=true]").scroll_into_view_if_needed()
    page.keyboard.press("Home")
    page.get_by_text("Nothing precedes the first token").wait_for()


def test_a_stream_survives_the_servers_end(open_page: Any, start_real: Any) -> None:
    server = start_real()
    page = open_page(server, "#complete?s=t0.8n4000&seed=1")
    page.expected = ["ERR_", "Failed to load"]
    page.get_by_label("Prompt", exact=True).fill("Once upon a time")
    page.keyboard.press("Control+Enter")
    page.locator("#chip-12").wait_for()
    server.kill()
    page.get_by_text("What had arrived is kept").wait_for()
    kept = chips(page)
    again = start_real("--port", str(server.port))
    page.get_by_role("button", name="Continue").click()
    until(page, f"document.querySelectorAll('.chips .chip').length > {len(kept) + 5}")
    page.keyboard.press("Escape")
    done(page)
    more = chips(page)
    assert more[: len(kept)] == kept
    assert "What had arrived" not in page.locator(".problem").inner_text()
    ids = [
        token["id"]
        for token in again.post("/tokenize", {"content": "Once upon a time", "with_pieces": True}).json["tokens"]
    ]
    seed = int(re.search(r"seed (\d+)", page.locator(".status").inner_text())[1])  # type: ignore[index]
    count = len(more) - len(ids)
    whole = again.post(
        "/completion", {"prompt": ids, "n_predict": count, "n_probs": 1, "seed": seed, "temperature": 0.8}
    )
    exact = [token["token"] for token in whole.json["completion_probabilities"]]
    assert [text.replace("⏎", "").replace("␣", " ") for text in more[len(ids) :]] == exact  # as if nothing had happened
    until(page, f"location.hash.includes('n{count}.seed')")


def test_errors_are_shown_where_they_happen(open_page: Any, playground: Server) -> None:
    page = open_page(playground)
    page.expected = ["400"]
    for prompt, message in (
        ("x" * 600, "600 tokens; the context holds 512"),
        ("", "nothing to continue"),
    ):
        page.get_by_label("Prompt", exact=True).fill(prompt)
        page.keyboard.press("Control+Enter")
        page.locator(".problem").get_by_text(message).wait_for()
    assert violations(page) == []


@pytest.mark.parametrize(
    "link",
    [
        "#complete?p=Hi&run=n5.seed1&b=0-3-9999999-n5_x_5-1-1-n2&on=1&at=zzz",
        "#complete?p=Hi&run=t1e9k-3n4.seed99&b=0-400-3-n2&on=1",
        "#complete?p=%E0%A4%A&s=tttt&at=-5&on=99&run=.seed",
        "#nowhere?x=1",
        "#complete?__proto__=1&constructor=2",
    ],
)
def test_a_broken_link_breaks_nothing(open_page: Any, playground: Server, link: str) -> None:
    page = open_page(playground, link)
    page.expected = ["400"]
    complete(page, count=4)
    assert len(chips(page)) == len(PROMPT) + 4


def test_back_while_tokens_arrive_leads_to_the_link_before(open_page: Any, real_playground: Server) -> None:
    page = open_page(real_playground)
    complete(page, "I like", count=6)
    before, link = chips(page), page.evaluate("location.hash")
    page.locator("#count").fill("2000")
    page.get_by_label("Prompt", exact=True).fill("Once upon a time")
    page.keyboard.press("Control+Enter")
    page.locator("#chip-10").wait_for()
    page.go_back()
    done(page)
    page.wait_for_timeout(300)  # longer than the link waits for changes
    assert chips(page) == before
    assert page.evaluate("location.hash").split("&run=")[1] == link.split("&run=")[1]


def test_another_view_opens_while_tokens_arrive_and_back_goes_on(open_page: Any, real_playground: Server) -> None:
    page = open_page(real_playground, "#complete?s=t0.8n60&seed=1")
    page.get_by_label("Prompt", exact=True).fill("Once upon a time")
    page.keyboard.press("Control+Enter")
    page.locator("#chip-10").wait_for()
    page.get_by_role("link", name="Chat").click()
    page.get_by_label("Your message").wait_for()
    page.wait_for_timeout(300)  # longer than a link waits for changes
    assert page.evaluate("location.hash") == "#chat"
    page.go_back()
    done(page)
    assert len(chips(page)) == 4 + 60


def test_a_text_too_long_for_a_link_stays_in_its_tab(open_page: Any, real_playground: Server) -> None:
    page = open_page(real_playground)
    complete(page, f"Hi{' ' * 6000}there", count=3)
    shown = chips(page)
    assert len(page.url) < 1000
    page.reload()
    done(page)
    assert chips(page) == shown
    elsewhere = open_page(real_playground, page.url.partition("/#")[2].join(["#", ""]))
    elsewhere.get_by_text("longer than a link may be").wait_for()


def test_another_model_starts_afresh_and_back_returns(open_page: Any, start: Any, tiny_model: Any) -> None:
    server = start("--alias", "one", "-m", str(tiny_model("lstm")))
    page = open_page(server)
    complete(page, count=5)
    before = chips(page)
    other = page.locator("#model option").nth(1).get_attribute("value")
    page.get_by_label("Model").select_option(other)
    until(page, "document.querySelector('.output').hidden")
    complete(page, count=5)
    assert chips(page) != before
    page.go_back()
    page.go_back()
    done(page)
    assert chips(page) == before


def test_more_and_a_pinned_seed(open_page: Any, playground: Server) -> None:
    page = open_page(playground)
    complete(page, count=4, seed=3)
    page.get_by_role("button", name="More").click()
    done(page)
    longer = chips(page)
    complete(page, count=8, seed=3)
    assert chips(page) == longer


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 1440])
def test_no_barriers_and_no_sideways_scrolling(open_page: Any, playground: Server, scheme: str, width: int) -> None:
    page = open_page(playground, width=width, color_scheme=scheme, reduced_motion="reduce")
    page.locator(".bars button").first.wait_for()
    assert violations(page) == []
    complete(page, "A longer prompt, of several words\nand lines", count=20)
    page.locator("#chip-7").click()
    page.locator(".bars .chosen").wait_for()
    assert violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
