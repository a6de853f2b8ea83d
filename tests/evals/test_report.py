"""The report page: what its tables say, what it carries of the answers, and that a browser shows it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from html import escape
from html.parser import HTMLParser
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from table_tasks import table_task

import vega_lite
from nextword import load
from nextword.engine import LanguageModel
from nextword.evals import report
from nextword.evals.design import Condition, Design, ScoringConfig
from nextword.evals.eval_run import EvalRun
from nextword.evals.plots import shots_figure
from nextword.evals.provenance import provenance
from nextword.evals.report import report_page, write_report
from nextword.evals.report.data import embedded
from nextword.evals.requirements import names_of, read_requirements
from nextword.evals.results import Answer, Collected, ConditionResult, Notes
from nextword.evals.store import opened
from nextword.evals.summary import summarise
from nextword.evals.task import Encoded, Item, Likelihood, LogprobRequest, Task
from nextword.plots import theme
from nextword.plots.files import script_json

FORM = "Text: {text}\nMood: {label}"
SCRIPT = Path(report.__file__).with_name("examples.js")
STYLE = (SCRIPT.parent / "page.css").read_text(encoding="utf-8")


class Elements(HTMLParser):
    """Start tags with their attributes, and the text of elements with an id."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, str] = {}
        self._open = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._open = str(dict(attrs).get("id") or self.tags[-1][0])

    def handle_data(self, data: str) -> None:
        self.texts[self._open] = self.texts.get(self._open, "") + data


@pytest.fixture(scope="module")
def model(tiny_model: Callable[..., Path]) -> LanguageModel:
    return load(str(tiny_model()))


@pytest.fixture(scope="module")
def collected(model: LanguageModel, reviews: Path) -> Collected:
    """Two seeds in two permutations with both calibrations."""
    return run(table_task(reviews, FORM), model, shots=(0, 2), fewshot_seeds=2, permutations=2, limit=15)


def run(task: Task, model: LanguageModel, **design: Any) -> Collected:
    settings = ScoringConfig() if task.output != "multiple_choice" else ScoringConfig(calibrate=("contextual", "batch"))
    with opened(None) as store:
        return EvalRun({"form": task}, [model], Design(**design), settings, store).run()


def shown(collected: Collected, model: LanguageModel) -> str:
    return report_page(collected, summarise(collected), {model.name: model})


def prompt_of(data: dict[str, Any], number: int, place: int) -> list[int]:
    condition = data["conditions"][number]
    asked = data["conditions"][condition["base"]] if "base" in condition else condition
    tails = data["models"][asked["model"]]["tails"]
    return [*asked["prefix"], *tails[asked["tails"][place]]]


def test_the_page_carries_every_answer_with_the_prompt_it_was_given(collected: Collected, model: LanguageModel) -> None:
    data = json.loads(script_json(embedded(collected, {model.name: model})))
    assert (len(data["conditions"]), data["left_out"]) == (len(collected.conditions), 0)
    for number, result in enumerate(collected.conditions):
        condition = data["conditions"][number]
        for place, answer in enumerate(result.answers):
            assert prompt_of(data, number, place) == list(answer.encoded[0].context)
            assert (condition["said"][place], condition["score"][place]) == (answer.prediction, answer.score)
            assert data["templates"]["form"]["gold"][place] == [answer.gold]
            assert data["items"][place][0] == f"{answer.item.split} {answer.item.index}"


def test_a_calibrated_answer_is_shown_with_the_scores_it_was_chosen_by(
    collected: Collected, model: LanguageModel
) -> None:
    data = embedded(collected, {model.name: model})
    differ = 0
    for number, result in enumerate(collected.conditions):
        condition = data["conditions"][number]
        if result.condition.variant in ("contextual", "batch"):
            assert result.condition.variant in condition["by"]
            assert [int(np.argmax(row)) for row in condition["scores"]] == condition["said"]
            low, high = condition["range"]
            assert all(low <= score <= high for row in condition["scores"] for score in row)
            own = data["conditions"][condition["base"]]
            assert result.condition == replace(
                collected.conditions[condition["base"]].condition, variant=result.condition.variant
            )
            differ += own["said"] != condition["said"]
        else:
            assert "by" not in condition
    assert differ > 0


