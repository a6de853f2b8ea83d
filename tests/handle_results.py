"""What a request gave, to be compared with what it gave in other company."""

from __future__ import annotations

from typing import Any

from nextword.engine import CompletionHandle
from nextword.engine.handles import Handle, LogitsHandle, ScoreHandle


def result(handle: Handle) -> Any:
    """All that a request gives, to the last bit."""
    if isinstance(handle, CompletionHandle):
        return handle.tokens
    if isinstance(handle, ScoreHandle):
        return handle.scores
    assert isinstance(handle, LogitsHandle)
    return handle.logits.tolist()
