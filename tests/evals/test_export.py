"""result.json and samples.jsonl: they hold the numbers that are printed, and every answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from table_tasks import table_task

from nextword import load
from nextword.evals.design import Design, ScoringConfig
from nextword.evals.eval_run import EvalRun
from nextword.evals.export import write_results
from nextword.evals.store import opened
from nextword.evals.summary import summarise


@pytest.mark.parametrize("scoring", ["raw", "chars", "bytes", "tokens", "pmi"])
def test_the_files_hold_the_numbers_that_are_printed(
    scoring: Any, reviews: Path, tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    task = table_task(reviews, "Text: {text}\nMood: {label}")
    config = ScoringConfig(scoring, "Mood:" if scoring == "pmi" else None, ("contextual", "batch"))
    design = Design((0, 2), fewshot_seeds=2, limit=12)
    with opened(None) as store:
        collected = EvalRun({"one": task}, [load(str(tiny_model()))], design, config, store).run()
    result = summarise(collected)
    write_results(tmp_path, collected, result)
    assert json.loads((tmp_path / "result.json").read_text()) == json.loads(json.dumps(result.to_dict()))
    samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == 12 * len(collected.conditions)
    for row in result.rows:
        own = [sample for sample in samples if (sample["shots"], sample["variant"]) == (row.shots, row.variant)]
        assert np.mean([sample["score"] for sample in own]) == pytest.approx(row.score.value)
        for sample in own:
            assert sample["prediction"] == int(np.argmax(sample["choice_scores"]))
            assert sample["score"] == float(sample["prediction"] == sample["gold"])
            assert sample["prompt"].endswith(f"Text: {sample['values']['text']}\nMood:")


def test_generated_answers_are_written_as_the_model_wrote_them(
    reviews: Path, tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    task = table_task(reviews, "Text: {text}\nMood: {label}", generate=True, max_tokens=4)
    with opened(None) as store:
        run = EvalRun({"one": task}, [load(str(tiny_model()))], Design(limit=3), ScoringConfig(), store)
        collected = run.run()
    write_results(tmp_path, collected, summarise(collected))
    samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [sample["written"] for sample in samples] == [answer.written for answer in collected.conditions[0].answers]
    assert all(sample["prediction"] == sample["written"].strip() for sample in samples)
    assert all(sample["gold"] == sample["values"]["label"] for sample in samples)
