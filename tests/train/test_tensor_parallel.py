"""Which runs cannot share layers among processes, said before they start."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from configs import config_of

from nextword.base import UsageError
from nextword.data import Dataset
from nextword.models.parallel import check_tensor_parallel
from nextword.spec import ExpertsSpec, ModelSpec
from nextword.train import trainer
from nextword.train.distributed import Process
from nextword.train.trainer import Trainer

SPEC = ModelSpec(kind="transformer", vocabulary=300, width=16, layers=1, context=16, heads=4, kv_heads=2, head_width=4,
                 mlp_width=32)  # fmt: skip
RECURRENT = ModelSpec(kind="gru", vocabulary=300, width=16, layers=1, context=16)


@pytest.mark.parametrize(
    ("spec", "processes", "wanted"),
    [
        (RECURRENT, 2, "use train.shard=fsdp for this model"),
        (replace(SPEC, qk_norm="head"), 2, "use train.shard=fsdp for this model"),
        (replace(SPEC, attention_sinks=True), 2, "use train.shard=fsdp for this model"),
        (replace(SPEC, experts=ExpertsSpec(4, 2, 8)), 2, "use train.shard=fsdp for this model"),
        (SPEC, 3, "train.tensor_parallel=3 does not divide the model's heads, 4"),
        (SPEC, 4, "train.tensor_parallel=4 does not divide the model's kv_heads, 2"),
    ],
)
def test_a_model_whose_layers_cannot_be_divided_is_refused(spec: ModelSpec, processes: int, wanted: str) -> None:
    check_tensor_parallel(SPEC, 2)
    check_tensor_parallel(spec, 1)
    with pytest.raises(UsageError, match=wanted):
        check_tensor_parallel(spec, processes)


@pytest.mark.parametrize(
    ("world", "train", "settings", "wanted"),
    [
        (3, {}, {}, "train.tensor_parallel 2: give a divisor of the 3 processes"),
        (4, {"batch_size": 3}, {}, "train.batch_size 3: give a multiple of the 2 processes"),
        (2, {"optimizer": "muon"}, {}, "muon needs whole matrices"),
        (2, {"optimizer": "adafactor", "tensor_parallel": 1, "shard": "fsdp"}, {}, "adafactor needs whole matrices"),
        (2, {}, {"compile": True}, "run.compile needs whole layers"),
    ],
)
def test_a_run_that_cannot_be_divided_is_refused(
    world: int, train: dict[str, Any], settings: dict[str, Any], wanted: str, data: Dataset, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(trainer, "this_process", lambda: Process(0, world))
    monkeypatch.setattr(trainer.compile, "check", lambda *_: None)
    config = config_of(SPEC, **{"micro_batch": 1, "tensor_parallel": 2} | train).with_run(**settings)
    with pytest.raises(UsageError, match=wanted):
        Trainer(config, data, tmp_path)
