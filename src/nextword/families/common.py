"""What a family of models is, and the typed reader of its config.json. Files are not trusted: every number is checked.

A family is data: which key of config.json is which field of ModelSpec (and which key of a GGUF file's metadata), which
fields are the same in all of its models, and what its tensors are called. `read` and `write` say the rest, both ways.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..base import UsageError
from ..spec import MOST, MOST_LAYERS, ModelSpec
from .names import Names

MOST_HEADS = 1 << 16
Fields = dict[str, Any]  # of a ModelSpec
Values = dict[str, Any]  # of a config.json, or of a GGUF file's metadata

_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
_WRITTEN = {"gelu_tanh": "gelu_pytorch_tanh"}  # ours → transformers', where it is not the same


class Config:
    """Typed look-ups in a configuration, each with a default or an error that names the key."""

    def __init__(self, values: Mapping[str, Any], what: str) -> None:
        self.values, self.what = values, what

    def count(self, key: str, default: int | None = None, most: int = MOST, least: int = 1) -> int:
        """A whole number from `least` to `most`."""
        value = self.values.get(key)
        if value is None:
            if default is None:
                raise UsageError(f"{self.what} has no {key!r}, without which the model's shape is not known")
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise UsageError(f"{self.what}: {key} is {value!r}; it takes a whole number from {least} to {most}")
        return value

    def number(self, key: str, default: float) -> float:
        """A finite positive number."""
        value = self.optional_number(key)
        return default if value is None else value

    def optional_number(self, key: str) -> float | None:
        """A finite positive number, or None where there is none."""
        value = self.values.get(key)
        return None if value is None else self._positive(key, value)

    def numbers(self, key: str) -> tuple[float, ...]:
        """A list of finite positive numbers; () where there is none."""
        values = self.values.get(key)
        if not isinstance(values, list | None):
            raise UsageError(f"{self.what}: {key} is {values!r}; it takes a list of numbers")
        return tuple(self._positive(key, value) for value in values or ())

    def _positive(self, key: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
            raise UsageError(f"{self.what}: {key} is {value!r}; it takes a number above 0")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """true or false."""
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise UsageError(f"{self.what}: {key} is {value!r}; it takes true or false")
        return value

    def activation(self, key: str, default: str) -> str:
        """ModelSpec's name of an activation that transformers knows."""
        value = self.values.get(key) or default
        if value not in _ACTIVATIONS:
            raise UsageError(f"{self.what}: activation {value!r} is not known. Known: {', '.join(_ACTIVATIONS)}")
        return _ACTIVATIONS[value]

    def table(self, key: str) -> Config | None:
        """An object inside the configuration."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise UsageError(f"{self.what}: {key} is {value!r}; it takes an object")
        return Config(value, f"{self.what}, {key}")

    def window(self, default: int = 0) -> int:
        """`sliding_window` in tokens; 0 (or null in the file) is none, `default` where the key is missing."""
        return self.count("sliding_window", 0, least=0) if "sliding_window" in self.values else default


@dataclass(frozen=True)
class Key:
    """A key of config.json that is a field of ModelSpec.

    `default` is transformers', or a function of the configuration and the fields read before; None: the key must be
    there. `gguf` is the key's name in the metadata of a GGUF file, without the architecture.
    """

    name: str
    default: Any = None
    gguf: str = ""
    type: str = "count"
    most: int = MOST

    def read(self, config: Config, fields: Fields) -> Any:
        """The field's value."""
        default = self.default
        if callable(default):
            default = default(config, fields) if config.values.get(self.name) is None else None
        if self.type == "count":
            return config.count(self.name, default, self.most)
        return getattr(config, self.type)(self.name, default)


def count(name: str, default: Any = None, gguf: str = "", most: int = MOST) -> Key:
    """A key that holds a whole number."""
    return Key(name, default, gguf, most=most)


def number(name: str, default: float, gguf: str = "") -> Key:
    """A key that holds a positive number."""
    return Key(name, default, gguf, "number")


def flag(name: str, default: bool) -> Key:
    """A key that holds true or false."""
    return Key(name, default, type="flag")


def activation(name: str, default: str) -> Key:
    """A key that holds the name of an activation."""
    return Key(name, default, type="activation")


@dataclass(frozen=True)
class GGUF:
    """A family in GGUF files. `keys` are those of config.json that are no field of ModelSpec, and their names there.

    Where two families share an `architecture`, files of this one have the key `requires`. `read` gives values of
    config.json that the metadata only implies, `write` metadata that no key of config.json holds. Heads rotate in part
    only in files of an architecture with `partial_rotary`: in others the rows would be in another order. Those with
    `longrope` hold its factors.
    """

    architecture: str
    names: Names
    keys: Mapping[str, str] = field(default_factory=dict)
    requires: str = ""
    partial_rotary: bool = False
    longrope: bool = False
    read: Callable[[Values], Values] = lambda metadata: {}
    write: Callable[[ModelSpec], Values] = lambda spec: {}


