"""RNN, LSTM and GRU: steps against whole sequences, padding, packing, the engine, and how training begins."""

from __future__ import annotations

import itertools
import math
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import nn

from nextword.engine import Engine, Request, SamplingParams, ScoreRequest, StopConfig
from nextword.engine.sampler import Draw, SampleRow, Uniforms, sample
from nextword.models import Recurrent, build, prepare
from nextword.models.backend import TorchBackend
from nextword.models.recurrent import CELLS
from nextword.plan import parameters
from nextword.spec import ModelKind, ModelSpec
from paged import Paged

KINDS: tuple[ModelKind, ...] = ("rnn", "lstm", "gru")
PLAIN = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}
TIGHT = {"atol": 1e-5, "rtol": 0}


def spec_of(kind: ModelKind, **changes: Any) -> ModelSpec:
    return ModelSpec(kind, **({"vocabulary": 61, "width": 24, "layers": 3, "context": 16} | changes))


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest) -> Recurrent:
    torch.manual_seed(5)
    made = cast(Recurrent, build(spec_of(request.param))).eval()
    for parameter in made.recurrent.parameters():  # biases begin at zero, which would hide a mix-up
        parameter.data.add_(torch.randn_like(parameter) * 0.2)
    return made


def tokens_of(batch: int, time: int) -> torch.Tensor:
    return torch.randint(0, 61, (batch, time), generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
def plain_logits(model: Recurrent, tokens: torch.Tensor) -> torch.Tensor:
    """Oracle: torch's own module with the same numbers, a sequence at once from zeros."""
    spec = model.spec
    plain = PLAIN[spec.kind](spec.width, spec.width, spec.layers, batch_first=True)
    plain.load_state_dict(model.recurrent.state_dict())
    return plain(model.embedding.weight[tokens])[0] @ model.head.weight.t()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("changes", [{}, {"tied": False}, {"head_bias": True, "layers": 1}])
def test_the_parameters_are_those_that_the_plan_counts(kind: ModelKind, changes: dict[str, Any]) -> None:
    spec = spec_of(kind, **changes)
    assert sum(parameter.numel() for parameter in build(spec).parameters()) == parameters(spec).total


@torch.inference_mode()
def test_token_by_token_equals_the_whole_sequence_at_once(model: Recurrent) -> None:
    tokens = tokens_of(3, 20)
    state = model.new_state(3)
    pieces = [tokens[:, :7], *tokens[:, 7:].split(1, dim=1)]
    stepped = torch.cat([model.logits(model.hidden(piece, state=state)) for piece in pieces], 1)
    expected = plain_logits(model, tokens)
    assert expected.std() > 0.05  # a flat output would agree with anything
    torch.testing.assert_close(stepped, expected, **TIGHT)
    torch.testing.assert_close(model(tokens), expected, **TIGHT)


@torch.inference_mode()
def test_sequences_that_grow_side_by_side_over_pages_go_on_from_their_own_last_token(model: Recurrent) -> None:
    tokens, lengths = tokens_of(3, 40), (12, 1, 29)
    paged = Paged(TorchBackend(model))
    first = paged.read({row: tokens[row, :length].tolist() for row, length in enumerate(lengths)})
    then = [paged.read({row: [int(tokens[row, lengths[row] + step])] for row in range(3)}) for step in range(9)]
    for row, length in enumerate(lengths):
        found = torch.cat([first[row], *(step[row] for step in then)])
        torch.testing.assert_close(found, plain_logits(model, tokens[row : row + 1, : length + 9])[0], **TIGHT)


@torch.inference_mode()
def test_packed_documents_do_not_hear_each_other_and_the_first_continues_its_row(model: Recurrent) -> None:
    before, tokens, after = tokens_of(2, 3), tokens_of(2, 10), tokens_of(2, 2)
    documents = torch.tensor([[0] * 4 + [1] * 6, [7] * 2 + [8] + [9] * 7])
    state = model.new_state(2)
    model.hidden(before, state=state)
    found = model.logits(model.hidden(tokens, documents, state=state))
    went_on = model.logits(model.hidden(after, state=state))
    for row, bounds in enumerate(([0, 4, 10], [0, 2, 3, 10])):
        for start, end in itertools.pairwise(bounds):
            text = tokens[row, start:end] if start else torch.cat((before[row], tokens[row, :end]))
            expected = plain_logits(model, text[None])[0, start - end :]
            torch.testing.assert_close(found[row, start:end], expected, **TIGHT)
        expected = plain_logits(model, torch.cat((tokens[row, bounds[-2] :], after[row]))[None])[0, -2:]
        torch.testing.assert_close(went_on[row], expected, **TIGHT)


@pytest.mark.parametrize("kind", ["rnn", "gru"])
@pytest.mark.parametrize("layers", [1, 3])
def test_training_computes_what_torch_does_in_float64(kind: ModelKind, layers: int) -> None:
    torch.manual_seed(0)
    made = cast(Recurrent, build(spec_of(kind, layers=layers)))
    for parameter in made.recurrent.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.2)
    plain = PLAIN[kind](24, 24, layers, batch_first=True).double()
    plain.load_state_dict(made.recurrent.state_dict())
    prepare(made, "train")
    assert type(made.recurrent) is not CELLS[kind]
    x, hidden = torch.randn(5, 33, 24, requires_grad=True), torch.randn(layers, 5, 24, requires_grad=True)
    results = []
    for module, inputs in ((made.recurrent, (x, hidden)), (plain, (x.double(), hidden.double()))):
        out, after = module(*inputs)
        weighed = (out * torch.linspace(-1, 2, out.numel()).view_as(out)).sum() + after.square().sum()
        results.append([out, after, *torch.autograd.grad(weighed, [x, hidden, *module.parameters()])])
    for ours, exact in zip(*results, strict=True):
        assert ours.dtype == torch.float32
        assert (ours - exact).abs().max() <= 1e-5 * exact.abs().max()


