"""Whole models in one call of the compiled kernels against PyTorch, on every instruction set."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from models_in_memory import LLAMA, SPECS, arrays_of, backend_over, model_of, random_ids, texts

from nextword import native
from nextword.backend import Batch
from nextword.runtime import CpuBackend
from nextword.spec import ExpertsSpec
from paged import Paged, grow

pytestmark = pytest.mark.skipif(not native.available(), reason="the compiled kernels were not built")


@pytest.mark.parametrize("name", SPECS)
def test_logits_equal_pytorchs(instructions: str, name: str) -> None:
    model, tokens = model_of(SPECS[name]), texts(3, 40)
    expected = model(tokens)
    assert expected.std() > 0.1
    found = grow(Paged(backend_over(model)), tokens)
    torch.testing.assert_close(found, expected, atol=5e-5 * expected.abs().max().item(), rtol=0)


def test_long_texts_are_read_over_many_pages(instructions: str) -> None:
    spec = replace(LLAMA, windows=(300, 0))
    model, tokens = model_of(spec), texts(1, 600)
    [logits] = Paged(backend_over(model)).read({0: tokens[0].tolist()}).values()
    torch.testing.assert_close(logits, model(tokens)[0], atol=1e-4, rtol=0)


# ---- bits


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.usefixtures("kernels_restored")
def test_a_token_gets_the_same_bits_in_any_batch_chunk_page_and_number_of_threads(name: str) -> None:
    model, tokens = model_of(SPECS[name]), texts(16, 30)
    native.set_threads(1)
    alone = [Paged(backend_over(model)).read({0: row.tolist()})[0] for row in tokens]
    for threads, count, page_size in ((2, 16, 8), (1, 5, 16), (3, 2, 64)):
        native.set_threads(threads)
        paged = Paged(backend_over(model, page_size=page_size), 200)
        for row, logits in enumerate(grow(paged, tokens[:count])):
            assert torch.equal(logits, alone[row])


@pytest.mark.parametrize("name", ["llama", "gemma", "gpt2", "gpt-oss", "lstm", "gru"])
@pytest.mark.usefixtures("kernels_restored")
def test_every_instruction_set_gives_the_same_bits(name: str) -> None:
    model, tokens = model_of(SPECS[name]), texts(2, 40)
    found = {}
    for level in native.LEVELS:
        native.limit_level(level)
        if native.level() == level:
            found[level] = grow(Paged(backend_over(model)), tokens)
    assert all(torch.equal(logits, found["portable"]) for logits in found.values())


# ---- scores and hidden rows


def step(batch: Batch, logit_rows: list[int], score_rows: list[int], targets: list[int]) -> Batch:
    rows = [np.array(ids, np.int64) for ids in (logit_rows, score_rows, targets)]
    return replace(batch, logit_rows=rows[0], score_rows=rows[1], targets=rows[2])


@pytest.mark.parametrize("name", ["llama", "gemma", "gru"])
def test_scores_are_log_probabilities_and_ranks_and_rows_come_in_any_order(instructions: str, name: str) -> None:
    model, tokens = model_of(SPECS[name]), texts(2, 30)
    exact = model(tokens).flatten(0, 1).double().log_softmax(-1).numpy()
    score_rows, targets = random_ids(200, 60), random_ids(200, 43, 1)
    paged = Paged(backend_over(model))
    batch = paged.batch({0: tokens[0].tolist(), 1: tokens[1].tolist()})
    output = paged.backend.forward(step(batch, [59, 3, 3, 30], score_rows.tolist(), targets.tolist()))
    np.testing.assert_allclose(output.logprobs, exact[score_rows, targets], atol=2e-5)
    own = exact[score_rows, targets][:, None]
    np.testing.assert_array_equal(output.ranks, 1 + (exact[score_rows] > own).sum(1))
    logits = torch.from_numpy(output.logits).double().log_softmax(-1).numpy()
    np.testing.assert_allclose(logits, exact[[59, 3, 3, 30]], atol=2e-5)


def test_equal_logits_are_ranked_by_id() -> None:
    model = model_of(LLAMA)
    model.embedding.weight[30:] = model.embedding.weight[30].clone()  # and with it the tied head
    paged = Paged(backend_over(model))
    output = paged.backend.forward(step(paged.batch({0: [1, 2]}), [], [1] * 20, list(range(30, 50))))
    assert np.diff(output.ranks).tolist() == [1] * 19
    assert len(set(output.logprobs)) == 1


def test_a_chunk_that_wants_nothing_still_leaves_its_keys_and_values() -> None:
    model, tokens = model_of(LLAMA), texts(1, 20)[0].tolist()
    [whole] = Paged(backend_over(model)).read({0: tokens}).values()
    paged = Paged(backend_over(model))
    paged.backend.forward(step(paged.batch({0: tokens[:19]}), [], [], []))
    assert torch.equal(paged.read({0: tokens[19:]})[0][0], whole[-1])


@pytest.mark.parametrize("name", ["llama", "gemma", "lstm"])
@torch.inference_mode()
def test_hidden_rows_are_what_the_head_reads(name: str) -> None:
    model, tokens = model_of(SPECS[name]), texts(1, 20)
    paged = Paged(backend_over(model))
    hidden = paged.backend.forward(replace(paged.batch({0: tokens[0].tolist()}), hidden_rows=np.arange(20))).hidden
    torch.testing.assert_close(torch.from_numpy(hidden), model.hidden(tokens)[0], atol=1e-4, rtol=1e-4)


# ---- weights


def test_weights_are_read_where_they_are() -> None:
    model, tokens = model_of(LLAMA), texts(1, 9)
    backend = backend_over(model)
    before = Paged(backend).read({0: tokens[0].tolist()})[0]
    for parameter in model.parameters():
        parameter.mul_(1.1)
    after = Paged(backend).read({0: tokens[0].tolist()})[0]
    assert not torch.equal(before, after)
    torch.testing.assert_close(after, model(tokens)[0], atol=1e-4, rtol=1e-4)


def test_a_nan_in_a_matrix_or_norm_makes_every_logit_nan(instructions: str) -> None:
    for name in ("blocks.1.mlp.down.weight", "blocks.0.attention_norm.weight", "norm.weight"):
        model = model_of(LLAMA)
        model.get_parameter(name).flatten()[3] = float("nan")
        [logits] = Paged(backend_over(model)).read({0: [1, 2, 3]}).values()
        assert logits.isnan().all(), name


def test_a_nan_stays_in_its_own_sequence_and_behind_itself(instructions: str) -> None:
    model = model_of(replace(LLAMA, tied=False))
    model.embedding.weight[42] = float("nan")
    logits = Paged(backend_over(model)).read({0: [1, 2, 3, 42, 5, 6], 1: [4, 5]})
    assert logits[0][3:].isnan().all()
    assert logits[0][:3].isfinite().all()
    assert logits[1].isfinite().all()


def test_experts_that_no_token_chose_are_not_read() -> None:
    spec = replace(LLAMA, experts=ExpertsSpec(8, 2, 48))
    model = model_of(spec)
    tokens = texts(1, 3)
    chosen: list[set[int]] = []
    for block in model.blocks:  # type: ignore[union-attr]
        block.mlp.register_forward_pre_hook(lambda mlp, x: chosen.append(set(mlp.route(x[0][0])[1].flatten().tolist())))
    expected = model(tokens)[0]
    assert len(chosen[0]) < 8
    for block, read in zip(model.blocks, chosen, strict=True):  # type: ignore[arg-type]
        for expert in set(range(8)) - read:
            block.mlp.up[expert] = block.mlp.down[expert] = float("nan")
    [logits] = Paged(backend_over(model)).read({0: tokens[0].tolist()}).values()
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("change", ["missing", "shape", "type"])
def test_arrays_that_do_not_fit_are_named(change: str) -> None:
    arrays = arrays_of(model_of(LLAMA))
    name = "blocks.0.mlp.up.weight"
    if change == "missing":
        del arrays[name]
    else:
        arrays[name] = arrays[name][:-1] if change == "shape" else arrays[name].astype(np.float64)
    with pytest.raises(ValueError, match=name):
        CpuBackend.from_arrays(LLAMA, arrays)
