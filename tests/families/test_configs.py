"""config.json → ModelSpec: published parameter counts, transformers' defaults, and configurations that lie."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import suppress
from typing import Any

import pytest
import torch

from family_cases import CASES, PLANNED_ONLY, config_of
from nextword.base import UsageError
from nextword.families import FAMILIES, spec_from_config
from nextword.families.gguf_metadata import spec_from_gguf_metadata
from nextword.families.published import known_config, known_models
from nextword.models import build
from nextword.spec import ModelSpec

LLAMA3_8B = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "rope_theta": 500000.0,
}
LLAMA2_7B = LLAMA3_8B | {"vocab_size": 32000, "num_key_value_heads": 32, "intermediate_size": 11008}
GPT2 = {"model_type": "gpt2", "vocab_size": 50257, "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024}
PYTHIA_70M = {
    "model_type": "gpt_neox",
    "vocab_size": 50304,
    "hidden_size": 512,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "intermediate_size": 2048,
}
PUBLISHED = [  # parameters of the models on their owners' pages
    (GPT2, 124_439_808),
    (GPT2 | {"n_embd": 1024, "n_layer": 24, "n_head": 16}, 354_823_168),
    (GPT2 | {"n_embd": 1600, "n_layer": 48, "n_head": 25}, 1_557_611_200),
    (LLAMA3_8B, 8_030_261_248),
    (LLAMA2_7B, 6_738_415_616),
    (LLAMA2_7B | {"model_type": "mistral", "num_key_value_heads": 8, "intermediate_size": 14336}, 7_241_732_096),
    (PYTHIA_70M, 70_426_624),
]


@pytest.mark.parametrize(("config", "parameters"), PUBLISHED)
def test_the_model_built_from_a_published_config_has_its_published_parameters(
    config: dict[str, Any], parameters: int
) -> None:
    with torch.device("meta"):
        model = build(spec_from_config(config))
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


@pytest.mark.parametrize("kind", sorted({case.model_type for case in CASES.values()}))
def test_missing_keys_take_the_defaults_of_transformers(kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    whole = transformers.AutoConfig.for_model(kind).to_dict()
    essential = (
        ["vocab_size", "n_embd", "n_layer", "n_head"]
        if kind == "gpt2"
        else ["vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"]
    )
    sparse = {key: whole[key] for key in essential} | {"model_type": kind}
    full, least = spec_from_config(whole).to_dict(), spec_from_config(sparse).to_dict()
    for free in ("context",):  # a choice of the configuration, not of the family
        full.pop(free), least.pop(free)
    assert least == full


@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"])
def test_a_missing_essential_key_is_named(key: str) -> None:
    with pytest.raises(UsageError, match=key):
        spec_from_config({name: value for name, value in LLAMA3_8B.items() if name != key})


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "64", [64], 10**12, float("nan")])
@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers", "num_key_value_heads", "head_dim"])
def test_sizes_that_are_no_sizes_are_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(UsageError, match=key):
        spec_from_config(LLAMA3_8B | {key: value})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "lama"}, "Did you mean llama"),
        ({"model_type": None}, "model_type"),
        ({"num_key_value_heads": 5}, "do not divide"),
        ({"num_attention_heads": 33}, "does not divide"),
        ({"hidden_act": "sine"}, "sine"),
        ({"rope_scaling": {"rope_type": "spiral", "factor": 2}}, "spiral"),
        ({"rope_scaling": "linear"}, "rope_scaling"),
        ({"rope_theta": -1}, "rope_theta"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps"),
        ({"attention_bias": 1}, "attention_bias"),
    ],
)
def test_values_that_do_not_fit_are_refused_with_the_reason(change: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        spec_from_config(LLAMA3_8B | change)


ODD: list[Any] = [
    None, -1, 0, 1.5, True, "x", [], [1], {}, 10**12, 1e300, float("nan"), {"rope_type": ["yarn"]},
    {"rope_type": "yarn"}, {"rope_type": "longrope", "short_factor": [1], "long_factor": ["x"]}, {"full_attention": 3},
]  # fmt: skip


@pytest.mark.parametrize("name", CASES | PLANNED_ONLY)
def test_whatever_a_configuration_holds_it_is_read_or_refused(name: str) -> None:
    config = config_of((CASES | PLANNED_ONLY)[name]).to_dict()
    for key in config | dict.fromkeys(("rope_scaling", "head_dim", "layer_types")):
        for value in ODD:
            with suppress(UsageError):
                spec_from_config(config | {key: value})


def test_layer_types_must_be_as_many_as_layers() -> None:
    config = PUBLISHED[3][0] | {"model_type": "qwen2", "use_sliding_window": True, "layer_types": ["full_attention"]}
    assert spec_from_config(config).windows == ()
    with pytest.raises(UsageError, match="layer types"):
        spec_from_config(config | {"layer_types": ["sliding_attention"]})


def test_a_spec_survives_json() -> None:
    spec = spec_from_config(LLAMA3_8B | {"rope_scaling": {"rope_type": "linear", "factor": 2.0}})
    assert ModelSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@pytest.mark.parametrize("name", known_models())
def test_a_config_is_written_as_it_was_read(name: str) -> None:
    config = known_config(name)
    assert config is not None
    family, spec = FAMILIES[config["model_type"]], spec_from_config(config)
    if not family.plan_only:
        assert spec_from_config(json.loads(json.dumps(family.config(spec)))) == spec


def test_reading_a_config_imports_no_torch() -> None:
    code = "import sys, nextword.families.gguf_metadata; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


LLAMA_GGUF = {
    "general.architecture": "llama", "llama.embedding_length": 64, "llama.block_count": 2, "llama.context_length": 32,
    "llama.feed_forward_length": 96, "llama.attention.head_count": 4, "tokenizer.ggml.tokens": list("abcde"),
}  # fmt: skip
NEOX_GGUF = {key.replace("llama.", "gptneox."): value for key, value in LLAMA_GGUF.items()}
NEOX_GGUF["general.architecture"] = "gptneox"


@pytest.mark.parametrize("rotating", [0, 1, 8, 15, 17, 32, 2**31, -16, True, "16", None])
def test_a_llama_gguf_whose_heads_do_not_rotate_whole_is_refused_with_both_numbers(rotating: object) -> None:
    with pytest.raises(UsageError, match=rf"llama\.rope\.dimension_count is {rotating!r}; it must be 16,"):
        spec_from_gguf_metadata(LLAMA_GGUF | {"llama.rope.dimension_count": rotating}, tied=True)


@pytest.mark.parametrize("rotating", [2, 4, 8, 14, 16])
def test_a_gpt_neox_gguf_rotates_as_much_of_each_head_as_it_says(rotating: int) -> None:
    spec = spec_from_gguf_metadata(NEOX_GGUF | {"gptneox.rope.dimension_count": rotating}, tied=False)
    assert int(spec.head_width * spec.rope.fraction) == rotating
    assert spec_from_gguf_metadata(NEOX_GGUF, tied=False).rope.fraction == 1.0  # llama.cpp's default


@pytest.mark.parametrize(("width", "heads", "rotating"), [(44 * 2, 2, 30), (47 * 2, 2, 6), (45 * 2, 2, 26)])
def test_a_part_of_a_head_is_not_rounded_down(width: int, heads: int, rotating: int) -> None:
    said = {"gptneox.embedding_length": width, "gptneox.attention.head_count": heads}
    spec = spec_from_gguf_metadata(NEOX_GGUF | said | {"gptneox.rope.dimension_count": rotating}, tied=False)
    assert int(spec.head_width * spec.rope.fraction) == rotating


@pytest.mark.parametrize("rotating", [0, 1, 3, 18, 2**31])
def test_a_gpt_neox_gguf_that_rotates_what_is_not_there_is_refused(rotating: int) -> None:
    with pytest.raises(UsageError, match=rf"dimension_count is {rotating}; it must be even, and at most 16"):
        spec_from_gguf_metadata(NEOX_GGUF | {"gptneox.rope.dimension_count": rotating}, tied=False)


@pytest.mark.parametrize("said", [0, 1, 4, 6, 2**31])
def test_a_gguf_that_says_another_vocabulary_than_it_lists_is_refused_with_both(said: int) -> None:
    assert spec_from_gguf_metadata(LLAMA_GGUF | {"llama.vocab_size": 5}, tied=True).vocabulary == 5
    with pytest.raises(UsageError, match=rf"llama\.vocab_size is {said}, but the file lists 5 tokens"):
        spec_from_gguf_metadata(LLAMA_GGUF | {"llama.vocab_size": said}, tied=True)
