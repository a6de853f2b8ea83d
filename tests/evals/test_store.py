"""Answers kept from run to run: what comes back, what does not, and what an interruption costs."""

from __future__ import annotations

import hashlib
import math
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextword.base import RunError, UsageError
from nextword.evals.store import default_name, opened
from nextword.evals.task import Encoded, Generation, Likelihood

IDS = st.lists(st.integers(0, 200_000), max_size=6).map(tuple)
LOGPROBS = st.lists(st.floats(max_value=0, allow_nan=False), min_size=1, max_size=4).map(tuple)


@given(st.dictionaries(st.tuples(IDS, IDS), st.tuples(LOGPROBS, st.booleans()), max_size=8))
def test_every_answer_comes_back_to_the_last_bit(
    kept: dict[tuple[tuple[int, ...], tuple[int, ...]], tuple[tuple[float, ...], bool]],
) -> None:
    asked = [Encoded(*key) for key in kept]
    answers = [Likelihood(*value) for value in kept.values()]
    with opened(None) as store:
        assert store.likelihoods("model", asked) == {}
        for request, found in zip(asked, answers, strict=True):
            store.put_likelihood("model", request, found)
        assert store.likelihoods("model", asked) == dict(enumerate(answers))


def test_another_model_token_or_cut_between_prompt_and_answer_gives_nothing() -> None:
    with opened(None) as store:
        store.put_likelihood("model", Encoded((1, 2, 3), (4, 5)), Likelihood((-1.0, -2.0), True))
        others = [
            Encoded((1, 2, 9), (4, 5)),
            Encoded((1, 2, 3), (4, 6)),
            Encoded((1, 2, 3), (4,)),
            Encoded((1, 2), (3, 4, 5)),
            Encoded((1, 2, 3, 4), (5,)),
            Encoded((1, 2, 3, 4, 5), ()),
        ]
        assert store.likelihoods("model", others) == {}
        assert store.likelihoods("other", [Encoded((1, 2, 3), (4, 5))]) == {}
        assert store.likelihoods("model", [*others, Encoded((1, 2, 3), (4, 5))]).keys() == {6}


def test_texts_come_back_for_the_same_prompt_written_in_the_same_way() -> None:
    how = Generation()
    with opened(None) as store:
        store.put_text("model", (1, 2), how, 0, "na\u00efve \u65e5\u672c\n")
        assert store.texts("model", [(2, 1), (1, 2)], how, 0) == {1: "na\u00efve \u65e5\u672c\n"}
        others = (
            replace(how, until=("\n\n",)), replace(how, max_tokens=7), replace(how, temperature=0.5),
            replace(how, top_p=0.9), replace(how, top_k=5),
        )  # fmt: skip
        for other in others:
            assert store.texts("model", [(1, 2)], other, 0) == {}
        assert store.likelihoods("model", [Encoded((1, 2), ())]) == {}


def test_drawn_texts_are_those_of_their_seed_and_greedy_ones_of_any() -> None:
    with opened(None) as store:
        for temperature in (0.0, 0.7):
            store.put_text("model", (1,), Generation(temperature=temperature), 3, str(temperature))
        found = {
            (temperature, seed): store.texts("model", [(1,)], Generation(temperature=temperature), seed)
            for temperature in (0.0, 0.7)
            for seed in (3, 4)
        }
    assert found == {(0.0, 3): {0: "0.0"}, (0.0, 4): {0: "0.0"}, (0.7, 3): {0: "0.7"}, (0.7, 4): {}}


def test_answers_are_there_when_the_file_is_opened_again(tmp_path: Path) -> None:
    path, request = tmp_path / "deep" / "down" / "answers.sqlite", Encoded((1,), (2,))
    with opened(path) as store:
        store.put_likelihood("model", request, Likelihood((-math.pi,), False))
        store.keep("one", {"a": [1.5, None]})
    with opened(path) as store:
        assert store.likelihoods("model", [request]) == {0: Likelihood((-math.pi,), False)}
        assert store.evaluation("one").result == {"a": [1.5, None]}


