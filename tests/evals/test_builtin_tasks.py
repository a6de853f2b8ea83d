"""The built-in tasks: their rows are whole, balanced and apart; their answers are right."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from nextword.base import UsageError
from nextword.evals.task import requests
from nextword.evals.task_files import TASKS, builtin_tasks
from nextword.evals.task_loader import open_task

MAKERS = Path(__file__).parents[1] / "oracles/tasks"
ROWS = {  # shots, scored
    "antonyms": (32, 96),
    "arithmetic": (90, 600),
    "capitals": (40, 231),
    "elements": (20, 83),
    "mmlu-dev": (57, 223),
    "sentiment": (300, 2669),
    "topic": (57, 223),
}
SUBJECT = {"antonyms": "word", "arithmetic": "question", "elements": "symbol", "sentiment": "text"}


def maker(name: str) -> ModuleType:
    """A script of tests/oracles/tasks as a module."""
    spec = importlib.util.spec_from_file_location(f"tasks_{name}", MAKERS / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read(name: str, split: str) -> list[dict[str, Any]]:
    """The rows of a task's split, through the file names in its YAML."""
    form = yaml.safe_load((TASKS / f"{name}.yaml").read_text(encoding="utf-8"))
    path = TASKS / form["data" if split == "test" else "fewshot_data"]
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def asked(name: str, row: dict[str, Any]) -> str:
    """What a row asks, without signs, spaces and case."""
    if name in SUBJECT:
        text = row[SUBJECT[name]]
    elif name == "capitals":
        text = f"{row['kind']} {row['place']}"
    else:
        text = " ".join([row["question"], *row["choices"]])
    return "".join(re.findall(r"\w", text.casefold())) or text


def test_shipped_tasks_are_named_with_what_they_ask_in_one_line() -> None:
    tasks = builtin_tasks()
    assert sorted(tasks) == sorted(ROWS)
    assert all(10 < len(line) < 100 and "\n" not in line for line in tasks.values())


@pytest.mark.parametrize("name", ["sentimnt", "../tasks/sentiment"])
def test_a_name_that_is_not_a_task_s_offers_those_near_it(name: str) -> None:
    with pytest.raises(UsageError, match=rf"there is no task '{name}'.*Did you mean sentiment"):
        open_task(name)


def test_listing_tasks_and_an_unknown_one_import_no_torch() -> None:
    for arguments, code in ((["eval", "--list"], 0), (["eval", "sentimnt"], 2)):
        script = f"import sys; from nextword.cli import main; sys.modules['torch'] = None; sys.exit(main({arguments}))"
        result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        assert result.returncode == code, result.stderr


@pytest.mark.parametrize("name", ROWS)
def test_every_task_says_its_source_its_licence_and_its_version(name: str) -> None:
    given = yaml.safe_load((TASKS / f"{name}.yaml").read_text(encoding="utf-8"))
    assert {"version", "licence", "source"} <= set(given["metadata"])
    assert given.get("group", "x") in {"x", *read(name, "test")[0]}


@pytest.mark.parametrize("name", ROWS)
def test_rows_are_as_many_as_stated_and_none_has_an_empty_field(name: str) -> None:
    shots, scored = read(name, "fewshot"), read(name, "test")
    assert (len(shots), len(scored)) == ROWS[name]
    line = next(
        line for line in (TASKS / "SOURCES.md").read_text(encoding="utf-8").splitlines() if f"| `{name}`" in line
    )
    assert f"| {len(shots)} | {len(scored)} |" in line
    columns = set(shots[0])
    for row in shots + scored:
        assert set(row) == columns
        for value in row.values():
            texts = value if isinstance(value, list) else [str(value)]
            assert texts
            assert all(text and text == text.strip() and text.replace("\n", "").isprintable() for text in texts)


@pytest.mark.parametrize("name", ROWS)
def test_no_question_stands_twice_in_shots_or_scored_rows_or_both(name: str) -> None:
    questions = [asked(name, row) for row in read(name, "fewshot") + read(name, "test")]
    assert [question for question, times in Counter(questions).items() if times > 1] == []


