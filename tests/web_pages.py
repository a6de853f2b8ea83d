"""What tests ask of a page in the browser."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from serving import PATIENCE


def until(page: Any, script: str) -> None:
    """Wait until a JavaScript expression holds, from outside: the page's own policy lets it evaluate no text."""
    deadline = time.monotonic() + PATIENCE
    while not page.evaluate(script):
        assert time.monotonic() < deadline, f"never true: {script}"
        page.wait_for_timeout(20)


def plain(text: str) -> str:
    """The text of chips, without the signs for spaces and line breaks."""
    return text.replace("⏎", "").replace("␣", " ")


def until_read(page: Any, text: str, place: int = 0) -> None:
    """Wait until the token sequence in a place of the page has a text."""
    chips = f"document.querySelectorAll('.sequence')[{place}]?.textContent"
    until(page, f"{chips}?.replaceAll('⏎', '').replaceAll('␣', ' ').includes({json.dumps(text)})")


def violations(page: Any) -> list[str]:
    """What axe-core finds serious or critical on the page as it stands."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    results = axe.Axe().run(page).response["violations"]
    return [
        f"{found['id']}: {node['html'][:200]} {node.get('failureSummary', '')}"
        for found in results
        if found["impact"] in ("serious", "critical")
        for node in found["nodes"]
    ]
