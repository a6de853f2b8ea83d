"""A mixture of experts against every expert computed for every token; attention sinks against a softmax by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nextword.base import UsageError
from nextword.models import build
from nextword.models.experts import Experts
from nextword.models.transformer import Attention
from nextword.plan import parameters
from nextword.spec import ExpertsSpec, ModelSpec

BASE = ModelSpec("transformer", 61, 16, 2, 24, heads=4, kv_heads=2, head_width=8, mlp_width=44)


def spec_with(experts: ExpertsSpec, **changes: object) -> ModelSpec:
    return ModelSpec.from_dict(BASE.to_dict() | {"experts": experts} | changes)


def drawn(module: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5, generator=generator)
    return module


def densely(experts: Experts, x: Tensor, normalize: bool) -> Tensor:
    """Oracle: a softmax over all experts, the weights of all but the top two set to zero, every expert computed."""
    probs = (x @ experts.router.weight.t() + experts.router.bias).softmax(-1)
    weights = probs * (probs >= probs.topk(2).values[:, -1:])
    if normalize:
        weights = weights / weights.sum(-1, keepdim=True)
    gate, up = (torch.einsum("td,eid->tei", x, experts.up) + experts.up_bias).chunk(2, -1)
    assert experts.down_bias is not None
    outputs = torch.einsum("tei,edi->ted", F.silu(gate) * up, experts.down) + experts.down_bias
    return (weights[..., None] * outputs).sum(1)


@pytest.mark.parametrize("normalize", [True, False])
def test_each_token_gets_its_top_experts_weighted_by_the_router(normalize: bool) -> None:
    settings = ExpertsSpec(5, 2, 12, normalize=normalize, bias=True)
    experts = drawn(Experts(spec_with(settings), settings))
    x = torch.randn(3, 7, 16, generator=torch.Generator().manual_seed(0))
    expected = densely(experts, x.flatten(0, 1), normalize).view_as(x)  # type: ignore[arg-type]
    torch.testing.assert_close(experts(x), expected, atol=1e-5, rtol=1e-5)


def test_a_token_is_routed_the_same_alone_and_among_others() -> None:
    settings = ExpertsSpec(5, 2, 12)
    experts = drawn(Experts(spec_with(settings), settings))
    x = torch.randn(1, 9, 16, generator=torch.Generator().manual_seed(0))
    alone = torch.cat([experts(x[:, place : place + 1]) for place in range(9)], 1)
    torch.testing.assert_close(experts(x), alone, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("settings", [ExpertsSpec(4, 2, 12, bias=True), ExpertsSpec(3, 1, 20, dense_layers=1)])
def test_the_parameters_are_those_that_the_plan_counts(settings: ExpertsSpec) -> None:
    spec = spec_with(settings, attention_sinks=True)
    assert sum(parameter.numel() for parameter in build(spec).parameters()) == parameters(spec).total


def test_what_only_plans_know_is_refused() -> None:
    with pytest.raises(UsageError, match="shared experts and routing bias"):
        build(spec_with(ExpertsSpec(4, 2, 12, shared=1, correction_bias=True)))


def test_sinks_take_a_share_of_the_attention_and_give_nothing() -> None:
    attention = Attention(spec_with(ExpertsSpec(2, 1, 8), attention_sinks=True), 0)
    assert attention.sinks is not None
    attention.sinks.data = torch.tensor([0.5, -1.0, 2.0, 0.0])
    generator = torch.Generator().manual_seed(0)
    queries, keys, values = (torch.randn(1, heads, 5, 8, generator=generator) for heads in (4, 2, 2))
    mask = torch.ones(5, 5, dtype=torch.bool).tril()[None, None]
    found = attention.scaled_dot_product(queries, keys, values, mask)
    for head in range(4):
        for query in range(5):
            scores = keys[0, head // 2, : query + 1] @ queries[0, head, query] / 8**0.5
            shares = scores.exp() / (scores.exp().sum() + attention.sinks[head].exp())
            torch.testing.assert_close(found[0, head, query], shares @ values[0, head // 2, : query + 1])
