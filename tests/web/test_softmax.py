"""The page's softmax, run in node, gives what the engine draws from; the engine's numpy way is the oracle."""

from __future__ import annotations

import json
import math
import random
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nextword.serve
from nextword.engine import SamplingParams
from nextword.engine.sampler import Distribution
from nextword.serve.distribution import compact

SOFTMAX = Path(nextword.serve.__file__).parent / "web" / "softmax.js"
VOCABULARY = 20_000
TOP = 128
SCRIPT = """
import { shape, shareOf } from "%s";
const cases = JSON.parse(require("node:fs").readFileSync(0, "utf8"));
const answers = cases.map(({ next, settings, others }) => {
  const found = shape(next, settings);
  return { ...found, shares: [...found.shares], others: others.map((z) => shareOf(z, settings, found)) };
});
console.log(JSON.stringify(answers, (key, value) => value === -Infinity ? null : value));
"""


class Bytes:
    """A tokenizer as far as `compact` asks for one."""

    def token_bytes(self, id: int) -> bytes:
        return b"%d" % id


def logits_of(spread: float, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(seed).normal(0, spread, VOCABULARY).astype(np.float32)


def shapes(cases: list[tuple[Any, SamplingParams]]) -> list[Any]:
    """What softmax.js makes of these logits and settings, and the shares of all tokens beyond the TOP."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    given = []
    for logits, sampling in cases:
        z = np.sort(logits.astype(np.float64) - float(logits.max()))[::-1]
        settings = {"temperature": sampling.temperature, "topK": sampling.top_k, "topP": sampling.top_p,
                    "minP": sampling.min_p}  # fmt: skip
        next = compact(logits, Bytes(), TOP)  # type: ignore[arg-type]
        given.append({"next": next, "settings": settings, "others": z[TOP : TOP + 500].tolist()})
    script = (
        'import { createRequire } from "node:module"; const require = createRequire("/");' + SCRIPT % SOFTMAX.as_uri()
    )
    command = [node, "--input-type=module", "-e", script]
    run = subprocess.run(command, input=json.dumps(given), capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def settings_within(number: int) -> SamplingParams:
    """Settings whose cuts, if any, fall among the TOP largest logits of `logits_of(3)`."""
    draw = random.Random(number)
    return SamplingParams(
        temperature=draw.choice([0, 0.3, 0.5, 0.7, 1, 1.3, 2]) if number % 4 else 1,
        top_k=draw.choice([0, 1, 3, 40, 128]) if number % 2 else 0,
        top_p=draw.choice([1, 0, 0.05, 0.2]) if number % 3 else 1,
        min_p=draw.choice([0, 0.5, 0.1, 1]) if number % 5 else 0,
    )


def test_it_is_the_engines_distribution_at_any_settings() -> None:
    cases = [(logits_of(3, seed), settings_within(seed)) for seed in range(60)]
    for found, (logits, sampling) in zip(shapes(cases), cases, strict=True):
        ids, exact = Distribution(logits, sampling, whole=True).probabilities()
        order = np.argsort(-logits, kind="stable")
        whole = np.zeros(VOCABULARY)
        whole[ids] = exact
        assert np.allclose(found["shares"], whole[order[:TOP]], rtol=1e-4, atol=1e-12), sampling
        assert found["rest"] == pytest.approx(whole[order[TOP:]].sum(), rel=1e-4, abs=1e-9)
        assert found["others"] == pytest.approx(whole[order[TOP : TOP + 500]], rel=1e-4, abs=1e-12)
        assert found["kept"] == ids.size
        assert not found["approximate"]
        positive = exact[exact > 0]
        assert found["bits"] == pytest.approx(-(positive * np.log2(positive)).sum(), rel=1e-4, abs=1e-9)
        covering = int(np.searchsorted(np.cumsum(exact), 0.9) + 1)
        assert found["covering"] == pytest.approx(covering, rel=0.01)
        if covering <= TOP:
            assert found["covering"] == covering


@pytest.mark.parametrize("temperature", [0.3, 0.7, 1, 2, 5])
@pytest.mark.parametrize("spread", [0.5, 2, 6])
def test_everything_else_is_exact_at_every_temperature(temperature: float, spread: float) -> None:
    logits = logits_of(spread)
    [found] = shapes([(logits, SamplingParams(temperature=temperature))])
    z = (np.sort(logits)[::-1].astype(np.float64) - float(logits.max())) / temperature
    weights = np.exp(z)
    assert found["rest"] == pytest.approx(weights[TOP:].sum() / weights.sum(), rel=1.3e-5, abs=0)
    assert found["sum"] == pytest.approx(weights.sum(), rel=1.3e-5)


@pytest.mark.parametrize("cut", [{"top_k": 1000}, {"top_p": 0.9}, {"min_p": 0.02}, {"top_k": 5000, "top_p": 0.5}])
def test_a_cut_in_the_tail_says_that_it_is_approximate(cut: dict[str, Any]) -> None:
    logits, sampling = logits_of(1), SamplingParams(**cut)
    [found] = shapes([(logits, sampling)])
    ids, exact = Distribution(logits, sampling, whole=True).probabilities()
    assert found["approximate"]
    assert found["kept"] == pytest.approx(ids.size, rel=0.05)
    assert found["rest"] == pytest.approx(exact[TOP:].sum(), rel=0.02)


def test_a_tie_is_cut_as_the_engine_cuts_it() -> None:
    logits = np.full(VOCABULARY, -20, np.float32)
    logits[[7, 3, 9, 5]] = [2, 1, 1, 1]
    for sampling in (SamplingParams(top_k=3), SamplingParams(top_p=0.5), SamplingParams(min_p=math.exp(-1))):
        [found] = shapes([(logits, sampling)])
        ids, exact = Distribution(logits, sampling, whole=True).probabilities()
        assert found["shares"][: ids.size] == pytest.approx(exact)
        assert sum(found["shares"]) + found["rest"] == pytest.approx(1)
