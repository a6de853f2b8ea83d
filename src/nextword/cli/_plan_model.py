"""The model to plan for: from a name, a folder, a file, or a parameter count."""

from __future__ import annotations

from pathlib import Path

from ..base import UsageError, units
from ..base.errors import closest
from ..families import spec_from_dict
from ..families.published import known_models
from ..plan import RunConfig, parameters
from ..plan.questions import PlannedModel, sized_model
from ..spec import ModelKind
from ..weights.catalogue import check_folder
from ..weights.json_file import read_json
from ..weights.planned import model_by_name, model_of_config, model_of_gguf
from ._sections import Section, formulas, line


def model_sections(about: PlannedModel) -> list[Section]:
    """One line about the model, and its parameters by part and tensor for --explain."""
    spec, counted = about.spec, parameters(about.spec)
    active = f", {units.format_count(counted.active)} active" if counted.active < counted.total else ""
    note = f" ({about.note})" if about.note else ""
    text = (
        f"{about.name}{note}: {counted.total:,} parameters{active}; {spec.layers} layers of width {spec.width:,},"
        f" vocabulary {spec.vocabulary:,}"
    )
    return [line(text), formulas("parameters", [*counted.parts, *counted.tensors])]


def planned_model(model: str | None, params: float | None, arch: ModelKind | None) -> PlannedModel:
    """The model from MODEL or --params. Raises UsageError that lists the accepted forms."""
    if (model is None) == (params is None):
        raise UsageError(
            "give either MODEL (a name, a folder, a .gguf file, a config.json) or --params, such as --params 1B"
        )
    if params is not None:
        return sized_model(params, arch)
    if arch is not None:
        raise UsageError(f"--arch {arch} only applies to --params; {model} has its own architecture. Leave one out")
    assert model is not None
    path = Path(model).expanduser()
    if path.suffix.lower() == ".toml":
        return PlannedModel(str(path), RunConfig.read(path).spec)
    if path.suffix.lower() == ".json" or (path.is_dir() and not list(path.glob("*.gguf"))):
        return _from_json(model, path / "config.json" if path.is_dir() else path)
    return model_by_name(model) or model_of_gguf(model, _existing(model, path))


def _from_json(name: str, path: Path) -> PlannedModel:
    """A Hugging Face config.json, or a ModelSpec as plain data."""
    if not path.exists() and path.name != "config.json":
        raise UsageError(f"{path}: no such file; give a name, a folder, a .gguf file or a config.json")
    data = read_json(path)
    if "kind" in data and "model_type" not in data:
        return PlannedModel(name, spec_from_dict(data, str(path)))
    return model_of_config(name, path, data)


def _existing(model: str, path: Path) -> Path:
    if model.startswith("hf:"):
        raise UsageError(
            f"{model} must be local to plan for it: download it with nextword models pull, and give its folder"
        )
    if path.is_dir():
        return check_folder(path)
    if path.suffix.lower() == ".gguf":
        return path  # opening it fails if it is missing
    if path.exists():
        raise UsageError(f"{path} is not a model: give a folder, a .gguf file or a config.json")
    known = known_models()
    raise UsageError(
        f"model {model!r} is not known.{closest(model.lower(), known)} Known: {', '.join(known)};"
        " or a folder, a .gguf file, a config.json, --params N"
    )
