"""A run's configuration and a model's specification say which number they cannot take, however it reaches them."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nextword.base import UsageError
from nextword.families import spec_from_dict
from nextword.plan import RunConfig
from nextword.plan.shape_search import recurrent_for
from nextword.spec import ModelSpec, RopeSpec

SPEC = ModelSpec(kind="transformer", vocabulary=97, width=48, layers=3, context=64, heads=6, kv_heads=2, head_width=8,
                 mlp_width=128)  # fmt: skip
RUN = RunConfig(model=SPEC, tokens=0, context=32, batch=4, micro_batch=4, accumulation=1, steps=10, learning_rate=1e-3,
                final_learning_rate=1e-4, warmup_steps=2)  # fmt: skip
NO_NUMBERS = ("3e-4", True, None, [1], {})
BAD: dict[str, tuple[Any, ...]] = {
    "tokens": (-1, 1.5),
    "context": (0, -5, 2.0, 1 << 40),
    "batch": (0, -1, 3.5),
    "micro_batch": (0, 1e3),
    "accumulation": (0,),
    "steps": (0, -1, math.inf),
    "learning_rate": (0, -1, math.nan, math.inf, 10**400),
    "final_learning_rate": (-1e-9, math.nan),
    "warmup_steps": (-1, 0.5),
    "weight_decay": (-1, math.nan, math.inf),
    "clip": (-1, math.nan, math.inf),
    "seed": (-1, 1 << 63, 0.5),
    "dropout": (-0.1, 1, 1.5, math.nan),
    "decay_share": (-0.1, 1.1, math.nan),
    "devices": (0, -2),
    "lora": (-1, 49, 0.5),
}
BAD_OTHERWISE: dict[str, tuple[Any, ...]] = {
    "betas": ((0.9,), (0.9, 1.0), (-0.1, 0.9), (0.9, math.nan), ("0.9", 0.9), 0.9, None),
    "precision": ("fp31", None, 32, ["amp"]),
    "shard": ("fsdq", True),
    "recompute": ("some", True),
    "packing": ("best", None),
    "schedule": ("cosin", 1, None),
    "optimizer": ("adam8bit", ["adamw"], None),
    "across_documents": (1, "yes", None),
    "carry_state": (0, "no"),
    "model": (None, {"width": 3}),
}
CASES = [(name, value) for name, some in BAD.items() for value in (*some, *NO_NUMBERS)]
CASES += [(name, value) for name, some in BAD_OTHERWISE.items() for value in some]


@pytest.mark.parametrize(("name", "value"), CASES)
def test_a_bad_setting_is_refused_by_name_with_what_it_may_be(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"^{name} .*: give "):
        replace(RUN, **{name: value})


@pytest.mark.parametrize(("name", "value"), [case for case in CASES if case[0] != "model"])
def test_a_bad_setting_in_a_file_is_refused_with_the_files_name(name: str, value: Any, tmp_path: Path) -> None:
    data = RUN.to_dict()
    data["training"][name] = value
    (tmp_path / "run.json").write_text(json.dumps(data))
    with pytest.raises(UsageError, match=name) as refused:
        RunConfig.read(tmp_path / "run.json")
    assert str(refused.value).startswith(f"{tmp_path / 'run.json'}: ")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"learning_rate": 1, "weight_decay": 0, "clip": 0, "dropout": 0, "betas": (0, 0)},
        {"seed": (1 << 63) - 1, "lora": 48, "warmup_steps": 0, "decay_share": 1},
        {"dropout": 0.999, "final_learning_rate": 0.0, "batch": 7, "accumulation": 2},
    ],
)
def test_the_ends_of_the_ranges_are_taken_and_come_back_from_a_file(settings: dict[str, Any], tmp_path: Path) -> None:
    run = replace(RUN, **settings)
    run.write(tmp_path / "run.json")
    assert RunConfig.read(tmp_path / "run.json") == run


def test_every_setting_has_a_case() -> None:
    assert RUN.to_dict()["training"].keys() | {"model"} == BAD.keys() | BAD_OTHERWISE.keys()


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (lambda data: data["training"].update(stepz=3), "'stepz' is not a setting"),
        (lambda data: data["training"].pop("steps"), "steps is missing"),
        (lambda data: data.update(training=[1, 2]), "an object 'training'"),
        (lambda data: data.update(model="small"), "an object 'model'"),
        (lambda data: data.pop("model"), "an object 'model'"),
        (lambda data: data["model"].update(heads=0), "heads"),
        (lambda data: data["model"].update(kv_heads=4), "6 heads do not divide"),
        (lambda data: data["model"]["rope"].update(theta="big"), "theta 'big': give a finite number above 0"),
        (lambda data: data["model"].update(rope=[1]), "rope"),
        (lambda data: data["model"].update(windows=None), "windows"),
    ],
)
def test_a_file_that_is_not_whole_is_refused(change: Any, wanted: str) -> None:
    data = json.loads(json.dumps(RUN.to_dict()))
    change(data)
    with pytest.raises(UsageError, match=wanted):
        RunConfig.from_dict(data)


@pytest.mark.parametrize("content", ["[" * 100_000, "{", "\xff", "3", ""])
def test_a_file_that_is_no_json_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(content, encoding="latin-1")
    with pytest.raises(UsageError, match=r"run\.json"):
        RunConfig.read(tmp_path / "run.json")


def test_a_configuration_in_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "run.json")
    with pytest.raises(UsageError, match="not a regular file"):
        RunConfig.read(tmp_path / "run.json")


def test_a_recurrent_net_takes_no_adapters() -> None:
    with pytest.raises(UsageError, match="train this lstm whole"):
        replace(RUN, model=recurrent_for(1e5, "lstm"), lora=4)


@pytest.mark.parametrize("value", [0, -5, "64", 1e9, 1 << 40, True, None, math.nan])
@pytest.mark.parametrize("name", ["width", "vocabulary", "layers", "context"])
def test_a_size_that_no_model_has_is_refused(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"^{name} .*: give a whole number from 1 to "):
        replace(SPEC, **{name: value})
    with pytest.raises(UsageError, match=name):
        spec_from_dict(SPEC.to_dict() | {name: value}, "config.json")


@pytest.mark.parametrize(
    ("name", "value"),
    [("kind", "mamba"), ("tied", 1), ("heads", -1), ("norm", "batch"), ("norm_eps", math.nan), ("windows", (-1,)),
     ("windows", 3), ("attention_scale", "big"), ("rope", None), ("experts", 3), ("logit_softcap", 0)],
)  # fmt: skip
def test_what_is_no_part_of_a_model_is_refused(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"^{name} .*: give "):
        replace(SPEC, **{name: value})


@pytest.mark.parametrize(
    ("name", "value"), [("theta", 0), ("fraction", 1.5), ("factor", math.inf), ("scaling", "half")]
)
def test_rotary_positions_that_cannot_be_are_refused(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"^{name} "):
        RopeSpec(**{name: value})
