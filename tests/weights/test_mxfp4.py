"""gpt-oss as it is published: the experts' matrices in MXFP4. The oracle is transformers' own dequantizer."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from family_cases import CASES, Case, saved
from nextword.base import UsageError
from nextword.weights.describe import describe
from nextword.weights.loading import open_source
from nextword.weights.mxfp4 import dequantize, gguf_rows
from torch_models import torch_model

pytest.importorskip("transformers")
CASE = Case("gpt_oss", CASES["gpt_oss"].settings)


def packed(experts: int, rows: int, columns: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randint(0, 256, (experts, rows, columns // 32, 16), generator=generator, dtype=torch.uint8)
    scales = torch.randint(122, 126, (experts, rows, columns // 32), generator=generator, dtype=torch.uint8)
    return blocks, scales


def theirs(blocks: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """(experts, columns, rows), as transformers keeps them."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    return convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)


def test_every_number_is_that_of_transformers() -> None:
    blocks = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 1, 16)
    scales = torch.arange(60, 220, 10, dtype=torch.uint8).reshape(1, 16, 1)
    numbers = torch.from_numpy(dequantize(blocks.numpy(), scales.numpy()))
    assert torch.equal(numbers.mT, theirs(blocks, scales))


def test_ggufs_blocks_of_a_matrix_hold_the_same_numbers() -> None:
    blocks, scales = (tensor.numpy() for tensor in packed(3, 4, 64))
    rows = gguf_rows(blocks, scales)
    np.testing.assert_array_equal(
        gguf.quants.dequantize(rows, gguf.GGMLQuantizationType.MXFP4).reshape(3, 4, 64), dequantize(blocks, scales)
    )


@torch.inference_mode()
def test_a_folder_in_mxfp4_gives_the_logits_of_the_dequantized_model(tmp_path: Path) -> None:
    model, folder = saved(CASE, tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    for layer, block in enumerate(model.model.layers):
        for name, rows, columns in (("gate_up_proj", 192, 64), ("down_proj", 64, 96)):
            blocks, scales = packed(4, rows, columns, layer)
            key = f"model.layers.{layer}.mlp.experts.{name}"
            del tensors[key]
            tensors |= {f"{key}_blocks": blocks, f"{key}_scales": scales}
            getattr(block.mlp.experts, name).copy_(theirs(blocks, scales))
    save_file(tensors, folder / "model.safetensors")
    tokens = torch.randint(1, 256, (2, 40), generator=torch.Generator().manual_seed(2))
    ours = torch_model(folder)
    torch.testing.assert_close(ours(tokens), model(tokens).logits, atol=1e-4, rtol=0)

    described = describe(folder)
    assert described.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert {kind.kind: kind.bytes for kind in described.kinds()}["mxfp4"] == 4 * 4 * (192 * 64 + 64 * 96) * 17 / 32

    lost = {name: tensor for name, tensor in tensors.items() if not name.endswith("0.mlp.experts.down_proj_scales")}
    save_file(lost, folder / "model.safetensors")
    with pytest.raises(UsageError, match=r"1 of \d+ tensors \('layers\.0\.mlp\.experts\.down_proj'\) is missing"):
        open_source(folder)
