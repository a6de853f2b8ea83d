"""POST /v1/plan: what `nextword plan … --json` prints, with its figures, for names and shapes; it opens no path."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.responses import Response

from ..base import UsageError, units
from ..base.errors import closest
from ..families.published import known_models
from ..plan import Device, devices, questions
from ..plan.figure import plain
from ..plan.hardware import device, split_count, split_names
from ..plan.laws import LAWS
from ..plan.plots import memory_figure, remedies_figure, surface_figure
from ..plan.questions import LONGEST_CONTEXT, MOST_SEQUENCES, PlannedModel, lora_matrices, sized_model
from ..plan.serving import BITS
from ..plan.states import BASES
from ..plots import Spec
from ..spec import ModelSpec
from ..weights.catalogue import cache_folder, known_names
from ..weights.planned import model_by_name
from .bodies import BudgetQuestion, InferenceQuestion, ModelQuestion, PlanBody, TrainQuestion
from .errors import ApiError, of_usage
from .requests import answer

if TYPE_CHECKING:
    from .call import Call

_INFERENCE_DEVICES, _TRAINING_DEVICE = "rtx4090,a100,h100", "h100"
_MODEL = ("model", "params", "arch", "spec")
_whole = partial(units.parse_whole, least=1, most=1 << 16)
_PARSERS: dict[str, Callable[[str, str], Any]] = {
    "params": units.parse_count,
    "context": partial(units.parse_whole, least=1, most=LONGEST_CONTEXT),
    "batch_size": partial(units.parse_whole, least=1, most=MOST_SEQUENCES),
    "micro_batch": partial(units.parse_whole, least=1, most=MOST_SEQUENCES),
    "per_machine": _whole,
    "lora": _whole,
    "lora_targets": lambda text, what: lora_matrices(text),
    "tokens": units.parse_count,
    "price": units.parse_money,
    "flops": units.parse_flops,
    "minutes": partial(units.parse_seconds, unit="min"),
    "hours": partial(units.parse_seconds, unit="h"),
    "days": partial(units.parse_seconds, unit="d"),
    "dollars": units.parse_money,
    "tokens_available": units.parse_count,
    "inference_tokens": units.parse_count,
}


async def names(call: Call, body: None) -> Response:
    """What /v1/plan knows by name: models, devices, types of weights, scaling laws."""
    served = await call.prepare(lambda: call.service.models.all_ids)
    return answer(
        {
            "models": list(dict.fromkeys((*served, *known_names(), *known_models()))),
            "devices": [plain(each) for each in devices().values()],
            "dtypes": list(BITS),
            "bases": list(BASES),
            "laws": list(LAWS),
        }
    )


async def plan(call: Call, body: PlanBody) -> Response:
    """Memory, time, price, or the best model for a budget; every number with its unit, formula and source."""
    models = call.service.models

    def work() -> dict[str, Any]:
        name = body.model if isinstance(body, ModelQuestion) else None
        served = models.planned(name) if name and models.has(name) else None
        return answer_of(body, {name: served} if name and served else {})

    return answer(await call.compute(work))


def answer_of(body: PlanBody, served: dict[str, PlannedModel]) -> dict[str, Any]:
    """The answer to a question. Raises ApiError that names the field."""
    given = {name: value for name, value in msgspec.structs.asdict(body).items() if value is not None}
    if not isinstance(body, BudgetQuestion):
        given.setdefault("devices", _INFERENCE_DEVICES if isinstance(body, InferenceQuestion) else _TRAINING_DEVICE)
    try:
        result, charts = _plan(body, _parsed(given), served)
    except UsageError as error:  # it names the options of the command line
        said = re.sub(r"--([a-z][a-z-]*)", lambda match: match[1].replace("-", "_"), str(error))
        refusal = of_usage(UsageError(said), body.__struct_fields__)
        refusal.param = "devices" if said.startswith("device ") else refusal.param
        raise refusal from None
    except ArithmeticError:
        raise ApiError(400, "numbers so large or so small cannot be planned with") from None
    on_the_command_line = "spec" not in given and given.get("model") not in served
    command = _command(str(body.__struct_config__.tag), given) if on_the_command_line else None
    return {"plan": plain(result), "command": command, "charts": charts}


def _plan(body: PlanBody, values: dict[str, Any], served: dict[str, PlannedModel]) -> tuple[Any, dict[str, Spec]]:
    """The result, and its figures."""
    if values.get("base", "bf16") not in BASES:
        raise ApiError(400, f"base {values['base']!r} is not known. Known: {', '.join(BASES)}", "base")
    wanted = values.pop("devices", "")
    if isinstance(body, BudgetQuestion):
        spent = questions.budget(_devices(wanted) if wanted else None, _device, **values)
        return spent, {"surface": surface_figure(spent)}
    about = _model(served, **{name: values.pop(name, None) for name in _MODEL})
    if isinstance(body, InferenceQuestion):
        use = questions.inference(about, [_device(name) for name in split_names(wanted)], **values)
        title, memory, on = f"{about.name} in use", use.devices[0].memory, [row.device for row in use.devices]
        return {"model": about, **plain(use)}, {"memory": memory_figure(memory, on, title)}
    if isinstance(body, TrainQuestion):
        run = questions.train(about, _devices(wanted), **values)
        figure = memory_figure(run.memory, [run.device], f"{about.name} in training")
        return {"model": about, **plain(run)}, {"memory": figure}
    found = questions.fit(about, _devices(wanted), **values)
    return {"model": about, **plain(found)}, {
        "remedies": remedies_figure(found, f"{about.name} on {found.device.title}")
    }


def _parsed(given: dict[str, Any]) -> dict[str, Any]:
    """Numbers with units as the command line reads them."""
    return {name: _PARSERS[name](str(value), name) if name in _PARSERS else value for name, value in given.items()}


def _model(
    served: dict[str, PlannedModel], model: str | None, params: float | None, arch: Any, spec: Any
) -> PlannedModel:
    if sum(value is not None for value in (model, params, spec)) != 1:
        raise ApiError(400, "give one of model (a name), params (such as 1B) and spec (a whole shape)", "model")
    if arch is not None and params is None:
        raise ApiError(400, "arch only goes with params", "arch")
    if params is not None:
        return sized_model(params, arch)
    if spec is not None:
        return PlannedModel("this shape", _shape(spec))
    assert model is not None
    found = served.get(model) or model_by_name(model)
    if found is None:
        known = (*served, *known_names(), *known_models())
        raise ApiError(
            400,
            f"model {model[:80]!r} is not known.{closest(model.lower(), known)} GET /v1/plan/names lists all",
            "model",
        )
    return found


def _shape(spec: dict[str, Any]) -> ModelSpec:
    try:
        return ModelSpec.from_dict(spec)
    except UsageError as error:
        raise ApiError(400, f"spec: {error}", "spec") from None


def _devices(text: str) -> tuple[int, Device]:
    count, name = split_count(text)
    return count, _device(name)


def _device(name: str) -> Device:
    """A device by name. "this" is measured once and remembered, never anew for a request."""
    return device("this" if name.strip().lower() == "measure" else name, cache_folder())


def _command(question: str, given: dict[str, Any]) -> str:
    """The same question on the command line."""
    options = {name: value for name, value in given.items() if name != "model"}
    words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    return shlex.join(["nextword", "plan", question, *([given["model"]] if "model" in given else []), *words])
