"""The structures of native/forward.h, recurrent.h, attention.h and elementwise.h."""

from __future__ import annotations

from ctypes import Structure, c_float, c_int64, c_void_p

from ..native.matmul import MatrixStruct

ACTIVATIONS = {"silu": 0, "gelu": 1, "gelu_tanh": 2, "swiglu_clamped": 3}
CELLS = {"rnn": 0, "lstm": 1, "gru": 2}


class NormStruct(Structure):
    _fields_ = (("weight", c_void_p), ("bias", c_void_p), ("rms", c_int64), ("eps", c_float))


class ExpertsStruct(Structure):
    _fields_ = (
        *((name, c_int64) for name in ("count", "active", "width", "normalize")),
        ("router", MatrixStruct),
        ("up", c_void_p),
        ("down", c_void_p),
    )


class LayerStruct(Structure):
    _fields_ = (
        *((f"{name}_norm", NormStruct) for name in ("attention", "attention_post", "mlp", "mlp_post", "query", "key")),
        *((name, MatrixStruct) for name in ("qkv", "out", "up", "down")),
        ("experts", c_void_p),
        ("sinks", c_void_p),
        ("window", c_int64),
        ("rope", c_int64),
        ("interleaved", c_int64),
    )


class RecurrentLayerStruct(Structure):
    _fields_ = (("input", MatrixStruct), ("hidden", MatrixStruct))


class NetworkStruct(Structure):
    _fields_ = (("kind", c_int64), ("layer_count", c_int64), ("width", c_int64), ("layers", c_void_p))


class ModelStruct(Structure):
    _fields_ = (
        *((name, c_int64) for name in ("layer_count", "width", "vocabulary", "heads", "kv_heads", "head_width")),
        *((name, c_int64) for name in ("mlp_width", "parallel", "gated", "activation", "full_qk_norm")),
        *((name, c_float) for name in ("attention_scale", "attention_softcap", "residual_scale")),
        *((name, c_float) for name in ("embedding_scale", "logit_scale", "logit_softcap")),
        *((name, MatrixStruct) for name in ("embedding", "positions", "head")),
        ("final_norm", NormStruct),
        ("layers", c_void_p),
        ("recurrent", c_void_p),
    )


class PlacementStruct(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("positions", "sequences", "page_tables")),
        *((name, c_int64) for name in ("tokens", "table_width", "page_size")),
    )


class KVCacheStruct(Structure):
    _fields_ = (*((name, c_int64) for name in ("type", "pages", "page_bytes")), ("memory", c_void_p))


class RopeTableStruct(Structure):
    _fields_ = (("cosine", c_void_p), ("sine", c_void_p), ("width", c_int64), ("interleaved", c_int64))


class ScheduleStruct(Structure):
    _fields_ = (
        *((name, c_int64) for name in ("sequences", "tokens", "pages")),
        *((name, c_void_p) for name in ("first", "count", "source", "target", "hidden", "cell")),
    )


class BatchStruct(Structure):
    _fields_ = (
        ("tokens", c_void_p),
        ("at", PlacementStruct),
        ("table_rows", c_int64),
        ("cache", KVCacheStruct),
        ("tables", RopeTableStruct * 2),
        ("schedule", c_void_p),
        ("kept", c_void_p),
        ("kept_count", c_int64),
        ("logit_rows", c_void_p),
        ("logit_count", c_int64),
        ("scored_rows", c_void_p),
        ("scored_count", c_int64),
        ("score_rows", c_void_p),
        ("targets", c_void_p),
        ("score_count", c_int64),
    )


class OutputStruct(Structure):
    _fields_ = tuple((name, c_void_p) for name in ("hidden", "logits", "logprobs", "ranks"))
