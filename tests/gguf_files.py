"""Small GGUF files, written by the gguf package: an independent author of what we read.

`write_llama(path, "q4_k")` writes a whole random model whose matrices are of one type, or of several.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np


def numbers(rows: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)


def write(path: Path, tensors: dict[str, Any], metadata: dict[str, Any] | None = None, alignment: int = 32) -> Path:
    """Write `tensors`: name → float32 array, or → (quantized bytes, type); `metadata`: key → value."""
    writer = gguf.GGUFWriter(path, "llama")
    if alignment != 32:
        writer.add_custom_alignment(alignment)
    for key, value in (metadata or {}).items():
        adders = {
            str: writer.add_string,
            bool: writer.add_bool,
            int: writer.add_uint32,
            float: writer.add_float32,
        }
        adders.get(type(value), writer.add_array)(key, value)
    for name, value in tensors.items():
        if isinstance(value, tuple):
            writer.add_tensor(name, value[0], raw_dtype=value[1])
        else:
            writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


FLOATS = ("f32", "f16", "bf16")
MAPPED = (*FLOATS, "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl", "iq4_xs",
          "mxfp4")  # fmt: skip
OTHERS = ("iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s", "iq1_s", "iq1_m", "tq1_0", "tq2_0", "nvfp4")
# where a block's float16 scale is, and for types with a minimum next to it, its multiple that centres the weights
SCALES = {
    "q4_0": (0, 0), "q4_1": (0, -7.5), "q5_0": (0, 0), "q5_1": (0, -15.5), "q8_0": (0, 0), "q2_k": (80, 1.5),
    "q3_k": (108, 0), "q4_k": (0, 7.5), "q5_k": (0, 15.5), "q6_k": (208, 0), "iq4_nl": (0, 0), "iq4_xs": (0, 0),
    "iq2_xxs": (0, 0), "iq2_xs": (0, 0), "iq2_s": (0, 0), "iq3_xxs": (0, 0), "iq3_s": (0, 0), "iq1_s": (0, 0),
    "tq1_0": (52, 0), "tq2_0": (64, 0),
}  # fmt: skip


def ggml_type(kind: str) -> gguf.GGMLQuantizationType:
    return gguf.GGMLQuantizationType[kind.upper()]


def random_rows(kind: str, rows: int, width: int, seed: int = 0, std: float | None = None) -> np.ndarray:
    """Stored rows of a random matrix, uint8 (rows, bytes per row).

    The weights have about the standard deviation `std`, by default width ** -0.5. Quantized blocks hold any bits, with
    scales of either sign where the type has no minimum.
    """
    draw, std = np.random.default_rng(seed), width**-0.5 if std is None else std
    if kind in FLOATS:
        normal = (draw.standard_normal((rows, width)) * std).astype(np.float32)
        return gguf.quants.quantize(normal, ggml_type(kind)).view(np.uint8).reshape(rows, -1)
    values, size = gguf.GGML_QUANT_SIZES[ggml_type(kind)]
    blocks = draw.integers(0, 256, (rows * width // values, size), dtype=np.uint8)
    scales = draw.uniform(0.5, 1, len(blocks))
    _set_scales(kind, blocks, scales, std, draw)
    with np.errstate(over="ignore"):  # TQ1_0 is decoded by multiplying modulo 256
        rms = np.square(dequantized(kind, blocks.reshape(rows, -1))).mean() ** 0.5
    _set_scales(kind, blocks, scales * std / rms, std, draw)
    return blocks.reshape(rows, -1)


def _set_scales(kind: str, blocks: np.ndarray, scales: np.ndarray, std: float, draw: np.random.Generator) -> None:
    half = scales.astype(np.float16)[:, None]
    if kind == "mxfp4":  # an exponent a block
        blocks[:, 0] = 126 + np.log2(std / 2) + draw.integers(-1, 2, len(blocks))
    elif kind == "nvfp4":  # four scales of three bits of mantissa
        blocks[:, :4] = draw.integers(4, 16, (len(blocks), 4))
    elif kind == "iq1_m":  # the upper four bits of each of the four last uint16
        nibbles = half.view(np.uint16) >> np.array([0, 4, 8, 12], np.uint16) & np.uint16(15)
        last = blocks[:, 48:].view(np.uint16)
        blocks[:, 48:] = (last & np.uint16(0x0FFF) | nibbles << np.uint16(12)).view(np.uint8)
    else:
        at, minimum = SCALES[kind]
        signs = draw.choice([-1, 1], len(blocks)).astype(np.float16)[:, None]
        blocks[:, at : at + 2] = (half if minimum else half * signs).view(np.uint8)
        if minimum:
            blocks[:, at + 2 : at + 4] = (half * np.float16(minimum)).view(np.uint8)


def dequantized(kind: str, stored: np.ndarray) -> np.ndarray:
    """float32 (rows, width) of stored rows, by the gguf package."""
    if kind == "f32":
        return stored.view(np.float32)
    return gguf.quants.dequantize(stored.view(np.float16) if kind == "f16" else stored, ggml_type(kind))


def write_llama(path: Path, kind: str, *, tied: bool = True, seed: int = 0, **kinds: str) -> Path:
    """Write a random Llama whose matrices are of type `kind`, or as `kinds` says: attn_v="q6_k", token_embd="q8_0".

    Two layers of width 256, 4 heads of which 2 hold keys and values, an MLP of 512, 259 tokens: the 256 bytes, one
    merge ("th"), and two control tokens.
    """
    writer = gguf.GGUFWriter(path, "llama")
    _add_metadata(writer)
    shapes = {"attn_q": (256, 256), "attn_k": (128, 256), "attn_v": (128, 256), "attn_output": (256, 256),
              "ffn_gate": (512, 256), "ffn_up": (512, 256), "ffn_down": (256, 512)}  # fmt: skip
    matrices = {"token_embd": (259, 256)} | ({} if tied else {"output": (259, 256)})
    matrices |= {f"blk.{layer}.{name}": shape for layer in range(2) for name, shape in shapes.items()}
    for number, (name, (rows, width)) in enumerate(matrices.items()):
        stored_as = kinds.get(name.rpartition(".")[2], kind)
        stored = random_rows(stored_as, rows, width, 1000 * seed + number)
        writer.add_tensor(f"{name}.weight", stored, raw_dtype=ggml_type(stored_as))
    draw = np.random.default_rng(seed)
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "blk.1.attn_norm", "blk.1.ffn_norm", "output_norm"):
        writer.add_tensor(f"{name}.weight", (1 + 0.2 * draw.standard_normal(256)).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_metadata(writer: gguf.GGUFWriter) -> None:
    writer.add_block_count(2)
    writer.add_context_length(512)
    writer.add_embedding_length(256)
    writer.add_feed_forward_length(512)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(64)
    printed = [*range(33, 127), *range(161, 173), *range(174, 256)]  # GPT-2's characters for bytes
    others = {byte: chr(256 + number) for number, byte in enumerate(sorted(set(range(256)) - set(printed)))}
    characters = [others.get(byte, chr(byte)) for byte in range(256)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([*characters, "th", "<|endoftext|>", "<|im_end|>"])
    writer.add_token_types([gguf.TokenType.NORMAL] * 257 + [gguf.TokenType.CONTROL] * 2)
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(257)
    writer.add_eos_token_id(258)
    writer.add_add_bos_token(False)
