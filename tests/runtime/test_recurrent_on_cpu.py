"""Recurrent networks on the CPU backend: states against torch's modules, gates at their limits, any schedule."""

from __future__ import annotations

import copy
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from models_in_memory import arrays_of, backend_over, model_of
from torch import nn

from nextword import native
from nextword.models import Recurrent
from nextword.runtime import CpuBackend
from nextword.spec import ModelSpec
from paged import Paged

pytestmark = [
    pytest.mark.skipif(not native.available(), reason="the compiled kernels were not built"),
    pytest.mark.usefixtures("kernels_restored"),
]
KINDS: tuple[Any, ...] = ("rnn", "lstm", "gru")
LENGTHS = (45, 20, 8, 1)


def spec_of(kind: Any, width: int, layers: int = 2) -> ModelSpec:
    return ModelSpec(kind, 43, width, layers, 64)


def tokens_of(lengths: tuple[int, ...] = LENGTHS) -> list[list[int]]:
    draw = np.random.default_rng(0)
    return [draw.integers(0, 43, length).tolist() for length in lengths]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("width", "layers"), [(1, 2), (13, 1), (50, 3), (64, 2)])
def test_states_after_every_page_equal_torchs(instructions: str, kind: Any, width: int, layers: int) -> None:
    model, tokens = model_of(spec_of(kind, width, layers)), tokens_of()
    assert isinstance(model, Recurrent)
    paged = Paged(backend_over(model, page_size=8))
    paged.read(dict(enumerate(tokens)))
    exact = copy.deepcopy(model).double()
    for sequence, text in enumerate(tokens):
        for page, number in enumerate(paged.tables[sequence]):
            state = exact.new_state(1)
            exact.hidden(torch.tensor([text[: 8 * (page + 1)]]), state=state)
            for found, expected in zip(paged.backend.pages.pool, state.tensors, strict=True):  # type: ignore[attr-defined]
                np.testing.assert_allclose(found[:, number], expected[:, 0].numpy(), rtol=1e-5, atol=1e-5)


def random_pieces(seed: int, tokens: list[list[int]]) -> list[dict[int, list[int]]]:
    """Every sequence cut into chunks, which meet others by chance and in any order."""
    rng, done, steps = random.Random(seed), [0] * len(tokens), []
    while any(at < len(text) for at, text in zip(done, tokens, strict=True)):
        step = {}
        for sequence in rng.sample(range(len(tokens)), len(tokens)):
            piece = tokens[sequence][done[sequence] : done[sequence] + rng.choice([1, 1, 3, 8, 16, 40])]
            if piece and rng.random() < 0.6:
                step[sequence] = piece
                done[sequence] += len(piece)
        if step:
            steps.append(step)
    return steps


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [13, 64, 150])
def test_a_token_gets_the_same_bits_in_any_schedule(instructions: str, kind: Any, width: int) -> None:
    model, tokens = model_of(spec_of(kind, width)), tokens_of()
    native.set_threads(1)
    alone = [Paged(backend_over(model)).read({0: text})[0] for text in tokens]
    for seed in range(6):
        native.set_threads(1 + seed % 2)
        paged, found = Paged(backend_over(model, page_size=(8, 1, 5)[seed % 3]), 200), [[] for _ in tokens]
        for step in random_pieces(seed, tokens):
            for sequence, logits in paged.read(step).items():
                found[sequence].append(logits)
        assert all(torch.equal(torch.cat(parts), own) for parts, own in zip(found, alone, strict=True))


def test_many_sequences_over_several_threads_get_the_bits_of_one() -> None:
    """Enough units for the gates, too, to be shared out, at borders that fall anywhere in a row."""
    model = model_of(spec_of("lstm", 333, 1))
    native.set_threads(2)
    together = Paged(backend_over(model), 80).read({number: [number % 43] for number in range(70)})
    native.set_threads(1)
    for number in range(70):
        assert torch.equal(Paged(backend_over(model), 1).read({0: [number % 43]})[0], together[number])


@pytest.mark.parametrize("kind", KINDS)
def test_gates_are_exact_near_zero_and_saturate_where_exp_would_overflow(instructions: str, kind: Any) -> None:
    sizes = torch.tensor([1e-6, 1e-3, 0.1, 0.62, 0.63, 1.0, 5.0, 30.0, 90.0, 1e4, 1e30])
    model = model_of(ModelSpec(kind, 22, 1, 1, 64, tied=False))
    assert isinstance(model, Recurrent)
    for name, parameter in model.recurrent.named_parameters():
        nn.init.constant_(parameter, float(name == "weight_ih_l0"))
    model.embedding.weight[:, 0] = torch.cat((sizes, -sizes))
    paged = Paged(CpuBackend.from_arrays(model.spec, arrays_of(model)))
    batch = replace(paged.batch({number: [number] for number in range(22)}), hidden_rows=np.arange(22))
    hidden = paged.backend.forward(batch).hidden
    expected = copy.deepcopy(model).double().hidden(torch.arange(22)[:, None])[:, 0].numpy()
    atol = 2e-7 if kind == "gru" else 1e-37  # a GRU, torch's as well, subtracts candidates from candidates
    np.testing.assert_allclose(hidden, expected, rtol=1e-6, atol=atol)


def test_a_nan_stays_in_its_own_sequence_and_behind_itself(instructions: str) -> None:
    model, tokens = model_of(ModelSpec("gru", 43, 20, 2, 64, tied=False)), tokens_of()
    model.embedding.weight[42] = torch.nan
    tokens = [[token % 42 for token in text] for text in tokens]
    tokens[0][30] = 42
    logits = Paged(backend_over(model)).read(dict(enumerate(tokens)))
    assert logits[0][30:].isnan().all()
    assert logits[0][:30].isfinite().all()
    assert all(logits[sequence].isfinite().all() for sequence in (1, 2, 3))
