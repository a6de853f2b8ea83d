"""The playground's prompts: to the token what `nextword eval` sends, with its probabilities; the commands for it."""

from __future__ import annotations

import json
import math
import shlex
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nextword
from nextword.cli import main
from nextword.engine import ScoreRequest
from nextword.evals.design import Design, ScoringConfig
from nextword.evals.eval_run import EvalRun
from nextword.evals.store import opened
from nextword.evals.task_files import TASKS, builtin_tasks
from nextword.evals.task_loader import TaskOptions, open_task
from serving import Server


def tasks(server: Server) -> dict[str, Any]:
    return {task["name"]: task for task in server.get("/v1/tasks").json["tasks"]}


def ask(server: Server, **body: Any) -> Any:
    """POST /v1/prompt, which must succeed."""
    answer = server.post("/v1/prompt", body)
    assert answer.status == 200, answer.data
    return answer.json


def ids(tokens: list[Any]) -> tuple[int, ...]:
    return tuple(token["id"] for token in tokens)


def test_tasks_are_those_of_eval_with_its_first_examples(tiny: Server) -> None:
    found = tasks(tiny)
    assert {name: task["summary"] for name, task in found.items()} == builtin_tasks()
    for name, shown in found.items():
        own = open_task(name)[name]
        rows = [item.values for item in own.items]
        assert all(question in rows for question in shown["questions"])
        assert (shown["labels"] is None) == own.format.generates
        assert [len(examples) for examples in shown["examples"]] == [16] * 5


@pytest.mark.parametrize(
    ("name", "how", "template", "labels"),
    [
        ("sentiment", {}, None, ()),
        ("sentiment", {"chat": True, "system": "You label <|im_end|> reviews."}, None, ()),
        ("sentiment", {}, "{text}\nIs it good or bad? {output}", ("negative=bad", "positive=good")),
        ("topic", {}, None, ()),
        ("capitals", {}, None, ()),
        ("capitals", {"chat": True}, None, ()),
    ],
)
def test_a_prompt_is_to_the_token_what_eval_sends(
    smollm2: Server, smollm2_path: Path, name: str, how: Any, template: str | None, labels: tuple[str, ...]
) -> None:
    given_templates = {name: template} if template else None
    own = open_task(name, given_templates, TaskOptions(labels=labels))
    scoring = ScoringConfig(chat_template="on" if how else "off", system=how.get("system"))
    design, model = Design((0, 1, 4), fewshot_seeds=1, limit=2, baselines=False), nextword.load(smollm2_path)
    with opened(None) as store:
        run = EvalRun(own, [model], design, scoring, store)
        answers = {(r.condition.shots, a.item.row_id): a for r in run.run().conditions for a in r.answers}
        questions = {(question.trial.condition.shots, question.item.row_id): question for question in run.questions(0)}
    words = [label.partition("=")[2] for label in labels] or None
    for item in run.items:
        shots = [shot.values for shot in questions[4, item.row_id].trial.shots_of(item)]
        shown = ask(smollm2, task=name, question=item.values, examples=shots, shots=[0, 1, 4], template=template,
                    labels=words, **how)  # fmt: skip
        for column in shown["columns"]:
            key = column["shots"], item.row_id
            question, expected = questions[key], answers[key]
            assert column["prompt"] == question.asked[0].context
            assert ids(column["tokens"]) == question.encoded[0].context
            if expected.written is not None:
                assert (column["written"], column["score"]) == (expected.written, expected.score)
                continue
            assert [ids(label["tokens"]) for label in column["labels"]] == [e.continuation for e in question.encoded]
            np.testing.assert_allclose([label["logprob"] for label in column["labels"]], expected.logprobs, atol=1e-6)
            assert (column["chosen"], column["right"]) == (expected.prediction, expected.gold)


def test_shares_are_over_the_labels_and_the_rest_is_on_none_of_them(smollm2: Server, smollm2_path: Path) -> None:
    labels = ["positive", "negative", "neither of both"]
    asked = {"template": "{text} Sentiment: {output}", "labels": labels, "question": {"text": "I love it!"}}
    [column] = ask(smollm2, shots=[0], **asked)["columns"]
    model = nextword.load(smollm2_path)
    context = model.encode("I love it! Sentiment:")
    continuations = [tuple(model.encode(f" {label}")) for label in labels]
    scores = model.engine.score([ScoreRequest(tuple(context), tuple(continuations))])[0]
    masses = [math.exp(sum(score.logprobs)) for score in scores]
    assert ids(column["tokens"]) == tuple(context)
    assert len(column["labels"][2]["tokens"]) == 3
    assert [label["share"] for label in column["labels"]] == pytest.approx([m / sum(masses) for m in masses])
    assert column["none"] == pytest.approx(1 - sum(masses))
    assert column["right"] is None
    [again] = ask(smollm2, shots=[0], **(asked | {"labels": ["neither", "neither of both"]}))["columns"]
    assert again["none"] == pytest.approx(1 - math.exp(again["labels"][0]["logprob"]))  # one holds the other