def test_sentiment_is_balanced_over_labels_and_its_shots_over_sources_too() -> None:
    scored = Counter(row["label"] for row in read("sentiment", "test"))
    assert abs(scored["negative"] - scored["positive"]) <= 20
    shots = Counter((row["source"], row["label"]) for row in read("sentiment", "fewshot"))
    assert set(shots.values()) == {50}
    assert len(shots) == 6


@pytest.mark.parametrize("split", ["fewshot", "test"])
def test_sentiment_has_no_runs_of_one_class_beyond_chance(split: str) -> None:
    labels = [row["label"] for row in read("sentiment", split)]
    changes = sum(before != after for before, after in pairwise(labels))
    assert abs(changes - len(labels) / 2) < 4 * len(labels) ** 0.5 / 2  # four standard errors of a fair coin


def test_known_reviews_have_the_label_that_a_reader_gives_them() -> None:
    label = {row["text"]: row["label"] for row in read("sentiment", "fewshot") + read("sentiment", "test")}
    assert label["Wow... Loved this place."] == "positive"
    assert label["Crust is not good."] == "negative"
    assert label["I'll even say it again – this is torture."] == "negative"  # its dash was a control character


def test_a_family_of_antonyms_is_wholly_shots_or_wholly_scored() -> None:
    shots, scored = read("antonyms", "fewshot"), read("antonyms", "test")
    assert not {row["family"] for row in shots} & {row["family"] for row in scored}
    shown = {row["word"] for row in shots} | {answer for row in shots for answer in row["answers"]}
    assert not shown & {row["word"] for row in scored}


def test_antonyms_hold_both_ways_and_no_word_is_its_own() -> None:
    answers = {row["word"]: row["answers"] for row in read("antonyms", "fewshot") + read("antonyms", "test")}
    for word, opposites in answers.items():
        assert word not in opposites
        assert all(word in answers[opposite] for opposite in opposites if opposite in answers)
    assert answers["large"] == ["small", "little"]
    assert answers["daytime"] == ["nighttime", "night time"]
    assert "night time" not in answers  # the same question as "nighttime"


@pytest.mark.parametrize(
    ("place", "answers"),
    [
        ("Poland", ["Warsaw", "Warszawa"]),
        ("Denmark", ["Copenhagen", "Kobenhavn", "København"]),
        ("Côte d'Ivoire", ["Yamoussoukro"]),
        ("Central African Republic", ["Bangui"]),
        ("Minnesota", ["Saint Paul", "St Paul"]),
        ("Newfoundland and Labrador", ["St. John's", "Saint John's", "St John's"]),
        ("United States", ["Washington DC", "Washington"]),
        ("Russia", ["Moscow", "Moskva"]),
    ],
)
def test_a_capital_is_accepted_in_each_of_its_spellings(place: str, answers: list[str]) -> None:
    rows = read("capitals", "fewshot") + read("capitals", "test")
    assert [row["answers"] for row in rows if row["place"] == place] == [answers]


def test_georgia_is_a_state_and_a_country() -> None:
    rows = read("capitals", "fewshot") + read("capitals", "test")
    georgia = {row["kind"]: row["answers"] for row in rows if row["place"] == "Georgia"}
    assert georgia == {"US state": ["Atlanta"], "Country or territory": ["Tbilisi"]}


def test_elements_are_numbered_from_hydrogen_to_lawrencium() -> None:
    rows = sorted(read("elements", "fewshot") + read("elements", "test"), key=lambda row: row["number"])
    assert [row["number"] for row in rows] == list(range(1, 104))
    assert rows[0] == {"symbol": "H", "number": 1, "answers": ["Hydrogen"]}
    assert rows[15]["answers"] == ["Sulphur", "Sulfur"]
    assert rows[102] == {"symbol": "Lr", "number": 103, "answers": ["Lawrencium"]}


