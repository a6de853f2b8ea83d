"""Lets the tests of this folder import its shapes and the oracles."""

import sys
from pathlib import Path

sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[1] / "oracles")]
