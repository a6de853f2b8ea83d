"""Schedules, optimizers, loss and accumulation against worked values and plain torch."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from configs import config_of, with_spec
from hypothesis import given, settings
from hypothesis import strategies as st

from nextword.base import UsageError
from nextword.models import build
from nextword.spec import ModelSpec
from nextword.train.lora import add_adapters, merge_adapters
from nextword.train.loss import summed_loss
from nextword.train.loss_guard import LossGuard
from nextword.train.loss_module import LossModule, Placed, new_model, prepare
from nextword.train.optimizers import Lion, make_optimizer, newton_schulz
from nextword.train.schedules import cosine, learning_rate, warmup_stable_decay

SPEC = ModelSpec(kind="transformer", vocabulary=97, width=48, layers=3, context=64, tied=False, heads=6, kv_heads=2,
                 head_width=8, mlp_width=128)  # fmt: skip
RUN = config_of(SPEC, context=32, batch_size=4, micro_batch=4, steps=10,
                learning_rate=1e-3, final_learning_rate=1e-4, warmup_steps=2, dtype="fp32")  # fmt: skip


@pytest.mark.parametrize(
    ("step", "rate"),
    [(0, 9.9009901e-6), (50, 5.0495050e-4), (100, 1e-3), (575, 8.6819805e-4), (1050, 5.5e-4), (1525, 2.3180195e-4),
     (2000, 1e-4), (2001, 1e-4)],
)  # fmt: skip
def test_cosine_schedule_has_the_reference_values(step: int, rate: float) -> None:
    assert cosine(step, 2000, 100, 1e-3, 1e-4) == pytest.approx(rate, rel=1e-7)


@pytest.mark.parametrize(
    ("step", "factor"), [(0, 0.025), (19, 0.5), (39, 1), (350, 1), (351, 0.99853846), (675, 0.525), (1000, 0.05)]
)
def test_warmup_stable_decay_has_the_reference_values(step: int, factor: float) -> None:
    assert warmup_stable_decay(step, 1000, 40, 0.65, 0.05) == pytest.approx(factor, rel=1e-7)


def test_an_unknown_schedule_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match="cosine, wsd, constant"):
        learning_rate(RUN.with_train(schedule="cosin").train, 0)


def test_adamw_moves_a_parameter_as_worked_out_by_hand() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.ones_(model.weight)
    optimizer = make_optimizer(model, RUN.train)
    for gradient, expected in ((0.1, 0.9989000001), (-0.3, 0.9992894058)):
        model.weight.grad = torch.tensor([[gradient]])
        optimizer.step()
        assert model.weight.item() == pytest.approx(expected, abs=6e-8)  # float32


def test_newton_schulz_brings_singular_values_near_one() -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(newton_schulz(torch.randn(64, 96)))
    assert values.min().item() == pytest.approx(0.6821, abs=1e-3)
    assert values.max().item() == pytest.approx(1.1318, abs=1e-3)


def test_muon_moves_layers_and_leaves_ends_and_vectors_to_adamw() -> None:
    model = build(SPEC)
    muon = make_optimizer(model, RUN.with_train(optimizer="muon").train)
    moved = {id(p) for group in muon.param_groups if group["muon"] for p in group["params"]}
    named = {name for name, p in model.named_parameters() if id(p) in moved}
    assert all(name.startswith("blocks.") and p.ndim == 2 for name, p in model.named_parameters() if name in named)
    assert len(named) == 4 * SPEC.layers
    everything = sum(len(group["params"]) for group in muon.param_groups)
    assert everything == len(list(model.parameters()))


def test_muons_adam_equals_torchs_adamw() -> None:
    torch.manual_seed(0)
    ours, theirs = build(SPEC), build(SPEC)
    theirs.load_state_dict(ours.state_dict())
    a = make_optimizer(ours, RUN.with_train(optimizer="muon").train)
    b = make_optimizer(theirs, RUN.train)
    for _ in range(3):
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        a.step()
        b.step()
    torch.testing.assert_close(ours.embedding.weight, theirs.embedding.weight, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(ours.norm.weight, theirs.norm.weight, rtol=1e-5, atol=1e-7)


def test_lion_steps_by_the_sign_of_its_momentum() -> None:
    parameter = torch.nn.Parameter(torch.tensor([1.0, 1.0]))
    optimizer = Lion([{"params": [parameter]}], lr=0.1, betas=(0.9, 0.99))
    parameter.grad = torch.tensor([0.5, -3.0])
    optimizer.step()
    torch.testing.assert_close(parameter.detach(), torch.tensor([0.9, 1.1]))


def test_an_optimizer_that_only_plans_know_is_refused() -> None:
    with pytest.raises(UsageError, match="adamw, muon, lion"):
        make_optimizer(build(SPEC), RUN.with_train(optimizer="adam8bit").train)


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 2100), vocabulary=st.integers(2, 70), seed=st.integers(0, 9))
def test_the_chunked_loss_and_its_gradients_are_those_of_cross_entropy(rows: int, vocabulary: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, 8, generator=generator, dtype=torch.float32, requires_grad=True)
    weight = torch.randn(vocabulary, 8, generator=generator, requires_grad=True)
    targets = torch.randint(0, vocabulary, (rows,), generator=generator)
    targets[torch.rand(rows, generator=generator) < 0.2] = -100
    expected = F.cross_entropy((hidden @ weight.t()).double(), targets, ignore_index=-100, reduction="sum")
    expected.backward()
    wanted = hidden.grad.clone(), weight.grad.clone()  # type: ignore[union-attr]
    hidden.grad = weight.grad = None
    (0.5 * summed_loss(hidden, weight, targets)).backward()
    assert summed_loss(hidden, weight, targets).item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-4)
    torch.testing.assert_close(hidden.grad, 0.5 * wanted[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(weight.grad, 0.5 * wanted[1], rtol=1e-4, atol=1e-4)


def test_accumulation_divides_by_the_tokens_of_the_whole_batch() -> None:
    # Micro-batches with loss sums 6.0 over 3 tokens and 4.0 over 1: 10 / 4, and not (2 + 4) / 2.
    targets = torch.tensor([[1, 2, 3, -100], [4, -100, -100, -100]])
    tokens = torch.randint(0, 97, (2, 4), generator=torch.Generator().manual_seed(0))
    training = LossModule(new_model(RUN))
    whole = training(Placed(tokens, targets, None))
    parts = [training(Placed(tokens, targets, None).rows(row, row + 1)) for row in range(2)]
    assert Placed(tokens, targets, None).counted == 4
    assert (sum(parts) / 4).item() == pytest.approx((whole / 4).item(), rel=1e-6)


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_recomputation_changes_no_gradient(recompute: str) -> None:
    tokens = torch.randint(0, 97, (2, 33), generator=torch.Generator().manual_seed(0))
    model, plain = new_model(RUN), new_model(RUN)
    prepare(model, RUN.with_train(recompute=recompute).train)  # type: ignore[arg-type]
    LossModule(model)(Placed(tokens[:, :-1], tokens[:, 1:], None)).backward()
    prepare(plain, RUN.train)
    LossModule(plain)(Placed(tokens[:, :-1], tokens[:, 1:], None)).backward()
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


def test_documents_of_a_row_do_not_see_each_other() -> None:
    tokens = torch.randint(0, 97, (1, 12), generator=torch.Generator().manual_seed(0))
    model = new_model(RUN)
    numbers = torch.tensor([[0] * 5 + [1] * 7], dtype=torch.int32)
    changed = tokens.clone()
    changed[0, 2] = (changed[0, 2] + 1) % 97
    with torch.no_grad():
        apart = [model.hidden(each, documents=numbers)[0, 5:] for each in (tokens, changed)]
        across = [model.hidden(each)[0, 5:] for each in (tokens, changed)]
    torch.testing.assert_close(apart[0], apart[1])
    assert not torch.allclose(across[0], across[1])


def test_the_first_loss_is_that_of_a_guess() -> None:
    spec = ModelSpec(kind="transformer", vocabulary=65, width=128, layers=4, context=64, heads=4, kv_heads=4,
                     head_width=32, mlp_width=512, mlp="plain", activation="gelu", norm="layer", norm_bias=False,
                     position="learned")  # fmt: skip
    tokens = torch.randint(0, 65, (12, 65), generator=torch.Generator().manual_seed(0))
    model = new_model(with_spec(RUN, spec).with_train(context=64))
    assert sum(p.numel() for p in model.parameters()) == 804_096
    loss = LossModule(model)(Placed(tokens[:, :-1], tokens[:, 1:], None)) / (12 * 64)
    assert 4.15 <= loss.item() <= 4.32  # ln 65 = 4.1744


def test_loss_and_gradient_equal_transformers_llama() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=97, hidden_size=48, intermediate_size=128, num_hidden_layers=3, num_attention_heads=6,
        num_key_value_heads=2, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = transformers.LlamaForCausalLM(config)
    ours = build(replace(SPEC, norm_eps=config.rms_norm_eps))
    state = theirs.state_dict()
    for name, parameter in ours.named_parameters():
        parameter.data.copy_(_theirs(name, state))
    torch.manual_seed(1)
    tokens = torch.randint(0, 97, (4, 33))
    expected = theirs(tokens, labels=tokens).loss
    expected.backward()
    loss = LossModule(ours)(Placed(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), None)) / (4 * 32)
    loss.backward()
    for model, found in ((theirs, expected), (ours, loss)):  # the reference's numbers, of transformers 5.23
        assert found.item() == pytest.approx(4.5989999771, rel=1e-6)
        assert torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9).item() == pytest.approx(1.1896004677, rel=1e-5)
        assert sum(p.numel() for p in model.parameters()) == 83_376
    for name, parameter in ours.named_parameters():
        gradients = {key: p.grad for key, p in theirs.named_parameters()}
        torch.testing.assert_close(parameter.grad, _theirs(name, gradients), rtol=1e-4, atol=1e-7)


def _theirs(name: str, state: dict[str, torch.Tensor]) -> torch.Tensor:
    ends = {"embedding.weight": "model.embed_tokens.weight", "norm.weight": "model.norm.weight",
            "head.weight": "lm_head.weight"}  # fmt: skip
    if name in ends:
        return state[ends[name]]
    layer, rest = name.removeprefix("blocks.").split(".", 1)
    prefix = f"model.layers.{layer}."
    inner = {
        "attention.qkv.weight": [f"self_attn.{x}_proj.weight" for x in "qkv"],
        "attention.out.weight": ["self_attn.o_proj.weight"],
        "mlp.up.weight": ["mlp.gate_proj.weight", "mlp.up_proj.weight"],
        "mlp.down.weight": ["mlp.down_proj.weight"],
        "attention_norm.weight": ["input_layernorm.weight"],
        "mlp_norm.weight": ["post_attention_layernorm.weight"],
    }[rest]
    return torch.cat([state[prefix + each] for each in inner])


def test_adapters_begin_at_the_model_they_adapt_and_merge_into_what_they_learnt() -> None:
    model = new_model(RUN)
    tokens = torch.randint(0, 97, (2, 12), generator=torch.Generator().manual_seed(0))
    before = model(tokens).detach()
    add_adapters(model, 4, seed=0)
    torch.testing.assert_close(model(tokens), before)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * 4 * SPEC.layers
    assert all(name.endswith((".down", ".up")) for name in trained)
    for name, p in model.named_parameters():
        if name.endswith(".up"):
            torch.nn.init.normal_(p, std=0.1)
    learnt = model(tokens).detach()
    assert not torch.allclose(learnt, before, atol=1e-3)
    merge_adapters(model)
    torch.testing.assert_close(model(tokens).detach(), learnt, rtol=1e-4, atol=1e-5)
    assert not any("base" in name for name, _ in model.named_parameters())


def test_the_guard_notices_what_is_no_number_and_what_leaps() -> None:
    guard = LossGuard(4096)
    assert all(guard.check(3.0 + 0.01 * (n % 5), 1.0) is None for n in range(30))
    assert "nan" in (guard.check(float("nan"), 1.0) or "")
    assert "gradient norm is inf" in (guard.check(3.0, float("inf")) or "")
    assert "spike" in (guard.check(5.2, 1.0) or "")
    assert guard.check(3.02, 1.0) is None


def test_no_loss_beyond_twice_that_of_a_guess_is_sound_in_the_first_steps_either() -> None:
    guard = LossGuard(512)
    assert guard.check(2 * math.log(512) - 0.01, 1.0) is None
    assert "above 12.477 = 2 ln 512" in (guard.check(2 * math.log(512) + 0.01, 1.0) or "")
    assert "2,262.0" in (guard.check(2262.0, 1.0) or "")
    assert len(guard.losses) == 1


def test_four_micro_batches_of_one_row_have_the_gradient_of_one_of_four() -> None:
    tokens = torch.randint(0, 97, (4, 33), generator=torch.Generator().manual_seed(0))
    batch = Placed(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), None)
    whole, parts = new_model(RUN), new_model(RUN)
    (LossModule(whole)(batch) / 128).backward()
    for row in range(4):
        (LossModule(parts)(batch.rows(row, row + 1)) / 128).backward()
    for p, q in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("kind", ["transformer", "lstm", "gru", "rnn"])
def test_one_batch_is_overfitted_by_every_kind(kind: str) -> None:
    spec = SPEC if kind == "transformer" else ModelSpec(kind=kind, vocabulary=97, width=48, layers=2, context=64)  # type: ignore[arg-type]
    run = with_spec(RUN, spec).with_train(learning_rate=1e-2)
    tokens = torch.randint(0, 97, (2, 17), generator=torch.Generator().manual_seed(0))
    batch = Placed(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), None)
    model = new_model(run)
    training, optimizer = LossModule(model), make_optimizer(model, run.train)
    for _ in range(150):
        loss = training(batch) / 32
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    assert loss.item() < 0.3  # from ln 97 = 4.57


def test_the_reference_sizes_and_compute_of_training() -> None:
    from nextword.plan import flops, parameters

    spec = ModelSpec(kind="transformer", vocabulary=65, width=128, layers=4, context=64, heads=4, kv_heads=4,
                     head_width=32, mlp_width=512, mlp="plain", norm="layer", norm_bias=False,
                     position="learned")  # fmt: skip
    assert parameters(spec).total == 804_096
    assert parameters(spec).total - 64 * 128 == 795_904
    larger = replace(spec, layers=6, heads=6, kv_heads=6, head_width=64, width=384, context=256, mlp_width=1536)
    assert parameters(larger).total == 10_745_088
    assert 6 * 795_904 + 12 * 4 * 4 * 32 * 64 == 5_168_640  # N without positions; norms do not multiply
    assert flops(spec, 64).per_token == pytest.approx(5_168_640, rel=0.002)
