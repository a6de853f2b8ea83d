"""Writes chats.json: the messages that lm-evaluation-harness makes of its task files for a model's chat template.

Run by hand with lm-eval 0.4.13 installed: `python tests/oracles/harness/make_chats.py`. For each task of this folder
and of files/, for 0 and 2 shots, each request: the row's number, the messages, whether the last one is only begun,
and the continuation. Of each task the first three rows; the system message is `SYSTEM` for every second task.
"""

from __future__ import annotations

import json
import os
from copy import deepcopy
from pathlib import Path
from typing import Any

from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks._yaml_loader import load_yaml

HERE = Path(__file__).parent
SEED = 1234
ROWS = 3
SYSTEM = "Answer in one word."
NO_CHAT = ("pile_arxiv",)  # whole texts


def as_json(messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
    """Stands in for a chat template, and shows what it is given."""
    return json.dumps([messages, not add_generation_prompt])


def asked(file: Path, count: int, system: str | None) -> list[list[Any]]:
    os.chdir(file.parent)
    task = ConfigurableTask(config={**load_yaml(file.name), "num_fewshot": count})
    task.set_fewshot_seed(SEED)
    task.build_all_requests(
        limit=ROWS, apply_chat_template=True, fewshot_as_multiturn=True, system_instruction=system,
        chat_template=as_json, tokenizer_name="json",
    )  # fmt: skip
    found = []
    for instance in task.instances:
        context, continuation = deepcopy(instance.args)
        if not isinstance(continuation, str):
            continuation = ""
        if context:  # nothing: what acc_mutual_info compares with
            found.append([instance.doc_id, *json.loads(context), continuation])
    return found


def main() -> None:
    found: dict[str, Any] = {}
    for number, file in enumerate(sorted([*HERE.glob("*.yaml"), *HERE.glob("files/*/task.yaml")])):
        name = str(file.relative_to(HERE))
        if file.stem in NO_CHAT or file.parent.name in NO_CHAT:
            continue
        system = SYSTEM if number % 2 else None
        found[name] = {"system": system, "asked": {str(count): asked(file, count, system) for count in (0, 2)}}
    (HERE / "chats.json").write_text(json.dumps(found, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
