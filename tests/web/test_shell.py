"""The playground's shell: how its files are served, its link, themes, and the server's key."""

from __future__ import annotations

import gzip
import re
from pathlib import Path
from typing import Any

import pytest

import nextword.serve
from serving import Server
from web_pages import until

WEB = Path(nextword.serve.__file__).parent / "web"
FILES = [path for path in WEB.rglob("*") if path.is_file()]


def test_pages_come_compressed_with_strict_headers_and_are_not_sent_twice(playground: Server) -> None:
    plain = playground.get("/")
    packed = playground.get("/", headers={"Accept-Encoding": "gzip"})
    again = playground.get("/", headers={"If-None-Match": plain.headers["etag"]})
    assert gzip.decompress(packed.data) == plain.data == (WEB / "index.html").read_bytes()
    assert (again.status, again.data) == (304, b"")
    for answer in (plain, packed, again):
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
    assert playground.get("/web/app.js").headers["content-type"].startswith("text/javascript")


@pytest.mark.parametrize(
    "path", ["/web/", "/web/../app.py", "/web/%2e%2e/app.py", "/web/views", "/web//app.js", "/web/app.js%00", "/app.js"]
)
def test_only_the_files_of_the_page_are_served(playground: Server, path: str) -> None:
    assert playground.get(path).status == 404
    assert playground.post("/web/app.js", {}).status == 404


def test_pages_need_no_key_but_the_right_host(start: Any) -> None:
    server = start("--api-key", "secret")
    assert server.get("/").status == server.get("/web/style.css").status == 200
    assert server.get("/v1/models").status == 401
    assert server.get("/", headers={"Host": "evil.example"}).status == 403


def test_the_page_is_small(playground: Server) -> None:
    names = [path.relative_to(WEB).as_posix() for path in FILES]
    sizes = [
        len(playground.get("/" if name == "index.html" else f"/web/{name}", headers={"Accept-Encoding": "gzip"}).data)
        for name in names
    ]
    assert sum(sizes) < 150_000


def test_no_script_writes_markup_or_asks_another_machine() -> None:
    for path in FILES:
        if path.suffix in (".js", ".html", ".css"):
            text = path.read_text()
            assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text)
            assert not re.search(r"https?://(?!www\.w3\.org/)", text), path


def test_the_theme_is_kept(open_page: Any, playground: Server) -> None:
    page = open_page(playground, color_scheme="dark")
    page.get_by_role("button", name="Use the light theme").click()
    page.reload()
    assert page.evaluate("document.documentElement.dataset.theme") == "light"
    page.get_by_role("button", name="Use the dark theme").wait_for()


def test_a_server_with_a_key_asks_for_it(open_page: Any, start: Any) -> None:
    page = open_page(start("--api-key", "secret", "--alias", "named"))
    page.expected = ["401"]
    for key in ("wrong", "secret"):
        page.get_by_label("Key", exact=True).fill(key)
        page.keyboard.press("Enter")
        if key == "wrong":
            page.get_by_text("That key is wrong").wait_for()
    until(page, "document.querySelector('#model').value === 'named'")
    page.reload()
    until(page, "document.querySelector('#model').value === 'named'")
