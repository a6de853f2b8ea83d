"""A model's results are the same bits alone or among others: any chunks, pages, threads, preemption, drafts."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

import pytest
import torch
from fake_backend import FakeTokenizer
from schedules import run_schedule, unpaused

from handle_results import result
from nextword import native
from nextword.engine import Engine
from nextword.engine.request import AnyRequest
from nextword.models import Model, build
from nextword.runtime import CpuBackend
from nextword.spec import ExpertsSpec, ModelSpec

pytestmark = [
    pytest.mark.skipif(not native.available(), reason="the compiled kernels were not built"),
    pytest.mark.usefixtures("kernels_restored"),
]

VOCABULARY = 40
GEMMA = {"windows": (9, 0), "attention_softcap": 20.0, "logit_softcap": 10.0, "norm_place": "both"}
SPECS = {
    "float32": ModelSpec("transformer", VOCABULARY, 32, 2, 64, heads=4, kv_heads=2, head_width=8, mlp_width=48),
    "odd widths": ModelSpec("transformer", 43, 36, 2, 64, heads=3, kv_heads=1, head_width=12, mlp_width=50),
    "window and softcap": ModelSpec(
        "transformer", VOCABULARY, 32, 2, 64, heads=4, kv_heads=4, head_width=8, mlp_width=48, **GEMMA
    ),
    "experts": ModelSpec(
        "transformer", VOCABULARY, 32, 2, 64, heads=4, kv_heads=2, head_width=8, experts=ExpertsSpec(5, 2, 16)
    ),
    "rnn": ModelSpec("rnn", VOCABULARY, 20, 2, 64),
    "lstm": ModelSpec("lstm", VOCABULARY, 24, 2, 64),
    "gru": ModelSpec("gru", VOCABULARY, 17, 1, 64),
}


@cache
def model_of(kind: str) -> Model:
    torch.manual_seed(2)
    model = build(SPECS[kind]).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.mul_(3)  # far from flat
    return model


def engine_of(model: Model, pages: int, page_size: int | None = None, **limits: int) -> Engine:
    arrays = {name: parameter.numpy() for name, parameter in model.named_parameters()}
    backend = CpuBackend.from_arrays(model.spec, arrays, page_size=page_size)
    return Engine(backend, FakeTokenizer(), cache_bytes=pages * backend.page_bytes, **limits)  # type: ignore[arg-type]


def alone(model: Model, request: AnyRequest) -> Any:
    """What one request gives when nothing else runs, its prompt read at once on one thread."""
    native.set_threads(1)
    return result(engine_of(model, 64).submit(unpaused(request)).wait())


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", SPECS)
def test_every_request_of_a_random_schedule_gives_the_bits_it_gives_alone(kind: str, seed: int) -> None:
    rng, model = random.Random(seed), model_of(kind)
    native.set_threads(rng.choice([1, 2]))
    page_size = rng.choice([8, 16, 32])
    engine = engine_of(
        model, rng.choice([60, 90, 300]) // page_size + 5, page_size,
        step_tokens=rng.choice([1, 3, 8, 16, 64]), max_sequences=rng.choice([1, 3, 8]),
    )  # fmt: skip
    handles = run_schedule(engine, rng, VOCABULARY)
    finished = [handle for handle in handles if not handle.cancelled]
    assert len(finished) > 3
    for handle in finished:
        assert result(handle) == alone(model, handle.request)
    assert (engine.pages_used, engine.sequences_under_way) == (0, 0)
