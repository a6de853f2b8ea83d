"""Writes result.json with all numbers, and samples.jsonl with every answer."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..base import RunError
from ..base.files import atomic_write
from .design import Condition
from .results import Answer, Collected
from .summary import Result


def write_results(folder: Path, collected: Collected, result: Result) -> None:
    """Write both files into `folder`. Raises RunError if that fails."""
    samples = [_sample(own.condition, answer) for own in collected.conditions for answer in own.answers]
    lines = "".join(json.dumps(sample, ensure_ascii=False, default=str) + "\n" for sample in samples)
    files = {"result.json": json.dumps(result.to_dict(), indent=2, ensure_ascii=False), "samples.jsonl": lines}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            with atomic_write(folder / name) as file:
                file.write(text.encode("utf-8", "replace").decode())  # half of a surrogate pair, from a row
    except OSError as error:
        raise RunError(f"{folder}: the results could not be written ({error.strerror or error})") from error


def _sample(condition: Condition, answer: Answer) -> dict[str, Any]:
    """A flat record of one answer under one condition."""
    said: dict[str, Any] = {"prediction": answer.prediction, "written": answer.written}
    if answer.choices:
        said = {
            "choices": answer.choices, "prediction": answer.prediction, "logprobs": answer.logprobs,
            "greedy": [likelihood.greedy for likelihood in answer.likelihoods],
            "choice_scores": answer.choice_scores, "written": answer.written,
        }  # fmt: skip
    return asdict(condition) | {
        "row": answer.item.label, "group": answer.item.group, "digest": answer.item.digest,
        "values": dict(answer.item.values), "shots_in_prompt": answer.shots, "prompt": answer.requests[0].context,
        "gold": answer.gold, **said, "score": answer.score, "scores": dict(answer.scores),
    }  # fmt: skip
