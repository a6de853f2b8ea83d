"""Every table at 60 and at 80 columns: no line is longer, and no word or number is broken."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from nextword.cli import _console, main
from nextword.cli.plan_tables import plain_table

WIDE = 1000  # columns, where nothing is broken and nothing left out
RUNS = "size,tokens,loss\n" + "".join(
    f"{n},{d},{1.7 + 400 / n**0.34 + 410 / d**0.28}\n" for n in (1e6, 4e6, 2e7, 1e8) for d in (1e8, 5e8, 3e9, 2e10)
)
VERBS = {
    "the list of models": ("models", "list"),
    "a model's card": ("models", "show", "{model}", "--tensors"),
    "a deployment": ("plan", "deploy", "deepseek-v3", "--device", "h100"),
    "a deployment on many": ("plan", "deploy", "llama-3-8b", "--device", "h100,t4,mi300x"),
    "a training": ("plan", "train", "llama-3-8b", "--device", "h100", "--price", "2.5"),
    "what would make it fit": ("plan", "fit", "llama-3-70b", "--device", "rtx4090"),
    "a budget": ("plan", "budget", "--flops", "1e21", "--device", "h100"),
    "the laws": ("plan", "laws"),
    "a fitted law": ("plan", "laws", "--data", "{csv}", "--bootstrap", "20"),
    "the runs": ("runs", "list", "{runs}"),
    "a run": ("runs", "show", "{run}"),
    "two runs": ("runs", "compare", "{run}", "{other}"),
    "what was predicted": ("plan", "verify"),
    "an evaluation": ("eval", "{csv_of_reviews}", "--template", "{text}: {label}", "--shots", "0,2", "--model",
                      "{model}", "--draws", "2", "--limit", "20"),
    "the tasks": ("eval", "--list"),
}  # fmt: skip


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory, tiny_model: object, reviews: Path) -> Iterator[dict[str, str]]:
    """What the verbs' arguments stand for; two runs are trained, a machine is measured once."""
    from nextword.train import launch, probe

    root = tmp_path_factory.mktemp("tables")
    draw, text = random.Random(0), root / "text.txt"
    text.write_text("\n".join(" ".join(draw.choices("a king went to the river".split(), k=300)) for _ in range(40)))  # noqa: SIM905
    (root / "fit.csv").write_text(RUNS)
    runs = {"run": root / "runs" / "a-transformer-with-a-long-name", "other": root / "runs" / "an-lstm"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "time_steps", partial(probe.time_steps, seconds=0.2))
        for name, value in (("CACHE", root / "cache"), ("LEDGER", root / "ledger.jsonl"), ("STORE", root / "store")):
            patch.setenv(f"NEXTWORD_{name}", str(value))
        for (_, folder), kind in zip(runs.items(), ("transformer", "lstm"), strict=True):
            given = ["train", str(text), "--model", kind, "--params", "20k", "--context", "16", "--steps", "3",
                     "--batch", "4", "--precision", "fp32", "--threads", "1", "--out", str(folder)]  # fmt: skip
            assert main(given) == 0
        yield {
            **{name: str(folder) for name, folder in runs.items()},
            "runs": str(root / "runs"),
            "csv": str(root / "fit.csv"),
            "csv_of_reviews": str(reviews),
            "model": str(tiny_model()),  # type: ignore[operator]
        }


@pytest.mark.parametrize("verb", VERBS)
def test_a_table_fits_the_terminal_and_breaks_no_word(
    verb: str, places: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = list(VERBS[verb])
    for name, place in places.items():
        arguments = [each.replace(f"{{{name}}}", place) for each in arguments]

    def printed(width: int) -> str:
        monkeypatch.setenv("COLUMNS", str(width))
        _console.output.cache_clear()
        _console.messages.cache_clear()
        assert main(arguments) == 0
        return capsys.readouterr().out

    whole = words(printed(WIDE)) | words("not shown, for want of room:")
    for width in (60, 80):
        narrow = printed(width)
        assert max(map(len, narrow.splitlines())) <= width
        broken = {word for word in words(narrow) - whole if not is_of_a_path(word, places)}
        assert broken == set()


def words(text: str) -> set[str]:
    return {word.strip(",") for word in text.split() if any(map(str.isalnum, word))}


def is_of_a_path(word: str, places: dict[str, str]) -> bool:
    """Only a path that is longer than the terminal goes on in the next line, or is cut."""
    plain = word.strip(":")
    return ("/" in word and word.endswith("…")) or any(plain.removesuffix("…") in path for path in places.values())


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
    assert "".join(shown(33).split()).endswith("room:one,two,three")
    assert shown(9).split()[1] == "a" * 8 + "…"
