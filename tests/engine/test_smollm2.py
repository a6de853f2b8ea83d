"""The real model against transformers on the same file, and draws from its real logits."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

import nextword
from nextword.base import UsageError
from nextword.engine import SamplingParams
from nextword.engine.sampler import Draw, SampleRow, Uniforms, sample
from torch_models import torch_model

PROMPTS = [
    "The capital of France is",
    "I like to eat",
    "Once upon a time",
    "def fibonacci(n):",
    "The history of the printing press begins with",
    "Water boils when",
    "Dear Sir or Madam,",
    "日本の首都は",
    "Question: what is the sentiment of this review: this movie is terrible!\nAnswer:",
    "To be, or not to be,",
]


@pytest.fixture(scope="module")
def exact(smollm2_path: Path) -> nextword.LanguageModel:
    return nextword.load(str(smollm2_path), dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def stored(smollm2_path: Path) -> nextword.LanguageModel:
    model = nextword.load(str(smollm2_path), device="cpu")
    if model.loaded.precision == "float32":
        pytest.fail("the compiled kernels were not built here; a C compiler is needed for the checks")
    return model


@pytest.fixture(scope="module")
def theirs(smollm2_path: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.AutoModelForCausalLM.from_pretrained(
        smollm2_path.parent, gguf_file=smollm2_path.name, dtype=torch.float32
    ).eval()


@torch.inference_mode()
def test_logits_equal_transformers_in_float64(exact: nextword.LanguageModel, theirs: Any) -> None:
    """In float32, transformers is itself up to 1e-4 from its own float64 result, depending on the processor."""
    in_float64 = copy.deepcopy(theirs).double()
    for prompt in PROMPTS:
        ids = exact.encode(prompt)
        expected = in_float64(torch.tensor([ids])).logits[0].numpy()
        for length, row in enumerate(expected, 1):
            np.testing.assert_allclose(exact.engine.logits(ids[:length]), row, atol=1e-4, rtol=0)


@torch.inference_mode()
def test_greedy_text_equals_transformers_for_64_tokens(exact: nextword.LanguageModel, theirs: Any) -> None:
    """Each token is the likeliest that transformers sees after those before it, so that its own text is the same."""
    for completion in exact.complete_all(PROMPTS, max_tokens=64, temperature=0):
        prompt, ids = completion.prompt_ids, completion.ids
        logits = theirs(torch.tensor([[*prompt, *ids]])).logits[0]
        assert list(ids) == logits[len(prompt) - 1 : -1].argmax(-1).tolist(), completion.prompt
        assert len(ids) == 64 or ids[-1] in exact.tokenizer.stop_ids


def test_the_quantized_path_costs_less_than_a_hundredth_of_a_nat(
    exact: nextword.LanguageModel, stored: nextword.LanguageModel
) -> None:
    text = (Path(__file__).parents[2] / "LICENSE").read_text()[:6000] + (
        "The old lighthouse keeper climbed the stairs each evening to light the lamp, and each morning he came"
        " down again to sleep while the gulls complained about the weather. "
    )
    ids = exact.encode(text)
    losses = [[token.logprob for token in model.logprobs(ids).tokens[1:]] for model in (exact, stored)]
    assert abs(np.mean(losses[0]) - np.mean(losses[1])) < 0.01


@torch.inference_mode()
def test_without_the_compiled_kernels_torch_computes_the_same_in_float32(
    exact: nextword.LanguageModel, smollm2_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = exact.encode(PROMPTS[0])
    expected = torch_model(exact)(torch.tensor([ids]))[0]
    greedy = exact.complete(ids, max_tokens=12, temperature=0).ids
    monkeypatch.setattr("nextword.native.available", lambda: False)
    monkeypatch.setattr("nextword.native.bindings.available", lambda: False)
    plain = nextword.load(str(smollm2_path), device="cpu")
    assert plain.loaded.precision == "float32"
    np.testing.assert_allclose(plain.engine.logits(ids), expected[-1].numpy(), atol=1e-4, rtol=0)
    assert plain.complete(ids, max_tokens=12, temperature=0).ids == greedy
    with pytest.raises(UsageError, match=r"dtype q8_0 needs the compiled CPU kernels"):
        nextword.load(str(smollm2_path), dtype="q8_0")


def test_batched_sequences_get_the_same_bits_as_alone_on_the_quantized_path(stored: nextword.LanguageModel) -> None:
    alone = stored.complete(PROMPTS[1], max_tokens=24, seed=3)
    batch = stored.complete_all([PROMPTS[1], *PROMPTS[:4]], max_tokens=24, seed=3)
    assert batch[0].ids == alone.ids
    assert [step.logprob for step in batch[0].tokens] == [step.logprob for step in alone.tokens]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.5, 3.0])
def test_100_000_draws_fit_the_exact_softmax_and_would_not_fit_a_temperature_5_percent_off(
    exact: nextword.LanguageModel, temperature: float
) -> None:
    logits = exact.engine.logits(exact.encode("The capital of France is"))
    count, uniforms, sampling = 100_000, Uniforms(17, 0), SamplingParams(temperature=temperature)
    rows = [SampleRow(sampling, uniforms.at(place), (), ()) for place in range(count)]
    draws = sample(logits[None].astype(np.float32), rows, [0] * count)
    hits = np.bincount([draw.token for draw in draws if isinstance(draw, Draw)], minlength=logits.size)
    assert hits.sum() == count

    def fit(heat: float) -> float:
        shifted = (logits - logits.max()) / heat
        expected = np.exp(shifted) / np.exp(shifted).sum() * count
        enough = expected >= 5
        observed = np.append(hits[enough], hits[~enough].sum())
        wanted = np.append(expected[enough], expected[~enough].sum())
        return float(chisquare(observed, wanted * (observed.sum() / wanted.sum())).pvalue)

    assert fit(temperature) > 1e-4
    assert fit(temperature * 1.05) < 1e-4


def test_next_tokens_at_several_temperatures_come_from_one_distribution(stored: nextword.LanguageModel) -> None:
    cold, plain, hot = stored.next_token_distributions("I like to eat", [0.5, 1.0, 2.0], top=5)
    assert cold.entropy < plain.entropy < hot.entropy
    assert cold.covering_90 < plain.covering_90 < hot.covering_90
    assert [each.id for each in cold.top] == [each.id for each in hot.top]
    assert plain.top[0].probability == pytest.approx(plain.top[0].sampled_prob)
    for each in (cold, plain, hot):
        assert sum(top.sampled_prob for top in each.top) + each.tail_mass == pytest.approx(1)


def test_special_tokens_in_a_prompt_stay_text(stored: nextword.LanguageModel) -> None:
    ids = stored.encode("<|im_end|>")
    assert len(ids) > 1
    assert stored.tokenizer.decode(ids) == "<|im_end|>"


def test_logprobs_of_a_text_name_its_tokens(stored: nextword.LanguageModel) -> None:
    scored = stored.logprobs("The capital of France is Paris")
    assert [token.token for token in scored.tokens] == ["The", " capital", " of", " France", " is", " Paris"]
    assert scored.tokens[0].logprob is None
    assert scored.tokens[-1].rank == 1


def test_a_prompt_beyond_the_context_names_both_numbers(stored: nextword.LanguageModel) -> None:
    with pytest.raises(UsageError, match=r"9000 tokens.*8192"):
        stored.complete([100] * 9000)


@pytest.mark.parametrize("precision", ["stored", "exact"])
def test_threads_and_interleaved_streams_of_one_model_get_what_each_gets_alone(
    precision: str, request: pytest.FixtureRequest
) -> None:
    model: nextword.LanguageModel = request.getfixturevalue(precision)

    def run(seed: int) -> tuple[Any, ...]:
        return model.complete(PROMPTS[seed], max_tokens=12, seed=seed).tokens

    alone = [run(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(run, range(4))) == alone
    streams = [model.stream(PROMPTS[seed], max_tokens=12, seed=seed) for seed in range(4)]
    together = list(zip_longest(*streams))
    assert [tuple(step for step in steps if step) for steps in zip(*together, strict=True)] == alone


def test_a_prompt_gets_the_same_text_in_a_list_of_another_order(stored: nextword.LanguageModel) -> None:
    there = stored.complete_all(PROMPTS[:3], n=2, max_tokens=8, seed=3)
    back = stored.complete_all(PROMPTS[2::-1], n=2, max_tokens=8, seed=3)
    assert {(each.prompt, each.sample_index % 2): each.text for each in there} == {
        (each.prompt, each.sample_index % 2): each.text for each in back
    }
