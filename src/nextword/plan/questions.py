"""The questions of `nextword plan`, from settings as people give them; asked by the command line and by the server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..base import UsageError, units
from ..base.errors import closest
from ..families.published import known_config, known_spec
from ..spec import ModelKind, ModelSpec
from .budget import BudgetPlan, budget_from, plan_budget
from .figure import plain
from .fit_search import Diagnosis, diagnose
from .hardware import Device
from .laws import DEFAULT as DEFAULT_LAW
from .laws import TOKENS_A_PARAMETER
from .parameters import parameters
from .serving import BITS, InferencePlan, Serving, plan_inference, published_bytes
from .shape_search import recurrent_for, shape_for
from .shapes import LORA_TARGETS
from .training import CPU_FRAGMENTATION, FRAGMENTATION, MFU, Training, TrainingPlan, plan_training

LONGEST_CONTEXT = 1 << 27
MOST_SEQUENCES = 1 << 24
_LONGEST_DEFAULT_CONTEXT = 8192
_ADAPTING = 10e6  # tokens; adapters need a few thousand examples

Devices = tuple[int, Device]  # how many, and of which kind


@dataclass(frozen=True)
class PlannedModel:
    """The model to plan for. `stored_bytes` is known for a local model, or if its published format is known."""

    name: str
    spec: ModelSpec
    stored_bytes: float | None = None
    note: str = ""
    expert_bits: float | None = None  # where `stored_bytes` has experts in fewer bits than the rest

    def context(self, tokens: int | None) -> int:
        """The requested context, or the model's own up to 8,192."""
        return tokens or min(self.spec.context, _LONGEST_DEFAULT_CONTEXT)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, with parameters by part rather than by tensor."""
        counted = plain(parameters(self.spec))
        del counted["tensors"]
        stored = {"value": self.stored_bytes, "unit": "bytes"} if self.stored_bytes else None
        return {
            "name": self.name, "note": self.note or None, "spec": self.spec.to_dict(), "parameters": counted,
            "stored": stored,
        }  # fmt: skip


def sized_model(params: float, arch: ModelKind | None = None) -> PlannedModel:
    """A model of about `params` parameters, with an assumed shape."""
    arch = arch or "transformer"
    spec = shape_for(params) if arch == "transformer" else recurrent_for(params, arch)
    layout = "Llama's layout" if arch == "transformer" else "two layers, head tied"
    return PlannedModel(f"{arch} of about {units.format_count(params)}", spec, note=f"shape assumed: {layout}")


def known_model(name: str) -> PlannedModel | None:
    """A well-known model by name; None for others."""
    spec = known_spec(name)
    return None if spec is None else published_model(name, spec, published_bytes(known_config(name) or {}, spec))


def published_model(name: str, spec: ModelSpec, stored: float | None) -> PlannedModel:
    """A model that is not downloaded, but whose published format may be known."""
    if stored is None:
        return PlannedModel(name, spec)
    return PlannedModel(name, spec, stored, "experts in MXFP4, the rest in bf16", BITS["mxfp4"])


def inference(
    about: PlannedModel, devices: list[Device], *, batch_size: int = 1, context: int | None = None,
    dtype: str | None = None, kv_dtype: str = "bf16",
) -> InferencePlan:  # fmt: skip
    """Memory for weights and cache, which devices it fits on, and speed."""
    stored = about.stored_bytes if dtype is None else None
    use = Serving(batch_size, about.context(context), dtype or "bf16", kv_dtype, stored,
                  about.expert_bits if stored else None)  # fmt: skip
    return plan_inference(about.spec, use, dict.fromkeys(devices))


def train(
    about: PlannedModel, devices: Devices, *, tokens: float | None = None, mfu: float = MFU,
    price: float | None = None, **setup: Any,
) -> TrainingPlan:  # fmt: skip
    """A training run's memory, FLOPs, time and price; `setup` as for `training_setup`."""
    run = training_setup(about, devices, **setup)
    by_rule = float(TOKENS_A_PARAMETER * parameters(about.spec).total)
    return plan_training(about.spec, run, devices[1], tokens or (_ADAPTING if run.lora else by_rule), mfu, price)


