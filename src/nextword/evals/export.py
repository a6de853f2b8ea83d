"""Results as lm-evaluation-harness writes them: results_*.json, and samples_*.jsonl with every item."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from ..base import RunError
from ..base.files import atomic_write
from . import filters
from .answers import Answer
from .collected import Cell, Collected
from .harness_form import HarnessForm
from .metrics import MEASURE_OF, OF_PAIRS, aggregate, first_gold, golds, shares
from .task import Task, text_digest

# each measure's own metric; those of "tokens" and "constrained" the harness does not have
_NAMES = {measure: name for name, measure in MEASURE_OF.items()}
_NAMES |= {"tokens": "acc_tokens", "constrained": "acc_constrained"}


def write_harness_results(folder: Path, collected: Collected) -> list[Path]:
    """A folder for each model and condition below `folder`, with its two files. Raises RunError where writing fails."""
    stamp = datetime.now().isoformat().replace(":", "-")
    written = []
    for cell in collected.cells:
        condition = cell.condition
        name = f"{condition.shots}-shot-draw-{condition.draw}-order-{condition.order}"
        if condition.variant != "plain":
            name += "-" + condition.variant.replace(" ", "-")
        below = folder / _safe(condition.model) / _safe(condition.form) / name
        samples = [
            sample for answer in cell.answers
            for sample in _samples(collected.task, answer, collected.measure, cell.calibration)
        ]  # fmt: skip
        lines = "".join(json.dumps(sample, ensure_ascii=False, default=str) + "\n" for sample in samples)
        results = json.dumps(_results(collected, cell, samples), indent=2, ensure_ascii=False, default=str)
        files = {
            below / f"results_{stamp}.json": results,
            below / f"samples_{_safe(collected.task.name)}_{stamp}.jsonl": lines,
        }
        try:
            below.mkdir(parents=True, exist_ok=True)
            for path, text in files.items():
                with atomic_write(path) as file:
                    file.write(text)
                written.append(path)
        except OSError as error:
            raise RunError(f"{below}: the results could not be written ({error.strerror or error})") from error
    return written


def _safe(name: str) -> str:
    return re.sub(r"[\"<>:/|\\?*\[\] ]+", "__", name)


def _metrics(task: Task, answer: Answer, measure: str | None, calibration: str | None) -> dict[str, dict[str, Any]]:
    """What each filter's answer scored, by filter and then metric: the task's own, and the one that is printed.

    A calibrated choice stands under its calibration as the filter: what the task's metrics say of the model's own
    likelihoods is another condition's.
    """
    wanted = [metric.name for metric in task.metrics]
    if calibration is not None:
        pair = first_gold(answer), int(answer.prediction)
        return {calibration: {"acc": answer.values["score"]} | {name: pair for name in OF_PAIRS if name in wanted}}
    if task.output == "generate_until":
        found: dict[str, dict[str, Any]] = {}
        for name, value in answer.values.items():
            metric, comma, chain = name.partition(",")
            if comma:
                found.setdefault(chain, {})[metric] = value
        return found
    if task.output == "multiple_choice":
        known: dict[str, Any] = {
            _NAMES[measure]: answer.values[measure] for measure in _NAMES if measure in answer.values
        }
        known |= _of_choices(answer)
        wanted += [_NAMES[measure]] if measure is not None and _NAMES[measure] not in wanted else []
    elif task.output == "loglikelihood":
        known = {"perplexity": answer.values["logprob"], "acc": int(answer.values["acc"])}
    else:
        logprob, words, size = answer.values["logprob"], int(answer.values["words"]), int(answer.values["bytes"])
        known = {"word_perplexity": (logprob, words)}
        known |= dict.fromkeys(("byte_perplexity", "bits_per_byte"), (logprob, size))
    return {"none": {name: known[name] for name in wanted if name in known}}


def _of_choices(answer: Answer) -> dict[str, Any]:
    """What the metrics over all items take of one: the right choice and the likeliest, or the choices' shares."""
    first, best = first_gold(answer), int(np.argmax(answer.logprobs))
    return {
        "f1": (first, best), "mcc": (first, best), "brier_score": (first, shares(answer)),
        "exact_match": int(any(answer.likelihoods[number].greedy for number in golds(answer))),
    }  # fmt: skip


