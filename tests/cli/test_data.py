"""nextword data as a user meets it."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cli_run import run
from nextword.data import open_dataset


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXTWORD_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def sentences(count: int, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    words = "the a king queen went to of and in castle river stone old young night day".split()  # noqa: SIM905
    return [f"{number} " + " ".join(draw.choices(words, k=draw.randint(5, 20))) for number in range(count)]


def rows(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts))
    return path


@pytest.mark.parametrize("deduplicate", [False, True])
def test_the_report_counts_what_is_there(deduplicate: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = [*sentences(90), "Привет, мир", "日本語テキスト", "naïve"]
    folder = tmp_path / "text"
    folder.mkdir()
    source = rows(folder / "a.jsonl", [*texts, *texts[:20], " "])
    with source.open("a") as file:
        file.write("{broken\n")
    (folder / "notes.rst").write_text("x")
    options = ["--deduplicate"] if deduplicate else []
    code, out, err = run(capsys, "data", "prepare", str(folder), "--tokenizer", "bytes", "--skip-invalid",
                         *options, "--out", "tokens", "--json")  # fmt: skip
    assert code == 0, err
    found = json.loads(out)
    kept = texts if deduplicate else [*texts, *texts[:20]]
    lengths = sorted(len(text.encode()) for text in kept)
    assert found["documents"] == len(kept)
    assert found["duplicates"] == 20
    assert found["train"]["bytes"] + found["val"]["bytes"] == sum(lengths)
    assert found["train"]["tokens"] + found["val"]["tokens"] == sum(lengths) + len(kept)  # and an end for each
    assert found["bytes_per_document"]["least"] == lengths[0]
    assert found["bytes_per_document"]["median"] == np.quantile(lengths, 0.5, method="inverted_cdf")
    assert found["tokens_per_document"]["most"] == lengths[-1] + 1
    assert found["skipped"] == {"without text": 1, "broken row": 1, "file (.rst)": 1}
    letters = Counter(letter for text in kept for letter in text if letter.isalpha())
    latin = sum(count for letter, count in letters.items() if letter.isascii() or letter == "ï")
    assert found["scripts"] == {"Latin": latin, "Cyrillic": 9, "Katakana": 4, "Han": 3}
    shown = json.loads(run(capsys, "data", "show", "tokens", "--json")[1])
    assert shown == found


def test_the_tables_say_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = rows(tmp_path / "a.jsonl", sentences(60) + sentences(3))
    code, out, err = run(capsys, "data", "prepare", str(source), "--vocabulary", "300", "--out", "tokens")
    assert code == 0, err
    assert "tokenizing: " in err
    for line in ("duplicates  3 (kept", "scripts     Latin 100.0%", "skipped     nothing", "folder      tokens"):
        assert line in out


def test_samples_are_texts_that_were_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = sentences(60)
    run(capsys, "data", "prepare", str(rows(tmp_path / "a.jsonl", texts)), "--vocabulary", "300", "--out", "tokens")
    drawn = []
    for split in ("train", "val"):
        code, out, _ = run(
            capsys, "data", "sample", "tokens", "--split", split, "-n", "99", "--tokens", "999", "--json"
        )
        assert code == 0
        drawn += [text["text"] for text in json.loads(out)]
    assert sorted(drawn) == sorted(texts)
    code, out, _ = run(capsys, "data", "sample", "tokens", "-n", "2", "--tokens", "3")
    assert out.count("document ") == 2


def test_without_out_the_text_is_kept_in_the_cache_by_its_content(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = rows(tmp_path / "a.jsonl", sentences(60))
    first, again = (run(capsys, "data", "prepare", str(source), "--tokenizer", "bytes", "--json") for _ in range(2))
    folder = Path(json.loads(first[1])["folder"])
    assert folder.parent == tmp_path / "cache" / "data"
    assert again[1] == first[1]
    assert "tokenizing" not in again[2]


def test_conversations_are_prepared_with_a_models_own_template(
    tmp_path: Path, tiny_model: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}<|endoftext|>{% endfor %}" + (
        "{% if add_generation_prompt %}[assistant]{% endif %}")  # fmt: skip
    model = tiny_model(seed=7, chat_template=template)
    turns = [[{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": "yes"}] for n in range(40)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"messages": each}) + "\n" for each in turns))
    code, out, err = run(capsys, "data", "prepare", "a.jsonl", "--tokenizer", str(model), "--out", "tokens", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["train"]["targets"] + found["val"]["targets"] == 40 * len("yes.")
    sampled = json.loads(run(capsys, "data", "sample", "tokens", "-n", "1", "--json")[1])[0]
    assert sampled["targets"] == 4
    assert sampled["text"].endswith("[assistant]yes<|endoftext|>")


def test_only_the_assistants_tokens_are_in_the_loss_of_a_run(
    tmp_path: Path, tiny_model: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Step 0 is the held-out loss of the model as it was given; transformers computes it from the same rows."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    from nextword.train import timing

    monkeypatch.setattr(timing, "time_steps", partial(timing.time_steps, seconds=0.2))
    monkeypatch.setenv("NEXTWORD_LEDGER", str(tmp_path / "ledger.jsonl"))
    template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}<|endoftext|>{% endfor %}" + (
        "{% if add_generation_prompt %}[assistant]{% endif %}")  # fmt: skip
    model = tiny_model(seed=7, chat_template=template)
    turns = [[{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"it is {n}"}] for n in range(60)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"messages": each}) + "\n" for each in turns))
    code, _, err = run(
        capsys, "train", "a.jsonl", "--model", str(model), "--steps", "2", "--batch-size", "2", "--context", "64",
        "--train-dtype", "fp32", "--set", "train.packing=best-fit", "--set", "train.mask_documents=true",
        "--set", "data.val_fraction=0.2", "--out", "run", "--json",
    )  # fmt: skip
    assert code == 0, err
    measured = json.loads(Path("run/metrics.jsonl").read_text().splitlines()[0])
    data = open_dataset(json.loads(Path("run/run.json").read_text())["data"])
    reference, nats = transformers.AutoModelForCausalLM.from_pretrained(model).eval(), list[float]()
    for start, length in zip(data.val.segments.starts, data.val.segments.lengths, strict=True):
        ids = torch.tensor(data.val.read(start, length))
        answer = data.tokenizer().decode(ids.tolist()).partition("[assistant]")[2]
        with torch.no_grad():
            losses = -reference(ids[None]).logits[0, :-1].log_softmax(-1).gather(1, ids[1:, None])[:, 0]
        nats += losses[-len(answer) - 1 :].tolist()  # its bytes, and the end
    assert measured["step"] == 0
    assert measured["val"]["nats_per_token"] == pytest.approx(np.mean(nats), abs=1e-4)
    assert measured["val"]["tokens"] == len(nats)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["prepare"], "give the text"),
        (["prepare", "nowhere"], "no such file or folder"),
        (["prepare", "a.jsonl", "--tokenizer", "gpt9"], "give bpe, bytes, characters or a model"),
        (["prepare", "a.jsonl", "--vocabulary", "12"], "257"),
        (["prepare", "a.jsonl", "--val-fraction", "2"], "val_fraction"),
        (["prepare", "a.jsonl", "--encoding", "morse"], "latin-1"),
        (["prepare", "broken.jsonl"], "broken.jsonl, line 1"),
        (["prepare", "a.jsonl", "--cluster", "somewhere"], "--cluster"),
        (["prepare", "a.jsonl", "--column", "body"], "body"),
        (["show", "."], "Prepare it: nextword data prepare"),
        (["sample", "."], "Prepare it: nextword data prepare"),
    ],
)
def test_what_is_wrong_is_one_line(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows(tmp_path / "a.jsonl", sentences(60))
    (tmp_path / "broken.jsonl").write_text("{\n" * 30)
    code, out, err = run(capsys, "data", *arguments)
    assert (code, out) == (2, "")
    assert said in err
    assert len([line for line in err.splitlines() if line.startswith("nextword:")]) == 1


def test_a_killed_preparation_goes_on_where_it_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Killed from outside, once two shards are there; what they hold is not tokenized again."""
    source = rows(tmp_path / "a.jsonl", sentences(3000))
    program = """
import sys, time
from nextword.data import reader, tokenizing
tokenizing.BATCH, reader.SHARD = 5_000, 40_000
encode = tokenizing.Encoder.encode
def slowly(self, batch):
    time.sleep(0.02)
    return encode(self, batch)
tokenizing.Encoder.encode = slowly
from nextword.cli import main
main(sys.argv[1:])
"""
    command = ["data", "prepare", str(source), "--tokenizer", "bytes", "--out"]
    process = subprocess.Popen([sys.executable, "-c", program, *command, "cut"])
    while not (tmp_path / "cut" / "train-00001.bin").exists() and process.poll() is None:
        time.sleep(0.01)
    time.sleep(0.1)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    before = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "cut").glob("train-0000[01].bin")}
    assert len(before) == 2
    assert run(capsys, "data", "show", "cut")[0] == 2
    assert run(capsys, *command, "cut")[0] == 0
    assert run(capsys, *command, "whole")[0] == 0
    assert {name: (tmp_path / "cut" / name).stat().st_mtime_ns for name in before} == before
    cut, whole = (open_dataset(tmp_path / name, verify=True) for name in ("cut", "whole"))
    for side in ("train", "val"):
        one, other = getattr(cut, side), getattr(whole, side)
        assert one.tokens == other.tokens
        assert np.array_equal(one.read(0, one.tokens), other.read(0, other.tokens))
    assert cut.manifest.scripts == whole.manifest.scripts
