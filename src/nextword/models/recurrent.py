"""RNN, LSTM and GRU language models, over torch's fused kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, pad_packed_sequence, unpack_sequence

from ..plan.compute import Recompute
from ..spec import ModelSpec
from .layers import Embedding, Linear
from .model import Model

FLAT = 0.5  # largest standard deviation of the first logits


@dataclass
class RecurrentState:
    """The hidden state of every layer, and an LSTM's cell, (layers, batch, width) each."""

    hidden: Tensor
    cell: Tensor | None = None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The state's tensors."""
        return (self.hidden,) if self.cell is None else (self.hidden, self.cell)

    def map(self, function: Callable[[Tensor], Tensor]) -> RecurrentState:
        """Apply `function` to each tensor."""
        return RecurrentState(*map(function, self.tensors))

    def gather(self, rows: Sequence[int]) -> RecurrentState:
        """A state of the given rows, in that order; rows may repeat."""
        index = torch.tensor(rows, device=self.hidden.device)
        return self.map(lambda tensor: tensor.index_select(1, index))

    def clear(self, rows: Tensor) -> None:
        """Reset the rows where `rows` (batch,) is True to the initial state."""
        for tensor in self.tensors:
            tensor.masked_fill_(rows[:, None], 0.0)

    def detach(self) -> RecurrentState:
        """The state without its graph, to truncate backpropagation through time."""
        return self.map(torch.detach)


class _Initialised(nn.RNNBase):
    """Orthogonal matrices, per gate, and zero biases, except 1 for an LSTM's forget gate.

    An orthogonal matrix neither shrinks nor amplifies the state (Saxe et al. 2013, 1312.6120). A forget gate that
    starts open lets gradients reach far back (Jozefowicz et al. 2015, "An Empirical Exploration", section 2.2).
    """

    def reset_parameters(self) -> None:
        if self.weight_ih_l0.is_meta:  # initialising there would import torch's compiler
            return
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name.startswith("weight"):
                    for gate in parameter.chunk(len(parameter) // self.hidden_size):
                        nn.init.orthogonal_(gate)
                    continue
                parameter.zero_()
                if self.mode == "LSTM" and name.startswith("bias_ih"):  # gates: input, forget, cell, output
                    parameter[self.hidden_size : 2 * self.hidden_size] = 1.0


class RNN(_Initialised, nn.RNN): ...


class LSTM(_Initialised, nn.LSTM): ...


class GRU(_Initialised, nn.GRU): ...


CELLS: dict[str, type[RNN] | type[LSTM] | type[GRU]] = {"rnn": RNN, "lstm": LSTM, "gru": GRU}


class Recurrent(Model):
    """An embedding, `spec.layers` recurrent layers of the same width, and a head. Kinds: "rnn", "lstm", "gru".

    Dropout acts between embedding, layers and head, never along time (Zaremba et al. 2014, 1409.2329).
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        self.embedding: Embedding = Embedding(spec.vocabulary, spec.width)
        self.recurrent = CELLS[spec.kind](spec.width, spec.width, spec.layers, batch_first=True)
        self.head: Linear = Linear(spec.width, spec.vocabulary, spec.head_bias)
        if spec.tied:
            self.head.weight = self.embedding.weight
        self._initialise()

    def _initialise(self) -> None:
        """Initialise so that logits start nearly flat, and the input affects the gates from the first step.

        Hidden features lie in (-1, 1), so a head of std FLAT/√width gives logits of std below FLAT, and a first loss
        within FLAT²/2 of ln(vocabulary) or nearer. Tied embeddings are as small, and would hardly
        move the gates: the first input matrix is scaled up, so that its output has a variance of one.
        """
        if self.embedding.weight.is_meta:
            return
        flat = FLAT * self.spec.width**-0.5
        embedding = flat if self.spec.tied else 1.0
        nn.init.normal_(self.embedding.weight, std=embedding)
        if not self.spec.tied:
            nn.init.normal_(self.head.weight, std=flat)
        if self.spec.head_bias:
            nn.init.zeros_(self.head.bias)
        with torch.no_grad():
            self.recurrent.get_parameter("weight_ih_l0").div_(embedding)

    def set_regularization(self, dropout: float, recompute: Recompute) -> None:
        super().set_regularization(dropout, recompute)
        self.recurrent.dropout = dropout

    def new_state(self, batch: int) -> RecurrentState:
        """A state of zeros for `batch` sequences."""
        hidden = torch.zeros(self.spec.layers, batch, self.spec.width, dtype=self.dtype, device=self.device)
        return RecurrentState(hidden, torch.zeros_like(hidden) if self.spec.kind == "lstm" else None)

    def hidden(
        self,
        tokens: Tensor,
        documents: Tensor | None = None,
        *,
        state: RecurrentState | None = None,
        lengths: Sequence[int] | None = None,
    ) -> Tensor:
        """The last layer's output at every token, (batch, time, width); see `Model.hidden`.

        Each row continues `state`, which is updated in place; without one each row starts a text. Rows may be padded
        at the end, with `lengths` real tokens each. Each of `documents` starts with a zero state, except a row's
        first, which continues the row's state. Such packed rows cannot be padded.
        """
        before = state if state is not None else self.new_state(len(tokens))
        x = self.dropout(self.embedding(tokens))  # (batch, time, width)
        if documents is not None:
            x, after = self._by_document(x, before, documents)
        elif lengths is None or min(lengths) == tokens.shape[1]:
            x, after = self.recurrent(x, _as_torch(before))
        else:
            x, after = self._padded(x, before, lengths)
        if state is not None:
            state.hidden, state.cell = after if isinstance(after, tuple) else (after, None)
        return self.dropout(x)  # type: ignore[no-any-return]

    def _padded(self, x: Tensor, before: RecurrentState, lengths: Sequence[int]) -> tuple[Tensor, Any]:
        """Rows of different lengths: each row's state is the one after its last real token."""
        packed = pack_padded_sequence(x, torch.tensor(lengths), batch_first=True, enforce_sorted=False)
        out, after = self.recurrent(packed, _as_torch(before))
        return pad_packed_sequence(out, batch_first=True, total_length=x.shape[1])[0], after

    def _by_document(self, x: Tensor, before: RecurrentState, documents: Tensor) -> tuple[Tensor, Any]:
        """Each document of a row as a separate sequence; a row's first one continues the row's state."""
        batch, time, width = x.shape
        begins = torch.ones_like(documents, dtype=torch.bool)
        begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
        starts = begins.flatten().nonzero()[:, 0]  # start of every document in the concatenated rows
        rows = starts // time
        last = torch.cat((rows[1:] != rows[:-1], rows.new_ones(1).bool()))
        fresh = before.gather(rows.tolist())
        fresh.clear(starts % time != 0)
        texts = list(x.flatten(0, 1).tensor_split(starts[1:].tolist()))
        out, after = self.recurrent(pack_sequence(texts, enforce_sorted=False), _as_torch(fresh))
        kept: Any = tuple(tensor[:, last] for tensor in after) if isinstance(after, tuple) else after[:, last]
        return torch.cat(unpack_sequence(out)).view(batch, time, width), kept


def _as_torch(state: RecurrentState) -> Any:
    """The state in the form of torch's modules."""
    return state.hidden if state.cell is None else (state.hidden, state.cell)
