"""nextword plan as a user runs it: the five questions, their JSON, explanations and pictures, and wrong input.

Commands run in this process, which keeps the tests quick; what must be seen from outside runs in a process of its own.
"""

from __future__ import annotations

import json
import math
import random
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nextword import plan
from nextword.cli import _console, main
from nextword.cli._app import VERBS
from nextword.families.published import known_config, known_spec

EPOCH_POINTS = str(Path(__file__).parents[1] / "oracles" / "epoch_chinchilla.csv")
SCALING = Path(__file__).parents[1] / "oracles" / "scaling"
UNITS = {"bytes", "parameters", "FLOPs", "s", "h", "$", "tokens", "tokens/s", "nats/token", "sequences", "bytes/s",
         "FLOP/s", ""}  # fmt: skip
TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "vocab_size": 1000, "model_type": "llama"}  # fmt: skip


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        assert self.code == 0, self.err
        return json.loads(self.out)


Plan = Callable[..., Done]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Plan]:
    """`run("inference", "gpt2")` is `nextword plan inference gpt2` in an empty folder, with an empty cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("NEXTWORD_CACHE", str(tmp_path / "cache"))
    before = signal.getsignal(signal.SIGINT)

    def plan_command(*arguments: str) -> Done:
        _console.output.cache_clear()  # it holds the standard output of the test before
        code = main(["plan", *arguments])
        said = capsys.readouterr()
        return Done(code, said.out, said.err)

    yield plan_command
    signal.signal(signal.SIGINT, before)
    _console.output.cache_clear()


def refused(done: Done, *said: str) -> None:
    """One line on standard error with every text of `said`, exit code 2, nothing else."""
    assert done.code == 2, done.out + done.err
    assert done.out == ""
    assert len(done.err.splitlines()) == 1
    assert done.err.startswith("nextword: ")
    for text in said:
        assert text in done.err


def total(parts: list[dict[str, Any]]) -> float:
    return sum(part["value"] for part in parts)


def figures(value: Any) -> Iterator[dict[str, Any]]:
    """Every number with a formula inside a JSON document."""
    if isinstance(value, dict):
        if "formula" in value:
            yield value
        for inner in value.values():
            yield from figures(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from figures(inner)


QUESTIONS = {
    "inference": ("inference", "llama-3-8b", "--devices", "rtx4090,h100"),
    "train": ("train", "--params", "1B", "--micro-batch", "8", "--price", "2.5"),
    "budget": ("budget", "--flops", "1e21", "--tokens-available", "10B", "--inference-tokens", "1T"),
    "fit": ("fit", "--params", "1B", "--devices", "rtx4090", "--micro-batch", "16"),
}


# ---- JSON is the Python result


@pytest.mark.parametrize("question", QUESTIONS)
def test_every_number_in_json_is_its_formula_worked_out_with_unit(run: Plan, question: str) -> None:
    names = {"ceil": math.ceil, "sqrt": math.sqrt, "log": math.log, "exp": math.exp, "min": min, "max": max}
    found = list(figures(run(*QUESTIONS[question], "--json").data))
    assert len(found) > 10
    for figure in found:
        assert figure["unit"] in UNITS, figure
        again = eval(figure["formula"], {"__builtins__": {}}, names | figure["inputs"])
        assert again == pytest.approx(figure["value"], rel=1e-12), figure["name"]


def test_inference_gives_the_numbers_of_the_python_api(run: Plan) -> None:
    data = run(
        "inference", "llama-3-8b", "--devices", "rtx4090,h100", "--batch-size", "4", "--context", "4096", "--json"
    ).data
    spec = known_spec("llama-3-8b")
    assert data["model"]["parameters"]["total"] == plan.parameters(spec).total == 8_030_261_248
    assert total(data["model"]["parameters"]["parts"]) == 8_030_261_248
    for row in data["devices"]:
        on = plan.device(row["device"]["name"])
        use = plan.Serving(batch=4, context=4096, runtime=on.runtime)
        assert row["memory"]["total"] == total(row["memory"]["parts"]) == plan.memory(spec, use).total
        assert row["memory"]["units"]["total"] == "bytes"
        fit = plan.fit_on(spec, use, on)
        assert row["fit"]["largest_batch"] == fit.largest_batch
        assert row["fit"]["longest_context"] == fit.longest_context
        assert row["speed"]["decode"]["value"] == plan.speed(spec, use, on).decode.value
        assert row["speed"]["decode"]["unit"] == "tokens/s"


def test_inference_gives_weights_at_every_precision(run: Plan) -> None:
    weights = run("inference", "llama-3-8b", "--json").data["weights"]
    assert (weights["fp32"]["value"], weights["fp32"]["unit"]) == (4 * 8_030_261_248, "bytes")
    assert weights["bf16"]["value"] == 2 * 8_030_261_248
    assert weights["q4_0"]["value"] == 8_030_261_248 // 32 * 18  # GGUF: blocks of 32 in 18 bytes
    assert {"int8", "nf4", "q8_0", "q6_k"} <= set(weights)


def test_train_gives_the_numbers_of_the_python_api(run: Plan) -> None:
    data = run(
        "train", "gpt2", "--micro-batch", "4", "--context", "512", "--recompute", "selective", "--optimizer",
        "adam8bit", "--tokens", "1B", "--devices", "a100", "--price", "$2", "--json",
    ).data  # fmt: skip
    spec, on = known_spec("gpt2"), plan.device("a100")
    setup = plan.Training(batch=4, context=512, recompute="selective", optimizer="adam8bit", runtime=on.runtime)
    memory = plan.memory(spec, setup)
    assert (data["memory"]["total"], data["memory"]["units"]["total"]) == (memory.total, "bytes")
    assert total(data["memory"]["parts"]) == memory.total
    assert total(data["activations"]) == pytest.approx(memory.part("activations"))
    price = plan.cost(spec, setup, 1e9, on.peak, price=2.0)
    cost = data["cost"]
    assert cost["flops"]["total"] == total(cost["flops"]["parts"]) == price.flops.total
    assert cost["flops"]["rule"]["value"] == pytest.approx(6 * 124_439_808 * 1e9)
    assert cost["seconds"]["value"] == price.seconds.value
    assert cost["money"]["value"] == pytest.approx(2 * price.seconds.value / 3600)


def test_budget_gives_the_numbers_of_the_python_api(run: Plan) -> None:
    data = run("budget", "--flops", "5.76e21", "--json").data
    for row in data["optima"]:
        best = plan.optimum(5.76e21, row["law"])
        assert (row["parameters"], row["tokens"]) == (best.parameters, best.tokens)
        assert row["loss"] == pytest.approx(total(row["loss_parts"])) == best.loss
        assert row["units"]["loss"] == "nats/token"
        assert 6 * best.parameters * best.tokens == pytest.approx(5.76e21)
    assert {row["law"] for row in data["optima"]} >= {"epoch", "hoffmann", "rule-of-20"}
    assert data["interval"]["low"] < data["optima"][0]["loss"] < data["interval"]["high"]
    assert data["flat"]["smallest"] < plan.optimum(5.76e21).parameters < data["flat"]["largest"]


def test_a_budget_of_time_or_money_is_that_of_its_flops(run: Plan) -> None:
    days = run("budget", "--devices", "8xh100", "--days", "3 days", "--json").data["flops"]["value"]
    assert days == pytest.approx(8 * 3 * 86_400 * 989e12 * 0.4, rel=1e-3)
    money = run("budget", "--dollars", "$500", "--devices", "h100", "--price", "2.5", "--json").data["flops"]["value"]
    assert money == pytest.approx(200 * 3600 * 989e12 * 0.4, rel=1e-3)


def test_the_budgets_run_can_be_read_by_the_trainer_and_planned_again(run: Plan, tmp_path: Path) -> None:
    done = run("budget", "--flops", "1e17", "--devices", "a100", "--out", "run.toml")
    assert done.code == 0
    written = plan.RunConfig.read(tmp_path / "run.toml")
    assert plan.flops(written.spec, written.train.context, written.total_tokens).total == pytest.approx(1e17, rel=0.05)
    again = run("inference", "run.toml", "--json").data
    assert again["model"]["parameters"]["total"] == plan.parameters(written.spec).total


def test_a_budget_that_its_devices_cannot_hold_keeps_its_optimum_and_says_so(run: Plan, tmp_path: Path) -> None:
    data = run("budget", "--flops", "5.76e23", "--json").data
    assert data["concrete"]["run"] is None
    assert data["optima"][0]["parameters"] == plan.optimum(5.76e23).parameters
    assert "no concrete run" in data["warnings"][-1]
    done = run("budget", "--flops", "5.76e23", "--out", "run.toml")
    assert done.code == 2
    assert "no concrete run" in done.err
    assert not (tmp_path / "run.toml").exists()


def test_little_data_and_much_use_change_the_choice_and_are_said(run: Plan) -> None:
    limited = run("budget", "--flops", "1e21", "--tokens-available", "5B", "--json").data
    assert limited["limited"]["epochs"] > 4
    epochs, tokens, _, loss = limited["limited"]["figures"]
    assert epochs["value"] == pytest.approx(limited["limited"]["epochs"])
    assert tokens["value"] == pytest.approx(limited["limited"]["effective_tokens"])
    assert loss["value"] == pytest.approx(limited["limited"]["loss"])
    assert any("Muennighoff" in warning for warning in limited["warnings"])
    aware = run("budget", "--flops", "1e21", "--inference-tokens", "1T", "--json").data
    assert aware["choice"]["parameters"] < plan.optimum(1e21).parameters
    tokens, training, use = aware["aware"]["figures"]
    assert tokens["value"] == pytest.approx(aware["aware"]["tokens"])
    assert training["value"] == pytest.approx(aware["aware"]["training"])
    assert use["value"] == pytest.approx(aware["aware"]["inference"])
    assert use["inputs"]["D_use"] == pytest.approx(1e12)
    assert any("Sardana" in warning for warning in aware["warnings"])


@pytest.mark.parametrize(
    ("options", "said"),
    [(("--tokens-available", "1"), ("--tokens-available 1", "1000 to 1e+16")),
     (("--tokens-available", "1000"), ("fitted up to 500", "10,000", "smaller budget")),
     (("--inference-tokens", "1e30"), ("--inference-tokens 1e+30", "1000 to 1e+18")),
     (("--inference-tokens", "1e18"), ("1e+16 tokens", "Give fewer"))],
)  # fmt: skip
def test_a_budget_far_outside_what_laws_say_is_refused_with_the_limit(
    run: Plan, options: tuple[str, ...], said: tuple[str, ...]
) -> None:
    refused(run("budget", "--flops", "1e21", *options), *said)


def test_a_budget_outside_the_runs_behind_a_law_says_so(run: Plan) -> None:
    repeated = run("budget", "--flops", "1e20", "--tokens-available", "20M", "--json").data
    assert repeated["limited"]["epochs"] > 500
    assert any("beyond the 500 that the law" in warning for warning in repeated["warnings"])
    used = run("budget", "--flops", "1e21", "--inference-tokens", "200T", "--json").data
    assert used["aware"]["tokens"] / used["aware"]["parameters"] > 10_000
    assert any("beyond the 10,000 that were tried" in warning for warning in used["warnings"])


def test_a_device_that_does_not_hold_a_model_has_no_speed_and_its_number_that_would(run: Plan) -> None:
    asked = ("inference", "deepseek-v3", "--devices", "rtx4090", "--context", "4096")
    (row,) = run(*asked, "--json").data["devices"]
    assert (row["fit"]["fits"], row["speed"]) == (False, None)
    weights, needed = 2 * 671_026_419_200, row["fit"]["devices_needed"]
    assert weights / 24e9 < needed < 1.05 * weights / 24e9
    out = " ".join(run(*asked, "--explain").out.split())
    assert f"1.32 TB short, so no speed is given; {needed} of them hold it" in out
    assert "≤" not in out
    assert "speed on" not in out


def test_gpt_oss_is_as_large_as_it_is_published(run: Plan, tmp_path: Path) -> None:
    """Its experts in MXFP4: 13,761,316,904 bytes are gpt-oss-20b's files, headers included."""
    data = run("inference", "gpt-oss-20b", "--devices", "rtx4090", "--json").data
    assert data["model"]["stored"]["value"] == pytest.approx(13_761_316_904, rel=1e-4)
    read = data["devices"][0]["speed"]["decode"]["inputs"]["weights_read"]
    assert read < 0.3 * data["model"]["stored"]["value"]  # 4 of 32 experts
    (tmp_path / "config.json").write_text(json.dumps(known_config("gpt-oss-20b")))
    assert run("inference", "config.json", "--json").data["model"]["stored"] == data["model"]["stored"]
    whole = run("inference", "gpt-oss-20b", "--dtype", "bf16", "--json").data["devices"][0]["memory"]["parts"][0]
    assert whole["value"] == 2 * 20_914_757_184


