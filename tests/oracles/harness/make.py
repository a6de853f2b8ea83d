"""Writes task files, small invented data for them, and the requests that lm-evaluation-harness makes of both.

Run by hand with lm-eval 0.4.13 installed: `python tests/oracles/harness/make.py`. The task files are the harness's own
(MIT licence), with nothing changed but where the data is; those under `made` are ours, for what its own leave out.
"""

from __future__ import annotations

import json
import os
import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import lm_eval
import yaml
from lm_eval.api.task import ConfigurableTask

HERE = Path(__file__).parent
TASKS = Path(lm_eval.__file__).parent / "tasks"
SEED = 1234
COUNTS = (0, 2)

WORDS = "amber birch cedar delta ember fjord grove heron inlet juniper".split()  # noqa: SIM905


def labelled(n: int, w: str) -> dict[str, Any]:
    return {"label": ["A", "B", "C", "D"], "text": [f"{w} {x}" for x in ("stone", "river", "cloud", "field")]}


OWN: dict[str, tuple[str, Any]] = {
    "sst2": ("glue/sst2/default.yaml", lambda n, w: {"sentence": f"a film about {w} {n}", "label": n % 2}),
    "rte": (
        "glue/rte/default.yaml",
        lambda n, w: {"sentence1": f"The {w} is old. ", "sentence2": f"A {w}.", "label": n % 2},
    ),
    "cola": ("glue/cola/default.yaml", lambda n, w: {"sentence": f"They {w} the {n}.", "label": n % 2}),
    "boolq": (
        "super_glue/boolq/default.yaml",
        lambda n, w: {"passage": f"The {w} has {n} parts.", "question": f"has the {w} parts", "label": n % 2},
    ),
    "arc_easy": (
        "arc/arc_easy.yaml",
        lambda n, w: {"question": f"Which is {w}?", "choices": labelled(n, w), "answerKey": "ABCD"[n % 4]},
    ),
    "piqa": (
        "piqa/piqa.yaml",
        lambda n, w: {"goal": f"To find {w}", "sol1": f'look "here" {n}', "sol2": f"don't look {n}", "label": n % 2},
    ),
    "openbookqa": (
        "openbookqa/openbookqa.yaml",
        lambda n, w: {"question_stem": f"A {w} is", "choices": labelled(n, w), "answerKey": " " + "ABCD"[n % 4]},
    ),
    "sciq": (
        "sciq/sciq.yaml",
        lambda n, w: {
            "support": f"  {w} grows.",
            "question": f"What grows {n}?",
            "distractor1": "sand",
            "distractor2": "salt",
            "distractor3": "soap",
            "correct_answer": w,
        },
    ),
    "lambada_openai": ("lambada/lambada_openai.yaml", lambda n, w: {"text": f"She went to the {w} and saw the {w}{n}"}),
    "gsm8k": (
        "gsm8k/gsm8k.yaml",
        lambda n, w: {"question": f"{n} {w} and {n + 1} more?", "answer": f"{n}+{n + 1}={2 * n + 1}\n#### {2 * n + 1}"},
    ),
    "triviaqa": (
        "triviaqa/default.yaml",
        lambda n, w: {"question": f"Who is {w}", "answer": {"aliases": [w.title(), f"{w} {n}"], "value": w}},
    ),
    "nq_open": ("nq_open/nq_open.yaml", lambda n, w: {"question": f"who met {w}", "answer": [f"The {w}", w]}),
    "truthfulqa_mc1": (
        "truthfulqa/truthfulqa_mc1.yaml",
        lambda n, w: {
            "question": f"Is {w} real?",
            "mc1_targets": {"choices": [f"No {n}", "Yes", w], "labels": [1, 0, 0]},
        },
    ),
    "pile_arxiv": ("pile/pile_arxiv.yaml", lambda n, w: {"text": f"{w} is the text {n}.\n\nIt ends."}),
    "xnli_en": (
        "xnli/xnli_en.yaml",
        lambda n, w: {"premise": f"It is {w}", "hypothesis": f"{w} is it", "label": n % 3},
    ),
    "blimp_adjunct_island": (
        "blimp/adjunct_island.yaml",
        lambda n, w: {"sentence_good": f"Who saw {w} {n}?", "sentence_bad": f"Who {w} saw {n}?"},
    ),
    "mmlu_anatomy": (
        "mmlu/default/mmlu_anatomy.yaml",
        lambda n, w: {"question": f" Which {w}? ", "choices": [f"{w} {x}" for x in "abcd"], "answer": n % 4},
    ),
}

