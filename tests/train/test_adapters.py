"""Adapters written for peft: on the model that transformers opens they compute what the trained model computes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from family_cases import CASES, saved
from nextword.base import UsageError
from nextword.models.weights import load_torch_model
from nextword.train.lora import LoRALinear, add_adapters, peft_adapters
from nextword.weights.loading import open_source
from nextword.weights.safetensors_file import write_safetensors

FAMILIES = ("llama", "gpt2", "gpt_neox", "phi3", "gemma2", "qwen3", "olmo2")  # separate, fused and transposed matrices


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's own
@pytest.mark.parametrize("name", [name for name in FAMILIES if name in CASES])
def test_peft_opens_the_adapters_with_the_logits_of_the_trained_model(name: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    base, folder = saved(CASES[name], tmp_path / "base")
    source = open_source(folder)
    ours = load_torch_model(source)
    ids = torch.randint(0, ours.spec.vocabulary, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = ours(ids).clone()
        add_adapters(ours, 3, seed=1)
        for module in ours.modules():
            if isinstance(module, LoRALinear):
                nn.init.normal_(module.up, std=0.1)
        wanted = ours(ids)
    config, tensors = peft_adapters(ours, ours.spec, source.family, str(folder))
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    write_safetensors(adapter / "adapter_model.safetensors", tensors, "float32")
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    theirs = peft.PeftModel.from_pretrained(base, adapter).eval()
    with torch.no_grad():
        found = theirs(ids).logits
    assert float((wanted - before).abs().max()) > 0.01  # the adapters matter
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


def test_a_mixture_of_experts_says_what_to_export_instead(tmp_path: Path) -> None:
    _, folder = saved(CASES["mixtral"], tmp_path / "base")
    source = open_source(folder)
    model = load_torch_model(source)
    with pytest.raises(UsageError, match="export the merged model"):
        peft_adapters(model, model.spec, source.family, "base")