def test_the_command_measures_what_is_shown(
    smollm2: Server, smollm2_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    task = tasks(smollm2)["sentiment"]
    drawn, rows = task["examples"][0][:2], [json.loads(line) for line in (TASKS / "sentiment-test.jsonl").open()]
    questions = {row["text"]: row for row in rows}
    own = {"template": 'It\'s "{text}"\n=> {output}', "labels": ["bad, poor", "good"]}
    for body, needs_file in (({"examples": drawn}, False), ({"examples": drawn[::-1]}, True),
                             ({"examples": drawn, "chat": True, "system": "Be brief."}, False),
                             ({"examples": drawn[::-1], **own}, True)):  # fmt: skip
        body |= {"task": "sentiment", "shots": [0, 2]}
        shown = ask(smollm2, question=rows[0], **body)
        assert shown["own_examples"] == needs_file
        Path("examples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in body["examples"]))
        words = shlex.split(shown["command"])
        assert words[:2] == ["nextword", "eval"]
        assert main([*words[1:], "--dry-run", "--json", "--no-store", "--fewshot-seeds", "1"]) == 0
        sent = json.loads(capsys.readouterr().out)
        before, _, _ = shown["columns"][1]["prompt"].rpartition(rows[0]["text"])
        assert sent["prompt"].startswith(before)
        [question] = [row for text, row in questions.items() if sent["prompt"][len(before) :].startswith(text)][-1:]
        again = ask(smollm2, question=question, **body)["columns"][1]
        assert again["prompt"] == sent["prompt"]
        assert [label["label"] for label in again["labels"]] == [text.strip() for text in sent["continuations"]]


def test_more_examples_than_the_task_has_are_one_s_own(smollm2: Server) -> None:
    rows = [{"symbol": f"X{number}", "answers": ["Xenon"]} for number in range(25)]
    shown = ask(smollm2, task="elements", question={"symbol": "He"}, examples=rows, shots=[25])
    assert shown["own_examples"]
    assert shown["columns"][0]["score"] is None


def test_the_command_for_questions_of_one_s_own(
    smollm2: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"input": f"text {number}", "output": ["yes", "no"][number % 2]} for number in range(4)]
    body = {"template": "{input}: {output}", "labels": ["yes", "no"], "examples": rows[:2], "shots": [0, 2]}
    shown = ask(smollm2, question=rows[2], **body)
    Path("examples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:2]))
    Path("questions.csv").write_text("input,output\n" + "".join(f"{r['input']},{r['output']}\n" for r in rows[2:]))
    assert main([*shlex.split(shown["command"])[1:], "--dry-run", "--json", "--no-store"]) == 0
    assert json.loads(capsys.readouterr().out)["prompt"] == shown["columns"][1]["prompt"]


def test_stored_evaluations_of_the_task_and_model_are_listed(
    start: Any, tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NEXTWORD_CACHE", str(tmp_path / "cache"))
    server = start(tiny_path, "--alias", "tiny", NEXTWORD_CACHE=str(tmp_path / "cache"))
    assert server.post("/v1/evaluations", {"task": "sentiment"}).json["evaluations"] == []
    assert not (tmp_path / "cache").exists()
    command = ["eval", "sentiment", "--model", str(tiny_path), "--shots", "0", "--limit", "5", "--name"]
    assert main([*command, "mine"]) == 0
    assert main(["eval", "topic", *command[2:], "other"]) == 0
    capsys.readouterr()
    [found] = server.post("/v1/evaluations", {"task": "sentiment"}).json["evaluations"]
    assert (found["name"], found["items"], found["metric"]) == ("mine", 5, "accuracy")
    assert main(["eval", "runs", "show", "mine", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)["rows"][0]
    assert [found["rows"][0][name] for name in ("value", "low", "high")] == [
        row["score"][n] for n in ("value", "low", "high")
    ]
    shown = ask(server, task="sentiment", question={"text": "fine"}, shots=[0])
    assert shown["digest"] == found["rows"][0]["digest"]
    other = ask(server, task="sentiment", question={"text": "fine"}, shots=[0], template="{text}\n= {output}",
                labels=["bad", "positive"], chat=True)  # fmt: skip
    assert other["digest"] != shown["digest"]
    assert main([*shlex.split(other["command"])[1:-1], "5", "--name", "another"]) == 0
    again = server.post("/v1/evaluations", {"task": "sentiment"}).json["evaluations"]
    assert [each["name"] for each in again] == ["another", "mine"]
    assert again[0]["rows"][0]["digest"] == other["digest"]


@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        ({"task": "../../etc/passwd"}, "task", "no built-in task"),
        ({"task": "sentiment.yaml"}, "task", "no built-in task"),
        ({"task": "sentiment", "shots": [1]}, "shots", "there are 0 examples"),
        ({"task": "sentiment", "template": "{text}"}, "template", "exactly one {output}"),
        ({"task": "sentiment", "template": "{words} {output}"}, "template", "unknown {words}"),
        ({"task": "sentiment", "template": "{text}" * 40 + "{output}"}, "template", "32 placeholders"),
        ({"task": "sentiment", "labels": ["a", "b", "c"]}, "labels", "2 labels"),
        ({"task": "sentiment", "examples": [{"text": "a", "label": "so so"}]}, "examples", "none of the labels"),
        ({"task": "sentiment", "question": {"text": "a" * 300_000}}, None, "200,000 bytes"),
        ({"task": "sentiment", "question": {"text": "a" * 100_000}}, "examples", "the context holds 512"),
        ({"labels": ["a", "b"]}, "template", "needs its template"),
        ({"template": "{text} {output}", "labels": ["a", "a"]}, None, "the same"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_one_line(tiny: Server, body: Any, param: Any, said: str) -> None:
    error = tiny.post("/v1/prompt", {"question": {"text": "a"}, "shots": [0]} | body).error
    assert said in error["message"]
    assert error["param"] == param


def test_a_prompt_that_is_too_long_leaves_the_shorter_ones_answered(tiny: Server) -> None:
    rows = [{"text": "a" * 100, "label": "positive"}] * 6
    fits, too_long = ask(tiny, task="sentiment", question={"text": "b"}, examples=rows, shots=[1, 6])["columns"]
    assert len(fits["labels"]) == 2
    assert too_long.keys() == {"shots", "error"}
    assert "the context holds 512" in too_long["error"]
    fits, too_long = ask(tiny, task="capitals", question={"kind": "a", "place": "b"}, shots=[0, 2], examples=[
        {"kind": "c" * 300, "place": "d", "answers": ["e"]}] * 2)["columns"]  # fmt: skip
    assert "written" in fits
    assert "error" in too_long


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9), lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)  # fmt: skip
ROW = st.dictionaries(st.sampled_from(["text", "label", "output", "question", "choices", "answer"]), plain, max_size=4)


@given(
    task=st.sampled_from([None, "sentiment", "mmlu-dev", "capitals"]), question=ROW, examples=st.lists(ROW, max_size=2),
    template=st.none() | st.text(alphabet="{}text output[0]\n", max_size=30) | st.just("{text} {output}"),
    labels=st.none() | st.lists(st.text(max_size=4), min_size=2, max_size=3), chat=st.booleans(),
)  # fmt: skip
@hypothesis.settings(max_examples=60)
def test_any_row_and_template_is_taken_or_refused(tiny: Server, **body: Any) -> None:
    answer = tiny.post("/v1/prompt", body | {"shots": [0, len(body["examples"])]})
    assert answer.status == 200 or (answer.status == 400 and answer.error), answer.data


def test_a_conversation_comes_with_its_exact_tokens(smollm2: Server, tiny: Server, smollm2_path: Path) -> None:
    messages = [{"role": "user", "content": "Say <|im_end|> and ΩΩ"}]
    answer = smollm2.post("/apply-template", {"messages": messages, "with_pieces": True}).json
    usage = smollm2.post("/v1/chat/completions", {"messages": messages, "max_tokens": 0}).json["usage"]
    assert len(answer["tokens"]) == usage["prompt_tokens"]
    text = b"".join(t["piece"].encode() if isinstance(t["piece"], str) else bytes(t["piece"]) for t in answer["tokens"])
    assert text.decode() == answer["prompt"]
    control = [token["piece"] for token in answer["tokens"] if token.get("control")]
    assert control == ["<|im_start|>", "<|im_end|>"] * 2 + ["<|im_start|>"]
    assert any(isinstance(token["piece"], list) for token in answer["tokens"])
    assert "tokens" not in smollm2.post("/apply-template", {"messages": messages}).json
    assert nextword.load(smollm2_path).tokenizer.decode(ids(answer["tokens"]), special=True) == answer["prompt"]
