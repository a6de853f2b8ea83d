"""A run's configuration and a model's specification say which value they cannot take, however it reaches them."""

from __future__ import annotations

import math
import os
import tomllib
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from nextword.base import UsageError
from nextword.base.toml import to_toml
from nextword.families import spec_from_dict
from nextword.plan.run_config import DataConfig, ModelConfig, RunConfig, RunSettings, TrainConfig, table_of_keys
from nextword.plan.shape_search import recurrent_for
from nextword.spec import ModelSpec, RopeSpec

SPEC = ModelSpec(kind="transformer", vocabulary=97, width=48, layers=3, context=64, heads=6, kv_heads=2, head_width=8,
                 mlp_width=128)  # fmt: skip
RUN = RunConfig(
    ModelConfig(spec=SPEC),
    train=TrainConfig(context=32, batch_size=4, micro_batch=4, steps=10, learning_rate=1e-3, warmup_steps=2),
)
SECTIONS = {"model": ModelConfig, "data": DataConfig, "train": TrainConfig, "run": RunSettings}
NO_NUMBERS = ("3e-4", True, [1], {})
BAD: dict[str, tuple[Any, ...]] = {
    "model.lora": (-1, 49, 0.5),
    "model.params": (-1, math.nan),
    "data.vocabulary": (-1, 5, 1 << 21),
    "data.val_fraction": (0, 0.9, -1, math.nan),
    "train.minutes": (-1, math.inf),
    "train.flops": (-1, math.nan),
    "train.tokens": (-1,),
    "train.context": (-5, 2.0, 1 << 40),
    "train.batch_size": (-1, 3.5),
    "train.micro_batch": (-1, 1e3),
    "train.steps": (-1, math.inf),
    "train.learning_rate": (-1, math.nan, math.inf, 10**400),
    "train.final_learning_rate": (-1e-9, math.nan),
    "train.warmup_steps": (-1, 0.5),
    "train.weight_decay": (-1, math.nan, math.inf),
    "train.grad_clip": (-1, math.nan, math.inf),
    "train.seed": (-1, 1 << 63, 0.5),
    "train.dropout": (-0.1, 1, 1.5, math.nan),
    "train.decay_fraction": (-0.1, 1.1, math.nan),
    "train.devices": (0, -2),
    "run.threads": (-1, 10_000, 0.5),
    "run.checkpoint_every": (-1, 1.5),
    "run.evaluate_every": (-1,),
    "run.sample_every": (-1,),
    "run.evaluate_tokens": (-1,),
    "run.keep_checkpoints": (0,),
}
BAD_OTHERWISE: dict[str, tuple[Any, ...]] = {
    "model.arch": ("mamba", 3),
    "model.base": (3, True),
    "model.match": ("size",),
    "model.spec": (3, "small"),
    "data.tokenizer": (3,),
    "data.skip_invalid": (1, "yes"),
    "data.deduplicate": (1, "yes"),
    "data.column": (1,),
    "data.encoding": (8,),
    "train.betas": ([0.9], [0.9, 1.0], [-0.1, 0.9], [0.9, math.nan], ["0.9", 0.9], 0.9),
    "train.dtype": ("fp31", 32, ["amp"]),
    "train.shard": ("fsdq", True),
    "train.tensor_parallel": (0, 1.5),
    "train.recompute": ("some", True),
    "train.packing": ("best",),
    "train.schedule": ("cosin", 1),
    "train.optimizer": ("adam8bit", ["adamw"]),
    "train.mask_documents": (1, "yes"),
    "train.stateful": (0, "no"),
    "train.on_loss_spike": ("sometimes",),
    "run.device": (3,),
    "run.compile": ("yes",),
    "run.follow_load": ("perhaps", 2),
    "run.sample_prompt": (3,),
    "run.log": ("wandb", ["tensorbord"], [1], 1),
}
CASES = [(name, value) for name, some in BAD.items() for value in (*some, *NO_NUMBERS)]
CASES += [(name, value) for name, some in BAD_OTHERWISE.items() for value in some]


@pytest.mark.parametrize(("name", "value"), CASES)
def test_a_bad_value_in_a_file_is_refused_with_its_key_and_the_files_name(
    name: str, value: Any, tmp_path: Path
) -> None:
    data, (section, key) = RUN.to_dict(), name.split(".")
    data[section][key] = value
    (tmp_path / "run.toml").write_text(to_toml(data))
    with pytest.raises(UsageError, match=key) as refused:
        RunConfig.read(tmp_path / "run.toml")
    assert str(refused.value).startswith(f"{tmp_path / 'run.toml'}: ")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("name", "value"), [case for case in CASES if not isinstance(case[1], (list, dict))])
