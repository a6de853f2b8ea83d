"""Inference: weight and KV cache memory, what fits, and upper bounds on speed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from ..base import UsageError
from ..base.errors import closest
from ..families import experts_in_4_bits
from ..spec import ModelSpec
from .compute import flops
from .figure import Figure, figure
from .hardware import Device
from .parameters import parameters
from .search import largest
from .shapes import expert_layers, tensors
from .training import Memory

# bits a number, scales included; GGUF's by the layout of its blocks; MXFP4: 4 bits and an 8-bit scale for 32 (OCP 2023)
BITS: dict[str, float] = {
    "fp32": 32, "bf16": 16, "q8_0": 8.5, "int8": 8, "fp8": 8, "q6_k": 6.5625, "q5_k": 5.5, "q4_1": 5, "q4_k": 4.5,
    "q4_0": 4.5, "mxfp4": 4.25, "nf4": 4.127, "q3_k": 3.4375, "q2_k": 2.625,
}  # fmt: skip
PREFILL_MFU = 0.5  # assumed share of the peak for long prompts
PROMPT_CHUNK = 2048  # prompt tokens computed at a time, as servers do
LONGEST = 1 << 27  # tokens; limit of the search for the longest context

_CACHE = "keys and values of every layer (Shazeer 2019, 1911.02150); head width as the configuration says"
_ROOF = "bandwidth over the bytes read for a token (Pope et al. 2022, 2211.05102): an upper bound"


@dataclass(frozen=True)
class Serving:
    """Inference settings. `dtype` is the weights', a key of BITS, unless `weight_bytes` is known exactly."""

    batch: int = 1
    context: int = 4096
    dtype: str = "bf16"
    kv_dtype: str = "bf16"
    weight_bytes: float | None = None
    expert_bits: float | None = None  # of the experts' matrices, if the rest of `weight_bytes` is bf16
    runtime: float = 0.6e9

    def __post_init__(self) -> None:
        if self.batch < 1 or self.context < 1:
            raise UsageError(f"batch and context are whole numbers from 1, not {self.batch} and {self.context}")
        for name in (self.dtype, self.kv_dtype):
            if name not in BITS:
                raise UsageError(f"dtype {name!r} is not known.{closest(name, BITS)} Known: {', '.join(BITS)}")


def weight_bytes(spec: ModelSpec, dtype: str) -> Figure:
    """Bytes of all weights in a type of BITS."""
    count = parameters(spec).total
    source = "bits a number, scales of the blocks included; norms kept wider are not counted apart"
    inputs = {"parameters": count, "bits": BITS[dtype]}
    return figure("weights", "bytes", "ceil(parameters * bits / 8)", source, **inputs)


def published_bytes(config: Mapping[str, Any], spec: ModelSpec) -> float | None:
    """Bytes of weights with the experts' matrices in MXFP4 and the rest in bf16 (gpt-oss, 2508.10925).

    None if the model's configuration does not say so.
    """
    if not experts_in_4_bits(config):
        return None
    inner = sum(tensor.numbers for tensor in tensors(spec) if tensor.part == "experts" and tensor.is_matrix)
    return (inner * BITS["mxfp4"] + (parameters(spec).total - inner) * BITS["bf16"]) / 8