def test_hostile_labels_and_texts_leave_the_page_whole(model: LanguageModel, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    labels = ("<!-- <script>", "</script><i>x</i>")
    rows = [
        {"text": f"<!-- <script>{n}</script> & \u2028 &amp;", "label": labels[n % 2], "by": "<b>\ud800"}
        for n in range(20)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    hostile = table_task(tmp_path / "rows.jsonl", "{text}: {label}", group="by")
    collected = run(hostile, model, shots=(0, 1), fewshot_seeds=2)
    write_report(path, collected, summarise(collected), {model.name: model})
    text = path.read_text(encoding="utf-8")
    found = Elements(text)
    assert [tag for tag, _ in found.tags].count("script") == 2
    assert "i" not in [tag for tag, _ in found.tags]
    embedded_text = found.texts["data"]
    assert not set("<>&\u2028") & set(embedded_text)
    assert set(json.loads(embedded_text)["templates"]["form"]["choices"][0]) == set(labels)
    assert "&lt;!-- &lt;script&gt;" in text.split('<script type="application/json"')[0]


def test_text_and_marks_stand_out_in_both_themes() -> None:
    """WCAG 2.2: a ratio of 4.5 for text, and 3 for marks and the borders of controls."""
    mixes = dict(re.findall(r"--(\w+): color-mix\(in srgb, var\(--(\w+ \d+)", STYLE.replace(") ", " ")))
    assert set(mixes) == {"card", "token"}
    for colours in (theme.LIGHT, theme.DARK):
        own = colours | {name: mixed(colours, *of.split()) for name, of in mixes.items()}
        for ground in ("background", "card"):
            for name in ("ink", "grey", "green", "red"):
                assert contrast(own[name], own[ground]) >= 4.5, (name, ground)
            assert min(contrast(own[name], own[ground]) for name in ("blue", "orange")) >= 3
        assert contrast(own["ink"], own["token"]) >= 4.5
    assert set(re.findall(r"var\(--(\w+)\)", STYLE)) <= {*theme.LIGHT, *mixes, "font", "monospace", "shade"}
    assert "opacity" not in STYLE  # it would pale what was measured here
    assert "border: 1px solid var(--grey)" in re.findall(r"select, input, button \{(.*?)\}", STYLE)[0]


def mixed(colours: dict[str, str], name: str, share: str) -> str:
    """A colour with some of another in the background, as color-mix has it."""
    parts = zip(*(bytes.fromhex(colours[own][1:]) for own in (name, "background")), strict=True)
    return "#" + "".join(f"{round((int(share) * one + (100 - int(share)) * other) / 100):02x}" for one, other in parts)


def contrast(one: str, other: str) -> float:
    """The contrast ratio of two colours as #rgb or #rrggbb (WCAG 2.2, "contrast ratio")."""
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    parts = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(share * part for share, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_only_the_pages_own_style_and_script_may_run(collected: Collected, model: LanguageModel) -> None:
    text = shown(collected, model)
    found = Elements(text)
    policy = next(str(attributes["content"]) for _, attributes in found.tags if "http-equiv" in attributes)
    assert "default-src 'none'" in policy
    for tag, start in (("style", "<style>"), ("script", "<script>")):
        content = text.split(start)[1].split(f"</{tag}>")[0]
        assert f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'" in policy
    for _, attributes in found.tags:
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
    assert "<!-- " not in text


def test_confusion_matrices_count_all_draws_and_orders(collected: Collected, model: LanguageModel) -> None:
    text = shown(collected, model)
    figures = re.findall(r'<figure class="confusion"><figcaption>(.*?)</figcaption>(.*?)</figure>', text)
    assert dict(figures).keys() >= {"0 shots", "2 shots (2 seeds × 2 permutations of 15 items)"}
    for name, figure in figures:
        assert "right answer" in figure
        assert "model's answer" in figure
        shots, variant = (
            int(name.split()[0]),
            next((v for v in ("contextual", "batch", "random") if v in name), "plain"),
        )
        answers = [
            answer for result in collected.conditions for answer in result.answers
            if result.condition.shots == shots and result.condition.variant.startswith(variant)
        ]  # fmt: skip
        counts = [int(count) for count in re.findall(r"<td class=\"(?:hit|miss) s\d\">([\d,]+)", figure)]
        pairs = Counter((answer.gold, answer.prediction) for answer in answers)
        assert counts == [pairs[gold, said] for gold in (0, 1) for said in (0, 1)]
        shares = [int(share) for share in re.findall(r"\((\d+)%\)", figure)]
        rows = [counts[:2], counts[2:]]
        assert shares == [round(100 * count / sum(row)) for row in rows for count in row if count]


def test_a_wide_confusion_matrix_numbers_its_columns_and_names_them_in_its_rows(
    model: LanguageModel, tmp_path: Path
) -> None:
    names = [f"a label of many words, number {n} of them" for n in range(7)] + ["x" * 90]
    rows = [{"text": f"text {n}", "label": names[n % 8]} for n in range(24)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = table_task(tmp_path / "rows.jsonl", "{text}: {label}")
    text = shown(run(task, model, shots=(0,), limit=8), model)
    figure = text.split('<figure class="confusion numbered">')[1].split("</figure>")[0]
    heads = re.findall(r'<th scope="col"><abbr title="(.*?)">(\d)</abbr></th>', figure)
    assert heads == [(name, str(number + 1)) for number, name in enumerate(sorted(names))]
    named = re.findall(r'<th scope="row"[^>]*>(.*?)</th>', figure)
    assert named[0] == f"1: {names[0]}"
    assert all(len(name) < 80 for name in named)


def test_the_figure_has_the_results_own_numbers_and_a_legend(collected: Collected, model: LanguageModel) -> None:
    result = summarise(collected)
    figure = shots_figure(result)
    rows = figure["data"]["values"]
    for name in ("value", "low", "high"):
        assert [row[name] for row in rows] == [getattr(own.score, name) for own in result.rows]
    assert [row["shots"] for row in rows] == [own.shots for own in result.rows]
    svg = vega_lite.drawn(figure)
    for name in (
        "as the model answers", "shots with random labels", "contextual calibration", "batch calibration",
        "always the most frequent label", "hollow", "95% intervals",
    ):  # fmt: skip
        assert name in svg
    text = shown(collected, model)
    assert "Wilson" in text
    drawn = text.split('<figure class="curve">')[1].split("</figure>")[0]
    assert 'fill="var(--blue)"' in drawn  # the page's colours, light and dark
    assert not re.search(r"""style=|="#[0-9a-f]{6}"|url\((?!['"]?#)|<script""", drawn)  # what the page's policy forbids


def test_a_notebook_shows_the_table_and_text_has_the_same_scores(collected: Collected) -> None:
    result = summarise(collected)
    bundle = result._repr_mimebundle_()
    assert set(bundle) == {"text/plain", "text/html"}
    for row in result.rows:
        assert f"<td>{row.score.value:.3f}</td>" in bundle["text/html"]
        assert f": {row.score.value:.3f} [{row.score.low:.3f}, {row.score.high:.3f}]" in bundle["text/plain"]


def test_each_template_has_a_colour_that_the_legend_names(model: LanguageModel, reviews: Path) -> None:
    forms = {name: table_task(reviews, f"{name}: {{text}} {{label}}") for name in ("plain", "<odd>")}
    with opened(None) as store:
        collected = EvalRun(forms, [model], Design((0, 1), fewshot_seeds=2, limit=4), ScoringConfig(), store).run()
    result = summarise(collected)
    figure = shots_figure(result)
    assert vega_lite.texts(figure, "series") == ["plain", "<odd>"]
    assert [row["series"] for row in figure["data"]["values"]] == [int(row.template == "<odd>") for row in result.rows]
    assert "&lt;odd&gt;" in shown(collected, model).split("<svg")[1].split("</svg>")[0]


def test_without_vl_convert_the_page_has_its_tables(
    collected: Collected, model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    text = shown(collected, model)
    assert "<svg" not in text
    assert '<figure class="curve"' not in text
    assert 'aria-label="scores"' in text


def test_the_page_says_all_that_the_terminal_says(collected: Collected, model: LanguageModel) -> None:
    """Requirements with their outcomes, how comparisons are corrected, permutations' tests, power."""
    names = names_of([result.condition.choice for result in collected.conditions])
    requirements = read_requirements(["2 shots > 0 shots", "0 shots > 0.01"], 0.99, names)
    result = summarise(collected, power=0.05, requirements=requirements)
    text = report_page(collected, result, {model.name: model})
    listed = text.split("<h2>Requirements</h2>")[1].split("</section>")[0]
    met = [each.outcome == "met" for each in result.requirements]
    assert {True, False} == set(met)
    assert f"{sum(met)} of {len(met)} are met" in listed
    assert re.findall(r"<li>(.*?)</li>", listed) == [escape(each.sentence) for each in result.requirements]
    assert len(result.families) == 2
    tested = [line for line in result.rows if line.permutations_test]
    assert tested
    for said in (
        *(family.sentence for family in result.families),
        *(f"{line.name}: {line.permutations_test.sentence}" for line in tested if line.permutations_test),
        *(result.power or "").splitlines(),
        *(result.chosen.sentence for _ in (1,) if result.chosen),
    ):
        assert re.search(f"<(li|p)[^>]*>{re.escape(escape(said))}</", text), said
    assert "Requirements" not in shown(collected, model)


def test_the_pages_notes_are_those_of_the_terminal(collected: Collected, model: LanguageModel) -> None:
    notes = Notes(("row <3>",) * 3, 2, (("a", " b"),), 4, ("warned",), ("no chat",))
    text = report_page(collected, replace(summarise(collected), notes=notes), {model.name: model})
    listed = re.findall(r"<li>(.*?)</li>", text.split('<ul class="notes">')[1].split("</ul>")[0])
    assert listed == [escape(each) for each in notes.lines(20)]
    assert any("End the template before a space" in each for each in listed)
    assert len(listed) == 8


def test_shots_that_were_dropped_are_told_in_the_terminals_words(collected: Collected, model: LanguageModel) -> None:
    result = summarise(collected)
    *others, last = result.rows
    short = replace(last, effective_shots=1.4567, fewest_shots=1)
    text = report_page(collected, replace(result, rows=(*others, short)), {model.name: model})
    assert "<small>1.45 in the prompts, 1 at least</small>" in text
    assert text.count("in the prompts") == 1


def test_each_draw_and_order_has_its_row_and_few_draws_a_caveat(collected: Collected, model: LanguageModel) -> None:
    text = shown(collected, model)
    line = next(each for each in summarise(collected).rows if (each.shots, each.variant) == (2, "plain"))
    details = text.split("every seed and permutation of 2 shots</summary>")[1].split("</details>")[0]
    rows = [re.findall(r"<td>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", details) if "<td>" in row]
    assert sorted(rows) == sorted(
        [str(each.fewshot_seed + 1), str(each.permutation + 1), f"{each.score:.3f}", f"{each.shots:.3g}"]
        for each in line.per_seed
    )
    assert len(rows) == 4
    assert line.caveat
    assert f"<small>{line.caveat}</small>" in text


def test_the_page_says_how_it_was_measured(model: LanguageModel, reviews: Path) -> None:
    with opened(None) as store:
        task = table_task(reviews, FORM, separator="\n--\n")
        evaluation = EvalRun({"form": task}, [model], Design((0, 1), fewshot_seeds=1, limit=5), ScoringConfig(), store)
        collected, made = evaluation.run(), provenance(evaluation, "nextword eval 'a & b'")
    text = report_page(collected, replace(summarise(collected), provenance=made), {model.name: model})
    section = text.split('id="provenance"')[1]
    for said in ("nextword eval &#x27;a &amp; b&#x27;", made.models[0].weights, made.task.rows_hash, made.version,
                 "\\n--\\n", *made.shots[0].rows):  # fmt: skip
        assert said in section
    assert Elements(text).texts["command"] == "nextword eval 'a & b'"


@pytest.fixture
def many(model: LanguageModel) -> Collected:
    """Twenty seeds of five hundred items, 10,000 answers, made up."""
    items = tuple(Item("test", n, {"text": f"item {n}"}) for n in range(500))
    tails = [tuple(model.encode(f" it is {n}\nMood:")) for n in range(500)]
    task = Task("many", items, items, _Labels())  # type: ignore[arg-type]
    results = []
    for seed in range(20):
        shots = tuple(model.encode(f"Text: some shots of seed {seed}. " * 6))
        answers = tuple(
            Answer(
                item, 4, (LogprobRequest("x", "y"),), (Encoded(shots + tail, (1,)),),
                tuple(Likelihood((-0.1 - (item.index * k + seed) % 97 / 31,), False) for k in (1, 2)),
                choices=("no", "yes"), gold=item.index % 2, prediction=(item.index + seed) % 2,
                score=float(seed % 2), choice_scores=(0.0, 1.0),
            )
            for item, tail in zip(items, tails, strict=True)
        )  # fmt: skip
        results.append(ConditionResult(Condition(model.name, "form", 4, seed), answers))
    return Collected(task, items, tuple(results), "raw", (), Notes(), 0.0, 0)


class _Labels:
    key, generates = "", False

    def choices(self, row: Any) -> tuple[str, ...]:
        return "no", "yes"

    def gold(self, row: Any) -> int:
        return 0


def test_the_answers_of_twenty_draws_take_some_fifty_bytes_each(many: Collected, model: LanguageModel) -> None:
    data = embedded(many, {model.name: model})
    text = script_json(data)
    assert (len(data["items"]), data["left_out"]) == (500, 0)
    assert len(text) < 60 * 10_000
    assert prompt_of(json.loads(text), 19, 499) == list(many.conditions[19].answers[499].encoded[0].context)


def test_what_finds_no_room_is_told_with_its_number(
    collected: Collected, model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "are shown" not in shown(collected, model)
    monkeypatch.setattr("nextword.evals.report.data.MOST_NUMBERS", 1000)
    text = shown(collected, model)
    data = json.loads(Elements(text).texts["data"])
    count = len(data["items"])
    assert 0 < count < 15
    assert f"{count} of 15 items are shown" in text
    assert data["left_out"] == 15 - count
    assert all(len(condition["said"]) == count for condition in data["conditions"])
    places = [f"{item.split} {item.index}" for item in collected.items]
    first = collected.conditions[0].answers[places.index(data["items"][0][0])]
    assert prompt_of(data, 0, 0) == list(first.encoded[0].context)


# ---- the script


def node(script: str, data: dict[str, Any], tmp_path: Path) -> Any:
    """What `script`, an expression over the functions of examples.js and `data`, comes to."""
    if shutil.which("node") is None:
        pytest.skip("needs node")
    (tmp_path / "data.json").write_text(script_json(data), encoding="utf-8")
    required = f"const e = require({json.dumps(str(SCRIPT))}), data = require('./data.json');"
    done = subprocess.run(
        ["node", "-e", f"{required} console.log(JSON.stringify({script}))"], cwd=tmp_path, capture_output=True,
        encoding="utf-8", timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_pairs_that_changed_are_those_right_under_one_condition_alone(
    collected: Collected, model: LanguageModel, tmp_path: Path
) -> None:
    scores = [result.scores for result in collected.conditions]
    first, second = next(
        pair for pair in permutations(range(len(scores)), 2)
        if {-1.0, 1.0} <= set(scores[pair[0]] - scores[pair[1]])
    )  # fmt: skip
    filters = f"{{condition: {first}, beside: {second}, which, gold: '', text: ''}}"
    row = "([one, other]) => [one.id, e.isRight(one), e.isRight(other)]"
    found = node(
        f"Object.fromEntries(['changed', 'lost', 'won', 'all', 'right'].map((which) =>"
        f" [which, e.chosen(data, {filters}).map({row})]))",
        embedded(collected, {model.name: model}), tmp_path,
    )  # fmt: skip
    ids = [f"{item.split} {item.index}" for item in collected.items]
    rows = [[each, bool(a), bool(b)] for each, a, b in zip(ids, scores[first], scores[second], strict=True)]
    assert found["all"] == rows
    assert found["right"] == [row for row in rows if row[1]]
    assert found["lost"] == [row for row in rows if row[1] and not row[2]] != []
    assert found["won"] == [row for row in rows if row[2] and not row[1]] != []
    assert found["changed"] == [row for row in rows if row[1] != row[2]]


def test_filters_find_a_text_and_a_right_answer(collected: Collected, model: LanguageModel, tmp_path: Path) -> None:
    last = len(collected.conditions) - 1
    wanted = json.dumps(str(collected.items[3].values["text"]).upper() + "\n")
    filters = f"condition: {last}, beside: null, which: 'all'"
    found = node(
        f"[e.chosen(data, {{{filters}, gold: '', text: {wanted}}}).map(([one]) => one.id),"
        f" e.chosen(data, {{{filters}, gold: 'negative', text: ''}}).map(([one]) => [one.id, e.promptOf(one)]),"
        " e.labels(data)]",
        embedded(collected, {model.name: model}), tmp_path,
    )  # fmt: skip
    assert found[0] == [f"{collected.items[3].split} {collected.items[3].index}"]
    negative = [answer for answer in collected.conditions[last].answers if answer.gold == 0]
    assert found[1] == [[f"{a.item.split} {a.item.index}", a.requests[0].context] for a in negative] != []
    assert found[2] == ["negative", "positive"]


def test_a_prompt_reads_as_it_was_written_where_tokens_are_parts_of_characters(
    model: LanguageModel, tmp_path: Path
) -> None:
    texts = ["日本語のレビュー", "שלום עולם", "a 😀 b", "é\ufeffè", "plain"]
    rows = [{"text": text, "label": "no" if n % 2 else "yes"} for n, text in enumerate(texts)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = table_task(tmp_path / "rows.jsonl", "{text}: {label}", hold_back=False)
    made = run(task, model, shots=(0,))
    data = embedded(made, {model.name: model})
    filters = "{condition: 0, beside: null, which: 'all', gold: '', text: 'レビ'}"
    prompts, spans, found = node(
        "[data.items.map((_, n) => e.promptOf(e.answerOf(data, 0, n))),"
        " data.items.map((_, n) => e.pieces(e.answerOf(data, 0, n)).map((piece) => piece.ids)),"
        f" e.chosen(data, {filters}).length]",
        data, tmp_path,
    )  # fmt: skip
    assert prompts == [f"{text}:" for text in texts]
    for place, ids in enumerate(spans):
        assert [token for piece in ids for token in piece] == prompt_of(data, 0, place)
    assert [len(ids) for ids in spans[0]] == [3] * 8 + [1]
    assert found == 1


@pytest.fixture
def browser(tmp_path: Path) -> Callable[[str], str]:
    """The page as a browser has it after its script ran."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs chromium")

    def dom(text: str) -> str:
        (tmp_path / "shown.html").write_text(text, encoding="utf-8")
        arguments = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
        done = subprocess.run(
            [chromium, *arguments, "--dump-dom", (tmp_path / "shown.html").as_uri()],
            capture_output=True, text=True, encoding="utf-8", timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    return dom


def test_a_browser_shows_the_examples_of_a_hostile_page(
    browser: Callable[[str], str], model: LanguageModel, tmp_path: Path
) -> None:
    rows = [{"text": f"<!-- <script>{n}", "label": ("<!-- <script>", "</script>")[n % 2]} for n in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    collected = run(table_task(tmp_path / "rows.jsonl", "{text}: {label}"), model, shots=(0,), limit=6)
    found = browser(shown(collected, model))
    assert len(re.findall(r'<li class="example', found)) == 6
    assert "right answer: &lt;!-- &lt;script&gt;" in found
    assert ">6 of 6 items<" in found


def test_a_browser_tells_control_tokens_from_text_that_looks_like_them(
    browser: Callable[[str], str], tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    chat = load(str(tiny_model(chat_template="{% for m in messages %}<|endoftext|>{{ m.content }}{% endfor %}")))
    rows = [{"text": f"a <|endoftext|> b {n}", "label": "no" if n % 2 else "yes"} for n in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = table_task(tmp_path / "rows.jsonl", "{text}: {label}")
    with opened(None) as store:
        made = EvalRun({"form": task}, [chat], Design((0,), limit=3), ScoringConfig(chat_template="on"), store).run()
    found = browser(shown(made, chat))
    marked = re.findall(r'<span class="control" title="control token \d+">(.*?)</span>', found)
    assert marked == ["&lt;|endoftext|&gt;"] * 3
    assert found.count("&lt;|endoftext|&gt;</span>") == 3
    assert re.search(r'id="printed"[^>]*>0 shots: 3 of 3 items<', found)


def test_a_browser_calls_a_score_between_0_and_1_neither_right_nor_wrong(
    browser: Callable[[str], str], collected: Collected, model: LanguageModel
) -> None:
    first, *others = collected.conditions
    answers = tuple(replace(answer, score=n / 20) for n, answer in enumerate(first.answers))
    graded = replace(collected, conditions=(replace(first, answers=answers), *others))
    found = browser(report_page(graded, summarise(collected), {model.name: model}))
    assert re.findall(r'<b class="(\w+)">score ([\d.]+)</b>', found) == [
        ("right" if n >= 10 else "wrong", f"{n / 20:g}") for n in range(15)
    ]
    assert not re.search(r">(right|wrong)<", found)
    assert ">score below .5<" in found


def test_conditions_are_named_as_their_lines_are(collected: Collected, model: LanguageModel) -> None:
    names = [each["name"] for each in embedded(collected, {model.name: model})["conditions"]]
    assert len(set(names)) == len(collected.conditions)
    assert {"0 shots", "0 shots, contextual", "2 shots, batch, seed 2, permutation 1"} <= set(names)


def test_a_page_of_one_item_whose_interval_has_no_end_is_drawn(model: LanguageModel, reviews: Path) -> None:
    free = table_task(reviews, FORM, generate=True)
    free = replace(free, generation=replace(free.generation, max_tokens=2))
    text = shown(run(free, model, shots=(0, 1), fewshot_seeds=2, limit=1), model)
    assert "<svg" in text
    assert not re.search(r'="[^"]*(nan|inf)[^"]*"', text.split("<svg")[1].split("</svg>")[0])
