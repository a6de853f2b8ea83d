"""A ModelSpec and weights as the structures that `nw_forward` reads."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import Structure, addressof

from ..native.matmul import Matrix, MatrixStruct
from .structures import (
    ACTIVATIONS,
    CELLS,
    ExpertsStruct,
    LayerStruct,
    ModelStruct,
    NetworkStruct,
    NormStruct,
    RecurrentLayerStruct,
)
from .weights import Weights


class CompiledModel:
    """A model for `nw_forward`: `struct`, and everything that it points to."""

    def __init__(self, weights: Weights) -> None:
        self.spec, self._weights = weights.spec, weights
        self._held: list[object] = []
        spec = self.spec
        embedding = weights.matrix("embedding.weight")
        learned = spec.position == "learned" and spec.kind == "transformer"
        self.struct = ModelStruct(
            layer_count=spec.layers,
            width=spec.width,
            vocabulary=spec.vocabulary,
            heads=spec.heads,
            kv_heads=spec.kv_heads,
            head_width=spec.head_width,
            mlp_width=spec.mlp_width,
            parallel=spec.parallel,
            gated=spec.mlp == "gated",
            activation=ACTIVATIONS[spec.activation],
            full_qk_norm=spec.qk_norm == "full",
            attention_scale=spec.attention_scale or (spec.head_width or 1) ** -0.5,
            attention_softcap=spec.attention_softcap or 0.0,
            residual_scale=spec.residual_scale or 1.0,
            embedding_scale=1.0 if spec.embedding_scale is None else spec.embedding_scale,
            logit_scale=spec.logit_scale or 1.0,
            logit_softcap=spec.logit_softcap or 0.0,
            embedding=self._struct(embedding),
            positions=self._struct(weights.matrix("positions.weight")) if learned else MatrixStruct(),
            head=self._struct(self._head(embedding)),
            final_norm=self._norm("norm"),
        )
        if spec.kind == "transformer":
            self.struct.layers = self._array(LayerStruct, [self._layer(layer) for layer in range(spec.layers)])
        else:
            self.struct.recurrent = self._hold(self._network())

    def _head(self, embedding: Matrix) -> Matrix:
        if not self.spec.tied:
            return self._weights.matrix("head.weight", "head.bias")
        return Matrix(embedding.width, list(embedding.segments), self._weights.vector("head.bias"))

    def _layer(self, layer: int) -> LayerStruct:
        spec, block = self.spec, f"blocks.{layer}."
        norms = ("attention_norm", "attention_post_norm", "mlp_norm", "mlp_post_norm")
        struct = LayerStruct(
            **{name: self._norm(block + name) for name in norms},
            query_norm=self._norm(f"{block}attention.query_norm"),
            key_norm=self._norm(f"{block}attention.key_norm"),
            qkv=self._linear(f"{block}attention.qkv"),
            out=self._linear(f"{block}attention.out"),
            sinks=self._vector(f"{block}attention.sinks"),
            window=spec.window(layer),
            rope=int(spec.window(layer) > 0) if spec.has_rope(layer) else -1,
            interleaved=self._weights.interleaved(layer),
        )
        if spec.experts and layer >= spec.experts.dense_layers:
            struct.experts = self._hold(self._experts(f"{block}mlp."))
        else:
            struct.up, struct.down = self._linear(f"{block}mlp.up"), self._linear(f"{block}mlp.down")
        return struct

    def _experts(self, name: str) -> ExpertsStruct:
        experts = self.spec.experts
        assert experts is not None
        up, down = (
            self._array(
                MatrixStruct, [self._struct(m) for m in self._weights.experts(name + part, f"{name}{part}_bias")]
            )
            for part in ("up", "down")
        )
        return ExpertsStruct(
            count=experts.count,
            active=experts.active,
            width=experts.width,
            normalize=experts.normalize,
            router=self._linear(name + "router"),
            up=up,
            down=down,
        )

    def _network(self) -> NetworkStruct:
        layers = [
            RecurrentLayerStruct(*(self._recurrent(part, layer) for part in ("ih", "hh")))
            for layer in range(self.spec.layers)
        ]
        return NetworkStruct(
            CELLS[self.spec.kind], self.spec.layers, self.spec.width, self._array(RecurrentLayerStruct, layers)
        )

    def _recurrent(self, part: str, layer: int) -> MatrixStruct:
        matrix = self._weights.matrix(f"recurrent.weight_{part}_l{layer}", f"recurrent.bias_{part}_l{layer}")
        return self._struct(matrix)

    # ---- parts

    def _linear(self, name: str) -> MatrixStruct:
        return self._struct(self._weights.matrix(f"{name}.weight", f"{name}.bias"))

    def _norm(self, name: str) -> NormStruct:
        weight, bias = self._vector(f"{name}.weight"), self._vector(f"{name}.bias")
        return NormStruct(weight, bias, self.spec.norm == "rms", self.spec.norm_eps)

    def _vector(self, name: str) -> int | None:
        vector = self._weights.vector(name)
        if vector is None:
            return None
        self._held.append(vector)
        return vector.ctypes.data

    def _struct(self, matrix: Matrix) -> MatrixStruct:
        self._held.append(matrix)
        return matrix.struct

    def _hold(self, struct: Structure) -> int:
        self._held.append(struct)
        return addressof(struct)

    def _array(self, kind: type[Structure], structs: Sequence[Structure]) -> int:
        array = (kind * len(structs))(*structs)
        self._held.append(array)
        return addressof(array)
