"""The description of a model family, shared by the families' files.

A family is data: which key of config.json (and of GGUF metadata) is which field of ModelSpec, which fields are the
same in all of its models, and its tensor names. `read` and `write` do the rest, in both directions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..base import UsageError
from ..spec import MOST, MOST_LAYERS, ExpertsSpec, ModelSpec
from .config import Config
from .names import Names
from .rope import rope_config, rope_from_config

Values = dict[str, Any]  # keyed by ModelSpec fields, config.json keys or GGUF metadata keys
_MOST_HEADS = 1 << 16
_WRITTEN = {"gelu_tanh": "gelu_pytorch_tanh"}  # our activation names → transformers', if different


@dataclass(frozen=True)
class Key:
    """A key of config.json that is a field of ModelSpec. Its type is that of `default`, or int without one.

    `default` is transformers' value for a missing key, or a function of the configuration and the fields read so far;
    None: the key is required. `gguf` is its name in GGUF metadata, without the architecture.
    """

    name: str
    default: Any = None
    gguf: str = ""
    most: int = MOST

    def read(self, config: Config, fields: Values) -> Any:
        """The field's value."""
        if isinstance(self.default, bool):
            return config.flag(self.name, self.default)
        if isinstance(self.default, float):
            return config.number(self.name, self.default)
        if isinstance(self.default, str):
            return config.activation(self.name, self.default)
        needed = callable(self.default) and config.values.get(self.name) is None
        default = self.default(config, fields) if needed else None if callable(self.default) else self.default
        return config.count(self.name, default, self.most)

    def write(self, value: Any) -> Any:
        """The config.json value for a field's value."""
        return _WRITTEN.get(value, value) if isinstance(self.default, str) else value


@dataclass(frozen=True)
class Windows:
    """Sliding windows of `sliding_window` tokens: in all layers, or where `slides(config, fields, layer)`.

    `default` applies if the key is missing. There are none if the flag `switch`, off by default, is not set. A list
    `layer_types` takes precedence over `slides`.
    """

    default: int = 0
    slides: Callable[[Config, Values, int], bool] | None = None
    switch: str = ""

    def read(self, config: Config, fields: Values) -> tuple[int, ...]:
        """The window of each layer; () if no layer has one."""
        window = config.count("sliding_window", 0, least=0) if "sliding_window" in config.values else self.default
        if not window or (self.switch and not config.flag(self.switch, False)):
            return ()
        types = None if self.slides is None else config.values.get("layer_types")
        if types is not None:
            known = {"sliding_attention": True, "full_attention": False}
            if not isinstance(types, list) or any(name not in known for name in types):
                raise UsageError(f"{config.what}: layer_types takes a list of {', '.join(known)}")
            sliding = [known[name] for name in types]
        else:
            sliding = [not self.slides or self.slides(config, fields, layer) for layer in range(fields["layers"])]
        return tuple(window if slides else 0 for slides in sliding) if any(sliding) else ()

    def write(self, spec: ModelSpec) -> Values:
        """The keys read by `read`."""
        values: Values = {"sliding_window": max(spec.windows, default=0) or None}
        if self.slides:
            names = ("full_attention", "sliding_attention")
            values["layer_types"] = [names[spec.window(layer) > 0] for layer in range(spec.layers)]
        return values | ({self.switch: any(spec.windows)} if self.switch else {})


@dataclass(frozen=True)
class GGUF:
    """A family in GGUF files. `keys` maps config.json keys that are not ModelSpec fields to their GGUF names.

    If two families share an `architecture`, files of this one have the key `requires`. `read` gives config.json values
    that the metadata only implies, `write` metadata without a config.json key. Only architectures with
    `partial_rotary` may rotate part of a head: in others the rows would be in a different order. `factors` is the rope
    scaling ("llama3", "longrope") that its files store as tensors.
    """

    architecture: str
    names: Names
    keys: Mapping[str, str] = field(default_factory=dict)
    requires: str = ""
    partial_rotary: bool = False
    factors: str = ""
    read: Callable[[Values], Values] = lambda metadata: {}
    write: Callable[[ModelSpec], Values] = lambda spec: {}


