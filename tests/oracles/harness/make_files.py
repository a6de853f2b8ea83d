"""Writes files/: task files of lm-evaluation-harness letter by letter, and what the harness itself makes of them.

Run by hand with lm-eval 0.4.13 and scikit-learn installed: `python tests/oracles/harness/make_files.py`. A folder of
files/ is a task: its rows (*.jsonl, *.csv) are invented, written by hand and stay; task.yaml and what it includes are
copied from the harness (MIT licence), only the data is named anew. Folders made_* have a task.yaml of ours.
requests.json has every request for 0 and 2 shots, filters.json what the harness's filters make of texts, metrics.json
what scikit-learn and the harness's own functions make of answers.
"""

from __future__ import annotations

import json
import os
import random
from copy import deepcopy
from pathlib import Path
from typing import Any

import lm_eval
import numpy as np
from lm_eval.api import metrics
from lm_eval.api.registry import get_metric
from lm_eval.api.task import ConfigurableTask
from lm_eval.filters import build_filter_ensemble
from lm_eval.tasks._yaml_loader import load_yaml

HERE = Path(__file__).parent / "files"
TASKS = Path(lm_eval.__file__).parent / "tasks"
SEED = 1234
SOURCES = {
    "arc_challenge": "arc/arc_challenge.yaml",
    "arc_challenge_chat": "arc/arc_challenge_chat.yaml",
    "babi": "babi/babi.yaml",
    "bear": "bear/bear.yaml",
    "belebele_eng_Latn": "belebele/belebele_eng_Latn.yaml",
    "boolq_seq2seq": "super_glue/boolq/seq2seq.yaml",
    "gsm8k": "gsm8k/gsm8k.yaml",
    "gsm8k_cot_self_consistency": "gsm8k/gsm8k-cot-self-consistency.yaml",
    "mgsm_direct_en": "mgsm/direct/mgsm_direct_en.yaml",
    "mmlu_astronomy": "mmlu/default/mmlu_astronomy.yaml",
    "mmlu_flan_cot_fewshot_astronomy": "mmlu/flan_cot_fewshot/mmlu_astronomy.yaml",
    "pile_arxiv": "pile/pile_arxiv.yaml",
    "swag": "swag/swag.yaml",
    "triviaqa": "triviaqa/default.yaml",
    "wnli_es": "spanish_bench/wnli_es.yaml",
}
OF_DATA = ("dataset_path:", "dataset_name:", "dataset_kwargs:")


def copied(name: str, source: Path) -> None:
    """A task file with its data here, and the files it includes as they are."""
    kept, inside = [], False
    for line in source.read_text(encoding="utf-8").splitlines():
        inside = line.replace('"', "").startswith(OF_DATA) or (inside and line.startswith(" "))
        if not inside:
            kept.append(line)
    data = sorted(path for path in (HERE / name).iterdir() if path.suffix in (".jsonl", ".csv"))
    reader = "csv" if data[0].suffix == ".csv" else "json"
    named = [f"dataset_path: {reader}", "dataset_name: null", "dataset_kwargs:", "  data_files:"]
    named += [f"    {path.stem}: {path.name}" for path in data]
    origin = f"# lm-evaluation-harness 0.4.13, {source.relative_to(TASKS)}; only its data is another."
    (HERE / name / "task.yaml").write_text("\n".join([origin, *kept, *named]) + "\n", encoding="utf-8")
    for line in kept:
        while line.replace('"', "").startswith("include:"):
            included = line.replace('"', "").split(":")[1].strip()
            text = (source.parent / included).read_text(encoding="utf-8")
            (HERE / name / included).write_text(text, encoding="utf-8")
            line = next((each for each in text.splitlines() if each.startswith("include:")), "")


def asked(name: str, count: int) -> list[list[Any]]:
    """The harness's own requests: number of the row, then what it hands to a model."""
    os.chdir(HERE / name)
    task = ConfigurableTask(config={**load_yaml("task.yaml"), "num_fewshot": count})
    task.set_fewshot_seed(SEED)
    task.build_all_requests()
    return [[instance.doc_id, *map(deepcopy, instance.args)] for instance in task.instances]


