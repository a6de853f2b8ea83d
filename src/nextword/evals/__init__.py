"""Templates and shots → prompts → scores → statistics → a report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .template import Prompt, Shot, Template, few_shot, parse_shot

if TYPE_CHECKING:
    from .measuring import evaluate

__all__ = ["Prompt", "Shot", "Template", "evaluate", "few_shot", "parse_shot"]


def __getattr__(name: str) -> Any:
    """`evaluate` brings torch with it, so that it is imported when first asked for."""
    if name == "evaluate":
        from .measuring import evaluate

        return evaluate
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