def cache_bytes(spec: ModelSpec, batch: int, context: int, kv_dtype: str = "bf16") -> Figure:
    """Bytes carried from token to token: keys and values, latents, or a recurrent state."""
    per_sequence = {"batch": batch, "bytes_each": BITS[kv_dtype] / 8}
    if spec.kind != "transformer":
        formula = "batch * layers * states * width * bytes_each"
        inputs = {"layers": spec.layers, "states": 2 if spec.kind == "lstm" else 1, "width": spec.width}
        return figure("state", "bytes", formula, "constant: it does not grow with the text", **inputs, **per_sequence)
    if spec.latent:
        inputs = {"layers": spec.layers, "kv_rank": spec.latent.kv_rank, "rope_width": spec.latent.rope_head_width}
        source = "multi-head latent attention (2405.04434, §2.1.4)"
        formula = "batch * context * layers * (kv_rank + rope_width) * bytes_each"
        return figure("key-value cache", "bytes", formula, source, context=context, **inputs, **per_sequence)
    positions = sum(min(context, window or context) for window in (spec.windows or (0,) * spec.layers))
    inputs = {"layer_positions": positions, "kv_heads": spec.kv_heads, "head_width": spec.head_width}
    formula = "2 * batch * layer_positions * kv_heads * head_width * bytes_each"
    source = _CACHE + "; layer_positions sums min(context, window) over the layers"
    return figure("key-value cache", "bytes", formula, source, **inputs, **per_sequence)


def serving_memory(spec: ModelSpec, use: Serving) -> Memory:
    """Bytes a device needs to generate with `use.batch` sequences of `use.context` tokens."""
    weights = weight_bytes(spec, use.dtype)
    if use.weight_bytes is not None:
        weights = figure("weights", "bytes", "stored", "the file's tensors as they are stored", stored=use.weight_bytes)
    runtime = figure("runtime", "bytes", "runtime", "assumed: device context and libraries", runtime=use.runtime)
    parts = (weights, cache_bytes(spec, use.batch, use.context, use.kv_dtype), _working_space(spec, use), runtime)
    return Memory(tuple(part for part in parts if part.value))


def _working_space(spec: ModelSpec, use: Serving) -> Figure:
    inner = max(spec.mlp_width, spec.width) + spec.width
    return figure(
        "working space", "bytes", "min(batch * context, max(chunk, batch)) * 2 * inner * 4 + batch * vocabulary * 4",
        "the widest layer for a chunk of the prompt and one row of logits a sequence, float32; estimate",
        batch=use.batch, context=use.context, chunk=PROMPT_CHUNK, inner=inner, vocabulary=spec.vocabulary,
    )  # fmt: skip


@dataclass(frozen=True)
class Speed:
    """Upper bounds from bandwidth and arithmetic. `decode` counts tokens a second over the whole batch."""

    decode: Figure
    decode_bound: str  # "bandwidth" or "arithmetic"
    prefill: Figure
    first_token: Figure


def speed(spec: ModelSpec, use: Serving, on: Device) -> Speed:
    """The upper bound of `on`'s decoding speed, and its prefill speed at the assumed share of its peak."""
    stored = serving_memory(spec, use).part("weights")
    weights = _read(spec, use.batch, stored, use.expert_bits)
    cache = cache_bytes(spec, use.batch, use.context, use.kv_dtype)
    by_bandwidth = figure(
        "decode", "tokens/s", "batch * bandwidth / (weights_read + cache_read)", _ROOF, batch=use.batch,
        bandwidth=on.bandwidth, weights_read=weights.value, cache_read=cache.value,
    )  # fmt: skip
    a_token = flops(spec, use.context, 1, backward=False, masked="skipped").total
    by_arithmetic = figure(
        "decode", "tokens/s", "peak / flops_a_token", "peak arithmetic over a token's FLOPs: an upper bound",
        peak=on.peak, flops_a_token=a_token,
    )  # fmt: skip
    whole = flops(spec, use.context, use.context, backward=False, masked="skipped").total
    inputs = {"context": use.context, "peak": on.peak, "mfu": PREFILL_MFU, "flops": whole}
    prefill = figure("prefill", "tokens/s", "context * peak * mfu / flops", "assumed share of the peak", **inputs)
    first = figure("first token", "s", "context / prefill", "one prompt that fills the context", context=use.context,
                   prefill=prefill.value)  # fmt: skip
    bandwidth_first = by_bandwidth.value <= by_arithmetic.value
    slower = by_bandwidth if bandwidth_first else by_arithmetic
    return Speed(slower, "bandwidth" if bandwidth_first else "arithmetic", prefill, first)


