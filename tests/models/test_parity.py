"""Our transformer against transformers': the same random weights give the same logits, for every family."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from family_cases import CASES, saved
from nextword.models import prepare
from nextword.models.backend import TorchBackend
from nextword.models.weights import load_torch_model
from nextword.weights.loading import open_source
from paged import Paged, grow

pytest.importorskip("transformers")


@pytest.fixture(scope="module", params=CASES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """(transformers' model, ours) with the same weights, ours through the files that transformers wrote."""
    theirs, folder = saved(CASES[request.param], tmp_path_factory.mktemp("model"))
    return theirs, load_torch_model(open_source(folder))


def tokens_of(batch: int, time: int) -> torch.Tensor:
    return torch.randint(1, 97, (batch, time), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("batch", [1, 4])
@torch.inference_mode()
def test_logits_equal_transformers(pair: tuple[Any, Any], batch: int) -> None:
    theirs, ours = pair
    tokens = tokens_of(batch, 50)
    expected = theirs(tokens).logits
    assert expected.std() > 0.1  # a flat output would agree with anything
    torch.testing.assert_close(ours(tokens), expected, atol=1e-4, rtol=0)


@torch.inference_mode()
def test_logits_of_sequences_that_grow_side_by_side_over_pages_equal_transformers(pair: tuple[Any, Any]) -> None:
    theirs, ours = pair
    tokens = tokens_of(3, 50)
    torch.testing.assert_close(grow(Paged(TorchBackend(ours)), tokens), theirs(tokens).logits, atol=1e-4, rtol=0)


@torch.inference_mode()
def test_left_padded_transformers_batch_equals_ours(pair: tuple[Any, Any]) -> None:
    theirs, ours = pair
    tokens = tokens_of(2, 12)
    padded = tokens.clone()
    padded[1, :5] = 0
    attention = torch.ones_like(padded)
    attention[1, :5] = 0
    positions = (attention.cumsum(-1) - 1).clamp(min=0)
    expected = theirs(padded, attention_mask=attention, position_ids=positions).logits[1, 5:]
    torch.testing.assert_close(ours(tokens[1:, 5:])[0], expected, atol=1e-4, rtol=0)


def test_gradients_equal_transformers(pair: tuple[Any, Any]) -> None:
    theirs, ours = pair
    tokens = tokens_of(2, 20)
    losses = []
    prepare(ours.requires_grad_(True), "train")
    for logits in (theirs(tokens).logits, ours(tokens)):
        losses.append(torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()))
        losses[-1].backward()
    norms = []
    for model in (theirs, ours):
        norms.append(torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm())
        model.zero_grad()
    prepare(ours.requires_grad_(False), "eager")
    torch.testing.assert_close(losses[1], losses[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(norms[1], norms[0], rtol=1e-3, atol=0)
