"""A task by its name, with one or more forms: a table of rows, a task file, or a built-in task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..base import UsageError, read_text
from ..base.errors import closest
from .checking import checked, warnings_of
from .harness_form import HarnessForm
from .jinja import literal
from .reading import SUFFIXES
from .shipped import shipped_path, shipped_tasks
from .table import WRITTEN, TableForm, TableSettings, table_task, words_of
from .task import Form, Row, Task
from .template import ANSWER, SEPARATOR, Template

TASK_FILES = (".yaml", ".yml")


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
                    f"template {text!r} is neither a readable file ({error}) nor a text with gaps such as {{input}}"
                ) from None
        if name in found:
            raise UsageError(f"two templates have the name {name!r}; rename a file")
        found[name] = source
    return found


def open_task(name: str, templates: Mapping[str, str], settings: TableSettings | None = None) -> dict[str, Task]:
    """The task's forms by name. Raises UsageError for an unknown name, and whatever reading it does.

    A file of rows needs a template (in `templates`, by name); a task file has its own form, which given templates
    replace. `settings` says the rest; what has no meaning for this task is refused by its option's name.
    """
    path, settings = Path(name), settings or TableSettings()
    is_table = path.suffix in SUFFIXES
    if settings.compat:
        _check_unchanged(name, [*["--template"] * bool(templates), *settings.given], is_table)
    if is_table:
        if not templates:
            raise UsageError(
                f"{path}: a table needs a template, such as --template 'Review: {{text}}\\nSentiment: {{label}}',"
                " with column names in braces"
            )
        forms = {form: table_task(path, replace(settings, template=source)) for form, source in templates.items()}
        return _of_the_same_rows(forms)
    if settings.answer is not None:
        raise UsageError(f"--answer is for tables: in {name}, doc_to_target gives the answer")
    task = _task_file(name, path, settings)
    task = _freed(checked(_relabelled(_described(task, settings), settings), settings), settings)
    if not templates:
        return {task.name: replace(task, warnings=(*task.warnings, *warnings_of(task, not settings.compat)))}
    return _of_the_same_rows({form: with_template(task, source, settings) for form, source in templates.items()})


def _of_the_same_rows(forms: Mapping[str, Task]) -> dict[str, Task]:
    """The forms with the rows that all of them can use, so that all are scored on the same items."""
    common = set.intersection(*({item.place for item in (*task.items, *task.pool)} for task in forms.values()))
    return {
        name: replace(
            task,
            items=tuple(item for item in task.items if item.place in common),
            pool=tuple(item for item in task.pool if item.place in common),
        )
        for name, task in forms.items()
    }


def _check_unchanged(name: str, given: Sequence[str], is_table: bool) -> None:
    if is_table:
        raise UsageError(f"--compat lm-eval runs task files (.yaml) as lm-evaluation-harness does; {name} is a table")
    if given:
        raise UsageError(
            f"--compat lm-eval runs {name} as lm-evaluation-harness does, and {' and '.join(given)} would change that."
            " Leave out one or the other"
        )


def _task_file(name: str, path: Path, settings: TableSettings) -> Task:
    from .harness import load_harness_task

    if path.suffix in TASK_FILES:
        if not path.is_file():
            raise UsageError(f"{path}: no such file")
        task = load_harness_task(path, settings)
    elif name in shipped_tasks():
        task = load_harness_task(shipped_path(name), settings)
    else:
        raise UsageError(
            f"there is no task {name!r}.{closest(name, shipped_tasks())} A task is a .yaml file, a table ("
            f"{', '.join(SUFFIXES)}), or one of: {', '.join(shipped_tasks())}"
        )
    refused = [each for each in settings.given if each not in ("--group", "--skip-bad")]
    if task.output == "loglikelihood_rolling" and refused:
        raise UsageError(f"{task.name} measures the likelihood of whole texts; {refused[0]} does not apply to it")
    return task


def _described(task: Task, settings: TableSettings) -> Task:
    """The task with another description."""
    if settings.description is None:
        return task
    said = settings.description
    form = replace(_harness_form(task), said=said)
    written = literal(said) if "{" in said or said in form.columns else said  # lm-evaluation-harness fills it
    return replace(task, form=form, harness={**task.harness, "description": written})


def with_length(task: Task, most: int) -> Task:
    """The task with answers of at most `most` tokens, as its file would say it."""
    from .harness import OF_LENGTH

    harness = task.harness
    if harness and task.output == "generate_until":
        given = {key: value for key, value in (harness.get("generation_kwargs") or {}).items() if key not in OF_LENGTH}
        harness = {**harness, "generation_kwargs": {**given, "max_gen_toks": most}}
    return replace(task, generation=replace(task.generation, max_tokens=most), harness=harness)


def _relabelled(task: Task, settings: TableSettings) -> Task:
    """The task with other words for its choices. Raises UsageError where they are not one set."""
    if not settings.labels:
        return task
    form = _harness_form(task)
    if task.output != "multiple_choice":
        raise UsageError(f"--labels: {task.name} has no choices")
    if form.asks_of_choices(task.items[0].values):
        raise UsageError(f"--labels: the choices of {task.name} are whole questions, not answers")
    choices = _one_set(task, "and --labels names one set of choices")
    if any(form.shot_choices(item.values) != choices for item in task.pool):
        raise UsageError(f"--labels: the shots of {task.name} have choices of their own")
    words = words_of(settings.labels, choices, f"the choices of {task.name}")
    if unnamed := [choice for choice in choices if choice not in words]:
        raise UsageError(f"--labels does not name {unnamed[0]!r}, a choice of {task.name}; add it as it is")
    form = replace(form, words=words)
    return replace(task, form=form, harness={**task.harness, "doc_to_choice": [words[choice] for choice in choices]})


def _freed(task: Task, settings: TableSettings) -> Task:
    """The task with its answer generated by the model; unchanged if it already is."""
    if not settings.free or task.output == "generate_until":
        return task
    form = _harness_form(task)
    if task.output == "multiple_choice" and form.asks_of_choices(task.items[0].values):
        raise UsageError(f"--free: the choices of {task.name} are whole questions; there is no answer to generate")
    replaced = ("generation_kwargs", "metric_list", "filter_list", "repeats")
    harness = {key: value for key, value in task.harness.items() if key not in replaced}
    return replace(
        task, form=replace(form, output="generate_until", bare=True), generation=settings.generation,
        harness={**harness, "output_type": "generate_until"}, **WRITTEN,
    )  # fmt: skip


def _harness_form(task: Task) -> HarnessForm:
    assert isinstance(task.form, HarnessForm)  # all task files have it
    return task.form


def _one_set(task: Task, why: str) -> tuple[str, ...]:
    """The choices that all items have. Raises UsageError where they differ."""
    choices = tuple(task.form.choices(task.items[0].values))
    for item in task.items:
        if tuple(task.form.choices(item.values)) != choices:
            raise UsageError(f"{task.name}: its choices differ from item to item, {why}")
    return choices


@dataclass(frozen=True)
class OverTaskForm(TableForm):
    """A template over a task file: its own form says what is right, and how that is called."""

    own: Form = field(kw_only=True)

    def gold(self, row: Row) -> int | str | Sequence[int] | Sequence[str]:
        """That of the task's own form."""
        return self.own.gold(row)

    def target(self, row: Row) -> Any:
        """That of the task's own form."""
        return self.own.target(row)

    def with_answer(self, row: Row, choice: int) -> Row:
        """The row with another choice, for the task's own form."""
        return self.own.with_answer(row, choice)

    def _answer(self, row: Row) -> str:
        gold = self.own.gold(row)
        first = gold if isinstance(gold, int | str) else gold[0]
        return self.labels[first] if isinstance(first, int) else first


def with_template(task: Task, source: str, settings: TableSettings | None = None) -> Task:
    """The task asked in another form. Its template has the task's columns, and {output} for the answer.

    Raises UsageError where choices differ from item to item: they cannot be one template's labels.
    """
    settings = settings or TableSettings()
    if task.output not in ("multiple_choice", "generate_until"):
        raise UsageError(
            f"--template needs a choice or a generated answer; {task.name} measures how likely a text is"
            + (", unless --free is given" if task.output == "loglikelihood" else "")
        )
    labels = _one_set(task, "and --template has one set of labels")
    template = Template.parse(source)
    for column in set(template.names) - {ANSWER}:
        if column not in task.items[0].values:
            names = list(task.items[0].values)
            raise UsageError(
                f"the template asks for {{{column}}}.{closest(column, names)} There is: {', '.join(names)}"
            )
    separator = SEPARATOR if settings.separator is None else settings.separator
    form = OverTaskForm(template, ANSWER, labels, {}, separator, settings.description or "", own=task.form)
    made = checked(replace(task, form=form, harness={}), settings)
    return replace(made, warnings=(*task.warnings, *warnings_of(made)))
