"""nextword train and runs as a user meets them."""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cli_run import run
from llama_cpp_server import llama_cpp
from nextword.cli import _console
from run_folders import add_forecast, add_step, begin_run
from torch_models import torch_model

ONE = ["--batch-size", "4", "--train-dtype", "fp32", "--set", "run.threads=1"]
SMALL = ["--params", "20k", "--context", "16", "--steps", "12", *ONE]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of all tests here, so that the machine is measured once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _own_folders(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    from nextword.train import timing

    # what a step takes here need not be known as well as for a run of hours
    monkeypatch.setattr(timing, "time_steps", partial(timing.time_steps, seconds=0.2))
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


@pytest.mark.parametrize("kind", ["transformer", "lstm"])
def test_text_becomes_a_model_with_its_plan_beside_what_was_measured(
    kind: str, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, "train", str(text), *SMALL, "--arch", kind, "--out", "run", "--json")
    assert code == 0, err
    report = json.loads(out)
    assert report["measured"]["tokens"] == 12 * 4 * 16
    assert report["predicted"]["seconds"] > 0
    assert report["config"]["model"]["arch"] == kind
    assert json.loads((tmp_path / "run" / "report.json").read_text())["measured"] == report["measured"]
    code, out, err = run(capsys, "complete", "--model", "run", "--greedy", "--max-tokens", "5", "the king")
    assert code == 0, err
    code, out, _ = run(capsys, "runs", "calibration", "--json")
    assert code == 0
    assert json.loads(out)["runs"][0]["tokens"] == 12 * 4 * 16
    assert json.loads(out)["corrections"][0]["loss_interval_is"].startswith("90%, by the law of small runs")


def test_a_forgotten_run_is_no_longer_in_the_ledger(text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "train", str(text), *SMALL, "--out", "run")[0] == 0
    code, _, err = run(capsys, "runs", "forget", "run")
    assert (code, err.startswith("1 entry removed from")) == (0, True)
    assert json.loads(run(capsys, "runs", "calibration", "--json")[1])["runs"] == []
    code, _, err = run(capsys, "runs", "forget", "run")
    assert (code, "has no entry for run" in err) == (2, True)
    code, _, err = run(capsys, "runs", "forget")
    assert (code, "--all" in err) == (2, True)
    assert run(capsys, "runs", "forget", "--all")[0] == 0


def test_a_fine_tuned_run_counts_frozen_weights_as_they_are_computed_and_names_its_peak(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from nextword.plan import RunConfig, flops

    assert run(capsys, "train", str(text), *SMALL, "--out", "run")[0] == 0
    small = ["--context", "16", "--steps", "12", *ONE]
    code, out, err = run(capsys, "train", str(text), *small, "--model", "run", "--lora", "2", "--out", "tuned")
    assert code == 0, err
    assert re.search(r"1 thread *\n", out)
    assert re.search(r"the peak: [\d,]+ GFLOP/s, (float32|bfloat16) products, measured on this CPU", out)
    measured = json.loads((tmp_path / "tuned" / "report.json").read_text())["measured"]
    config = RunConfig.read(tmp_path / "tuned" / "config.toml")
    work = flops(config.spec, config.train.context, measured["tokens"], lora=2).total
    assert measured["share_of_peak"] == pytest.approx(work / measured["seconds"] / measured["peak"])
    assert run(capsys, "runs", "export", "tuned", "adapter", "--adapter")[0] == 0
    written = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (written["base_model_name_or_path"], written["r"], written["lora_alpha"]) == ("run", 2, 4)
    code, _, err = run(capsys, "runs", "export", "run", "other", "--adapter")
    assert code == 2
    assert "leave out --adapter" in err


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
        found = torch_model(ours)(torch.tensor([ids]))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_a_model_of_real_text_exported_as_gguf_goes_on_alike_in_nextword_and_llama_cpp(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import nextword

    licence = (Path(__file__).parents[2] / "LICENSE").read_text(encoding="utf-8")
    (tmp_path / "licence.txt").write_text("\n".join(line.strip() for line in licence.splitlines()))
    larger = [
        "--params",
        "60k",
        "--context",
        "64",
        "--steps",
        "400",
        "--batch-size",
        "8",
        "--set",
        "data.vocabulary=300",
    ]
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
    assert run(capsys, "train", str(text), *SMALL, "--log", "tensorboard", "--out", "run")[0] == 0
    events = accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "loss" in row]
    for key in ("loss", "learning_rate", "gradient_norm", "tokens_per_second", "share_of_peak"):
        found = [(each.step, each.value) for each in events.Scalars(f"train/{key}")]
        assert found == [(row["step"], pytest.approx(row[key], rel=1e-6)) for row in steps]
    found = [(each.step, each.value) for each in events.Scalars("val/nats_per_token")]
    val = [(row["step"], pytest.approx(row["val"]["nats_per_token"])) for row in rows if "val" in row]
    assert found == val
    assert val


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_a_tracker_that_is_not_installed_is_named_with_its_extra_before_the_text_is_read(
    name: str, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    code, _, err = run(capsys, "train", str(text), *SMALL, "--log", name, "--out", "run")
    assert code == 2
    assert err.splitlines() == [f"nextword: run.log={name} needs {name}. Install it: pip install 'nextword[{name}]'"]
    assert not list(tmp_path.rglob("run.json"))


def test_runs_are_listed_shown_compared_and_exported(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from nextword.plan import read_runs

    for name, seed in (("a", "0"), ("b", "1")):
        assert run(capsys, "train", str(text), *SMALL, "--seed", seed, "--out", f"runs/{name}")[0] == 0
    code, out, _ = run(capsys, "runs", "list", "--json")
    assert code == 0
    assert [row["folder"] for row in json.loads(out)] == ["runs/a", "runs/b"]
    assert read_runs(Path("runs")).tokens == (12 * 4 * 16, 12 * 4 * 16)
    code, out, _ = run(capsys, "runs", "show", "runs/a")
    assert code == 0
    assert "held-out loss" in out
    code, out, _ = run(capsys, "runs", "compare", "runs/a", "runs/b", "--plot", "both.svg")
    assert code == 0
    assert "train.seed: 0 -> 1" in " ".join(out.split())
    assert (tmp_path / "both.svg").read_text().startswith("<svg")
    assert run(capsys, "runs", "export", "runs/a", "folder")[0] == 0
    assert (tmp_path / "folder" / "model.safetensors").exists()
    code, _, err = run(capsys, "runs", "export", "runs/a", "other", "--step", "3")
    assert code == 2
    assert "no checkpoint of step 3; it has" in err


def test_a_warm_up_longer_than_the_run_is_said(text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "train", str(text), *SMALL, "--set", "train.warmup_steps=13", "--dry-run")
    assert code == 0
    assert "the run has 12 steps and its warm-up 13: the learning rate stays below" in " ".join(err.split())
    code, _, err = run(capsys, "train", str(text), *SMALL, "--set", "train.warmup_steps=12", "--dry-run")
    assert (code, "warm-up" in err) == (0, False)


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
        (["train", "{text}", "--minutes", "1", "--flops", "1e12"], "separate budgets"),
        (["train", "{text}", "--minutes", "1", "--lora", "4"], "model.lora has no effect without model.base"),
        (["train", "{text}", "--steps", "3", "--set", "run.device=cuda:9"], "device 'cuda:9' cannot be used here"),
        (["train", "{text}", *SMALL, "--set", "train.stateful=true"], "no state to carry"),
        (["train", "{text}", *SMALL, "--batch-size", "100000"], "smaller batch"),
        (["train", "{text}", *SMALL, "--set", "run.compile=true"], "run.compile gains nothing"),
        (["train", "{tiny}", "--minutes", "1"], "at least 2,000 characters"),
        (["train", "{rows}", "--minutes", "1"], "line 2"),
        (["train", "{binary}", "--minutes", "1"], "the file is binary"),
        (["train", "{rst}", "--minutes", "1"], "no reader for .rst"),
        (["train", "{latin}", "--minutes", "1"], "line 1: not valid UTF-8 (byte 0xFC)"),
        (["train", "{latin}", "--minutes", "1"], "--set data.encoding=latin-1"),
        (["train", "{text}", "--minutes", "1", "--set", "data.encoding=latin-99"], "encoding 'latin-99' is not known"),
        (
            ["train", "{text}", "--minutes", "1", "--set", "data.val_fraction=nan"],
            "val_fraction nan: give a finite number",
        ),
        (["train", "{text}", "--minutes", "1", "--out", "{text}"], "Choose a folder outside"),
        (["train", "{text}", "--minutes", "1", "--out", "{text}/run"], "Choose a folder outside"),
        (
            ["train", "{text}", "--minutes", "1", "--set", "data.vocabulary=5"],
            "data.vocabulary 5: give a whole number",
        ),
        (["train", "{text}", "--minutes", "1", "--set", "data.vocabulary=99999999"], "from 0 to 1,048,576"),
        (["train", "{text}", "--minutes", "1", "--set", "data.vocabulary=50000"], "one token for every 8 bytes"),
        (
            ["train", "{text}", "--minutes", "1", "--set", "data.vocabulary=300", "--set", "data.tokenizer=bytes"],
            "data.vocabulary has no effect with data.tokenizer=bytes",
        ),
        (
            ["train", "{text}", "--minutes", "1", "--set", "data.tokenizer=byte"],
            "data.tokenizer=byte: give bpe, bytes, characters or a model",
        ),
        (["runs", "resume", "nosuch"], "is not a run folder"),
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
    (tmp_path / "manual.rst").write_text("text")
    (tmp_path / "latin.txt").write_bytes("Müller".encode("latin-1"))
    places = {"{text}": str(text), "{tiny}": "tiny.txt", "{rows}": "rows.jsonl", "{binary}": "binary.txt",
              "{rst}": "manual.rst", "{latin}": "latin.txt", "{text}/run": f"{text}/run"}  # fmt: skip
    code, _, err = run(capsys, *(places.get(each, each) for each in arguments))
    last = err.strip().splitlines()[-1]
    assert code == 2
    assert last.startswith("nextword: ")
    assert wanted in last
    assert not list(tmp_path.rglob("run.json"))  # which would be in the way of the next try
    assert "Traceback" not in err


def losses(folder: Path) -> list[float]:
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [row["loss"] for row in rows if "loss" in row]


def files_under(folder: Path) -> dict[str, tuple[int, int]]:
    found = ((path, path.stat()) for path in folder.rglob("*") if path.is_file())
    return {str(path): (status.st_mtime_ns, status.st_size) for path, status in found}


@pytest.fixture
def half(text: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A run that stopped after half its steps, beside `whole`, which did not."""
    from nextword.plan.run_config import ModelConfig, RunConfig, RunSettings, TrainConfig
    from nextword.train.pipeline import prepare_run
    from nextword.train.run import train_run

    train = TrainConfig(steps=12, context=16, batch_size=4, dtype="fp32")
    config = RunConfig(ModelConfig(params=20e3), train=train, run=RunSettings(threads=1))
    for name, until in (("whole", None), ("half", 6)):
        ready = prepare_run(config, [str(text)], tmp_path / name, cache, print)
        train_run(ready.record.config, ready.data, ready.folder, record=ready.record, until=until)
    assert len(losses(tmp_path / "half")) == 6
    capsys.readouterr()
    return tmp_path / "half"


def test_a_run_goes_on_exactly_when_text_was_added_meanwhile_and_keeps_its_tokenizer(
    half: Path, text: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files_under(cache / "data")
    (text / "another.txt").write_text("ÄÖÜ wholly other words, zymurgy and quixotry and syzygy " * 200)
    code, _, err = run(
        capsys, "train", str(text), *SMALL, "--set", "data.vocabulary=300", "--dry-run", "--out", "third"
    )
    assert code == 0, err
    assert not (tmp_path / "third").exists()
    assert before.items() <= files_under(cache / "data").items()
    code, _, err = run(capsys, "runs", "resume", "half")
    assert code == 0, err
    whole = tmp_path / "whole"
    assert losses(half) == losses(whole)
    for name in ("model.safetensors", "tokenizer.json"):
        assert (half / name).read_bytes() == (whole / name).read_bytes()
    reports = [json.loads((folder / "report.json").read_text())["measured"] for folder in (half, whole)]
    assert reports[0]["nats_per_token"] == reports[1]["nats_per_token"]
    assert reports[0]["error"] > 0


def test_a_run_whose_prepared_data_is_gone_goes_on_exactly_with_the_text_given_again(
    half: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(json.loads((half / "run.json").read_text())["data"])
    code, _, err = run(capsys, "runs", "resume", "half")
    assert code == 2
    assert f"Give the text again: nextword runs resume half {text}" in " ".join(err.split())
    (text / "another.txt").write_text("some more")
    code, _, err = run(capsys, "runs", "resume", "half", str(text))
    assert code == 2
    assert "differs from the text that half was started with" in " ".join(err.split())
    assert len(losses(half)) == 6
    (text / "another.txt").unlink()
    text.rename(tmp_path / "moved")
    code, _, err = run(capsys, "runs", "resume", "half", "moved")
    assert code == 0, err
    assert losses(half) == losses(tmp_path / "whole")
    assert Path(json.loads((half / "run.json").read_text())["data"]).exists()


def test_a_run_has_its_tokenizer_before_its_first_step(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from nextword.train.trainer import Trainer

    def first_step(*arguments: object) -> None:
        assert (tmp_path / "run" / "tokenizer.json").exists()
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "_loop", first_step)
    assert run(capsys, "train", str(text), *SMALL, "--out", "run")[0] == 130


def test_the_report_has_the_held_out_loss_with_its_standard_error(
    text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, "train", str(text), *SMALL, "--set", "run.evaluate_every=5", "--out", "run")
    assert code == 0, err
    assert re.search(r"held-out loss, nats a token .* \d\.\d{4} ± 0\.\d{4}", out)
    assert "±: standard error over" in out
    assert "step 12: held-out loss " in err


def test_what_is_special_about_a_text_is_said_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Too short to hold out what was asked, or to fill the vocabulary; broken rows; files that nothing reads."""
    (tmp_path / "few").mkdir()
    (tmp_path / "few" / "a.txt").write_text(" ".join(f"{number * 7919 % 4096:012b}" for number in range(220)))
    for name in ("b.rst", "c.rst", ".d"):
        (tmp_path / "few" / name).write_text("text")
    (tmp_path / "few" / "e.txt").write_bytes(b"caf\xe9")
    arguments = [
        "train",
        "few",
        *SMALL,
        "--set",
        "data.vocabulary=1024",
        "--set",
        "data.skip_invalid=true",
        "--dry-run",
    ]
    code, _, err = run(capsys, *arguments)
    said = " ".join(err.split())
    assert code == 0, err
    assert "skipped 3 files: no reader for .rst (2); hidden (1)" in said
    assert re.search(r"held out [234]\d\.\d% of the text instead of 5\.0%", said)
    assert re.search(r"the text fills \d+ of 1,024 tokens", said)
    assert "skipped 1 broken row or file" in said


def test_progress_is_a_line_now_and_then(tmp_path: Path) -> None:
    from nextword.data import find_sources
    from nextword.train.pipeline import Progress

    (tmp_path / "a.txt").write_text("x" * 1_500_000)
    said, now = [], iter([0.0, 1.0, 2.5, 3.0, 4.0, 16.0, 16.1, 17.0])
    progress = Progress(find_sources([tmp_path]), said.append, lambda: next(now))
    for share, what in ((0.0, "reading"), (0.5, "reading"), (0.6, "reading"), (0.9, "reading"), (0.0, "tokenizing"),
                        (0.01, "tokenizing"), (0.9, "tokenizing"), (0.99, "tokenizing")):  # fmt: skip
        progress(share, what)
    assert said == [
        "reading: 1.5 MB",
        "reading: 60%, 1.67 s left",
        "tokenizing: 1.5 MB",
        "tokenizing: 1%, 19.8 min left",
    ]


def test_the_model_is_as_large_as_the_texts_tokens_allow_and_not_a_constant_number_of_bytes(tmp_path: Path) -> None:
    """A token of bytes is a byte, and one of a small vocabulary is two: the text has so many more tokens."""
    from nextword.data import find_sources, measure_bytes_per_token
    from nextword.plan import device, parameters
    from nextword.plan.run_config import DataConfig, RunConfig, TrainConfig
    from nextword.train.pipeline import measured
    from nextword.train.planning import Machine, choose_shape

    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnopr", k=draw.randint(3, 9))) for _ in range(2000)]
    (tmp_path / "a.txt").write_text(" ".join(draw.choices(words, k=300_000)))
    sources, machine = find_sources([tmp_path]), Machine(device("h100"))
    settings: dict[str, Any]
    for settings in ({"tokenizer": "bytes"}, {"vocabulary": 300}, {"vocabulary": 2000}, {"tokenizer": "characters"}):
        data = DataConfig(**settings)
        text_bytes, bytes_per_token = sources.bytes * 0.95, measure_bytes_per_token(sources, data)
        config, measure = RunConfig(data=data, train=TrainConfig(steps=10)), partial(measured, sources, data)
        spec = choose_shape(config, text_bytes, machine, measure)
        assert parameters(spec).total == pytest.approx(text_bytes / bytes_per_token / 20, rel=0.25)


def test_a_run_is_not_begun_where_one_is(text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "train", str(text), *SMALL, "--out", "run")[0] == 0
    code, _, err = run(capsys, "train", str(text), *SMALL, "--out", "run")
    assert code == 2
    assert "already holds a run" in err


def test_compare_context_prints_every_number_with_its_interval_at_any_width(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from nextword.train import context_study

    plan = context_study.Plan(2, 2, {"copy": (1,)}, test_tokens=100, speed_seconds=0.01)
    monkeypatch.setattr(context_study, "_plan", lambda *_: plan)
    monkeypatch.setattr(context_study, "RATES", (1e-3,))
    monkeypatch.setattr(context_study, "_ROUNDS", 2)
    study, made = context_study.study, []

    def once(*arguments: object) -> context_study.Study:
        if not made:
            made.append(study(*arguments))  # type: ignore[arg-type]
        return made[0]

    monkeypatch.setattr(context_study, "study", once)
    asked = ["compare-context", str(text), "--context", "8", "--params", "20k", "--vocabulary", "300"]
    asked += ["--kinds", "rnn,gru"]
    for width in (60, 80):
        monkeypatch.setenv("COLUMNS", str(width))
        code, out, err = run(capsys, *asked, "--plot", "study.svg")
        assert code == 0, err
        assert max(map(len, out.splitlines())) <= width
        rows = [line for line in out.splitlines() if line.startswith(("1 x", "copy 1", "8 ", "4 to"))]
        assert len(rows) >= 5
        assert all(line.count("±") == 2 for line in rows)
    assert (tmp_path / "study.svg").exists()
    found = json.loads(run(capsys, *asked, "--json")[1])
    assert found["plan"]["text_steps"] == 2
    assert found["kinds"][0]["tasks"][0]["accuracy"].keys() == {"mean", "error", "freedom", "margin"}


def test_fine_tuning_tells_the_loss_that_it_began_from(text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "train", str(text), *SMALL, "--out", "base")[0] == 0
    small = [*ONE, "--steps", "5"]
    code, out, err = run(capsys, "train", str(text), *small, "--model", "base", "--lora", "2", "--out", "tuned")
    assert code == 0, err
    base, tuned = (json.loads(Path(name, "report.json").read_text())["measured"] for name in ("base", "tuned"))
    assert base["nats_before"] is None
    assert tuned["nats_before"] == pytest.approx(base["nats_per_token"], abs=1e-4)
    rows = [json.loads(line) for line in Path("tuned", "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["step"] == 0
    assert rows[0]["val"]["nats_per_token"] == tuned["nats_before"]
    assert f"{tuned['nats_before']:.4f}" in out


def test_a_run_that_the_clock_ended_is_not_resumed(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from nextword.train.deadline import Deadline, End

    monkeypatch.setattr(Deadline, "end", lambda self, step, *_: End(5, 12, 8) if step == 5 else None)
    code, _, err = run(capsys, "train", str(text), *SMALL, "--set", "train.minutes=1", "--out", "run")
    assert code == 0, err
    assert "step 5: the learning rate decays, and the run ends after 8 steps" in " ".join(err.split())
    assert len(losses(tmp_path / "run")) == 8
    assert not (tmp_path / "ledger.jsonl").exists()
    code, _, err = run(capsys, "runs", "resume", "run")
    assert code == 0
    assert "nothing to do" in err
    code, _, err = run(capsys, "runs", "resume", "run", "--steps", "10")
    assert code == 0, err
    assert len(losses(tmp_path / "run")) == 10


def test_show_tells_the_forecast_of_a_run_under_way(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = begin_run(tmp_path / "timed", minutes=1.0)
    add_step(folder, 0, loss=3.0)
    add_forecast(folder, 1, 2.5, steps=23, about=True)
    monkeypatch.setenv("COLUMNS", "150")
    code, out, err = run(capsys, "runs", "show", str(folder))
    assert code == 0, err
    assert "2.500 (2.400 to 2.600) nats a token, 1.250 bits a byte after about 23 steps" in out
    code, out, err = run(capsys, "runs", "show", str(folder), "--json")
    assert json.loads(out)["forecast"]["steps"] == 23
