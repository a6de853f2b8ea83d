"""Our transformer against transformers': the same random weights give the same logits, for every family."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from paged import Paged

from family_cases import CASES, saved
from nextword.models import prepare
from nextword.models.backend import TorchBackend
from nextword.weights.loading import load_model, open_source

pytest.importorskip("transformers")


@pytest.fixture(scope="module", params=CASES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """(transformers' model, ours) with the same weights, ours through the files that transformers wrote."""
    theirs, folder = saved(CASES[request.param], tmp_path_factory.mktemp("model"))
    return theirs, load_model(open_source(folder), "float32", "cpu")


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


@pytest.mark.parametrize("compiled", [True, False])
@torch.inference_mode()
def test_logits_of_sequences_that_grow_side_by_side_over_pages_equal_transformers(
    pair: tuple[Any, Any], compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, ours = pair
    if not compiled:
        monkeypatch.setattr("nextword.native.available", lambda: False)
    prepare(ours, "infer")
    paged, tokens = Paged(TorchBackend(ours)), tokens_of(3, 50).tolist()
    # chunks and single tokens in one step, one sequence later than the others, pages full and not
    ends = [(9, 1, 0), (10, 2, 0), (24, 40, 33), *((25 + n, 41 + n, 34 + n) for n in range(9)), (50, 50, 50)]
    begins = [(0, 0, 0), *ends]
    logits: dict[int, list[torch.Tensor]] = {0: [], 1: [], 2: []}
    for begin, end in zip(begins, ends, strict=False):
        pieces = {n: tokens[n][begin[n] : end[n]] for n in range(3) if end[n] > begin[n]}
        for number, part in paged.read(pieces).items():
            logits[number].append(part)
    expected = theirs(torch.tensor(tokens)).logits
    found = torch.stack([torch.cat(parts) for parts in logits.values()])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


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
    prepare(ours.requires_grad_(False), "infer")
    torch.testing.assert_close(losses[1], losses[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(norms[1], norms[0], rtol=1e-3, atol=0)
