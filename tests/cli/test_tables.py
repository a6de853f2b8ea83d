"""Every table at 40, 60 and 80 columns: no line is longer, no number or interval is broken, no column goes unsaid."""

from __future__ import annotations

import ast
import io
import random
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import nextword
from nextword.cli import _console, main
from nextword.cli._table import FittingTable, plain_table
from nextword.data import open_dataset
from nextword.train import timing
from sweep_folders import finished_sweep

WIDE = 1000  # columns, where nothing is broken and nothing left out
RUNS = "size,tokens,loss\n" + "".join(
    f"{n},{d},{1.7 + 400 / n**0.34 + 410 / d**0.28}\n" for n in (1e6, 4e6, 2e7, 1e8) for d in (1e8, 5e8, 3e9, 2e10)
)
SWEEP = "flops,params,tokens,val_bpb\n" + "".join(
    f"{c},{1.2 * n},{c / 6 / n},{0.6 + 20 / n**0.33 + 60 / (c / 6 / n) ** 0.33}\n"
    for c, best in ((1e13, 2.6e5), (2e13, 3.7e5), (4e13, 5.2e5)) for n in (best / 4, best / 2, best, 2 * best, 4 * best)
)  # fmt: skip
EVAL = ("eval", "{reviews}", "--model", "{model}", "--fewshot-seeds", "2", "--limit", "20")
FORM = ("--template", "{text}: {label}")
# What prints a table: its command line, and the functions whose tables it shows
VERBS = {
    "the list of models": (("models", "list"), {"models._print_list"}),
    "a model's card": (("models", "info", "{model}", "--tensors"),
                       {"_model_card._parts_table", "_model_card._kinds_table", "_model_card._tensor_table"}),
    "a model in use": (("plan", "inference", "deepseek-v3", "--devices", "h100"),
                       {"plan_inference._device_table", "_sections.bars"}),
    "a model in use on many": (("plan", "inference", "llama-3-8b", "--devices", "h100,t4,mi300x"),
                               {"plan_inference._device_table"}),
    "a training": (("plan", "train", "llama-3-8b", "--devices", "h100", "--price", "2.5"),
                   {"_sections.facts", "_sections.bars"}),
    "what would make it fit": (("plan", "fit", "--params", "1B", "--devices", "rtx4090", "--micro-batch", "16"),
                               {"plan_fit._table"}),
    "a budget": (("plan", "budget", "--flops", "1e21", "--devices", "h100"),
                 {"plan_budget._optima", "_sections.facts"}),
    "the laws": (("plan", "laws"), {"plan_laws._published"}),
    "a fitted law": (("plan", "laws", "--data", "{csv}", "--bootstrap", "4"),
                     {"plan_laws_fits._fit", "plan_laws_fits._fitted_optima"}),
    "runs at equal FLOPs": (("plan", "laws", "--data", "{sweep}", "--bootstrap", "4", "--method", "nnls"),
                            {"plan_isoflops._minima", "plan_isoflops._exponents", "plan_isoflops._predictions"}),
    "what was predicted": (("runs", "calibration"), {"runs_calibration.command"}),
    "a plan of a run": (("train", "{text}", "--params", "20k", "--context", "16", "--steps", "3", "--batch-size", "4",
                         "--train-dtype", "fp32", "--set", "run.threads=1", "--dry-run"), {"train_display.print_plan"}),
    "a text": (("data", "show", "{tokens}"), {"data._print"}),
    "a sweep's plan": (("scale", "--out", "{swept}", "--dry-run"), {"scale_display._planned"}),
    "a sweep": (("scale", "show", "{swept}"), {"scale_display.rates", "scale_display.matrix",
                                               "plan_isoflops._minima", "plan_isoflops._exponents",
                                               "plan_isoflops._predictions"}),
    "the runs": (("runs", "list", "{runs}"), {"runs.list_runs"}),
    "a run": (("runs", "show", "{run}"), {"runs._print_run", "train_display.print_report"}),
    "two runs": (("runs", "compare", "{run}", "{other}"), {"runs._print_compared"}),
    "a study of context": (("compare-context", "{text}"), {"compare_context._table"}),
    "an evaluation": ((*EVAL, *FORM, "--shots", "0,2"), {"eval_display._table"}),
    "an evaluation of one set of shots": (
        (*EVAL, *FORM, "--shots", "0,2", "--fewshot-seeds", "1"),
        {"eval_display._table"},
    ),
    "an evaluation's draws": ((*EVAL, *FORM, "--shots", "0,2", "--permutations", "2", "--show-seeds"),
                              {"eval_display._table", "eval_display._print_seeds"}),
    "a grid of models and templates": ((*EVAL, "--model", "{second}", "--template", "{form},{another}", "--shots",
                                        "0,2", "--show-seeds"), {"eval_display._table", "eval_display._print_seeds"}),
    "a kept evaluation": (("eval", "runs", "show", "kept", "--show-seeds"),
                          {"eval_display._table", "eval_display._print_seeds"}),
    "the kept evaluations": (("eval", "runs", "list"), {"eval_display.print_runs"}),
    "the tasks": (("eval", "--list"), {"eval_display.print_list"}),
}  # fmt: skip
ELSEWHERE = {"eval_display.print_provenance", "eval_lm_eval._print"}  # tested below
REACHED: list[tuple[str, int, Any]] = []  # file, line and table of each call of plain_table


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory, tiny_model: Any, reviews: Path) -> Iterator[dict[str, str]]:
    """What the verbs' arguments stand for; two runs are trained, a machine is measured once."""
    from nextword.plan import fitting

    root = tmp_path_factory.mktemp("tables")
    draw, text = random.Random(0), root / "text.txt"
    text.write_text("\n".join(" ".join(draw.choices("a king went to the river".split(), k=300)) for _ in range(40)))  # noqa: SIM905
    (root / "fit.csv").write_text(RUNS)
    (root / "sweep.csv").write_text(SWEEP)
    (root / "a-form-with-a-name.txt").write_text("{text}: {label}\n")
    (root / "b.txt").write_text("Is it good? {text}\nAnswer: {label}\n")
    runs = {"run": root / "runs" / "a-transformer-with-a-long-name", "other": root / "runs" / "an-lstm"}
    with pytest.MonkeyPatch.context() as patch:
        time_steps = timing.time_steps
        measured = cache(lambda *given: time_steps(*given, seconds=0.2))  # the same at every width
        patch.setattr(timing, "time_steps", lambda *given, **_: measured(*given))
        for name, value in (("CACHE", root / "cache"), ("LEDGER", root / "ledger.jsonl"), ("STORE", root / "store")):
            patch.setenv(f"NEXTWORD_{name}", str(value))
        for (_, folder), kind in zip(runs.items(), ("transformer", "lstm"), strict=True):
            given = ["train", str(text), "--arch", kind, "--params", "20k", "--context", "16", "--steps", "3",
                     "--batch-size", "4", "--train-dtype", "fp32", "--set", "run.threads=1", "--out",
                     str(folder)]  # fmt: skip
            assert main(given) == 0
        assert main(["data", "prepare", str(text), "--tokenizer", "bytes", "--out", str(root / "tokens")]) == 0
        finished_sweep(root / "swept", open_dataset(root / "tokens"))
        patch.setattr(fitting, "fit_law", by_method(fitting.fit_law))
        patch.setattr("nextword.train.context_study.study", lambda *_, **__: study())
        patch.setattr("nextword.data.prepare_in", lambda *_, **__: None)
        patch.setattr("nextword.cli._table.FittingTable.__init__", recorded(FittingTable.__init__))
        found = {
            **{name: str(folder) for name, folder in runs.items()},
            "runs": str(root / "runs"),
            "csv": str(root / "fit.csv"),
            "sweep": str(root / "sweep.csv"),
            "text": str(text),
            "swept": str(root / "swept"),
            "tokens": str(root / "tokens"),
            "cache": str(root / "cache"),
            "reviews": str(reviews),
            "form": str(root / "a-form-with-a-name.txt"),
            "another": str(root / "b.txt"),
            "model": str(tiny_model()),
            "second": str(tiny_model(seed=1)),
        }
        assert main([*filled(EVAL, found), *FORM, "--shots", "0,2", "--permutations", "2", "--name", "kept"]) == 0
        yield found


