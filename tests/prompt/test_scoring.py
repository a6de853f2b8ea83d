"""Likelihoods of continuations equal those of each text read alone, however much the texts share."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nextword import load
from nextword.base import UsageError
from nextword.engine import LanguageModel
from nextword.models import Model, Tree, build
from nextword.prompt.scoring import Scorer, encode, tokens_to_read, windows
from nextword.prompt.task import Encoded, Request
from nextword.spec import ModelSpec

VOCABULARY = 23


def spec_of(kind: str) -> ModelSpec:
    attention = {"heads": 4, "kv_heads": 2, "head_width": 8, "mlp_width": 48} if kind in ("full", "windowed") else {}
    if kind == "windowed":
        attention |= {"windows": (5, 0)}
    real = "transformer" if attention else kind
    return ModelSpec(kind=real, vocabulary=VOCABULARY, width=32, layers=2, context=96, **attention)  # type: ignore


@pytest.fixture(scope="module", params=["full", "windowed", "lstm", "gru", "rnn"])
def model(request: pytest.FixtureRequest) -> Model:
    torch.manual_seed(3)
    made = build(spec_of(request.param))
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made.eval()


@torch.inference_mode()
def alone(model: Model, request: Encoded) -> tuple[float, bool]:
    """ln p by one whole forward pass of the request's own text."""
    text = torch.tensor([request.context + request.continuation])
    logs = model(text[:, :-1])[0][0].double().log_softmax(-1)[len(request.context) - 1 :]
    target = text[0, len(request.context) :]
    return float(logs.gather(1, target[:, None]).sum()), bool((logs.argmax(-1) == target).all())


def check(model: Model, requests: list[Encoded], at_once: int) -> Scorer:
    scorer = Scorer(model, at_once)
    for request, found in zip(requests, scorer.score(requests), strict=True):
        logprob, greedy = alone(model, request)
        assert found.logprob == pytest.approx(logprob, abs=1e-4)
        assert (found.greedy, len(found.logprobs)) == (greedy, len(request.continuation))
    assert scorer.work.forwarded == tokens_to_read(requests, model, at_once)
    return scorer


def family(seed: int, shared: int, items: int, item: int, choices: list[int]) -> list[Encoded]:
    """A shared beginning, items behind it, and continuations of the given lengths behind each item."""
    draw = random.Random(seed)
    trunk = [draw.randrange(VOCABULARY) for _ in range(shared)]
    found = []
    for _ in range(items):
        context = (*trunk, *(draw.randrange(VOCABULARY) for _ in range(draw.randint(1, item))))
        found += [Encoded(context, tuple(draw.randrange(3) for _ in range(length))) for length in choices]
    return found


@pytest.mark.parametrize("at_once", [1, 7, 40, 1000])
def test_sharing_changes_no_likelihood(model: Model, at_once: int) -> None:
    requests = family(0, 30, 6, 9, [1, 1, 3, 4]) + family(1, 0, 3, 40, [1, 2])
    random.Random(5).shuffle(requests)
    check(model, requests, at_once)


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(st.lists(st.integers(0, 2), min_size=2, max_size=14), min_size=1, max_size=9),
    cuts=st.lists(st.integers(1, 13), min_size=9, max_size=9),
    at_once=st.integers(1, 12),
)
def test_any_set_of_texts_is_scored_as_each_alone(texts: list[list[int]], cuts: list[int], at_once: int) -> None:
    torch.manual_seed(1)
    model = build(spec_of("full")).eval()
    requests = [
        Encoded(tuple(text[: min(cut, len(text) - 1)]), tuple(text[min(cut, len(text) - 1) :]))
        for text, cut in zip(texts, cuts, strict=False)
    ]
    check(model, requests, at_once)


