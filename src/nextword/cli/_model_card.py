"""A model's description as text and as JSON: pure functions."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from .. import native
from ..base import printable
from ..spec import ExpertsSpec, ModelSpec
from ..weights.describe import Description, TokenizerFacts
from ._table import plain_table

_LONGEST, _LONGEST_NAME = 600, 100  # characters of text quoted from a model's metadata


def model_card(name: str, origin: str, described: Description, all_tensors: bool) -> RenderableType:
    """Everything `nextword models info` prints about a model on disk."""
    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    for label, value in _facts(origin, described):
        facts.add_row(label, printable(value, _LONGEST))
    parts: list[RenderableType] = [
        Text(name, "bold"),
        facts,
        Text(),
        _parts_table(described),
        Text(),
        _kinds_table(described),
    ]
    if all_tensors:
        parts += [Text(), _tensor_table(described)]
    return Group(*parts)


def card_json(name: str, origin: str, described: Description) -> dict[str, Any]:
    """The model card as plain data."""
    return {
        "name": name,
        "from": origin,
        "path": str(described.path),
        "title": described.title,
        "licence": described.licence,
        "architecture": described.architecture,
        "runs": described.not_run is None,
        "not_run_because": described.not_run,
        "execution": _execution() if described.spec and not described.not_run else None,
        "spec": described.spec.to_dict() if described.spec else None,
        "parameters": described.parameters,
        "parameters_by_part": described.parts(),
        "bytes": described.bytes,
        "converted": described.converted,
        "kinds": [asdict(kind) for kind in described.kinds()],
        "tokenizer": asdict(described.tokenizer) if described.tokenizer else None,
        "tensors": [asdict(tensor) for tensor in described.tensors],
    }


def _execution() -> str:
    """How a model runs on this machine's CPU."""
    return "compiled CPU kernels" if native.available() else "PyTorch: the compiled kernels were not built"


def _facts(origin: str, described: Description) -> list[tuple[str, str]]:
    spec = described.spec
    return [
        ("from", origin),
        ("path", str(described.path)),
        *([("title", described.title)] if described.title else []),
        ("licence", described.licence or "not stated in the files"),
        ("architecture", described.architecture + (f": {_architecture(spec)}" if spec else "")),
        *([("runs", f"no: {described.not_run}")] if described.not_run else []),
        *([("execution", _execution())] if spec and not described.not_run else []),
        *([("converted", _converted(described))] if described.converted else []),
        *([("context", f"{spec.context:,} tokens{_window(spec)}")] if spec else []),
        (
            "tokenizer",
            _tokenizer(described.tokenizer) if described.tokenizer else "none that nextword can build",
        ),
    ]


def _converted(described: Description) -> str:
    return ", ".join(f"stored as {stored}, run as {run}" for stored, run in described.converted.items())


def _architecture(spec: ModelSpec) -> str:
    tied = "head tied to the embedding" if spec.tied else "untied head"
    if spec.kind != "transformer":
        return f"{spec.layers} layers, width {spec.width:,}, {tied}"
    grouped = f" ({spec.kv_heads} for keys and values)" if spec.kv_heads != spec.heads else ""
    positions = {
        "rotary": f"rotary positions, theta {spec.rope.theta:,.0f}",
        "learned": "learned positions",
        "none": "",
    }
    words = [
        f"{spec.layers} layers",
        f"width {spec.width:,}",
        f"{spec.heads} heads of {spec.head_width}{grouped}",
        f"{_experts(spec.experts)} ({spec.activation})"
        if spec.experts
        else f"{spec.mlp} MLP of {spec.mlp_width:,} ({spec.activation})",
        {"rms": "RMS norm", "layer": "layer norm"}[spec.norm],
        positions[spec.position] + (f", {spec.rope.scaling} scaling" if spec.rope.scaling != "none" else ""),
        tied,
    ]
    if spec.rope_layers:
        words.append(f"{spec.rope_layers.count(False)} of {spec.layers} layers without positions")
    if spec.qk_norm != "none":
        words.append("query and key norms")
    if spec.parallel:
        words.append("attention and MLP in parallel")
    return ", ".join(word for word in words if word)


def _experts(experts: ExpertsSpec) -> str:
    return f"{experts.count} experts of {experts.width:,}, {experts.active} per token"


def _window(spec: ModelSpec) -> str:
    windows = [window for window in spec.windows if window]
    return f"; {len(windows)} of {spec.layers} layers have a sliding window of {max(windows):,}" if windows else ""


def _tokenizer(facts: TokenizerFacts) -> str:
    words = [facts.kind, f"{facts.vocabulary:,} tokens"]
    if facts.bos is not None:
        words.append(f"texts begin with {facts.bos}" if facts.adds_bos else "no BOS token")
    if facts.eos:
        words.append(f"a text ends with {' or '.join(facts.eos)}")
    words.append("with a chat template" if facts.chat_template else "without a chat template")
    return ", ".join(words)


def _parts_table(described: Description) -> Table:
    table = plain_table("parameters", "", "share")
    total = max(described.parameters, 1)
    tied = described.spec is not None and described.spec.tied
    for part, count in described.parts().items():
        shown = "embedding, also the head" if part == "embedding" and tied else part
        table.add_row(shown, f"{count:,}", f"{100 * count / total:.1f}%")
    table.add_row("all", f"{described.parameters:,}", "100.0%", style="bold")
    return table


def _kinds_table(described: Description) -> Table:
    table = plain_table("stored as", "tensors", "parameters", "bytes", "bits a weight", least=((1,), (4,)))
    for kind in described.kinds():
        bits = 8 * kind.bytes / max(kind.parameters, 1)
        table.add_row(
            printable(kind.kind, _LONGEST_NAME),
            f"{kind.tensors:,}",
            f"{kind.parameters:,}",
            f"{kind.bytes:,}",
            f"{bits:.2f}",
        )
    bits = 8 * described.bytes / max(described.parameters, 1)
    row = (
        "all",
        f"{len(described.tensors):,}",
        f"{described.parameters:,}",
        f"{described.bytes:,}",
        f"{bits:.2f}",
    )
    table.add_row(*row, style="bold")
    return table


def _tensor_table(described: Description) -> Table:
    table = plain_table("tensor", "stored as", "shape", "bytes", least=((3,), (1,)))
    for tensor in described.tensors:
        table.add_row(
            printable(tensor.name, _LONGEST_NAME), tensor.kind, " x ".join(map(str, tensor.shape)), f"{tensor.bytes:,}"
        )
    return table
