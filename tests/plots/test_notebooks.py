"""What results show in a notebook: one figure or table with their own numbers, and text; without vl-convert."""

from __future__ import annotations

import json
import math
import re
import sys
from html import unescape
from pathlib import Path
from typing import Any

import pytest

import vega_lite
from nextword import plan
from nextword.engine.results import Alternative, Completion, NextTokenDistribution, Timings, Token
from nextword.plan.serving import plan_inference
from nextword.plan.training import plan_training
from nextword.plots import MIME
from nextword.plots.spec import SCHEMA

SPEC = plan.shape_for(1e9)
DEVICE = plan.device("rtx4090")
SETUP = plan.Training(batch=8)
RUNS = plan.read_runs(Path(__file__).parents[1] / "oracles" / "epoch_chinchilla.csv")


def shown(result: Any) -> dict[str, Any]:
    """What Jupyter gets, with and without the keywords it may give."""
    bundle = result._repr_mimebundle_(include=None, exclude=None)
    assert bundle == result._repr_mimebundle_()
    json.dumps(bundle, allow_nan=False)
    assert len(bundle["text/plain"]) < 1000
    return dict(bundle)


RESULTS = {
    "distribution": lambda: NextTokenDistribution(
        "I like to", 1.0, (Alternative(1, " eat", 0.6, 0.6),), 1.0, 3, 0.4, 9
    ),
    "memory": lambda: plan.memory(SPEC, SETUP),
    "training": lambda: plan_training(SPEC, SETUP, DEVICE, 1e9, 0.4, 2.5),
    "inference": lambda: plan_inference(SPEC, plan.Serving(1, 2048), [DEVICE, plan.device("h100")]),
    "fit": lambda: plan.diagnose(SPEC, plan.Training(batch=32), DEVICE),
    "budget": lambda: plan.plan_budget(plan.budget_from(compute=1e20)),
    "law": lambda: plan.fit_law(RUNS, bootstrap=2, hold_out=False),
}
SAID = {
    "distribution": "60.00% ␣eat",
    "memory": "optimizer states",
    "training": "does not fit",
    "inference": "NVIDIA H100",
    "fit": "as requested",
    "budget": "epoch: ",
    "law": "alpha = 0.3",
}


@pytest.mark.parametrize("name", RESULTS)
def test_a_result_is_a_figure_or_text_without_a_drawing_library(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    result = RESULTS[name]()
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "vl_convert", None)
        bundle = shown(result)
    assert set(bundle) == {"text/plain", MIME}
    assert SAID[name] in bundle["text/plain"]
    vega_lite.drawn(bundle[MIME] | {"$schema": SCHEMA})


def test_a_completion_is_its_text_tinted_by_how_unlikely_each_token_was() -> None:
    words = [("<b>", 0.9), (" and\n", 0.5), ("", 0.2), ("&", 0.001)]
    tokens = [Token(0, n, n, text, text, math.log(p), p) for n, (text, p) in enumerate(words)]
    done = Completion("say <i>", (1,), "<b> and\n&", tuple(tokens), "length", 0, 0, Timings(1, 0.0, 4, 0.0))
    bundle = shown(done)
    assert set(bundle) == {"text/plain", "text/html"}
    assert bundle["text/plain"] == "say <i><b> and\n&"
    html = bundle["text/html"]
    assert unescape(re.sub(r"<[^>]*>", "", html)) == bundle["text/plain"]
    assert not {"<b>", "<i>"} & set(re.findall(r"<\w+>", html))
    tints = [float(tint) for tint in re.findall(r"rgba\(\d+, \d+, \d+, ([\d.]+)\)", html)]
    assert tints == sorted(tints)
    assert len(tints) == len(words)
    assert "90.00% by the model" in html
