"""Writes columns.json: small files of data, and the rows that lm-evaluation-harness's reader makes of them.

Run by hand with lm-eval 0.4.13 installed and HF_DATASETS_OFFLINE=1: `python tests/oracles/harness/make_columns.py`.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import datasets

HERE = Path(__file__).parent


def lines(*rows: object) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


FILES: dict[str, tuple[str, str]] = {
    "whole and broken numbers": ("json", lines({"x": 1, "y": [1, 2.5]}, {"x": 2.5, "y": [3]}, {"x": None, "y": []})),
    "only whole numbers": ("json", lines({"x": 1, "y": [1]}, {"x": 2, "y": [3]}, {"x": 2**63 - 1, "y": None})),
    "truth values": ("json", lines({"x": True}, {"x": None}, {"x": False})),
    "keys in another order": ("json", lines({"d": {"b": 1, "a": 2.5}}, {"d": {"a": 1, "b": 2}}, {"d": None})),
    "other keys": ("json", lines({"d": {"x": 1}, "l": [{"k": 1}, {"m": 2}]}, {"d": {"y": "t"}, "l": []})),
    "a column that is missing": ("json", lines({"a": "z"}, {"a": "y", "b": "x"})),
    "a list of rows": ("json", json.dumps([{"x": 1}, {"x": 0.5}])),
    "texts like numbers": ("json", lines({"x": "007"}, {"x": "1_000"})),
    "csv numbers": ("csv", "i,f,z,e,p\n1,1.0,007,2e3,+5\n-2,.5,008,1,6\n"),
    "csv texts like numbers": ("csv", "u,w,v,t\n1_000,３,1,one\n2,4,1.0.0,2\n"),
    "csv gaps": ("csv", "i,f,s,b,n\n1,1.5,one,True,None\n,,NA,,n/a\n"),
    "csv truth values": ("csv", "a,b,c\nTrue,true,yes\nFalse,FALSE,no\n"),
    "csv quotation marks": ("csv", 'q,a\n"a ""b"", c",1\n"l1\nl2",2\n\n  sp ,3\n'),
    "csv infinities": ("csv", "f,g\ninf,1e400\n-inf,nan\n"),
}  # fmt: skip


def main() -> None:
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, (reader, text)) in enumerate(FILES.items()):
            path = Path(folder) / f"{number}.{reader}"
            path.write_text(text, encoding="utf-8")
            read = datasets.load_dataset(reader, data_files={"test": str(path)}, cache_dir=f"{folder}/cache")
            found[name] = {"reader": reader, "text": text, "rows": repr(list(read["test"]))}
    (HERE / "columns.json").write_text(json.dumps(found, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
