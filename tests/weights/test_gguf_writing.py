"""A model written as GGUF is the same model: to nextword, and to llama.cpp."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import nextword
from nextword.base import RunError, UsageError
from nextword.data import train_tokenizer
from nextword.models import Model, build
from nextword.spec import ModelSpec
from nextword.text import Tokenizer
from nextword.weights.gguf_writing import write_gguf

TEXTS = ["The king went to the castle.", "it's 12345 o'clock\n\n  and Stone, river!", "naïve café"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    draw = random.Random(0)
    words = "the a king queen went to of and in castle river stone old young night it's 1234 don't clock".split()  # noqa: SIM905
    return train_tokenizer([" ".join(draw.choices(words, k=4000))], "bpe", 320)


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> Model:  # type: ignore[type-arg]
    torch.manual_seed(0)
    spec = ModelSpec(kind="transformer", vocabulary=tokenizer.vocabulary, width=64, layers=2, context=128, heads=4,
                     kv_heads=2, head_width=16, mlp_width=160)  # fmt: skip
    made = build(spec)
    for parameter in made.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.12)  # far from flat: the likeliest token has no rival
    return made.eval()


def logits(model: Model, ids: list[int]) -> torch.Tensor:  # type: ignore[type-arg]
    with torch.no_grad():
        return model(torch.tensor([ids]))[0][0]


def test_it_reads_back_with_equal_ids_and_logits(model: Model, tokenizer: Tokenizer, tmp_path: Path) -> None:  # type: ignore[type-arg]
    again = nextword.load(str(write_gguf(tmp_path / "model.gguf", model, tokenizer)), dtype="float32")
    assert replace(again.spec, norm_eps=model.spec.norm_eps) == model.spec  # GGUF holds it as float32
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert again.encode(text) == ids
        torch.testing.assert_close(logits(again.engine.model, ids), logits(model, ids), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 2e-3), ("bfloat16", 2e-2), ("q8_0", 2e-2)])
def test_smaller_types_change_the_loss_little(
    dtype: str,
    tolerance: float,
    model: Model,
    tokenizer: Tokenizer,
    tmp_path: Path,  # type: ignore[type-arg]
) -> None:
    path = write_gguf(tmp_path / "model.gguf", model, tokenizer, dtype)
    again = nextword.load(str(path), dtype="float32")
    ids = torch.randint(0, tokenizer.vocabulary, (60,), generator=torch.Generator().manual_seed(0))
    loss, exact = (torch.nn.functional.cross_entropy(logits(m, ids.tolist())[:-1], ids[1:]).item()
                   for m in (again.engine.model, model))  # fmt: skip
    assert loss == pytest.approx(exact, rel=tolerance)
    assert loss != exact


def test_llama_cpp_completes_as_nextword_does(model: Model, tokenizer: Tokenizer, tmp_path: Path) -> None:  # type: ignore[type-arg]
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama.cpp's own program is the oracle")
    path = write_gguf(tmp_path / "model.gguf", model, tokenizer)
    theirs = llama_cpp.Llama(str(path), n_ctx=128, n_batch=64, verbose=False, logits_all=True)
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert theirs.tokenize(text.encode(), add_bos=False) == ids
        theirs.reset()
        theirs.eval(ids)
        got = torch.tensor(theirs.scores[: len(ids)])
        torch.testing.assert_close(got.float(), logits(model, ids), rtol=0, atol=2e-2)  # its cache is float16


def test_what_gguf_has_no_place_for_is_refused_in_a_line_and_leaves_nothing(
    model: Model,
    tokenizer: Tokenizer,
    tmp_path: Path,  # type: ignore[type-arg]
) -> None:
    lstm = build(ModelSpec(kind="lstm", vocabulary=tokenizer.vocabulary, width=16, layers=1, context=32))
    with pytest.raises(UsageError, match="no place for an lstm"):
        write_gguf(tmp_path / "a.gguf", lstm, tokenizer)
    with pytest.raises(UsageError, match="byte-level BPE"):
        write_gguf(tmp_path / "a.gguf", model, train_tokenizer(["abc"], "characters"))
    (tmp_path / "a.gguf").write_text("there")
    with pytest.raises(UsageError, match="already there"):
        write_gguf(tmp_path / "a.gguf", model, tokenizer)
    assert [path.name for path in tmp_path.iterdir()] == ["a.gguf"]


def test_a_full_disk_leaves_nothing_behind(
    model: Model, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[type-arg]
    import gguf

    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensors_to_file", full)
    with pytest.raises(RunError, match="no space left"):
        write_gguf(tmp_path / "a.gguf", model, tokenizer)
    assert not list(tmp_path.iterdir())
