"""The mixes of quantized files: llama.cpp's types, tensor by tensor, and files that llama.cpp opens."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest

import nextword
from gguf_files import dequantized, write_llama
from llama_cpp_server import llama_cpp
from nextword import native
from nextword.base import UsageError
from nextword.families.names import gguf_names
from nextword.spec import ExpertsSpec, ModelSpec
from nextword.weights.conversion import convert
from nextword.weights.gguf import GGUFFile
from nextword.weights.quantizing import MIXES, fitting, quantized_type

WIDE = ModelSpec(kind="transformer", vocabulary=300, width=256, layers=32, context=128, heads=8, kv_heads=2,
                 head_width=32, mlp_width=512, tied=False)  # fmt: skip
TEXT = "The thing is that they thought"
needs_kernels = pytest.mark.skipif(not native.available(), reason="the compiled kernels were not built")


def types_of(spec: ModelSpec, mix: str) -> dict[str, str]:
    """Type of each matrix under llama.cpp's name."""
    return {
        tensor.name: quantized_type(MIXES[mix], spec, parameter, tensor)
        for parameter in gguf_names().parameters(spec)
        for tensor in parameter.tensors
        if not tensor.is_vector
    }


def layers_with(types: dict[str, str], name: str, kind: str) -> list[int]:
    return [layer for layer in range(32) if types[f"blk.{layer}.{name}.weight"] == kind]


def test_q4_k_m_gives_half_of_values_and_down_more_bits() -> None:
    types = types_of(WIDE, "q4_k_m")
    better = [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]  # as in the 32 layers of Llama 3 8B
    assert layers_with(types, "attn_v", "q6_k") == layers_with(types, "ffn_down", "q6_k") == better
    assert types["output.weight"] == "q6_k"
    assert types["token_embd.weight"] == "q4_k"
    assert Counter(types.values()) == {"q6_k": 33, "q4_k": 7 * 32 + 1 - 32}


def test_smaller_mixes_keep_more_bits_where_llama_cpp_does() -> None:
    types = types_of(WIDE, "q3_k_m")
    assert layers_with(types, "attn_v", "q5_k") == layers_with(types, "ffn_down", "q5_k") == [0, 1]
    assert layers_with(types, "attn_output", "q4_k") == list(range(32))
    types = types_of(WIDE, "q2_k")
    assert layers_with(types, "attn_v", "q4_k") == list(range(32))  # four queries share a value
    assert layers_with(types, "ffn_down", "q3_k") == layers_with(types, "attn_output", "q3_k") == list(range(32))
    assert types_of(replace(WIDE, kv_heads=8), "q2_k")["blk.0.attn_v.weight"] == "q3_k"


def test_a_tied_embedding_has_the_type_of_the_output() -> None:
    assert types_of(replace(WIDE, tied=True), "q4_k_m")["token_embd.weight"] == "q6_k"


def test_eight_experts_keep_keys_and_values_in_q8_0() -> None:
    types = types_of(replace(WIDE, experts=ExpertsSpec(8, 2, 512)), "q4_k_m")
    assert {types[f"blk.5.attn_{part}.weight"] for part in "kv"} == {"q8_0"}
    assert types["blk.5.attn_output.weight"] == "q5_k"
    assert types["blk.6.ffn_down_exps.weight"] == "q6_k"


def test_rows_that_are_not_whole_blocks_get_the_next_larger_type() -> None:
    wanted = {"q2_k": "q4_0", "q3_k": "q4_0", "q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0", "q8_0": "q8_0"}
    assert {kind: fitting(kind, 576) for kind in wanted} == wanted
    assert {fitting(kind, 100) for kind in wanted} == {"f16"}
    types = types_of(replace(WIDE, width=288, mlp_width=768), "q4_k_m")
    assert [types[f"blk.0.{name}.weight"] for name in ("attn_q", "attn_v", "ffn_down")] == ["q5_0", "q8_0", "q6_k"]
    assert types["output.weight"] == "q8_0"


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("models") / "exact.gguf", "f32", tied=False)


@needs_kernels
@pytest.mark.parametrize("mix", MIXES)
def test_the_file_says_what_it_is_and_holds_the_model_to_a_few_bits(mix: str, exact: Path, tmp_path: Path) -> None:
    file = GGUFFile.open(convert(exact, tmp_path / "model.gguf", dtype=mix))
    known = {kind.value: kind.name.removeprefix("MOSTLY_").lower() for kind in gguf.LlamaFileType}
    assert known[file.metadata["general.file_type"]] == mix
    assert file.metadata["general.quantization_version"] == gguf.GGML_QUANT_VERSION
    assert {tensor.kind for name, tensor in file.tensors.items() if "norm" in name} == {"f32"}
    most = {"q8_0": 0.01, "q6_k": 0.025, "q5_k_m": 0.05, "q4_k_m": 0.09, "q3_k_m": 0.18, "q2_k": 0.32}[mix]
    for name, tensor in file.tensors.items():
        weights = GGUFFile.open(exact).float32(name)
        wrong = dequantized(tensor.kind, file.raw(name)).reshape(weights.shape) - weights
        assert np.square(wrong).mean() ** 0.5 <= most * np.square(weights).mean() ** 0.5, name


@needs_kernels
@pytest.mark.parametrize("mix", ["q4_k_m", "q2_k"])
def test_llama_cpp_opens_it_and_completes_as_nextword_does(mix: str, exact: Path, tmp_path: Path) -> None:
    path = convert(exact, tmp_path / "model.gguf", dtype=mix)
    ours = nextword.load(str(path), dtype="float32")
    completion = ours.complete(TEXT, max_tokens=8, temperature=0)
    with llama_cpp(path) as ask:
        request = {"prompt": TEXT, "n_predict": 8, "temperature": 0, "return_tokens": True}
        theirs = ask("/completion", request)["tokens"]
    assert theirs == [token.id for token in completion.tokens]


@needs_kernels
@pytest.mark.parametrize(("dtype", "mix"), [("q4_k", "q4_k_m"), ("q8_0", "q8_0"), ("bfloat16", "bfloat16")])
def test_quantizing_at_load_gives_the_bits_of_a_converted_file(
    dtype: str, mix: str, exact: Path, tmp_path: Path
) -> None:
    def logprobs(path: Path, dtype: str = "auto") -> list[float | None]:
        return [token.logprob for token in nextword.load(str(path), dtype=dtype).logprobs(TEXT).tokens]  # type: ignore[arg-type]

    stored = logprobs(convert(exact, tmp_path / "model.gguf", dtype=mix))
    assert logprobs(exact, dtype) == stored
    # queries and keys lie in another order: sums differ in last bits, which may round an activation to its neighbour
    folder = logprobs(convert(exact, tmp_path / "folder"), dtype)
    np.testing.assert_allclose(folder[1:], stored[1:], atol=5e-3)


def test_a_folder_cannot_hold_a_mix(exact: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'q4_k_m' cannot be written as .*folder\. Known: .*q4_k_m is only for GGUF"):
        convert(exact, tmp_path / "folder", dtype="q4_k_m")