def by_method(fit: Callable[..., Any]) -> Callable[..., Any]:
    """Fits once with each method."""
    fits: dict[str, Any] = {}
    return lambda runs, method, **given: fits.get(method) or fits.setdefault(method, fit(runs, method, **given))


def recorded(made: Callable[..., None]) -> Callable[..., None]:
    """FittingTable's constructor, which tells from where plain_table was called."""

    def make(table: Any, *given: Any) -> None:
        caller = sys._getframe(2)  # behind plain_table
        REACHED.append((Path(caller.f_code.co_filename).stem, caller.f_lineno, table))
        made(table, *given)

    return make


def study() -> Any:
    """A study of context with numbers as wide as they come."""
    from nextword.train.context_results import KindResult, Mean, Plan, Study, TaskResult
    from nextword.train.context_study import KINDS
    from nextword.train.estimates import Estimate

    wide, speed = Estimate(12.345, 0.1, 5, 0.255), Estimate(123_456.7, 9.0, 5, 12_345.6)
    share, means = Estimate(0.995, 0.01, 5, 0.015), tuple(Mean(at, wide) for at in (1, 16, 128))
    tasks = tuple(TaskResult("recall", size, share, (1.0,), wide, 2.3, 0.1, 1e-3, 300) for size in (4, 16))
    kinds = tuple(
        KindResult(kind, 600_000, 128, 1e-3, wide, (12.3,), Estimate(-1.0, 0.1, 5, 0.2), None, means, means, means, 16,
                   tasks, {1: 1e3, 256: 1e5}, {"1 x 256": speed, "2 x 4096": speed}, wide)
        for kind in KINDS
    )  # fmt: skip
    behind = {kind: Estimate(0.1, 0.01, 5, 0.02) for kind in KINDS[1:]}
    return Study(256, 1_000_000, Plan(300, 300, {"recall": (4, 16)}, 4096), (1e-3,), (0, 1, 2), 0.95, kinds, behind)


