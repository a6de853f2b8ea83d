"""Our transformer against transformers': the same random weights give the same logits, for every family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from paged import Paged

from nextword.models import prepare
from nextword.models.backend import TorchBackend
from nextword.weights import load_model, open_source

transformers = pytest.importorskip("transformers")

SMALL: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 112,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "attn_implementation": "eager",
    "pad_token_id": 0,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}
YARN_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": (
        "gpt2",
        {"vocab_size": 97, "n_embd": 48, "n_layer": 3, "n_head": 4, "n_positions": 128, "initializer_range": 0.2},
    ),
    "gpt_neox": ("gpt_neox", {**SMALL, "rotary_pct": 0.25, "num_attention_heads": 3}),
    "gpt_neox serial": ("gpt_neox", {**SMALL, "use_parallel_residual": False}),
    "llama": ("llama", SMALL),
    "llama tied with biases": (
        "llama",
        {**SMALL, "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
    ),
    "llama wide heads": ("llama", {**SMALL, "head_dim": 16}),
    "llama llama3 rope": ("llama", {**SMALL, "rope_parameters": LLAMA3_ROPE}),
    "llama linear rope": (
        "llama",
        {**SMALL, "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}},
    ),
    "llama yarn rope": ("llama", {**SMALL, "rope_parameters": YARN_ROPE}),
    "mistral window": ("mistral", {**SMALL, "sliding_window": 7}),
    "qwen2": ("qwen2", SMALL),
    "qwen2 window": (
        "qwen2",
        {**SMALL, "use_sliding_window": True, "sliding_window": 6, "max_window_layers": 2},
    ),
    "qwen3": ("qwen3", {**SMALL, "head_dim": 16}),
    "gemma2": ("gemma2", {**SMALL, "head_dim": 16, "sliding_window": 7, "query_pre_attn_scalar": 20}),
    "gemma3": ("gemma3_text", {**SMALL, "head_dim": 16, "sliding_window": 7, "query_pre_attn_scalar": 20}),
    "olmo2": ("olmo2", SMALL),
}


@pytest.fixture(scope="module", params=CASES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """(transformers' model, ours) with the same weights, ours through the files that transformers wrote."""
    kind, settings = CASES[request.param]
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **settings)
    theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():  # norms and biases start at one and zero, which would hide a mix-up
        for parameter in theirs.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    folder: Path = tmp_path_factory.mktemp(kind)
    theirs.save_pretrained(folder)
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
