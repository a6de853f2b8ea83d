"""The playground in a real browser: pages load from their server alone and log no error. Skipped without Chromium."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from serving import TEMPLATE, Server, running, starting

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="package")
def browser() -> Iterator[Any]:
    """Chromium, until the last test of this folder: other tests would trip over Playwright's event loop."""
    playwright = pytest.importorskip("playwright.sync_api")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip("Chromium is not installed")
    sandbox = ["--no-sandbox"] if os.getuid() == 0 else []
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=path, args=sandbox)
        yield chromium
        chromium.close()


@pytest.fixture(scope="package")
def playground(tiny_model: Callable[..., Path]) -> Iterator[Server]:
    """A server with a model of a few thousand parameters, whose tokens are bytes, under the name `tiny`."""
    with running(tiny_model(chat_template=TEMPLATE), "--alias", "tiny") as server:
        yield server


@pytest.fixture(scope="package")
def real_playground(smollm2_path: Path) -> Iterator[Server]:
    """A server with the default model, whose vocabulary has 49,152 tokens."""
    with running(smollm2_path, "--alias", "smollm2") as server:
        yield server


@pytest.fixture
def start_real(smollm2_path: Path) -> Iterator[Callable[..., Server]]:
    """Start servers of their own with the default model, which end with the test."""
    with starting(smollm2_path) as begin:
        yield begin


@pytest.fixture
def start(tiny_model: Callable[..., Path]) -> Iterator[Callable[..., Server]]:
    """Start servers of their own with the tiny model, which end with the test: `start("--api-key", "secret")`."""
    with starting(tiny_model(chat_template=TEMPLATE)) as begin:
        yield begin


Open = Callable[..., Any]


@pytest.fixture
def open_page(browser: Any) -> Iterator[Open]:
    """Open a page of a server in a fresh profile: `open_page(server, "#complete?p=Hi", width=375)`.

    `page.requests` has the paths asked for. At the end, an error on the console or in a script, or a request to
    another origin, fails the test, unless it contains one of `page.expected`.
    """
    contexts, checks = [], []

    def begin(server: Server, path: str = "", width: int = 1200, height: int = 900, **options: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        page = context.new_page()
        page.requests, page.expected, faults = [], [], []
        page.on("request", lambda request: page.requests.append(request.url.removeprefix(server.url)))
        page.on("console", lambda message: message.type == "error" and faults.append(message.text))
        page.on("pageerror", lambda error: faults.append(str(error)))
        checks.append((page, faults))
        page.set_default_timeout(20_000)
        page.goto(f"{server.url}/{path}")
        return page

    yield begin
    found = [fault for page, faults in checks for fault in faults if not any(part in fault for part in page.expected)]
    foreign = [url for page, _ in checks for url in page.requests if not url.startswith(("/", "data:"))]
    for context in contexts:
        context.close()
    assert not found, found
    assert not foreign, foreign
