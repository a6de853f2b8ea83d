"""RunConfig: the TOML configuration of a training run.

Values that are missing, or 0 where the description says so, are chosen when the run is planned. A resolved
configuration has all of them, and reproduces the same losses on the same text.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from ..base import UsageError, atomic_write
from ..base.cores import check_threads
from ..base.fields import FieldError, Within, check_fields, description, from_plain
from ..base.toml import read_toml, set_values, to_toml
from ..families import spec_from_dict
from ..spec import ModelKind, ModelSpec
from .compute import Recompute

PLACEMENT = ("devices", "shard", "tensor_parallel")  # keys of [train] that do not change results
FEWEST_IDS, MOST_IDS = 257, 1 << 20  # of a bpe tokenizer; at least every byte and end-of-text
MOST_CONTEXT = 1 << 27
BUDGETS = ("minutes", "flops", "tokens", "steps")

Count = Within(least=0)
Amount = Within(least=0)
Fraction = Within(least=0, most=1)
Beta = Annotated[float, Within(least=0, below=1)]
Schedule = Literal["auto", "cosine", "wsd", "constant"]
Optimizer = Literal["adamw", "muon", "lion", "adafactor", "momentum", "sgd"]  # the planner's optimizers that can be run
TrainDtype = Literal["auto", "fp32", "amp"]
RunShard = Literal["none", "ddp", "fsdp", "hybrid"]  # the planner's that can be run
LossSpikeAction = Literal["stop", "skip", "rewind"]
TrackerName = Literal["tensorboard", "wandb", "mlflow"]


@dataclass(frozen=True)
class ModelConfig:
    """The model to train."""

    arch: Annotated[ModelKind, "the architecture"] = "transformer"
    base: Annotated[str, "weights to fine-tune: a name, a folder, a .gguf file or hf:owner/name"] = ""
    lora: Annotated[int, Count, "rank of the LoRA adapters; 0 trains every weight"] = 0
    params: Annotated[float, Amount, "parameters; 0: compute-optimal for the budget and the text"] = 0.0
    match: Annotated[
        Literal["params", "flops"], "match a recurrent model's parameters or FLOPs to the transformer of that size"
    ] = "params"
    spec: Annotated[ModelSpec | None, "the shape, in [model.spec]; default: chosen"] = None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.spec is not None:
            object.__setattr__(self, "arch", self.spec.kind)
            check_lora(self.lora, self.spec)


@dataclass(frozen=True)
class DataConfig:
    """How text becomes tokens."""

    tokenizer: Annotated[str, "bpe, bytes or characters (trained on the text), or a model whose tokenizer to use"] = (
        "bpe"
    )
    vocabulary: Annotated[int, Within(0, MOST_IDS), "tokens of a bpe tokenizer; 0: grows with the model"] = 0
    val_fraction: Annotated[float, Within(above=0, below=0.9), "held-out share of the text"] = 0.05
    skip_invalid: Annotated[bool, "skip broken rows, and files of another encoding, and count them"] = False
    deduplicate: Annotated[bool, "drop documents whose text an earlier one has"] = False
    column: Annotated[str, "text column in .jsonl and .parquet; empty: text or content"] = ""
    encoding: Annotated[str, "encoding of text files: utf-8, latin-1, ..."] = "utf-8"

    def __post_init__(self) -> None:
        check_fields(self)
        if 0 < self.vocabulary < FEWEST_IDS:
            raise FieldError("vocabulary", self.vocabulary, f"a whole number from {FEWEST_IDS} to {MOST_IDS:,}")


@dataclass(frozen=True)
class TrainConfig:
    """Settings that determine a run's results, besides model and text. Rows are sequences of `context` tokens."""

    minutes: Annotated[float, Amount, "budget: time to train; 0: none"] = 0.0
    flops: Annotated[float, Amount, "budget: FLOPs to spend; 0: none"] = 0.0
    tokens: Annotated[float, Amount, "budget: tokens to see; 0: none"] = 0.0
    steps: Annotated[int, Count, "optimizer steps; 0: what the budget buys"] = 0
    context: Annotated[int, Within(0, MOST_CONTEXT), "tokens per row; 0: chosen with the model"] = 0
    batch_size: Annotated[int, Count, "rows per step, over all processes; 0: chosen"] = 0
    micro_batch: Annotated[int, Count, "rows per process at a time; 0: chosen"] = 0
    learning_rate: Annotated[float, Amount, "peak learning rate; 0: chosen"] = 0.0
    final_learning_rate: Annotated[Annotated[float, Amount] | None, "default: a tenth of learning_rate"] = None
    warmup_steps: Annotated[Annotated[int, Count] | None, "default: a twentieth of the steps, at most 2,000"] = None
    schedule: Annotated[
        Schedule, "cosine, wsd (warm-up, stable, decay), constant, or auto: wsd with a budget of minutes, else cosine"
    ] = "auto"
    decay_fraction: Annotated[float, Fraction, "share of decay steps with wsd"] = 0.2
    optimizer: Annotated[Optimizer, "adamw, muon, lion, adafactor, momentum or sgd"] = "adamw"
    betas: Annotated[tuple[Beta, Beta], "betas of AdamW, Muon's AdamW part and Lion"] = (0.9, 0.95)
    weight_decay: Annotated[float, Amount, "of matrices"] = 0.1
    grad_clip: Annotated[float, Amount, "largest gradient norm; 0: no clipping"] = 1.0
    dropout: Annotated[float, Within(least=0, below=1), "dropout rate"] = 0.0
    dtype: Annotated[TrainDtype, "fp32, amp (products in bfloat16), or auto: amp if it is faster here"] = "auto"
    recompute: Annotated[
        Recompute, "computed again in the backward pass: none, selective (all but products and attention), full"
    ] = "none"
    packing: Annotated[Literal["stream", "best-fit"], "how documents become rows"] = "stream"
    mask_documents: Annotated[bool, "tokens only attend within their document"] = False
    stateful: Annotated[bool, "recurrent models: rows continue where the previous step ended"] = False
    seed: Annotated[int, Within(0, (1 << 63) - 1), "seed of the weights, the data order and dropout"] = 0
    on_loss_spike: Annotated[LossSpikeAction, "stop, skip or rewind at a NaN loss or a loss spike"] = "stop"
    shard: Annotated[RunShard, "how several processes share the model: ddp, fsdp or hybrid; none: ddp"] = "none"
    tensor_parallel: Annotated[int, Within(least=1), "processes that share each layer of a copy of the model"] = 1
    devices: Annotated[int, Within(least=1), "processes; set by --processes or torchrun"] = 1

    def __post_init__(self) -> None:
        check_fields(self)
        if given := [name for name in BUDGETS[:3] if getattr(self, name)][1:]:
            raise FieldError(given[0], getattr(self, given[0]), "one budget: minutes, flops or tokens")

    @property
    def sharded(self) -> bool:
        """Whether several processes each hold a part of the weights."""
        return self.devices > 1 and (self.shard in ("fsdp", "hybrid") or self.tensor_parallel > 1)

    @property
    def accumulation(self) -> int:
        """Micro-batches per step; the last may be smaller."""
        return math.ceil(self.batch_size * self.tensor_parallel / (self.micro_batch * self.devices))


