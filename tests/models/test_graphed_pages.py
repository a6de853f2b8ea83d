"""The fixed-shape decoding of GPUs, run eagerly on the CPU, gives the logits of plain paged attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nextword.models import Transformer, build
from nextword.models.backend import TorchBackend
from nextword.models.cuda import GraphedPages
from nextword.spec import ExpertsSpec, ModelSpec
from paged import Paged, grow

SPECS: dict[str, dict[str, Any]] = {
    "llama": {},
    "windows": {"windows": (9, 0), "norm_place": "both"},
    "softcap": {"attention_softcap": 20.0, "logit_softcap": 10.0},
    "sinks": {"attention_sinks": True},
    "scaled embedding": {"embedding_scale": 5.6},
    "query and key norms": {"qk_norm": "head"},
    "learned positions": {"position": "learned"},
    "experts": {"experts": ExpertsSpec(count=4, active=2, width=24)},
}


def backends(kind: str) -> tuple[TorchBackend, TorchBackend]:
    """A plain backend, and one with a GPU's pages, over the same model."""
    torch.manual_seed(2)
    spec = ModelSpec("transformer", 40, 32, 2, 64, heads=4, kv_heads=2, head_width=8, mlp_width=48, **SPECS[kind])
    model = build(spec).eval().requires_grad_(False)
    assert isinstance(model, Transformer)
    for parameter in model.parameters():
        parameter.mul_(2)  # far from flat
    plain, graphed = TorchBackend(model, page_size=8), TorchBackend(model, page_size=8)
    graphed.pages = GraphedPages(model, 8)
    graphed.copy_page = graphed.pages.copy_page
    return plain, graphed


@pytest.mark.parametrize("kind", SPECS)
def test_logits_of_chunks_and_single_tokens_equal_those_of_plain_pages(kind: str) -> None:
    tokens = torch.randint(0, 40, (5, 40), generator=torch.Generator().manual_seed(1))
    expected, found = (grow(Paged(backend), tokens) for backend in backends(kind))
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)


def test_the_unused_rows_of_a_step_write_to_no_page_of_a_sequence() -> None:
    _, graphed = backends("llama")
    paged = Paged(graphed, pages=3)  # all of them are in use
    paged.read({number: [number] * 7 for number in range(3)})
    assert isinstance(graphed.pages, GraphedPages)
    before = graphed.pages.keys[0][:3].clone()
    paged.read({number: [number] for number in range(3)})  # a step of four rows
    changed = (graphed.pages.keys[0][:3] != before).any(3).any(1)  # (pages, page_size)
    assert changed.nonzero()[:, 1].tolist() == [7, 7, 7]
