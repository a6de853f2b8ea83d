"""SmolLM3: Llama, of whose layers every fourth has no positions."""

from __future__ import annotations

from ..base import UsageError
from ..spec import ModelSpec
from .common import (
    BIAS_KEYS,
    GGUF,
    LLAMA_KEYS,
    Config,
    Family,
    Fields,
    Values,
    defaults,
    flag,
    layer_types,
    layer_windows,
)
from .names import gguf_names, llama_names


def _read(config: Config, fields: Fields) -> Fields:
    interval = config.count("no_rope_layer_interval", 4)
    flags = config.values.get("no_rope_layers")  # 1 where a layer does have positions
    if flags is None:
        flags = [int((layer + 1) % interval != 0) for layer in range(fields["layers"])]
    if not isinstance(flags, list) or any(flag not in (0, 1) for flag in flags):
        raise UsageError(f"{config.what}: no_rope_layers takes a list of 0 and 1")
    rope_layers = tuple(map(bool, flags[: fields["layers"]]))
    windows: tuple[int, ...] = ()
    if config.flag("use_sliding_window", False):
        windows = layer_windows(config, fields, config.window(), lambda layer: not rope_layers[layer])
    return {"rope_layers": () if all(rope_layers) else rope_layers, "windows": windows}


def _write(spec: ModelSpec) -> Values:
    flags = [int(spec.has_rope(layer)) for layer in range(spec.layers)]
    return layer_types(spec) | {"no_rope_layers": flags, "use_sliding_window": any(spec.windows)}


SMOLLM3 = Family(
    "smollm3",
    "SmolLM3ForCausalLM",
    defaults(LLAMA_KEYS, context=32_768, tied=True, kv_heads=4) | BIAS_KEYS | {"mlp_bias": flag("mlp_bias", False)},
    theta=2_000_000.0,
    read=_read,
    write=_write,
    names=llama_names(),
    gguf=GGUF("smollm3", gguf_names(paired=True)),  # llama.cpp knows which layers have no positions
)
FAMILIES = (SMOLLM3,)
