"""A model written as GGUF is the same model: to nextword, and to llama.cpp."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import nextword
from full_disk import full_disk
from llama_cpp_server import llama_cpp
from nextword.base import RunError, UsageError
from nextword.data import train_tokenizer
from nextword.models import Model, build
from nextword.models.weights import write_model
from nextword.spec import ExpertsSpec, ModelSpec, RopeSpec
from nextword.text import Tokenizer
from nextword.text.byte_decoding import ByteDecoding, byte_level
from nextword.text.tokenizer import SpecialTokens
from nextword.text.vocab_engines import byte_level_engine
from nextword.weights.gguf import GGUFFile
from torch_models import torch_model

TEXTS = ["The king went to the castle.", "it's 12345 o'clock\n\n  and Stone, RIVER'S!\r\n", "naïve café  日本 🙂"]
WORDS = "the a king queen went to of and in castle river stone old young night it's 1234 don't clock".split()  # noqa: SIM905
LLAMA = ModelSpec(kind="transformer", vocabulary=1, width=64, layers=2, context=128, heads=4, kv_heads=2,
                  head_width=16, mlp_width=160)  # fmt: skip
PLAIN = replace(LLAMA, kv_heads=4, mlp_width=256, mlp="plain", activation="gelu_tanh", norm="layer",
                attention_bias=True, attention_out_bias=True, mlp_bias=True)  # fmt: skip
GEMMA = replace(LLAMA, activation="gelu_tanh", norm_offset=True, norm_place="both", attention_scale=0.25,
                embedding_scale=8.0)  # fmt: skip
LONGROPE = RopeSpec(fraction=0.75, scaling="longrope", factor=4.0, original_context=32, short_factors=(1.0,) * 6,
                    long_factors=(1.5, 2.0, 3.0, 4.0, 5.0, 6.0))  # fmt: skip
LAYOUTS = {
    "llama": LLAMA,
    "llama, untied, heads wider than width/heads": replace(LLAMA, tied=False, head_width=32),
    "llama, linear rope": replace(LLAMA, rope=RopeSpec(scaling="linear", factor=2.0)),
    "llama, llama3 rope": replace(LLAMA, rope=RopeSpec(scaling="llama3", factor=8.0, original_context=2048)),
    "llama, experts": replace(LLAMA, experts=ExpertsSpec(4, 2, 160)),
    "qwen2": replace(LLAMA, attention_bias=True, norm_eps=1e-6),
    "qwen3": replace(LLAMA, qk_norm="head", rope=RopeSpec(theta=1e6)),
    "qwen3moe": replace(LLAMA, qk_norm="head", experts=ExpertsSpec(4, 2, 32)),
    "gemma2": replace(GEMMA, windows=(9, 0), attention_softcap=50.0, logit_softcap=30.0),
    "gemma3": replace(GEMMA, qk_norm="head", layers=6, windows=(9, 9, 9, 9, 9, 0), local_rope=RopeSpec(),
                      rope=RopeSpec(theta=1e6)),
    "olmo2": replace(LLAMA, qk_norm="full", norm_place="after", tied=False),
    "gpt2": replace(PLAIN, position="learned"),
    "gptneox": replace(PLAIN, parallel=True, rope=RopeSpec(fraction=0.25), activation="gelu", tied=False),
    "phi3": replace(LLAMA, rope=LONGROPE),
    "smollm3": replace(LLAMA, layers=4, rope_layers=(True, True, True, False)),
    "granite": replace(LLAMA, embedding_scale=3.0, residual_scale=0.5, logit_scale=4.0, attention_scale=0.25),
    "gpt-oss": replace(LLAMA, tied=False, attention_bias=True, attention_out_bias=True, attention_sinks=True,
                       windows=(9, 0), activation="swiglu_clamped", experts=ExpertsSpec(4, 2, 160, bias=True)),
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([" ".join(random.Random(0).choices(WORDS, k=4000))], "bpe", 320)


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> Model:
    return made(LLAMA, tokenizer.vocabulary)


def made(spec: ModelSpec, vocabulary: int) -> Model:
    """A random model whose every parameter matters."""
    torch.manual_seed(0)
    model = build(replace(spec, vocabulary=vocabulary))
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2:
            torch.nn.init.normal_(parameter, std=0.12)  # far from flat: the likeliest token has no rival
        else:
            torch.nn.init.normal_(parameter, mean=float(name.endswith("norm.weight")), std=0.2)
    return model.eval()


@torch.no_grad()
def logits(model: Model, ids: list[int]) -> torch.Tensor:
    return model(torch.tensor([ids]))[0]


def loss(model: Model, ids: list[int]) -> float:
    return torch.nn.functional.cross_entropy(logits(model, ids)[:-1], torch.tensor(ids[1:])).item()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_reads_back_with_equal_spec_ids_and_logits(layout: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = made(LAYOUTS[layout], tokenizer.vocabulary)
    again = nextword.load(str(write_model(tmp_path / "model.gguf", model, tokenizer)), dtype="float32")
    assert replace(again.spec, norm_eps=model.spec.norm_eps) == model.spec  # GGUF holds it as float32
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert again.encode(text) == ids
        torch.testing.assert_close(logits(torch_model(again), ids), logits(model, ids), rtol=0, atol=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_llama_cpp_cuts_predicts_and_completes_as_nextword_does(
    layout: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    model = made(LAYOUTS[layout], tokenizer.vocabulary)
    path = write_model(tmp_path / "model.gguf", model, tokenizer)
    tolerance = 1e-2 if "gelu" in model.spec.activation else 1e-4  # its GELU is a table in float16
    with llama_cpp(path) as ask:
        for text in TEXTS:
            ids = tokenizer.encode(text)
            assert ask("/tokenize", {"content": text, "add_special": True})["tokens"] == ids
            # The server leaves half characters out of its list of probabilities, so it is made to choose a whole one;
            # the probabilities it gives are those before the bias.
            biased = {"n_predict": 1, "n_probs": tokenizer.vocabulary, "logit_bias": [[tokenizer.token_id("a"), 1000]]}
            (first,) = ask("/completion", {"prompt": text, **biased})["completion_probabilities"]
            given = {each["id"]: each["logprob"] for each in first["top_logprobs"]}
            theirs = torch.tensor([given[id] for id in range(tokenizer.vocabulary)])
            ours = logits(model, ids)[-1].log_softmax(-1)
            torch.testing.assert_close(theirs, ours, rtol=0, atol=tolerance)

            chosen = ask("/completion", {"prompt": text, "n_predict": 16, "temperature": 0, "return_tokens": True})
            tokens = chosen["tokens"]
            assert len(tokens) == 16 or chosen["stop_type"] == "eos"
            ours = logits(model, ids + tokens)[len(ids) - 1 : -1]
            behind = ours.max(-1).values - ours.gather(1, torch.tensor(tokens)[:, None])[:, 0]
            assert behind.max() < 2 * tolerance  # each is the likeliest, or as likely as it


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 1e-3), ("bfloat16", 1e-2), ("q8_0", 1e-2)])
def test_smaller_types_change_the_loss_little(
    dtype: str, tolerance: float, model: Model, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    path = write_model(tmp_path / "model.gguf", model, tokenizer, dtype)
    again = nextword.load(str(path), dtype="float32")
    ids = torch.randint(0, tokenizer.vocabulary, (100,), generator=torch.Generator().manual_seed(0)).tolist()
    assert loss(torch_model(again), ids) == pytest.approx(loss(model, ids), rel=tolerance)
    kinds = {tensor.kind for tensor in GGUFFile.open(path).tensors.values()}
    assert kinds == {"f32", {"float16": "f16", "bfloat16": "bf16", "q8_0": "q8_0"}[dtype]}


def test_rows_that_no_q8_0_block_divides_are_float16(tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = made(replace(LLAMA, mlp_width=100), tokenizer.vocabulary)
    path = write_model(tmp_path / "model.gguf", model, tokenizer, "q8_0")
    kinds = {name: tensor.kind for name, tensor in GGUFFile.open(path).tensors.items()}
    assert (kinds["blk.0.ffn_down.weight"], kinds["blk.0.ffn_up.weight"]) == ("f16", "q8_0")
    ids = tokenizer.encode(TEXTS[0])
    again = nextword.load(str(path), dtype="float32")
    assert loss(torch_model(again), ids) == pytest.approx(loss(model, ids), rel=1e-2)


def test_a_vocabulary_of_bytes_reads_back_in_both(tmp_path: Path) -> None:
    tokens = train_tokenizer([], "bytes")
    model = made(LLAMA, tokens.vocabulary)
    path = write_model(tmp_path / "model.gguf", model, tokens)
    again = nextword.load(str(path), dtype="float32")
    assert [again.encode(text) for text in TEXTS] == [tokens.encode(text) for text in TEXTS]
    with llama_cpp(path) as ask:
        for text in TEXTS:
            assert ask("/tokenize", {"content": text, "add_special": True})["tokens"] == tokens.encode(text)


def test_ids_beyond_the_tokenizer_are_written_as_unused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = made(LLAMA, tokenizer.vocabulary + 11)
    path = write_model(tmp_path / "model.gguf", model, tokenizer)
    again = nextword.load(str(path), dtype="float32")
    ids = tokenizer.encode(TEXTS[1])
    assert again.encode(TEXTS[1]) == ids
    torch.testing.assert_close(logits(torch_model(again), ids), logits(model, ids), rtol=0, atol=1e-4)
    with llama_cpp(path) as ask:
        assert ask("/tokenize", {"content": TEXTS[1]})["tokens"] == ids


@pytest.mark.parametrize("rule", ["gpt-2", "smollm", "llama-bpe", "dbrx", "qwen2"])
def test_a_tokenizer_of_another_model_keeps_its_rule_and_its_end(rule: str, tmp_path: Path) -> None:
    trained = json.loads(train_tokenizer([" ".join(WORDS) + " 12 123 1234 12345 "] * 50, "bpe", 330).to_json())["model"]
    tokens = [*trained["vocab"], "<|im_end|>"]
    vocabulary = {token: id for id, token in enumerate(tokens)}
    engine = byte_level_engine(vocabulary, [tuple(pair) for pair in trained["merges"]], rule, rule == "llama-bpe")
    engine.add_special_tokens(["<|endoftext|>", "<|im_end|>"])
    end = len(tokens) - 1
    special = SpecialTokens(frozenset((0, end)), frozenset((0, end)), texts={"eos_token": "<|im_end|>"})
    tokenizer = Tokenizer(engine, ByteDecoding(byte_level), special, {"default": "{{ messages[0].content }}"})
    path = write_model(tmp_path / "model.gguf", made(LLAMA, tokenizer.vocabulary), tokenizer)
    assert GGUFFile.open(path).metadata["tokenizer.ggml.pre"] == rule
    again = nextword.load(str(path), dtype="float32").tokenizer
    assert again.special.texts["eos_token"] == "<|im_end|>"
    assert again.stop_ids == {0, end}
    assert again.chat_template == tokenizer.chat_template
    with llama_cpp(path) as ask:
        for text in TEXTS:
            ids = tokenizer.encode(text)
            assert again.encode(text) == ids
            assert ask("/tokenize", {"content": text, "add_special": True})["tokens"] == ids


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"kind": "lstm"}, "GGUF does not support a model of kind lstm"),
        ({"mlp_bias": True}, "layout"),
        ({"parallel": True}, "layout"),
        ({"windows": (32, 0)}, "layout"),
        ({"rope": RopeSpec(scaling="llama3", factor=8.0, original_context=100)}, "rope scaling"),
    ],
)
def test_a_model_the_file_cannot_say_all_of_is_refused(
    change: dict[str, Any], reason: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    model = build(replace(LLAMA, vocabulary=tokenizer.vocabulary, **change))
    with pytest.raises(UsageError, match=rf"{reason}.*Hugging Face folder") as refused:
        write_model(tmp_path / "a.gguf", model, tokenizer)
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_a_tokenizer_llama_cpp_cannot_cut_as_is_refused(model: Model, tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"does not support this kind of tokenizer.*Hugging Face folder"):
        write_model(tmp_path / "a.gguf", model, train_tokenizer(["abc"], "characters"))
    odd = json.loads(tokenizer.to_json())
    odd["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\w+|\W"
    from tokenizers import Tokenizer as Engine

    other = Tokenizer(Engine.from_str(json.dumps(odd)), ByteDecoding(byte_level), tokenizer.special)
    with pytest.raises(UsageError, match=r"no name for this tokenizer.*Hugging Face folder"):
        write_model(tmp_path / "a.gguf", model, other)
    with pytest.raises(UsageError, match="but the model has"):
        write_model(tmp_path / "a.gguf", made(LLAMA, tokenizer.vocabulary - 1), tokenizer)
    assert not list(tmp_path.iterdir())


def test_what_stands_there_is_replaced_only_when_asked(model: Model, tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_text("there")
    with pytest.raises(UsageError, match="already exists"):
        write_model(path, model, tokenizer)
    assert path.read_text() == "there"
    write_model(path, model, tokenizer, force=True)
    assert GGUFFile.open(path).architecture == "llama"
    folder = tmp_path / "b.gguf"
    folder.mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        write_model(folder, model, tokenizer, force=True)
    assert sorted(entry.name for entry in tmp_path.rglob("*")) == ["a.gguf", "b.gguf"]


@pytest.mark.parametrize("room", [1000, 50_000, 200_000])
def test_a_full_disk_is_one_line_and_leaves_what_was_there(
    room: int, model: Model, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    path = tmp_path / "a.gguf"
    path.write_text("there")
    with full_disk(room), pytest.raises(RunError, match=r"a\.gguf could not be written") as failed:
        write_model(path, model, tokenizer, force=True)
    assert "\n" not in str(failed.value)
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("a.gguf", "there")]


def test_a_folder_that_cannot_be_written_to_is_one_line(model: Model, tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("there")
    with pytest.raises(RunError, match="could not be written") as failed:
        write_model(tmp_path / "file" / "a.gguf", model, tokenizer)
    assert "\n" not in str(failed.value)
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
