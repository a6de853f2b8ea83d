"""lm-evaluation-harness on our engine: against its own `hf` model on the same files."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from nextword import load
from nextword.base import RunError, UsageError
from nextword.cli import main
from nextword.engine import LanguageModel

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its own and those of what it imports
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from nextword.evals.lm_eval_adapter import LMEvalOptions, NextwordLM, run_tasks
    from nextword.evals.lm_eval_adapter import main as adapter_main

pytestmark = pytest.mark.filterwarnings("ignore")
TASKS = Path(__file__).parent / "lm_eval_tasks"
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}<|endoftext|>{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.fixture(scope="module")
def folder(tiny_model: Callable[..., Path]) -> Path:
    return tiny_model("transformer", chat_template=TEMPLATE)


@pytest.fixture(scope="module")
def model(folder: Path) -> LanguageModel:
    return load(str(folder), dtype="float32")


@pytest.fixture(autouse=True)
def in_the_tasks_folder(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.chdir(TASKS)  # their data files are named without a folder
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path_factory.getbasetemp() / "datasets"))


def numbers(value: Any) -> Iterator[Any]:
    """Every log-probability, flag and text of an answer, in order."""
    if isinstance(value, list | tuple):
        for part in value:
            yield from numbers(part)
    else:
        yield value


@pytest.mark.parametrize(
    "options",
    [
        {"num_fewshot": 2, "tasks": ["arc_easy", "gsm8k", "lambada_openai", "pile_arxiv"]},
        {
            "num_fewshot": 1, "tasks": ["arc_easy", "gsm8k"], "limit": 4, "apply_chat_template": True,
            "fewshot_as_multiturn": True, "system_instruction": "Be brief.",
        },
    ],
    ids=["raw", "chat"],
)  # fmt: skip
def test_requests_and_answers_are_those_of_lm_evals_own_model(
    options: dict[str, Any], folder: Path, model: LanguageModel
) -> None:
    options |= {"tasks": [str(TASKS / f"{name}.yaml") for name in options["tasks"]], "bootstrap_iters": 0}
    options |= {"gen_kwargs": {"max_gen_toks": 24}, "task_manager": TaskManager(include_defaults=False)}
    theirs = lm_eval.simple_evaluate(HFLM(pretrained=str(folder), dtype="float32", device="cpu"), **options)
    ours = lm_eval.simple_evaluate(NextwordLM(model), **options)
    assert ours["results"].keys() == theirs["results"].keys()
    for task, samples in theirs["samples"].items():
        for own, other in zip(ours["samples"][task], samples, strict=True):
            assert own["arguments"] == other["arguments"]
            for one, two in zip(numbers(own["resps"]), numbers(other["resps"]), strict=True):
                assert one == (pytest.approx(two, abs=1e-3) if isinstance(two, float) else two)


def test_what_few_shot_prompts_share_is_read_once(model: LanguageModel) -> None:
    shots = "Question: what is it?\nAnswer: amber\n\n" * 8
    requests = [
        Instance("loglikelihood", {}, (f"{shots}Question: {number}?\nAnswer:", choice), number)
        for number in range(20) for choice in (" amber", " birch")
    ]  # fmt: skip
    model.engine.clear_cache()
    before = model.engine.tokens_read
    NextwordLM(model).loglikelihood(requests, disable_tqdm=True)
    alone = sum(len(model.encode(context + choice)) for context, choice in (request.args for request in requests))
    assert model.engine.tokens_read - before < alone / 6


def test_a_tasks_python_functions_run(model: LanguageModel) -> None:
    result = run_tasks(model, [str(TASKS / "python.yaml")])
    [row] = result.rows
    rows = [json.loads(line) for line in (TASKS / "arc_easy-test.json").read_text().splitlines()][1::2]
    assert (row.task, row.metric) == ("python", "choices")
    assert row.value == sum(len(row["choices"]["text"]) for row in rows) / len(rows)
    assert result.to_dict()["n-samples"]["python"]["effective"] == len(rows)


def test_no_stop_text_writes_to_the_limit_and_repeats_differ(model: LanguageModel, tmp_path: Path) -> None:
    run_tasks(model, [str(TASKS / "endless.yaml")], LMEvalOptions(limit=2, out=tmp_path))
    (folder,) = tmp_path.iterdir()
    assert folder.name.endswith(Path(model.name).name)
    assert list(folder.glob("results_*.json"))
    [samples] = tmp_path.glob("**/samples_endless_*.jsonl")
    for line in samples.read_text().splitlines():
        [texts] = json.loads(line)["resps"]
        assert len(set(texts)) == 3
        assert all(texts)


def test_a_sampled_answer_depends_on_its_own_prompt_only(model: LanguageModel) -> None:
    options = {"until": [], "max_gen_toks": 8, "do_sample": True, "temperature": 1.0}
    asked = [Instance("generate_until", {}, (prompt, options), row) for row, prompt in enumerate(("a", "b", "a"))]
    lm = NextwordLM(model)
    first, other, again = lm.generate_until(asked, disable_tqdm=True)
    assert first != again
    assert lm.generate_until(asked[1:2], disable_tqdm=True) == [other]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a", {"num_beams": 4}), "num_beams is not supported"),
        (("a", {"max_gen_toks": 512}), "max_gen_toks is 512; the model's context holds 512"),
    ],
)
def test_generation_options_that_cannot_be_kept_are_refused(
    model: LanguageModel, arguments: tuple[str, dict[str, Any]], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        NextwordLM(model).generate_until([Instance("generate_until", {}, arguments, 0)])


def test_a_prompt_is_cut_on_the_left_to_leave_room_for_the_answer(model: LanguageModel) -> None:
    options = {"until": [], "max_gen_toks": 12}
    long, short = "x" * 700 + "end", "x" * 497 + "end"
    lm = NextwordLM(model)
    [cut] = lm.generate_until([Instance("generate_until", {}, (long, options), 0)], disable_tqdm=True)
    [whole] = lm.generate_until([Instance("generate_until", {}, (short, options), 0)], disable_tqdm=True)
    assert cut == whole


def test_the_command_prints_lm_evals_numbers(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["eval", "--lm-eval", str(TASKS / "arc_easy.yaml"), "-m", str(folder), "--limit", "3", "--shots", "1"]
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["n-shot"] == {"arc_easy": 1}
    assert main(command) == 0
    table = capsys.readouterr().out
    assert f"{found['results']['arc_easy']['acc,none']:.4f}" in table
    assert "acc_norm" in table


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lm-eval", "missing.yaml"], "task file missing.yaml does not exist"),
        (["--lm-eval", ","], "--lm-eval names no task"),
        (["--lm-eval", "arc_easy", "--shots", "0,1"], "--lm-eval takes one --shots, not 2"),
        (["--lm-eval", "arc_easy", "--chat-template", "both"], "on or off, not both"),
        (["--lm-eval", "arc_easy", "-m", "openai:http://localhost/v1#x"], "local-completions"),
        (["--lm-eval", "arc_easy", "--report", "x.html"], "--lm-eval cannot be used with --report"),
        (["sentiment", "--lm-eval", "arc_easy"], "--lm-eval cannot be used with sentiment"),
        (["sentiment", "--include-path", "."], "--include-path is only used by --lm-eval"),
    ],
)
def test_what_lm_eval_cannot_do_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.fixture
def few_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without lm_eval's own tasks, which take five seconds to look through."""
    monkeypatch.setattr("lm_eval.tasks.TaskManager", partial(TaskManager, include_defaults=False))