def _read(spec: ModelSpec, batch: int, stored: float, expert_bits: float | None = None) -> Figure:
    """Bytes of weights read per token of each sequence, without the input table, with the expected experts."""
    counted = parameters(spec)
    idle = 0 if spec.tied else counted.part("embedding")
    idle += counted.part("positions")
    routed = 0.0
    if spec.experts:
        shape = [tensor for tensor in tensors(spec) if tensor.part == "experts" and tensor.copies != tensor.active]
        routed = sum(tensor.numbers for tensor in shape)
        untouched = (1 - spec.experts.active / spec.experts.count) ** batch  # of even routing
        routed *= untouched if expert_layers(spec) else 0
    source = "look-up tables give a row a token; the experts that no token of the batch is sent to rest"
    if expert_bits is not None:
        formula = "stored - looked_up * 2 - idle_experts * expert_bits / 8"
        inputs = {"looked_up": idle, "idle_experts": routed, "expert_bits": expert_bits}
        return figure("weights read", "bytes", formula, source, stored=stored, **inputs)
    return figure(
        "weights read", "bytes", "stored * (1 - (looked_up + idle_experts) / parameters)",
        source, stored=stored, looked_up=idle, idle_experts=routed, parameters=counted.total,
    )  # fmt: skip


@dataclass(frozen=True)
class Fit:
    """Whether a plan fits on one device, and its largest batch and context; 0 if not even one fits."""

    units: ClassVar = {
        "needed": "bytes", "shared": "bytes", "headroom": "bytes", "largest_batch": "sequences",
        "longest_context": "tokens",
    }  # fmt: skip
    device: Device
    needed: float
    largest_batch: int
    longest_context: int
    shared: float  # bytes that several devices would share

    @property
    def devices_needed(self) -> int | None:
        """Devices needed, with all but the runtime split evenly; None if the runtime alone fills one."""
        room = self.device.memory - (self.needed - self.shared)
        return math.ceil(self.shared / room) if room > 0 else None

    @property
    def fits(self) -> bool:
        return self.needed <= self.device.memory

    @property
    def headroom(self) -> float:
        """Free bytes; negative: bytes missing."""
        return self.device.memory - self.needed


def fit_on(spec: ModelSpec, use: Serving, on: Device) -> Fit:
    """The largest batch at the context, and the longest context at the batch, that fit on `on`."""
    use = replace(use, runtime=on.runtime)

    def fits(**change: int) -> bool:
        return serving_memory(spec, replace(use, **change)).total <= on.memory  # type: ignore[arg-type]

    memory = serving_memory(spec, use)
    return Fit(
        device=on,
        needed=memory.total,
        shared=memory.total - memory.part("runtime"),
        largest_batch=largest(lambda batch: fits(batch=batch), 1 << 20),
        longest_context=largest(lambda context: fits(context=context), LONGEST),
    )


@dataclass(frozen=True)
class OnDevice:
    """A model on one device; without speed if it does not fit."""

    device: Device
    memory: Memory
    fit: Fit
    speed: Speed | None


@dataclass(frozen=True)
class InferencePlan:
    """An inference plan: bytes of the weights in every type of BITS, and the results for each device."""

    use: Serving
    weights: dict[str, Figure]
    devices: tuple[OnDevice, ...]

    def _repr_mimebundle_(self, **_: object) -> dict[str, Any]:
        """In a notebook: the memory against the devices' lines."""
        from .plots import inference_bundle

        return inference_bundle(self)


def plan_inference(spec: ModelSpec, use: Serving, devices: Iterable[Device]) -> InferencePlan:
    """Plan inference: memory, devices that fit, and speed."""
    rows = []
    for device in devices:
        here = replace(use, runtime=device.runtime)
        fit = fit_on(spec, here, device)
        rows.append(OnDevice(device, serving_memory(spec, here), fit, speed(spec, here, device) if fit.fits else None))
    return InferencePlan(use, {name: weight_bytes(spec, name) for name in BITS}, tuple(rows))
