"""Evaluations out of the store, as they were when they were put in."""

from __future__ import annotations

from ..base import UsageError
from ..base.fields import rebuilt
from .store import Kept
from .summary import Result


def result_of(kept: Kept) -> Result:
    """The result of a kept evaluation. Raises UsageError for one that an older nextword kept in another form."""
    try:
        found = rebuilt(Result, kept.result)
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"{kept.name!r} was kept by another version of nextword, which this one cannot show ({error}). Run the same"
            " evaluation again: its answers are in the store"
        ) from None
    assert isinstance(found, Result)
    return found
