"""RNN and GRU layers for training in float32 on a CPU, swapped in by `prepare`.

torch adds to the gradient of a recurrent matrix at every time step. Here it is one product over all steps, and a step
is a few operations into memory that is there. An LSTM has a fast kernel in torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .recurrent import GRU, RNN

_Layer = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def rnn_layer(from_input: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """h_t = tanh(from_input_t + W h_{t-1} + b), from `hidden` (batch, width) on; all h_t, (time, batch, width)."""
    states: Tensor = _RNN.apply(from_input + bias, hidden, weight)  # type: ignore[no-untyped-call]
    return states


def gru_layer(from_input: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """As `rnn_layer`, for a GRU as torch has it: from_input (time, batch, 3 width), weight (3 width, width).

    r, z = sigmoid(from_input + W h + b); n = tanh(from_input + r (W h + b)); h_t = n + z (h_{t-1} - n).
    """
    states: Tensor = _GRU.apply(from_input, hidden, weight, bias)  # type: ignore[no-untyped-call]
    return states


class _RNN(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, from_input: Tensor, hidden: Tensor, weight: Tensor) -> Tensor:
        states = _room_for_states(from_input, hidden)
        for step, given in enumerate(from_input):
            torch.addmm(given, states[step], weight.t(), out=states[step + 1]).tanh_()
        ctx.save_for_backward(states, weight)
        return states[1:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        states, weight = ctx.saved_tensors
        slopes = 1 - states[1:].square()
        grads, carried = torch.empty_like(slopes), torch.zeros_like(states[0])
        for step in reversed(range(len(grads))):
            torch.mul(carried.add_(gradients[0][step]), slopes[step], out=grads[step])
            torch.mm(grads[step], weight, out=carried)
        return grads, carried, _weight_grad(grads, states)


class _GRU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, from_input: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        time, batch, width = len(from_input), *hidden.shape
        states, projected = _room_for_states(from_input, hidden), from_input.new_empty(batch, 3 * width)
        gates = from_input.new_empty(time, batch, 2 * width)  # reset, update
        candidates, from_hidden = (from_input.new_empty(time, batch, width) for _ in range(2))
        for step, given in enumerate(from_input):
            torch.addmm(bias, states[step], weight.t(), out=projected)
            from_hidden[step] = projected[:, 2 * width :]
            torch.add(given[:, : 2 * width], projected[:, : 2 * width], out=gates[step]).sigmoid_()
            reset, update = gates[step].chunk(2, 1)
            torch.addcmul(given[:, 2 * width :], reset, from_hidden[step], out=candidates[step]).tanh_()
            torch.lerp(candidates[step], states[step], update, out=states[step + 1])
        ctx.save_for_backward(states, weight, gates, candidates, from_hidden)
        return states[1:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        states, weight, gates, candidates, from_hidden = ctx.saved_tensors
        width = states.shape[2]
        reset, update = gates.chunk(2, 2)
        to_candidate = (1 - update) * (1 - candidates.square())
        to_update = (states[:-1] - candidates) * update * (1 - update)
        to_reset = from_hidden * reset * (1 - reset)
        to_input, to_projected = (gates.new_empty(*gates.shape[:2], 3 * width) for _ in range(2))
        carried = torch.zeros_like(states[0])
        for step in reversed(range(len(gates))):
            carried += gradients[0][step]
            resets, updates, news = to_projected[step].split(width, 1)
            new = torch.mul(carried, to_candidate[step], out=to_input[step, :, 2 * width :])
            torch.mul(new, to_reset[step], out=resets)
            torch.mul(carried, to_update[step], out=updates)
            torch.mul(new, reset[step], out=news)
            carried.mul_(update[step]).addmm_(to_projected[step], weight)
        to_input[..., : 2 * width] = to_projected[..., : 2 * width]
        return to_input, carried, _weight_grad(to_projected, states), to_projected.sum((0, 1))


def _room_for_states(from_input: Tensor, hidden: Tensor) -> Tensor:
    """(time + 1, batch, width), whose first is `hidden`."""
    states = from_input.new_empty(len(from_input) + 1, *hidden.shape)
    states[0] = hidden
    return states


def _weight_grad(grads: Tensor, states: Tensor) -> Tensor:
    """The sum over time steps and rows of gradient x state before."""
    return grads.flatten(0, 1).t() @ states[:-1].flatten(0, 1)


def _run(layers: nn.RNNBase, layer: _Layer, x: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """As torch's modules: x (batch, time, width), hidden (layers, batch, width) → outputs, last states."""
    after = []
    for number, before in enumerate(hidden):
        input_weight, weight, input_bias, bias = layers.all_weights[number]
        states = layer(F.linear(x.transpose(0, 1), input_weight, input_bias), before, weight, bias)
        after.append(states[-1])
        x = states.transpose(0, 1)
        if number + 1 < layers.num_layers:
            x = F.dropout(x, layers.dropout, layers.training)
    return x, torch.stack(after)


class FusedRNN(RNN):
    """Whole sequences without autocast are `rnn_layer`; anything else is torch's."""

    def forward(self, x: Any, hidden: Any = None) -> Any:
        return _run(self, rnn_layer, x, hidden) if _fits(x) else super().forward(x, hidden)


class FusedGRU(GRU):
    """Whole sequences without autocast are `gru_layer`; anything else is torch's."""

    def forward(self, x: Any, hidden: Any = None) -> Any:
        return _run(self, gru_layer, x, hidden) if _fits(x) else super().forward(x, hidden)


def _fits(x: Any) -> bool:
    return isinstance(x, Tensor) and torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")


EAGER_CELLS: dict[type, type] = {FusedRNN: RNN, FusedGRU: GRU}