@dataclass(frozen=True)
class Family:
    """A family of open weights. Without `names` it is planned only: nextword neither loads nor writes it."""

    model_type: str  # in config.json
    architecture: str  # the class of transformers
    keys: Mapping[str, Key]  # by the field of ModelSpec
    fixed: Mapping[str, Any] = field(default_factory=dict)  # fields that are the same in all of its models
    theta: float = 10_000.0  # of rotary positions, where the file has none
    read: Callable[[Config, Fields], Fields] = lambda config, fields: {}
    write: Callable[[ModelSpec], Values] = lambda spec: {}
    names: Names | None = None
    gguf: GGUF | None = None

    def spec(self, values: Mapping[str, Any], what: str) -> ModelSpec:
        """The ModelSpec of a config.json, called `what` in messages. Raises UsageError that names the key at fault."""
        from .rope import rope_from_config

        config, fields = Config(values, what), {"kind": "transformer", **self.fixed}
        for name, key in self.keys.items():
            fields[name] = key.read(config, fields)
        if self._rotary:
            fields["rope"] = rope_from_config(config, self.theta)
        return checked(ModelSpec(**(fields | self.read(config, fields))), what)

    def config(self, spec: ModelSpec) -> Values:
        """The config.json of `spec`, which `spec` reads back, as far as the family can express it."""
        from .rope import rope_config

        values = {key.name: getattr(spec, name) for name, key in self.keys.items()}
        values |= {key.name: written_activation(spec) for key in self.keys.values() if key.type == "activation"}
        if self._rotary:
            values |= {"rope_theta": spec.rope.theta, "rope_parameters": rope_config(spec.rope)}
        return values | self.write(spec) | {"model_type": self.model_type}

    @property
    def _rotary(self) -> bool:
        return self.fixed.get("kind", "transformer") == "transformer" and "position" not in self.fixed


def written_activation(spec: ModelSpec) -> str:
    """transformers' name of the activation."""
    return _WRITTEN.get(spec.activation, spec.activation)


def checked(spec: ModelSpec, what: str) -> ModelSpec:
    """The spec, if its numbers fit each other."""
    if spec.kind != "transformer":
        return spec
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


def heads_of(config: Config, fields: Fields) -> int:
    """As many key-value heads as heads, the default of `num_key_value_heads`."""
    return int(fields["heads"])


def head_width(config: Config, fields: Fields) -> int:
    """Width over heads, the default of `head_dim`."""
    width, heads = fields["width"], fields["heads"]
    if width % heads:
        raise UsageError(
            f"{config.what}: a width of {width} does not divide into {heads} heads, and no head_dim is given"
        )
    return int(width // heads)


def defaults(keys: Mapping[str, Key], **values: Any) -> dict[str, Key]:
    """`keys` with other defaults."""
    return dict(keys) | {name: replace(keys[name], default=value) for name, value in values.items()}


def layer_windows(config: Config, fields: Fields, window: int, default: Callable[[int], bool]) -> tuple[int, ...]:
    """One window per layer from `layer_types`, or by `default(layer)` where the file does not list them."""
    types = config.values.get("layer_types")
    if types is None:
        sliding = [default(layer) for layer in range(fields["layers"])]
    else:
        known = {"sliding_attention": True, "full_attention": False}
        if not isinstance(types, list) or any(name not in known for name in types):
            raise UsageError(f"{config.what}: layer_types takes a list of {', '.join(known)}")
        sliding = [known[name] for name in types]
    return tuple(window if slides else 0 for slides in sliding) if window and any(sliding) else ()


def window_everywhere(config: Config, fields: Fields, default: int = 0) -> tuple[int, ...]:
    """The same `sliding_window` in all layers."""
    window = config.window(default)
    return (window,) * fields["layers"] if window else ()


def layer_types(spec: ModelSpec) -> Values:
    """The inverse of `layer_windows`."""
    types = ["sliding_attention" if spec.window(layer) else "full_attention" for layer in range(spec.layers)]
    return {"sliding_window": max(spec.windows, default=0) or None, "layer_types": types}


LLAMA_KEYS = {
    "vocabulary": count("vocab_size"),
    "width": count("hidden_size", gguf="embedding_length"),
    "layers": count("num_hidden_layers", gguf="block_count", most=MOST_LAYERS),
    "context": count("max_position_embeddings", 2048, "context_length"),
    "tied": flag("tie_word_embeddings", False),
    "heads": count("num_attention_heads", gguf="attention.head_count", most=MOST_HEADS),
    "kv_heads": count("num_key_value_heads", heads_of, "attention.head_count_kv", MOST_HEADS),
    "head_width": count("head_dim", head_width, "attention.key_length"),
    "mlp_width": count("intermediate_size", gguf="feed_forward_length"),
    "norm_eps": number("rms_norm_eps", 1e-6, "attention.layer_norm_rms_epsilon"),
    "activation": activation("hidden_act", "silu"),
}
BIAS_KEYS = {"attention_bias": flag("attention_bias", False), "attention_out_bias": flag("attention_bias", False)}