def test_training_uses_torch_in_16_bits_and_for_packed_documents() -> None:
    made = cast(Recurrent, build(spec_of("gru")))
    tokens, documents = tokens_of(2, 10), torch.tensor([[0] * 4 + [1] * 6, [7] * 2 + [8] * 8])
    found = []
    for mode in ("eager", "train"):
        prepare(made, mode)  # type: ignore[arg-type]
        packed = made.hidden(tokens, documents).detach()
        with torch.autocast("cpu", torch.bfloat16):
            found.append((packed, made.hidden(tokens).detach()))
    assert all(torch.equal(eager, trained) for eager, trained in zip(*found, strict=True))


def test_gradients_end_where_a_state_was_detached(model: Recurrent) -> None:
    model.requires_grad_(True)
    state = model.new_state(1)
    model.hidden(tokens_of(1, 4), state=state)
    kept = state.detach()
    assert state.hidden.requires_grad
    assert not kept.hidden.requires_grad
    assert torch.equal(kept.hidden, state.hidden)


class ByteDecoder:
    def push(self, id: int) -> str:
        return chr(id)

    def flush(self) -> str:
        return ""


class NumberTokenizer:
    """A token is its number; none ends a text."""

    stop_ids = frozenset[int]()

    def token_text(self, id: int) -> str:
        return chr(id)

    def stream(self) -> ByteDecoder:
        return ByteDecoder()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_uneven_prompts_side_by_side_equal_each_alone_beyond_the_context(model: Recurrent, temperature: float) -> None:
    engine = Engine(TorchBackend(model), NumberTokenizer())  # type: ignore[arg-type]
    prompts = [(7, 9), (3,) * 40, (1, 2, 3, 4, 5), (7, 9)]
    sampling = SamplingParams(temperature=temperature, seed=3)
    handles = engine.complete([Request(prompt, sampling, StopConfig(25)) for prompt in prompts])
    for prompt, handle in zip(prompts, handles, strict=True):
        tokens = list(prompt)
        for _ in range(25):
            logits = plain_logits(model, torch.tensor([tokens]))[0, -1:].numpy()
            [draw] = sample(logits, [SampleRow(sampling, Uniforms(3, 0).at(len(tokens)), (), ())])
            assert isinstance(draw, Draw)
            tokens.append(draw.token)
        assert [step.id for step in handle.tokens[0]] == tokens[len(prompt) :]
        assert handle.finish_reasons == ("length",)  # a context of 16 ends nothing


def test_a_text_of_any_length_is_scored(model: Recurrent) -> None:
    tokens = tuple(tokens_of(1, 30)[0].tolist())
    engine = Engine(TorchBackend(model), NumberTokenizer())  # type: ignore[arg-type]
    [[score]] = engine.score([ScoreRequest(tokens[:1], (tokens[1:],))])
    own = plain_logits(model, torch.tensor([tokens]))[0].double().log_softmax(-1)
    expected = [own[place, token] for place, token in enumerate(tokens[1:])]
    np.testing.assert_allclose(score.logprobs, expected, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("changes", [{}, {"tied": False}, {"width": 96, "layers": 1}])
def test_the_first_loss_is_that_of_knowing_nothing(kind: ModelKind, changes: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = build(spec_of(kind, vocabulary=500, **changes))
    tokens = torch.randint(0, 500, (16, 129), generator=torch.Generator().manual_seed(2))
    logits = model(tokens[:, :-1])
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    assert loss.item() == pytest.approx(math.log(500), abs=0.1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [True, False])
def test_what_reaches_the_first_gates_has_a_variance_of_one(kind: ModelKind, tied: bool) -> None:
    torch.manual_seed(0)
    model = cast(Recurrent, build(spec_of(kind, width=128, vocabulary=500, tied=tied)))
    reached = model.embedding(torch.arange(500)) @ model.recurrent.weight_ih_l0.t()
    assert reached.std().item() == pytest.approx(1.0, abs=0.05)


def test_an_lstm_begins_with_its_forget_gates_open() -> None:
    biases = dict(build(spec_of("lstm")).named_parameters())
    for layer in range(3):
        total = biases[f"recurrent.bias_ih_l{layer}"] + biases[f"recurrent.bias_hh_l{layer}"]
        assert total.tolist() == [0.0] * 24 + [1.0] * 24 + [0.0] * 48


def test_dropout_works_in_training_alone(model: Recurrent) -> None:
    tokens = tokens_of(2, 9)
    prepare(model, "train", dropout=0.5)
    quiet = model.eval()(tokens)
    assert torch.equal(model(tokens), quiet)
    torch.manual_seed(1)
    assert not torch.allclose(model.train()(tokens), model(tokens))
