"""Task files of lm-evaluation-harness (0.4.13), run unchanged where they are data and templates, and no code."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from ..base import UsageError, read_text
from ..base.errors import closest
from . import filters, metrics
from .harness_data import Splits, typed
from .harness_form import Fields, HarnessForm, overridden
from .table import TableSettings, check_group, items_of, read_shots
from .task import Filter, Generation, Item, Metric, Output, Request, Task

SHOT_SEED = 1234  # of the harness's own draws
_LARGEST = 5_000_000  # bytes of a task file
_MOST_INCLUDES = 16
_IGNORED = (
    "task", "task_alias", "tag", "group", "dataset_name", "metadata", "should_decontaminate",
    "doc_to_decontamination_query",
)  # fmt: skip
_USED = (
    "dataset_path", "dataset_kwargs", "training_split", "validation_split", "test_split", "fewshot_split",
    "doc_to_text", "doc_to_target", "doc_to_choice", "description", "target_delimiter", "fewshot_delimiter",
    "fewshot_config", "num_fewshot", "metric_list", "output_type", "generation_kwargs", "repeats", "filter_list",
    "gen_prefix",
)  # fmt: skip
_CODE = {
    "process_docs": "it is Python that rewrites the data; write the data as it should be",
    "process_results": "it is Python that scores; use metric_list and filter_list",
    "custom_dataset": "it is Python that makes the data; write the data to a file",
    "class": "it is a task in Python",
    "doc_to_image": "images are not read",
    "doc_to_audio": "sound is not read",
    "use_prompt": "it fetches a prompt from elsewhere; write it as doc_to_text",
    "unsafe_code": "code from outside is not run",
}
_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("dataset_kwargs", "fewshot_config", "generation_kwargs"), (dict,)),
    **dict.fromkeys(("metric_list", "filter_list"), (list,)),
    **dict.fromkeys(("num_fewshot", "repeats"), (int,)),
    **dict.fromkeys(("training_split", "validation_split", "test_split", "fewshot_split"), (str,)),
    **dict.fromkeys(("description", "target_delimiter", "fewshot_delimiter", "gen_prefix"), (str,)),
    "doc_to_text": (str, int), "doc_to_target": (str, int, list), "doc_to_choice": (str, list, dict),
}  # fmt: skip
_NAMES = {dict: "a mapping", list: "a list", int: "a whole number", str: "a text"}
_OF_SHOTS = ("sampler", "split", "samples", "fewshot_indices", "doc_to_text", "doc_to_target",
             "doc_to_choice", "gen_prefix", "target_delimiter", "fewshot_delimiter")  # fmt: skip
_OF_METRICS = ("metric", "aggregation", "higher_is_better", "hf_evaluate", "weight_by_size")
OF_LENGTH = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # the first there is counts
_SHOT_FIELDS = {
    "doc_to_text": "text", "doc_to_target": "target", "doc_to_choice": "choice", "gen_prefix": "prefix",
    "target_delimiter": "target_delimiter", "fewshot_delimiter": "shot_delimiter",
}  # fmt: skip


def load_harness_task(path: Path, settings: TableSettings | None = None) -> Task:
    """Read a task file and its data, with the separator, the groups and the shots of `settings` in place of its own.

    Raises UsageError for what cannot be run, by name: Python functions, unknown keys, metrics and filters, data that
    is not in local files.
    """
    settings = settings or TableSettings()
    given = read_yaml(path)
    _check_keys(given, path)
    output: Output = given.get("output_type", "generate_until")
    if output not in get_args(Output):
        raise UsageError(f"{path}: output_type {output!r} is not known. There is: {', '.join(get_args(Output))}")
    if settings.separator is not None:
        given = _parted_by(settings.separator, given)
    splits = Splits(given, path, settings.skip_bad)
    scored = given.get("test_split") or given.get("validation_split") or given.get("training_split")
    if not scored:
        raise UsageError(f"{path}: it names no split to score. Say test_split: test")
    config = dict(given.get("fewshot_config") or {})
    if "process_docs" in config:
        raise UsageError(f"{path}: fewshot_config.process_docs is not run: {_CODE['process_docs']}")
    rows = splits.read(scored)
    if settings.shots_from is not None:
        pool_split, pool_rows = "shots", _given_shots(settings.shots_from, splits, scored)
    else:
        pool_split, pool_rows = _pool(given, config, splits, scored)
    form = _form(given, config, output, rows)
    group = settings.group or _group(given)
    check_group(settings.group, rows, path)
    task = Task(
        name=str(given.get("task") or path.stem),
        output=output,
        items=items_of(scored, rows, group),
        pool=items_of(pool_split, pool_rows, group),
        form=form,
        metrics=_metrics(given, output),
        filters=_filters(given),
        generation=_generation(given),
        shots=int(given.get("num_fewshot") or 0),
        source=str(path),
        notes=tuple(splits.notes),
        harness=given,
    )
    _try(task, path)
    return task


def draws(task: Task, count: int) -> list[list[Item]]:
    """The shots that the harness draws for each item, one after the other from one generator.

    It draws one more where the items are the pool, and leaves out what equals the item.
    """
    generator = random.Random(SHOT_SEED)
    config = dict(task.harness.get("fewshot_config") or {})
    split = config.get("split", task.harness.get("fewshot_split"))
    same = split == task.harness.get("test_split")
    pool = list(task.pool)  # all of it: the harness reads fewshot_indices and does not use it
    in_order = config.get("sampler", "default") == "first_n"
    if count + (same and not in_order) > len(pool):
        raise UsageError(f"{count} shots cannot be drawn from {len(pool)} examples. Ask for fewer, or give more")
    found = []
    for item in task.items:
        if in_order:
            found.append([shot for shot in pool if not same or shot.values != item.values][:count])
            continue
        drawn = generator.sample(pool, count + same)
        left = [shot for shot in drawn if not same or shot.values != item.values][:count]
        if len(left) < count:  # the pool has the item more than once
            left = generator.sample([shot for shot in pool if shot.values != item.values], count)
        found.append(left)
    return found


def unconditional(task: Task, item: Item) -> list[Request]:
    """What the harness's acc_mutual_info compares with: each choice after an empty context."""
    if not isinstance(task.form, HarnessForm):
        return [Request("", continuation) for _, continuation in task.form.asks(item.values)]
    delimiter = task.form.item.target_delimiter
    return [Request("", f"{delimiter}{choice}") for choice in task.form.choices(item.values)]


