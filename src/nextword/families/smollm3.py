"""SmolLM3: Llama with no rope in every fourth layer."""

from ..base import UsageError
from ..spec import ModelSpec
from .common import BIAS_KEYS, GGUF, LLAMA_KEYS, MLP_BIAS, Family, Values, Windows, defaults
from .config import Config
from .names import gguf_names, llama_names


def _read(config: Config, fields: Values) -> Values:
    interval = config.count("no_rope_layer_interval", 4)
    flags = config.values.get("no_rope_layers")  # 1: the layer does have rope
    if flags is None:
        flags = [int((layer + 1) % interval != 0) for layer in range(fields["layers"])]
    if not isinstance(flags, list) or any(flag not in (0, 1) for flag in flags):
        raise UsageError(f"{config.what}: no_rope_layers takes a list of 0 and 1")
    rope_layers = tuple(map(bool, flags[: fields["layers"]]))
    return {"rope_layers": () if all(rope_layers) else rope_layers}


def _write(spec: ModelSpec) -> Values:
    return {"no_rope_layers": [int(spec.has_rope(layer)) for layer in range(spec.layers)]}


def _slides(config: Config, fields: Values, layer: int) -> bool:
    return bool(fields["rope_layers"]) and not fields["rope_layers"][layer]


SMOLLM3 = Family(
    "smollm3", "SmolLM3ForCausalLM",
    defaults(LLAMA_KEYS, context=32_768, tied=True, kv_heads=4) | BIAS_KEYS | MLP_BIAS, theta=2_000_000.0,
    windows=Windows(0, _slides, "use_sliding_window"), read=_read, write=_write, names=llama_names(),
    gguf=GGUF("smollm3", gguf_names(paired=True)),  # llama.cpp hard-codes the layers without rope
)  # fmt: skip
FAMILIES = (SMOLLM3,)