@dataclass(frozen=True)
class RunSettings:
    """Where a run computes and what it writes; affects results in the last bits only."""

    device: Annotated[str, "auto, cpu, cuda, cuda:1, ..."] = "auto"
    threads: Annotated[int, Count, "CPU threads; 0: the fastest measured"] = 0
    follow_load: Annotated[
        bool | None,
        "use fewer threads while other programs run, if results stay the same; none: unless threads are given",
    ] = None
    compile: Annotated[bool, "torch.compile: takes a minute, then faster on a GPU"] = False
    checkpoint_every: Annotated[
        Annotated[int, Count] | None, "steps; 0: at the end only; default: every 2 minutes, at least 10"
    ] = None
    keep_checkpoints: Annotated[int, Within(least=1), "number of checkpoints to keep"] = 2
    evaluate_every: Annotated[
        Annotated[int, Count] | None, "steps; 0: at the end only; default: a tenth of the steps"
    ] = None
    evaluate_tokens: Annotated[int, Count, "held-out tokens evaluated at the end; 0: 200,000, fine-tuning 20,000"] = 0
    sample_every: Annotated[
        Annotated[int, Count] | None, "steps between sample completions; 0: none; default: a quarter of the steps"
    ] = None
    sample_prompt: Annotated[str, "prompt of sample completions"] = ""
    log: Annotated[tuple[TrackerName, ...], "experiment trackers: tensorboard, wandb, mlflow, each an extra"] = ()

    def __post_init__(self) -> None:
        check_fields(self)
        check_threads(self.threads)


