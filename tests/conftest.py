"""What every test may use: the real model, instruction sets, a command line to run, and hypothesis' settings."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

from nextword import native
from ray_machines import Machines, two_machines

if "PYTEST_XDIST_WORKER" in os.environ:  # a process per core: more threads would only wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")

SMOKE = (  # modules of `pytest -m smoke`: one or two of each package, fast
    "base/", "engine/test_engine", "engine/test_sampling.py", "engine/test_language_model", "evals/test_statistics",
    "evals/test_template", "models/test_prepare", "models/test_recurrent", "runtime/test_cpu_pages", "plan/test_cases",
    "plan/test_run_config", "text/test_stream_decoder", "text/test_contents", "train/test_estimates",
    "data/test_windows", "weights/test_mxfp4", "cli/test_pictures", "cli/test_complete_structure",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the smoke tests: those of SMOKE's modules that do not need the downloaded model."""
    root = Path(__file__).parent
    for item in items:
        name = item.path.relative_to(root).as_posix()
        if name.startswith(SMOKE) and "smollm2_path" not in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.smoke)


hypothesis.settings.register_profile("checks", deadline=None, max_examples=50, derandomize=True)
hypothesis.settings.load_profile("checks")


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """The real SmolLM2-135M-Instruct GGUF, fetched once into the user's cache as a user would fetch it."""
    from nextword.weights.catalogue import resolve

    return resolve("smollm2-135m-instruct")


@pytest.fixture
def kernels_restored() -> Iterator[None]:
    """After the test the compiled kernels have the threads and the instructions that they had before."""
    threads = native.bindings.library().nw_threads()
    yield
    native.set_threads(threads)
    native.limit_level(None)


@pytest.fixture(params=native.LEVELS)
def instructions(request: pytest.FixtureRequest, kernels_restored: None) -> str:
    """Each instruction set in turn; one that this processor lacks is skipped."""
    native.limit_level(request.param)
    if native.level() != request.param:
        pytest.skip(f"this processor has no {request.param}")
    return str(request.param)


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def nextword() -> Run:
    """Run `nextword ARGUMENTS` in a process of its own: `nextword("next", "I like", stdin="", env={...})`."""

    def run(
        *arguments: str, stdin: str = "", env: dict[str, str] | None = None, timeout: float = 120
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "nextword", *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=timeout,
            env=os.environ | {"NO_COLOR": "1"} | (env or {}),
            # pytest may itself run with SIGINT ignored (nohup, &); the command must not inherit that
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler) and None,
        )

    return run


@pytest.fixture
def machines(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machines]:
    """A cluster of two machines, for each test its own, since tests lose them."""
    pytest.importorskip("ray", reason="needs the extra `cluster`")
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "0")  # other programs may fill this machine's memory
    monkeypatch.setenv("RAY_worker_niceness", "0")  # by default others on this machine go first
    with two_machines() as machines:
        yield machines


REVIEWS = ("good", "bad", "fine food", "awful", "a joy", "a bore", "never again", "come back", "so slow", "so kind")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A folder with a model small enough to evaluate in no time: bytes as tokens, two layers, weights by `seed`."""

    def write(kind: str = "transformer", seed: int = 0, chat_template: str = "") -> Path:
        import torch

        from nextword.data import train_tokenizer
        from nextword.models import build
        from nextword.models.weights import write_model
        from nextword.spec import ModelSpec

        torch.manual_seed(seed)
        attention = {"heads": 2, "kv_heads": 1, "head_width": 8, "mlp_width": 32} if kind == "transformer" else {}
        spec = ModelSpec(kind=kind, vocabulary=257, width=16, layers=2, context=512, **attention)  # type: ignore
        model = build(spec).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.4)
        folder = tmp_path_factory.mktemp("models") / f"{kind}-{seed}"
        write_model(folder, model, train_tokenizer(["x"], "bytes"))
        if chat_template:  # <|endoftext|> is its one control token, and ends a turn
            (folder / "chat_template.jinja").write_text(chat_template)
        return folder

    return write


@pytest.fixture(scope="session")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CSV file of sixty texts with a label and a group; no two are equal."""
    draw, lines = random.Random(1), ["text,label,shop"]
    for number in range(60):
        lines.append(f"{draw.choice(REVIEWS)} {number},{'positive' if number % 3 else 'negative'},{number % 7}")
    path = tmp_path_factory.mktemp("reviews") / "reviews.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
