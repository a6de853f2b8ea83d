"""Models behind OpenAI-compatible servers: against the same model evaluated here, and servers that misbehave."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from openai_server import EngineServer, serving

from llama_cpp_server import llama_cpp_address
from nextword import load
from nextword.base import NextwordError, RunError, UsageError
from nextword.cli import main
from nextword.engine import LanguageModel
from nextword.evals import evaluate, openai_client
from nextword.evals.design import Design, ScoringConfig
from nextword.evals.eval_run import EvalRun
from nextword.evals.openai_client import Connection, Server, Settings, in_parallel
from nextword.evals.results import Collected
from nextword.evals.served import ServedModel, open_model
from nextword.evals.store import opened
from nextword.evals.task import Task
from nextword.evals.task_loader import TaskOptions, open_task
from nextword.models.weights import write_model
from torch_models import torch_model

TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}<|endoftext|>{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
FORMS = {"choices": "Text: {text}\nMood: {label}", "more than ASCII": "Text: {text} ☺\nMood→{label}"}
WRITTEN = TaskOptions(generate=True, max_tokens=6)


@pytest.fixture(scope="module")
def model(tiny_model: Callable[..., Path]) -> LanguageModel:
    return load(str(tiny_model("transformer", chat_template=TEMPLATE)), dtype="float32")


@pytest.fixture(scope="module")
def address(model: LanguageModel) -> Iterator[str]:
    with serving(EngineServer(model)) as (address, _):
        yield address


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Attempts come right after each other; the waits that were due."""
    waits: list[float] = []
    monkeypatch.setattr(openai_client.time, "sleep", waits.append)
    return waits


def task_of(reviews: Path, template: str, options: TaskOptions | None = None) -> Task:
    return open_task(str(reviews), {"t": template}, options or TaskOptions(hold_back=True))["t"]


def collect(task: Task, model: LanguageModel | ServedModel, store: Path | None = None, **scoring: Any) -> Collected:
    with opened(store) as answers:
        design = Design((0, 2), fewshot_seeds=1, limit=6)
        return EvalRun({"t": task}, [model], design, ScoringConfig(**scoring), answers).run()


@pytest.mark.parametrize("template", FORMS.values(), ids=FORMS)
def test_choices_are_as_likely_as_on_the_model_itself(
    template: str, model: LanguageModel, address: str, reviews: Path
) -> None:
    task = task_of(reviews, template)
    here, there = (collect(task, one) for one in (model, open_model(address)))
    assert len(here.conditions) == len(there.conditions)
    for own, other in zip(here.conditions, there.conditions, strict=True):
        assert list(own.scores) == list(other.scores)
        for one, two in zip(own.answers, other.answers, strict=True):
            for local, served in zip(one.likelihoods, two.likelihoods, strict=True):
                assert served.logprobs == pytest.approx(local.logprobs, abs=1e-4)
                assert served.greedy == local.greedy


@pytest.mark.parametrize("chat", ["off", "on"])
def test_answers_are_written_as_by_the_model_itself(
    chat: str, model: LanguageModel, address: str, reviews: Path
) -> None:
    task = task_of(reviews, FORMS["choices"], WRITTEN)
    here, there = (collect(task, one, chat_template=chat) for one in (model, open_model(address)))
    texts = [[answer.written for result in run.conditions for answer in result.answers] for run in (here, there)]
    assert texts[0] == texts[1]
    assert there.read > 0


