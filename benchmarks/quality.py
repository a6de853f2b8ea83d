"""What does each way of computing cost in loss? Nats a token more than the float32 model, on a text of yours.

    python benchmarks/quality.py TEXT_FILE [--windows 8] [--context 512]

Reads the first windows x context tokens of the text, each window on its own, with the default model (a Q4_1 GGUF):
weights dequantized to float32; packed as stored, with activations rounded to int8 in blocks of 32; weights rounded
again to 8 bits. llama.cpp reads the same tokens where llama-cpp-python is installed.
"""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

import numpy as np

import nextword

MODEL = "smollm2-135m-instruct"


def ours(dtype: str, windows: list[list[int]]) -> float:
    model = nextword.load(MODEL, dtype=dtype)  # type: ignore[arg-type]
    return -float(np.mean([token.logprob for window in windows for token in model.logprobs(window).tokens[1:]]))


def llama_cpp(windows: list[list[int]]) -> float:
    from llama_cpp import Llama

    from nextword.weights.catalogue import resolve

    model = Llama(str(resolve(MODEL)), n_ctx=len(windows[0]), logits_all=True, verbose=False)
    losses = []
    for window in windows:
        model.reset()
        model.eval(window)
        logits = np.array(model.scores[: len(window) - 1], np.float64)
        top = logits.max(-1, keepdims=True)
        total = top[:, 0] + np.log(np.exp(logits - top).sum(-1))
        losses.append(total - logits[np.arange(len(window) - 1), window[1:]])
    return float(np.mean(np.concatenate(losses)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--context", type=int, default=512)
    options = parser.parse_args()
    ids = nextword.load(MODEL, dtype="float32").encode(options.text.read_text(encoding="utf-8"))
    ids = ids[: options.windows * options.context]
    windows = [ids[start : start + options.context] for start in range(0, len(ids), options.context)]
    exact = ours("float32", windows)
    print(f"{'float32':24} {exact:.4f} nats a token over {len(ids)} tokens")
    found = {"packed as stored": ours("auto", windows), "int8": ours("int8", windows)}
    if importlib.util.find_spec("llama_cpp"):
        found["llama.cpp"] = llama_cpp(windows)
    for name, loss in found.items():
        print(f"{name:24} {loss - exact:+.4f}")


if __name__ == "__main__":
    main()
