"""The golden numbers: `python tests/golden/make.py [TOPIC ...]` computes them anew and rewrites their JSON files.

A topic is a function here and a file of the same name. test_golden.py calls the same functions and compares.

They are computed in a process with SETTINGS. The int8 path rounds activations: where torch's own products or sums
differ in the last bit, some round to the other side, and single log probabilities move by tenths of a nat. Of the
evaluation's 80 they moved by at most 0.25 from ATen's AVX-512 to its AVX2 code and 0.65 to its scalar code, which is
also how far they are from float32's. In float32 itself they move by less than 1e-4.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

import nextword
from nextword import native, plan
from nextword.data import prepare, train_tokenizer
from nextword.evals.design import Design, ScoringConfig
from nextword.evals.eval_run import EvalRun
from nextword.evals.store import opened
from nextword.evals.task_loader import open_task
from nextword.families.published import known_spec
from nextword.models import build
from nextword.models.weights import write_model
from nextword.plan import fit_law, fit_on, read_runs
from nextword.plan.run_config import DataConfig, ModelConfig, RunConfig, RunSettings, TrainConfig
from nextword.spec import ModelSpec
from nextword.train.callbacks import Callbacks, TrainStep
from nextword.train.run import train_run

HERE = Path(__file__).parent
KINDS = ("transformer", "rnn", "lstm", "gru")
PROMPT = "I like to eat"
SEEDS = {"transformer": 32, "rnn": 32, "lstm": 59, "gru": 55, "auto": 703, "float32": 224}  # see margins_of_ids.json
ITEMS = {"auto": 20, "float32": 3}  # of the evaluation, for each type of SmolLM2's weights
SETTINGS = {  # one thread, and the same arithmetic on every x86 processor with AVX2
    "OMP_NUM_THREADS": "1", "ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "COMPATIBLE", "ONEDNN_MAX_CPU_ISA": "AVX2",
}  # fmt: skip

Values = dict[str, Any]


def tiny_spec(kind: str) -> ModelSpec:
    """Two layers over bytes and an end of text."""
    attention = {"heads": 2, "kv_heads": 1, "head_width": 8, "mlp_width": 32} if kind == "transformer" else {}
    return ModelSpec(kind=kind, vocabulary=257, width=16, layers=2, context=128, **attention)  # type: ignore[arg-type]


# ---- training


class Losses(Callbacks):
    """Keeps the loss of every step."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_step(self, step: TrainStep) -> None:
        self.losses.append(step.loss)


def training() -> Values:
    """20 losses of a run on the LICENSE's bytes in float32, in nats per token, for each kind of model."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = shutil.copy(HERE.parents[1] / "LICENSE", folder / "text.txt")
        data = prepare([text], folder / "data", DataConfig(tokenizer="bytes"))
        return {kind: _losses(kind, data, folder / kind) for kind in KINDS}


def _losses(kind: str, data: Any, folder: Path) -> list[float]:
    train = TrainConfig(
        steps=20, context=32, batch_size=8, micro_batch=4, learning_rate=1e-2, final_learning_rate=1e-3, warmup_steps=3,
        schedule="cosine", dtype="fp32", seed=7,
    )  # fmt: skip
    config = RunConfig(ModelConfig(spec=tiny_spec(kind)), train=train, run=RunSettings(device="cpu", threads=1))
    callbacks = Losses()
    train_run(config, data, folder, callbacks)
    return callbacks.losses


# ---- generation


def ids_of_tiny_models() -> Values:
    """32 ids after the PROMPT of an untrained model of each kind, at temperature 0 and at 1."""
    with tempfile.TemporaryDirectory() as folder:
        return {kind: _completions(_tiny_model(kind, Path(folder) / kind), SEEDS[kind]) for kind in KINDS}


def _tiny_model(kind: str, folder: Path) -> nextword.LanguageModel:
    torch.manual_seed(0)
    model = build(tiny_spec(kind)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=1.2)  # as peaked as a trained one
    write_model(folder, model, train_tokenizer(["x"], "bytes"))
    return nextword.load(folder, dtype="float32", device="cpu")


def ids_of_smollm2() -> Values:
    """32 ids after the PROMPT of SmolLM2-135M, as it is stored (in int8) and in float32."""
    return {dtype: _completions(_smollm2(dtype), SEEDS[dtype]) for dtype in ITEMS}


@cache
def _smollm2(dtype: str) -> nextword.LanguageModel:
    model = nextword.load(dtype=dtype, device="cpu")  # type: ignore[arg-type]
    assert (model.loaded.precision == "float32") == (dtype == "float32"), "the compiled kernels were not built here"
    return model


def _completions(model: nextword.LanguageModel, seed: int) -> Values:
    return {
        "temperature 0": list(model.complete(PROMPT, temperature=0, max_tokens=32).ids),
        f"temperature 1, seed {seed}": list(model.complete(PROMPT, temperature=1, seed=seed, max_tokens=32).ids),
    }


def margins_of_ids() -> Values:
    """How near the ids are to others: nats to the second likeliest, probability from a draw to its token's bounds."""
    with tempfile.TemporaryDirectory() as folder:
        tiny = {kind: _margins(_tiny_model(kind, Path(folder) / kind), SEEDS[kind]) for kind in KINDS}
    return tiny | {dtype: _margins(_smollm2(dtype), SEEDS[dtype]) for dtype in ITEMS}


