"""Results as figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

from ..plots import Spec, mime_bundle
from ..plots.next_tokens import Column, Share, next_tokens
from ..plots.theme import LIGHT, heat
from .display import bits, label, mass, percent, rows, visible
from .results import Completion, NextTokenDistribution


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


def next_bundle(distribution: NextTokenDistribution) -> dict[str, Any]:
    """A distribution for notebooks: bars, or its tokens line by line."""
    lines = [f"{percent(token.sampled_prob):>6} {visible(token.text)}" for token in distribution.top]
    head = f"{distribution.prompt}, {label(distribution)}: {bits(distribution.entropy):.2f} bits"
    text = "\n".join([head, *lines, f"{percent(distribution.tail_mass):>6} others"])
    return mime_bundle(text, next_figure([distribution]))


def completion_bundle(completion: Completion) -> dict[str, Any]:
    """A completion for notebooks: its tokens, tinted by how unlikely they were, or its text."""
    red, green, blue = bytes.fromhex(LIGHT["orange"][1:])
    spans = []
    for token in completion.tokens:
        probability = math.exp(token.logprob)
        tint = f"background: rgba({red}, {green}, {blue}, {0.6 * (1 - probability):.2f})"
        said = f"{visible(token.token)}: {percent(probability)} by the model"
        spans.append(f'<span style="{tint}" title="{escape(said)}">{escape(token.text)}</span>')
    prompt = f'<span style="opacity: 0.6">{escape(completion.prompt)}</span>'
    html = f'<pre style="white-space: pre-wrap">{prompt}{"".join(spans)}</pre>'
    return mime_bundle(completion.prompt + completion.text, html=html)
