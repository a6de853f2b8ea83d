"""Write rendered.json: what lm-evaluation-harness 0.4.13 asks of the first scored row of each built-in task, with the
first two rows of its file of shots.

The task files become the harness's here. Run in the tasks' folder, src/nextword/evals/tasks, where lm-eval is installed
(without a model):
    python ../../../../tests/oracles/tasks/make_rendered.py
"""

import json
import re
from pathlib import Path
from typing import Any

import yaml
from lm_eval.api.task import ConfigurableTask


def config_of(name: str, given: dict[str, Any]) -> dict[str, Any]:
    """The harness's configuration of a task file."""
    question = given["template"].removesuffix(" {output}")
    chooses = {"doc_to_choice": given["choices"]} if "choices" in given else {}
    return {
        "task": name, "dataset_path": "json", "test_split": "test", "fewshot_split": "train", "num_fewshot": 2,
        "dataset_kwargs": {"data_files": {"train": given["fewshot_data"], "test": given["data"]}},
        "output_type": "multiple_choice" if chooses else "generate_until", **chooses,
        "doc_to_text": re.sub(r"\{([^}]+)\}", r"{{\1}}", question), "doc_to_target": given["target"],
        "fewshot_config": {"sampler": "first_n"},
    }  # fmt: skip


def main() -> None:
    rendered = {}
    for path in sorted(Path().glob("*.yaml")):
        task = ConfigurableTask(config=config_of(path.stem, yaml.safe_load(path.read_text(encoding="utf-8"))))
        task.build_all_requests(limit=1)
        chosen = task.OUTPUT_TYPE == "multiple_choice"
        rendered[path.stem] = [[one.args[0], one.args[1] if chosen else ""] for one in task.instances]
    text = json.dumps(rendered, indent=1, ensure_ascii=False) + "\n"
    (Path(__file__).parent / "rendered.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