@dataclass(frozen=True)
class Family:
    """A model family. One that is `plan_only` is neither loaded nor written."""

    model_type: str  # in config.json
    architecture: str  # the class of transformers
    keys: Mapping[str, Key]  # by the field of ModelSpec
    fixed: Mapping[str, Any] = field(default_factory=dict)  # fields that are the same in all of its models
    experts: Mapping[str, Key] = field(default_factory=dict)  # by the field of ExpertsSpec
    windows: Windows | None = None
    theta: float = 10_000.0  # rope theta if the file has none
    read: Callable[[Config, Values], Values] = lambda config, fields: {}
    write: Callable[[ModelSpec], Values] = lambda spec: {}
    names: Names = field(default_factory=lambda: Names({}))
    gguf: GGUF | None = None
    aliases: tuple[str, ...] = ()  # other model types read as this one
    plan_only: bool = False

    def spec(self, values: Mapping[str, Any], what: str) -> ModelSpec:
        """The ModelSpec of a config.json, called `what` in messages. Raises UsageError that names the invalid key."""
        config, fields = Config(values, what), {"kind": "transformer", **self.fixed}
        for name, key in self.keys.items():
            fields[name] = key.read(config, fields)
        if fields["kind"] == "transformer":
            fields["kv_heads"] = fields.get("kv_heads", fields["heads"])
            fields["head_width"] = fields.get("head_width") or head_width(config, fields)
        if self._rotary:
            fields["rope"] = rope_from_config(config, self.theta)
        if self.experts:
            fields["experts"] = ExpertsSpec(**{name: key.read(config, fields) for name, key in self.experts.items()})
        fields |= self.read(config, fields)
        if self.windows:
            fields["windows"] = self.windows.read(config, fields)
        return checked(ModelSpec(**fields), what)

    def config(self, spec: ModelSpec) -> Values:
        """The config.json of `spec`, as far as the family can express it; the inverse of `spec`."""
        values = {key.name: key.write(getattr(spec, name)) for name, key in self.keys.items()}
        if spec.experts:
            values |= {key.name: getattr(spec.experts, name) for name, key in self.experts.items()}
        if self._rotary:
            values |= {"rope_theta": spec.rope.theta, "rope_parameters": rope_config(spec.rope)}
        if self.windows:
            values |= self.windows.write(spec)
        return values | self.write(spec) | {"model_type": self.model_type}

    @property
    def _rotary(self) -> bool:
        return self.fixed.get("kind", "transformer") == "transformer" and "position" not in self.fixed


def checked(spec: ModelSpec, what: str) -> ModelSpec:
    """The spec, after checking that its numbers are consistent."""
    if spec.kind != "transformer":
        return spec
    for name, value in (("heads", spec.heads), ("kv_heads", spec.kv_heads), ("head_width", spec.head_width)):
        if not value:
            raise UsageError(f"{what}: {name} is 0; a transformer has at least 1")
    if spec.heads % spec.kv_heads:
        raise UsageError(f"{what}: {spec.heads} heads do not divide into {spec.kv_heads} key-value heads")
    for name, values in (("layer types", spec.windows), ("no_rope_layers", spec.rope_layers)):
        if values and len(values) != spec.layers:
            raise UsageError(f"{what}: {len(values)} {name} for {spec.layers} layers")
    rotating = int(spec.head_width * spec.rope.fraction)
    if spec.position == "rotary" and rotating % 2:
        raise UsageError(f"{what}: rotary positions need an even width, not {spec.head_width} x {spec.rope.fraction}")
    for factors in (spec.rope.short_factors, spec.rope.long_factors):
        if spec.rope.scaling == "longrope" and len(factors) != rotating // 2:
            raise UsageError(f"{what}: {len(factors)} factors of longrope for {rotating // 2} rotating pairs")
    if spec.experts and spec.experts.active > spec.experts.count:
        raise UsageError(f"{what}: a token cannot pass through {spec.experts.active} of {spec.experts.count} experts")
    return spec


# ---- shared by many families


def head_width(config: Config, fields: Values) -> int:
    """Width / heads, the default of `head_dim`."""
    width, heads = fields["width"], fields["heads"]
    if width % heads:
        raise UsageError(
            f"{config.what}: a width of {width} does not divide into {heads} heads, and no head_dim is given"
        )
    return int(width // heads)


def defaults(keys: Mapping[str, Key], **values: Any) -> dict[str, Key]:
    """`keys` with other defaults."""
    return dict(keys) | {name: replace(keys[name], default=value) for name, value in values.items()}


LLAMA_KEYS = {
    "vocabulary": Key("vocab_size"),
    "width": Key("hidden_size", gguf="embedding_length"),
    "layers": Key("num_hidden_layers", gguf="block_count", most=MOST_LAYERS),
    "context": Key("max_position_embeddings", 2048, "context_length"),
    "tied": Key("tie_word_embeddings", False),
    "heads": Key("num_attention_heads", gguf="attention.head_count", most=_MOST_HEADS),
    "kv_heads": Key("num_key_value_heads", lambda _, fields: fields["heads"], "attention.head_count_kv", _MOST_HEADS),
    "head_width": Key("head_dim", head_width, "attention.key_length"),
    "mlp_width": Key("intermediate_size", gguf="feed_forward_length"),
    "norm_eps": Key("rms_norm_eps", 1e-6, "attention.layer_norm_rms_epsilon"),
    "activation": Key("hidden_act", "silu"),
}
BIAS_KEYS = {"attention_bias": Key("attention_bias", False), "attention_out_bias": Key("attention_bias", False)}
MLP_BIAS = {"mlp_bias": Key("mlp_bias", False)}
