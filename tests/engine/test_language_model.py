"""The Python interface: what it takes, and one line for everything else."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import nextword
from nextword.base import UsageError


@pytest.fixture(scope="module")
def model(tiny_model: Callable[..., Path]) -> nextword.LanguageModel:
    return nextword.load(tiny_model())


def test_a_path_loads_the_model_that_its_text_names(model: nextword.LanguageModel) -> None:
    assert nextword.load(str(model.loaded.path)).name == model.name == str(model.loaded.path)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"name": b"gpt2"}, "name is b'gpt2' (bytes); it takes a str or a path"),
        ({"name": None}, "name is None"),
        ({"name": Path("/nowhere/x")}, "/nowhere/x does not exist"),
        ({"name": "gpt2", "dtype": torch.float32}, "dtype is torch.float32 (dtype); it takes a str"),
        ({"name": "gpt2", "device": 0}, "device is 0; it takes a str"),
    ],
)
def test_what_names_no_model_is_refused_in_one_line(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        nextword.load(**arguments)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


WRONG: dict[str, tuple[Callable[[nextword.LanguageModel], Any], str]] = {
    "bytes": (lambda m: m.complete(b"Hi"), "the prompt is b'Hi' (bytes); it takes text"),
    "a path": (lambda m: m.complete(Path("a")), "it takes text or a list of token ids"),
    "nothing": (lambda m: m.complete(None), "the prompt is None"),
    "a number": (lambda m: m.stream(5), "the prompt is 5"),
    "floats": (lambda m: m.complete([1.0, 2.0]), "[1.0, 2.0] (list)"),
    "rows of ids": (lambda m: m.complete(np.ones((2, 2), int)), "token ids"),
    "an id beyond the vocabulary": (lambda m: m.complete([1, 257]), "is 257; it takes a whole number from 0 to 256"),
    "a negative id": (lambda m: m.complete([-1]), "is -1; it takes a whole number from 0 to 256"),
    "an empty prompt": (lambda m: m.complete([]), "the prompt is empty"),
    "a string for a list": (lambda m: m.complete_all("Hi"), "prompts is 'Hi' (str); it takes a list of prompts"),
    "bytes for a list": (lambda m: m.complete_all(b"Hi"), "it takes a list of prompts"),
    "ids for a list": (lambda m: m.complete_all([1, 2]), "the prompt is 1"),
    "a misspelled setting": (lambda m: m.complete("Hi", temprature=1), "'temprature'. Did you mean temperature"),
    "a misspelled limit": (lambda m: m.stream("Hi", max_token=1), "'max_token'. Did you mean max_tokens"),
    "a misspelled number": (lambda m: m.next_token_distribution("Hi", tpo=1), "'tpo'. Did you mean top"),
    "several of one": (lambda m: m.complete("Hi", n=2), "complete_all([prompt], n=...)"),
    "half a token": (lambda m: m.complete("Hi", max_tokens=2.5), "max_tokens is 2.5; it takes a whole number"),
    "tokens as text": (lambda m: m.complete("Hi", max_tokens="5"), "max_tokens is '5' (str)"),
    "true tokens": (lambda m: m.complete("Hi", max_tokens=True), "max_tokens is True"),
    "no tokens": (lambda m: m.complete("Hi", max_tokens=0), "max_tokens is 0; it takes a whole number of at least 1"),
    "no samples": (lambda m: m.stream("Hi", n=0), "n is 0"),
    "half a sample": (lambda m: m.complete_all(["Hi"], n=1.5), "n is 1.5"),
    "negative alternatives": (lambda m: m.stream("Hi", top_logprobs=-1), "top_logprobs is -1"),
    "a number to stop at": (lambda m: m.complete("Hi", stop=5), "stop is 5"),
    "numbers to stop at": (lambda m: m.complete("Hi", stop=[5]), "a stop string is 5"),
    "bytes to stop at": (lambda m: m.complete("Hi", stop=b"x"), "stop is b'x'"),
    "a list to cut": (lambda m: m.complete("Hi", truncate=["left"]), "truncate is ['left']"),
    "a hot word": (lambda m: m.complete("Hi", temperature="hot"), "temperature is 'hot' (str)"),
    "a list of heats": (lambda m: m.complete("Hi", temperature=[1.0]), "temperature is [1.0] (list)"),
    "no heat": (lambda m: m.next_token_distribution("Hi", temperature=None), "temperature is None"),
    "one heat for a list": (
        lambda m: m.next_token_distributions("Hi", 0.5),
        "temperatures is 0.5; it takes a list of numbers",
    ),
    "no top": (lambda m: m.next_token_distribution("Hi", top=0), "top is 0"),
    "a real seed": (lambda m: m.complete("Hi", seed=1.5), "seed is 1.5"),
    "a seed as text": (lambda m: m.complete("Hi", seed="1"), "seed is '1' (str)"),
    "a negative seed": (lambda m: m.complete("Hi", seed=-1), "seed is -1"),
    "half of k": (lambda m: m.complete("Hi", top_k=1.5), "top_k is 1.5"),
    "a list of biases": (lambda m: m.complete("Hi", logit_bias=[1]), "logit_bias is [1] (list); it takes a dictionary"),
    "biases of words": (lambda m: m.complete("Hi", logit_bias={"a": 1}), "a token id of logit_bias is 'a'"),
    "wordy biases": (lambda m: m.complete("Hi", logit_bias={1: "a"}), "logit_bias of token 1"),
    "an order in words": (lambda m: m.complete("Hi", order="top_k,top_p"), "order is 'top_k,top_p' (str)"),
    "text of bytes": (lambda m: m.logprobs(b"Hi"), "Decode it first"),
    "no text": (lambda m: m.logprobs(""), "the text is empty"),
    "bytes to encode": (lambda m: m.encode(b"Hi"), "the text is b'Hi'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_value_is_refused_in_one_line_that_names_it(model: nextword.LanguageModel, case: str) -> None:
    call, said = WRONG[case]
    with pytest.raises(UsageError) as caught:
        call(model)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("name", ["temperature", "top_p", "min_p", "typical_p", "repetition_penalty"])
@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf, -math.inf, np.float32("nan"), 10**400])
def test_a_number_out_of_range_is_refused_by_name(model: nextword.LanguageModel, name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"^{name} is "):
        model.complete("Hi", **{name: value})
    with pytest.raises(UsageError, match=f"^{name} is "):
        model.next_token_distribution("Hi", **{name: value})


def test_numbers_of_numpy_are_taken_as_pythons_own(model: nextword.LanguageModel) -> None:
    plain = model.complete("Hi", max_tokens=5, temperature=0.5, top_k=9, seed=7, logit_bias={3: -math.inf})
    same = model.complete(
        np.array(model.encode("Hi")), max_tokens=np.int64(5), temperature=np.float32(0.5), top_k=np.int32(9),
        seed=np.uint64(7), logit_bias={np.int64(3): np.float32(-math.inf)},
    )  # fmt: skip
    assert same.ids == plain.ids


def test_a_completion_tells_what_repeats_it(model: nextword.LanguageModel) -> None:
    first, second = model.complete_all(["Hi", "Ho"], max_tokens=8)
    assert first.seed != second.seed
    for each in (first, second):
        assert model.complete(each.prompt, max_tokens=8, seed=each.seed).ids == each.ids
    assert first.timings.generated_tokens == len(first.ids)


def test_a_completion_holds_the_prompt_as_it_was_read(model: nextword.LanguageModel) -> None:
    long = "x" * 600
    made = model.complete(long, max_tokens=4, truncate="left")
    assert made.prompt == long
    assert made.prompt_ids == tuple(model.encode(long)[-508:])


def test_no_prompts_give_no_completions(model: nextword.LanguageModel) -> None:
    assert model.complete_all([]) == []


def test_a_single_token_has_no_perplexity(model: nextword.LanguageModel) -> None:
    scored = model.logprobs("I")
    assert len(scored.tokens) == 1
    assert scored.perplexity is None
    assert scored.to_dict()["perplexity"] is None
    assert model.logprobs("It").perplexity == pytest.approx(math.exp(-model.logprobs("It").logprob))
