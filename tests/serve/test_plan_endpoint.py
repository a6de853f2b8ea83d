"""POST /v1/plan answers what `nextword plan … --json` prints, and opens nothing that a request names."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cli_run import run
from nextword import plan
from nextword.base import units
from nextword.serve.bodies import PlanBody, decode
from nextword.serve.errors import ApiError
from nextword.serve.planning import answer_of
from serving import Server

QUESTIONS: tuple[dict[str, Any], ...] = (
    {"question": "inference", "model": "llama-3-8b", "context": "8k", "batch_size": 4,
     "devices": "rtx4090,8 GB=8GB,1TB/s,20TFLOP/s"},
    {"question": "inference", "model": "gpt-oss-20b"},
    {"question": "inference", "params": "70B", "dtype": "q4_k", "kv_dtype": "q8_0"},
    {"question": "train", "model": "llama-3-8b", "devices": "8xh100", "shard": "fsdp", "context": 4096,
     "price": "$2.5"},
    {"question": "train", "params": 1e9, "micro_batch": 8, "recompute": "full", "loss": "chunked", "tokens": "20B",
     "train_dtype": "amp", "attention": "plain", "optimizer": "muon", "mfu": 0.3},
    {"question": "train", "params": "1M", "arch": "lstm"},
    {"question": "train", "model": "llama-3-8b", "lora": 16, "lora_targets": "q,v", "base": "nf4",
     "devices": "rtx4090"},
    {"question": "fit", "params": "1B", "devices": "rtx4090", "micro_batch": 16, "context": 2048},
    {"question": "fit", "model": "GPT2"},
    {"question": "budget", "flops": "5.76e23"},
    {"question": "budget", "devices": "8xh100", "days": "3 days", "tokens_available": "50B", "law": "hoffmann"},
    {"question": "budget", "dollars": 500, "price": 2.5, "inference_tokens": "1T"},
    {"question": "budget", "minutes": 30, "devices": "h100", "mfu": 0.25},
)  # fmt: skip


def ask(**question: Any) -> dict[str, Any]:
    return json.loads(json.dumps(answer_of(decode(json.dumps(question).encode(), PlanBody), {})))


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: "-".join(map(str, question.values()))[:40])
def test_the_answer_is_what_the_command_prints(question: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    answer = ask(**question)
    program, *words = shlex.split(answer["command"])
    assert program == "nextword"
    assert json.loads(run(capsys, *words, "--json")[1]) == answer["plan"]


def test_charts_show_the_plan() -> None:
    train = ask(question="train", model="gpt2", devices="rtx4090")
    bar, *_ = train["charts"]["memory"]["layer"]
    assert sum(row["gb"] for row in bar["data"]["values"]) == pytest.approx(train["plan"]["memory"]["total"] / 1e9)
    surface = ask(question="budget", flops=1e21)["charts"]["surface"]
    laws = next(param["value"] for param in surface["params"] if param["name"] == "laws")
    assert laws == [optimum["law"] for optimum in ask(question="budget", flops=1e21)["plan"]["optima"]]
    assert set(ask(question="fit", model="gpt2")["charts"]) == {"remedies"}


def test_a_whole_shape_is_planned_as_it_is() -> None:
    spec = plan.shape_for(1e8)
    answer = ask(question="train", spec=spec.to_dict(), micro_batch=2, context=256)
    expected = plan.memory(spec, plan.Training(batch=2, context=256, runtime=plan.device("h100").runtime))
    assert answer["plan"]["memory"]["total"] == expected.total
    assert answer["command"] is None
    assert answer["plan"]["model"]["parameters"]["total"] == plan.parameters(spec).total


FUNCTIONS = {"min": min, "max": max, "ceil": math.ceil, "sqrt": math.sqrt}


def figures(value: Any) -> list[dict[str, Any]]:
    if isinstance(value, dict):
        own = [value] if "formula" in value else []
        return own + [found for child in value.values() for found in figures(child)]
    return [found for child in value for found in figures(child)] if isinstance(value, list) else []


def test_every_number_comes_with_its_formula_filled_in() -> None:
    found = figures(ask(question="train", model="gpt2", price=1)["plan"])
    assert len(found) > 20
    for each in found:
        assert {"name", "value", "unit", "formula", "inputs", "filled", "source"} <= set(each)
        python = each["filled"].replace("×", "*").replace("−", "-").replace("^", "**")
        value = eval(re.sub(r"(?<=\d),(?=\d{3})", "", python), {"__builtins__": {}}, FUNCTIONS)
        assert value == pytest.approx(each["value"], rel=1e-4)


TOO_ACTIVE = {"kind": "transformer", "vocabulary": 10, "width": 8, "layers": 3, "context": 5, "heads": 2, "kv_heads": 2,
              "head_width": 4, "mlp_width": 3, "experts": {"count": 4, "active": 9, "width": 3}}  # fmt: skip
REFUSED: tuple[tuple[dict[str, Any], str, str], ...] = (
    ({"question": "train"}, "model", "give one of"),
    ({"question": "train", "model": "gpt2", "params": "1B"}, "model", "give one of"),
    ({"question": "train", "model": "gpt3000"}, "model", "not known"),
    ({"question": "train", "model": "gpt2", "arch": "lstm"}, "arch", "params"),
    ({"question": "train", "spec": {"kind": "transformer"}}, "spec", "spec"),
    ({"question": "train", "spec": {"kind": "lstm", "vocabulary": 9, "width": 1 << 40, "layers": 1, "context": 1}},
     "spec", "width"),
    ({"question": "train", "params": "many"}, "params", "not understood"),
    ({"question": "train", "model": "gpt2", "context": "3e9"}, "context", "whole number"),
    ({"question": "train", "model": "gpt2", "lora_targets": "q"}, "lora_targets", "needs lora"),
    ({"question": "train", "model": "gpt2", "base": "int3"}, "base", "not known"),
    ({"question": "train", "model": "gpt2", "mfu": 0}, "mfu", "share"),
    ({"question": "train", "model": "gpt2", "shard": "fsdp"}, "shard", "devices"),
    ({"question": "inference", "model": "gpt2", "dtype": "int1"}, "dtype", "not known"),
    ({"question": "inference", "model": "gpt2", "devices": "h1000"}, "device", "not known"),
    ({"question": "inference", "model": "gpt2", "tokens": 5}, "tokens", "unknown field"),
    ({"question": "budget", "flops": "1e21", "days": 3}, "flops", "separate budgets"),
    ({"question": "budget"}, "flops", "no budget"),
    ({"question": "budget", "dollars": 5}, "price", "price"),
    ({"question": "budget", "flops": 1}, "flops", "1e+09"),
    ({"question": "budget", "flops": 1e21, "law": "moore"}, "law", "not known"),
    ({"question": "inference", "batch_size": 1 << 24, "spec": TOO_ACTIVE}, "", "so large"),
    ({"question": "sing"}, "question", "sing"),
    ({}, "question", "question"),
)  # fmt: skip


@pytest.mark.parametrize(("question", "param", "says"), REFUSED, ids=lambda value: str(value)[:60])
def test_a_wrong_question_is_refused_in_a_line(question: dict[str, Any], param: str, says: str) -> None:
    with pytest.raises(ApiError) as caught:
        ask(**question)
    error = caught.value
    assert error.status == 400
    assert says in error.message
    assert "--" not in error.message
    assert "\n" not in error.message


@pytest.mark.parametrize("form", ["{}", "{}/config.json", "{}/model.safetensors", "../{}", "hf:openai-community/gpt2",
                                  "openai:http://x/v1#y", "~", "/etc/passwd", "."])  # fmt: skip
def test_a_model_is_a_name_and_never_a_path(tiny_path: Path, form: str) -> None:
    with pytest.raises(ApiError, match="is not known"):
        ask(question="inference", model=form.format(tiny_path))


def test_a_time_beyond_all_numbers_is_answered() -> None:
    answer = answer_of(decode(b'{"question": "train", "params": 2e13, "mfu": 1e-300}', PlanBody), {})
    assert json.loads(msgspec.json.encode(answer))["plan"]["cost"]["seconds"]["value"] is None


def test_served_models_are_planned_from_their_files(
    tiny: Server, tiny_path: Path, tiny_model: Callable[..., Path], start: Callable[..., Server]
) -> None:
    lstm = tiny_model("lstm")
    two = start(tiny_path, lstm)
    for server, name, folder in ((tiny, "tiny", tiny_path), (two, lstm.name, lstm)):
        answer = server.post("/v1/plan", {"question": "inference", "model": name, "devices": "h100"}).json
        assert answer["plan"]["model"]["stored"]["value"] == (folder / "model.safetensors").stat().st_size
        assert answer["plan"]["model"]["name"] == name
        assert answer["command"] is None
    names = tiny.get("/v1/plan/names").json
    assert {"tiny", "llama-3-8b", "smollm2-135m-instruct"} <= set(names["models"])
    assert {device["name"] for device in names["devices"]} == set(plan.devices())
    assert units.parse_bytes("80GB") in {device["memory"] for device in names["devices"]}
    refused = tiny.post("/v1/plan", {"question": "train", "model": "gpt2", "context": 0})
    assert (refused.status, refused.error["param"]) == (400, "context")
