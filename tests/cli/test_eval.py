"""nextword eval as a user meets it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cli_run import run as run_command
from nextword.cli import _console

FORM = "Text: {text}\\nMood: {label}"


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("NEXTWORD_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    yield
    _console.output.cache_clear()
    _console.messages.cache_clear()


@pytest.fixture(scope="module")
def model(tiny_model: Callable[..., Path]) -> str:
    return str(tiny_model())


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    return run_command(capsys, "eval", *arguments)


def test_a_table_becomes_scores_comparisons_a_page_and_files(
    reviews: Path, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(
        capsys, str(reviews), "-m", model, "--template", FORM, "--shots", "0,2", "--fewshot-seeds", "2",
        "--limit", "10", "--report", "page.html", "--out", "files", "--power", "0.1",
    )  # fmt: skip
    assert code == 0, err
    assert "accuracy over 10 items" in out
    assert "2 shots, random labels" in out
    assert "0 shots, contextual" in out
    assert "always the most frequent label" in out
    assert "tokens to read" in err
    assert (tmp_path / "page.html").stat().st_size > 5000
    assert len((tmp_path / "files/samples.jsonl").read_text().splitlines()) == 6 * 10
    assert json.loads((tmp_path / "files/result.json").read_text())["items"] == 10


def test_what_is_required_is_judged_after_all_is_written_and_ends_in_code_1(
    reviews: Path, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [str(reviews), "-m", model, "--template", FORM, "--shots", "0,2", "--limit", "10"]
    code, out, err = run(capsys, *asked, "--require", "2 shots > 0.999", "--at-least", "0", "--report", "page.html")
    assert code == 1
    assert "accuracy over 10 items" in out
    assert "--at-least 0: met" in out
    assert (tmp_path / "page.html").exists()
    failures = [line for line in err.splitlines() if line.startswith("2 shots > 0.999: ")]
    assert len(failures) == 1
    assert "--at-least" not in err
    code, out, _ = run(capsys, *asked, "--require", "2 shots > 0.999", "--json")
    assert code == 1
    found = json.loads(out)
    assert found["requirements"][0]["outcome"] in ("undecided", "not met")
    assert run(capsys, "runs", "show", found["name"])[0] == 0  # it was kept
    assert run(capsys, *asked, "--at-least", "0")[0] == 0


def test_a_name_that_no_line_will_have_is_refused_before_anything_is_asked(
    reviews: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [str(reviews), "-m", model, "--template", FORM, "--shots", "0,2", "--limit", "10", "--store", "own.sqlite"]
    code, out, err = run(capsys, *asked, "--require", "3 shots > 0 shots")
    assert (code, out) == (2, "")
    assert "there will be no row '3 shots'. Did you mean" in err
    assert "'2 shots, random labels'" in err
    assert json.loads(run(capsys, *asked, "--json")[1])["read"] > 0


def test_power_is_told_before_the_work_with_what_it_assumes(
    reviews: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [str(reviews), "-m", model, "--template", FORM, "--shots", "0,1,2", "--power", "0.2", "--dry-run"]
    told = " ".join(run(capsys, *asked)[1].split())
    assert "to detect a true difference of 0.2 in 80% of runs, about" in told
    assert "Assumed: 20% of the items change" in told
    assert "2 comparisons corrected together" in told
    power = json.loads(run(capsys, *asked, "--json")[1])["power"]
    assert power["level"] == 0.025
    required = json.loads(run(capsys, *asked, "--json", "--require", "2 shots > 1 shot")[1])["power"]
    assert required["comparisons"] == 3
    assert required["items"] > power["items"]


def test_json_says_all_of_it_and_a_second_run_reads_nothing(
    reviews: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [str(reviews), "-m", model, "--template", FORM, "--shots", "0,1", "--limit", "8", "--json"]
    first = json.loads(run(capsys, *asked)[1])
    again = json.loads(run(capsys, *asked)[1])
    assert first["read"] > 0
    assert again["read"] == 0
    assert first["rows"] == again["rows"]
    assert "sentiment" in json.loads(run(capsys, "--list", "--json")[1])["tasks"]
    code, out, _ = run(capsys, "--compare", first["name"], "last")
    assert code == 0
    assert "scored the same" in out


def test_a_second_evaluation_of_a_task_stands_beside_the_first(
    reviews: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [str(reviews), "-m", model, "--template", FORM, "--shots", "0,1", "--limit", "8"]
    _, shown, err = run(capsys, *asked)
    again = json.loads(run(capsys, *asked, "--json")[1])
    listed = json.loads(run(capsys, "runs", "list", "--json")[1])
    assert [each["name"] for each in listed][1] == again["name"]
    assert repr(listed[0]["name"]) in err
    assert listed[0]["items"] == 8
    assert listed[0]["models"] == [again["rows"][0]["model"]]
    assert listed[0]["best"]["score"] == max(line["score"]["value"] for line in again["rows"] if not line["baseline"])
    assert run(capsys, "runs", "show", "last~1")[1].startswith(shown)
    kept = json.loads(run(capsys, "runs", "show", again["name"], "--json")[1])
    assert {name: kept[name] for name in again} == again
    code, _, err = run(capsys, "runs", "remove", "last")
    assert (code, err) == (0, f"removed {again['name']}; the answers stay in the store\n")
    assert [each["name"] for each in json.loads(run(capsys, "runs", "list", "--json")[1])] == [listed[0]["name"]]
    assert json.loads(run(capsys, *asked, "--json")[1])["read"] == 0


def test_a_name_that_is_taken_is_refused_before_the_work(
    reviews: Path, model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [str(reviews), "-m", model, "--template", FORM, "--shots", "0", "--limit", "8", "--name", "mine"]
    assert "stored as 'mine'" in run(capsys, *asked)[2]
    monkeypatch.setattr("nextword.evals.served.open_model", None)  # whoever begins the work fails otherwise
    code, out, err = run(capsys, *asked)
    assert (code, out) == (2, "")
    assert "an evaluation 'mine' exists already" in err
    assert "nextword eval runs remove mine" in err


def test_an_evaluation_of_another_version_is_listed_and_cannot_break_what_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from nextword.evals.store import opened

    with opened(tmp_path / "old") as store:
        store.keep("sentiment/smollm2", {"task": "sentiment", "items": 200, "lines": [{"model": "m"}]})
    assert "sentiment/smollm2" in run(capsys, "runs", "list", "--store", "old")[1]
    code, out, err = run(capsys, "runs", "show", "last", "--store", "old")
    assert (code, out) == (2, "")
    assert "stored by another version of nextword" in err
    assert run(capsys, "runs", "show", "last", "--store", "none")[0] == 2
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("eval se", {"sentiment"}),
        ("eval r", {"runs"}),
        ("eval runs ", {"list", "show", "remove"}),
        ("eval sentiment --show", {"--show-seeds"}),
        ("eval runs show --sh", {"--show-seeds"}),
    ],
)
def test_the_shell_completes_tasks_options_and_runs(words: str, offered: set[str]) -> None:
    from click.shell_completion import ShellComplete

    from nextword.cli._app import app

    *before, typed = words.split(" ")
    found = ShellComplete(app, {}, "nextword", "_NEXTWORD_COMPLETE").get_completions(before, typed)
    assert {each.value for each in found} == offered


def test_help_shows_every_option_under_a_heading(capsys: pytest.CaptureFixture[str]) -> None:
    from nextword.cli.eval import command

    out = run(capsys, "--help")[1]
    assert out.startswith("Usage: nextword eval [OPTIONS] [TASK]\n")
    for parameter in command.params:
        assert parameter.opts[0] in out or parameter.name == "task"
    assert run(capsys, "runs", "list", "--help")[1].startswith("Usage: nextword eval runs list [OPTIONS]\n")


TALK = "{% for message in messages %}<{{ message.role }}>{{ message.content }}<|endoftext|>{% endfor %}<assistant>"


def test_a_chat_template_stands_beside_raw_text_and_a_system_message_begins_it(
    reviews: Path, tiny_model: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    talks = str(tiny_model(chat_template=TALK))
    asked = (str(reviews), "-m", talks, "--template", FORM, "--shots", "0", "--limit", "4", "--no-store", "--json")
    code, out, err = run(capsys, *asked, "--chat-template", "both")
    assert code == 0, err
    assert "is measured without it" not in err
    assert [line["template"] for line in json.loads(out)["rows"] if line["variant"] == "plain"] == ["raw", "chat"]
    assert any("chat" in each["after"] and "raw" in each["before"] for each in json.loads(out)["comparisons"])
    code, out, err = run(capsys, *asked, "--system", "Be brief.", "--dry-run")
    assert json.loads(out)["prompt"].startswith("<system>Be brief.<|endoftext|><user>Text: ")
    code, out, err = run(capsys, *asked)
    assert "has a chat template but is prompted with raw text" in " ".join(err.split())
    assert "--chat-template both" in json.loads(out)["notes"]["chat"][0]


def test_a_scorer_names_the_metric_of_what_a_model_writes(
    reviews: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    free = (
        str(reviews), "-m", model, "--template", FORM, "--generate", "--shots", "0", "--limit", "3",
        "--max-tokens", "4",
    )  # fmt: skip
    code, out, err = run(capsys, *free, "--no-store", "--scorer", "contains")
    assert code == 0, err
    assert "contains over 3 items" in out


def test_a_dry_run_shows_the_cost_and_one_prompt_and_keeps_nothing(
    reviews: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [str(reviews), "-m", model, "--template", FORM, "--shots", "2", "--limit", "8", "--dry-run"]
    code, out, _ = run(capsys, *asked)
    assert code == 0
    assert out.count("Mood:") == 3
    assert "' positive'" in out
    assert json.loads(run(capsys, *asked, "--json")[1])["costs"]
    assert json.loads(run(capsys, "runs", "list", "--json")[1]) == []


def test_templates_models_and_orders_make_a_grid(
    reviews: Path, model: str, tiny_model: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text("{text}: {label}\n")
    (tmp_path / "b.txt").write_text("Is this good? {text}\nAnswer: {label}\n")
    other = str(tiny_model(seed=1))
    code, out, err = run(
        capsys, str(reviews), "-m", model, "-m", other, "--template", "a.txt,b.txt", "--shots", "2",
        "--fewshot-seeds", "2", "--permutations", "2", "--limit", "6", "--no-baselines", "--json",
    )  # fmt: skip
    assert code == 0, err
    lines = json.loads(out)["rows"]
    assert {line["template"] for line in lines} == {"a", "b"}
    assert len({line["model"] for line in lines}) == 2
    assert all(len(line["scores"]) == 2 and len(line["scores"][0]) == 2 for line in lines)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["none.csv", "--template", FORM], "none.csv: cannot be read"),
        (["sentimnt"], "Did you mean sentiment"),
        (["{reviews}"], "a table needs a template"),
        (["{reviews}", "--template", "{txt} {label}"], "Columns: text, label, shop"),
        (["{reviews}", "--template", "{text}"], "{output}"),
        (["{reviews}", "--template", FORM, "--labels", "positive,neutral"], "'neutral' does not occur in column"),
        (["{reviews}", "--template", FORM, "--labels", "positive"], "row 1: the answer 'negative' is none of"),
        (["{reviews}", "--template", FORM, "--target", "mood"], "there is no column 'mood'"),
        (["{reviews}", "--template", FORM, "--shots-from", "{reviews}"], "among their own shots"),
        (["{reviews}", "--template", FORM, "--shots", "0,x"], "0,1,4"),
        (["{reviews}", "--template", FORM, "--shots", "-1"], "at least 0"),
        (["{reviews}", "--template", FORM, "--shots", "99"], "99 shots cannot be drawn"),
        (["{reviews}", "--template", FORM, "--calibrate", "both"], "Known: contextual, batch"),
        (["{reviews}", "--template", FORM, "--calibrate", ""], "--calibrate '' is not known"),
        (["{reviews}", "--template", FORM, "--calibrate", "batch,batch"], "names batch twice"),
        (["{reviews}", "--template", FORM, "--fewshot-seeds", "0"], "at least 1"),
        (["{reviews}", "--template", FORM, "--power", "3"], "between 0 and 1"),
        (["{reviews}", "--template", FORM, "--chat-template", "on"], "has no chat template"),
        (
            ["{reviews}", "--template", FORM, "--chat-template", "off", "--system", "x"],
            "--system needs the chat template",
        ),
        (["{reviews}", "--template", FORM, "--scorer", "f1"], "--generate lets it generate"),
        (["{reviews}", "--template", FORM, "--generate", "--scorer", "f2"], "Known: exact, normalized, contains"),
        (["--compare", "a", "b"], "no evaluation 'a' in"),
        ([], "no task given"),
        (["--compare", "a", "b", "--shots", "4", "--no-store"], "--compare cannot be used with --shots, --no-store"),
        (["--compare", "a", "b", "sentiment"], "--compare cannot be used with sentiment"),
        (["--list", "sentiment"], "--list cannot be used with sentiment"),
        (["sentiment", "--max-tokens", "4"], "does not generate answers"),
        (["sentiment", "--at-least", "95", "--shots", "0"], "95 decides nothing"),
    ],
)
def test_bad_input_gets_one_line_that_names_the_fix(
    arguments: list[str], said: str, reviews: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [argument.replace("{reviews}", str(reviews)) for argument in arguments]
    code, out, err = run(
        capsys, *given, *(["-m", model, "--limit", "4"] if given[:1] not in (["--compare"], ["--list"]) else [])
    )
    assert code == 2
    assert out == ""
    assert said in " ".join(err.split())
    assert "Traceback" not in err


def test_broken_rows_are_named_by_their_line_and_left_out_when_asked(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [json.dumps({"text": f"t{n}", "label": "ab"[n % 2]}) for n in range(30)]
    (tmp_path / "rows.jsonl").write_text("\n".join([*rows[:7], '{"text": ', *rows[7:]]) + "\n")
    asked = ["rows.jsonl", "-m", model, "--template", "{text} {label}", "--limit", "5"]
    code, _, err = run(capsys, *asked)
    assert code == 2
    assert "line 8" in err
    code, _, err = run(capsys, *asked, "--skip-invalid")
    assert code == 0, err
    assert "line 8" in err


def test_rows_that_are_not_scored_are_told_on_the_terminal_in_json_and_on_the_page(
    reviews: Path, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = "12 of 60 rows are reserved for shots and not scored"
    asked = [str(reviews), "-m", model, "--template", FORM, "--limit", "5", "--report", "page.html", "--json"]
    code, out, err = run(capsys, *asked, "--shots", "1", "--fewshot-seeds", "1")
    assert code == 0, err
    assert told in " ".join(err.split())
    assert told in json.loads(out)["notes"]["warnings"][0]
    assert told in (tmp_path / "page.html").read_text()
    assert all(told not in part for part in run(capsys, *asked, "--shots", "0")[1:])


def test_options_of_tables_change_a_task_file_s_prompts_too(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["sentiment", "-m", model, "--shots", "0", "--limit", "3", "--dry-run", "--json"]
    code, out, err = run(capsys, *asked, "--description", "Judge.\\n", "--labels", "negative=bad,positive=good")
    assert code == 0, err
    assert json.loads(out)["prompt"].startswith("Judge.\nReview: ")
    assert json.loads(out)["continuations"] == [" bad", " good"]


def test_ctrl_c_keeps_the_answers_so_far(reviews: Path, smollm2_path: Path, tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "nextword", "eval", str(reviews), "-m", str(smollm2_path), "--template", FORM,
        "--shots", "0,1,2,4", "--store", str(tmp_path / "store"),
    ]  # fmt: skip
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"NO_COLOR": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler) and None,
    ) as process:  # fmt: skip
        assert process.stderr is not None
        process.stderr.readline()  # what it takes is said; the work begins
        time.sleep(3)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "interrupted; the answers so far are in the store" in " ".join(err.split())
    from nextword.evals.store import opened

    with opened(tmp_path / "store") as store:
        assert store._connection.execute("select count(*) from answers").fetchone()[0] > 0
