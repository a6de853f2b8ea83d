"""nextword's own part of an answer: what each token was drawn from."""

from __future__ import annotations

from typing import Any

from ..engine import CompletionHandle
from .pieces import Entry, logarithm


def sampling_extension(handle: CompletionHandle | None, entries: list[Entry]) -> dict[str, Any]:
    """The seed, the order of the sampling steps, and of each token ln p under the model and as it was drawn.

    `kept_mass` is the model's probability of all tokens that could be drawn in its place.
    """
    if handle is None:
        return {"tokens": []}
    sampling = handle.request.sampling
    return {
        "seed": handle.seed,
        "temperature": sampling.temperature,
        "order": sampling.order,
        "tokens": [
            {
                "id": entry.token.id,
                "logprob": entry.token.logprob,
                "sampled_logprob": logarithm(entry.token.sampled_prob),
                "kept_mass": entry.token.kept_mass,
            }
            for entry in entries
        ],
    }