@pytest.mark.parametrize(
    ("targets", "adapted"),
    [((), 16 * 32 * (4096 + 6144 + 4096 + 4096 + 4096 + 28_672 + 14_336 + 4096)),
     (("--lora-targets", "q,v"), 16 * 32 * (4096 + 4096 + 4096 + 1024)),
     (("--lora-targets", "v, Q ,v"), 16 * 32 * (4096 + 4096 + 4096 + 1024)),
     (("--lora-targets", "all"), 41_943_040)],
)  # fmt: skip
def test_adapters_stand_beside_the_matrices_that_are_named(run: Plan, targets: tuple[str, ...], adapted: int) -> None:
    """41,943,040 is PEFT's count for Llama 3 8B, rank 16, all linear layers; q and v alone are 6,815,744."""
    parts = run("train", "llama-3-8b", "--lora", "16", *targets, "--json").data["memory"]["parts"]
    assert next(part["value"] for part in parts if part["name"] == "gradients") == 2 * adapted


def test_two_accounts_of_zero_stage_2_are_named_with_their_sources(run: Plan) -> None:
    data = run("train", "gpt2", "--devices", "8xh100", "--shard", "zero2", "--json").data
    rules = {rule["name"]: rule for rule in data["rules"]}
    count = 124_439_808
    assert rules["ZeRO stage 2, paper"]["value"] == 2 * count + 14 * count / 8
    assert rules["ZeRO stage 2, DeepSpeed"]["value"] == 4 * count + 16 * count / 8
    assert "1910.02054" in rules["ZeRO stage 2, paper"]["source"]
    assert "estimate_zero2_model_states_mem_needs" in rules["ZeRO stage 2, DeepSpeed"]["source"]
    states = sum(
        part["value"] for part in data["memory"]["parts"]
        if part["name"] in ("weights", "master weights", "gradients", "optimizer states")
    )  # fmt: skip
    assert states == rules["ZeRO stage 2, paper"]["value"]


