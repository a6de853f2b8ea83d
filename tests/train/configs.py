"""Resolved configurations of small runs, in few words."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from nextword.plan.run_config import ModelConfig, RunConfig, RunSettings, TrainConfig
from nextword.spec import ModelSpec


def config_of(spec: ModelSpec, lora: int = 0, threads: int = 1, **train: Any) -> RunConfig:
    """A run of `spec` on the CPU, in float32 and on one thread unless something else is said."""
    defaults: dict[str, Any] = {"context": spec.context, "batch_size": 4, "micro_batch": 4, "steps": 10,
                                "learning_rate": 1e-3, "final_learning_rate": 1e-4, "warmup_steps": 1,
                                "schedule": "cosine", "dtype": "fp32"}  # fmt: skip
    settings = RunSettings(device="cpu", threads=threads)
    return RunConfig(ModelConfig(spec=spec, lora=lora), train=TrainConfig(**{**defaults, **train}), run=settings)


def with_spec(config: RunConfig, spec: ModelSpec) -> RunConfig:
    """The same run of another model."""
    return replace(config, model=replace(config.model, spec=spec))
