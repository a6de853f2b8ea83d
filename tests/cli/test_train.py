"""nextword train and runs as a user meets them."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from llama_cpp_server import llama_cpp
from nextword.cli import _console, main

SMALL = ["--params", "20k", "--context", "16", "--steps", "12", "--batch", "4", "--precision", "fp32", "--threads", "1"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of all tests here, so that the machine is measured once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _own_folders(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    from nextword.train import launch, probe

    # what a step takes here need not be known as well as for a run of hours
    monkeypatch.setattr(launch, "time_steps", partial(probe.time_steps, seconds=0.2))
    monkeypatch.setenv("NEXTWORD_CACHE", str(cache))
    monkeypatch.setenv("NEXTWORD_LEDGER", str(tmp_path / "ledger.jsonl"))
    monkeypatch.chdir(tmp_path)
    yield
    _console.output.cache_clear()
    _console.messages.cache_clear()


@pytest.fixture
def text(tmp_path: Path) -> Path:
    draw = random.Random(0)
    words = "the a king queen went to of and in castle river stone old young night day".split()  # noqa: SIM905
    folder = tmp_path / "books"
    folder.mkdir()
    for number in range(25):
        (folder / f"{number}.txt").write_text(" ".join(draw.choices(words, k=400)) + ".\n")
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    _console.output.cache_clear()  # they hold the streams of the call before
    _console.messages.cache_clear()
    code = main(list(arguments))
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.mark.parametrize("kind", ["transformer", "lstm"])
def test_text_becomes_a_model_with_its_plan_beside_what_was_measured(
    kind: str, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, "train", str(text), *SMALL, "--model", kind, "--out", "run", "--json")
    assert code == 0, err
    report = json.loads(out)
    assert report["measured"]["tokens"] == 12 * 4 * 16
    assert report["predicted"]["seconds"] > 0
    assert report["run"]["model"]["kind"] == kind
    assert json.loads((tmp_path / "run" / "report.json").read_text())["measured"] == report["measured"]
    code, out, err = run(capsys, "complete", "--model", "run", "--greedy", "--max-tokens", "5", "the king")
    assert code == 0, err
    code, out, _ = run(capsys, "plan", "verify", "--json")
    assert code == 0
    assert json.loads(out)["runs"][0]["tokens"] == 12 * 4 * 16
    assert json.loads(out)["corrections"][0]["loss_interval_is"].startswith("±15% assumed")


def test_a_forgotten_run_is_no_longer_in_the_ledger(text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "train", str(text), *SMALL, "--out", "run")[0] == 0
    code, _, err = run(capsys, "runs", "forget", "run")
    assert (code, err.startswith("1 entry taken out of")) == (0, True)
    assert json.loads(run(capsys, "plan", "verify", "--json")[1])["runs"] == []
    code, _, err = run(capsys, "runs", "forget", "run")
    assert (code, "has no entry of run" in err) == (2, True)
    code, _, err = run(capsys, "runs", "forget")
    assert (code, "--all" in err) == (2, True)
    assert run(capsys, "runs", "forget", "--all")[0] == 0


def test_a_fine_tuned_run_counts_frozen_weights_as_they_are_computed_and_names_its_peak(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from nextword.plan import RunConfig, flops

    assert run(capsys, "train", str(text), *SMALL, "--out", "run")[0] == 0
    tuned = ("train", str(text), *SMALL, "--from", "run", "--lora", "2", "--threads", "1", "--out", "tuned")
    code, out, err = run(capsys, *tuned)
    assert code == 0, err
    assert re.search(r"1 thread *\n", out)
    assert re.search(r"the peak: [\d,]+ GFLOP/s, (float32|bfloat16) products, measured on this CPU", out)
    measured = json.loads((tmp_path / "tuned" / "report.json").read_text())["measured"]
    config = RunConfig.from_dict(json.loads((tmp_path / "tuned" / "run.json").read_text())["run"])
    work = flops(config.model, config.context, measured["tokens"], lora=2).total
    assert measured["share_of_peak"] == pytest.approx(work / measured["seconds"] / measured["peak"])


def test_the_folder_opens_in_transformers_with_equal_logits(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    assert run(capsys, "train", str(text), *SMALL, "--out", "run")[0] == 0
    import nextword

    ours = nextword.load("run", dtype="float32")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "run", dtype=torch.float32)
    tokens = transformers.AutoTokenizer.from_pretrained(tmp_path / "run")
    ids = ours.encode("the queen went to the river")
    assert tokens("the queen went to the river", add_special_tokens=False).input_ids == ids
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).logits
        found = ours.engine.model(torch.tensor([ids]))[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_a_model_of_real_text_exported_as_gguf_goes_on_alike_in_nextword_and_llama_cpp(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import nextword

    licence = (Path(__file__).parents[2] / "LICENSE").read_text(encoding="utf-8")
    (tmp_path / "licence.txt").write_text("\n".join(line.strip() for line in licence.splitlines()))
    larger = ["--params", "60k", "--context", "64", "--steps", "400", "--batch", "8", "--vocabulary", "300"]
    code, _, err = run(capsys, "train", "licence.txt", *SMALL, *larger, "--learning-rate", "0.01", "--out", "run")
    assert code == 0, err
    assert run(capsys, "runs", "export", "run", "model.gguf")[0] == 0
    folder, file = nextword.load("run", dtype="float32"), nextword.load("model.gguf", dtype="float32")
    prompts = ["You may reproduce and distribute", "the Work", "Licensor shall not be liable"]
    expected = [file.complete(prompt, temperature=0.0, max_tokens=16) for prompt in prompts]
    found = [folder.complete(prompt, temperature=0.0, max_tokens=16) for prompt in prompts]
    assert [each.ids for each in found] == [each.ids for each in expected]
    assert len({each.text for each in expected}) == len(prompts)  # not one answer to all
    with llama_cpp(tmp_path / "model.gguf") as ask:
        for prompt, ours in zip(prompts, expected, strict=True):
            theirs = ask("/completion", {"prompt": prompt, "n_predict": 16, "temperature": 0, "return_tokens": True})
            assert ask("/tokenize", {"content": prompt})["tokens"] == folder.encode(prompt)
            assert theirs["tokens"] == list(ours.ids)


def test_the_steps_of_a_run_are_in_tensorboards_event_files(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    assert run(capsys, "train", str(text), *SMALL, "--tensorboard", "--out", "run")[0] == 0
    events = accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "loss" in row]
    for name, key in (("loss", "loss"), ("learning_rate", "learning_rate"), ("norm", "gradient_norm")):
        found = [(each.step, each.value) for each in events.Scalars(name)]
        assert found == [(row["step"], pytest.approx(row[key], rel=1e-6)) for row in steps]
    found = [(each.step, each.value) for each in events.Scalars("heldout")]
    heldout = [(row["step"], pytest.approx(row["heldout"]["nats_per_token"])) for row in rows if "heldout" in row]
    assert found == heldout
    assert heldout


def test_event_files_without_tensorboard_say_what_to_install(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    code, _, err = run(capsys, "train", str(text), *SMALL, "--tensorboard", "--out", "run")
    assert code == 1
    assert "pip install 'nextword[tensorboard]'" in " ".join(err.split())
    assert not list(tmp_path.rglob("run.json"))


def test_runs_are_listed_shown_compared_and_exported(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, seed in (("a", "0"), ("b", "1")):
        assert run(capsys, "train", str(text), *SMALL, "--seed", seed, "--out", f"runs/{name}")[0] == 0
    code, out, _ = run(capsys, "runs", "list", "--json")
    assert code == 0
    assert [row["folder"] for row in json.loads(out)] == ["runs/a", "runs/b"]
    code, out, _ = run(capsys, "runs", "show", "runs/a")
    assert code == 0
    assert "held-out loss" in out
    code, out, _ = run(capsys, "runs", "compare", "runs/a", "runs/b", "--plot", "both.svg")
    assert code == 0
    assert "training.seed: 0 -> 1" in " ".join(out.split())
    assert (tmp_path / "both.svg").read_text().startswith("<?xml")
    assert run(capsys, "runs", "export", "runs/a", "folder")[0] == 0
    assert (tmp_path / "folder" / "model.safetensors").exists()
    code, _, err = run(capsys, "runs", "export", "runs/a", "other", "--step", "3")
    assert code == 2
    assert "no checkpoint of step 3; it has" in err


def test_ctrl_c_keeps_a_checkpoint_and_a_model_and_resume_goes_on(text: Path, tmp_path: Path) -> None:
    import signal
    import time

    arguments = [sys.executable, "-m", "nextword", "train", str(text), *SMALL, "--steps", "4000", "--out", "run"]
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        metrics = tmp_path / "run" / "metrics.jsonl"
        while process.poll() is None and not (metrics.exists() and metrics.read_text().count("\n") > 20):
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "nextword runs resume run" in " ".join(err.split())
    assert "Traceback" not in err
    assert list((tmp_path / "run" / "checkpoints").glob("step-*"))
    assert (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["train"], "give the text to train on"),
        (["train", "nosuch", "--minutes", "1"], "no such file or folder"),
        (["train", "{text}"], "give a budget"),
        (["train", "{text}", "--minutes", "1", "--flops", "1e12"], "budgets of their own"),
        (["train", "{text}", "--minutes", "1", "--lora", "4"], "--from"),
        (["train", "{text}", "--steps", "3", "--device", "cuda:9"], "--device cpu"),
        (["train", "{text}", *SMALL, "--carry-state"], "no state to carry"),
        (["train", "{text}", *SMALL, "--batch", "100000"], "smaller batch"),
        (["train", "{text}", *SMALL, "--compile"], "--compile gains nothing"),
        (["train", "{tiny}", "--minutes", "1"], "at least 2,000 characters"),
        (["train", "{rows}", "--minutes", "1"], "line 2"),
        (["train", "{binary}", "--minutes", "1"], "no text"),
        (["runs", "resume", "nosuch"], "not a run's folder"),
        (["runs", "compare", "a"], "at least two runs"),
        (["compare-context"], "give the text"),
        (["compare-context", "{text}", "--kinds", "lstm,mamba"], "'mamba' is not known"),
    ],
)
def test_bad_input_gets_one_line_that_names_the_fix(
    arguments: list[str], wanted: str, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tiny.txt").write_text("too little")
    (tmp_path / "rows.jsonl").write_text('{"text": "good"}\n{bad\n')
    (tmp_path / "binary.txt").write_bytes(b"a\0b")
    places = {"{text}": str(text), "{tiny}": "tiny.txt", "{rows}": "rows.jsonl", "{binary}": "binary.txt"}
    code, _, err = run(capsys, *(places.get(each, each) for each in arguments))
    last = err.strip().splitlines()[-1]
    assert code == 2
    assert last.startswith("nextword: ")
    assert wanted in last
    assert not list(tmp_path.rglob("run.json"))  # which would be in the way of the next try
    assert "Traceback" not in err


def test_a_run_begun_otherwise_is_not_resumed(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from nextword.base import UsageError
    from nextword.train.session import resume

    assert run(capsys, "train", str(text), *SMALL, "--out", "run")[0] == 0
    with pytest.raises(UsageError, match=r"training.learning_rate: .* -> 0.5"):
        resume(tmp_path / "run", {"learning_rate": 0.5})
    code, _, err = run(capsys, "train", str(text), *SMALL, "--out", "run")
    assert code == 2
    assert "holds a run already" in err


def test_a_full_disk_keeps_the_last_good_checkpoint(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from nextword.train import checkpoint

    write, calls = checkpoint._write, []

    def full(tensors: dict[str, object], folder: Path) -> None:
        calls.append(folder)
        if len(calls) == 3:
            raise OSError(28, os.strerror(28))
        write(tensors, folder)

    monkeypatch.setattr(checkpoint, "_write", full)
    code, _, err = run(capsys, "train", str(text), *SMALL, "--checkpoint-every", "4", "--out", "run")
    assert code == 1
    assert "no space left on device" in err
    assert "the last good one is step-00000008" in err
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["step-00000004", "step-00000008"]