def read_yaml(path: Path, above: tuple[Path, ...] = (), read: dict[Path, Any] | None = None) -> dict[str, Any]:
    """A task file with those it includes, its own keys over theirs. Raises UsageError for one that cannot be read.

    `above` are the files that include it, `read` what was read before: a file is read once, however often included.
    """
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        """Plain data; a tag that names Python is refused."""

        def flatten_mapping(self, node: Any) -> None:
            """Merge keys, a few of which unfold to any size."""
            if any(key.tag.endswith(":merge") for key, _ in node.value):
                line = node.start_mark.line + 1
                raise UsageError(f"{path}, line {line}: merge keys (<<) are not read. Use include")

    def refuse(loader: Loader, node: Any) -> Any:
        raise UsageError(
            f"{path}, line {node.start_mark.line + 1}: !function {node.value} is Python, which is not run."
            " Write the field as a template"
        )

    Loader.add_constructor("!function", refuse)
    place, read = path.resolve(), {} if read is None else read
    if place in read:
        return dict(read[place])
    if place in above or len(above) > _MOST_INCLUDES:
        raise UsageError(f"{path}: its includes go in a circle")
    try:
        given = yaml.load(read_text(path, _LARGEST), Loader)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{path}: not YAML ({' '.join(str(error).split())[:200]})") from None
    _check_size(given, path)
    if not isinstance(given, dict) or not all(isinstance(key, str) for key in given):
        raise UsageError(f"{path}: a task file is a mapping of keys such as doc_to_text")
    included: dict[str, Any] = {}
    names = given.pop("include", None) or []
    for name in names if isinstance(names, list) else [names]:
        included |= read_yaml(path.parent / str(name), (*above, place), read)
    read[place] = included | given
    return dict(read[place])


