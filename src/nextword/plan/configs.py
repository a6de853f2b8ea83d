"""config.json and GGUF metadata → ModelSpec, without torch. Files are not trusted: every number is checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, get_args

from ..base import UsageError
from ..base.errors import closest
from ..spec import MOST, MOST_LAYERS, ExpertsSpec, LatentSpec, ModelKind, ModelSpec, RopeSpec

LARGEST = {"layers": MOST_LAYERS, "size": MOST}

_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


class Reader:
    """Typed look-ups in a configuration, each with a default or an error that names the key."""

    def __init__(self, values: Mapping[str, Any], what: str) -> None:
        self.values, self.what = values, what

    def _get(self, key: str) -> Any:
        return self.values.get(key)

    def count(self, key: str, default: int | None = None, most: int = LARGEST["size"], least: int = 1) -> int:
        """A whole number from `least` to `most`."""
        value = self._get(key)
        if value is None:
            if default is None:
                raise UsageError(f"{self.what} has no {key!r}, without which the model's shape is not known")
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise UsageError(f"{self.what}: {key} is {value!r}; it takes a whole number from {least} to {most}")
        return value

    def number(self, key: str, default: float | None) -> float | None:
        """A finite positive number, or the default where there is none."""
        value = self._get(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
            raise UsageError(f"{self.what}: {key} is {value!r}; it takes a number above 0")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self._get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise UsageError(f"{self.what}: {key} is {value!r}; it takes true or false")
        return value

    def activation(self, key: str, default: str) -> Any:
        value = self._get(key) or default
        if value not in _ACTIVATIONS:
            raise UsageError(f"{self.what}: activation {value!r} is not known. Known: {', '.join(_ACTIVATIONS)}")
        return _ACTIVATIONS[value]

    def table(self, key: str) -> Reader | None:
        value = self._get(key)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise UsageError(f"{self.what}: {key} is {value!r}; it takes an object")
        return Reader(value, f"{self.what}, {key}")


def spec_from_config(config: Mapping[str, Any], name: str = "config.json") -> ModelSpec:
    """The ModelSpec of a Hugging Face config.json.

    Missing keys take the defaults that transformers gives the family. Raises UsageError that names the key
    for essential keys that are missing, for values out of range and for unknown model types; `name` is the file's.
    """
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in _FAMILIES:
        what = "has no model_type" if kind is None else f"has model_type {kind!r}, which nextword does not know"
        near = closest(str(kind), _FAMILIES)
        raise UsageError(f"{name} {what}.{near} Known: {', '.join(_FAMILIES)}")
    if isinstance(config.get("text_config"), Mapping):  # a multimodal model: its text part
        config = {**config["text_config"], "model_type": kind}
    return checked(_FAMILIES[kind](Reader(config, name)), name)


def experts_in_4_bits(config: Mapping[str, Any]) -> bool:
    """Whether the published weights keep the experts' matrices in MXFP4 and the rest in bf16, as gpt-oss does."""
    how = config.get("quantization_config")
    return isinstance(how, Mapping) and how.get("quant_method") == "mxfp4"


def spec_from_dict(data: Mapping[str, Any], name: str) -> ModelSpec:
    """The ModelSpec that `to_dict` made plain. Raises UsageError that names the key; `name` is the file's."""
    read, kind = Reader(data, name), data.get("kind")
    if kind not in get_args(ModelKind):
        raise UsageError(f"{name}: kind is {kind!r}; known kinds are {', '.join(get_args(ModelKind))}")
    sizes = ("vocabulary", "width", "layers", "context")
    for key in (*sizes, "heads", "kv_heads", "head_width") if kind == "transformer" else sizes:
        read.count(key, most=LARGEST["layers" if key == "layers" else "size"])
    read.count("mlp_width", 0, least=0)
    try:
        spec = ModelSpec.from_dict(data)
    except UsageError as error:
        raise UsageError(f"{name} is not a model's specification: {error}") from None
    return checked(spec, name)


def checked(spec: ModelSpec, what: str) -> ModelSpec:
    """The spec, if its numbers fit each other."""
    if spec.kind != "transformer":
        return spec
    if spec.heads % spec.kv_heads:
        raise UsageError(f"{what}: {spec.heads} heads do not divide into {spec.kv_heads} key-value heads")
    if spec.windows and len(spec.windows) != spec.layers:
        raise UsageError(f"{what}: {len(spec.windows)} layer types for {spec.layers} layers")
    if spec.position == "rotary" and int(spec.head_width * spec.rope.fraction) % 2:
        raise UsageError(f"{what}: rotary positions need an even width, not {spec.head_width} x {spec.rope.fraction}")
    return spec


