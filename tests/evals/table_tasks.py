"""Tasks of tables, for tests of everything that is done with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nextword.evals.task import Task
from nextword.evals.task_loader import TaskOptions, open_task


def table_task(path: Path, template: str, **options: Any) -> Task:
    """The task of a table under one template."""
    return open_task(str(path), {"template": template}, TaskOptions(**options))["template"]