@pytest.mark.parametrize(
    ("pattern", "accepted"),
    [
        ("large|big", ["large", "big"]),
        ("f[or|ront]wards", ["forwards", "frontwards"]),
        ("open[ed|]", ["opened", "open"]),
        ("{DR |Democratic Republic of the }Congo", ["DR Congo", "Democratic Republic of the Congo", "Congo"]),
        ("Africa{n Rep{ublic}}", ["African Republic", "African Rep", "Africa"]),
        ("Port[-| ]au[-| ]Prince", ["Port-au-Prince", "Port-au Prince", "Port au-Prince", "Port au Prince"]),
        ("Lom['\be|e\b'|e]", ["Lomé", "Lome"]),
        ("[°\bA|A\b°|A]land", ["Åland", "Aland"]),
    ],
)
def test_a_pattern_of_the_quiz_becomes_the_texts_that_it_accepts(pattern: str, accepted: list[str]) -> None:
    quiz = maker("quiz")
    assert quiz.expand(quiz.compose(pattern)) == accepted


def test_every_field_is_asked_for_and_each_subject_has_one_shot() -> None:
    shots, scored = read("topic", "fewshot"), read("topic", "test")
    fields = Counter(row["field"] for row in scored)
    assert set(fields) == {"STEM", "humanities", "social sciences", "other"}
    assert min(fields.values()) > 40
    assert len({row["subject"] for row in shots}) == len(shots) == 57
    field_of = {row["subject"]: row["field"] for row in shots}
    assert all(field_of[row["subject"]] == row["field"] for row in scored)
    assert (field_of["abstract_algebra"], field_of["marketing"]) == ("STEM", "other")


def test_examination_questions_have_four_options_and_no_chain_of_thought() -> None:
    rows = read("mmlu-dev", "fewshot") + read("mmlu-dev", "test")
    assert all(len(row["choices"]) == 4 and row["answer"] in range(4) for row in rows)
    assert not [row for row in rows if re.search(r"think step by step|answer is \(|\([A-D]\)", json.dumps(row))]
    letters = Counter(row["answer"] for row in read("mmlu-dev", "test"))
    assert max(letters.values()) < 0.3 * 223
    known = next(row for row in rows if row["question"] == "Find the characteristic of the ring 2Z.")
    assert known["choices"][known["answer"]] == "0"


SIGNS = {"plus": int.__add__, "minus": int.__sub__, "times": int.__mul__}


def test_arithmetic_is_right_and_every_sort_is_asked_equally_often() -> None:
    for split, times in (("fewshot", 15), ("test", 100)):
        rows = read("arithmetic", split)
        assert set(Counter(row["kind"] for row in rows).values()) == {times}
        for row in rows:
            left, word, right = row["question"].split()
            assert int(row["answer"]) == SIGNS[word](int(left), int(right)) >= 0
            assert row["kind"] == f"{len(left)} digits {word}"


def test_sums_with_their_terms_exchanged_are_not_asked_twice() -> None:
    rows = read("arithmetic", "fewshot") + read("arithmetic", "test")
    sums = [frozenset(row["question"].split(" plus ")) for row in rows if " plus " in row["question"]]
    assert len(sums) == len(set(sums)) == 230


def test_arithmetic_is_what_its_script_makes() -> None:
    make = maker("make")
    for name, rows in make.arithmetic().items():
        assert (TASKS / name).read_text(encoding="utf-8") == make.as_jsonl(rows)


def test_the_data_stays_small() -> None:
    assert sum(path.stat().st_size for path in TASKS.iterdir()) < 700_000


def test_licences_that_ask_for_their_text_have_it_beside_the_data() -> None:
    assert "The Regents of the University of California" in (TASKS / "LICENSE-bsdgames.txt").read_text()
    assert "Dan Hendrycks" in (TASKS / "LICENSE-mmlu.txt").read_text()
    assert "creativecommons.org/licenses/by/4.0" in (TASKS / "SOURCES.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ROWS)
def test_every_task_asks_what_the_harness_asks(name: str) -> None:
    """tests/oracles/tasks/rendered.json is from lm-evaluation-harness itself."""
    task = open_task(name)[name]
    assert (len(task.fewshot_pool), len(task.items)) == ROWS[name]
    asks = [[one.context, one.continuation] for one in requests(task, task.fewshot_pool[:2], task.items[0])]
    assert asks == json.loads((MAKERS / "rendered.json").read_text(encoding="utf-8"))[name]