def _margins(model: nextword.LanguageModel, seed: int) -> Values:
    greedy = model.complete(PROMPT, temperature=0, max_tokens=32, top_logprobs=2)
    gaps = [math.log(step.alternatives[0].probability / step.alternatives[1].probability) for step in greedy.tokens]
    whole = model.spec.vocabulary
    drawn = model.complete(PROMPT, temperature=1, seed=seed, max_tokens=32, top_logprobs=whole)
    return {"nats": min(gaps), "probability": min(_room(step, seed) for step in drawn.tokens)}


def _room(step: Any, seed: int) -> float:
    """From a step's random number, Philox by seed, sample and position, to the nearer end of its token's share."""
    key, counter = np.array([seed, 0], np.uint64), np.array([step.position, 0, 0, 0], np.uint64)
    number = float(np.random.Philox(key=key, counter=counter).random_raw() >> 11) * 2.0**-53
    ends = np.cumsum([alternative.sampled_prob for alternative in step.alternatives])
    place = int(np.searchsorted(ends, number, side="right"))
    assert step.alternatives[place].id == step.id, "the draw is not the one that its random number makes"
    return float(min(number - (ends[place - 1] if place else 0.0), ends[place] - number))


# ---- plans and laws


def plans() -> Values:
    """Five plans, all digits: bytes, FLOPs, tokens, seconds."""
    gpt2, budget = known_spec("gpt2"), plan.optimum(5.76e23)
    assert gpt2 is not None
    serving = plan.Serving(batch=16, context=1024)
    fit = fit_on(gpt2, serving, plan.device("a100"))
    return {
        "memory to serve gpt2, 16 x 1024": plan.memory(gpt2, serving).total,
        "memory to train gpt2, 8 x 1024": plan.memory(gpt2, plan.Training(batch=8, context=1024)).total,
        "optimum of 5.76e23 FLOPs": [budget.parameters, budget.tokens, budget.loss],
        "fit of gpt2 on an A100": [fit.fits, fit.headroom, fit.devices_needed],
        "time to train gpt2 on 300e9 tokens": plan.duration(plan.flops(gpt2, tokens=300e9).rule.value, 8, 312e12).value,
    }


def laws() -> Values:
    """E, A, B, alpha, beta and the objective, fitted to Epoch AI's points."""
    runs = read_runs(HERE.parent / "oracles/epoch_chinchilla.csv")
    return {
        "huber": _constants(runs.without_highest(5), "huber"),
        "huber, all points": _constants(runs, "huber"),
        "nnls, all points": _constants(runs, "nnls"),
    }


def _constants(runs: plan.Runs, method: Any) -> Values:
    fit = fit_law(runs, method, bootstrap=0, hold_out=False)
    law = fit.law
    return {"E": law.E, "A": law.A, "B": law.B, "alpha": law.alpha, "beta": law.beta, "objective": fit.objective}


# ---- evaluation


def evaluation() -> Values:
    """The sentiment task with SmolLM2 as stored and in float32: accuracies, answers, ln p of both labels in nats."""
    return {dtype: _evaluation(_smollm2(dtype), items) for dtype, items in ITEMS.items()}


def _evaluation(model: nextword.LanguageModel, items: int) -> Values:
    design = Design(shots=(0, 2), fewshot_seeds=1, limit=items, baselines=False)
    with opened(None) as store:
        results = EvalRun(open_task("sentiment"), [model], design, ScoringConfig(), store).run().conditions
    return {f"{result.condition.shots} shots": _table(result) for result in results}


def _table(result: Any) -> Values:
    return {
        "accuracy": result.metrics["acc"],
        "answers": [answer.choices[answer.prediction] for answer in result.answers],
        "logprobs": [logprob for answer in result.answers for logprob in answer.logprobs],
    }


# ---- files

TOPICS: dict[str, Callable[[], Values]] = {
    function.__name__: function
    for function in (training, ids_of_tiny_models, plans, laws, ids_of_smollm2, evaluation, margins_of_ids)
}


def computed(*topics: str) -> Values:
    """The values of topics, computed now in a process of its own."""
    command = [sys.executable, __file__, "--print", *topics]
    process = subprocess.run(command, env=os.environ | SETTINGS, stdout=subprocess.PIPE, text=True, check=True)
    values: Values = json.loads(process.stdout)
    return values


def stored(topic: str) -> Values:
    """The values in a topic's file."""
    values: Values = json.loads((HERE / f"{topic}.json").read_text())["values"]
    return values


def readable(value: Any, indent: str = "") -> str:
    """JSON with a line for each entry of a dictionary, and lists on one line."""
    if not isinstance(value, dict):
        return json.dumps(value)
    entries = ",\n".join(f"{indent} {json.dumps(key)}: {readable(item, indent + ' ')}" for key, item in value.items())
    return f"{{\n{entries}\n{indent}}}"


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["--print"]:
        if native.available():
            native.limit_level("avx2")
        print(json.dumps({topic: TOPICS[topic]() for topic in arguments[1:]}))
        return
    for topic, values in computed(*(arguments or TOPICS)).items():
        about = {"made by": f"python tests/golden/make.py {topic}", "what": TOPICS[topic].__doc__, "values": values}
        (HERE / f"{topic}.json").write_text(readable(about) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
