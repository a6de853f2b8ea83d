"""The model to plan for: from a name, a folder, a file, or a parameter count."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..base import UsageError, units
from ..base.errors import closest
from ..families import spec_from_config, spec_from_dict
from ..families.gguf_metadata import spec_from_gguf_metadata
from ..families.published import known_config, known_models, known_spec
from ..plan import RunConfig, parameters, shape_for
from ..plan.serving import BITS, published_bytes
from ..plan.shape_search import recurrent_for
from ..spec import ModelKind, ModelSpec
from ..weights.catalogue import cache_folder, cached_file, check_folder, find, is_cached
from ..weights.json_file import read_json
from ._sections import Section, formulas, line, plain

LONGEST_DEFAULT_CONTEXT = 8192


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
        return tokens or min(self.spec.context, LONGEST_DEFAULT_CONTEXT)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, with parameters by part rather than by tensor."""
        counted = plain(parameters(self.spec))
        del counted["tensors"]
        stored = {"value": self.stored_bytes, "unit": "bytes"} if self.stored_bytes else None
        return {
            "name": self.name, "note": self.note or None, "spec": self.spec.to_dict(), "parameters": counted,
            "stored": stored,
        }  # fmt: skip

    def sections(self) -> list[Section]:
        """One line about the model, and its parameters by part and tensor for --explain."""
        spec, counted = self.spec, parameters(self.spec)
        active = f", {units.format_count(counted.active)} active" if counted.active < counted.total else ""
        note = f" ({self.note})" if self.note else ""
        text = (
            f"{self.name}{note}: {counted.total:,} parameters{active}; {spec.layers} layers of width {spec.width:,},"
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
        arch = arch or "transformer"
        spec = shape_for(params) if arch == "transformer" else recurrent_for(params, arch)
        layout = "Llama's layout" if arch == "transformer" else "two layers, head tied"
        return PlannedModel(f"{arch} of about {units.format_count(params)}", spec, note=f"shape assumed: {layout}")
    if arch is not None:
        raise UsageError(f"--arch {arch} only applies to --params; {model} has its own architecture. Leave one out")
    assert model is not None
    path = Path(model).expanduser()
    if path.suffix.lower() == ".toml":
        return PlannedModel(str(path), RunConfig.read(path).spec)
    if path.suffix.lower() == ".json" or (path.is_dir() and not list(path.glob("*.gguf"))):
        return _from_json(model, path / "config.json" if path.is_dir() else path)
    return _from_weights(model, path)


def _from_json(name: str, path: Path) -> PlannedModel:
    """A Hugging Face config.json, or a ModelSpec as plain data."""
    if not path.exists() and path.name != "config.json":
        raise UsageError(f"{path}: no such file; give a name, a folder, a .gguf file or a config.json")
    data = read_json(path)
    if "kind" in data and "model_type" not in data:
        return PlannedModel(name, spec_from_dict(data, str(path)))
    stored = sum(file.stat().st_size for file in path.parent.glob("*.safetensors")) if path.name == "config.json" else 0
    spec = spec_from_config(data, str(path))
    return PlannedModel(name, spec, stored) if stored else _published(name, spec, published_bytes(data, spec))


def _published(name: str, spec: ModelSpec, stored: float | None) -> PlannedModel:
    """A model that is not downloaded, but whose published format is known."""
    if stored is None:
        return PlannedModel(name, spec)
    return PlannedModel(name, spec, stored, "experts in MXFP4, the rest in bf16", BITS["mxfp4"])


def _from_weights(model: str, path: Path) -> PlannedModel:
    entry = find(model)
    file = cached_file(entry, cache_folder()) if entry and is_cached(entry, cache_folder()) else None
    if file is None:
        if entry is not None:
            return PlannedModel(model, entry.spec)
        if (spec := known_spec(model)) is not None:
            return _published(model, spec, published_bytes(known_config(model) or {}, spec))
        file = _existing(model, path)
    from ..weights.gguf import GGUFFile

    gguf = GGUFFile.open(file)
    spec = spec_from_gguf_metadata(gguf.metadata, "output.weight" not in gguf.tensors, str(file))
    stored = sum(tensor.nbytes for tensor in gguf.tensors.values())
    return PlannedModel(model, spec, stored)


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