def test_a_bad_value_of_a_caller_is_refused_by_name_with_what_it_may_be(name: str, value: Any) -> None:
    section, key = name.split(".")
    with pytest.raises(UsageError, match=f"^{key} .*: give "):
        replace(getattr(RUN, section), **{key: value})


@pytest.mark.parametrize(
    ("settings", "lora"),
    [
        ({"learning_rate": 1, "weight_decay": 0, "grad_clip": 0, "dropout": 0, "betas": (0, 0)}, 0),
        ({"seed": (1 << 63) - 1, "warmup_steps": 0, "decay_fraction": 1}, 48),
        ({"dropout": 0.999, "final_learning_rate": 0.0, "batch_size": 7, "learning_rate": 1 / 3}, 1),
    ],
)
def test_the_ends_of_the_ranges_are_taken_and_come_back_from_a_file(
    settings: dict[str, Any], lora: int, tmp_path: Path
) -> None:
    config = replace(RUN.with_train(**settings), model=ModelConfig(spec=SPEC, lora=lora))
    config.write(tmp_path / "run.toml")
    assert RunConfig.read(tmp_path / "run.toml") == config


def test_a_file_has_only_what_is_set_and_the_rest_is_the_default(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text('[model]\narch = "lstm"\n[train]\nlearning_rate = 3e-4\nminutes = 20\n')
    config = RunConfig.read(
        tmp_path / "run.toml", ["train.dropout=0.1", "train.schedule=wsd", "train.betas=[0.8, 0.9]"]
    )
    train = TrainConfig(learning_rate=3e-4, minutes=20.0, dropout=0.1, schedule="wsd", betas=(0.8, 0.9))
    assert config == RunConfig(ModelConfig(arch="lstm"), train=train)


@pytest.mark.parametrize(
    ("assignment", "wanted"),
    [
        (
            "train.learning_rte=1",
            "unknown setting 'train.learning_rte'. Did you mean train.learning",
        ),
        ("learning_rate=1", "unknown setting 'learning_rate'. Did you mean train.learning_rate?"),
        ("trian.seed=1", "unknown setting 'trian'. Did you mean train"),
        ("train.dropout", "--set train.dropout: give section.key=value"),
        ("train.seed.x=1", "train.seed"),
        ("train=3", "train"),
    ],
)
def test_an_unknown_key_names_the_nearest(assignment: str, wanted: str, tmp_path: Path) -> None:
    RUN.write(tmp_path / "run.toml")
    with pytest.raises(UsageError) as refused:
        RunConfig.read(tmp_path / "run.toml", [assignment])
    assert wanted in str(refused.value)


def test_every_key_has_a_case_and_a_description() -> None:
    keys = {f"{section}.{field.name}" for section, kind in SECTIONS.items() for field in fields(kind)}
    assert keys == BAD.keys() | BAD_OTHERWISE.keys()
    assert {key for key, _, _ in table_of_keys()} == keys
    assert all(what for _, _, what in table_of_keys())


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (lambda data: data["model"].update(spec={"width": 3}), "kind"),
        (lambda data: data["model"]["spec"].update(heads=0), "heads"),
        (lambda data: data["model"]["spec"].update(kv_heads=4), "6 heads do not divide"),
        (lambda data: data["model"]["spec"].update(rope={"theta": "big"}), "theta 'big': give a finite number above 0"),
        (lambda data: data["model"]["spec"].update(rope=[1]), "rope"),
        (lambda data: data["model"]["spec"].update(windows=3), "windows"),
        (lambda data: data.update(train=[1, 2]), "train"),
    ],
)
def test_a_specification_that_is_none_is_refused(change: Any, wanted: str) -> None:
    data = tomllib.loads(to_toml(RUN.to_dict()))
    change(data)
    with pytest.raises(UsageError, match=wanted):
        RunConfig.from_dict(data)


@pytest.mark.parametrize("content", ["[" * 100_000, "{", "\xff", "3", "a = 1\na = 2"])
def test_a_file_that_is_no_toml_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(content, encoding="latin-1")
    with pytest.raises(UsageError, match=r"run\.toml"):
        RunConfig.read(tmp_path / "run.toml")


def test_a_configuration_in_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "run.toml")
    with pytest.raises(UsageError, match="not a regular file"):
        RunConfig.read(tmp_path / "run.toml")


def test_a_recurrent_net_takes_no_adapters() -> None:
    with pytest.raises(UsageError, match="train all weights of this lstm"):
        ModelConfig(spec=recurrent_for(1e5, "lstm"), lora=4)


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
