"""Writes the example that the playground shows first, and the README's pictures of it, both from a running server.

nextword serve
python docs/make_playground.py example http://127.0.0.1:8080
python docs/make_playground.py pictures http://127.0.0.1:8080     needs Playwright, Chromium and Pillow
"""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

ROOT = Path(__file__).resolve().parent.parent
PICTURES = {
    "playground-complete": ("", "light"),
    "playground-plan": ("#plan?q=budget&budget=3%20days&devices=8xh100", "dark"),
}  # name → the page's link, and its theme
WIDE, HIGH, COLOURS = 1280, 940, 64
TARGET = ROOT / "src/nextword/serve/web/example.json"
PROMPT = "The best thing about living near the sea is"
SETTINGS: dict[str, Any] = {"seed": 7, "temperature": 0.8}
PACKED, TOKENS = "t0.8n28", 28
BRANCH = (1, 0)  # tokens of the completion to keep, and which of the likeliest tokens to take next
TOP, DIGITS = 32, 4


def ask(address: str, path: str, body: dict[str, Any]) -> Any:
    request = Request(address + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urlopen(request, timeout=60) as answer:
        return json.load(answer)


def pictures(address: str) -> None:
    """Take the pictures of docs/pictures."""
    from PIL import Image
    from playwright.sync_api import sync_playwright

    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=sandbox)
        for name, (link, theme) in PICTURES.items():
            page = browser.new_page(viewport={"width": WIDE, "height": HIGH}, color_scheme=theme)  # type: ignore[arg-type]
            page.goto(f"{address}/{link}", wait_until="networkidle")
            with Image.open(io.BytesIO(page.screenshot())) as image:
                file = ROOT / "docs/pictures" / f"{name}.png"
                image.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(file, optimize=True)
        browser.close()


def example(address: str) -> None:
    """Complete PROMPT, branch once, and write every token with the distribution that it was drawn from."""
    tokens = [
        [token["id"], token["piece"]]
        for token in ask(address, "/tokenize", {"content": PROMPT, "add_special": True, "with_pieces": True})["tokens"]
    ]
    prompt = [token[0] for token in tokens]
    scores = ask(address, "/v1/completions", {"prompt": prompt, "max_tokens": 0, "echo": True, "logprobs": 0})
    for token, logprob in zip(tokens, scores["choices"][0]["logprobs"]["token_logprobs"], strict=True):
        token.append(_rounded(logprob))
    first = complete(address, prompt, TOKENS)
    at = len(prompt) + BRANCH[0]
    before = [*prompt, *first["ids"][: BRANCH[0]]]
    choice = distribution(address, before, TOP)
    id, piece, logit = choice["top"][BRANCH[1]]
    second = complete(address, [*before, id], TOKENS)
    made = [[id, piece, _rounded(logit - choice["log_sum"])], *second["made"]]
    ids = [*prompt, *first["ids"]]
    content = {
        "prompt": PROMPT, "model": first["model"], "seed": str(SETTINGS["seed"]), "settings": PACKED, "tokens": tokens,
        "branches": [
            {"parent": None, "at": len(prompt), "settings": PACKED, "end": first["end"], "made": first["made"]},
            {"parent": 0, "at": at, "settings": PACKED, "end": second["end"], "made": made},
        ],
        "next": {
            f"0:{position}": distribution(address, ids[:position], TOP) for position in range(1, len(ids) + 1)
        },
        "on": 0, "at": at,
    }  # fmt: skip
    TARGET.write_text(json.dumps(content, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")


def complete(address: str, ids: list[int], count: int) -> dict[str, Any]:
    answer = ask(address, "/completion", {"prompt": ids, "n_predict": count, "n_probs": 1, **SETTINGS})
    made = [[token["id"], _piece(token), _rounded(token["logprob"])] for token in answer["completion_probabilities"]]
    end = "eos" if answer["stop_type"] == "eos" else "limit"
    return {"made": made, "ids": [token[0] for token in made], "end": end, "model": answer["model"]}


def distribution(address: str, ids: list[int], top: int) -> dict[str, Any]:
    found = ask(address, "/v1/next", {"prompt": ids, "top": top})
    return {
        "vocabulary": found["vocabulary"],
        "log_sum": _rounded(found["log_sum"]),
        "top": [[token["id"], _piece(token), _rounded(token["logit"])] for token in found["top"]],
        "rest": [[bin["count"], _rounded(bin["mean"]), _rounded(bin["variance"])] for bin in found["rest"]],
    }


def _piece(token: dict[str, Any]) -> str | list[int]:
    try:
        return bytes(token["bytes"]).decode()
    except UnicodeDecodeError:
        return list(token["bytes"])


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, DIGITS)


if __name__ == "__main__":
    {"example": example, "pictures": pictures}[sys.argv[1]](sys.argv[2])