MADE: dict[str, tuple[dict[str, Any], Any]] = {
    "made_multiple_inputs": (
        {
            "output_type": "multiple_choice", "validation_split": "validation", "training_split": "train",
            "doc_to_text": "{{answer}}", "doc_to_choice": "{{[before + option1, before + option2]}}",
            "doc_to_target": "{{after}}",
        },
        lambda n, w: {"before": f"The {w} met ", "option1": "Al", "option2": "Bo", "after": f"no {w}", "answer": n % 2},
    ),
    "made_prefix": (
        {
            "output_type": "generate_until", "test_split": "test", "fewshot_split": "test",
            "doc_to_text": "Say {{word}}.", "doc_to_target": "{{word|upper}}", "gen_prefix": "It is:",
            "description": "Words, {{kind}}.\n", "target_delimiter": "\n", "fewshot_delimiter": "\n###\n",
            "generation_kwargs": {"max_gen_toks": 5, "until": ["\n"]},
        },
        lambda n, w: {"word": w, "kind": "old" if n % 2 else "new"},
    ),
    "made_samples": (
        {
            "output_type": "multiple_choice", "test_split": "test", "doc_to_text": "{{q|regex_replace('o+', '0')}}",
            "doc_to_choice": {"a": "left", "b": "right"}, "doc_to_target": "side", "target_delimiter": "",
            "fewshot_config": {"sampler": "first_n", "samples": [{"q": "foo?", "side": 0}, {"q": "boo?", "side": 1}]},
        },
        lambda n, w: {"q": f"{w} go {n}", "side": n % 2},
    ),
}  # fmt: skip


def splits(config: dict[str, Any]) -> list[str]:
    names = ("training_split", "validation_split", "test_split", "fewshot_split")
    return list(dict.fromkeys(config[name] for name in names if config.get(name)))


def write(name: str, config: dict[str, Any], make: Any) -> None:
    """The task file and its rows; a split has rows of its own."""
    files = {}
    for place, split in enumerate(splits(config)):
        files[split] = f"{name}-{split}.json"
        found = [make(n + 3 * place, WORDS[(n + 3 * place) % len(WORDS)]) for n in range(7)]
        (HERE / files[split]).write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    config = {
        key: value for key, value in config.items() if key not in ("dataset_path", "dataset_name", "dataset_kwargs")
    }
    config |= {"dataset_path": "json", "dataset_kwargs": {"data_files": files}, "task": name}
    (HERE / f"{name}.yaml").write_text(yaml.safe_dump(config, allow_unicode=True, sort_keys=False), encoding="utf-8")


def csv_task() -> None:
    """Numbers, truth values and gaps as the harness's CSV reader types them."""
    lines = ["question,number,share,sure,answer"]
    lines += [f"how many {WORDS[n]},{n},{n / 4 if n != 3 else ''},{n % 2 == 0},{n % 2}" for n in range(7)]
    (HERE / "made_csv.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    config = {
        "task": "made_csv", "dataset_path": "csv", "dataset_kwargs": {"data_files": {"test": "made_csv.csv"}},
        "output_type": "multiple_choice", "test_split": "test",
        "doc_to_text": "{{question}} {{number + 1}} {{share}} {{'sure' if sure else 'not sure'}}?",
        "doc_to_choice": ["no", "yes"], "doc_to_target": "answer",
    }  # fmt: skip
    (HERE / "made_csv.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")


def own_config(path: str) -> dict[str, Any]:
    """A task file of the harness with those it includes."""
    file = TASKS / path
    config = yaml.safe_load(file.read_text(encoding="utf-8"))
    if included := config.pop("include", None):
        config = {**own_config(str((file.parent / included).relative_to(TASKS))), **config}
    return config


def asked(name: str, count: int) -> list[list[Any]]:
    """The harness's own requests, item by item."""
    config = yaml.safe_load((HERE / f"{name}.yaml").read_text(encoding="utf-8"))
    task = ConfigurableTask(config={**config, "num_fewshot": count})
    task.set_fewshot_seed(seed=SEED)
    task.build_all_requests()
    return [[instance.doc_id, *map(deepcopy, instance.args)] for instance in task.instances]


def main() -> None:
    os.chdir(HERE)
    for file in HERE.glob("*"):
        if file.suffix in (".yaml", ".json", ".csv"):
            file.unlink()
    for name, (path, make) in OWN.items():
        write(name, own_config(path), make)
    for name, (config, make) in MADE.items():
        write(name, config, make)
    csv_task()
    found: dict[str, dict[str, Any]] = {}
    for file in sorted(HERE.glob("*.yaml")):
        counts = (0,) if file.stem in ("pile_arxiv",) else COUNTS
        found[file.stem] = {str(count): asked(file.stem, count) for count in counts}
    (HERE / "requests.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    shutil.rmtree(HERE / "__pycache__", ignore_errors=True)


if __name__ == "__main__":
    main()