# ---- rotary positions


def _rope(read: Reader, theta: float = 10_000.0, layer_type: str | None = None, fraction: float = 1.0) -> RopeSpec:
    """From `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before)."""
    table = read.table("rope_parameters") or read.table("rope_scaling")
    if table is not None and layer_type is not None and layer_type in table.values:
        table = table.table(layer_type)
    base = (table.number("rope_theta", None) if table else None) or read.number("rope_theta", theta) or theta
    if table is not None:
        fraction = table.number("partial_rotary_factor", fraction) or fraction
    kind = "default" if table is None else table.values.get("rope_type") or table.values.get("type") or "default"
    if table is None or kind == "default":
        return RopeSpec(theta=base, fraction=fraction)
    factor = table.number("factor", 1.0) or 1.0
    context = table.count("original_max_position_embeddings", read.count("max_position_embeddings", 2048))
    if kind == "linear":
        return RopeSpec(theta=base, fraction=fraction, scaling="linear", factor=factor)
    if kind == "llama3":
        low, high = table.number("low_freq_factor", 1.0) or 1.0, table.number("high_freq_factor", 4.0) or 4.0
        if high <= low:
            raise UsageError(f"{table.what}: high_freq_factor {high} must be above low_freq_factor {low}")
        return RopeSpec(base, fraction, "llama3", factor, context, low, high)
    if kind == "yarn":
        return RopeSpec(
            theta=base,
            fraction=fraction,
            scaling="yarn",
            factor=factor,
            original_context=context,
            beta_fast=table.number("beta_fast", 32.0) or 32.0,
            beta_slow=table.number("beta_slow", 1.0) or 1.0,
            attention_factor=_yarn_attention(table, factor),
            truncate=table.flag("truncate", True),
        )
    raise UsageError(f"{table.what}: rope type {kind!r} is not known. Known: default, linear, llama3, yarn")


def _yarn_attention(table: Reader, factor: float) -> float | None:
    given = table.number("attention_factor", None)
    one, all_ = table.number("mscale", None), table.number("mscale_all_dim", None)
    if given is not None or one is None or all_ is None or factor <= 1:
        return given
    return (0.1 * one * math.log(factor) + 1) / (0.1 * all_ * math.log(factor) + 1)  # DeepSeek's form


# ---- windows


def _windows(read: Reader, layers: int, window: int, default: Callable[[int], bool]) -> tuple[int, ...]:
    """One window a layer from `layer_types`, or by `default(layer)` where the file does not list them."""
    types = read.values.get("layer_types")
    if types is None:
        sliding = [default(layer) for layer in range(layers)]
    else:
        known = {"sliding_attention": True, "full_attention": False}
        if not isinstance(types, list) or any(each not in known for each in types):
            raise UsageError(f"{read.what}: layer_types takes a list of {', '.join(known)}")
        sliding = [known[each] for each in types]
    return tuple(window if each else 0 for each in sliding) if window and any(sliding) else ()


# ---- families


