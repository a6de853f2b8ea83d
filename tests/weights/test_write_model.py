"""A model in memory → a folder: nextword and transformers read back what was written."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import torch

import nextword
from nextword.base import RunError, UsageError
from nextword.models import Model, build
from nextword.models.weights import write_model
from nextword.spec import ModelSpec
from nextword.text import Tokenizer, tokenizer_from_folder
from nextword.weights.loading import open_source
from nextword.weights.source import tensors_of
from torch_models import torch_model

COMMON: dict[str, Any] = {"vocabulary": 257, "width": 32, "layers": 2, "context": 64}
LLAMA: dict[str, Any] = {**COMMON, "heads": 4, "kv_heads": 2, "head_width": 8, "mlp_width": 48}
PLAIN: dict[str, Any] = {
    **LLAMA, "kv_heads": 4, "mlp": "plain", "activation": "gelu_tanh", "norm": "layer", "attention_bias": True,
    "attention_out_bias": True, "mlp_bias": True,
}  # fmt: skip
SPECS = {
    "llama": ModelSpec("transformer", **LLAMA),
    "llama untied": ModelSpec("transformer", **{**LLAMA, "tied": False, "attention_bias": True,
                                                "attention_out_bias": True}),
    "qwen3": ModelSpec("transformer", **LLAMA, qk_norm="head"),
    "gpt2": ModelSpec("transformer", **PLAIN, position="learned"),
    "gpt_neox": ModelSpec("transformer", **PLAIN, parallel=True),
    "nextword-rnn": ModelSpec("rnn", **COMMON),
    "nextword-lstm": ModelSpec("lstm", **COMMON, head_bias=True),
    "nextword-gru": ModelSpec("gru", **{**COMMON, "tied": False}),
}  # fmt: skip
TRANSFORMERS = [name for name in SPECS if "nextword" not in name]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Every byte is a token, and <end> ends a text."""
    import tokenizers

    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<end>": 0} | {token: place + 1 for place, token in enumerate(alphabet)}
    engine = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    engine.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = tokenizers.decoders.ByteLevel()
    engine.add_special_tokens(["<end>"])
    folder = tmp_path_factory.mktemp("tokenizer")
    engine.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<end>"}')
    return tokenizer_from_folder(folder)


def model_of(spec: ModelSpec) -> Model:
    torch.manual_seed(4)
    model = build(spec).eval()
    for parameter in model.parameters():  # norms and biases start at one and zero, which would hide a mix-up
        parameter.data.add_(torch.randn_like(parameter) * 0.2)
    return model


def tokens_of(time: int) -> torch.Tensor:
    return torch.randint(0, 257, (2, time), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", SPECS)
@torch.inference_mode()
def test_a_written_model_loads_with_equal_logits(name: str, tmp_path: Path, tokenizer: Tokenizer) -> None:
    model = model_of(SPECS[name])
    folder = write_model(tmp_path / "model", model, tokenizer)
    loaded = nextword.load(str(folder))
    assert json.loads((folder / "config.json").read_text())["model_type"] == name.removesuffix(" untied")
    assert loaded.spec == model.spec
    assert loaded.tokenizer.encode("Once upon") == tokenizer.encode("Once upon")
    assert torch.equal(torch_model(folder)(tokens_of(30)), model(tokens_of(30)))


@pytest.mark.parametrize("name", TRANSFORMERS)
@torch.inference_mode()
def test_a_written_transformer_equals_itself_in_transformers(name: str, tmp_path: Path, tokenizer: Tokenizer) -> None:
    transformers = pytest.importorskip("transformers")
    model = model_of(SPECS[name])
    folder = write_model(tmp_path / "model", model, tokenizer)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    expected = theirs(tokens_of(30)).logits
    assert expected.std() > 0.1
    torch.testing.assert_close(model(tokens_of(30)), expected, atol=1e-4, rtol=0)


@torch.inference_mode()
def test_torchs_own_lstm_reads_the_tensors_as_they_are(tmp_path: Path, tokenizer: Tokenizer) -> None:
    from safetensors.torch import load_file

    model = model_of(SPECS["nextword-lstm"])
    held = load_file(write_model(tmp_path / "model", model, tokenizer) / "model.safetensors")
    lstm = torch.nn.LSTM(32, 32, 2, batch_first=True)
    lstm.load_state_dict({name[10:]: value for name, value in held.items() if name.startswith("recurrent.")})
    hidden, _ = lstm(held["embedding.weight"][tokens_of(30)])
    expected = hidden @ held["embedding.weight"].t() + held["head.bias"]
    torch.testing.assert_close(model(tokens_of(30)), expected, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_halves_are_written_where_asked(tmp_path: Path, tokenizer: Tokenizer) -> None:
    model = model_of(SPECS["nextword-gru"])
    source = open_source(write_model(tmp_path / "model", model, tokenizer, "bfloat16"))
    assert {source.kind(tensor) for tensor in tensors_of(source)} == {"bf16"}
    rounded = torch_model(source.path).get_parameter("embedding.weight")
    assert torch.equal(rounded, model.get_parameter("embedding.weight").bfloat16().float())


def test_an_lstm_folder_is_completed_planned_and_described_on_the_command_line(
    tmp_path: Path, tokenizer: Tokenizer, nextword: Any
) -> None:
    folder = str(write_model(tmp_path / "lstm", model_of(SPECS["nextword-lstm"]), tokenizer))
    long = "word " * 40  # beyond the context of 64
    completed = nextword("complete", "--model", folder, "--max-tokens", "9", "--seed", "1", "--json", long)
    assert completed.returncode == 0, completed.stderr
    assert len(json.loads(completed.stdout)["completions"][0]["ids"]) in range(1, 10)
    planned = nextword("plan", "inference", folder, "--json")
    assert planned.returncode == 0, planned.stderr
    shown = nextword("models", "info", folder)
    assert shown.returncode == 0, shown.stderr
    assert "2 layers" in shown.stdout
    assert "heads" not in shown.stdout


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"norm": "layer"}, "norm 'layer'"), ({"head_bias": True}, "head_bias True"), ({"position": "none"}, "position")],
)
def test_a_model_that_no_family_holds_is_refused_with_what_differs(
    changes: dict[str, Any], named: str, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    with pytest.raises(UsageError, match=named):
        write_model(tmp_path / "model", build(ModelSpec("transformer", **(LLAMA | changes))), tokenizer)
    assert not list(tmp_path.iterdir())


def test_a_failure_leaves_the_old_folder_and_nothing_beside(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_model(tmp_path / "model", model_of(SPECS["nextword-gru"]), tokenizer)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(UsageError, match="already exists"):
        write_model(folder, model_of(SPECS["llama"]), tokenizer)
    monkeypatch.setattr("nextword.weights.conversion._write_shards", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(RunError, match="full"):
        write_model(folder, model_of(SPECS["llama"]), tokenizer, force=True)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert list(tmp_path.iterdir()) == [folder]


def test_a_folder_is_replaced_where_asked(tmp_path: Path, tokenizer: Tokenizer) -> None:
    folder = write_model(tmp_path / "model", model_of(SPECS["nextword-gru"]), tokenizer)
    write_model(folder, model_of(SPECS["llama"]), tokenizer, force=True)
    assert open_source(folder).spec == SPECS["llama"]
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o755), (0o077, 0o700), (0o002, 0o775)])
def test_a_folder_is_as_open_to_others_as_the_umask_says(
    mask: int, mode: int, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    before = os.umask(mask)
    try:
        folder = write_model(tmp_path / "model", model_of(SPECS["nextword-rnn"]), tokenizer)
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == mode
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {mode & 0o666}
