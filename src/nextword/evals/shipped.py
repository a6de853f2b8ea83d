"""The tasks that come with nextword: small data with clear licences, and a form for each (tasks/SOURCES.md)."""

from __future__ import annotations

from pathlib import Path

from ..base import UsageError
from ..base.errors import closest

TASKS = Path(__file__).parent / "tasks"


def shipped_tasks() -> dict[str, str]:
    """Each shipped task's name and what it asks, in one line."""
    import yaml

    forms = (yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted(TASKS.glob("*.yaml")))
    return {form["task"]: form["metadata"]["summary"] for form in forms}


def shipped_path(name: str) -> Path:
    """The file of a shipped task. Raises UsageError for a name that is not one, with those near it."""
    names = sorted(path.stem for path in TASKS.glob("*.yaml"))
    if name not in names:
        raise UsageError(f"task {name!r} is not one that nextword ships.{closest(name, names)} All: {', '.join(names)}")
    return TASKS / f"{name}.yaml"
