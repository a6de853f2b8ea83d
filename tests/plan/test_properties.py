"""What must hold for every plan: parts sum to totals, more costs more, sharding saves, laws agree with themselves."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from planner_formulas import model_states, optimal_budget

from nextword.plan import (
    Figure,
    Serving,
    Training,
    activations,
    best_when_limited,
    cache_bytes,
    data_limited,
    device,
    diagnose,
    fit_on,
    flat_region,
    flops,
    inference_aware,
    memory,
    optima,
    optimum,
    parameters,
    shape_for,
    speed,
    states,
)
from nextword.plan.laws import DATA_LIMITED, DEFAULT, LAWS, RULES
from nextword.spec import ExpertsSpec, LatentSpec, ModelSpec

KINDS = st.sampled_from(["transformer", "experts", "latent", "rnn", "gru", "lstm"])


@st.composite
def specs(draw: Any) -> ModelSpec:
    """Models of every kind, small enough to think about."""
    kind = draw(KINDS)
    plain = kind in ("transformer", "experts", "latent")
    layers, kv = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    head = draw(st.sampled_from([8, 16, 64]))
    experts = ExpertsSpec(
        8, draw(st.integers(1, 8)), 32, shared=draw(st.integers(0, 2)), dense_layers=draw(st.integers(0, 1))
    )
    windows = tuple(draw(st.sampled_from([0, 7, 64])) for _ in range(layers))
    return ModelSpec(
        kind="transformer" if plain else kind,
        vocabulary=draw(st.integers(2, 3000)),
        width=16 * draw(st.integers(1, 16)),
        layers=layers,
        context=draw(st.integers(1, 512)),
        tied=draw(st.booleans()),
        heads=kv * draw(st.integers(1, 4)),
        kv_heads=kv,
        head_width=head,
        mlp_width=draw(st.integers(1, 600)),
        mlp=draw(st.sampled_from(["gated", "plain"])),
        norm=draw(st.sampled_from(["rms", "layer"])),
        norm_place=draw(st.sampled_from(["before", "after", "both"])),
        qk_norm=draw(st.sampled_from(["none", "head", "full"])),
        position=draw(st.sampled_from(["rotary", "learned"])),
        attention_softcap=draw(st.sampled_from([None, 30.0])),
        windows=windows if kind == "transformer" else (),
        experts=experts if kind == "experts" else None,
        latent=LatentSpec(16, draw(st.sampled_from([0, 24])), 8, 16, 16) if kind == "latent" else None,
    )


@st.composite
def runs(draw: Any) -> Training:
    shard = draw(st.sampled_from(["none", "ddp", "zero1", "zero2", "fsdp"]))
    return Training(
        batch=draw(st.integers(1, 32)),
        context=draw(st.integers(1, 2048)),
        optimizer=draw(st.sampled_from(["adamw", "adam8bit", "adafactor", "muon", "lion", "momentum", "sgd"])),
        precision=draw(st.sampled_from(["fp32", "mixed", "amp", "bf16"])),
        recompute=draw(st.sampled_from(["none", "selective", "full"])),
        kernel=draw(st.sampled_from(["flash", "plain"])),
        chunked_loss=draw(st.booleans()),
        shard=shard,
        devices=1 if shard == "none" else draw(st.integers(2, 64)),
        lora=draw(st.sampled_from([0, 1])),
        base=draw(st.sampled_from(["bf16", "nf4"])),
    )


budgets = st.floats(12, 27).map(lambda power: 10.0**power)


# ---- sums


@given(specs())
def test_parameters_parts_and_tensors_sum_to_the_total(spec: ModelSpec) -> None:
    counted = parameters(spec)
    assert counted.total == sum(part.value for part in counted.parts) == sum(each.value for each in counted.tensors)
    assert 0 < counted.active <= counted.total
    assert counted.non_embedding <= counted.total


@given(specs(), runs())
def test_memory_and_its_activations_sum_to_their_totals(spec: ModelSpec, run: Training) -> None:
    needed = memory(spec, run)
    assert needed.total == pytest.approx(sum(part.value for part in needed.parts))
    assert all(part.value > 0 for part in needed.parts)
    saved = activations(spec, run.batch, run.context, width_bytes=2, recompute=run.recompute)
    assert saved.total == pytest.approx(sum(part.value for part in saved.parts))


@given(specs(), st.integers(1, 300), st.sampled_from(["none", "full"]))
def test_flops_sum_and_recomputation_is_no_part_of_the_models_own(spec: ModelSpec, context: int, again: Any) -> None:
    counted = flops(spec, context, recompute=again)
    assert counted.total == pytest.approx(sum(part.value for part in counted.parts))
    assert counted.model == pytest.approx(flops(spec, context).total)
    assert counted.model == pytest.approx(3 * flops(spec, context, backward=False).total)
    assert flops(spec, context, masked="skipped").total <= flops(spec, context).total


@given(budgets)
def test_loss_parts_sum_to_the_loss_of_the_law(budget: float) -> None:
    for name, law in LAWS.items():
        best = optimum(budget, name)
        assert best.loss == pytest.approx(law.loss(best.parameters, best.tokens))


def recomputed(figure: Figure) -> float:
    """The explanation evaluated as a reader would with a calculator."""
    text = figure.filled().replace(",", "§").replace("§ ", ", ").replace("§", "")
    text = text.replace("×", "*").replace("^", "**").replace("−", "-")
    names = {"min": min, "max": max, "exp": math.exp, "log": math.log, "sqrt": math.sqrt, "ceil": math.ceil}
    return float(eval(text, {"__builtins__": {}}, names))


@given(specs(), runs(), budgets)
def test_every_explanation_gives_its_number_when_worked_out(spec: ModelSpec, run: Training, budget: float) -> None:
    figures = [*memory(spec, run).parts, *parameters(spec).parts, *parameters(spec).tensors, *flops(spec).parts]
    figures += activations(spec, run.batch, run.context).parts
    figures += memory(spec, Serving(run.batch, run.context)).parts
    for each in optima(budget):
        figures += [*each.figures, *each.loss_parts]
    for figure in figures:
        assert recomputed(figure) == pytest.approx(figure.value, rel=2e-3), figure
        assert re.fullmatch(r"[a-zA-Z/$ ]*", figure.unit)


# ---- more costs more


@given(specs(), runs(), st.integers(1, 5))
def test_memory_grows_with_batch_context_and_layers(spec: ModelSpec, run: Training, more: int) -> None:
    base = memory(spec, run).total
    assert memory(spec, replace(run, batch=run.batch + more)).total >= base
    assert memory(spec, replace(run, context=run.context + more)).total >= base
    deeper = replace(spec, layers=spec.layers + more, windows=())
    assert memory(deeper, run).total >= memory(replace(spec, windows=()), run).total


@given(specs(), st.integers(1, 8), st.integers(1, 5000), st.integers(1, 50))
def test_serving_grows_with_batch_and_context(spec: ModelSpec, batch: int, context: int, more: int) -> None:
    base = memory(spec, Serving(batch, context)).total
    assert memory(spec, Serving(batch + more, context)).total >= base
    assert memory(spec, Serving(batch, context + more)).total >= base


@given(specs(), st.integers(1, 2000), st.integers(1, 8))
def test_the_cache_is_linear_in_context_and_stops_at_windows(spec: ModelSpec, context: int, times: int) -> None:
    one, many = cache_bytes(spec, 1, context).value, cache_bytes(spec, 1, context * times).value
    if spec.kind != "transformer":
        assert one == many
    elif any(spec.windows):
        assert one <= many <= one * times
    else:
        assert many == one * times


@given(specs(), runs())
def test_recomputation_saves_memory_and_costs_flops(spec: ModelSpec, run: Training) -> None:
    kept = [activations(spec, run.batch, run.context, recompute=how).total for how in ("none", "selective", "full")]
    assert kept[1] <= kept[0]
    if spec.kind == "transformer":
        assert flops(spec, recompute="full").total > flops(spec).total
    if spec.kind == "transformer" and spec.layers > 2 and spec.mlp_width > 4 * spec.width:
        assert kept[2] <= kept[0]


# ---- sharding


@given(specs(), st.sampled_from(["fp32", "mixed", "amp", "bf16"]), st.integers(2, 512))
def test_each_stage_of_sharding_needs_no_more_than_the_one_before(spec: ModelSpec, precision: Any, n: int) -> None:
    stages = [model_states(states(spec, precision=precision, shard=shard, devices=n))
              for shard in ("ddp", "zero1", "zero2", "fsdp")]  # fmt: skip
    assert stages == sorted(stages, reverse=True)
    assert model_states(states(spec, precision=precision)) == stages[0]


@given(specs())
def test_optimizers_are_ordered_by_what_they_keep(spec: ModelSpec) -> None:
    order = ("sgd", "adam8bit", "adamw")
    kept = [states(spec, optimizer=name).total for name in order]
    assert kept == sorted(kept)
    assert states(spec, optimizer="lion").total == states(spec, optimizer="momentum").total
    assert states(spec, optimizer="sgd").total <= states(spec, optimizer="adafactor").total
    assert states(spec, optimizer="muon").total <= states(spec, optimizer="adamw").total


# ---- laws


@given(budgets, st.sampled_from([*LAWS, *RULES]))
def test_an_optimum_spends_its_budget(budget: float, name: str) -> None:
    best = optimum(budget, name)
    assert 6 * best.parameters * best.tokens == pytest.approx(budget, rel=1e-9)
    if name in LAWS:
        assert optimal_budget(best.parameters, LAWS[name]) == pytest.approx(budget, rel=1e-6)


@given(budgets, st.floats(1.001, 1e6), st.sampled_from(list(LAWS)))
def test_a_larger_budget_never_predicts_a_larger_loss(budget: float, times: float, name: str) -> None:
    assert optimum(budget * times, name).loss <= optimum(budget, name).loss


@given(budgets, st.floats(-3, 3), st.sampled_from(list(LAWS)))
def test_no_other_size_spends_the_budget_better(budget: float, shift: float, name: str) -> None:
    best, law = optimum(budget, name), LAWS[name]
    size = best.parameters * math.exp(shift)
    assert law.loss(size, budget / (6 * size)) >= best.loss * (1 - 1e-12)


@given(budgets)
def test_the_flat_region_holds_the_optimum_and_ends_at_the_tolerance(budget: float) -> None:
    best = optimum(budget)
    flat = flat_region(best)
    assert flat.smallest < best.parameters < flat.largest
    for edge in (flat.smallest, flat.largest):
        assert DEFAULT.loss(edge, budget / (6 * edge)) / best.loss - 1 == pytest.approx(flat.tolerance, rel=1e-3)


@given(budgets, st.floats(0.01, 0.9))
def test_repeated_data_is_worth_less_than_fresh_and_more_than_once(budget: float, share: float) -> None:
    best = optimum(budget, DATA_LIMITED)
    limited = data_limited(best.parameters, best.tokens, share * best.tokens)
    assert limited.unique < limited.effective_tokens < limited.tokens
    assert limited.loss >= limited.loss_if_fresh
    assert best_when_limited(budget, share * best.tokens).loss <= limited.loss * (1 + 1e-9)


@given(st.floats(1e15, 1e25), st.floats(1e6, 1e15))
def test_the_inference_aware_optimum_is_smaller_sees_more_and_costs_less(budget: float, use: float) -> None:
    best = optimum(budget)
    aware = inference_aware(best, use)
    assert aware.parameters <= best.parameters * (1 + 1e-6)
    assert aware.tokens >= best.tokens * (1 - 1e-6)
    assert aware.total <= (budget + 2 * best.parameters * use) * (1 + 1e-9)
    assert DEFAULT.loss(aware.parameters, aware.tokens) == pytest.approx(best.loss, rel=1e-9)


# ---- what fits


@given(specs(), st.integers(1, 64), st.integers(1, 4096), st.sampled_from(["t4", "h100"]))
def test_the_largest_batch_and_context_fit_and_one_more_does_not(
    spec: ModelSpec, batch: int, context: int, name: str
) -> None:
    on = device(name)
    use = Serving(batch, context, runtime=on.runtime)
    found = fit_on(spec, use, on)
    assert found.fits == (memory(spec, use).total <= on.memory)
    if 0 < found.largest_batch < 1 << 20:
        assert memory(spec, replace(use, batch=found.largest_batch)).total <= on.memory
        assert memory(spec, replace(use, batch=found.largest_batch + 1)).total > on.memory
    assert speed(spec, use, on).decode.value > 0


@given(st.floats(3e4, 1e12))
def test_designed_models_have_about_the_parameters_asked_for(count: float) -> None:
    spec = shape_for(count)
    error = next(error for most, error in ((1e5, 0.26), (1e6, 0.18), (1e7, 0.1), (math.inf, 0.07)) if count < most)
    assert parameters(spec).total == pytest.approx(count, rel=error)
    assert spec.width == spec.heads * spec.head_width
    assert spec.heads % spec.kv_heads == 0


@given(st.floats(1e8, 1e12))
def test_designed_models_have_widths_that_devices_can_share(count: float) -> None:
    spec = shape_for(count)
    assert spec.width % 128 == 0
    if count >= 1e9:
        assert spec.heads % 8 == 0
        assert spec.kv_heads == 8
        assert spec.mlp_width % 256 == 0


@pytest.mark.parametrize("size", [3e8, 1e9, 7e9])
@pytest.mark.parametrize("name", ["t4", "rtx4090", "h100"])
def test_every_remedy_fits_and_none_contains_another(size: float, name: str) -> None:
    spec, on = shape_for(size), device(name)
    found = diagnose(spec, Training(batch=32, context=2048, kernel="plain"), on, 8)
    if found.fits:
        assert found.remedies == ()
    groups = [{change.name for change in remedy.changes} for remedy in found.remedies]
    for remedy, group in zip(found.remedies, groups, strict=True):
        assert memory(spec, remedy.setup).total == remedy.memory.total
        assert remedy.memory.total <= on.memory
        assert not any(other < group for other in groups)
    order = [(not remedy.same_result, round(remedy.time, 3)) for remedy in found.remedies]
    assert order == sorted(order)
