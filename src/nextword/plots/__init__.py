"""Figures as data: Vega-Lite specifications in one theme, and the files they are written to.

A figure is a function from values to a specification, a plain dict, in a module of this package; nothing is imported to
make one. `save` writes it to a file; vl-convert (the extra `plot`) draws it.
"""

from .files import EMBED, KINDS, chart_bundle, check_plot, page, save, svg
from .spec import MIME, Spec, mime_bundle, themed
from .theme import css, vega_config

__all__ = [
    "EMBED",
    "KINDS",
    "MIME",
    "Spec",
    "chart_bundle",
    "check_plot",
    "css",
    "mime_bundle",
    "page",
    "save",
    "svg",
    "themed",
    "vega_config",
]
