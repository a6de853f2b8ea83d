"""The fifteen reference cases of tests/oracles/planner_cases.json, each with the source that it names."""

from __future__ import annotations

import itertools
import json
import math
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from planner_formulas import isoflop_power, megatron_layer_bytes, model_states, palm_flops_per_token

from nextword.families import spec_from_config
from nextword.families.published import known_spec
from nextword.plan import (
    Runs,
    cache_bytes,
    duration,
    fit_law,
    flops,
    optimum,
    parameters,
    read_runs,
    states,
)
from nextword.plan.fitting import objective
from nextword.plan.laws import EPOCH, HOFFMANN
from nextword.plan.shapes import TensorShape
from nextword.plan.training import rules_of_thumb
from nextword.spec import ModelSpec

ORACLES = Path(__file__).parents[1] / "oracles"
CASES: dict[str, dict[str, Any]] = {
    case["id"]: case for case in json.loads((ORACLES / "planner_cases.json").read_text())
}
LLAMA3 = {
    "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336,
}  # fmt: skip
LLAMA2 = LLAMA3 | {"vocab_size": 32000, "num_key_value_heads": 32, "intermediate_size": 11008}
MISTRAL = LLAMA3 | {"vocab_size": 32000, "model_type": "mistral"}


def expected(case: str) -> Any:
    return CASES[case]["expected"]


def known(name: str) -> ModelSpec:
    spec = known_spec(name)
    assert spec is not None
    return spec


def test_every_case_has_a_test() -> None:
    tested = {name.split("_")[1].upper() for name in globals() if name.startswith("test_a")}
    assert tested == set(CASES)


def test_a01_gpt2_parameters_as_hugging_face_has_them() -> None:
    assert parameters(known("gpt2")).total == expected("A01")
    assert [parameters(known(name)).total for name in ("gpt2-medium", "gpt2-large", "gpt2-xl")] == [
        354823168, 774030080, 1557611200,
    ]  # fmt: skip


def test_a02_llama3_8b_parameters_as_metas_checkpoint() -> None:
    assert parameters(spec_from_config(LLAMA3)).total == expected("A02")


def test_a03_llama2_and_mistral_parameters_by_their_configs() -> None:
    assert [parameters(spec_from_config(config)).total for config in (LLAMA2, MISTRAL)] == expected("A03")


def test_a04_pythia_70m_total_and_without_embeddings_as_its_paper() -> None:
    counted = parameters(known("pythia-70m"))
    assert [counted.total, counted.non_embedding] == expected("A04")


def test_a05_key_value_cache_by_2_layers_heads_width_bytes() -> None:
    llama2, llama3 = spec_from_config(LLAMA2), spec_from_config(LLAMA3)
    sizes = [cache_bytes(spec, 1, context).value for spec, context in
             ((llama2, 1), (llama3, 1), (llama2, 4096), (llama3, 8192))]  # fmt: skip
    assert sizes == expected("A05")


def test_a06_gpt3_training_flops_as_its_paper_table_d1() -> None:
    spec = known("gpt-3")
    assert parameters(spec).total == pytest.approx(174.6e9, rel=0.001)
    assert flops(spec, tokens=300e9).rule.value == pytest.approx(expected("A06"), rel=0.005)


def test_a07_approach_1_as_hoffmanns_table_3() -> None:
    for size, compute, tokens in expected("A07"):
        best = optimum(compute, "approach1")
        assert best.parameters == pytest.approx(size, rel=0.02)
        assert best.tokens == pytest.approx(tokens, rel=0.02)


def test_a08_optimal_sizes_at_chinchillas_budget_by_three_sets_of_constants() -> None:
    sizes = [optimum(5.76e23, law).parameters for law in ("hoffmann", "hoffmann-unrounded", "epoch")]
    assert sizes == pytest.approx(expected("A08"), rel=0.002)


def test_a09_the_epoch_points_give_besiroglus_fit() -> None:
    runs, wanted = read_runs(ORACLES / "epoch_chinchilla.csv").without_highest(5), expected("A09")
    assert len(runs) == 240
    fit = fit_law(runs, bootstrap=100, hold_out=False)
    assert pytest.approx((wanted["A"], wanted["B"]), rel=0.01) == (fit.law.A, fit.law.B)
    assert pytest.approx(wanted["E"], abs=0.0005) == fit.law.E
    assert (fit.law.alpha, fit.law.beta) == pytest.approx((wanted["alpha"], wanted["beta"]), abs=0.0005)
    assert fit.objective <= 0.00101828
    assert fit.law.beta / (fit.law.alpha + fit.law.beta) == pytest.approx(wanted["a"], abs=0.0005)
    assert objective(runs, EPOCH) == pytest.approx(0.00102284, rel=1e-4)
    for name in ("E", "A", "B", "alpha", "beta"):
        assert getattr(EPOCH, name) in fit.intervals[name], name
    assert not fit.unidentified