STRICT = {"regex_pattern": "#### (\\-?[0-9\\.\\,]+)"}
FLEXIBLE = {"group_select": -1, "regex_pattern": "(-?[$0-9.,]{2,})|(-?[0-9]+)"}
LETTER = {"group_select": -1, "ignore_case": True, "ignore_punctuation": True, "regex_pattern": "(\\([A-Z]\\))"}
COT = {"regex_pattern": "(?<=answer is )(.*)(?=.)"}
CHAINS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "strict-match": [("regex", STRICT), ("take_first", {})],
    "flexible-extract": [("regex", FLEXIBLE)],
    "maj": [("regex", FLEXIBLE), ("majority_vote", {}), ("take_first", {})],
    "maj-of-2": [("take_first_k", {"k": 2}), ("regex", FLEXIBLE), ("majority_vote", {}), ("take_first", {})],
    "second": [("regex", {"regex_pattern": "[0-9]+", "group_select": -1, "fallback": ""})],
    "pairs": [("regex", {"regex_pattern": "(x)?=?(7)?"})],
    "cot": [("regex", COT)],
    "default": [("regex", {})],
    "letters": [("multi_choice_regex", LETTER)],
    "letters-first": [
        ("multi_choice_regex", {"regex_pattern": "\\b([A-D])\\b", "regexes_to_ignore": ["the "]}),
    ],
    "low": [("remove_whitespace", {}), ("lowercase", {})],
    "up": [("uppercase", {}), ("remove_whitespace", {})],
    "mapped": [
        ("remove_whitespace", {}),
        ("map", {"mapping_dict": {"7": 1, "yes": "ja"}, "default_value": -1}),
    ],
}
WRITTEN = [
    ["3 + 4 = 7 so the answer is 7 apples.", "7", "8"],
    [" 1200 + 34 = 1234.\n#### 1,234.", "#### 12", "12"],
    ["#### -3.5 and #### 8", "-3.5", "-3.5"],
    ["the answer is ", "answer is .", "The answer is (B)."],
    ["", " ", "\n"],
    ["(A) or (C)", "(c)", "C"],
    ["It's the RED wine!", "red", "the red"],
    ["Answer: B", "Answer:\n D", ": E"],
    ["$1,000.00", "-$5", "..."],
    [" 7 ", "yes", "Yes"],
    ["x=7", "x", "=7"],
    ["日本語です。答えは３", "ÄÖÜ ß", "İ"],
    ["Guilty of Romance", "guilty", "Guilty."],
]
CHOICES = [["red", "the red wine", "blue", "Guilty"], ["3", "7", "(B)", "x=7"], ["a", "A.", "b*", "c|d"]]


def filtered() -> list[dict[str, Any]]:
    """What each chain of the harness's filters makes of each set of texts."""
    found = []
    for name, steps in CHAINS.items():
        chain = build_filter_ensemble(name, [[step, options] for step, options in steps])
        for number, texts in enumerate(WRITTEN):
            row = {"choices": CHOICES[number % len(CHOICES)]}
            answers: Any = [list(texts)]
            for make in chain.filters:
                answers = list(make().apply(answers, [row]))
            found.append({"chain": steps, "texts": texts, "row": row, "answer": answers[0]})
    return found


def scored() -> dict[str, Any]:
    """Metrics of random answers, by the harness, which asks scikit-learn; and its exact_match of texts."""
    generator, found = random.Random(7), []
    for labels in (2, 2, 2, 3, 4):
        pairs = [(generator.randrange(labels), generator.randrange(labels)) for _ in range(12)]
        logprobs = [[generator.uniform(-9, 0) for _ in range(labels)] for _ in pairs]
        shares = [np.exp(each) / np.exp(each).sum() for each in logprobs]
        golds = [gold for gold, _ in pairs]
        case = {"pairs": pairs, "logprobs": logprobs, "mcc": float(metrics.matthews_corrcoef(pairs))}
        case["brier_score"] = float(metrics.brier_score(list(zip(golds, shares, strict=True))))
        found.append(case | ({"f1": float(metrics.f1_score(pairs))} if labels == 2 else {}))
    options: list[dict[str, Any]] = [
        {},
        {"ignore_case": True},
        {"ignore_punctuation": True},
        {"ignore_numbers": True},
        {"ignore_case": True, "ignore_punctuation": True},
        {"ignore_case": True, "regexes_to_ignore": [",", "\\$", "(?s).*#### ", "\\.$"]},
        {"regexes_to_ignore": ["\\b(the|a) "]},
    ]
    texts = ["7", "7.", "$1,234", "1234.", "x\n#### 1,234", "The Oak", "oak", "the oak", "Øst-7", "øst–7", "", "!"]
    exact = [
        [
            given,
            gold,
            answer,
            float(get_metric("exact_match")(references=[gold], predictions=[answer], **given)["exact_match"]),
        ]
        for given in options
        for gold in texts
        for answer in texts
    ]
    return {"choices": found, "exact_match": [case for case in exact if case[3] or case[1] < case[2]]}


def main() -> None:
    for name, source in SOURCES.items():
        copied(name, TASKS / source)
    names = sorted(path.parent.name for path in HERE.glob("*/task.yaml"))
    requests = {name: {str(count): asked(name, count) for count in (0, 2)} for name in names}
    for name, made in (("requests", requests), ("filters", filtered()), ("metrics", scored())):
        (HERE / f"{name}.json").write_text(json.dumps(made, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