def test_work_that_fails_keeps_its_answers(tmp_path: Path) -> None:
    path, request = tmp_path / "answers.sqlite", Encoded((1,), (2,))

    def interrupted() -> None:
        with opened(path) as store:
            store.put_likelihood("model", request, Likelihood((-1.0,), False))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with opened(path) as store:
        assert store.likelihoods("model", [request])


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_killed_process_keeps_what_it_had_committed(tmp_path: Path) -> None:
    path = tmp_path / "answers.sqlite"
    with subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("write_answers.py")), str(path)],
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "300\n"
        os.kill(child.pid, signal.SIGKILL)
    asked = [Encoded((1, 2), (number,)) for number in range(350)]
    with opened(path) as store:
        found = store.likelihoods("model", asked)
        assert found.keys() >= set(range(300))
        assert all(found[number] == Likelihood((-number / 7,), number % 2 == 0) for number in range(300))
        assert store._connection.execute("pragma integrity_check").fetchone() == ("ok",)
        store.put_likelihood("model", asked[349], Likelihood((-2.0,), True))  # and it goes on
    with opened(path) as store:
        assert store.likelihoods("model", asked[349:]) == {0: Likelihood((-2.0,), True)}


def test_two_evaluations_share_a_file_and_neither_keeps_it_from_the_other(tmp_path: Path) -> None:
    path = tmp_path / "answers.sqlite"
    with opened(path) as one, opened(path) as other:
        other._connection.execute("pragma busy_timeout = 100")  # ms; a lock that stays is an error
        for number in range(5):
            one.put_likelihood("model", Encoded((1,), (number,)), Likelihood((-1.0,), False))
            assert one.likelihoods("model", [Encoded((1,), (number,))])  # its own, at once
            assert not other.likelihoods("model", [Encoded((1,), (number,))])
            other.put_likelihood("model", Encoded((2,), (number,)), Likelihood((-1.0,), False))
            other.commit()
        one.commit()
        assert len(other.likelihoods("model", [Encoded((1,), (number,)) for number in range(5)])) == 5