def test_a10_model_states_as_zeros_figure_1(monkeypatch: pytest.MonkeyPatch) -> None:
    """ZeRO counts parameters alone; a single matrix of 7.5e9 numbers stands for the model."""
    module = import_module("nextword.plan.states")  # the package's own name for it is the function
    monkeypatch.setattr(module, "tensors", lambda spec: [TensorShape("MLP", "all", (75_000, 100_000), 1, 1, True)])
    spec = known("gpt2")
    found = [model_states(states(spec, precision="mixed", shard=shard, devices=64)) / 1e9
             for shard in ("ddp", "zero1", "zero2", "fsdp")]  # fmt: skip
    assert found == pytest.approx(expected("A10"), rel=0.005)


def test_a11_megatron_activations_as_korthikantis_table_2() -> None:
    gpt3 = {"batch": 1, "sequence": 2048, "width": 12288, "heads": 96}
    found = [
        megatron_layer_bytes(**gpt3),
        megatron_layer_bytes(**gpt3, tensor_parallel=8),
        megatron_layer_bytes(**gpt3, tensor_parallel=8, sequence_parallel=True),
        megatron_layer_bytes(**gpt3, tensor_parallel=8, recompute="selective"),
        megatron_layer_bytes(**gpt3, tensor_parallel=8, sequence_parallel=True, recompute="selective"),
        megatron_layer_bytes(**gpt3, tensor_parallel=8, recompute="full"),
    ]
    assert [size / 2**20 for size in found] == pytest.approx(expected("A11"), rel=0.001)


def nanogpt(**changes: Any) -> ModelSpec:
    shape: dict[str, Any] = {
        "kind": "transformer", "vocabulary": 50257, "width": 768, "layers": 12, "context": 1024, "heads": 12,
        "kv_heads": 12, "head_width": 64, "mlp_width": 3072, "mlp": "plain", "norm": "layer", "norm_bias": False,
        "position": "learned",
    }  # fmt: skip
    return ModelSpec(**(shape | changes))


def test_a12_flops_of_nanogpt_as_its_notebook() -> None:
    by_palm, exact = expected("A12")
    counted = parameters(nanogpt())
    assert palm_flops_per_token(nanogpt(), counted.total - counted.part("positions")) * 1024 == by_palm
    assert flops(nanogpt(), 1024).total == exact


def test_a12_small_model_as_the_training_reference_says() -> None:
    """../shared/reference/training.md: 804,096 parameters, 795,904 without positions, 5,168,640 FLOPs a token."""
    small = nanogpt(vocabulary=65, width=128, layers=4, context=64, heads=4, kv_heads=4, head_width=32, mlp_width=512)
    counted = parameters(small)
    assert (counted.total, counted.total - counted.part("positions")) == (804_096, 795_904)
    per_token = palm_flops_per_token(small, counted.total - counted.part("positions"))
    assert per_token == 5_168_640
    assert per_token * 2000 * 12 * 64 == pytest.approx(7.939e12, rel=1e-4)
    six = nanogpt(vocabulary=65, width=384, layers=6, context=256, heads=6, kv_heads=6, head_width=64, mlp_width=1536)
    assert parameters(six).total == 10_745_088


def test_a13_days_of_nanogpt_and_of_megatron() -> None:
    counted = parameters(nanogpt(context=1024))
    assert counted.total == 124_337_664
    nano = duration(6 * counted.total * 300e9, 8, 312e12, 0.30).value / 86400
    megatron = duration(8 * 175e9 * 300e9, 1024, 140e12, 1.0).value / 86400
    assert [nano, megatron] == pytest.approx(expected("A13"), rel=0.01)


def test_a14_bytes_a_parameter_by_the_rules_of_thumb() -> None:
    billion = ModelSpec(kind="rnn", vocabulary=1, width=1, layers=1, context=1)
    rules = {rule.name: rule for rule in rules_of_thumb(billion)}
    scale = 1e9 / parameters(billion).total
    store, train = expected("A14")
    assert rules["to store, float32"].value * scale == store
    assert rules["24 bytes a parameter"].value * scale == train


def test_a15_parabolas_are_biased_and_both_fits_are_not() -> None:
    sizes, tokens = [], []
    for budget, step in itertools.product((1e17, 1e18, 1e19, 1e20, 1e21), range(15)):
        size = optimum(budget, HOFFMANN).parameters * 16 ** (step / 7 - 1)
        sizes.append(size)
        tokens.append(budget / (6 * size))
    runs = Runs(tuple(sizes), tuple(tokens), tuple(map(HOFFMANN.loss, sizes, tokens)))
    factor, power = isoflop_power(runs)
    assert factor * 1e24**power == pytest.approx(expected("A15"), rel=0.02)
    true = optimum(1e24, HOFFMANN).tokens
    assert true == pytest.approx(4.0358e12, rel=1e-4)
    for method in ("huber", "nnls"):
        fit = fit_law(runs, method, bootstrap=0, hold_out=False)  # type: ignore[arg-type]
        assert optimum(1e24, fit.law).tokens == pytest.approx(true, rel=1e-4), method
    assert math.isclose(factor * 1e24**power / true, 1 - 0.051, abs_tol=0.005)