def _check_size(given: Any, path: Path) -> None:
    """Names for parts (&a, *a) unfold to any size from a few lines."""
    left, count = [given], 0
    while left:
        each = left.pop()
        count += len(each) if isinstance(each, str | list | dict) else 1
        if count > _LARGEST:
            raise UsageError(f"{path}: its aliases (*name) unfold to more than {_LARGEST / 1e6:.0f} MB")
        left.extend(each.values() if isinstance(each, dict) else each if isinstance(each, list) else ())


def _check_keys(given: Mapping[str, Any], path: Path) -> None:
    for key in given:
        if key in _CODE and given[key] not in (None, False):
            raise UsageError(f"{path}: {key} is not run: {_CODE[key]}")
        if key not in (*_USED, *_IGNORED, *_CODE):
            raise UsageError(f"{path}: the key {key!r} is not known.{closest(key, _USED)}")
    _check_kinds(given, path)
    config = given.get("fewshot_config") or {}
    for key in config:
        if key != "process_docs" and key not in _OF_SHOTS:
            raise UsageError(f"{path}: fewshot_config has no key {str(key)!r}.{closest(str(key), _OF_SHOTS)}")
    _check_kinds(config, path)
    if config.get("sampler", "default") not in ("default", "first_n"):
        raise UsageError(f"{path}: the sampler {config['sampler']!r} is not known. There is: default, first_n")
    if given.get("output_type") == "multiple_choice" and not given.get("doc_to_choice"):
        raise UsageError(f"{path}: a multiple_choice task needs doc_to_choice, the answers to choose from")
    for key, part in (("metric_list", "metric"), ("filter_list", "filter")):
        for each in given.get(key) or ():
            if not isinstance(each, dict) or part not in each:
                raise UsageError(f"{path}: each entry of {key} is a mapping with the key {part!r}")
    for each in given.get("filter_list") or ():
        steps = each["filter"]
        if not isinstance(steps, list) or not all(isinstance(step, dict) and "function" in step for step in steps):
            raise UsageError(f"{path}: 'filter' is a list of mappings with the key 'function'")


def _check_kinds(given: Mapping[str, Any], path: Path) -> None:
    for key, kinds in _KINDS.items():
        if key == "num_fewshot" and isinstance(given.get(key), int) and given[key] < 0:
            raise UsageError(f"{path}: num_fewshot is {given[key]}; it takes a whole number from 0 on")
        if given.get(key) is not None and not isinstance(given[key], kinds):
            meant = " or ".join(_NAMES[kind] for kind in kinds)
            raise UsageError(f"{path}: {key} is {meant}, not {str(given[key])[:40]!r}")


def _pool(
    given: Mapping[str, Any], config: Mapping[str, Any], splits: Splits, scored: str
) -> tuple[str, list[dict[str, Any]]]:
    """Shots come from fewshot_split, else samples in the file, else training, validation, test."""
    split = config.get("split", given.get("fewshot_split"))
    samples = config.get("samples")
    if split is None and samples is not None:
        if not isinstance(samples, list) or not all(isinstance(sample, dict) for sample in samples):
            raise UsageError(f"{splits.path}: fewshot_config.samples is a list of rows")
        if not samples:
            raise UsageError(f"{splits.path}: fewshot_config.samples is empty")
        return "samples", samples
    split = split or given.get("training_split") or given.get("validation_split") or scored
    return str(split), splits.read(str(split))


def _form(given: Mapping[str, Any], config: Mapping[str, Any], output: Output, rows: Sequence[Any]) -> HarnessForm:
    item = Fields(
        given.get("doc_to_text", ""), given.get("doc_to_target"), given.get("doc_to_choice"), given.get("gen_prefix"),
        str(given.get("target_delimiter", " ")), str(given.get("fewshot_delimiter", "\n\n")),
    )  # fmt: skip
    example = overridden(item, {ours: config.get(theirs) for theirs, ours in _SHOT_FIELDS.items()})
    return HarnessForm(output, frozenset(rows[0]), item, example, str(given.get("description") or ""))


