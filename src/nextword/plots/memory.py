"""Memory: stacked bars of parts against the lines of devices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .spec import Spec, field, figure, lookup, named, numbers

Bar = tuple[str, Mapping[str, float]]  # its name, and bytes by part
_WIDTH, _STEP = 640, 46
_PIXELS = 6.1  # of a character of a device's name
_LINE = 14  # of device names
_NAMES = 4  # of one size
_AXIS = "GB (1e9 bytes)"
_COLOURS: dict[str, tuple[str, float]] = {  # of the theme, and how full; related parts share a colour
    "weights": ("blue", 1.0),
    "frozen weights": ("blue", 0.25),
    "16-bit copies of weights": ("blue", 0.55),
    "master weights": ("orange", 1.0),
    "gradients": ("orange", 0.4),
    "optimizer states": ("cyan", 1.0),
    "activations": ("red", 1.0),
    "gathered layers": ("red", 0.35),
    "logits": ("purple", 1.0),
    "key-value cache": ("cyan", 1.0),
    "state": ("cyan", 1.0),
    "working space": ("green", 1.0),
    "fragmentation": ("grey", 0.5),
    "runtime": ("grey", 0.25),
}


def memory(bars: Sequence[Bar], devices: Mapping[str, float], title: str) -> Spec:
    """Bars of bytes by part, stacked in order, against a line for each size of device, in bytes."""
    known = list(_COLOURS)
    parts = sorted(
        dict.fromkeys(part for _, own in bars for part in own),
        key=lambda part: known.index(part) if part in known else len(known),
    )
    rows = [
        {"bar": number, "part": part, "order": parts.index(part), "gb": value / 1e9}
        for number, (_, own) in enumerate(bars)
        for part, value in own.items()
    ]
    texts = _device_names(devices)
    widest = max([sum(own.values()) / 1e9 for _, own in bars] + [_reach(size, text) for size, text in texts])
    domain = [0, 1.03 * widest or 1.0]
    return figure(
        title,
        params=[lookup("bars", [name for name, _ in bars])],
        width=_WIDTH,
        height={"step": _STEP},
        layer=[_stack(rows, parts, domain, len(bars) > 1), *_lines(texts, domain)],
    ) | {"padding": {"left": 12, "right": 24, "top": 12, "bottom": 12}}


def _stack(rows: Sequence[dict[str, object]], parts: Sequence[str], domain: Sequence[float], labelled: bool) -> Spec:
    looks = [_COLOURS.get(part, ("grey", 1.0)) for part in parts]
    colours: Spec = {"domain": list(parts), "range": [named(colour) for colour, _ in looks]}
    legend = {"orient": "bottom", "title": None, "columns": 5, "symbolType": "square"}
    names = {"labelExpr": "split(bars[datum.value], '\\n')", "title": None, "ticks": False, "domain": False,
             "labelPadding": 8, "labelLimit": 320}  # fmt: skip
    opacities = {"type": "ordinal", "domain": list(parts), "range": [full for _, full in looks]}
    part: Spec = {"field": "part", "type": "nominal", "sort": None}
    return {
        "data": numbers(rows),
        "encoding": {
            "y": field("bar", kind="ordinal", axis=names if labelled else None),
            "x": field("gb", _AXIS, stack="zero", scale={"domain": domain, "nice": False}),
            "order": field("order"),
            "tooltip": [field("part", "part", "nominal"), field("gb", "GB", format=",.3f")],
        },
        "layer": [
            {
                "mark": {"type": "bar", "height": {"band": 0.7}},
                "encoding": {
                    "fill": {**part, "scale": colours, "legend": legend},
                    "opacity": {**part, "scale": opacities, "legend": legend},
                },
            },
            {
                "mark": {"type": "bar", "height": {"band": 0.7}, "filled": False, "strokeWidth": 1},
                "encoding": {"stroke": {**part, "scale": colours, "legend": None}},
            },
        ],
    }


def _device_names(devices: Mapping[str, float]) -> list[tuple[float, str]]:
    """The sizes of devices in GB, smallest first, with the names of those that have it."""
    sizes: dict[float, list[str]] = {}
    for name, size in sorted(devices.items(), key=lambda device: device[1]):
        sizes.setdefault(size / 1e9, []).append(name)
    return [
        (size, f"{', '.join(names[:_NAMES])}{', …' * (len(names) > _NAMES)} {size:,.0f} GB")
        for size, names in sizes.items()
    ]


def _reach(size: float, text: str) -> float:
    """Where the axis must end for a name to fit beside its line, in GB."""
    return size * _WIDTH / (_WIDTH - min(_WIDTH / 2, _PIXELS * len(text)))


def _lines(texts: Sequence[tuple[float, str]], domain: Sequence[float]) -> list[Spec]:
    """The lines of devices. A name that would run into the next line stands above that one's name."""
    layers: list[Spec] = []
    taken: list[float] = []  # where the leftmost name of each row begins
    for size, text in reversed(texts):
        at = size / domain[1] * _WIDTH
        end = at + _PIXELS * len(text) + 8
        row = next((row for row in range(len(taken)) if end < min(taken[row:])), len(taken))
        taken[row : row + 1] = [at]
        layers += _line(size, text, row, domain)
    return layers


def _line(size: float, text: str, row: int, domain: Sequence[float]) -> list[Spec]:
    top = -8 - _LINE * row
    data = numbers([{"gb": size, "device": text}])
    x = field("gb", _AXIS, scale={"domain": domain, "nice": False})
    return [
        {
            "data": data,
            "mark": {"type": "rule", "strokeDash": [4, 3], "color": named("ink")},
            "encoding": {"x": x, "y": {"value": top - 5}, "y2": {"value": {"expr": "height"}}},
        },
        {
            "data": data,
            "mark": {"type": "text", "align": "left", "dx": 4},
            "encoding": {"x": x, "y": {"value": top}, "text": field("device", kind="nominal")},
        },
    ]