def _samples(
    task: Task, answer: Answer, measure: str | None = None, calibration: str | None = None
) -> Iterator[dict[str, Any]]:
    """One record a chain of filters: keys and kinds as the harness has them, numbers of answers as texts."""
    row = dict(answer.item.values)
    target = task.form.target(row) if isinstance(task.form, HarnessForm) else answer.gold
    if task.output == "generate_until":
        arguments: list[Any] = [(answer.requests[0].context, _generation(task))]
        responses: list[list[Any]] = [list(answer.written)]
    elif task.output == "loglikelihood_rolling":
        arguments = [(answer.requests[0].continuation,)]
        responses = [[answer.likelihoods[0].logprob]]
    else:
        arguments = [(request.context, request.continuation) for request in answer.requests]
        responses = [[(found.logprob, found.greedy)] for found in answer.likelihoods]
    chains = {chain.name: chain for chain in task.filters}
    for name, metrics in _metrics(task, answer, measure, calibration).items():
        filtered: list[Any]
        if calibration is not None:
            filtered = [
                (score, found.greedy) for score, found in zip(answer.choice_scores, answer.likelihoods, strict=True)
            ]
        elif task.output == "generate_until" and name in chains:
            filtered = [filters.apply(chains[name], list(answer.written), row)]
        else:
            filtered = [each[0] for each in responses]
        yield {
            "doc_id": answer.item.index,
            "doc": row,
            "target": str(target),
            "arguments": {
                f"gen_args_{n}": {f"arg_{m}": part for m, part in enumerate(parts)} for n, parts in enumerate(arguments)
            },
            "resps": _texts(responses),
            "filtered_resps": _texts(filtered),
            "filter": name,
            "metrics": list(metrics),
            "doc_hash": text_digest(json.dumps(row, indent=2, default=str, ensure_ascii=False)),
            "prompt_hash": text_digest(str(arguments[0][0])),
            "target_hash": text_digest(str(target)),
            **metrics,
        }


def _generation(task: Task) -> dict[str, Any]:
    """How a free answer is written: as the task file says it, or else in the harness's words."""
    if given := task.harness.get("generation_kwargs"):
        return {"until": list(task.generation.until), **given}
    generation = task.generation
    return {
        "until": list(generation.until), "max_gen_toks": generation.max_tokens,
        "temperature": generation.temperature, "do_sample": generation.temperature > 0,
    }  # fmt: skip


def _texts(values: Any) -> Any:
    """Lists of anything as lists of texts."""
    return [_texts(value) for value in values] if isinstance(values, list | tuple) else str(values)


def _results(collected: Collected, cell: Cell, samples: list[dict[str, Any]]) -> dict[str, Any]:
    task, name = collected.task, collected.task.name
    scores: dict[str, Any] = {"name": name, "alias": name, "sample_len": len(cell.answers)}
    over = _over_items(collected, cell, samples)
    for key, value in over.items():
        metric, _, chain = key.partition(",")
        scores[key] = value
        scores[f"{metric}_stderr,{chain}"] = _error(metric, chain, samples)
    metadata = task.harness.get("metadata")
    version = metadata.get("version", "Yaml") if isinstance(metadata, dict) else "Yaml"
    return {
        "results": {name: scores},
        "group_subtasks": {name: []},
        "configs": {name: {**task.harness, "num_fewshot": cell.condition.shots}},
        "versions": {name: version},
        "n-shot": {name: cell.condition.shots},
        "higher_is_better": {
            name: dict.fromkeys((key.partition(",")[0] for key in over), True)
            | {metric.name: metric.higher_is_better for metric in task.metrics}
        },
        "n-samples": {name: {"original": len(task.items), "effective": len(cell.answers)}},
        "config": {
            "model": "nextword",
            "model_args": {"pretrained": cell.condition.model, "form": cell.condition.form},
            "draw": cell.condition.draw, "order": cell.condition.order, "variant": cell.condition.variant,
        },
        "date": time.time(),
        "model_source": "nextword",
        "model_name": cell.condition.model,
        "model_name_sanitized": _safe(cell.condition.model),
        "task_hashes": {
            name: text_digest("".join(s["doc_hash"] + s["prompt_hash"] + s["target_hash"] for s in samples))
        },
        "total_evaluation_time_seconds": str(collected.seconds),
    }  # fmt: skip


def _over_items(collected: Collected, cell: Cell, samples: list[dict[str, Any]]) -> dict[str, float]:
    """Every metric over all items, as "metric,filter": the task's own, and the one that is printed."""
    calibration = cell.calibration
    if calibration is not None:
        pairs = {name: [sample[name] for sample in samples] for name in OF_PAIRS if name in samples[0]}
        found = {"acc": float(cell.scores.mean())} | {name: OF_PAIRS[name](each) for name, each in pairs.items()}
        return {f"{name},{calibration}": value for name, value in found.items()}
    own = aggregate(collected.task, cell.answers)  # of the likeliest choice, as the harness has it
    found = {name if "," in name else f"{name},none": value for name, value in own.items()}
    if collected.task.output == "multiple_choice":
        found |= {f"{_NAMES[collected.measure]},none": float(cell.scores.mean())}
    return found


def _error(metric: str, chain: str, samples: list[dict[str, Any]]) -> float | str:
    """Sample standard deviation over √n, where the metric is a mean."""
    values = [sample[metric] for sample in samples if sample["filter"] == chain and metric in sample]
    if len(values) < 2 or not all(isinstance(value, int | float) for value in values) or "perplexity" in metric:
        return "N/A"
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))
