"""Held-out loss: the targets that training learns, the same for every run on the text, with an error that holds."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from configs import config_of, with_spec

from nextword.data import IGNORED, Dataset, TokenStream, Windows
from nextword.spec import ModelSpec
from nextword.train.evaluate import evaluate, standard_error, val_windows
from nextword.train.loss_module import LossModule, new_model
from nextword.train.trainer import Trainer

SPEC = ModelSpec(kind="transformer", vocabulary=97, width=16, layers=1, context=64, heads=2, kv_heads=2, head_width=8,
                 mlp_width=32)  # fmt: skip
RUN = config_of(SPEC, context=64, batch_size=4, micro_batch=4, steps=4, learning_rate=1e-3,
                final_learning_rate=1e-4, warmup_steps=1, dtype="fp32")  # fmt: skip
CPU, END = torch.device("cpu"), 0
WAYS = list(product(("stream", "best-fit"), (True, False)))


def documents(count: int, seed: int = 0, longest: int = 60) -> list[list[int]]:
    draw = np.random.default_rng(seed)
    return [draw.integers(1, 97, draw.integers(1, longest)).tolist() for _ in range(count)]


def measured(stream: TokenStream, most: int = 10**9, **changes: Any) -> Any:
    run = RUN.with_train(**changes)
    return evaluate(LossModule(new_model(run)), val_windows(stream, run, most), 3, CPU)


@torch.no_grad()
def loss_alone(tokens: list[int]) -> tuple[float, int]:
    """Summed loss of one document that is read by itself: its mark, its tokens, its end. By torch's cross-entropy."""
    whole = torch.tensor([[END, *tokens, END]])
    logits = new_model(RUN)(whole[:, :-1])
    return float(F.cross_entropy(logits.flatten(0, 1), whole[0, 1:], reduction="sum")), len(tokens) + 1


def test_packed_documents_that_are_kept_apart_are_evaluated_as_each_by_itself() -> None:
    texts = documents(40)
    alone = np.array([loss_alone(text) for text in texts])
    found = measured(TokenStream.of(texts, END), packing="best-fit", mask_documents=True)
    assert found.nats_per_token == pytest.approx(alone[:, 0].sum() / alone[:, 1].sum(), rel=1e-5)
    assert found.tokens == alone[:, 1].sum()
    assert found.error == pytest.approx(standard_error(alone[:, 0], alone[:, 1]), rel=1e-4)
    assert (found.clusters, found.over) == (40, "documents")


@pytest.mark.parametrize(("packing", "mask"), WAYS)
def test_one_document_in_one_window_is_evaluated_alike_however_it_is_read(packing: str, mask: bool) -> None:
    text = documents(1, longest=60)[0]
    found = measured(TokenStream.of([text], END), packing=packing, mask_documents=mask, context=len(text))
    if packing == "stream":  # a window for all but the last input, and one for that
        assert found.tokens == len(text) + 1
    else:
        whole = measured(TokenStream.of([text], END), packing=packing, mask_documents=mask, context=63)
        assert whole.tokens == found.tokens == len(text) + 1


@pytest.mark.parametrize(("packing", "mask"), WAYS)
def test_training_and_evaluation_count_the_same_targets(packing: Any, mask: bool) -> None:
    """Over whole epochs, but for the rest of a stream that is shorter than a window."""
    stream = TokenStream.of(documents(60, seed=1), END)
    windows = Windows(stream, 16, 0, packing, mask)
    targets = np.concatenate([windows.batch(step, 1).targets for step in range(windows.count)])
    trained = int((targets != IGNORED).sum())
    found = measured(stream, context=16, packing=packing, mask_documents=mask)
    assert found.tokens == stream.tokens  # every token, and every document's end for its mark
    assert found.tokens - trained == (stream.tokens % 16 if packing == "stream" else 0)


@pytest.mark.parametrize("most", [300, 10**9])
def test_the_targets_are_the_same_whatever_the_context_the_packing_and_the_masks(most: int) -> None:
    stream = TokenStream.of(documents(60, seed=2), END)
    counted = {
        measured(stream, most, context=context, packing=packing, mask_documents=mask).tokens
        for context in (7, 16, 50)
        for packing, mask in WAYS
    }
    assert len(counted) == 1