def filled(arguments: Sequence[str], places: dict[str, str]) -> list[str]:
    found = list(arguments)
    for name, place in places.items():
        if name not in ("text", "label") or "{text}: {label}" not in found:
            found = [each.replace(f"{{{name}}}", place) for each in found]
    return found


@pytest.mark.parametrize("verb", VERBS)
def test_a_table_fits_the_terminal_and_breaks_nothing(
    verb: str, places: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments, functions = VERBS[verb]
    REACHED.clear()

    def printed(width: int) -> str:
        monkeypatch.setenv("COLUMNS", str(width))
        assert main(filled(arguments, places)) == 0
        return capsys.readouterr().out

    whole = words(printed(WIDE)) | words("left out (narrow terminal):")
    for width in (40, 60, 80):
        before = len(REACHED)
        narrow = printed(width)
        assert max(map(len, narrow.splitlines())) <= width
        assert {word for word in words(narrow) - whole if not is_shortened(word, whole, places)} == set()
        assert not re.search(r"^ *[─●○][─●○ ]*$", narrow, re.MULTILINE)  # a curve is not broken either
        for _, _, table in REACHED[before:]:
            assert broken(table, narrow) == []
    for function in functions:
        module, _, name = function.partition(".")
        lines = {line for file, line, _ in REACHED if file == module}
        assert all(lines & set(call) for call in CALLS[function]), (
            f"{function} prints a table that {name} does not show"
        )


def _calls() -> dict[str, list[range]]:
    """The calls of plain_table in the command line's source: their lines, by file and function."""
    found: dict[str, list[range]] = {}
    for path in Path(_console.__file__).parent.glob("*.py"):
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(function, ast.FunctionDef):
                for call in ast.walk(function):
                    if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "plain_table":
                        lines = range(call.lineno, (call.end_lineno or call.lineno) + 1)
                        found.setdefault(f"{path.stem}.{function.name}", []).append(lines)
    return found


CALLS = _calls()


def test_no_table_of_the_product_escapes_these_tests() -> None:
    assert set(CALLS) == set().union(*(functions for _, functions in VERBS.values())) | ELSEWHERE
    source = "".join(path.read_text(encoding="utf-8") for path in Path(nextword.__file__).parent.rglob("*.py"))
    assert len(re.findall(r"\bplain_table\(", source)) == 1 + sum(map(len, CALLS.values()))  # and its definition
    assert source.count("FittingTable(") == 2  # its definition, and plain_table


def broken(table: Any, shown: str) -> list[str]:
    """Columns of numbers and intervals that are neither shown with every cell on one line, nor named as left out."""
    left_out = " ".join(shown.split()).partition("left out (narrow terminal):")[2]
    lines, found = shown.splitlines(), []
    for place, column in enumerate(table.columns):
        head = table._heads()[place] if table.show_header else ""
        whole = all(any(str(cell) in line for line in lines) for cell in column.cells)
        if column.no_wrap and place not in table.names and not whole and head not in left_out:
            found.append(head)
    return found


def words(text: str) -> set[str]:
    return {word.strip(",") for word in text.split() if any(map(str.isalnum, word))}


def is_shortened(word: str, whole: set[str], places: dict[str, str]) -> bool:
    """A name whose middle is left out and of which eight characters are left; a path that goes on in the next line."""
    if "…" in word:
        head, _, tail = word.partition("…")
        return len(word) >= 8 and any(each.startswith(head) and each.endswith(tail) for each in whole)
    return any(word.strip(":") in path for path in places.values())


def test_the_least_columns_go_first_and_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def shown(width: int) -> str:
        monkeypatch.setenv("COLUMNS", str(width))
        console = _console._console(io.StringIO())
        table = plain_table("name", "one", "two", "three", least=((2,), (1, 3)))
        table.add_row("a" * 10, "1" * 10, "2" * 10, "3" * 10)
        with console.capture() as captured:
            console.print(table)
        return captured.get()

    assert shown(46).split() == ["name", "one", "two", "three", "a" * 10, "1" * 10, "2" * 10, "3" * 10]
    assert shown(45).split()[:6] == ["name", "one", "three", "a" * 10, "1" * 10, "3" * 10]
    assert shown(33).split()[:2] == ["name", "a" * 10]
    assert "".join(shown(33).split()).endswith("terminal):one,two,three")
    assert shown(9).split()[1] == "aaaa…aaaa"


def test_names_are_shortened_before_numbers_go_and_numbers_are_never_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    def shown(width: int) -> list[str]:
        monkeypatch.setenv("COLUMNS", str(width))
        console = _console._console(io.StringIO())
        table = plain_table("model", "shots", "one", "two", left=2, names=(0, 1))
        table.add_row("smollm2-135m-instruct", "4 shots, random labels", "0.123456", "0.12 – 0.34")
        with console.capture() as captured:
            console.print(table)
        return [line.rstrip() for line in captured.get().splitlines()]

    assert shown(68)[1] == "smollm2-135m-instruct  4 shots, random labels  0.123456  0.12 – 0.34"
    assert shown(57)[1:] == [
        "smollm2…instruct  4 shots, random   0.123456  0.12 – 0.34",
        "                  labels",
    ]
    for width in range(12, 80):
        lines = shown(width)
        assert max(map(len, lines)) <= width
        told = " ".join(" ".join(lines).split())
        assert ("0.12 – 0.34" in told) != ("two" in told.partition("terminal):")[2])
        assert ("0.123456" in told) != ("one" in told.partition("terminal):")[2])


def test_where_a_kept_evaluation_comes_from_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from nextword.cli.eval_display import print_provenance

    model = SimpleNamespace(name="smollm2", precision="float32", device="cpu", weights="0123456789abcdef" * 4)
    made = SimpleNamespace(
        date="2026-11-24T18:13:00+00:00", version="1.0", command="nextword eval sentiment --shots 0,4", models=[model]
    )
    monkeypatch.setenv("COLUMNS", "60")
    _console.output.cache_clear()
    print_provenance(made)
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 60
    assert {"2026-11-24T18:13:00+00:00,", "nextword eval sentiment --shots 0,4", "0123456789abcdef..."} <= {
        *out.split(), *(line.partition("command")[2].strip() for line in out.splitlines())
    }  # fmt: skip


def test_results_of_lm_eval_fit_a_narrow_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from nextword.cli.eval_lm_eval import _print

    row = SimpleNamespace(
        task="gsm8k", filter="strict-match", num_fewshot=5, metric="exact_match", value=0.1234567, stderr=0.01
    )
    monkeypatch.setenv("COLUMNS", "60")
    _console.output.cache_clear()
    _print(SimpleNamespace(rows=[row]))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 60
    assert lines[1].split()[:3] == ["gsm8k", "strict-match", "5"]
    assert "0.1235" in lines[1]
