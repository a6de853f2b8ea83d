"""Results on a GPU match the CPU runtime within float rounding. Run with `pytest -m gpu`; skipped without a GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import nextword

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
IDS = [5, 17, 90, 33, 21, 64, 8, 120, 200, 77]


@pytest.fixture(scope="module", params=["transformer", "lstm"])
def pair(request: pytest.FixtureRequest, tiny_model: Callable[..., Path]) -> tuple[Any, Any]:
    """The same float32 weights on the CPU and on the GPU."""
    folder = tiny_model(request.param)
    return tuple(nextword.load(folder, dtype="float32", device=device) for device in ("cpu", "cuda"))  # type: ignore


def test_logits_equal_those_of_the_cpu_runtime(pair: tuple[Any, Any]) -> None:
    expected, found = (model.engine.logits(IDS) for model in pair)
    assert expected.std() > 0.1
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_scores_equal_those_of_the_cpu_runtime(pair: tuple[Any, Any]) -> None:
    expected, found = ([token.logprob for token in model.logprobs(IDS).tokens[1:]] for model in pair)
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_greedy_completions_of_many_prompts_equal_those_of_the_cpu_runtime(pair: tuple[Any, Any]) -> None:
    prompts = [IDS[:length] for length in range(1, 8)]
    expected, found = ([one.ids for one in model.complete_all(prompts, temperature=0, max_tokens=40)] for model in pair)
    assert found == expected


def test_a_row_of_a_batch_equals_the_row_alone_within_rounding(pair: tuple[Any, Any]) -> None:
    _, model = pair
    prompts = [IDS[:length] for length in range(1, 9)]
    together = model.complete_all(prompts, temperature=0, max_tokens=1)
    for prompt, row in zip(prompts, together, strict=True):
        alone = model.complete(prompt, temperature=0, max_tokens=1)
        assert row.tokens[0].logprob == pytest.approx(alone.tokens[0].logprob, abs=1e-4)


def test_replayed_graphs_equal_eager_decoding(tiny_model: Callable[..., Path]) -> None:
    from nextword.models.backend import TorchBackend
    from nextword.models.cuda import GraphedPages
    from nextword.models.paged import KeyValuePages
    from nextword.models.weights import load_torch_model
    from nextword.weights.loading import open_source
    from paged import Paged, grow

    model = load_torch_model(open_source(tiny_model()), torch.float32, "cuda")
    graphed, eager = TorchBackend(model), TorchBackend(model)
    assert isinstance(graphed.pages, GraphedPages)
    eager.pages = KeyValuePages(model, eager.page_size)  # type: ignore[arg-type]
    tokens = torch.randint(0, 257, (5, 100), generator=torch.Generator().manual_seed(1))
    found, expected = (grow(Paged(backend), tokens) for backend in (graphed, eager))
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)


def test_bfloat16_completes_and_keeps_the_norms_in_float32(tiny_model: Callable[..., Path]) -> None:
    model = nextword.load(tiny_model(), device="cuda")
    assert model.loaded.precision == "bfloat16"
    exact = nextword.load(tiny_model(), dtype="float32", device="cpu")
    np.testing.assert_allclose(model.engine.logits(IDS), exact.engine.logits(IDS), atol=0.05)
    assert len(model.complete(IDS, max_tokens=5, temperature=0).tokens) == 5
