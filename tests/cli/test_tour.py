"""The tour: the notebook runs, what is shown is what its cells make, and `nextword tour` says where it is."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from cli_run import run

ROOT = Path(__file__).resolve().parents[2]
TOUR = ROOT / "src" / "nextword" / "tour.ipynb"


@pytest.fixture(scope="module")
def make_tour() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_tour", ROOT / "docs" / "make_tour.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def shown(make_tour: ModuleType) -> Any:
    return json.loads(make_tour.SHOWN.read_text(encoding="utf-8"))


def test_the_tour_runs_and_its_assertions_hold(smollm2_path: Path, tmp_path: Path, make_tour: ModuleType) -> None:
    notebook = make_tour.executed(tmp_path, quick=True)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in cells)
    assert sum(cell.source.count("assert ") for cell in cells) >= 10
    assert not any(output.output_type == "error" for cell in cells for output in cell.outputs)


def test_the_package_has_the_tour_without_outputs() -> None:
    cells = json.loads(TOUR.read_text(encoding="utf-8"))["cells"]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)


def test_the_documentation_shows_the_same_cells_and_no_path_of_a_machine(make_tour: ModuleType, shown: Any) -> None:
    source = json.loads(TOUR.read_text(encoding="utf-8"))
    assert list(make_tour.faults(source, shown)) == []
    code = [cell for cell in shown["cells"] if cell["cell_type"] == "code"]
    assert all(cell["execution_count"] for cell in code)
    code[0]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "/home/someone/text"}]
    code[1]["source"] = "changed"
    assert len(list(make_tour.faults(source, shown))) == 2


def test_every_figure_of_the_documentation_is_also_a_picture(make_tour: ModuleType, shown: Any) -> None:
    outputs = [output.get("data", {}) for cell in shown["cells"] for output in cell.get("outputs", ())]
    figures = [data for data in outputs if make_tour.FIGURE in data]
    assert len(figures) >= 5
    assert all("".join(data["image/svg+xml"]).startswith("<svg") for data in figures)
    page = make_tour.page(shown)
    assert page.count("](data:image/svg+xml;base64,") == len(figures)
    assert "(http" not in page


def test_tour_prints_where_the_notebook_is(nextword: Any) -> None:
    done = nextword("tour")
    assert done.returncode == 0
    place = Path(done.stdout.removesuffix("\n"))
    assert place.read_bytes() == TOUR.read_bytes()
    assert done.stderr == f"open it: jupyter lab {place}\n"


def test_tour_copies_the_notebook_and_replaces_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "tour.ipynb"
    assert run(capsys, "tour", "--copy", str(copy))[:2] == (0, f"{copy}\n")
    assert copy.read_bytes() == TOUR.read_bytes()
    copy.write_text("mine")
    code, _, err = run(capsys, "tour", "--copy", str(copy))
    assert code == 2
    assert "there is already a file" in err
    assert copy.read_text() == "mine"
