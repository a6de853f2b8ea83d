"""The ways to sample on this machine: numpy, and the compiled kernels on each instruction set."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nextword import native

WAYS = ("numpy", *native.LEVELS)


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Sample this way; one that is not to be had here is left out."""
    if request.param == "numpy":
        monkeypatch.setattr("nextword.native.available", lambda: False)
        yield request.param
        return
    if not native.available():
        pytest.skip("the compiled kernels were not built")
    native.limit_level(request.param)
    try:
        if native.level() != request.param:
            pytest.skip(f"this processor has no {request.param}")
        yield request.param
    finally:
        native.limit_level(None)
