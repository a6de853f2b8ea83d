"""nextword complete, next and chat as a user runs them: the real model, pipes, wrong input, Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nextword.cli import main

GREEDY = ("--greedy", "--max-tokens", "8")


def test_complete_prints_the_completion_alone_when_piped(nextword: Any, smollm2_path: Path) -> None:
    done = nextword("complete", *GREEDY, "--stop", ".", "The capital of France is")
    assert (done.returncode, done.stdout, done.stderr) == (0, " Paris\n", "")


def test_the_prompt_comes_from_a_pipe_or_a_file_without_its_last_newline(
    nextword: Any, smollm2_path: Path, tmp_path: Path
) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text("The capital of France is\n")
    piped = nextword("complete", *GREEDY, stdin="The capital of France is\n")
    assert piped.stdout == nextword("complete", *GREEDY, "-f", str(file)).stdout
    assert piped.stdout.startswith(" Paris")


def test_json_holds_tokens_probabilities_settings_and_timings(nextword: Any, smollm2_path: Path) -> None:
    done = nextword(
        "complete", "--json", "-n", "2", "-t", "0.7", "--seed", "4", "--max-tokens", "5", "--probabilities", "3", "Hi"
    )
    data = json.loads(done.stdout)
    assert data["settings"]["seed"] == 4
    assert data["settings"]["temperature"] == 0.7
    assert data["settings"]["order"][0] == "temperature"
    assert len(data["completions"]) == 2
    for completion in data["completions"]:
        assert completion["finish_reason"] in ("length", "end_of_text")
        assert [step["id"] for step in completion["tokens"]] == completion["ids"]
        assert "".join(step["text"] for step in completion["tokens"]) == completion["text"]
        for step in completion["tokens"]:
            assert 0 < step["sampled_prob"] <= 1
            assert step["logprob"] < 0
            assert len(step["alternatives"]) == 3
    assert data["timings"]["decode_tokens_per_second"] > 0
    again = json.loads(nextword("complete", "--json", "-t", "0.7", "--seed", "4", "--max-tokens", "5", "Hi").stdout)
    assert again["completions"][0]["ids"] == data["completions"][0]["ids"]  # not changed by its batch


def test_shots_and_template_make_the_prompt_that_is_shown(nextword: Any, smollm2_path: Path) -> None:
    done = nextword(
        "complete", "--json", *GREEDY, "--show-prompt",
        "--example", "this movie is great! => positive",
        "--template", r"Review: {input}\nSentiment: {output}",
        "this movie is terrible!",
    )  # fmt: skip
    prompt = "Review: this movie is great!\nSentiment: positive\n\nReview: this movie is terrible!\nSentiment:"
    data = json.loads(done.stdout)
    assert data["prompt"] == prompt
    assert "".join(data["prompt_tokens"]) == prompt
    assert f"{len(data['prompt_ids'])} tokens" in done.stderr


@pytest.mark.parametrize(
    ("kind", "said"), [("transformer", " of a context of 512"), ("gru", "; its context is unlimited")]
)
def test_the_prompt_is_shown_with_the_limit_that_the_model_has(
    kind: str, said: str, tiny_model: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["complete", "--model", str(tiny_model(kind)), *GREEDY, "--show-prompt", "Hello"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines[:5]] == ["'H'", "'e'", "'l'", "'l'", "'o'"]
    assert f"5 tokens{said}" in lines


@pytest.mark.parametrize(("verb", "advice"), [("complete", "cut its beginning with --truncate left"), ("next", "")])
def test_a_prompt_beyond_the_context_is_refused_with_the_ways_out_that_the_verb_has(
    verb: str, advice: str, tiny_model: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([verb, "-m", str(tiny_model()), "x" * 600]) == 2
    error = capsys.readouterr().err
    assert "600 tokens; the model's context holds 512" in error
    assert advice in error
    assert ("truncate" in error) == bool(advice)


def test_next_shows_several_temperatures_side_by_side(nextword: Any, smollm2_path: Path) -> None:
    done = nextword("next", "I like to eat", "--temperature", "0.5,2", "-k", "3")
    assert "T = 0.5" in done.stdout
    assert "T = 2" in done.stdout
    assert "entropy" in done.stdout
    data = json.loads(nextword("next", "I like to eat", "--temperature", "0.5,2", "--json").stdout)
    cold, hot = data["distributions"]
    assert cold["entropy"] < hot["entropy"]


@pytest.mark.parametrize("ending", ["svg", "png"])
def test_next_writes_a_figure(nextword: Any, smollm2_path: Path, tmp_path: Path, ending: str) -> None:
    figure = tmp_path / f"next.{ending}"
    assert nextword("next", "I like to eat", "--plot", str(figure)).returncode == 0
    assert figure.read_bytes()[:5] in (b"<svg ", b"\x89PNG\r")


def test_chat_answers_lines_from_a_pipe_and_keeps_the_conversation(nextword: Any, smollm2_path: Path) -> None:
    done = nextword(
        "chat",
        "--dtype",
        "float32",
        "-t",
        "0",
        "--max-tokens",
        "12",
        stdin="/help\nWhat is the capital of France?\n/quit\n",
    )
    assert done.returncode == 0
    assert "/reset" in done.stdout
    assert "Paris" in done.stdout


WRONG = {
    "no prompt": (("complete", ""), "empty"),
    "negative temperature": (("complete", "-t", "-1", "x"), "temperature"),
    "NaN": (("complete", "--top-p", "nan", "x"), "top_p"),
    "no tokens": (("complete", "--max-tokens", "0", "x"), "max_tokens"),
    "no completions": (("complete", "-n", "0", "x"), "-n"),
    "empty stop": (("complete", "--stop", "", "x"), "stop"),
    "unknown model": (("complete", "-m", "smolm2", "x"), "smollm2-135m-instruct"),
    "unknown type": (("complete", "--dtype", "int3", "x"), "float32"),
    "unknown device": (("complete", "--device", "abacus", "x"), "--device cpu"),
    "bad bias": (("complete", "--logit-bias", "x", "x"), "ID=BIAS"),
    "bias beyond the vocabulary": (("complete", "--logit-bias", "99999999=1", "x"), "vocabulary"),
    "bad order": (("complete", "--sampler-order", "heat", "x"), "temperature"),
    "missing file": (("complete", "-f", "/nowhere/prompt.txt"), "/nowhere/prompt.txt"),
    "two prompts": (("complete", "-f", "a", "x"), "twice"),
    "bad shot": (("complete", "--example", "x", "x"), "=>"),
    "template without answer": (("complete", "--template", "{input}", "x"), "{output}"),
    "bad temperatures": (("next", "-t", "hot", "x"), "0.5,1,2"),
    "bad figure": (("next", "--plot", "x.docx", "x"), ".svg"),
    "no option": (("complete", "--temprature", "1", "x"), "--temperature"),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_input_gets_one_line_that_names_the_fix_and_exit_code_2(
    nextword: Any, smollm2_path: Path, case: str
) -> None:
    arguments, fix = WRONG[case]
    done = nextword(*arguments)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("nextword: ")
    assert fix in done.stderr


def test_a_model_folder_with_pickles_is_refused(nextword: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n")
    done = nextword("complete", "-m", str(tmp_path), "x")
    assert done.returncode == 2
    assert "safetensors" in done.stderr


def test_a_reader_that_leaves_early_ends_the_run_quietly(smollm2_path: Path) -> None:
    run = subprocess.Popen(
        [sys.executable, "-m", "nextword", "complete", "--greedy", "--max-tokens", "400", "Once upon a time"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert run.stdout is not None
    assert run.stderr is not None
    assert len(run.stdout.read(20)) == 20
    run.stdout.close()
    assert run.wait(60) in (0, 141)
    assert run.stderr.read() == b""
    run.stderr.close()


@pytest.mark.parametrize("wait", [0.05, 0.4, 1.0, 4.0])
def test_ctrl_c_ends_with_130_and_no_traceback(smollm2_path: Path, wait: float) -> None:
    run = subprocess.Popen(
        [sys.executable, "-m", "nextword", "complete", "--max-tokens", "4000", "--seed", "1", "Once upon a time"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler) and None,
        env=os.environ | {"NO_COLOR": "1"},
    )
    time.sleep(wait)
    run.send_signal(signal.SIGINT)
    _, errors = run.communicate(timeout=60)
    if wait > 0.1:  # before that Python itself is still starting
        assert run.returncode in (130, 0)
        assert b"Traceback" not in errors
