"""Writes samples.json: small tasks, and the samples_*.jsonl that lm-evaluation-harness writes of a random model.

Run by hand with lm-eval 0.4.13 installed and HF_DATASETS_OFFLINE=1: `python tests/oracles/harness/make_samples.py`.
"""

from __future__ import annotations

import json
import os
import tempfile
from copy import deepcopy
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval.loggers import EvaluationTracker

HERE = Path(__file__).parent
ROWS = [
    {"q": "one", "a": 0, "r": "no", "m": ["lol", "x"]}, {"q": "zwei drei", "a": 1, "r": "yes", "m": ["lol", "y"]},
    {"q": "тру\u2026 ", "a": 1, "r": "yes", "m": ["z", "w"]},
]  # fmt: skip
CHOICE = {
    "output_type": "multiple_choice",
    "doc_to_text": "Q {{q}}",
    "doc_to_target": "a",
    "doc_to_choice": ["no", "yes"],
}
FREE = {"output_type": "generate_until", "doc_to_text": "Q {{q}}", "doc_to_target": "q"}
ALL = [{"metric": name} for name in ("acc", "f1", "mcc", "acc_norm", "acc_bytes", "exact_match", "brier_score")]
UP = [{"function": "uppercase"}, {"function": "take_first"}]
TASKS: dict[str, dict[str, Any]] = {
    "choices": CHOICE | {"metric_list": ALL},
    "text_target": CHOICE | {"doc_to_target": "r"},
    "several_filters": FREE | {"filter_list": [{"name": "up", "filter": UP}, {"name": "as_is", "filter": UP[1:]}]},
    "several_answers": FREE | {"doc_to_target": "m"},
    "likelihood": {"output_type": "loglikelihood", "doc_to_text": "{{q}}", "doc_to_target": " {{r}}"},
    "rolling": {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "q"},
}


def main() -> None:
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
        for name, given in TASKS.items():
            if given["output_type"] == "generate_until":
                given = given | {"metric_list": [{"metric": "exact_match"}], "generation_kwargs": {"until": ["\n"]}}
            config = given | {
                "task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": "rows.jsonl"}},
                "test_split": "test",
            }  # fmt: skip
            tracker = EvaluationTracker(output_path=f"{folder}/{name}")
            result = lm_eval.simple_evaluate(
                model="dummy", tasks=[deepcopy(config)], log_samples=True, evaluation_tracker=tracker, bootstrap_iters=0
            )
            samples = result.pop("samples")
            tracker.save_results_aggregated(results=result, samples=samples)
            tracker.save_results_samples(task_name=name, samples=samples[name])
            text = next(Path(folder, name).rglob("samples_*.jsonl")).read_text(encoding="utf-8")
            found[name] = {"config": config, "samples": [json.loads(line) for line in text.splitlines()]}
    made = {"rows": ROWS, "tasks": found}
    (HERE / "samples.json").write_text(json.dumps(made, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
