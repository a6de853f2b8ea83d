"""torch.compile: refused where useless, quiet, with one-line errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .. import native
from ..base import RunError, UsageError


def check(device: torch.device, dtype: str) -> None:
    """Raise UsageError if compiling is useless: in float32 on a CPU with our own kernels.

    torch cannot compile them (a step of a 0.9M transformer took 104 ms with it and 100 ms without, on one thread).
    """
    if device.type == "cpu" and dtype == "fp32" and native.available():
        raise UsageError("run.compile gains nothing in fp32 on a CPU, where nextword's own kernels run. Leave it out")


@contextmanager
def explained() -> Iterator[None]:
    """Convert errors of torch's compiler in the block to a one-line RunError, and silence its messages."""
    import logging
    import warnings

    from torch._dynamo.exc import TorchDynamoException

    logs = logging.getLogger("torch._dynamo")
    before = logs.level
    logs.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="torch._dynamo")
            yield
    except TorchDynamoException as error:
        reason = str(error).strip().splitlines()[0]
        raise RunError(f"torch.compile failed ({reason}). Train without run.compile") from error
    finally:
        logs.setLevel(before)
