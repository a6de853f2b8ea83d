"""Figures as files: SVG, PNG and PDF by vl-convert, self-contained pages, and JSON."""

from __future__ import annotations

import json
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from ..base import RunError, UsageError, atomic_write, check_writable, read_regular, require
from ..base.user_folders import cache_folder
from .spec import Spec, themed
from .theme import Theme, css

KINDS = (".svg", ".png", ".html", ".pdf", ".json")
_SCALE = 2.0  # pixels of a PNG for each of the figure's
_LARGEST_BUNDLE = 8 << 20  # bytes
_VERSION = "6.4"  # of Vega-Lite
# Vega-Embed's options where a page has a strict Content-Security-Policy: no eval, and no style element of its own.
EMBED = {"ast": True, "renderer": "svg", "actions": False, "defaultStyle": False,
         "tooltip": {"disableDefaultStyle": True}}  # fmt: skip
_STYLE = """body { margin: 0; background: var(--background); color: var(--ink); font-family: var(--font); }
#figure { overflow-x: auto; }
#vg-tooltip-element { visibility: hidden; position: fixed; padding: .5em .7em; pointer-events: none; font-size: 12px;
  background: var(--background); border: 1px solid var(--grey); border-radius: 3px; }
#vg-tooltip-element.visible { visibility: visible; }
#vg-tooltip-element td.key { color: var(--grey); text-align: right; padding-right: .5em; }
"""


def check_plot(path: Path | str, what: str = "plot") -> None:
    """Raise UsageError unless a figure can be written to `path`. `what` names the option, such as "--plot"."""
    path = Path(path)
    kind = path.suffix.lower()
    if kind not in KINDS:
        raise UsageError(f"{what} {path}: the name must end in {', '.join(KINDS)}")
    if kind != ".json":
        require("vl_convert", "plots")
    check_writable(path, what)


def save(spec: Spec, path: Path | str, theme: Theme = "light") -> None:
    """Write a figure in the format of the file's extension; .html follows the reader's system, light or dark.

    Raises UsageError for another extension, or without vl-convert, and RunError where the file cannot be written.
    """
    path = Path(path)
    check_plot(path)
    try:
        with atomic_write(path, "wb") as file:
            file.write(_content(spec, path.suffix.lower(), theme))
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error.strerror or error}); the plot was not written") from error


def _content(spec: Spec, kind: str, theme: Theme) -> bytes:
    if kind == ".json":
        return json.dumps(themed(spec, theme), ensure_ascii=False, indent=1, allow_nan=False).encode("utf-8", "replace")
    if kind == ".html":
        return page(spec).encode()
    if kind == ".svg":
        return svg(spec, theme).encode()
    if kind == ".png":
        return bytes(_convert("png", spec, theme, scale=_SCALE))
    return bytes(_convert("pdf", spec, theme))


def svg(spec: Spec, theme: Theme = "light") -> str:
    """The figure as SVG; with the theme "page" it is for embedding in a page that has the colours of `css`."""
    return str(_convert("svg", spec, theme))


def _convert(kind: str, spec: Spec, theme: Theme, **options: Any) -> Any:
    require("vl_convert", "plots")
    import vl_convert

    whole = json.dumps(themed(spec, theme), allow_nan=False)  # as text, so that half a surrogate pair is escaped
    return getattr(vl_convert, f"vegalite_to_{kind}")(whole, vl_version=_VERSION, allowed_base_urls=[], **options)


@cache
def chart_bundle() -> str:
    """JavaScript for pages, about 900 kB, self-contained: defines `vegaEmbed`, `vega` and `vegaLite`.

    Building it takes seconds, so it is kept in the user's cache. Raises UsageError without vl-convert.
    """
    require("vl_convert", "charts in pages")
    from importlib.metadata import version

    import vl_convert

    kept = cache_folder() / f"charts-{version('vl-convert-python')}-{_VERSION}.js"
    with suppress(OSError, UsageError, UnicodeDecodeError):
        return read_regular(kept, _LARGEST_BUNDLE).decode()
    made = str(vl_convert.javascript_bundle(vl_version=_VERSION))  # type: ignore[call-arg]
    with suppress(OSError), atomic_write(kept) as file:
        file.write(made)
    return made


def page(spec: Spec) -> str:
    """A self-contained page with the figure: values as tooltips, and light or dark as the reader's system is."""
    style = css() + _STYLE
    script = f'vegaEmbed("#figure", {script_json(themed(spec, "page"))}, {json.dumps(EMBED)});'
    scripts = (chart_bundle(), script)
    policy = f"default-src 'none'; style-src {hash_source(style)}; script-src {' '.join(map(hash_source, scripts))}"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>nextword</title>\n<style>{style}</style>\n</head>\n"
        f'<body><div id="figure"></div>\n{"".join(f"<script>{text}</script>" for text in scripts)}</body>\n</html>\n'
    )


def script_json(data: Any) -> str:
    """JSON that is safe in a script element: characters special to HTML are escaped."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text.encode("utf-8", "replace").decode()  # half of a surrogate pair has no UTF-8


def hash_source(text: str) -> str:
    """The hash of an inline script or style, as a Content-Security-Policy lists it."""
    import base64  # only here: most commands never need them
    import hashlib

    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