def fit(about: PlannedModel, devices: Devices, **setup: Any) -> Diagnosis:
    """The cheapest changes that make a training run fit; `setup` as for `training_setup`."""
    return diagnose(about.spec, training_setup(about, devices, **setup), devices[1])


def training_setup(
    about: PlannedModel, devices: Devices, *, micro_batch: int = 1, context: int | None = None,
    train_dtype: str | None = None, attention: str = "flash", loss: str = "whole", lora: int = 0,
    lora_targets: tuple[str, ...] = (), **same: Any,
) -> Training:  # fmt: skip
    """A Training from settings named as on the command line; `same`: those with the same name in Training."""
    count, device = devices
    if lora_targets and not lora:
        raise UsageError("--lora-targets needs --lora; give a rank, such as --lora 16")
    settings: dict[str, Any] = {"precision": train_dtype or ("fp32" if device.is_cpu else "mixed"), "kernel": attention}
    return Training(
        batch=micro_batch,
        context=about.context(context),
        devices=count,
        fragmentation=CPU_FRAGMENTATION if device.is_cpu else FRAGMENTATION,
        chunked_loss=loss == "chunked",
        runtime=device.runtime,
        lora=lora,
        lora_targets=lora_targets,
        **settings,
        **same,
    )


def budget(
    devices: Devices | None, find: Callable[[str], Device], *, flops: float | None = None,
    minutes: float | None = None, hours: float | None = None, days: float | None = None, dollars: float | None = None,
    price: float | None = None, mfu: float = MFU, law: str = DEFAULT_LAW.name, tokens_available: float | None = None,
    inference_tokens: float | None = None,
) -> BudgetPlan:  # fmt: skip
    """The best model for a budget: FLOPs, or a time (in seconds, whatever its name) on `devices`, or money."""
    seconds = _only_one(flops, {"--minutes": minutes, "--hours": hours, "--days": days}, dollars, price)
    count, device = devices or (1, find("this" if minutes is not None else "h100"))
    if not 0 < mfu <= 1:
        raise UsageError(f"--mfu is a share between 0 and 1, not {mfu}")
    compute = budget_from(
        compute=flops, seconds=seconds, dollars=dollars, price=price, device=device, devices=count, mfu=mfu
    )
    return plan_budget(compute, by=law, device=device, devices=count, mfu=mfu, tokens_available=tokens_available,
                       inference_tokens=inference_tokens)  # fmt: skip


def _only_one(
    flops: float | None, times: dict[str, float | None], dollars: float | None, price: float | None
) -> float | None:
    """The given time, if it is the budget. Raises UsageError unless exactly one budget is given."""
    given = [name for name, value in {"--flops": flops, **times, "--dollars": dollars}.items() if value is not None]
    if len(given) != 1:
        what = "no budget is given" if not given else f"{' and '.join(given)} are separate budgets"
        raise UsageError(f"{what}; give one of --flops, --minutes, --hours, --days, --dollars (with --price)")
    if dollars is not None and price is None:
        raise UsageError("--dollars needs the price per device hour, such as --price 2.5")
    return next((value for value in times.values() if value is not None), None)


def lora_matrices(names: str) -> tuple[str, ...]:
    """Names of matrices from a comma-separated list."""
    targets = tuple(dict.fromkeys(name.strip().lower() for name in names.split(",")))
    for name in targets:
        if name not in (*LORA_TARGETS, "all"):
            known = ", ".join((*LORA_TARGETS, "all"))
            raise UsageError(f"--lora-targets: {name!r} is not a matrix.{closest(name, LORA_TARGETS)} Known: {known}")
    return targets