def _llama_like(read: Reader, **fixed: Any) -> ModelSpec:
    """What Llama and its relatives share; `fixed` holds what differs."""
    width = read.count("hidden_size")
    layers = read.count("num_hidden_layers", most=LARGEST["layers"])
    heads = read.count("num_attention_heads", most=1 << 16)
    if width % heads and not read.values.get("head_dim") and "head_width" not in fixed:
        raise UsageError(
            f"{read.what}: hidden_size {width} does not divide into {heads} heads, and no head_dim is given"
        )
    values: dict[str, Any] = {
        "vocabulary": read.count("vocab_size"),
        "width": width,
        "layers": layers,
        "context": read.count("max_position_embeddings", 2048),
        "tied": read.flag("tie_word_embeddings", False),
        "heads": heads,
        "kv_heads": read.count("num_key_value_heads", heads, most=1 << 16),
        "head_width": read.count("head_dim", width // heads),
        "mlp_width": read.count("intermediate_size"),
        "norm_eps": read.number("rms_norm_eps", 1e-6),
        "activation": read.activation("hidden_act", "silu"),
        "rope": _rope(read),
    }
    return ModelSpec(kind="transformer", **(values | fixed))


def _llama(read: Reader) -> ModelSpec:
    bias = read.flag("attention_bias", False)
    return _llama_like(read, attention_bias=bias, attention_out_bias=bias, mlp_bias=read.flag("mlp_bias", False))


def _mistral(read: Reader) -> ModelSpec:
    window = 4096 if "sliding_window" not in read.values else read.count("sliding_window", 0)
    layers = read.count("num_hidden_layers", most=LARGEST["layers"])
    return _llama_like(
        read, kv_heads=read.count("num_key_value_heads", 8), windows=(window,) * layers if window else ()
    )


def _qwen_windows(read: Reader) -> tuple[int, ...]:
    """Qwen: only with use_sliding_window, and then from max_window_layers on."""
    layers = read.count("num_hidden_layers", most=LARGEST["layers"])
    if not read.flag("use_sliding_window", False):
        return ()
    first = read.count("max_window_layers", 28, least=0)
    return _windows(read, layers, read.count("sliding_window", 4096), lambda layer: layer >= first)


def _qwen2(read: Reader) -> ModelSpec:
    return _llama_like(
        read, kv_heads=read.count("num_key_value_heads", 32), attention_bias=True, windows=_qwen_windows(read)
    )


def _qwen3(read: Reader, **fixed: Any) -> ModelSpec:
    bias = read.flag("attention_bias", False)
    values = {
        "kv_heads": read.count("num_key_value_heads", 32),
        "head_width": read.count("head_dim", 128),
        "qk_norm": "head",
        "attention_bias": bias,
        "attention_out_bias": bias,
        "windows": _qwen_windows(read),
    }
    return _llama_like(read, **(values | fixed))


def _olmo2(read: Reader) -> ModelSpec:
    bias = read.flag("attention_bias", False)
    eps = read.number("rms_norm_eps", 1e-5)
    return _llama_like(
        read, norm_place="after", qk_norm="full", attention_bias=bias, attention_out_bias=bias, norm_eps=eps
    )


def _gemma(read: Reader, **fixed: Any) -> ModelSpec:
    width = read.count("hidden_size")
    bias = read.flag("attention_bias", False)
    scalar = read.number("query_pre_attn_scalar", 256.0) or 256.0
    values = {
        "tied": read.flag("tie_word_embeddings", True),
        "kv_heads": read.count("num_key_value_heads", 4),
        "head_width": read.count("head_dim", 256),
        "attention_scale": scalar**-0.5,
        "attention_bias": bias,
        "attention_out_bias": bias,
        "norm_offset": True,
        "norm_place": "both",
        "activation": read.activation("hidden_activation", read.values.get("hidden_act") or "gelu_pytorch_tanh"),
        "embedding_scale": math.sqrt(width),
        "attention_softcap": read.number("attn_logit_softcapping", None),
        "logit_softcap": read.number("final_logit_softcapping", None),
    }
    return _llama_like(read, **(values | fixed))


def _gemma2(read: Reader) -> ModelSpec:
    layers = read.count("num_hidden_layers", most=LARGEST["layers"])
    caps = {
        name: read.number(key, default) if read.values.get(key, "") is not None else None
        for name, key, default in (
            ("attention_softcap", "attn_logit_softcapping", 50.0),
            ("logit_softcap", "final_logit_softcapping", 30.0),
        )
    }
    windows = _windows(read, layers, read.count("sliding_window", 4096), lambda layer: layer % 2 == 0)
    return _gemma(read, windows=windows, **caps)


def _gemma3(read: Reader) -> ModelSpec:
    layers = read.count("num_hidden_layers", most=LARGEST["layers"])
    period = read.count("sliding_window_pattern", 6)
    windows = _windows(read, layers, read.count("sliding_window", 4096), lambda layer: (layer + 1) % period != 0)
    local_theta = read.number("rope_local_base_freq", 10_000.0) or 10_000.0
    local = RopeSpec(theta=local_theta)
    parameters = read.table("rope_parameters")
    if parameters is not None and "sliding_attention" in parameters.values:
        local = _rope(read, local_theta, "sliding_attention")
    return _gemma(
        read,
        windows=windows,
        qk_norm="head",
        rope=_rope(read, 1_000_000.0, "full_attention"),
        local_rope=local,
        context=read.count("max_position_embeddings", 131_072),
    )


def _gpt2(read: Reader) -> ModelSpec:
    width, heads = read.count("n_embd"), read.count("n_head", most=1 << 16)
    if width % heads:
        raise UsageError(f"{read.what}: n_embd {width} does not divide into {heads} heads")
    return ModelSpec(
        kind="transformer",
        vocabulary=read.count("vocab_size"),
        width=width,
        layers=read.count("n_layer", most=LARGEST["layers"]),
        context=read.count("n_positions", 1024),
        tied=read.flag("tie_word_embeddings", True),
        heads=heads,
        kv_heads=heads,
        head_width=width // heads,
        attention_bias=True,
        attention_out_bias=True,
        mlp_width=read.count("n_inner", 4 * width),
        mlp="plain",
        mlp_bias=True,
        activation=read.activation("activation_function", "gelu_new"),
        norm="layer",
        norm_eps=read.number("layer_norm_epsilon", 1e-5) or 1e-5,
        position="learned",
    )


def _gpt_neox(read: Reader) -> ModelSpec:
    width, heads = read.count("hidden_size"), read.count("num_attention_heads", most=1 << 16)
    if width % heads:
        raise UsageError(f"{read.what}: hidden_size {width} does not divide into {heads} heads")
    bias = read.flag("attention_bias", True)
    fraction = read.number("partial_rotary_factor", None) or read.number("rotary_pct", 0.25) or 0.25
    theta = read.number("rotary_emb_base", 10_000.0) or 10_000.0
    return ModelSpec(
        kind="transformer",
        vocabulary=read.count("vocab_size"),
        width=width,
        layers=read.count("num_hidden_layers", most=LARGEST["layers"]),
        context=read.count("max_position_embeddings", 2048),
        tied=read.flag("tie_word_embeddings", False),
        heads=heads,
        kv_heads=heads,
        head_width=width // heads,
        attention_bias=bias,
        attention_out_bias=bias,
        mlp_width=read.count("intermediate_size"),
        mlp="plain",
        mlp_bias=True,
        activation=read.activation("hidden_act", "gelu"),
        norm="layer",
        norm_eps=read.number("layer_norm_eps", 1e-5) or 1e-5,
        parallel=read.flag("use_parallel_residual", True),
        rope=_rope(read, theta, fraction=fraction),
    )


def _recurrent(read: Reader) -> ModelSpec:
    """nextword's own: an RNN, an LSTM or a GRU."""
    return ModelSpec(
        kind=str(read.values["model_type"]).removeprefix("nextword-"),  # type: ignore[arg-type]
        vocabulary=read.count("vocab_size"),
        width=read.count("hidden_size"),
        layers=read.count("num_hidden_layers", most=LARGEST["layers"]),
        context=read.count("max_position_embeddings", 2048),
        tied=read.flag("tie_word_embeddings", True),
        head_bias=read.flag("head_bias", False),
    )


# ---- mixtures of experts, planned only


def _mixtral(read: Reader) -> ModelSpec:
    experts = ExpertsSpec(
        count=read.count("num_local_experts", 8),
        active=read.count("num_experts_per_tok", 2),
        width=read.count("intermediate_size"),
    )
    window = read.count("sliding_window", 0)
    layers = read.count("num_hidden_layers", most=LARGEST["layers"])
    return _llama_like(
        read,
        kv_heads=read.count("num_key_value_heads", 8),
        norm_eps=read.number("rms_norm_eps", 1e-5),
        windows=(window,) * layers if window else (),
        experts=experts,
    )


def _only_experts(read: Reader) -> None:
    """Refuse Qwen configurations that keep plain MLPs in some layers: an ExpertsSpec knows leading ones alone."""
    if read.values.get("mlp_only_layers") or read.count("decoder_sparse_step", 1) != 1:
        raise UsageError(f"{read.what}: mlp_only_layers and decoder_sparse_step other than 1 are not planned")


def _qwen2_moe(read: Reader) -> ModelSpec:
    _only_experts(read)
    shared = read.count("shared_expert_intermediate_size", 5632, least=0)
    experts = ExpertsSpec(
        count=read.count("num_experts", 60),
        active=read.count("num_experts_per_tok", 4),
        width=read.count("moe_intermediate_size", 1408),
        shared=1 if shared else 0,
        shared_width=shared,
        shared_gate=bool(shared),
    )
    return _llama_like(
        read,
        kv_heads=read.count("num_key_value_heads", 16),
        attention_bias=read.flag("qkv_bias", True),
        windows=_qwen_windows(read),
        experts=experts,
    )


def _qwen3_moe(read: Reader) -> ModelSpec:
    _only_experts(read)
    experts = ExpertsSpec(
        count=read.count("num_experts", read.count("num_local_experts", 128)),  # transformers 5 writes the second
        active=read.count("num_experts_per_tok", 8),
        width=read.count("moe_intermediate_size", 768),
    )
    return _qwen3(
        read,
        kv_heads=read.count("num_key_value_heads", 4),
        head_width=read.count("head_dim", read.count("hidden_size") // read.count("num_attention_heads")),
        experts=experts,
    )


def _gpt_oss(read: Reader) -> ModelSpec:
    """OpenAI's gpt-oss (2508.10925): every second layer has a window, every head a sink, every matrix a bias."""
    layers = read.count("num_hidden_layers", 36, most=LARGEST["layers"])
    experts = ExpertsSpec(
        count=read.count("num_local_experts", 128),
        active=read.count("num_experts_per_tok", 4),
        width=read.count("intermediate_size"),
        bias=True,
    )
    bias = read.flag("attention_bias", True)
    return _llama_like(
        read, kv_heads=read.count("num_key_value_heads", 8), head_width=read.count("head_dim", 64), experts=experts,
        attention_bias=bias, attention_out_bias=bias, attention_sinks=True, norm_eps=read.number("rms_norm_eps", 1e-5),
        context=read.count("max_position_embeddings", 131_072), rope=_rope(read, 150_000.0),
        windows=_windows(read, layers, read.count("sliding_window", 128), lambda layer: layer % 2 == 0),
    )  # fmt: skip


def _deepseek(read: Reader) -> ModelSpec:
    latent = LatentSpec(
        kv_rank=read.count("kv_lora_rank", 512),
        query_rank=read.count("q_lora_rank", 0 if "q_lora_rank" in read.values else 1536, least=0),  # null: none
        rope_head_width=read.count("qk_rope_head_dim", 64),
        plain_head_width=read.count("qk_nope_head_dim", 128),
        value_head_width=read.count("v_head_dim", 128),
    )
    experts = ExpertsSpec(
        count=read.count("n_routed_experts"),
        active=read.count("num_experts_per_tok"),
        width=read.count("moe_intermediate_size"),
        shared=read.count("n_shared_experts", 0, least=0),
        dense_layers=read.count("first_k_dense_replace", 0, least=0),
        correction_bias=read.values.get("model_type") == "deepseek_v3",
    )
    bias = read.flag("attention_bias", False)
    return _llama_like(
        read, latent=latent, experts=experts, head_width=latent.plain_head_width + latent.rope_head_width,
        attention_bias=bias, attention_out_bias=bias, kv_heads=read.count("num_attention_heads", most=1 << 16),
    )  # fmt: skip


_FAMILIES: dict[str, Callable[[Reader], ModelSpec]] = {
    "llama": _llama,
    "mistral": _mistral,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "gemma2": _gemma2,
    "gemma3_text": _gemma3,
    "gemma3": _gemma3,
    "olmo2": _olmo2,
    "gpt2": _gpt2,
    "gpt_neox": _gpt_neox,
    "nextword-rnn": _recurrent,
    "nextword-lstm": _recurrent,
    "nextword-gru": _recurrent,
    "mixtral": _mixtral,
    "qwen2_moe": _qwen2_moe,
    "qwen3_moe": _qwen3_moe,
    "gpt_oss": _gpt_oss,
    "deepseek_v2": _deepseek,
    "deepseek_v3": _deepseek,
}


# ---- GGUF


def spec_from_gguf_metadata(metadata: Mapping[str, Any], tied: bool) -> ModelSpec:
    """The ModelSpec of a GGUF file's metadata; `tied` when it holds no `output.weight`.

    The keys are translated into those of config.json, so that a family is described once.
    """
    architecture = str(metadata.get("general.architecture", ""))
    if architecture not in _GGUF:
        raise UsageError(
            f"GGUF architecture {architecture!r} is not known.{closest(architecture, _GGUF)} Known: {', '.join(_GGUF)}"
        )
    names = _GGUF[architecture]
    config = {
        name: metadata[f"{architecture}.{key}"] for key, name in names.items() if f"{architecture}.{key}" in metadata
    }
    config["vocab_size"] = _gguf_vocabulary(metadata, architecture)
    config |= {"tie_word_embeddings": tied, "model_type": _GGUF_TYPES.get(architecture, architecture)}
    scaling = _gguf_rope(metadata, architecture, config)
    if scaling:
        config["rope_scaling"] = scaling
    if architecture == "gemma2":  # the converter does not store it: 27B is the one that differs from its head width
        config["query_pre_attn_scalar"] = 144 if config.get("num_hidden_layers") == 46 else config.get("head_dim", 256)
    if architecture == "gemma3":
        config["query_pre_attn_scalar"] = 168 if config.get("num_hidden_layers") == 62 else config.get("head_dim", 256)
    if architecture in ("qwen2", "qwen3") and config.get("sliding_window"):
        config["use_sliding_window"] = False
    if architecture == "llama" and "sliding_window" not in config:
        config["sliding_window"] = None
    if architecture == "gptneox":
        config["rotary_pct"] = _gguf_fraction(metadata, config)
    spec = spec_from_config(config)
    _check_whole_heads(metadata, architecture, spec)
    return spec


def _gguf_vocabulary(metadata: Mapping[str, Any], architecture: str) -> Any:
    """Tokens, as the file says and its list of them shows."""
    said, tokens = metadata.get(f"{architecture}.vocab_size"), metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list):
        return said
    if said is not None and said != len(tokens):
        raise UsageError(f"{architecture}.vocab_size is {said!r}, but the file lists {len(tokens)} tokens")
    return len(tokens)


def _gguf_fraction(metadata: Mapping[str, Any], config: Mapping[str, Any]) -> float:
    """The share of each head of a GPT-NeoX that rotates: all of it where the file does not say, as in llama.cpp."""
    key, width, heads = "gptneox.rope.dimension_count", config.get("hidden_size"), config.get("num_attention_heads")
    rotating = metadata.get(key)
    if rotating is None or not (isinstance(width, int) and isinstance(heads, int) and heads and width >= heads):
        return 1.0  # what is wrong with the sizes is told by who reads them
    width //= heads
    if isinstance(rotating, bool) or rotating not in range(2, width + 1, 2):
        raise UsageError(f"{key} is {rotating!r}; it must be even, and at most {width}, the width of a head")
    fraction: float = rotating / width
    return fraction if int(width * fraction) == rotating else math.nextafter(fraction, 2)  # it was rounded down


def _check_whole_heads(metadata: Mapping[str, Any], architecture: str, spec: ModelSpec) -> None:
    """Refuse a file whose heads rotate in part, except a GPT-NeoX: in others the rows are in another order."""
    key, width = f"{architecture}.rope.dimension_count", spec.head_width
    if spec.position == "rotary" and architecture != "gptneox" and metadata.get(key, width) != width:
        raise UsageError(f"{key} is {metadata[key]!r}; it must be {width}, the width of a head")


def _gguf_rope(metadata: Mapping[str, Any], architecture: str, config: Mapping[str, Any]) -> dict[str, Any] | None:
    kind = metadata.get(f"{architecture}.rope.scaling.type")
    factor = metadata.get(f"{architecture}.rope.scaling.factor")
    if kind in (None, "none") or not isinstance(factor, int | float):
        return None
    scaling = {"rope_type": kind, "factor": factor}
    context = metadata.get(f"{architecture}.rope.scaling.original_context_length")
    if context is not None:
        scaling["original_max_position_embeddings"] = context
    return scaling


_GGUF_LLAMA = {
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.sliding_window": "sliding_window",
    "rope.freq_base": "rope_theta",
}
_GGUF_GEMMA = _GGUF_LLAMA | {
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
_GGUF: dict[str, dict[str, str]] = {
    "llama": _GGUF_LLAMA,
    "qwen2": _GGUF_LLAMA,
    "qwen3": _GGUF_LLAMA,
    "olmo2": _GGUF_LLAMA,
    "gemma2": _GGUF_GEMMA,
    "gemma3": _GGUF_GEMMA,
    "gpt2": {
        "embedding_length": "n_embd",
        "block_count": "n_layer",
        "context_length": "n_positions",
        "feed_forward_length": "n_inner",
        "attention.head_count": "n_head",
        "attention.layer_norm_epsilon": "layer_norm_epsilon",
    },
    "gptneox": {
        "embedding_length": "hidden_size",
        "block_count": "num_hidden_layers",
        "context_length": "max_position_embeddings",
        "feed_forward_length": "intermediate_size",
        "attention.head_count": "num_attention_heads",
        "attention.layer_norm_epsilon": "layer_norm_eps",
        "use_parallel_residual": "use_parallel_residual",
        "rope.freq_base": "rotary_emb_base",
    },
}
_GGUF_TYPES = {"gemma3": "gemma3_text", "gptneox": "gpt_neox"}