def _parted_by(separator: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The file with another separator between its shots, wherever it names one."""
    config = {k: v for k, v in (given.get("fewshot_config") or {}).items() if k != "fewshot_delimiter"}
    return {**given, "fewshot_delimiter": separator, "fewshot_config": config}


def _given_shots(path: Path, splits: Splits, scored: str) -> list[dict[str, Any]]:
    """The rows of --shots-from, a CSV file's with the types that the harness's reader would give them."""
    found = read_shots(path, splits.paths(scored), splits.skip_bad)
    splits.notes += found.broken
    return typed(found.rows) if path.suffix in (".csv", ".tsv") else list(found.rows)


def _group(given: Mapping[str, Any]) -> str | None:
    """The column that a file names under metadata for rows that are not independent."""
    metadata = given.get("metadata")
    group = metadata.get("group") if isinstance(metadata, dict) else None
    return group if isinstance(group, str) else None


def _metrics(given: Mapping[str, Any], output: Output) -> tuple[Metric, ...]:
    listed = given.get("metric_list") or [{"metric": name} for name in metrics.USUAL[output]]
    found = []
    for each in listed:
        options = {key: value for key, value in each.items() if key not in _OF_METRICS}
        better = bool(each.get("higher_is_better", each["metric"] not in metrics.SMALLER_IS_BETTER))
        name = str(each["metric"])
        usual = metrics.AGGREGATION.get(name, "mean")
        metric = Metric(name, str(each.get("aggregation", usual)), better, options)
        metrics.check(metric, output)
        if metric.aggregation not in (usual, "nanmean" if usual == "mean" else usual):
            raise UsageError(f"metric {name!r} makes its {usual} over all items, not {metric.aggregation!r}")
        found.append(metric)
    return tuple(found)


def _filters(given: Mapping[str, Any]) -> tuple[Filter, ...]:
    found = []
    for each in given.get("filter_list") or [{"name": "none", "filter": [{"function": "take_first"}]}]:
        steps = tuple(
            (str(step["function"]), {k: v for k, v in step.items() if k != "function"}) for step in each["filter"]
        )
        chain = Filter(str(each.get("name", "none")), steps)
        filters.check(chain)
        found.append(chain)
    return tuple(found)


def _generation(given: Mapping[str, Any]) -> Generation:
    try:
        return _generated(given)
    except UsageError:
        raise
    except (TypeError, ValueError) as error:
        raise UsageError(f"generation_kwargs cannot be read ({error})") from None


def _generated(given: Mapping[str, Any]) -> Generation:
    options = dict(given.get("generation_kwargs") or {})
    until = options.pop("until", None) or [given.get("fewshot_delimiter", "\n\n")]
    lengths = [options.pop(name, None) for name in OF_LENGTH]
    sampled = bool(options.pop("do_sample", True)) and float(options.get("temperature", 0.0)) > 0
    made = Generation(
        until=tuple(text for text in ([until] if isinstance(until, str) else until) if text),
        max_tokens=int(next((length for length in lengths if length is not None), 256)),
        temperature=float(options.pop("temperature", 0.0)) if sampled else 0.0,
        top_p=float(options.pop("top_p", 1.0)),
        top_k=int(options.pop("top_k", 0)),
        repeats=int(given.get("repeats", 1)),
    )
    options.pop("temperature", None)
    for name, value in (("max_gen_toks", made.max_tokens), ("repeats", made.repeats)):
        if value < 1:
            raise UsageError(f"{name} is {value}; it takes a whole number of at least 1")
    if options:
        raise UsageError(f"generation_kwargs has {sorted(options)[0]!r}, which is not known")
    return made


def _try(task: Task, path: Path) -> None:
    """Render the first row, so that a fault of the form is told as one of the task file."""
    try:
        task.form.asks(task.items[0].values)
        if task.output != "loglikelihood_rolling":
            task.form.gold(task.items[0].values)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path}: the first row cannot be rendered ({type(error).__name__}: {error})") from None
