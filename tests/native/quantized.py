"""Random matrices of every GGUF type, as gguf-py reads them, and activations as the kernels see them."""

from __future__ import annotations

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants
from numpy.typing import NDArray

from nextword.native.matmul import TYPES

QUANTIZED = [name for name in TYPES if name not in ("f32", "f16", "bf16")]
SMALL_BLOCKS = ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "iq4_nl", "mxfp4"]  # a float scale for each 32 columns
# Where the float16 scales (and minima) of a block are, by type.
_HALVES = {
    "q4_0": [0], "q4_1": [0, 2], "q5_0": [0], "q5_1": [0, 2], "q8_0": [0], "iq4_nl": [0], "iq4_xs": [0],
    "q2_k": [80, 82], "q3_k": [108], "q4_k": [0, 2], "q5_k": [0, 2], "q6_k": [208],
}  # fmt: skip


def random_rows(type: str, rows: int, width: int, seed: int = 0, byte: int | None = None) -> NDArray[np.uint8]:
    """Random bytes (rows, bytes per row) of a type, or always `byte`, with finite scales of about 1."""
    random, kind = np.random.default_rng(seed), GGMLQuantizationType[type.upper()]
    columns, size = GGML_QUANT_SIZES[kind]
    if type in ("f32", "f16", "bf16"):
        numbers = random.normal(size=(rows, width)).astype(np.float32)
        return np.ascontiguousarray(quants.quantize(numbers, kind)).view(np.uint8)
    blocks = random.integers(0, 256, (rows, width // columns, size), dtype=np.uint8)
    if byte is not None:
        blocks[:] = byte
    for at in _HALVES.get(type, []):
        scales = random.uniform(0.5, 2, blocks.shape[:2]) * random.choice((-1, 1), blocks.shape[:2])
        blocks[..., at : at + 2] = scales.astype(np.float16)[..., None].view(np.uint8)
    if type == "mxfp4":
        blocks[..., 0] = random.integers(124, 130, blocks.shape[:2])
    return blocks.reshape(rows, -1)


def dequantized(type: str, data: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The rows as float32 by the gguf package."""
    floats: NDArray[np.float32] = quants.dequantize(data, GGMLQuantizationType[type.upper()])
    return floats


def activations(x: NDArray[np.float32]) -> NDArray[np.float64]:
    """x (..., width) as the quantized kernels round it: in superblocks of 256 and blocks of 32 columns."""
    return np.concatenate([_superblock(x[..., at : at + 256]) for at in range(0, x.shape[-1], 256)], -1)


def _superblock(x: NDArray[np.float32]) -> NDArray[np.float64]:
    scale = np.abs(x).max(-1, keepdims=True)[..., None] / np.float32(127 * 15)
    blocks = x.reshape(*x.shape[:-1], -1, 32)
    with np.errstate(invalid="ignore", divide="ignore"):
        multiplier = np.clip(np.ceil(np.abs(blocks).max(-1, keepdims=True) / (np.float32(127) * scale)), 1, 15)
        steps = (scale * multiplier).astype(np.float32)
        rounded = np.rint(blocks * (1 / steps)).astype(np.float64) * scale * multiplier
    return np.where(scale > 0, rounded, 0).reshape(x.shape)
