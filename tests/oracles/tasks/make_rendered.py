"""Write rendered.json: what lm-evaluation-harness 0.4.13 asks of the first scored row of each shipped task, with the
first two rows of its train file as shots.

Run in the tasks' folder, src/nextword/evals/tasks, where lm-eval 0.4.13 is installed (without a model):
    python ../../../../tests/oracles/tasks/make_rendered.py
"""

import json
from pathlib import Path

import yaml
from lm_eval.api.task import ConfigurableTask


def main() -> None:
    rendered = {}
    for path in sorted(Path().glob("*.yaml")):
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        task = ConfigurableTask(config={**config, "num_fewshot": 2, "fewshot_config": {"sampler": "first_n"}})
        task.build_all_requests(limit=1)
        chosen = task.OUTPUT_TYPE == "multiple_choice"
        rendered[path.stem] = [[one.args[0], one.args[1] if chosen else ""] for one in task.instances]
    text = json.dumps(rendered, indent=1, ensure_ascii=False) + "\n"
    (Path(__file__).parent / "rendered.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
