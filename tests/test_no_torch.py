"""What a plain install does without the packages that extras bring: torch above all."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import nextword
from nextword.base.extras import EXTRAS

Run = Callable[..., "subprocess.CompletedProcess[str]"]
NEED_AN_EXTRA = ("nextword.models", "nextword.train", "nextword.scale", "nextword.evals.lm_eval_adapter")


@pytest.fixture(scope="session")
def plain(nextword: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run `nextword ARGUMENTS` where importing a package of an extra fails, as in a plain install."""
    folder = tmp_path_factory.mktemp("plain")
    code = f"import sys\nsys.modules.update(dict.fromkeys({[*EXTRAS, 'transformers']!r}))\n"
    (folder / "sitecustomize.py").write_text(code)  # Python imports it at startup
    path = os.pathsep.join(filter(None, (str(folder), str(Path(nextword_home()).parent), os.environ.get("PYTHONPATH"))))
    cache = folder / "cache"

    def run(*arguments: str, **options: str) -> subprocess.CompletedProcess[str]:
        return nextword(*arguments, env={"PYTHONPATH": path, "NEXTWORD_CACHE": str(cache)}, **options)

    return run


def nextword_home() -> str:
    return nextword.__path__[0]


@pytest.fixture(scope="session")
def places(tiny_model: Callable[..., Path], reviews: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Paths that the command lines below name."""
    from nextword.weights.conversion import convert

    folder, out = tiny_model(chat_template="{% for m in messages %}{{ m.content }}{% endfor %}"), tmp_path_factory
    return {
        "FOLDER": str(folder), "LSTM": str(tiny_model("lstm")), "TABLE": str(reviews),
        "GGUF": str(convert(folder, out.mktemp("gguf") / "tiny.gguf")), "NEW": str(out.mktemp("new") / "out.gguf"),
        "RUNS": str(out.mktemp("runs")),
    }  # fmt: skip


LINES = (
    "complete -m FOLDER --max-tokens 3 --seed 1 Hi",
    "complete -m GGUF --max-tokens 3 -n 2 --probabilities 2 --json Hi",
    "complete -m LSTM --max-tokens 3 Hi",
    "complete -m FOLDER --max-tokens 3 --regex [a-c]+ Hi",
    "complete -m FOLDER --dtype q8_0 --kv-dtype float32 --threads 1 --max-tokens 3 Hi",
    "next -m GGUF Hi",
    "chat -m FOLDER --max-tokens 3",
    "eval TABLE -m GGUF --template {text}:{label} --shots 0,2 --limit 4",
    "eval runs list",
    "plan train gpt2",
    "plan laws",
    "models list",
    "models info GGUF",
    "models convert GGUF NEW --dtype q8_0",
    "runs list RUNS --json",
)


@pytest.mark.parametrize("line", LINES)
def test_a_plain_install_runs_it(line: str, plain: Run, places: dict[str, str]) -> None:
    done = plain(*(places.get(word, word) for word in line.split()), stdin="Hi\n")
    assert (done.returncode, "internal error" in done.stderr) == (0, False), done.stderr
    assert done.stdout


NEEDS = {
    "train TABLE --steps 1": "training needs torch. Install it: pip install 'nextword[train]'",
    "compare-context TABLE": "training needs torch. Install it: pip install 'nextword[train]'",
    "runs resume RUNS": "training needs torch. Install it: pip install 'nextword[train]'",
    "runs export RUNS NEW": "reading a checkpoint needs torch. Install it: pip install 'nextword[train]'",
    "complete -m FOLDER --device cuda Hi": "needs torch. Install it: pip install 'nextword[train]'",
    "next -m FOLDER --plot next.svg Hi": "plots need vl_convert. Install it: pip install 'nextword[plot]'",
    "eval --lm-eval arc_easy -m FOLDER": "pip install 'nextword[lm-eval]'",
}


@pytest.mark.parametrize("line", NEEDS)
def test_what_needs_more_says_which_extra_in_one_line(line: str, plain: Run, places: dict[str, str]) -> None:
    done = plain(*(places.get(word, word) for word in line.split()))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.removesuffix("\n").endswith(NEEDS[line])
    assert done.stderr.count("\n") == 1


SLOW = {
    *("hashlib", "platformdirs", "random", "shutil", "subprocess", "tempfile"),
    *("huggingface_hub", "llguidance", "numpy.random", "rich", "torch"),
}


def test_a_short_completion_imports_nothing_slow_that_it_does_not_need(places: dict[str, str]) -> None:
    command = ["complete", "-m", places["GGUF"], "--greedy", "--max-tokens", "1", "Hi"]
    code = f"import sys, nextword.cli\nassert nextword.cli.main({command!r}) == 0\nprint(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert SLOW & {*done.stderr.split()} == set()


def modules() -> Iterator[str]:
    home = Path(nextword_home())
    for path in sorted(home.rglob("*.py")):
        name = ".".join(("nextword", *path.relative_to(home).with_suffix("").parts)).removesuffix(".__init__")
        if not name.startswith(NEED_AN_EXTRA) and not name.endswith(("__main__", "_jinja_worker")):
            yield name


def test_no_module_outside_models_and_train_imports_torch_at_its_top() -> None:
    code = f"""
import sys
from importlib import import_module
sys.modules.update(dict.fromkeys({[*EXTRAS, "transformers"]!r}))
for name in {[*modules()]!r}:
    import_module(name)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
