"""What a user names as a task, as one or more forms of it: a file of rows, a task file, or a task of nextword's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..base import UsageError, read_text
from ..base.errors import closest
from .reading import SUFFIXES
from .shipped import shipped_path, shipped_tasks
from .table import TableForm, TableSettings, table_task
from .task import Item, Task
from .template import ANSWER, SEPARATOR, Template

TASK_FILES = (".yaml", ".yml")


@dataclass(frozen=True)
class Templates:
    """Forms that a user gives, by name, and how they are filled."""

    sources: dict[str, str]
    separator: str | None = None
    description: str | None = None


def read_templates(given: Sequence[str]) -> dict[str, str]:
    """Template files by their names, or template texts, in which \\n is a newline.

    Raises UsageError for a file that cannot be read, and for two of one name.
    """
    found: dict[str, str] = {}
    for text in given:
        path = Path(text)
        if "{" in text:
            name, source = f"template {len(found) + 1}" if len(given) > 1 else "template", text.replace("\\n", "\n")
        else:
            try:
                name, source = path.stem, read_text(path, 1 << 20).removesuffix("\n")
            except (OSError, UnicodeDecodeError) as error:
                raise UsageError(
                    f"template {text!r} is no file that can be read ({error}), and no text with gaps such as {{input}}"
                ) from None
        if name in found:
            raise UsageError(f"two templates are called {name!r}; rename a file")
        found[name] = source
    return found


def open_task(name: str, templates: Templates, table: TableSettings | None = None) -> dict[str, Task]:
    """The task's forms by name. Raises UsageError for an unknown name, and whatever reading it does.

    A file of rows needs a template (in `templates`; `table` says the rest); a task file has its own form, which given
    templates replace.
    """
    path = Path(name)
    if path.suffix in SUFFIXES:
        if not templates.sources:
            raise UsageError(
                f"{path}: how do its rows become prompts? Give --template 'Review: {{text}}\\nSentiment: {{label}}',"
                " with columns in braces"
            )
        settings = table or TableSettings("")
        return {
            form: table_task(path, replace(settings, template=source)) for form, source in templates.sources.items()
        }
    task = _task_file(name, path)
    if not templates.sources:
        return {task.name: task}
    return {form: with_template(task, source, templates) for form, source in templates.sources.items()}


def _task_file(name: str, path: Path) -> Task:
    from .harness import load_harness_task

    if path.suffix in TASK_FILES:
        if not path.is_file():
            raise UsageError(f"{path}: there is no such file")
        return load_harness_task(path)
    if name not in shipped_tasks():
        raise UsageError(
            f"there is no task {name!r}.{closest(name, shipped_tasks())} A task is a .yaml file, rows in"
            f" {', '.join(SUFFIXES)}, or one of: {', '.join(shipped_tasks())}"
        )
    return load_harness_task(shipped_path(name))


def with_template(task: Task, source: str, templates: Templates) -> Task:
    """The task asked in another form. Its template has the task's columns, and {output} for the answer.

    Raises UsageError where choices differ from item to item: they cannot be one template's labels.
    """
    labels = tuple(task.form.choices(task.items[0].values))
    if any(tuple(task.form.choices(item.values)) != labels for item in task.items):
        raise UsageError(f"{task.name}: its choices differ from item to item, and --template has one set of labels")
    template = Template.parse(source)
    for column in set(template.names) - {ANSWER}:
        if column not in task.items[0].values:
            names = list(task.items[0].values)
            raise UsageError(
                f"the template asks for {{{column}}}.{closest(column, names)} There is: {', '.join(names)}"
            )
    separator = SEPARATOR if templates.separator is None else templates.separator
    form = TableForm(template, ANSWER, labels, {}, separator, templates.description or "")
    return replace(
        task, form=form, items=tuple(_answered(task, item) for item in task.items),
        pool=tuple(_answered(task, item) for item in task.pool), harness={},
    )  # fmt: skip


def _answered(task: Task, item: Item) -> Item:
    """The item with its answer as a column."""
    gold, choices = task.form.gold(item.values), task.form.choices(item.values)
    first = gold[0] if isinstance(gold, list | tuple) else gold
    return replace(item, values={**item.values, ANSWER: choices[first] if isinstance(first, int) else str(first)})
