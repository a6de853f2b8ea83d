"""A model file or folder described from its headers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..base import UsageError
from ..families import spec_from_config
from ..families.gguf_metadata import spec_from_gguf_metadata
from ..spec import ModelSpec
from .json_file import read_json
from .model_folder import weight_files
from .safetensors_file import SafetensorsFile, StoredTensor
from .source import run_kind

if TYPE_CHECKING:
    from ..text import Tokenizer

# part → substrings of its tensors' names in GGUF and transformers; the first match wins
_PARTS = {
    "norms": re.compile(r"norm|\bln_"),
    "attention": re.compile(r"attn|attention"),
    "MLP": re.compile(r"ffn|mlp|moe"),
    "recurrent": re.compile(r"^recurrent\."),
    "head": re.compile(r"^head\.|^output\.|lm_head|embed_out"),
    "embedding": re.compile(r"embd|embed|\bwte\b|\bwpe\b"),
}
_TOKENIZER_KINDS = {
    "gpt2": "byte-level BPE",
    "llama": "SentencePiece BPE",
    "t5": "SentencePiece unigram",
    "BPE": "BPE",
    "Unigram": "SentencePiece unigram",
    "WordPiece": "WordPiece",
    "WordLevel": "word level",
}


T = TypeVar("T")


@dataclass(frozen=True)
class StoredKind:
    """Totals of all tensors of one kind."""

    kind: str
    tensors: int
    parameters: int
    bytes: int


@dataclass(frozen=True)
class TokenizerFacts:
    """Facts about the tokenizer: special tokens by their text, None if missing."""

    kind: str
    vocabulary: int
    bos: str | None
    adds_bos: bool
    eos: tuple[str, ...]
    chat_template: bool


@dataclass(frozen=True)
class Description:
    """A model as described by its files. `spec` is None, with the reason, for a model nextword does not run."""

    path: Path
    title: str | None
    licence: str | None
    architecture: str
    spec: ModelSpec | None
    not_run: str | None
    tensors: tuple[StoredTensor, ...]
    tokenizer: TokenizerFacts | None

    @property
    def parameters(self) -> int:
        """The number of parameters in the file's tensors."""
        return sum(tensor.parameters for tensor in self.tensors)

    @property
    def bytes(self) -> int:
        """Bytes of the tensors."""
        return sum(tensor.bytes for tensor in self.tensors)

    def parts(self) -> dict[str, int]:
        """Parameters by part: embedding, head, norms, attention, MLP, recurrent."""
        sums: dict[str, int] = {}
        for tensor in self.tensors:
            part = next((part for part, name in _PARTS.items() if name.search(tensor.name)), "other")
            sums[part] = sums.get(part, 0) + tensor.parameters
        return {
            part: sums[part]
            for part in ("embedding", "attention", "MLP", "recurrent", "norms", "head", "other")
            if part in sums
        }

    @property
    def converted(self) -> dict[str, str]:
        """Stored types that are run in another type, and that type."""
        return {kind: run_kind(kind) for kind in sorted({t.kind for t in self.tensors}) if run_kind(kind) != kind}

    def kinds(self) -> list[StoredKind]:
        """Stored types, the one with the most bytes first."""
        groups: dict[str, list[StoredTensor]] = {}
        for tensor in self.tensors:
            groups.setdefault(tensor.kind, []).append(tensor)
        sums = (
            StoredKind(kind, len(group), sum(t.parameters for t in group), sum(t.bytes for t in group))
            for kind, group in groups.items()
        )
        return sorted(sums, key=lambda stored: -stored.bytes)


def describe(path: Path) -> Description:
    """Describe a .gguf file or a Hugging Face folder. Raises UsageError for files that are broken."""
    return _describe_folder(path) if path.is_dir() else _describe_gguf(path)


def _describe_gguf(path: Path) -> Description:
    from ..text import tokenizer_from_gguf
    from .gguf import GGUFFile

    file = GGUFFile.open(path)
    metadata = file.metadata
    tensors = tuple(StoredTensor(t.name, t.kind, t.shape, t.nbytes) for t in file.tensors.values())
    spec, problem = _tried(
        lambda: spec_from_gguf_metadata(metadata, all(t.name != "output.weight" for t in tensors), str(path))
    )
    kind = str(metadata.get("tokenizer.ggml.model", ""))
    return Description(
        path=path,
        title=_text(metadata.get("general.name")),
        licence=_text(metadata.get("general.license")),
        architecture=file.architecture,
        spec=spec,
        not_run=problem,
        tensors=tensors,
        tokenizer=_tried(lambda: _facts(tokenizer_from_gguf(metadata, path), kind))[0],
    )


def _describe_folder(path: Path) -> Description:
    from ..text import tokenizer_from_folder

    config = read_json(path / "config.json")
    files = map(SafetensorsFile, weight_files(path))
    spec, problem = _tried(lambda: spec_from_config(config))
    return Description(
        path=path,
        title=_text(config.get("_name_or_path")),
        licence=None,
        architecture=str(config.get("model_type", "")),
        spec=spec,
        not_run=problem,
        tensors=_without_scales(tensor for file in files for tensor in file.tensors.values()),
        tokenizer=_tried(lambda: _facts(tokenizer_from_folder(path), _folder_kind(path)))[0],
    )


def _tried(make: Callable[[], T]) -> tuple[T | None, str | None]:
    """The result of `make`, or None and the reason for the failure: a missing part must not hide the rest."""
    try:
        return make(), None
    except UsageError as error:
        return None, str(error)


def _facts(tokenizer: Tokenizer, kind: str) -> TokenizerFacts:
    return TokenizerFacts(
        kind=_TOKENIZER_KINDS.get(kind, kind or "unknown kind"),
        vocabulary=tokenizer.vocabulary,
        bos=None if tokenizer.bos_id is None else tokenizer.token_text(tokenizer.bos_id),
        adds_bos=tokenizer.adds_bos,
        eos=tuple(tokenizer.token_text(token) for token in sorted(tokenizer.stop_ids)),
        chat_template=tokenizer.chat_template is not None,
    )


def _folder_kind(path: Path) -> str:
    file = path / "tokenizer.json"
    if not file.exists():
        return "llama" if (path / "tokenizer.model").exists() else "BPE"
    described = read_json(file)
    kind = str((described.get("model") or {}).get("type", ""))
    return "gpt2" if kind == "BPE" and "ByteLevel" in json.dumps(described.get("pre_tokenizer")) else kind


def _without_scales(tensors: Iterable[StoredTensor]) -> tuple[StoredTensor, ...]:
    """The tensors, with each MXFP4 matrix as one instead of its blocks and scales."""
    by_name = {tensor.name: tensor for tensor in tensors}
    for name in [name.removesuffix("_blocks") for name in by_name if name.endswith("_blocks")]:
        if (scales := by_name.pop(f"{name}_scales", None)) is not None:
            blocks = by_name.pop(f"{name}_blocks")
            *shape, groups, _ = blocks.shape
            by_name[name] = StoredTensor(name, "mxfp4", (*shape, 32 * groups), blocks.bytes + scales.bytes)
    return tuple(by_name.values())


def _text(value: Any) -> str | None:
    return value.strip() or None if isinstance(value, str) else None
