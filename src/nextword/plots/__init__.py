"""Figures as data: Vega-Lite specifications in one theme, and the files they are written to.

A figure is a function from values to a specification, a plain dict; nothing is imported to make one. `save` writes it
to a file; vl-convert (the extra `plot`) draws it.
"""

from .files import EMBED, KINDS, chart_bundle, check_plot, page, save, svg
from .memory import memory
from .next_tokens import next_tokens
from .scaling import law_fit, loss_surface
from .shots import shots
from .spec import MIME, Spec, mime_bundle, themed
from .sweep import sweep
from .theme import css, vega_config
from .training import context_study, loss_curves

__all__ = [
    "EMBED",
    "KINDS",
    "MIME",
    "Spec",
    "chart_bundle",
    "check_plot",
    "context_study",
    "css",
    "law_fit",
    "loss_curves",
    "loss_surface",
    "memory",
    "mime_bundle",
    "next_tokens",
    "page",
    "save",
    "shots",
    "svg",
    "sweep",
    "themed",
    "vega_config",
]
