"""Execute src/nextword/tour.ipynb, and write docs/tour.ipynb: the same cells with their outputs.

    python docs/make_tour.py            execute it, which takes minutes, and write
    python docs/make_tour.py --check    exit with 1 if docs/tour.ipynb has other cells, or paths of a machine

mkdocs calls `on_files`, which makes the site's page from it.
"""

from __future__ import annotations

import base64
import json
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SOURCE, SHOWN = ROOT / "src" / "nextword" / "tour.ipynb", ROOT / "docs" / "tour.ipynb"
FIGURE, _SVG = "application/vnd.vegalite.v5+json", "image/svg+xml"
_PATH = re.compile(r"/(?:home|root|tmp|work|var|Users)/|https?://(?!vega\.github\.io/schema/|www\.w3\.org/)[^\s\"<]+")


def executed(folder: Path, quick: bool = False) -> Any:
    """The notebook with its outputs, executed in `folder`; figures also as SVG, for viewers without Vega-Lite."""
    import nbformat
    from nbclient import NotebookClient

    from nextword import plots

    notebook = nbformat.read(SOURCE, as_version=4)
    if quick:
        for cell in notebook.cells:
            cell.source = cell.source.replace("QUICK = False", "QUICK = True")
    NotebookClient(notebook, timeout=600, coalesce_streams=True).execute(cwd=str(folder))
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # when it ran
        for output in cell.get("outputs", ()):
            if figure := output.get("data", {}).get(FIGURE):
                output["data"][_SVG] = plots.svg(figure)
    return notebook


def faults(source: dict[str, Any], shown: dict[str, Any]) -> Iterator[str]:
    """What is wrong with the notebook that is shown."""
    if [each["source"] for each in source["cells"]] != [each["source"] for each in shown["cells"]]:
        yield "tour.ipynb is stale. Run: python docs/make_tour.py"
    for cell in shown["cells"]:
        for output in cell.get("outputs", ()):
            if output["output_type"] == "error" or output.get("name") == "stderr":
                yield f"{cell['id']}: an error, or a warning on stderr"
            if found := _PATH.search(json.dumps(output)):
                yield f"{cell['id']}: {found[0]} of this machine"


def page(notebook: dict[str, Any]) -> str:
    """The notebook in Markdown."""
    parts = []
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
        parts.extend(map(_output, cell.get("outputs", ())))
    return "\n\n".join(parts) + "\n"


def _output(output: dict[str, Any]) -> str:
    data = {kind: "".join(value) for kind, value in output.get("data", {}).items() if isinstance(value, str | list)}
    if _SVG in data:
        encoded = base64.b64encode(data[_SVG].encode()).decode()
        return f"![{data['text/plain'].splitlines()[0]}](data:image/svg+xml;base64,{encoded})"
    if "text/html" in data:
        return f"<div>{data['text/html']}</div>"
    text = "".join(output.get("text", "")) or data.get("text/plain", "")
    return f"```text\n{text.rstrip()}\n```"


def on_files(files: Any, config: Any) -> Any:
    """For mkdocs: the page tour.md."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, "tour.md", content=page(json.loads(SHOWN.read_text(encoding="utf-8")))))
    return files


def main() -> int:
    """Write or check; the exit code."""
    if "--check" not in sys.argv[1:]:
        import nbformat

        with tempfile.TemporaryDirectory() as folder:
            nbformat.write(executed(Path(folder)), SHOWN)
    wrong = list(faults(*(json.loads(path.read_text(encoding="utf-8")) for path in (SOURCE, SHOWN))))
    print(*wrong, sep="\n", end="\n" if wrong else "", file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