def test_an_answer_is_stored_under_the_address_and_asked_once(
    model: LanguageModel, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    task, store = task_of(reviews, FORMS["choices"]), tmp_path / "store"
    with serving(EngineServer(model)) as (address, requests):
        first = collect(task, open_model(f"{address}#a"), store)
        asked = len(requests)
        again = collect(task, open_model(f"{address}#a"), store)
        assert len(requests) == asked
        assert (first.read > 0, again.read) == (True, 0)
        collect(task, open_model(f"{address}#b"), store)
        assert len(requests) == 2 * asked
    assert {headers["Authorization"] for _, headers, _ in requests} == {"Bearer sk-secret"}
    assert b"sk-secret" not in store.read_bytes()


def test_a_call_from_python_takes_an_address(model: LanguageModel, address: str, reviews: Path) -> None:
    results = [
        evaluate(str(reviews), [one], shots=[0], templates={"t": FORMS["choices"]}, design=Design(limit=5))
        for one in (model, address)
    ]
    assert results[0].rows[0].score == results[1].rows[0].score


def test_the_command_evaluates_a_served_model(
    address: str, reviews: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["eval", str(reviews), "--template", FORMS["choices"], "--shots", "0,1", "--limit", "5", "-m", address]
    store = ["--store", str(tmp_path / "store"), "--fewshot-seeds", "2"]
    assert main([*command, *store, "--report", str(tmp_path / "page.html"), "--json"]) == 0
    out, err = capsys.readouterr()
    host = address.removeprefix("openai:http://").removesuffix("/v1")
    assert {row["model"] for row in json.loads(out)["rows"]} == {f"tiny@{host}"}
    assert "characters to read" in err
    assert f"tiny@{host}" in (tmp_path / "page.html").read_text()
    assert main(["eval", "runs", "show", "last", *store[:2]]) == 0
    assert f"{address}#tiny" in "".join(capsys.readouterr().out.split())


def test_requests_run_side_by_side_up_to_the_limit() -> None:
    barrier, counts, lock = threading.Barrier(3), list[int](), threading.Lock()
    running = 0

    def call(number: int) -> int:
        nonlocal running
        with lock:
            running += 1
            counts.append(running)
        barrier.wait(10)
        with lock:
            running -= 1
        return -number

    assert sorted(in_parallel(call, range(9), 3)) == [(number, -number) for number in range(9)]
    assert max(counts) == 3


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again_ever_later(status: int, no_waiting: list[float]) -> None:
    left = [status] * 3

    def respond(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if left:
            return left.pop(), {"error": {"message": "busy"}}
        return 200, {"choices": [{"text": "yes"}]}

    with serving(respond) as (address, requests):
        assert Server(f"{address}#m").complete("a", Settings(1)).text == "yes"
        assert len(requests) == 4
        assert no_waiting == sorted(no_waiting)
        left += [status] * 9
        with pytest.raises(RunError, match=f"HTTP {status}: busy, after 3 attempts"):
            Server(f"{address}#m", Connection(retries=2)).complete("a", Settings(1))


def test_an_answer_ends_before_each_stop_text_also_those_that_the_server_does_not_take() -> None:
    with serving(lambda path, body: (200, {"choices": [{"text": "one two. three"}]})) as (address, requests):
        settings = Settings(9, stop=("!", "?", ";", ":", " three", "."))
        assert Server(f"{address}#m").complete("a", settings).text == "one two"
        assert requests[0][2]["stop"] == ["!", "?", ";", ":"]


def test_a_model_that_knows_the_limit_by_its_newer_name_is_asked_so() -> None:
    def respond(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if "max_tokens" in body:
            return 400, {"error": {"message": "Use 'max_completion_tokens' instead."}}
        return 200, {"choices": [{"message": {"content": str(body["max_completion_tokens"])}}]}

    with serving(respond) as (address, _):
        assert Server(f"{address}#m").chat([{"role": "user", "content": "a"}], Settings(7)).text == "7"


NO_CHOICES = {"choices": []}
NAN = {"text": "A b", "logprobs": {"tokens": ["A", " b"], "token_logprobs": [None, "x"], "top_logprobs": [None, {}]}}


@pytest.mark.parametrize(
    ("status", "answer", "message"),
    [
        (200, b"<html>", "the answer has no JSON object"),
        (200, b"[" * 100_000, "the answer has no JSON object"),
        (200, NO_CHOICES, "the answer has no choices"),
        (200, {"choices": [NAN]}, "the answer has no log-probabilities of tokens"),
        (200, b" " * ((64 << 20) + 1), "the answer is larger than 64 MiB"),
        (200, {"choices": [{"text": "A b", "logprobs": None}]}, r"cannot score choices .* use --generate"),
        (400, {"error": "no \x1b[31mecho"}, r"cannot score choices \(no \\x1b\[31mecho\): .* use --generate"),
        (401, {"error": {"message": "no key"}}, "HTTP 401: no key. Is OPENAI_API_KEY set?"),
        (404, {"detail": "Not Found"}, r"cannot score choices .* use --generate"),
        (302, b"", "HTTP 302"),
    ],
    ids=["html", "deep", "empty", "nan", "huge", "no logprobs", "no echo", "no key", "not found", "redirect"],
)
def test_a_server_that_answers_nonsense_is_one_line(status: int, answer: Any, message: str) -> None:
    with serving(lambda path, body: (status, answer)) as (address, _):
        server = Server(f"{address}#m", Connection(retries=0))
        with pytest.raises(NextwordError, match=message) as error:
            server.score("A", " b")
    assert len(str(error.value)) < 500
    assert str(error.value).isprintable()


def test_a_prompt_that_is_too_long_is_told_from_a_server_that_cannot_score(model: LanguageModel) -> None:
    server = EngineServer(model)

    def respond(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if len(body["prompt"]) > 20:
            return 400, {"error": {"message": "the context holds 20 tokens"}}
        return server(path, body)

    with serving(respond) as (address, _), pytest.raises(RunError, match=r"HTTP 400: the context holds 20 tokens"):
        Server(f"{address}#m").score("a" * 30, " b")


@contextmanager
def dripping(data: bytes) -> Iterator[str]:
    """A server that sends a byte every 50 ms, for ever."""
    listener = socket.create_server(("127.0.0.1", 0))
    ended = threading.Event()

    def drip() -> None:
        client, _ = listener.accept()
        with client:
            try:
                for number in range(10**6):
                    client.sendall(data[number : number + 1] or b"x")
                    if ended.wait(0.05):
                        return
            except OSError:
                pass

    threading.Thread(target=drip, daemon=True).start()
    try:
        yield f"openai:http://127.0.0.1:{listener.getsockname()[1]}/v1#m"
    finally:
        ended.set()
        listener.close()


@pytest.mark.parametrize("data", [b"", b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\nContent-Length: 999999\r\n\r\n"])
def test_a_slow_server_is_given_up_after_the_timeout_whatever_it_drips(data: bytes) -> None:
    with (
        dripping(data) as address,
        pytest.raises(RunError, match=r"gave no answer within 0.4 s. Use a longer --timeout"),
    ):
        Server(address, Connection(timeout=0.4)).complete("a", Settings(1))


def test_a_server_that_is_not_there_is_tried_once_and_one_that_went_away_again(no_waiting: list[float]) -> None:
    with serving(lambda path, body: (200, {"choices": [{"text": "a"}]})) as (address, _):
        server = Server(f"{address}#m", Connection(retries=2))
        server.complete("a", Settings(1))
    with pytest.raises(RunError, match=r"cannot be reached .*, after 3 attempts"):
        server.complete("a", Settings(1))
    assert len(no_waiting) == 2
    with pytest.raises(RunError, match=r"cannot be reached .*, after 1 attempt$"):
        Server(f"{address}#m").complete("a", Settings(1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-m", "openai:localhost:8000"], "is not an address. Write it as openai:http://host:8000/v1#model"),
        (["-m", "openai:http://me:key@host/v1#m"], "holds a password, which would be stored. Use OPENAI_API_KEY"),
        (["-m", "openai:http://host:x/v1#m"], "Write it as openai:http://host:8000/v1#model"),
        (["-m", "openai:http://h/v1#m", "--dtype", "q8_0"], "--dtype only counts for local models"),
        (["-m", "openai:http://h/v1#m", "--cluster", "auto"], "--cluster only counts for local models"),
        (["--concurrency", "2", "--timeout", "9"], "--concurrency, --timeout only count for served models"),
        (["-m", "openai:http://h/v1#m", "--concurrency", "0"], "concurrency is 0"),
        (["-m", "openai:http://h/v1#m", "--timeout", "0"], "timeout is 0.0"),
        (["-m", "openai:http://h/v1#m", "--chat-template", "on"], "no log-probabilities of choices. Use --generate"),
        (["-m", "openai:http://h/v1#m", "--fewshot-sampler", "similar"], "compares a model's own states"),
        (["-m", "openai:http://h/v1#m", "--choice-scoring", "constrained"], "cannot be constrained"),
    ],
)
def test_what_a_served_model_cannot_do_is_refused_before_anything_is_sent(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", "sentiment", "--shots", "1", "--limit", "2", "--no-store", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_server_of_several_models_is_asked_which(model: LanguageModel) -> None:
    with (
        serving(lambda path, body: (200, {"data": [{"id": "a"}, {"id": "b"}]})) as (address, _),
        pytest.raises(UsageError, match=r"Add its name: .*#NAME. Models: a, b"),
    ):
        Server(address)


def test_llama_cpp_writes_answers_and_says_that_it_scores_no_choices(
    model: LanguageModel, reviews: Path, tmp_path: Path
) -> None:
    write_model(tmp_path / "model.gguf", torch_model(model), model.tokenizer)
    with llama_cpp_address(tmp_path / "model.gguf") as address:
        served = open_model(f"openai:{address}/v1#any")
        task = task_of(reviews, FORMS["choices"], WRITTEN)
        with opened(None) as store:
            run = EvalRun({"t": task}, [served], Design((0,), limit=3), ScoringConfig(), store).run()
        assert all(answer.written for answer in run.conditions[0].answers)
        with pytest.raises(UsageError, match=r"cannot score choices .* use --generate"):
            collect(task_of(reviews, FORMS["choices"]), served)
