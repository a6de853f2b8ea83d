"""Every GGUF architecture: tensors named, permuted and folded as llama.cpp's converter does, read and converted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from family_cases import Case, saved
from family_gguf import ARCHITECTURES, factors, write_gguf
from nextword.base import UsageError
from nextword.weights.conversion import convert
from nextword.weights.gguf import GGUFFile
from nextword.weights.loading import open_source
from torch_models import torch_model

pytest.importorskip("transformers")


@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.inference_mode()
def test_a_gguf_gives_transformers_logits_and_converts_to_a_folder_and_back(name: str, tmp_path: Path) -> None:
    import transformers

    case, path = ARCHITECTURES[name], tmp_path / "tiny.gguf"
    theirs, original = saved(case, tmp_path / "original")
    write_gguf(path, case.gguf, theirs, load_file(original / "model.safetensors"), factors(case))
    tokens = torch.randint(1, 256, (2, 40), generator=torch.Generator().manual_seed(2))  # no two experts near a tie
    expected = theirs(tokens).logits
    ours = torch_model(path)
    torch.testing.assert_close(ours(tokens), expected, atol=1e-4, rtol=0)

    folder = convert(path, tmp_path / "folder")
    reopened = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    torch.testing.assert_close(reopened(tokens).logits, expected, atol=1e-4, rtol=0)
    again = convert(folder, tmp_path / "again.gguf")
    assert open_source(again).spec == open_source(folder).spec
    first, second = GGUFFile.open(path), GGUFFile.open(again)  # llama.cpp's own names, orders and keys
    assert second.architecture == first.architecture or name == "phi3"  # written as a llama, which it equals
    if second.architecture == first.architecture:
        assert second.tensors.keys() == first.tensors.keys()
        assert all(np.array_equal(second.float32(tensor), first.float32(tensor)) for tensor in first.tensors)
        shared = first.metadata.keys() & second.metadata.keys()
        assert {key: second.metadata[key] for key in shared} == {key: first.metadata[key] for key in shared}


def write_llama(path: Path, extra: dict[str, np.ndarray], **settings: Any) -> Any:
    """A small Llama with `extra` tensors; returns transformers' model."""
    theirs, folder = saved(Case("llama", settings), path.with_suffix(".folder"))
    write_gguf(path, "llama", theirs, load_file(folder / "model.safetensors"), extra)
    return theirs


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        (["blk.0.attn_q.bias"], r"1 of 40 tensors \('blk.0.attn_q.bias'\) is unused"),
        (
            [f"blk.{n}.attn_{part}.bias" for n in range(4) for part in "qkv"],
            r"12 of 51 tensors \('blk.0.attn_q.b.*, \.\.\.\) are unused",
        ),
        (["blk.4.attn_norm.weight"], "'blk.4.attn_norm.weight'"),
    ],
)
def test_tensors_that_the_metadata_does_not_tell_of_are_refused(extra: list[str], named: str, tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_llama(path, dict.fromkeys(extra, np.ones(64, np.float32)))
    with pytest.raises(UsageError, match=named) as refused:
        open_source(path)
    assert "\n" not in str(refused.value)


def divisors(factor: float, context: float = 8192) -> np.ndarray:
    """What llama.cpp's converter stores of Llama 3.1's scaling (LlamaModel.generate_extra_tensors)."""
    found = []
    for pair in range(8):
        wavelength = 2 * np.pi * 10_000 ** (pair / 8)
        if wavelength < context / 4:
            found.append(1.0)
        elif wavelength > context:
            found.append(factor)
        else:
            smooth = (context / wavelength - 1) / 3
            found.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(found, np.float32)


@pytest.mark.parametrize("factor", [8.0, 32.0])
@torch.inference_mode()
def test_positions_that_the_file_stretches_as_llama_3_are_stretched(factor: float, tmp_path: Path) -> None:
    scaling = {"rope_type": "llama3", "rope_theta": 10_000.0, "factor": factor, "low_freq_factor": 1.0,
               "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}  # fmt: skip
    tokens = torch.randint(1, 256, (2, 120), generator=torch.Generator().manual_seed(1))
    theirs = write_llama(tmp_path / "tiny.gguf", {"rope_freqs.weight": divisors(factor)}, rope_parameters=scaling)
    ours = torch_model(tmp_path / "tiny.gguf")
    torch.testing.assert_close(ours(tokens), theirs(tokens).logits, atol=1e-4, rtol=0)

    plain = write_llama(tmp_path / "plain.gguf", {"rope_freqs.weight": np.ones(8, np.float32)})
    ours = torch_model(tmp_path / "plain.gguf")
    torch.testing.assert_close(ours(tokens), plain(tokens).logits, atol=1e-4, rtol=0)
    assert (plain(tokens).logits - theirs(tokens).logits).abs().max() > 1e-2  # the factors matter


def test_positions_stretched_in_another_way_are_refused(tmp_path: Path) -> None:
    odd = {"rope_freqs.weight": np.linspace(1, 3, 8, dtype=np.float32)}
    write_llama(tmp_path / "tiny.gguf", odd)
    with pytest.raises(UsageError, match=r"rope_freqs\.weight.*safetensors"):
        open_source(tmp_path / "tiny.gguf")
