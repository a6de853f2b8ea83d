"""Worked numbers of training that no other test holds, through the code that trains."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from configs import config_of, with_spec
from torch import Tensor, nn

from nextword.data import Dataset
from nextword.models import build
from nextword.plan import Training as Trained
from nextword.plan import memory, parameters
from nextword.spec import ModelKind, ModelSpec
from nextword.train.context_tasks import IGNORED, copy_batch
from nextword.train.loss_module import LossModule, Placed, new_model
from nextword.train.optimizers import make_optimizer
from nextword.train.trainer import Trainer

SMALL = ModelSpec(kind="transformer", vocabulary=65, width=128, layers=4, context=64, heads=4, kv_heads=4,
                  head_width=32, mlp_width=512, mlp="plain", activation="gelu", norm="layer", norm_bias=False,
                  position="learned")  # fmt: skip
RUN = config_of(SMALL, context=64, batch_size=12, micro_batch=12, steps=10,
                learning_rate=1e-3, final_learning_rate=1e-4, warmup_steps=2, dtype="fp32")  # fmt: skip


def test_a_block_of_the_small_model_has_as_many_parameters_as_the_reference_says() -> None:
    assert sum(p.numel() for p in new_model(RUN).blocks[0].parameters()) == 196_864  # type: ignore[index]


def test_weights_gradients_and_adams_states_take_sixteen_bytes_a_parameter_as_planned() -> None:
    model = new_model(RUN)
    optimizer = make_optimizer(model, RUN.train)
    tokens = torch.randint(0, 65, (2, 65), generator=torch.Generator().manual_seed(0))
    LossModule(model)(Placed(tokens[:, :-1], tokens[:, 1:], None)).backward()
    optimizer.step()
    held = [t for p in model.parameters() for t in (p, p.grad, *optimizer.state[p].values()) if t is not None]
    assert sum(t.nbytes for t in held if t.ndim) == 12_865_536  # Adam counts its steps in tensors without dimensions
    planned = {each.name: each.value for each in memory(SMALL, Trained(1, 64, precision="fp32")).parts}
    assert sum(planned[name] for name in ("weights", "gradients", "optimizer states")) == 12_865_536


def test_adamw_in_double_precision_has_the_worked_values_to_nine_digits() -> None:
    model = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    nn.init.ones_(model.weight)
    optimizer = make_optimizer(model, RUN.train)
    for gradient, expected in ((0.1, 0.9989000001), (-0.3, 0.9992894058)):
        model.weight.grad = torch.tensor([[gradient]], dtype=torch.float64)
        optimizer.step()
        assert model.weight.item() == pytest.approx(expected, rel=0, abs=1e-9)


class Nats(nn.Module):
    """A loss of 2 nats at each of the first row's tokens and of 4 at the second's, times a parameter of 1."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, batch: Placed, state: Any = None) -> Tensor:
        return self.scale * (batch.inputs * (batch.targets != IGNORED)).sum()


def test_micro_batches_of_unlike_many_tokens_weigh_as_their_tokens(data: Dataset, tmp_path: Path) -> None:
    model = replace(SMALL, vocabulary=data.vocabulary, width=16, head_width=4, layers=1, mlp_width=16)
    trainer = Trainer(with_spec(RUN, model).with_train(batch_size=2, micro_batch=1), data, tmp_path)
    trainer._build(resumed=False)
    trainer.learner.loss_module = Nats()
    targets = torch.tensor([[1, 1, 1], [1, IGNORED, IGNORED]])
    loss, counted = trainer._gradients(Placed(torch.tensor([[2.0] * 3, [4.0] * 3]), targets, None))
    assert (loss, counted) == (2.5, 4)  # (6 + 4) / 4, and not (6 / 3 + 4 / 1) / 2 = 3
    assert trainer.learner.loss_module.scale.grad == 2.5


@pytest.mark.parametrize(("delay", "baseline"), [(50, 0.29706), (100, 0.17329), (200, 0.09452)])
def test_who_has_no_memory_copies_at_the_references_loss(delay: int, baseline: float) -> None:
    inputs, targets = copy_batch(delay, torch.Generator().manual_seed(0), 4)
    asked = targets != IGNORED
    whole = torch.where(asked, targets, 8)  # of all steps: blanks, then the symbols
    guess = torch.full((*inputs.shape, 10), -1e9)
    guess[..., 8] = 0.0  # certain of the blank where nothing is asked, and where it is, of nothing
    guess[asked] = torch.tensor([0.0] * 8 + [-1e9] * 2)
    assert F.cross_entropy(guess.flatten(0, 1), whole.flatten()).item() == pytest.approx(baseline, abs=5e-6)


@pytest.mark.parametrize(("kind", "width"), [("transformer", 192), ("lstm", 235), ("gru", 271), ("rnn", 469)])
def test_models_of_the_matched_widths_have_equally_many_parameters_beside_the_embedding(
    kind: ModelKind, width: int
) -> None:
    attention = {"heads": 6, "kv_heads": 6, "head_width": 32, "mlp_width": 768, "mlp": "plain"}
    shape = attention if kind == "transformer" else {}
    spec = ModelSpec(kind=kind, vocabulary=65, width=width, layers=2, context=64, **shape)  # type: ignore[arg-type]
    d, h = 192, width
    expected = {"transformer": 12 * d**2, "lstm": 8 * h**2 + 8 * h, "gru": 6 * h**2 + 6 * h, "rnn": 2 * h**2 + 2 * h}
    with torch.device("meta"):
        model = build(spec)
    matrices = sum(p.numel() for name, p in model.named_parameters() if "norm" not in name and "embedding" not in name)
    assert matrices == 2 * expected[kind] == pytest.approx(0.886e6, rel=0.005)
    assert parameters(spec).non_embedding == pytest.approx(matrices, rel=0.002)  # norms


@pytest.mark.parametrize(("kind", "layer"), [("lstm", nn.LSTM), ("gru", nn.GRU), ("rnn", nn.RNN)])
def test_recurrent_training_is_that_of_torchs_layers_one_upon_the_other(
    kind: ModelKind, layer: type[nn.RNNBase]
) -> None:
    spec = ModelSpec(kind=kind, vocabulary=97, width=24, layers=3, context=33)
    model = new_model(with_spec(RUN, spec).with_train(context=33))
    tokens = torch.randint(0, 97, (4, 34), generator=torch.Generator().manual_seed(0))
    loss = LossModule(model)(Placed(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), None)) / (4 * 33)
    loss.backward()

    ours = dict(model.named_parameters())
    embedding = ours["embedding.weight"].detach().clone().requires_grad_()
    layers, x = [], embedding[tokens[:, :-1]]
    for number in range(3):
        plain = layer(24, 24, batch_first=True)
        for name, parameter in plain.named_parameters():
            parameter.data.copy_(ours[f"recurrent.{name.replace('l0', f'l{number}')}"])
        layers.append(plain)
        x = plain(x)[0]
    expected = F.cross_entropy((x @ embedding.t()).flatten(0, 1), tokens[:, 1:].flatten())
    expected.backward()

    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(ours["embedding.weight"].grad, embedding.grad, rtol=1e-4, atol=1e-7)
    for number, plain in enumerate(layers):
        for name, parameter in plain.named_parameters():
            found = ours[f"recurrent.{name.replace('l0', f'l{number}')}"].grad
            torch.testing.assert_close(found, parameter.grad, rtol=1e-4, atol=1e-7)
