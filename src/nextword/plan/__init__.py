"""Arithmetic on a ModelSpec: parameters, FLOPs, memory, speed, scaling laws, devices. No torch.

    from nextword import plan
    spec = plan.shape_for(124e6)
    plan.parameters(spec).total
    plan.memory(spec, plan.Training(batch=8, context=1024)).parts
    plan.optimum(5.76e23).parameters

Every result is a dataclass of figures; a figure carries its unit, its formula and the formula's source. Names are
imported on first use; numpy and scipy only where a law is fitted, matplotlib where one draws.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..spec import ModelSpec

if TYPE_CHECKING:
    from .budget import Budget, budget_from, plan_budget, prediction_interval
    from .compute import Flops, flops, palm
    from .configs import spec_from_config
    from .counts import Parameters, parameters
    from .figure import Figure
    from .fitting import LawFit, fit_law
    from .hardware import Device, device, devices
    from .held import States, states
    from .laws import Law, Optimum, budget_for, flat_region, optima, optimum
    from .limits import best_when_limited, data_limited, inference_aware
    from .remedies import Diagnosis, diagnose
    from .run_config import RunConfig
    from .runs import Runs, read_runs
    from .saved import Activations, activations, megatron_layer
    from .serving import Serving, cache_bytes, fit_on, speed, weight_bytes
    from .shape_search import run_for, shape_for
    from .training import Memory, Training, cost, duration

_HOMES = {
    "saved": ("Activations", "activations", "megatron_layer"),
    "budget": ("Budget", "budget_from", "plan_budget", "prediction_interval"),
    "configs": ("spec_from_config",),
    "run_config": ("RunConfig",),
    "shape_search": ("run_for", "shape_for"),
    "hardware": ("Device", "device", "devices"),
    "figure": ("Figure",),
    "fitting": ("LawFit", "fit_law"),
    "compute": ("Flops", "flops", "palm"),
    "laws": ("Law", "Optimum", "budget_for", "flat_region", "optima", "optimum"),
    "limits": ("best_when_limited", "data_limited", "inference_aware"),
    "counts": ("Parameters", "parameters"),
    "remedies": ("Diagnosis", "diagnose"),
    "runs": ("Runs", "read_runs"),
    "serving": ("Serving", "cache_bytes", "fit_on", "speed", "weight_bytes"),
    "held": ("States", "states"),
    "training": ("Memory", "Training", "cost", "duration"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Activations",
    "Budget",
    "Device",
    "Diagnosis",
    "Figure",
    "Flops",
    "Law",
    "LawFit",
    "Memory",
    "Optimum",
    "Parameters",
    "RunConfig",
    "Runs",
    "Serving",
    "States",
    "Training",
    "activations",
    "best_when_limited",
    "budget_for",
    "budget_from",
    "cache_bytes",
    "cost",
    "data_limited",
    "device",
    "devices",
    "diagnose",
    "duration",
    "fit_law",
    "fit_on",
    "flat_region",
    "flops",
    "inference_aware",
    "megatron_layer",
    "memory",
    "optima",
    "optimum",
    "palm",
    "parameters",
    "plan_budget",
    "prediction_interval",
    "read_runs",
    "run_for",
    "shape_for",
    "spec_from_config",
    "speed",
    "states",
    "weight_bytes",
]


def memory(spec: ModelSpec, use: Training | Serving) -> Memory:
    """Bytes a device needs to train (`Training`) or to use (`Serving`) a model; its parts sum to its total."""
    from .serving import Serving, serving_memory
    from .training import training_memory

    return serving_memory(spec, use) if isinstance(use, Serving) else training_memory(spec, use)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
