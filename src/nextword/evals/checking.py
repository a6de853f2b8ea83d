"""What may be wrong with a task's rows, form and shots: refused, skipped, or reported."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..base import UsageError, printable
from .reading import SUFFIXES
from .task import Form, Item, Row, Task

if TYPE_CHECKING:
    from .table import TableForm, TableSettings

_LONGEST = 60  # characters shown of an answer, and of a choice
_MOST_SHOWN = 8  # choices


def checked(task: Task, settings: TableSettings) -> Task:
    """The task without invalid rows if these may be skipped; else they are refused.

    lm-evaluation-harness scores an answer that is none of the choices 0: in its mode we do the same, with a warning.
    """
    if settings.compat:
        return _as_the_harness(task)
    form, pool = task.form, list(task.pool)
    items, notes = sound_rows(form, task.items, _where(task, task.items, settings), settings.skip_bad)
    if _takes_shots(task):
        as_scored = getattr(form, "shots_answer_alike", True)
        where = _where(task, pool, settings)
        pool, more = sound_rows(form, pool, where, settings.skip_bad, shots=True, answers=as_scored)
        notes = tuple(dict.fromkeys((*notes, *more)))  # once where the pool is what is scored
    return replace(task, items=tuple(items), pool=tuple(pool), notes=(*task.notes, *notes))


def _as_the_harness(task: Task) -> Task:
    form = task.form
    for shot in task.pool[: int(_takes_shots(task))]:  # report a fault of the form before a model is loaded
        if fault := _fault(form, shot.values, shots=True, answers=False):
            raise UsageError(f"{task.source}, {shot.split}, row 1: {fault}")
    chosen = task.items if task.output == "multiple_choice" else ()
    wrong = sum(bool(_wrong_answer(form, item.values)) for item in chosen)
    told = (
        f"{wrong} of {len(task.items)} items have an answer that is none of their choices: lm-evaluation-harness"
        " scores them 0, and so does --compat lm-eval"
    )
    return replace(task, warnings=(*task.warnings, *[told] * bool(wrong)))


def _takes_shots(task: Task) -> bool:
    return bool(task.pool) and task.output != "loglikelihood_rolling"


def _where(task: Task, items: Sequence[Item], settings: TableSettings) -> str:
    """The file that the items come from."""
    if items and items[0].split == "shots" and settings.shots_from is not None:
        return str(settings.shots_from)
    is_table = Path(task.source).suffix in SUFFIXES
    return task.source if is_table or not items else f"{task.source}, {items[0].split}"


def sound_rows(
    form: Form, items: Sequence[Item], where: str, skip_bad: bool, shots: bool = False, answers: bool = True
) -> tuple[list[Item], tuple[str, ...]]:
    """The items that can be scored (or used as `shots`), and a note on those skipped.

    With `answers` a row must have an answer, and that must be one of its choices. Raises UsageError for the first bad
    row of the file `where`, unless `skip_bad`, and where no row is left.
    """
    bad = [(item, fault) for item in items if (fault := _fault(form, item.values, shots, answers))]
    if not bad:
        return list(items), ()
    first = f"row {bad[0][0].index + 1}: {bad[0][1]}"
    if skip_bad and len(bad) < len(items):
        left = {item.place for item, _ in bad}
        note = f"{where}: {len(bad)} of {len(items)} rows are skipped. The first is {first}"
        return [item for item in items if item.place not in left], (note,)
    many = f" ({len(bad)} of {len(items)} rows are affected)" if len(bad) > 1 else ""
    fix = "No row would be left" if len(bad) == len(items) else "Fix the rows, or skip them with --skip-bad"
    raise UsageError(f"{where}, {first}{many}. {fix}")


def _fault(form: Form, row: Row, shots: bool, answers: bool) -> str:
    """Why a row cannot be scored (or be a shot); '' if it can."""
    try:
        if answers and (fault := _wrong_answer(form, row)):
            return fault
        form.shot(row) if shots else form.asks(row)
    except UsageError as error:
        return str(error)
    except (KeyError, TypeError, AttributeError) as error:
        return f"it cannot be rendered ({type(error).__name__}: {error})"
    return ""


def _wrong_answer(form: Form, row: Row) -> str:
    choices, gold, target = form.choices(row), form.gold(row), form.target(row)
    if target is None:
        return "it has no answer"
    right = gold if isinstance(gold, list | tuple) else [gold]
    if not choices or any(isinstance(each, int) and 0 <= each < len(choices) for each in right):
        return ""
    named = " that --labels names" if getattr(form, "words", None) else ""
    return f"the answer {_short(target)} is none of the choices{named}: {_listed(choices)}"


def _short(value: Any) -> str:
    return printable(repr(value), _LONGEST)


def _listed(choices: Sequence[str]) -> str:
    return ", ".join([*map(_short, choices[:_MOST_SHOWN]), *["..."] * (len(choices) > _MOST_SHOWN)])


def warnings_of(task: Task, refuse: bool = True) -> tuple[str, ...]:
    """What in its form and choices is probably a mistake.

    Raises UsageError, if `refuse`, where two choices are the same in every item.
    """
    if task.output == "loglikelihood_rolling":
        return ()
    return (*_of_template(task), *_of_spaces(task), *_of_choices(task, refuse))


def _of_template(task: Task) -> list[str]:
    """A newline at the end of a template, and one before its answer."""
    template = getattr(task.form, "template", None)
    if template is None:
        return []
    form: TableForm = task.form  # type: ignore[assignment]
    found = list[str]()
    shown = _short(template.source[-40:])
    if template.parts[-1].endswith("\n"):
        between = template.parts[-1] + form.separator
        found.append(
            f"the template ends in a newline ({shown}), so shots are separated by {_short(between)}. Remove it: the"
            " separator is added anyway"
        )
    if template.before.endswith("\n"):
        found.append(
            f"the template has a newline right before its answer ({shown}), so prompts end in a newline. Unless this is"
            " intended, put the answer after a word, as in 'Answer: {output}'"
        )
    return found


def _of_spaces(task: Task) -> list[str]:
    double = sum(_double_space(task.form, item.values) for item in task.items)
    if not double:
        return []
    return [
        f"{double} of {len(task.items)} items have two spaces before an answer: the prompt's delimiter ends in a space"
        " and the answer begins with one, or the template has two. This is rare in training text: remove one"
    ]


def _double_space(form: Form, row: Row) -> bool:
    """Whether two spaces or more stand between a question and one of its answers."""
    asked = list(form.asks(row))
    if not asked[0][1]:  # the model writes
        answer = form.gold(row)
        first = answer if isinstance(answer, str) else next(iter(answer), "")  # type: ignore[arg-type]
        asked = [(asked[0][0], f"{form.delimiter}{first}")]
    return any(_spaces(question[::-1]) + _spaces(after) > 1 for question, after in asked)


def _spaces(text: str) -> int:
    return len(text) - len(text.lstrip(" "))


def _of_choices(task: Task, refuse: bool) -> list[str]:
    """Choices that are the same, or differ only in case and spaces."""
    same = alike = 0
    for item in task.items:
        choices = list(task.form.choices(item.values))
        different = len(set(choices))
        same += different < len(choices)
        alike += len({" ".join(choice.split()).casefold() for choice in choices}) < different
    if same == len(task.items) and refuse:
        shown = _listed(task.form.choices(task.items[0].values))
        raise UsageError(f"{task.name}: two choices are the same in every item ({shown}). Name each choice once")
    found = []
    if same:
        found.append(f"{same} of {len(task.items)} items have two choices that are the same; only one can be right")
    if alike:
        found.append(f"{alike} of {len(task.items)} items have choices that differ only in case or spaces")
    return found


def warnings_of_copies(task: Task, items: Sequence[Item]) -> tuple[str, ...]:
    """How many scored items ask the same as another, in no group with it: they count as independent, and are not."""
    if task.output == "loglikelihood_rolling":
        asked = [str(task.form.target(item.values)) for item in items]
    else:
        asked = [str(list(task.form.asks(item.values))) for item in items]
    units = dict[str, set[str]]()
    for text, item in zip(asked, items, strict=True):
        units.setdefault(text, set()).add(str(item.place) if item.group is None else item.group)
    copies = sum(len(units[text]) > 1 for text in asked)
    if not copies:
        return ()
    return (
        f"{copies} of {len(items)} items ask the same as another, but count as independent: intervals are too narrow."
        " Leave out the copies, or give --group a column whose value they share",
    )


def warnings_of_shots(prompts: Iterable[tuple[Item, Sequence[Item]]]) -> tuple[str, ...]:
    """Warnings where the shots of `prompts` (pairs of item and shots) leak the item itself or its group."""
    own, related = set(), set()
    for item, shots in prompts:
        if any(shot.place == item.place or shot.values == item.values for shot in shots):
            own.add(item.place)
        if item.group is not None and any(shot.group == item.group for shot in shots):
            related.add(item.place)
    found = []
    if own:
        found.append(
            f"{len(own)} items are, with their answers, among their own shots. Take shots from other rows: name"
            " a fewshot_split in the task file, or use --shots-from without --compat"
        )
    if related - own:
        found.append(
            f"{len(related)} items have a shot of their own group, which may help more than other shots would. Take"
            " shots from other groups with --shots-from"
        )
    return tuple(found)
