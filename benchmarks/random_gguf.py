"""Llama-shaped GGUF files of random weights with a real tokenizer: real sizes without a download. Their text is noise.

python benchmarks/random_gguf.py {q4_k,q5_k,q8_0,f16} OUT     # 1.1 B parameters
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import GGUFValueType as Value

HEAD_WIDTH = 64
ADDERS = {
    Value.ARRAY: "add_array", Value.STRING: "add_string", Value.UINT32: "add_uint32", Value.BOOL: "add_bool",
}  # fmt: skip
# where a block holds its float16 scales, and scales that give weights a mean of 0 and a deviation of 0.03
SCALES: dict[Type, tuple[int, list[float]]] = {
    Type.Q4_K: (0, [1.2e-4, 9e-4]),  # of the products, of the minima
    Type.Q5_K: (0, [6e-5, 9.3e-4]),
    Type.Q6_K: (208, [2e-5]),
    Type.Q8_0: (0, [4e-4]),
}


@dataclass(frozen=True)
class Shape:
    """A Llama; the defaults have 1.1 B parameters and the vocabulary of SmolLM2."""

    layers: int = 16
    width: int = 2048
    heads: int = 32
    kv_heads: int = 8
    mlp_width: int = 8192
    vocabulary: int = 49152

    def matrices(self, layer: int) -> dict[str, tuple[int, int]]:
        """(rows, columns) by name."""
        kv_width, width = self.kv_heads * HEAD_WIDTH, self.width
        sizes = {
            "attn_q": (self.heads * HEAD_WIDTH, width), "attn_k": (kv_width, width), "attn_v": (kv_width, width),
            "attn_output": (width, self.heads * HEAD_WIDTH), "ffn_gate": (self.mlp_width, width),
            "ffn_up": (self.mlp_width, width), "ffn_down": (width, self.mlp_width),
        }  # fmt: skip
        return {f"blk.{layer}.{name}.weight": size for name, size in sizes.items()}


def write(out: Path, kind: str, tokenizer: Path, shape: Shape | None = None) -> None:
    """`kind`: q4_k (Q6_K in places, as in a Q4_K_M file), q5_k (embedding in Q6_K, as in Q5_K_S), q8_0 or f16."""
    shape = shape or Shape()
    writer, rng = gguf.GGUFWriter(out, "llama"), np.random.default_rng(0)
    _copy_tokenizer(writer, tokenizer)
    _describe(writer, shape)
    plain = Type[kind.upper()]
    embedding = Type.Q6_K if kind in ("q4_k", "q5_k") else plain
    _add(writer, "token_embd.weight", (shape.vocabulary, shape.width), embedding, rng)
    for layer in range(shape.layers):
        better = Type.Q6_K if kind == "q4_k" and layer % 2 else plain
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{norm}.weight", np.ones(shape.width, np.float32))
        for name, size in shape.matrices(layer).items():
            _add(writer, name, size, better if "attn_v" in name or "ffn_down" in name else plain, rng)
    writer.add_tensor("output_norm.weight", np.ones(shape.width, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _copy_tokenizer(writer: gguf.GGUFWriter, source: Path) -> None:
    for field in gguf.GGUFReader(source).fields.values():
        if field.name.startswith("tokenizer.") and field.types[0] in ADDERS:
            getattr(writer, ADDERS[field.types[0]])(field.name, field.contents())


def _describe(writer: gguf.GGUFWriter, shape: Shape) -> None:
    writer.add_block_count(shape.layers)
    writer.add_context_length(8192)
    writer.add_embedding_length(shape.width)
    writer.add_feed_forward_length(shape.mlp_width)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(HEAD_WIDTH)
    writer.add_vocab_size(shape.vocabulary)


def _add(writer: gguf.GGUFWriter, name: str, size: tuple[int, int], kind: Type, rng: np.random.Generator) -> None:
    rows, columns = size
    if kind == Type.F16:
        writer.add_tensor(name, (rng.standard_normal(size, np.float32) * 0.03).astype(np.float16))
        return
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (rows * columns // block, block_bytes), np.uint8)
    place, scales = SCALES[kind]
    raw = np.array(scales, np.float16).view(np.uint8)
    blocks[:, place : place + len(raw)] = raw
    writer.add_tensor(name, blocks.reshape(rows, -1), raw_dtype=kind)


def main() -> None:
    from nextword.weights.catalogue import resolve

    if len(sys.argv) != 3:
        sys.exit(__doc__)
    write(Path(sys.argv[2]), sys.argv[1], Path(resolve("smollm2-135m-instruct")))


if __name__ == "__main__":
    main()
