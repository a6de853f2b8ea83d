"""A rank in torch's fake process group: it holds the bytes that are planned, and synchronizes no more than needed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.distributed as dist
from configs import config_of
from torch.nn.parallel import DistributedDataParallel
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from nextword.plan.states import states
from nextword.plan.training import Training
from nextword.spec import ModelSpec
from nextword.train.distributed import Process
from nextword.train.learner import Learner
from nextword.train.loss_module import Placed, new_model

pytestmark = pytest.mark.filterwarnings("ignore:FSDP2-wrapped module")  # our blocks change nothing in place

SPEC = ModelSpec(kind="transformer", vocabulary=301, width=24, layers=3, context=16, heads=4, kv_heads=2, head_width=6,
                 mlp_width=50)  # fmt: skip
MACHINE = 8


@contextmanager
def learner(
    shard: str, world: int, monkeypatch: pytest.MonkeyPatch, reduced: list[int] | None = None, recompute: str = "none"
) -> Iterator[Learner]:
    """The first of `world` processes; the sizes of the buckets that DDP sums are added to `reduced`."""

    def hook(state, bucket):  # type: ignore[no-untyped-def]  # the fake group gives DDP's own no result
        if reduced is not None:
            reduced.append(bucket.buffer().numel())
        future = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(min(world, MACHINE)))
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world)
    try:
        config = config_of(SPEC, batch_size=6 * world, micro_batch=2, shard=shard, devices=world, recompute=recompute)
        one = Learner(config, new_model(config), torch.device("cpu"), Process(0, world))
        if isinstance(one.loss_module, DistributedDataParallel):
            one.loss_module.register_comm_hook(None, hook)
        yield one
    finally:
        dist.destroy_process_group()


def batch() -> Placed:
    tokens = torch.randint(0, SPEC.vocabulary, (6, 17), generator=torch.Generator().manual_seed(0))
    return Placed(tokens[:, :-1], tokens[:, 1:], None)


def held(tensor: torch.Tensor) -> int:
    """This rank's bytes of a tensor."""
    local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return local.numel() * local.element_size()


@pytest.mark.parametrize("world", [2, 3, 8, 64])
@pytest.mark.parametrize("shard", ["ddp", "fsdp", "hybrid"])
def test_a_rank_holds_the_bytes_that_are_planned(shard: str, world: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with learner(shard, world, monkeypatch) as one:
        one.backward(batch(), 96)
        parameters = list(one.model.parameters())
        gradients = [p.grad for p in parameters if p.grad is not None]
        one.optimizer.step()
        moments = [value for state in one.optimizer.state.values() for name, value in state.items() if name != "step"]
        measured = [sum(map(held, tensors)) for tensors in (parameters, gradients, moments)]
    run = Training(shard=shard, devices=world, per_machine=MACHINE)  # type: ignore[arg-type]
    planned = states(SPEC, precision="fp32", shard=run.shard, devices=run.sharing)
    assert measured == [planned.part(name) for name in ("weights", "gradients", "optimizer states")]


class Collectives(TorchDispatchMode):
    """Counts the collectives of a block by name; those of DDP do not pass through Python."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func.namespace == "c10d":
            self.counts[func._opname] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize("shard", ["ddp", "fsdp", "hybrid"])
def test_copies_sum_their_gradients_once_a_step_and_recomputing_gathers_no_weights_again(
    shard: str, recompute: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    micro_batches, groups = 3, SPEC.layers + 1  # of weights: each layer, and the rest
    reduced: list[int] = []
    with learner(shard, 16, monkeypatch, reduced, recompute) as one, Collectives() as seen:
        one.backward(batch(), 96)
    assert len(reduced) == (shard == "ddp")
    sharded = {
        "_allgather_base_": micro_batches * (groups + SPEC.layers),  # forward, and backward all but the rest
        "_reduce_scatter_base_": micro_batches * groups,
    }
    assert seen.counts == {"ddp": {}, "fsdp": sharded, "hybrid": sharded | {"allreduce_": groups}}[shard]
