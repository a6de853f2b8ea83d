"""How fast do lm-evaluation-harness's tasks run on nextword's engine, beside its own `hf` model, with equal results?

    python benchmarks/evaluate.py [--rounds 3] [--items 200] [--shots 0,8] [--json]

One task (reviews: the rows of nextword's sentiment task, with the pool's first examples as shots for every item), one
model (SmolLM2-135M-Instruct as float32), the same harness, the same requests. Each system runs in a process of its
own, in turn, round after round; medians are printed. Loading the model is not counted; rendering, tokenizing and
scoring are. The `hf` model chooses its batch size ("auto") unless --batch says one.
Needs: pip install 'nextword[lm-eval]' transformers accelerate

off        largest difference of any log-likelihood from the `hf` model's, nats
as stored  the same with matrices as they are stored in the GGUF, a faster path that changes numbers: mean absolute
           difference of the log-likelihoods, and the accuracy, are its cost
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TASKS = Path(__file__).parent.parent / "src/nextword/evals/tasks"
MODEL = "smollm2-135m-instruct"
SYSTEMS = ("hf", "nextword float32", "nextword as stored")
_COLUMNS = (("seconds", 9), ("times", 8), ("accuracy", 10), ("off", 10), ("mean off", 10), ("peak MB", 9))


def prepare(folder: Path, items: int) -> None:
    """The model as a Hugging Face folder, and the task over a sample of the items."""
    import yaml

    from nextword.weights.catalogue import resolve
    from nextword.weights.conversion import convert

    convert(resolve(MODEL), folder / "model")
    rows = (TASKS / "sentiment-test.jsonl").read_text(encoding="utf-8").splitlines()
    (folder / "test.jsonl").write_text("\n".join(random.Random(0).sample(rows, items)) + "\n", encoding="utf-8")
    (folder / "train.jsonl").write_bytes((TASKS / "sentiment-train.jsonl").read_bytes())
    task = {
        "task": "reviews", "dataset_path": "json", "output_type": "multiple_choice",
        "dataset_kwargs": {"data_files": {split: str(folder / f"{split}.jsonl") for split in ("train", "test")}},
        "test_split": "test", "fewshot_split": "train", "fewshot_config": {"sampler": "first_n"},
        "doc_to_text": "Review: {{text}}\nSentiment:", "doc_to_target": "label",
        "doc_to_choice": ["negative", "positive"], "metric_list": [{"metric": "acc"}],
    }  # fmt: skip
    (folder / "reviews.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")


def run_system(folder: Path, system: str, shots: int, batch: str) -> dict[str, Any]:
    """One system on the task."""
    sys.path.pop(0)  # lm_eval imports a package called as this file is
    import lm_eval
    from lm_eval.tasks import TaskManager

    if system == "hf":
        from lm_eval.models.huggingface import HFLM

        model = HFLM(pretrained=str(folder / "model"), dtype="float32", batch_size=batch, device="cpu")
    else:
        from nextword.evals.lm_eval_adapter import NextwordLM

        model = NextwordLM(MODEL, dtype="float32" if system.endswith("float32") else "auto")
    manager = TaskManager(include_defaults=False)
    began = time.perf_counter()
    results = lm_eval.simple_evaluate(
        model, tasks=[str(folder / "reviews.yaml")], num_fewshot=shots, task_manager=manager, bootstrap_iters=0
    )
    seconds = time.perf_counter() - began
    samples = sorted(results["samples"]["reviews"], key=lambda sample: sample["doc_id"])
    return {
        "seconds": seconds,
        "accuracy": results["results"]["reviews"]["acc,none"],
        "logprobs": [[float(answer[0][0]) for answer in sample["resps"]] for sample in samples],
        "peak_mb": peak_mb(),
    }


def peak_mb() -> float:
    """Largest resident size of this process, MB; unlike getrusage's, not that of the one it was forked from."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6


def measure(folder: Path, *arguments: str) -> dict[str, Any]:
    """One system in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--worker", str(folder), *arguments], capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{arguments}: {done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def compare(results: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, float]]:
    """Medians, ratios to the `hf` model, and how far log-likelihoods lie from its."""
    truth = results["hf"][0]["logprobs"]
    base = statistics.median(run["seconds"] for run in results["hf"])
    table = {}
    for system, runs in results.items():
        seconds = statistics.median(run["seconds"] for run in runs)
        pairs = zip(runs[0]["logprobs"], truth, strict=True)
        off = [abs(a - b) for own, other in pairs for a, b in zip(own, other, strict=True)]
        table[system] = {
            "seconds": seconds, "times": base / seconds, "accuracy": runs[0]["accuracy"], "largest_off": max(off),
            "mean_off": statistics.mean(off), "peak_mb": statistics.median(run["peak_mb"] for run in runs),
        }  # fmt: skip
    return table


def main() -> None:
    """Run the systems in turn and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--shots", default="0,8")
    parser.add_argument("--batch", default="auto")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        folder, system, shots = given.worker
        print(json.dumps(run_system(Path(folder), system, int(shots), given.batch)))
        return
    tables = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, given.items)
        for shots in given.shots.split(","):
            results: dict[str, list[dict[str, Any]]] = {system: [] for system in SYSTEMS}
            for number in range(given.rounds):
                print(f"{shots} shots, round {number + 1} of {given.rounds}", file=sys.stderr)
                for system, runs in results.items():
                    runs.append(measure(folder, system, shots, "--batch", given.batch))
            tables[shots] = compare(results)
    if given.json:
        print(json.dumps(tables, indent=2))
        return
    for shots, table in tables.items():
        heads = "".join(f"{head:>{width}}" for head, width in _COLUMNS)
        print(f"\n{shots} shots, {given.items} items\n{'':20}{heads}")
        for system, row in table.items():
            print(
                f"{system:20}{row['seconds']:9.2f}{row['times']:8.2f}{row['accuracy']:10.3f}{row['largest_off']:10.5f}"
                f"{row['mean_off']:10.5f}{row['peak_mb']:9.0f}"
            )


if __name__ == "__main__":
    main()
