"""Rope frequencies: the formula, and the same bits on every processor."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from numpy._core._multiarray_umath import __cpu_dispatch__  # type: ignore[attr-defined]

from nextword.rope import frequencies
from nextword.spec import RopeSpec

SPECS = [RopeSpec(), RopeSpec(theta=500_000.0), RopeSpec(theta=1e6, fraction=0.5)]
PRINT = """
from nextword.rope import frequencies
from nextword.spec import RopeSpec
for spec in [RopeSpec(), RopeSpec(theta=500_000.0), RopeSpec(theta=1e6, fraction=0.5)]:
    print(frequencies(spec, 128).tobytes().hex())
"""


@pytest.mark.parametrize("spec", SPECS)
def test_frequencies_are_exact_powers_rounded(spec: RopeSpec) -> None:
    width = int(128 * spec.fraction)
    exact = [spec.theta ** -(2 * pair / width) for pair in range(width // 2)]
    found = frequencies(spec, 128)
    assert found.dtype == np.float32
    assert np.abs(found / exact - 1).max() < 2e-7


def test_frequencies_do_not_depend_on_the_processors_instructions() -> None:
    """NumPy's loops for AVX-512 and AVX2 round float32 powers differently."""
    plain = os.environ | {"NPY_DISABLE_CPU_FEATURES": " ".join(__cpu_dispatch__)}
    done = subprocess.run([sys.executable, "-c", PRINT], capture_output=True, text=True, env=plain, check=True)
    assert done.stdout.split() == [frequencies(spec, 128).tobytes().hex() for spec in SPECS]
