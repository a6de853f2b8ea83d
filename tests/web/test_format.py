"""Numbers in the page, formatted in node, read as the command line prints them."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from pathlib import Path

import pytest

import nextword.serve
from nextword.base import units

FORMAT = Path(nextword.serve.__file__).parent / "web" / "format.js"
UNITS = ("bytes", "FLOPs", "s", "$", "parameters", "tokens", "tokens/s", "h", "nats/token")
EDGES = (
    0.0,
    1.0,
    0.5,
    9.994,
    9.996,
    99.94,
    99.96,
    999.4,
    999.6,
    1000.0,
    9999.4,
    9999.6,
    1e15,
    59.9,
    119.9,
    86400.0,
    1e7,
)
SCRIPT = """
import { quantity } from "%s";
const cases = JSON.parse(process.argv[1]);
console.log(JSON.stringify(cases.map(([value, unit]) => quantity(value, unit))));
"""


def test_numbers_read_as_the_command_line_prints_them() -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    draw = random.Random(0)
    values = [
        *EDGES,
        *(10 ** draw.uniform(-7, 25) for _ in range(150)),
        *(draw.randrange(10**6) + 0.3 for _ in range(50)),
    ]
    cases = [(value, unit) for value in values for unit in UNITS if unit != "s" or value < 1e20]
    command = [node, "--input-type=module", "-e", SCRIPT % FORMAT.as_uri(), json.dumps(cases)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    expected = [units.format_quantity(value, unit) for value, unit in cases]
    differing = [
        (case, own, page)
        for case, own, page in zip(cases, expected, json.loads(run.stdout), strict=True)
        if own != page
    ]
    assert differing == []
