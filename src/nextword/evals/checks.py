"""Checks of a task's rows, template and shots: errors, skipped rows and warnings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ..base import UsageError, printable
from ..text.jinja import TemplateStopped
from .task import Item, PromptFormat, Row, Task

_LONGEST = 60  # characters shown of an answer or a choice
_MOST_SHOWN = 8  # choices


def valid_items(
    format: PromptFormat, items: Sequence[Item], file: str, skip_invalid: bool, shots: bool = False
) -> tuple[tuple[Item, ...], tuple[str, ...]]:
    """The items that can be scored (or used as `shots`), and a note on those skipped.

    Raises UsageError for the first invalid row of `file`, unless `skip_invalid`, and if no row is left.
    """
    invalid = {item.row_id: (item, fault) for item in items if (fault := _fault(format, item.values, shots))}
    if not invalid:
        return tuple(items), ()
    item, fault = next(iter(invalid.values()))
    first = f"row {item.index + 1}: {fault}"
    if skip_invalid and len(invalid) < len(items):
        note = f"{file}: {len(invalid)} of {len(items)} rows are skipped. The first is {first}"
        return tuple(item for item in items if item.row_id not in invalid), (note,)
    many = f" ({len(invalid)} of {len(items)} rows are affected)" if len(invalid) > 1 else ""
    fix = "No row would be left" if len(invalid) == len(items) else "Fix the rows, or skip them with --skip-invalid"
    raise UsageError(f"{file}, {first}{many}. {fix}")


def _fault(format: PromptFormat, row: Row, shots: bool) -> str:
    """Why a row cannot be scored (or be a shot); '' if it is valid."""
    try:
        if format.gold(row) == -1:
            named = " that --labels names" if format.words else ""
            return (
                f"the answer {_short(row[format.target])} is none of the choices{named}: {_listed(format.choices(row))}"
            )
        format.example(row) if shots else format.questions(row)
    except TemplateStopped:
        raise  # every row would take as long
    except UsageError as error:
        return str(error)
    return ""


def _short(value: Any) -> str:
    return printable(repr(value), _LONGEST)


def _listed(choices: Sequence[str]) -> str:
    return ", ".join([*map(_short, choices[:_MOST_SHOWN]), *["..."] * (len(choices) > _MOST_SHOWN)])


def warnings_of(task: Task) -> tuple[str, ...]:
    """Probable mistakes in a task's template and choices.

    Raises UsageError if two choices are the same in every item.
    """
    return (*_of_template(task.format), *_of_spaces(task), *_of_choices(task))


def _of_template(format: PromptFormat) -> list[str]:
    """Warnings about a newline at the end of a template, or before its answer."""
    template, warnings = format.template, list[str]()
    shown = _short(template.source[-40:])
    if template.parts[-1].endswith("\n"):
        between = template.parts[-1] + format.separator
        warnings.append(
            f"the template ends in a newline ({shown}), so shots are separated by {_short(between)}. Remove it: the"
            " separator is added anyway"
        )
    if template.before.endswith("\n"):
        warnings.append(
            f"the template has a newline right before its answer ({shown}), so prompts end in a newline. Unless this is"
            " intended, put the answer after a word, as in 'Answer: {output}'"
        )
    return warnings


def _of_spaces(task: Task) -> list[str]:
    double = sum(_double_space(task.format, item.values) for item in task.items)
    if not double:
        return []
    return [
        f"{double} of {len(task.items)} items have two spaces before an answer: the prompt's delimiter ends in a space"
        " and the answer begins with one, or the template has two. This is rare in training text: remove one"
    ]


def _double_space(format: PromptFormat, row: Row) -> bool:
    """Whether two or more spaces are between a question and one of its answers."""
    questions = format.questions(row)
    if format.generates:
        questions = [(questions[0][0], format.delimiter)]
    return any(_spaces(question[::-1]) + _spaces(after) > 1 for question, after in questions)


def _spaces(text: str) -> int:
    return len(text) - len(text.lstrip(" "))


def _of_choices(task: Task) -> list[str]:
    """Warnings about choices that are the same, or differ only in case and spaces."""
    same = alike = 0
    for item in task.items:
        choices = task.format.choices(item.values)
        different = len(set(choices))
        same += different < len(choices)
        alike += len({" ".join(choice.split()).casefold() for choice in choices}) < different
    if same == len(task.items):
        shown = _listed(task.format.choices(task.items[0].values))
        raise UsageError(f"{task.name}: two choices are the same in every item ({shown}). Name each choice once")
    warnings = []
    if same:
        warnings.append(f"{same} of {len(task.items)} items have two choices that are the same; only one can be right")
    if alike:
        warnings.append(f"{alike} of {len(task.items)} items have choices that differ only in case or spaces")
    return warnings


def warnings_of_copies(task: Task, items: Sequence[Item]) -> tuple[str, ...]:
    """A warning about scored items with the same text as another outside their group: they are not independent."""
    questions = [str(task.format.questions(item.values)) for item in items]
    units = dict[str, set[str]]()
    for text, item in zip(questions, items, strict=True):
        units.setdefault(text, set()).add(str(item.row_id) if item.group is None else item.group)
    copies = sum(len(units[text]) > 1 for text in questions)
    if not copies:
        return ()
    return (
        f"{copies} of {len(items)} items are copies of another, but count as independent: intervals are too narrow."
        " Remove the copies, or give --group a column whose value they share",
    )


def warnings_of_shots(prompts: Iterable[tuple[Item, Sequence[Item]]]) -> tuple[str, ...]:
    """Warnings where the shots of `prompts` (pairs of item and shots) leak the item itself or its group."""
    own, related = set(), set()
    for item, shots in prompts:
        if any(shot.row_id == item.row_id or shot.values == item.values for shot in shots):
            own.add(item.row_id)
        if item.group is not None and any(shot.group == item.group for shot in shots):
            related.add(item.row_id)
    warnings = []
    if own:
        warnings.append(
            f"{len(own)} items are among their own shots, with their answers. Take shots from other rows with"
            " --shots-from"
        )
    if related - own:
        warnings.append(
            f"{len(related)} items have a shot of their own group, which may help more than other shots would. Take"
            " shots from other groups with --shots-from"
        )
    return tuple(warnings)
