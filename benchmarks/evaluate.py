"""How fast are prompts measured, beside lm-evaluation-harness with its transformers model, and are the results equal?

    python benchmarks/evaluate.py [--rounds 3] [--items 200] [--shots 0,8] [--harness PYTHON] [--json]

One task (reviews, nextword's own sentiment task with the pool's first examples as shots for every item, which both
support as `sampler: first_n`), one model (SmolLM2-135M-Instruct as float32), the same items. Each contender runs in a
process of its own, in turn, round after round; medians are printed. Loading the model is not counted; rendering,
tokenizing and scoring are. The harness chooses its batch size ("auto") unless --batch says one. PYTHON is an
interpreter with lm-eval and transformers.

off     largest difference of any log-likelihood from the harness's, nats
stored  the same with matrices as they are stored in the GGUF, a faster path that changes numbers: mean absolute
        difference of the log-likelihoods, and the accuracy, are its cost
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TASK = Path(__file__).parent.parent / "src/nextword/evals/tasks/sentiment.yaml"
MODEL = "smollm2-135m-instruct"
_COLUMNS = (("seconds", 9), ("times", 8), ("accuracy", 10), ("off", 10), ("mean off", 10), ("peak MB", 9))


def prepare(folder: Path, items: int) -> None:
    """The model as a Hugging Face folder, and the task with fixed shots over the first items of a seeded shuffle."""
    import random

    import yaml

    import nextword
    from nextword.weights.conversion import write_model

    loaded = nextword.load(MODEL, dtype="float32").loaded
    write_model(folder / "model", loaded.model, loaded.tokenizer)
    task = yaml.safe_load(TASK.read_text(encoding="utf-8"))
    rows = (TASK.parent / "sentiment-test.jsonl").read_text(encoding="utf-8").splitlines()
    chosen = random.Random(0).sample(rows, items)
    (folder / "test.jsonl").write_text("\n".join(chosen) + "\n", encoding="utf-8")
    pool = (TASK.parent / "sentiment-train.jsonl").read_text(encoding="utf-8")
    (folder / "train.jsonl").write_text(pool, encoding="utf-8")
    files = {"train": str(folder / "train.jsonl"), "test": str(folder / "test.jsonl")}
    task |= {"dataset_kwargs": {"data_files": files}, "fewshot_config": {"sampler": "first_n"}, "task": "reviews"}
    (folder / "reviews.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")


def nextword_worker(folder: Path, shots: int, dtype: str) -> dict[str, Any]:
    """Our evaluation, without a store."""
    import nextword
    from nextword.evals.evaluation import Evaluation, Settings
    from nextword.evals.harness import load_harness_task
    from nextword.evals.store import opened
    from nextword.evals.trials import Design

    model = nextword.load(MODEL, dtype=dtype)
    model.complete("warm", max_tokens=2)
    began = time.perf_counter()
    task = load_harness_task(folder / "reviews.yaml")
    with opened(None) as store:
        design = Design((shots,), draws=1, select="first", baselines=False)
        evaluation = Evaluation({"reviews": task}, [model], design, Settings(), store)
        cell = evaluation.run().cells[0]
    seconds = time.perf_counter() - began
    return {
        "seconds": seconds,
        "accuracy": float(cell.scores.mean()),
        "logprobs": [answer.logprobs for answer in cell.answers],
        "tokens": evaluation.askers[0].tokens_read,
    }


def harness_worker(folder: Path, shots: int, batch: str) -> dict[str, Any]:
    """lm-evaluation-harness on the same files."""
    sys.path.pop(0)  # it imports a package called as this file is
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    model = HFLM(pretrained=str(folder / "model"), dtype="float32", batch_size=batch, device="cpu")
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    began = time.perf_counter()
    found = lm_eval.simple_evaluate(
        model, tasks=["reviews"], num_fewshot=shots, task_manager=manager, bootstrap_iters=0, log_samples=True
    )
    seconds = time.perf_counter() - began
    samples = sorted(found["samples"]["reviews"], key=lambda sample: sample["doc_id"])
    return {
        "seconds": seconds,
        "accuracy": found["results"]["reviews"]["acc,none"],
        "logprobs": [[float(pair[0][0]) for pair in sample["resps"]] for sample in samples],
    }


def peak_mb() -> float:
    """Largest resident size of this process, MB; unlike getrusage's, not that of the one it was forked from."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6


def measure(python: str, folder: Path, *arguments: str) -> dict[str, Any]:
    """One contender in a process of its own."""
    command = [python, __file__, "--worker", str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{arguments}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(found: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, float]]:
    """Medians, ratios to the harness, and how far log-likelihoods lie from its."""
    truth = found["lm-eval"][0]["logprobs"]
    base = statistics.median(each["seconds"] for each in found["lm-eval"])
    table = {}
    for name, rounds in found.items():
        seconds = statistics.median(each["seconds"] for each in rounds)
        off = [
            abs(a - b)
            for row, other in zip(rounds[0]["logprobs"], truth, strict=True)
            for a, b in zip(row, other, strict=True)
        ]
        table[name] = {
            "seconds": seconds, "times": base / seconds, "accuracy": rounds[0]["accuracy"], "largest_off": max(off),
            "mean_off": statistics.mean(off), "peak_mb": statistics.median(each["peak_mb"] for each in rounds),
        }  # fmt: skip
    return table


def main() -> None:
    """Run the contenders in turn and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--shots", default="0,8")
    parser.add_argument("--batch", default="auto")
    parser.add_argument("--harness", default=sys.executable, help="a Python with lm-eval")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        folder, name, shots = Path(given.worker[0]), given.worker[1], int(given.worker[2])
        if name == "lm-eval":
            found = harness_worker(folder, shots, given.worker[3])
        else:
            found = nextword_worker(folder, shots, given.worker[3])
        found["peak_mb"] = peak_mb()
        print(json.dumps(found))
        return
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        prepare(folder, given.items)
        results = {}
        for shots in given.shots.split(","):
            found = {"lm-eval": [], "nextword float32": [], "nextword as stored": []}
            for number in range(given.rounds):
                print(f"{shots} shots, round {number + 1} of {given.rounds}", file=sys.stderr)
                found["lm-eval"].append(measure(given.harness, folder, "lm-eval", shots, given.batch))
                found["nextword float32"].append(measure(sys.executable, folder, "nextword", shots, "float32"))
                found["nextword as stored"].append(measure(sys.executable, folder, "nextword", shots, "auto"))
            results[shots] = compare(found)
    if given.json:
        print(json.dumps(results, indent=2))
        return
    for shots, table in results.items():
        heads = "".join(f"{head:>{width}}" for head, width in _COLUMNS)
        print(f"\n{shots} shots, {given.items} items\n{'':20}{heads}")
        for name, row in table.items():
            print(
                f"{name:20}{row['seconds']:9.2f}{row['times']:8.2f}{row['accuracy']:10.3f}{row['largest_off']:10.5f}"
                f"{row['mean_off']:10.5f}{row['peak_mb']:9.0f}"
            )


if __name__ == "__main__":
    main()
