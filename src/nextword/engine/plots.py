"""Results as figures."""

from __future__ import annotations

from collections.abc import Sequence

from ..plots import Spec, next_tokens
from ..plots.next_tokens import Column, Share
from ..plots.theme import heat
from .display import bits, label, mass, percent, rows, visible
from .results import NextTokenDistribution


def next_figure(distributions: Sequence[NextTokenDistribution]) -> Spec:
    """The next-token picture: one panel a temperature."""
    shown = rows(distributions)
    prompt = visible(distributions[0].prompt).replace("␣", " ")
    columns = [_column(own, [row.shares[place] for row in shown]) for place, own in enumerate(distributions)]
    return next_tokens(prompt, [visible(row.text) for row in shown], columns)


def _column(distribution: NextTokenDistribution, shares: Sequence[float | None]) -> Column:
    entropy = f"{bits(distribution.entropy):.2f} bits ({distribution.entropy:.2f} nats)"
    return Column(
        label(distribution), f"{entropy}, 90% in {mass(distribution)}", heat(distribution.temperature),
        [Share(share, "·" if share is None else percent(share)) for share in shares],
        Share(distribution.tail_mass, percent(distribution.tail_mass)),
    )  # fmt: skip