def test_keeping_documents_apart_changes_what_is_seen_and_not_what_is_counted() -> None:
    stream = TokenStream.of(documents(30, seed=3), END)
    apart, across = (measured(stream, mask_documents=each) for each in (True, False))
    assert apart.tokens == across.tokens
    assert apart.nats_per_token != across.nats_per_token


def test_long_text_is_evaluated_in_stretches_spread_over_all_of_it() -> None:
    stream = TokenStream.of(documents(6, seed=4, longest=9000), END)
    windows = val_windows(stream, RUN, 8192)
    assert windows.stream.tokens == 8192
    assert windows.stream.read(0, 4096).tolist() == stream.read(0, 4096).tolist()
    assert windows.stream.read(4096, 4096).tolist() == stream.read(stream.tokens - 4096, 4096).tolist()
    found = measured(stream, 8192)
    assert 8192 - 3 <= found.tokens < 8192  # nothing is predicted behind a cut
    assert found.over == "stretches of text"  # documents are too few
    assert 40 <= found.clusters <= 40 + len(windows.stream.segments.starts)


def test_a_sample_is_of_many_places_each_as_long_as_the_context() -> None:
    stream = TokenStream.of(documents(6, seed=4, longest=9000), END)
    windows = val_windows(stream, RUN, 640, sample=True)
    read = [windows.stream.read(at, 64).tolist() for at in range(0, 640, 64)]
    whole = stream.read(0, stream.tokens).tolist()
    places = [next(at for at in range(len(whole)) if whole[at : at + 64] == piece) for piece in read]
    assert places == sorted(places)
    assert places[-1] - places[0] == stream.tokens - 64
    assert max(b - a for a, b in pairwise(places)) < 0.12 * stream.tokens


@pytest.mark.parametrize("count", [1, 2, 19, 20])
def test_of_few_documents_the_error_is_over_stretches_of_their_text(count: int) -> None:
    found = measured(TokenStream.of(documents(count, seed=5, longest=600), END))
    assert found.over == ("documents" if count == 20 else "stretches of text")
    assert found.clusters >= 20
    assert found.error is not None


def test_the_worked_case_of_the_standard_error() -> None:
    # Two documents of 1 and 3 tokens with 2 and 12 nats: mean 14/4 = 3.5, residuals 2 - 3.5 and 12 - 10.5.
    assert standard_error([2, 12], [1, 3]) == pytest.approx((2 * (1.5**2 + 1.5**2)) ** 0.5 / 4)
    assert standard_error([2], [1]) is None
    assert standard_error([2, 0], [1, 0]) is None


def test_the_standard_error_covers_the_true_mean_as_often_as_it_says() -> None:
    """Documents of unlike lengths whose losses differ: 95% intervals, of which the naive ones hold a quarter."""
    draw = np.random.default_rng(0)
    held = naive = 0
    trials, count, true = 600, 40, 3.0
    for _ in range(trials):
        sizes = draw.geometric(1 / 100, count)
        of_document = draw.normal(true, 0.5, count)
        nats = draw.normal(of_document * sizes, 2 * np.sqrt(sizes))
        mean, error = nats.sum() / sizes.sum(), standard_error(nats, sizes)
        assert error is not None
        held += abs(mean - true) <= 2.02 * error  # Student's t with 39 degrees of freedom
        naive += abs(mean - true) <= 1.96 * 2 / np.sqrt(sizes.sum())
    assert 0.9 < held / trials < 0.97
    assert naive / trials < 0.6


def test_runs_of_unlike_length_are_evaluated_on_the_same_text_and_on_samples_of_it_meanwhile(
    data: Dataset, tmp_path: Path
) -> None:
    model = replace(SPEC, vocabulary=data.vocabulary)
    ends = []
    for steps in (2, 6):
        folder = tmp_path / str(steps)
        run = with_spec(RUN, model).with_train(context=16, steps=steps)
        run = run.with_run(evaluate_every=1, evaluate_tokens=data.val.tokens)
        Trainer(run, data, folder).train()
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        *meanwhile, end = [line["val"] for line in lines if "val" in line]
        assert [each["sample"] for each in meanwhile] == [True] * (steps - 1)
        assert all(each["tokens"] < end["tokens"] for each in meanwhile)
        assert not end["sample"]
        assert end["error"] > 0
        ends.append(end)
    assert ends[0]["tokens"] == ends[1]["tokens"] == data.val.tokens
