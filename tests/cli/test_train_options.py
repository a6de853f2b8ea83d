"""What `nextword train` refuses before it reads anything: values that no run has, and settings without an effect."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nextword.base import UsageError
from nextword.base.cores import cores
from nextword.cli import _console, main
from nextword.cli.train import _KEYS, command, run_config
from nextword.plan.run_config import RunConfig
from nextword.train.pipeline import check_combinations


@pytest.fixture(autouse=True)
def _fresh_streams(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    _console.output.cache_clear()
    _console.messages.cache_clear()
    yield
    _console.output.cache_clear()
    _console.messages.cache_clear()


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (
            f"--set run.threads={4 * cores() + 1}",
            f"run.threads {4 * cores() + 1}: give at most {4 * cores()}",
        ),
        ("--learning-rate nan", "--learning-rate nan: give a finite number of at least 0"),
        ("--learning-rate -1", "-1.0 is not in the range x>0"),
        ("--learning-rate 0", "0.0 is not in the range x>0"),
        ("--set train.learning_rate=-1", "train.learning_rate -1.0: give a finite number of at least 0"),
        ("--set train.dropout=nan", "train.dropout nan: give a finite number of at least 0 and below 1"),
        ("--set train.dropout=1.5", "train.dropout 1.5: give"),
        ("--set train.grad_clip=-1", "train.grad_clip -1.0: give"),
        ("--seed -1", "--seed -1: give a whole number from 0 to"),
        ("--set data.val_fraction=0", "data.val_fraction 0.0: give"),
        ("--set data.vocabulary=5", "data.vocabulary 5: give a whole number from 257 to 1,048,576"),
        (
            "--set data.vocabulery=500",
            "unknown setting 'data.vocabulery'. Did you mean data.voc",
        ),
        ("--set vocabulary=500", "unknown setting 'vocabulary'. Did you mean data.vocabulary?"),
        ("--set dropout", "--set dropout: give section.key=value"),
        ("--context 0", "give a whole number from"),
        ("--context 1000000000", "--context 1000000000: give a whole number from 2 to"),
        ("--batch-size 0", "give a whole number from"),
        ("--batch-size 4 --set train.micro_batch=8", "train.micro_batch 8: give at most the 4 rows in the batch"),
        ("--lora 0", "0 is not in the range"),
        ("--minutes nan", "'nan' is not understood"),
        ("--minutes 0", "'0' must be above zero"),
        ("--minutes 1 --steps 3", "--minutes and --steps are separate budgets; give one"),
        ("--flops 1e12 --tokens 1M", "--flops and --tokens are separate budgets; give one"),
        ("--log wandb,tensorbord", "--log wandb,tensorbord: give one or more of tensorboard, wandb, mlflow"),
        ("--config no-such-file.toml", "does not exist"),
    ],
)
def test_a_bad_value_is_refused_before_the_text_is_looked_for(
    options: str, wanted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    budget = [] if {"--minutes", "--flops", "--config"} & set(options.split()) else ["--steps", "3"]
    assert main(["train", "no-such-text", *budget, *shlex.split(options)]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert wanted in said or "no-such-file.toml" in said


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ("", "give a budget"),
        ("train.steps=1 model.lora=4", "model.lora has no effect without model.base"),
        ("train.steps=1 model.base=m model.params=1e6", "model.params has no effect with model.base=m"),
        ("train.steps=1 model.base=m model.arch=lstm", "model.arch has no effect with model.base=m"),
        ("train.steps=1 model.base=m data.tokenizer=bytes", "data.tokenizer has no effect with model.base=m"),
        ("train.steps=1 model.base=m data.vocabulary=300", "data.vocabulary has no effect with model.base=m"),
        (
            "train.steps=1 data.vocabulary=300 data.tokenizer=bytes",
            "no effect with data.tokenizer=bytes",
        ),
        ("train.steps=1 model.match=flops", "model.match has no effect with a transformer"),
        ("train.steps=1 train.stateful=true", "a transformer has no state to carry"),
        ("train.steps=1 model.arch=lstm train.recompute=full", "train.recompute has no effect with a recurrent model"),
        ("train.steps=1 model.arch=lstm train.stateful=true train.packing=best-fit", "train.packing has no effect"),
        ("train.steps=1 train.on_loss_spike=rewind run.checkpoint_every=0", "run.checkpoint_every=0 writes none"),
    ],
)
def test_a_setting_without_effect_is_refused_by_name(settings: str, wanted: str) -> None:
    with pytest.raises(UsageError, match=wanted):
        check_combinations(run_config(None, {}, tuple(settings.split())))


@pytest.mark.parametrize(
    "settings",
    [
        "train.minutes=1",
        "train.steps=3 model.arch=lstm model.match=flops train.stateful=true train.mask_documents=true",
        "train.steps=3 model.base=m model.lora=8 train.context=64 train.recompute=full",
        "train.steps=3 data.vocabulary=512 run.keep_checkpoints=3 run.checkpoint_every=5",
        "train.steps=3 train.on_loss_spike=rewind",
    ],
)
def test_defaults_and_settings_with_an_effect_pass(settings: str) -> None:
    check_combinations(run_config(None, {}, tuple(settings.split())))


def test_options_overrule_the_file_and_assignments_both(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('[train]\nsteps = 100\nseed = 3\nlearning_rate = 0.1\n[model]\narch = "gru"\n')
    config = run_config(file, {"minutes": 90.0, "seed": 4, "params": 1e6}, ("train.seed=5",))
    assert (config.train.minutes, config.train.steps) == (1.5, 0)  # one budget in place of another
    assert (config.train.seed, config.train.learning_rate) == (5, 0.1)
    assert (config.model.arch, config.model.params) == ("gru", 1e6)
    file.write_text('[model.spec]\nkind = "gru"\nvocabulary = 9\nwidth = 8\nlayers = 1\ncontext = 8\n')
    assert run_config(file, {}).model.arch == "gru"
    with pytest.raises(UsageError, match=r"--arch has no effect: the shape is fixed by \[model\.spec\] in .*run\.toml"):
        run_config(file, {"arch": "lstm"})
    file.write_text("[train]\nstepz = 3\n")
    with pytest.raises(UsageError, match=r"run\.toml: unknown setting 'train\.stepz'.*train\.steps"):
        run_config(file, {})


def test_every_option_is_a_key_of_the_configuration() -> None:
    others = {"data", "config", "assignments", "out", "processes", "dry_run", "as_json"}
    assert {each.name for each in command.params} - others == _KEYS.keys()
    config = RunConfig().to_dict()
    assert all(section in config for section, _ in (key.split(".") for key in _KEYS.values()))


def test_the_batch_is_checked_against_the_processes_before_the_text_is_looked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("nextword.train.pipeline._on_first", lambda process, work: work())
    monkeypatch.setattr("nextword.train.pipeline.this_process", lambda: Two())
    monkeypatch.setattr("nextword.train.pipeline.joined", lambda *_, **__: open("/dev/null"))  # noqa: SIM115
    assert main(["train", "no-such-text", "--steps", "3", "--batch-size", "7"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "--batch-size 7: give a multiple of the 2 processes, such as 6 or 8" in said


class Two:
    """The first of two processes."""

    rank, world, local, first = 0, 2, 0, True


def test_adapters_thicker_than_the_model_are_refused_before_the_text_is_tokenized(
    tiny_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NEXTWORD_CACHE", str(tmp_path / "cache"))
    (tmp_path / "text.txt").write_text("a text " * 1000)
    model = str(tiny_model())  # of width 16
    arguments: list[Any] = ["train", "text.txt", "--steps", "3", "--model", model, "--lora", "17"]
    assert main(arguments) == 2
    assert "--lora 17: give at most the model's width, 16" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "cache" / "data").exists()
