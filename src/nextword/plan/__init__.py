"""Arithmetic on a ModelSpec: parameters, FLOPs, memory, speed, scaling laws, devices. No torch.

    from nextword import plan
    spec = plan.shape_for(124e6)
    plan.parameters(spec).total
    plan.memory(spec, plan.Training(batch=8, context=1024)).parts
    plan.optimum(5.76e23).parameters

Every result is a dataclass of figures; a figure has its unit, its formula and the formula's source. numpy and scipy
are imported when a law is fitted.
"""

from ..spec import ModelSpec
from .activations import Activations, activations
from .budget import BudgetPlan, budget_from, plan_budget, prediction_interval
from .compute import Flops, flops
from .data_constraints import best_when_limited, data_limited, inference_aware
from .figure import Figure
from .fit_search import Diagnosis, diagnose
from .fitting import LawFit, fit_law
from .hardware import Device, device, devices
from .laws import Law, Optimum, flat_region, optima, optimum
from .parameters import Parameters, parameters
from .run_config import RunConfig
from .run_tables import read_runs, read_table
from .runs import Optima, Runs
from .serving import Serving, cache_bytes, fit_on, serving_memory, speed, weight_bytes
from .shape_search import run_for, shape_for
from .states import States, states
from .training import Memory, Training, cost, duration, training_memory

__all__ = [
    "Activations",
    "BudgetPlan",
    "Device",
    "Diagnosis",
    "Figure",
    "Flops",
    "Law",
    "LawFit",
    "Memory",
    "Optima",
    "Optimum",
    "Parameters",
    "RunConfig",
    "Runs",
    "Serving",
    "States",
    "Training",
    "activations",
    "best_when_limited",
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
    "memory",
    "optima",
    "optimum",
    "parameters",
    "plan_budget",
    "prediction_interval",
    "read_runs",
    "read_table",
    "run_for",
    "shape_for",
    "speed",
    "states",
    "weight_bytes",
]


def memory(spec: ModelSpec, use: Training | Serving) -> Memory:
    """Memory of a device to train (`Training`) or serve (`Serving`) a model; parts sum to the total."""
    return serving_memory(spec, use) if isinstance(use, Serving) else training_memory(spec, use)
