"""Learning rates of small models, by the scans of sweeps (docs/decisions.md).

Published rules are 2 to 10 times too high for models of under a million parameters, and a rate twice too high costs
more than the size explains.
"""

from __future__ import annotations

from ..spec import ModelKind

POWER = -0.4  # of M
SCANNED_TO = 1e6  # M of the transformers that the rule is for; published rules are for larger ones
_RATES: dict[ModelKind, float] = {"transformer": 4.5e-3, "rnn": 1e-2, "gru": 1.5e-2, "lstm": 3e-2}
_SIZE, _BATCH = 1.7e5, 2048  # M, and tokens a step, of `_RATES`
_LARGEST_BATCH = 8192  # tokens; what more would do was not tried


def small_rate(kind: ModelKind, size: float, batch_tokens: float) -> float:
    """The learning rate for a small model of M = `size`, with `batch_tokens` a step."""
    batch = min(batch_tokens, _LARGEST_BATCH) / _BATCH
    return float(_RATES[kind] * (size / _SIZE) ** POWER * batch**0.5)