@pytest.mark.parametrize("content", [b"text,label\na,b\n" * 100, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_file_that_is_no_store_is_refused_in_one_line_and_left_alone(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "reviews.csv"
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UsageError) as refused, opened(path):
            pass
    assert f"{path}: cannot be used as a store" in str(refused.value)
    assert "--store" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert path.read_bytes() == content


def test_a_database_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "other.sqlite"
    with sqlite3.connect(path) as other:
        other.execute("create table questions (question text, answer text)")
    other.close()
    before = path.read_bytes()
    with pytest.raises(UsageError, match="cannot be used as a store"), opened(path):
        pass
    assert path.read_bytes() == before


def test_a_folder_or_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path, tmp_path / "file" / "answers.sqlite"):
        with pytest.raises(UsageError, match="cannot be used as a store"), opened(path):
            pass


def test_a_full_disk_is_told_and_keeps_what_was_stored(tmp_path: Path) -> None:
    path = tmp_path / "answers.sqlite"
    with opened(path) as store:
        store.put_likelihood("model", Encoded((1,), (0,)), Likelihood((-1.0,), False))

    def fill() -> None:
        with opened(path) as store:
            store._connection.execute("pragma max_page_count = 12")
            for number in range(1, 5000):
                store.put_likelihood("model", Encoded((1,), (number,)), Likelihood((-1.0,), False))

    with pytest.raises(RunError, match="free some space") as full:
        fill()
    assert "\n" not in str(full.value)
    with opened(path) as store:
        assert store.likelihoods("model", [Encoded((1,), (0,))])


def test_an_evaluation_is_called_by_its_task_its_time_and_its_content() -> None:
    began = time.mktime((2026, 11, 24, 18, 13, 5, 0, 0, -1))
    one, two = (default_name({"task": "my reviews/2", "n": n}, began) for n in (1, 2))
    assert re.fullmatch(r"my-reviews-2-20261124-1813-[0-9a-f]{6}", one)
    assert one[:-6] == two[:-6]
    assert one != two
    assert default_name({"task": "/"}, began).startswith("evaluation-2026")


def test_a_name_that_was_taken_meanwhile_loses_neither_evaluation() -> None:
    with opened(None) as store:
        store.check_name("mine")
        names = [store.keep("mine", {"n": n}) for n in (1, 2, 2)]
        assert names[0] == "mine"
        assert len(set(names)) == 3
        assert all(name.startswith("mine-") for name in names[1:])
        assert [kept.name for kept in store.evaluations()] == names
        assert [kept.result["n"] for kept in store.evaluations()] == [1, 2, 2]
        with pytest.raises(UsageError, match=r"nextword eval runs remove mine$"):
            store.check_name("mine")
        for wrong in ("", "  ", "last", "last~2", "-x", "x" * 101):
            with pytest.raises(UsageError, match="is not a valid name"):
                store.check_name(wrong)


def test_the_newest_evaluations_of_a_task_are_found_by_its_whole_name() -> None:
    with opened(None) as store:
        for number, task in enumerate(("topic", "topic", 'to"pic', "topics", "topic")):
            store.keep(f"n{number}", {"task": task, "n": number})
        assert [kept.result["n"] for kept in store.evaluations("topic")] == [0, 1, 4]
        assert [kept.result["n"] for kept in store.evaluations("topic", 2)] == [1, 4]
        assert [kept.result["n"] for kept in store.evaluations('to"pic')] == [2]


def test_evaluations_that_end_at_the_same_time_are_all_kept(tmp_path: Path) -> None:
    path, gate = tmp_path / "answers.sqlite", threading.Barrier(6)

    def evaluate(number: int) -> str:
        with opened(path) as store:
            gate.wait()
            return store.keep("one" if number < 3 else f"t-{number}", {"n": number})

    with ThreadPoolExecutor(6) as pool:
        names = list(pool.map(evaluate, range(6)))
    with opened(path) as store:
        assert {kept.name: kept.result["n"] for kept in store.evaluations()} == {n: k for k, n in enumerate(names)}
    assert names[:3].count("one") == 1


def test_evaluations_of_an_older_file_are_still_there(tmp_path: Path) -> None:
    path = tmp_path / "answers.sqlite"
    with sqlite3.connect(path) as old:
        old.execute("create table evaluations (name text primary key, made real not null, result text not null)")
        old.execute("""insert into evaluations values ('sentiment/smollm2', 1.0, '{"task": "sentiment"}')""")
    old.close()
    with opened(path) as store:
        store.keep("new", {"task": "sentiment"})
        assert store.names() == ["sentiment/smollm2", "new"]
        assert store.evaluation("sentiment").result == {"task": "sentiment"}


def test_the_beginning_of_a_name_or_its_place_from_the_last_is_enough() -> None:
    with opened(None) as store:
        with pytest.raises(UsageError, match="there are none yet"):
            store.evaluation("last")
        for name in ("shots-4", "shots-8", "mine", "min"):
            store.keep(name, {"n": name})
        given = {"shots-8": "shots-8", "shots-4": "shots-4", "min": "min", "last": "min", "last~1": "mine"}
        assert {name: store.evaluation(name).name for name in given} == given
        assert store.evaluation("last~0").name == "min"
        for wrong, said in (
            ("shots", r"matches 2 evaluations \(shots-4, shots-8\)"),
            ("last~4", "holds only 4 evaluations"),
            ("shot-8", r"no evaluation 'shot-8'.*Did you mean shots-8"),
            ("", "no evaluation ''"),
        ):
            with pytest.raises(UsageError, match=said):
                store.evaluation(wrong)


def test_removing_takes_all_that_are_named_or_none_and_leaves_the_answers() -> None:
    request = Encoded((1,), (2,))
    with opened(None) as store:
        store.put_likelihood("model", request, Likelihood((-1.0,), False))
        for name in ("one", "two", "three", "four"):
            store.keep(name, {"n": name})
        with pytest.raises(UsageError, match="no evaluation 'nine'"):
            store.remove(["one", "nine"])
        assert store.names() == ["one", "two", "three", "four"]
        assert store.remove(["last", "last~1", "four", "o"]) == ["four", "three", "one"]
        assert store.names() == ["two"]
        assert store.likelihoods("model", [request])


def test_a_model_s_hash_changes_with_any_of_its_files_and_is_not_computed_twice(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for name, text in (("model.safetensors", "weights"), ("tokenizer.json", "{}"), ("notes.txt", "a")):
        (folder / name).write_text(text)
    with opened(tmp_path / "answers.sqlite") as store:
        first = store.hash_of(folder)
        (folder / "notes.txt").write_text("another")
        assert store.hash_of(folder) == first
        (folder / "tokenizer.json").write_text('{"a": 1}')
        second = store.hash_of(folder)
        assert second != first
        (folder / "model.safetensors").rename(folder / "other.safetensors")
        assert store.hash_of(folder) not in (first, second)
        single = folder / "other.safetensors"
        assert store._hash_of_file(single) == hashlib.sha256(b"weights").hexdigest()
        status = single.stat()
        single.write_text("Weights")
        os.utime(single, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert store._hash_of_file(single) == hashlib.sha256(b"weights").hexdigest()  # looked up, not read
        os.utime(single, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
        assert store._hash_of_file(single) == hashlib.sha256(b"Weights").hexdigest()