def test_a_shared_beginning_is_computed_once_and_one_token_labels_cost_nothing() -> None:
    model = build(spec_of("full")).eval()
    requests = [
        Encoded((*range(20), 21, item, 2), (label,)) for item in range(10) for label in range(5)
    ]  # 20 tokens shared, 3 an item: the 21 is shared too
    work = check(model, requests, 16).work
    assert work.forwarded == 20 + 1 + 10 * 2


def test_a_tree_is_read_as_each_of_its_paths(model: Model) -> None:
    tree = Tree()
    trunk = tree.add(-1, [3, 1, 4])
    left = tree.add(trunk[-1], [1, 5])
    right = tree.add(trunk[1], [9, 2, 6])
    other = tree.add(-1, [7])
    before = [11, 12, 13]
    with torch.inference_mode():
        state = model.new_state(1)
        model.hidden(torch.tensor([before]), state)
        found = model.read_tree(tree, state, left)
        for end in (left[-1], right[-1], other[-1]):
            path = tree.path(end)
            expected = model.hidden(torch.tensor([before + [tree.tokens[node] for node in path]]))[0, len(before) :]
            np.testing.assert_allclose(found[path], expected, atol=2e-5)


def test_a_state_goes_on_along_the_path_that_was_kept(model: Model) -> None:
    tree = Tree()
    trunk = tree.add(-1, [3, 1, 4])
    tree.add(trunk[-1], [1, 5])
    right = tree.add(trunk[1], [9, 2, 6])
    with torch.inference_mode():
        state = model.new_state(1)
        model.hidden(torch.tensor([[11, 12, 13]]), state)
        model.read_tree(tree, state, tree.path(right[1]))
        assert state.lengths == [3 + 4]
        found = model.hidden(torch.tensor([[8, 8]]), state)
        expected = model.hidden(torch.tensor([[11, 12, 13, 3, 1, 9, 2, 8, 8]]))[:, -2:]
        np.testing.assert_allclose(found, expected, atol=2e-5)
        assert state.back(3) <= 3


def test_windows_predict_every_token_once_from_as_much_as_fits() -> None:
    pieces = windows(range(10), 99, 4)
    assert pieces == [
        Encoded((99,), (0, 1, 2, 3)),
        Encoded((3,), (4, 5, 6, 7)),
        Encoded((5, 6, 7), (8, 9)),
    ]
    assert all(len(piece.context) + len(piece.continuation) - 1 <= 4 for piece in pieces)


def test_a_text_beyond_the_context_is_refused_before_anything_is_read() -> None:
    model = build(spec_of("full")).eval()
    with pytest.raises(UsageError, match="98 tokens; the model's context holds 96"):
        Scorer(model).score([Encoded((1,) * 97, (2, 2))])


@pytest.fixture(scope="module")
def real(smollm2_path: Path) -> LanguageModel:
    return load(str(smollm2_path), dtype="float32")


def test_spaces_at_the_end_of_a_prompt_belong_to_the_continuation(real: LanguageModel) -> None:
    assert encode(Request("Answer: ", "yes"), real.tokenizer) == encode(Request("Answer:", " yes"), real.tokenizer)
    found = encode(Request("Answer:", " yes"), real.tokenizer)
    assert real.tokenizer.decode(found.continuation) == " yes"
    assert not found.apart


def test_a_continuation_that_merges_into_the_prompt_is_told(real: LanguageModel) -> None:
    assert encode(Request("The answ", "er"), real.tokenizer).apart


def test_the_real_model_scores_as_it_scores_a_whole_text(real: LanguageModel) -> None:
    text = "The capital of France is"
    requests = [
        encode(Request(text, answer), real.tokenizer) for answer in (" Paris.", " London.", " a city in Europe.")
    ]
    for request, found in zip(requests, Scorer(real.engine.model).score(requests), strict=True):
        logprobs, ranks = real.engine.score([*request.context, *request.continuation])
        size = len(request.continuation)
        assert found.logprob == pytest.approx(logprobs[-size:].sum(), abs=1e-3)
        assert found.greedy == all(rank == 1 for rank in ranks[-size:])
