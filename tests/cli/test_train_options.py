"""What `nextword train` refuses before it reads anything: values that no run has, and options without an effect."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest

from nextword.base import UsageError
from nextword.base.cores import cores
from nextword.cli import _console, main
from nextword.cli.train import command
from nextword.cli.train_options import NO_EFFECT, check_options

TWO = {"WORLD_SIZE": "2"}


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
        (f"--threads {4 * cores() + 1}", f"--threads {4 * cores() + 1}: give at most {4 * cores()}, 4 for each core"),
        ("--threads 100000", f"this process may use ({cores()})"),
        ("--learning-rate nan", "--learning-rate nan: give a finite number above 0"),
        ("--learning-rate -1", "--learning-rate -1.0: give a finite number above 0"),
        ("--learning-rate 0", "--learning-rate 0.0: give"),
        ("--dropout nan", "--dropout nan: give a finite number at least 0 and below 1"),
        ("--dropout 1.5", "--dropout 1.5: give"),
        ("--dropout -0.1", "--dropout -0.1: give"),
        ("--weight-decay nan", "--weight-decay nan: give a finite number at least 0"),
        ("--weight-decay -1", "--weight-decay -1.0: give"),
        ("--clip nan", "--clip nan: give"),
        ("--clip -1", "--clip -1.0: give"),
        ("--seed -1", "--seed -1: give a whole number from 0 to"),
        ("--holdout nan", "--holdout nan: give a finite number above 0 and below 0.9"),
        ("--holdout 0", "--holdout 0.0: give"),
        ("--vocabulary 5", "--vocabulary 5: give a whole number from 257 to 1,048,576"),
        ("--vocabulary 99999999", "--vocabulary 99999999: give"),
        ("--context 0", "give a whole number from"),
        ("--context 1000000000", "--context 1000000000: give a whole number from 2 to"),
        ("--batch 0", "give a whole number from"),
        ("--micro-batch 0", "give a whole number from"),
        ("--lora 0", "0 is not in the range"),
        ("--lora -1", "-1 is not in the range"),
        ("--batch 4 --micro-batch 8", "give --micro-batch 4 or a larger --batch"),
        ("--minutes nan", "'nan' is not understood"),
        ("--minutes inf", "'inf' is not understood"),
        ("--minutes 0", "'0' must be above zero"),
        ("--minutes -1", "'-1' must be above zero"),
    ],
)
def test_a_bad_value_is_refused_before_the_text_is_looked_for(
    options: str, wanted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    budget = [] if "--minutes" in options else ["--steps", "3"]
    assert main(["train", "no-such-text", *budget, *shlex.split(options)]) == 2
    assert wanted in " ".join(capsys.readouterr().err.split())


EXAMPLES = {  # a command line for each rule, and the processes it runs in
    ("kind", "with --config"): ("--config f --model gru", {}),
    ("match", "with --config"): ("--config f --match flops", {}),
    ("count", "with --config"): ("--config f --params 1M", {}),
    ("context", "with --config"): ("--config f --context 64", {}),
    ("batch", "with --config"): ("--config f --batch 4", {}),
    ("start_from", "with --config"): ("--config f --from m", {}),
    ("lora", "with --config"): ("--config f --lora 4", {}),
    ("kind", "with --from"): ("--steps 1 --from m --model transformer", {}),
    ("match", "with --from"): ("--steps 1 --from m --match params", {}),
    ("count", "with --from"): ("--steps 1 --from m --params 1M", {}),
    ("tokenizer", "with --from"): ("--steps 1 --from m --tokenizer bytes", {}),
    ("vocabulary", "with --from"): ("--steps 1 --from m --vocabulary 300", {}),
    ("lora", "without --from"): ("--steps 1 --lora 4", {}),
    ("match", "with --model transformer"): ("--steps 1 --match flops", {}),
    ("carry_state", "with --model transformer"): ("--steps 1 --carry-state", {}),
    ("recompute", "with a recurrent net"): ("--steps 1 --model lstm --recompute full", {}),
    ("vocabulary", "with --tokenizer bytes"): ("--steps 1 --tokenizer bytes --vocabulary 300", {}),
    ("vocabulary", "with --tokenizer characters"): ("--steps 1 --tokenizer characters --vocabulary 300", {}),
    ("vocabulary", "with a model's tokenizer"): ("--steps 1 --tokenizer smollm2-135m --vocabulary 300", {}),
    ("packing", "with --carry-state"): ("--steps 1 --model lstm --carry-state --packing stream", {}),
    ("shard", "in a single process"): ("--steps 1 --shard ddp", {}),
    ("sample", "with --shard fsdp"): ("--steps 1 --shard fsdp --sample Hi", TWO),
    ("threads", "on a GPU"): ("--steps 1 --device cuda:0 --threads 2", {}),
    ("keep", "with --checkpoint-every 0"): ("--steps 1 --checkpoint-every 0 --keep 3", {}),
}


def check(line: str, environment: dict[str, str]) -> None:
    with command.make_context("train", ["text", *shlex.split(line)]) as context:
        check_options(context, environment)


@pytest.mark.parametrize("rule", NO_EFFECT, ids=lambda rule: f"{rule.option} {rule.where}")
def test_an_option_without_effect_is_refused_by_name_with_the_way_out(rule: object) -> None:
    line, environment = EXAMPLES[rule.option, rule.where]  # type: ignore[attr-defined]
    name = next(each.opts[0] for each in command.params if each.name == rule.option)  # type: ignore[attr-defined]
    with pytest.raises(UsageError) as refused:
        check(line, environment)
    assert str(refused.value) == f"{name} has no effect {rule.where}; {rule.instead}"  # type: ignore[attr-defined]


def test_every_example_belongs_to_a_rule() -> None:
    assert EXAMPLES.keys() == {(rule.option, rule.where) for rule in NO_EFFECT}


@pytest.mark.parametrize("pair", ["--minutes 1 --steps 3", "--flops 1e12 --steps 3", "--tokens 1M --steps 3",
                                  "--config f --steps 3", "--minutes 1 --flops 1e12"])  # fmt: skip
def test_two_budgets_are_refused(pair: str) -> None:
    with pytest.raises(UsageError, match="are budgets of their own; give one"):
        check(pair, {})


def test_rewinding_without_checkpoints_is_refused() -> None:
    with pytest.raises(UsageError, match="--checkpoint-every 0 writes none"):
        check("--steps 3 --guard rewind --checkpoint-every 0", {})


@pytest.mark.parametrize(
    ("line", "environment"),
    [
        ("--steps 3", {}),
        ("--minutes 1", TWO),
        ("--config f --micro-batch 2 --learning-rate 1e-3 --tokenizer bytes --seed 1", {}),
        ("--steps 3 --model lstm --match flops --carry-state --params 1M --dropout 0.1 --within-documents", {}),
        ("--steps 3 --from m --lora 8 --context 64 --batch 4 --recompute full", {}),
        ("--steps 3 --shard fsdp --micro-batch 2", TWO),
        ("--steps 3 --shard ddp --sample Hi", TWO),
        ("--steps 3 --vocabulary 512 --tokenizer bpe --device cpu --threads 1 --keep 3 --checkpoint-every 5", {}),
        ("--steps 3 --guard rewind", {}),
    ],
)
def test_defaults_and_options_with_an_effect_pass(line: str, environment: dict[str, str]) -> None:
    check(line, environment)


def test_the_batch_is_checked_against_the_processes_before_the_text_is_looked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["train", "no-such-text", "--steps", "3", "--batch", "7"]) == 2
    assert "does not divide among 2 processes; give --batch 6 or 8" in capsys.readouterr().err


def test_adapters_thicker_than_the_model_are_refused_before_the_text_is_tokenized(
    tiny_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NEXTWORD_CACHE", str(tmp_path / "cache"))
    (tmp_path / "text.txt").write_text("a text " * 1000)
    model = str(tiny_model())  # of width 16
    assert main(["train", "text.txt", "--steps", "3", "--from", model, "--lora", "17"]) == 2
    assert "--lora 17: give at most the model's width, 16" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "cache" / "data").exists()


def test_every_option_has_a_name_on_the_command_line() -> None:
    assert isinstance(command, click.Command)
    assert {rule.option for rule in NO_EFFECT} <= {each.name for each in command.params}