@dataclass(frozen=True)
class RunConfig:
    """A run's configuration. Raises UsageError that names the key, its value and the accepted values."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    run: RunSettings = field(default_factory=RunSettings)

    @cached_property
    def spec(self) -> ModelSpec:
        """The model's shape. Raises UsageError if it is not chosen yet."""
        if self.model.spec is None:
            raise UsageError("the run has no [model.spec] yet; plan_run chooses one")
        return self.model.spec

    @property
    def total_tokens(self) -> int:
        """The run's total number of tokens."""
        return self.train.steps * self.train.batch_size * self.train.context

    def check_resolved(self) -> None:
        """Raise UsageError if a value is not chosen yet; `plan_run` chooses all of them."""
        _ = self.spec
        for name in ("steps", "context", "batch_size", "micro_batch", "learning_rate"):
            if not getattr(self.train, name):
                raise UsageError(f"train.{name} is not chosen yet: give it, or let plan_run choose it")
        if self.train.schedule == "auto":
            raise UsageError("train.schedule is not chosen yet: give it, or let plan_run choose it")

    def with_train(self, **changes: Any) -> RunConfig:
        """A copy with changes in section `train`."""
        return replace(self, train=replace(self.train, **changes))

    def with_run(self, **changes: Any) -> RunConfig:
        """A copy with changes in section `run`."""
        return replace(self, run=replace(self.run, **changes))

    def to_dict(self) -> dict[str, Any]:
        """Plain data, without missing values; `from_dict` reads it back."""
        data = asdict(self)
        if self.model.spec is not None:
            data["model"]["spec"] = _without_defaults(self.model.spec)
        plain: dict[str, Any] = _without_none(data)
        return plain

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RunConfig:
        """The configuration in plain data, such as a table of TOML. Raises UsageError for invalid data."""
        model = data.get("model")
        if isinstance(model, Mapping) and isinstance(spec := model.get("spec"), Mapping):
            data = {**data, "model": {**model, "spec": spec_from_dict(spec, "its [model.spec]")}}
        return from_plain(cls, data)

    def write(self, path: Path) -> None:
        """Write it as TOML, atomically."""
        with atomic_write(path) as file:
            file.write(to_toml(self.to_dict()))

    @classmethod
    def read(cls, path: Path, assignments: Iterable[str] = ()) -> RunConfig:
        """Read a TOML file, overridden by each "section.key=value" of `assignments`."""
        table = read_toml(path)
        set_values(table, assignments)
        try:
            return cls.from_dict(table)
        except UsageError as error:
            raise UsageError(f"{path}: {error}") from None


def _without_defaults(spec: Any) -> dict[str, Any]:
    """The non-default values of a dataclass and its nested dataclasses."""
    values = {item.name: getattr(spec, item.name) for item in fields(spec)}
    defaults = {item.name: item.default_factory() if callable(item.default_factory) else item.default
                for item in fields(spec)}  # fmt: skip
    changed = {name: value for name, value in values.items() if value != defaults[name]}
    return {name: _without_defaults(value) if is_dataclass(value) else value for name, value in changed.items()}


def _without_none(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _without_none(value) for key, value in data.items() if value is not None}
    return data


def check_lora(rank: int, model: ModelSpec) -> None:
    """Raise UsageError if `model` cannot have adapters of `rank`; 0 means none."""
    if not rank:
        return
    if model.kind != "transformer":
        raise UsageError(f"LoRA adapts the matrices of a transformer's layers; train all weights of this {model.kind}")
    if rank > model.width:
        raise FieldError("lora", rank, f"at most the model's width, {model.width:,}")


def table_of_keys() -> list[tuple[str, str, str]]:
    """Every key, its default in TOML ("" without one) and its description, for the documentation."""
    rows = []
    for section in fields(RunConfig):
        kind: Any = type(getattr(RunConfig(), section.name))
        for key in fields(kind):
            default = to_toml({"x": key.default}).removeprefix("x = ").strip() if key.default is not None else ""
            rows.append((f"{section.name}.{key.name}", default, description(kind, key.name)))
    return rows