def test_a_device_named_twice_is_planned_once(run: Plan) -> None:
    assert len(run("inference", "gpt2", "--devices", "h100,H100", "--json").data["devices"]) == 1


@pytest.mark.parametrize("text", ["2000", "2k", "2e3", "2_000", " 2000 "])
def test_whole_numbers_are_written_as_counts_are_everywhere(run: Plan, text: str) -> None:
    setup = run("train", "gpt2", "--micro-batch", text, "--context", text, "--json").data["setup"]
    assert (setup["batch"], setup["context"]) == (2000, 2000)


def test_fit_offers_changes_that_fit_with_the_same_result_and_least_time_first(run: Plan) -> None:
    data = run(*QUESTIONS["fit"], "--json").data
    assert not data["fits"]
    order = [(not remedy["same_result"], round(remedy["time"], 3)) for remedy in data["remedies"]]
    assert order == sorted(order)
    assert order
    for remedy in data["remedies"]:
        assert remedy["memory"]["total"] == pytest.approx(total(remedy["memory"]["parts"]))
        assert remedy["memory"]["total"] <= 24e9


def test_fit_says_how_many_devices_hold_what_nothing_makes_fit(run: Plan) -> None:
    asked = ("fit", "llama-3-70b", "--context", "2048", "--devices")
    alone = run(*asked, "rtx4090")
    found = re.search(r"([\d,]+) such devices hold it with FSDP", alone.out)
    assert found, alone.out
    assert "nothing makes it fit" in alone.out
    count = int(found[1].replace(",", ""))
    assert count > 1

    def by_sharding(devices: int) -> bool:
        remedies = run(*asked, f"{devices}xrtx4090", "--json").data["remedies"]
        used = [{change["axis"] for change in remedy["changes"]} for remedy in remedies]
        return any(axes <= {"shard", "recompute", "loss"} for axes in used)

    assert by_sharding(count)
    assert not by_sharding(count // 2)


def test_laws_without_runs_are_the_published_ones(run: Plan) -> None:
    data = run("laws", "--at", "5.76e23", "--json").data
    by_name = {law["name"]: law for law in data["laws"]}
    assert (by_name["epoch"]["E"], by_name["epoch"]["A"]) == (1.8172, 482.01)  # Besiroglu et al. 2024
    assert (by_name["hoffmann"]["alpha"], by_name["hoffmann"]["beta"]) == (0.34, 0.28)  # Hoffmann et al. 2022
    chosen = {row["law"]: row["parameters"] for row in data["optima"]}
    assert chosen["approach1"] == pytest.approx(67e9, rel=0.02)  # their Table 3 at Gopher's budget


def test_laws_fitted_to_the_epoch_points_are_besiroglus(run: Plan) -> None:
    done = run(
        "laws", "--data", EPOCH_POINTS, "--drop-highest", "5", "--method", "huber", "--bootstrap", "5", "--at",
        "5.76e23", "--json",
    )  # fmt: skip
    (fit,) = done.data["fits"]
    assert fit["constants"]["E"] == pytest.approx(1.8172, rel=0.005)
    assert fit["constants"]["beta"] == pytest.approx(0.3658, rel=0.01)
    best = fit["optima"][0]
    assert best["optimum"]["parameters"] == pytest.approx(plan.optimum(5.76e23, "epoch").parameters, rel=0.05)
    assert best["optimum"]["units"]["loss"] == "nats/token"
    assert best["parameters"]["low"] <= best["optimum"]["parameters"] <= best["parameters"]["high"]
    assert abs(fit["held_out"]["bias"]) < 0.01
    assert not fit["not_identified"]


# ---- text


@pytest.mark.parametrize("question", QUESTIONS)
def test_explain_shows_every_formula_with_values_put_in_and_its_source(run: Plan, question: str) -> None:
    plain, explained = (" ".join(run(*QUESTIONS[question], *more).out.split()) for more in ((), ("--explain",)))
    assert explained.startswith(plain)
    data = run(*QUESTIONS[question], "--json").data
    if question == "inference":  # the weights in other types are printed, not explained; memory is of the first device
        data = [data["devices"][0], *(row["speed"] for row in data["devices"])]
    if question == "fit":
        data = [data["memory"], *(remedy["memory"] for remedy in data["remedies"][:8])]
    for each in figures(data):
        figure = plan.Figure(**{key: each[key] for key in ("name", "value", "unit", "formula", "inputs", "source")})
        assert figure.symbolic() in explained
        assert figure.filled() in explained
        assert " ".join(figure.source.split()) in explained


def test_inference_prints_parts_and_total_and_what_fits(run: Plan) -> None:
    out = run("inference", "llama-3-8b", "--context", "8192", "--devices", "rtx4090,t4").out
    assert re.search(r"weights +16\.1 GB", out)
    assert re.search(r"key-value cache +1\.07 GB", out)  # 2 x 32 x 8 x 128 x 2 x 8,192 bytes
    assert re.search(r"rtx4090 +24\.0 GB +yes", out)
    assert re.search(r"t4 +16\.0 GB +no: 2\.\d+ GB short +0", out)


def test_train_prints_rules_of_thumb_beside_the_sum(run: Plan) -> None:
    out = " ".join(run("train", "gpt2").out.split())
    assert "16 bytes a parameter 1.99 GB" in out  # 16 x 124,439,808
    assert "6 N D" in out
    assert "40% of 989 TFLOP/s (assumed)" in out


def test_a_fit_that_its_runs_do_not_pin_down_prints_no_number_for_it(run: Plan, tmp_path: Path) -> None:
    law = plan.Law("equal powers", 1.8, 400.0, 1500.0, 0.35, 0.35, "")
    rows = [f"{n},{20 * n},{law.loss(n, 20 * n)}" for n in (10 ** (7 + 0.25 * i) for i in range(14))]
    (tmp_path / "runs.csv").write_text("N,D,loss\n" + "\n".join(rows) + "\n", encoding="utf-8")
    options = ("laws", "--data", "runs.csv", "--method", "huber", "--bootstrap", "0")
    assert re.search(r"^[AB] +not identified", run(*options).out, re.MULTILINE)
    (fit,) = run(*options, "--json").data["fits"]
    assert {"A", "B"} & set(fit["not_identified"])
    assert not set(fit["constants"]) & set(fit["not_identified"])
    assert fit["optima"] == []


def test_without_resampling_no_interval_is_printed(run: Plan) -> None:
    done = run("laws", "--data", EPOCH_POINTS, "--method", "nnls", "--bootstrap", "0")
    assert (done.code, done.err) == (0, "")
    assert "nan" not in done.out
    assert re.search(r"^E +1\.\d+ *$", done.out, re.MULTILINE)


def test_runs_at_equal_flops_give_minima_exponents_a_frontier_and_predictions(run: Plan) -> None:
    options = ("laws", "--data", str(SCALING / "porian_isoflop_points.csv"), "--at", "1e20", "--method", "nnls",
               "--bootstrap", "20")  # fmt: skip
    out = run(*options).out
    assert out.startswith("121 runs in 12 budgets")
    assert re.search(r"^N +0\.498 +0\.4\d\d – 0\.5\d\d", out, re.MULTILINE)
    assert "E left free: not identified" in out
    assert "above 2.56e+19 FLOPs: projected, no run was made there" in out
    data = run(*options, "--json").data
    found = data["isoflops"]
    assert (data["runs"], data["unit"], len(found["minima"])) == (121, "nats/token", 12)
    assert found["exponents"]["N"]["value"] == pytest.approx(0.498, abs=1e-3)
    assert found["frontier"]["free_E"]["value"] is None
    (predicted,) = data["predictions"]
    loss = predicted["loss"]
    assert loss["interval"]["low"] < loss["value"] < loss["interval"]["high"]
    assert data["checks"]["left_out"]["predicted"]["value"] == pytest.approx(
        data["checks"]["left_out"]["measured"], rel=0.003
    )
    assert data["fits"][0]["method"] == "nnls"


def test_a_fit_explains_itself(run: Plan) -> None:
    options = ("--method", "nnls", "--bootstrap", "0", "--explain")
    swept = " ".join(run("laws", "--data", str(SCALING / "porian_isoflop_points.csv"), *options).out.split())
    scattered = " ".join(run("laws", "--data", EPOCH_POINTS, *options).out.split())
    for text in ("isoflops: for each budget a parabola", "M = C / (6 D)", "frontier: log (L - E) against log C"):
        assert text in swept
        assert text not in scattered
    assert "nnls: for each (α, β) the non-negative E, A, B" in swept
    assert "nnls: for each (α, β) the non-negative E, A, B" in scattered


def test_a_table_of_optima_gives_the_exponents_of_its_subset(run: Plan) -> None:
    options = ("laws", "--data", str(SCALING / "nanochat_optima.csv"))
    refused(run(*options), "3 subsets; choose one with --subset: matmul, all, transformer")
    out = run(*options, "--subset", "all").out
    assert re.search(r"^N +0\.366 +0\.", out, re.MULTILINE)
    assert re.search(r"^D +0\.490 +0\.", out, re.MULTILINE)
    assert "bits/byte" in out
    data = run(*options, "--subset", "all", "--irreducible", "0.5", "--json").data
    assert data["isoflops"]["frontier"]["held"] == {"low": 0.5, "high": 0.5}


def sweep_of_kinds() -> str:
    """Five sizes at three budgets for each of two kinds; lstm needs four times the compute."""
    rows = ["kind,C,N,D,bpb"]
    for kind, times in (("transformer", 1.0), ("lstm", 4.0)):
        for flops in (1e13, 2e13, 4e13):
            for size in (0.5, 0.7, 1.0, 1.4, 2.0):
                best = 1.2e5 * (flops / 1e13) ** 0.5
                loss = 0.6 + 80 * (flops / times) ** -0.16 + 0.02 * math.log(size) ** 2
                rows.append(f"{kind},{flops},{best * size},{flops / 6 / best / size},{loss}")
    return "\n".join(rows) + "\n"


def test_kinds_are_fitted_apart_and_compared_by_compute_at_equal_loss(run: Plan, tmp_path: Path) -> None:
    (tmp_path / "runs.csv").write_text(sweep_of_kinds())
    options = ("laws", "--data", "runs.csv", "--method", "nnls", "--bootstrap", "10")
    out = run(*options).out
    assert "transformer\n\n15 runs in 3 budgets" in out
    assert "lstm takes 4 times the compute of transformer to reach" in out
    data = run(*options, "--json").data
    assert list(data["kinds"]) == ["transformer", "lstm"]
    assert data["compute_at_equal_loss"]["factors"]["lstm"]["value"] == pytest.approx(4, rel=1e-3)
    one = run(*options, "--kind", "lstm", "--json").data
    assert one["isoflops"] == data["kinds"]["lstm"]["isoflops"]
    refused(run(*options, "--kind", "lstn"), "--kind 'lstn'", "Did you mean lstm")
    assert run(*options, "--plot", "law.json").code == 0
    drawn = (tmp_path / "law.json").read_text(encoding="utf-8")
    assert "transformer: " in drawn
    assert "lstm: " in drawn


def test_kinds_of_unequal_budgets_are_not_drawn_together(run: Plan, tmp_path: Path) -> None:
    points = [(n, d) for n in (1e6, 3e6, 1e7) for d in (1e8, 3.1e8, 1e9)]
    rows = [
        f"{n},{d},{1.7 + 400 * n**-0.34 + 410 * d**-0.28},{kind}" for kind in ("transformer", "lstm") for n, d in points
    ]
    (tmp_path / "runs.csv").write_text("N,D,loss,kind\n" + "\n".join(rows) + "\n")
    options = ("laws", "--data", "runs.csv", "--method", "nnls", "--bootstrap", "0", "--plot", "law.svg")
    refused(run(*options), "choose one with --kind: transformer, lstm")
    assert run(*options, "--kind", "lstm").code == 0


def test_a_law_far_off_its_runs_is_called_that(run: Plan, tmp_path: Path) -> None:
    draw = random.Random(0)
    rows = [f"{n},{d},{draw.uniform(2, 4)}" for n in (1e6, 1e7, 1e8) for d in (1e8, 1e9, 1e10)]
    (tmp_path / "runs.csv").write_text("N,D,loss\n" + "\n".join(rows) + "\n")
    out = " ".join(run("laws", "--data", "runs.csv", "--method", "nnls", "--bootstrap", "0").out.split())
    assert re.search(
        r"! this law does not describe these runs: it is off by \d+\.\d% \(root mean square\), over 3%", out
    )


# ---- pictures


@pytest.mark.parametrize("question", QUESTIONS)
def test_plot_writes_a_picture(run: Plan, tmp_path: Path, question: str) -> None:
    assert run(*QUESTIONS[question], "--plot", "plan.svg").code == 0
    drawn = (tmp_path / "plan.svg").read_text(encoding="utf-8")
    assert drawn.startswith("<svg")
    assert drawn.rstrip().endswith("</svg>")
    assert len(drawn) > 5000


def test_plot_of_a_law_is_written_as_png_too(run: Plan, tmp_path: Path) -> None:
    options = ("laws", "--data", EPOCH_POINTS, "--method", "nnls", "--bootstrap", "0")
    assert run(*options, "--plot", "deeper/law.png").code == 0
    assert (tmp_path / "deeper" / "law.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_picture_of_another_kind_is_refused_before_anything_is_printed(run: Plan, question: str) -> None:
    refused(run(*QUESTIONS[question], "--plot", "plan.docx"), "plan.docx", ".svg, .png, .html, .pdf, .json")


# ---- what is accepted


@pytest.mark.parametrize(("text", "count"), [("1B", 1e9), ("1.3e9", 1.3e9), ("7b", 7e9), ("350M", 350e6), ("20k", 2e4)])
def test_sizes_are_read_as_people_write_them(run: Plan, text: str, count: float) -> None:
    assert run("inference", "--params", text, "--json").data["model"]["parameters"]["total"] == pytest.approx(
        count, rel=0.3
    )


def test_a_device_of_ones_own_has_memory_bandwidth_and_speed(run: Plan) -> None:
    row = run("inference", "gpt2", "--devices", "mine=2 TB,1.5TB/s,300 TFLOP/s,h100", "--json").data["devices"]
    own, h100 = (each["device"] for each in row)
    assert (own["name"], own["memory"]) == ("mine", 2e12)
    assert (own["bandwidth"], own["peak"]) == (1.5e12, 300e12)
    assert h100["name"] == "h100"


def test_this_machine_is_measured_and_remembered(run: Plan, tmp_path: Path) -> None:
    first = run("inference", "gpt2", "--devices", "this", "--json").data["devices"][0]["device"]
    assert first["bandwidth"] > 1e8
    assert first["peak"] > 1e8
    assert "measured" in first["source"]
    assert list((tmp_path / "cache").glob("*.json"))
    assert run("inference", "gpt2", "--devices", "this", "--json").data["devices"][0]["device"] == first


@pytest.mark.parametrize("kind", ["rnn", "lstm", "gru"])
def test_recurrent_kinds_are_planned_with_a_state_that_does_not_grow(run: Plan, kind: str) -> None:
    short, long = (
        run("inference", "--params", "10M", "--arch", kind, "--context", context, "--json").data["devices"][0]["memory"]
        for context in ("4096", "65536")
    )
    assert [part for part in short["parts"] if part["name"] == "state"] == [
        part for part in long["parts"] if part["name"] == "state"
    ]
    assert run("train", "--params", "10M", "--arch", kind).code == 0


def test_a_config_file_and_its_folder_are_the_same_model(run: Plan, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    by_file, by_folder = (run("inference", where, "--json").data["model"] for where in ("config.json", "."))
    assert by_file["parameters"] == by_folder["parameters"]


def test_a_gguf_file_is_planned_as_it_is_stored(nextword: Any, smollm2_path: Path) -> None:
    data = json.loads(nextword("plan", "inference", str(smollm2_path), "--devices", "t4", "--json").stdout)
    assert data["model"]["parameters"]["total"] == 134_515_008
    assert data["use"]["weight_bytes"] == data["model"]["stored"]["value"]
    assert 0.8 * smollm2_path.stat().st_size < data["model"]["stored"]["value"] < smollm2_path.stat().st_size


# ---- what is refused


WRONG = {
    "unit of size": (("inference", "--params", "7q"), ("'7q'", "Accepted forms: 1B, 7b, 350M, 20k, 1.3e9")),
    "unit of time": (("budget", "--days", "3 fortnights"), ("'3 fortnights'", "3 days")),
    "unit of money": (("budget", "--dollars", "¥5", "--price", "1"), ("'¥5'", "$500")),
    "unit of compute": (("budget", "--flops", "5 parsecs"), ("5 parsecs", "1e21")),
    "unit of a device": (("inference", "gpt2", "--devices", "x=24GB,1TB/s,7q"), ("'7q'", "989 TFLOP/s")),
    "half a device": (("inference", "gpt2", "--devices", "x=24GB,1TB/s"), ("mine=24GB,1TB/s,165TFLOP/s",)),
    "unknown device": (("inference", "gpt2", "--devices", "h10"), ("Did you mean h100", "NAME=MEMORY,BANDWIDTH,SPEED")),
    "unknown device to fit": (("fit", "gpt2", "--devices", "rtx4091"), ("rtx4090", "mine=24GB,1TB/s,165TFLOP/s")),
    "unknown devices of a budget": (("budget", "--days", "3", "--devices", "8xh10"), ("h100",)),
    "unknown model": (("train", "llama3-8b"), ("Did you mean llama-3-8b", "config.json", "--params")),
    "no model": (("inference",), ("--params 1B",)),
    "two models": (("inference", "gpt2", "--params", "1B"), ("either",)),
    "no such file": (("inference", "nowhere/config.json"), ("nowhere", "config.json")),
    "no such json": (("inference", "nowhere.json"), ("nowhere.json", "no such file")),
    "nothing": (("inference", "--params", "0"), ("above zero",)),
    "negative": (("inference", "--params", "-1B"), ("above zero",)),
    "NaN": (("inference", "--params", "nan"), ("1B",)),
    "infinite": (("inference", "--params", "inf"), ("1B",)),
    "absurdly small": (("train", "--params", "3"), ("20000",)),
    "absurdly large": (("train", "--params", "1e18"), ("2e+13",)),
    "beyond numbers": (("train", "--params", "1e400"), ("at most",)),
    "batch of none": (("inference", "gpt2", "--batch-size", "0"), ("--batch-size",)),
    "negative context": (("train", "gpt2", "--context", "-1"), ("--context",)),
    "no tokens": (("train", "gpt2", "--tokens", "0"), ("--tokens", "above zero")),
    "negative price": (("train", "gpt2", "--price", "-2"), ("--price", "above zero")),
    "no share of the peak": (("train", "gpt2", "--mfu", "0"), ("--mfu", "between 0 and 1")),
    "more than the peak": (("budget", "--flops", "1e20", "--mfu", "1.5"), ("--mfu", "between 0 and 1")),
    "sharding alone": (("train", "gpt2", "--shard", "fsdp"), ("--devices 8",)),
    "batch of a half": (("inference", "gpt2", "--batch-size", "1.5"), ("--batch-size 1.5", "whole number from 1 to")),
    "batch of words": (("inference", "gpt2", "--batch-size", "many"), ("--batch-size 'many'", "20k", "1.3e9")),
    "kind of a model that is there": (("train", "gpt2", "--arch", "lstm"), ("--arch lstm", "--params", "gpt2")),
    "matrices without a rank": (("train", "gpt2", "--lora-targets", "q"), ("--lora 16",)),
    "no such matrix": (("train", "gpt2", "--lora", "8", "--lora-targets", "q,x"), ("'x'", "q, k, v, o, gate")),
    "a matrix it has not": (("train", "gpt2", "--lora", "8", "--lora-targets", "gate"), ("'gate'", "q, k, v, o, up")),
    "rank above the matrix": (("train", "gpt2", "--lora", "60000"), ("768", "--lora")),
    "unknown optimizer": (("train", "gpt2", "--optimizer", "adm"), ("adamw",)),
    "unknown dtype": (("inference", "gpt2", "--dtype", "int3"), ("int3", "q4_k")),
    "unknown law": (("budget", "--flops", "1e21", "--law", "epok"), ("Did you mean epoch",)),
    "no budget": (("budget",), ("--flops", "--dollars")),
    "two budgets": (("budget", "--flops", "1e21", "--days", "3"), ("--flops and --days",)),
    "money without a price": (("budget", "--dollars", "500"), ("--price 2.5",)),
    "a budget of nothing": (("budget", "--flops", "0"), ("above zero",)),
    "a budget too small": (("budget", "--flops", "1000"), ("1e+09",)),
    "a budget too large": (("budget", "--flops", "1e39"), ("1e+32",)),
    "no data at hand": (("budget", "--flops", "1e21", "--tokens-available", "0"), ("above zero",)),
    "a fit without a device": (("fit", "gpt2"), ("--devices",)),
    "a table that is not there": (("laws", "--data", "none.csv"), ("none.csv", "no such file")),
    "a picture of no runs": (("laws", "--plot", "law.svg"), ("--data",)),
    "a range that is none": (("laws", "--irreducible", "2.1,1.5"), ("--irreducible '2.1,1.5'", "such as 1.5,2.1")),
    "no subsets": (("laws", "--data", EPOCH_POINTS, "--subset", "a"), ("--subset a", "no column subset")),
    "no kinds": (("laws", "--data", EPOCH_POINTS, "--kind", "lstm"), ("--kind 'lstm'", "no column kind")),
    "unknown question": (("budgt",), ("Did you mean budget",)),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_input_gets_one_line_that_names_the_fix_and_exit_code_2(run: Plan, case: str) -> None:
    arguments, said = WRONG[case]
    refused(run(*arguments), *said)


@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "model_type"])
def test_a_config_without_an_essential_key_is_refused_by_file_and_key(run: Plan, tmp_path: Path, key: str) -> None:
    (tmp_path / "half.json").write_text(json.dumps({name: value for name, value in TINY.items() if name != key}))
    refused(run("inference", "half.json"), "half.json", key)


SPEC = {"kind": "gru", "vocabulary": 300, "width": 8, "layers": 1, "context": 16}
CONFIGS = {
    "not json": ('{"model_type": ', "not valid JSON"),
    "a list": ("[1]", "not an object"),
    "an unknown family": ('{"model_type": "lama"}', "Did you mean llama"),
    "a size that is none": (json.dumps(TINY | {"hidden_size": -64}), "hidden_size is -64"),
    "an absurd size": (json.dumps(TINY | {"num_hidden_layers": 10**9}), "num_hidden_layers is 1000000000"),
    "a specification without sizes": ('{"kind": "lstm"}', "vocabulary is missing"),
    "an unknown kind": (json.dumps(SPEC | {"kind": "mamba"}), "rnn"),
    "a specification of words": (json.dumps(SPEC | {"vocabulary": "many"}), "vocabulary 'many': give a whole number"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_unreadable_configs_are_refused_by_file_and_fault(run: Plan, tmp_path: Path, case: str) -> None:
    text, said = CONFIGS[case]
    (tmp_path / "broken.json").write_text(text)
    refused(run("train", "broken.json"), "broken.json", said)


TABLES = {
    "too few": ("N,D,loss\n1e8,1e9,3\n1e9,1e10,2.5\n", "needs at least 8 runs, not 2"),
    "no column": ("N,D,score\n1e8,1e9,3\n", "no column for loss; it has N, D, score"),
    "one size": ("N,D,loss\n" + "".join(f"1e8,{i}e9,{3 - i / 10}\n" for i in range(1, 10)), "not identified"),
    "only a heading": ("N,D,loss\n", "no rows"),
    "two optima": ("C,n_star\n1e18,1e8\n2e18,2e8\n", "at least 3 budgets, not 2"),
    "not a number": ("N,D,loss\n1e8,many,3\n", "line 2: D 'many' is not a number"),
}


@pytest.mark.parametrize("case", TABLES)
def test_runs_that_cannot_be_fitted_are_refused_with_the_reason(run: Plan, tmp_path: Path, case: str) -> None:
    text, said = TABLES[case]
    (tmp_path / "runs.csv").write_text(text)
    refused(run("laws", "--data", "runs.csv"), said)


# ---- from outside


@pytest.mark.parametrize("question", QUESTIONS)
def test_plans_import_neither_torch_nor_numpy(tmp_path: Path, question: str) -> None:
    code = f"import sys; from nextword.cli import main; main({['plan', *QUESTIONS[question]]!r}); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    modules = done.stdout.splitlines()[-1].split()
    assert "nextword.plan" in modules
    assert not {"torch", "numpy", "scipy", "transformers", "vl_convert"} & set(modules)


def test_a_reader_that_leaves_early_ends_a_plan_quietly() -> None:
    command = [sys.executable, "-m", "nextword", "plan", "train", "llama-3-8b", "--explain"]
    started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert started.stdout is not None
    assert started.stderr is not None
    assert started.stdout.read(5) == b"llama"
    started.stdout.close()
    assert started.wait(60) == 0
    assert started.stderr.read() == b""
    started.stderr.close()


def test_the_examples_of_every_help_text_run(run: Plan, tmp_path: Path) -> None:
    assert "plan" in VERBS
    (tmp_path / "runs.csv").write_bytes(Path(EPOCH_POINTS).read_bytes())
    shown = [line.split() for verb in ("", "inference", "train", "budget", "fit", "laws")
             for line in run(*filter(None, [verb]), "--help").out.splitlines()]  # fmt: skip
    examples = {tuple(words[2:]) for words in shown if words[:2] == ["nextword", "plan"]}
    assert len(examples) > 12
    for example in sorted(examples):
        if {"smollm2-135m-instruct", "runs/"} & set(example):
            continue  # need a file and trained runs; their plans are tested elsewhere
        quick = ("--bootstrap", "0", "--method", "nnls") if "--data" in example else ()
        done = run(*example, *quick)
        assert (done.code, done.err) == (0, ""), example