def test_an_unknown_task_and_a_task_that_fails_are_named(model: LanguageModel, tmp_path: Path, few_tasks: None) -> None:
    with pytest.raises(UsageError, match="Tasks not found: no_such_task"):
        run_tasks(model, ["no_such_task"])
    broken = (TASKS / "arc_easy.yaml").read_text().replace("{{choices.text}}", "{{nothing.text}}")
    (tmp_path / "broken.yaml").write_text(broken.replace("arc_easy\n", "broken\n"))
    with pytest.raises(RunError, match="lm-evaluation-harness failed: UndefinedError"):
        run_tasks(model, [str(tmp_path / "broken.yaml")])


def test_a_group_of_tasks_has_numbers_of_its_own(model: LanguageModel, few_tasks: None) -> None:
    rows = run_tasks(model, ["both"], LMEvalOptions(include_path=TASKS, limit=3)).rows
    assert [(row.task, row.metric) for row in rows] == [
        ("arc_easy", "acc"), ("arc_easy", "acc_norm"), ("python", "choices"), ("both", "acc"),
    ]  # fmt: skip
    assert rows[-1].value == rows[0].value


def test_lm_evals_own_command_line_knows_nextword(
    folder: Path, few_tasks: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["lm_eval", "--model", "nextword", "--model_args", f"pretrained={folder},dtype=float32"]
    command += ["--tasks", "arc_easy", "--include_path", str(TASKS), "--limit", "2"]
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.setattr("lm_eval.__main__.setup_logging", lambda: None)
    adapter_main()
    assert "|arc_easy|" in capsys.readouterr().out.replace(" ", "")


def test_without_lm_eval_the_command_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "nextword.evals.lm_eval_adapter")
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert main(["eval", "--lm-eval", "arc_easy"]) == 2
    assert "pip install 'nextword[lm-eval]'" in capsys.readouterr().err
