"""Model names for shell completion."""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem


def complete_model(context: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    """Catalogue names that start with the typed text; files if none does."""
    from ..weights.catalogue import CATALOGUE

    names = [entry for entry in CATALOGUE if entry.name.startswith(typed)]
    if not names:
        return [CompletionItem(typed, type="file")]
    return [CompletionItem(entry.name, help=f"{entry.parameters / 1e6:,.0f} M, {entry.licence}") for entry in names]
