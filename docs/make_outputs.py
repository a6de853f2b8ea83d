"""Write the real output of commands into the pages that show it.

    python docs/make_outputs.py                 write the outputs of README.md and docs/*.md
    python docs/make_outputs.py --check         compare them instead; exit code 1 where one is stale
    python docs/make_outputs.py --slow          also those that take minutes
    python docs/make_outputs.py --only next     only commands that contain a text

A code block shows a command's output where the page says so:

    <!-- output: nextword next "I like to eat" -->           before a block: the block is what the command prints
    <!-- slow output of 2026-11-24: nextword eval ... -->    the same of a command that takes minutes, with its date
    $ nextword plan train --params 1B                        at the head of a block: the output follows it

Lines of "..." stand for output left out: such a block is compared piece by piece and never rewritten. Digits may differ
by one in their last place, and bars by their length, since other processors round otherwise; nothing else may.
Commands run in a folder with `runs.csv`, `sweep.csv`, `optima.csv` and the `person.json` of structured-output.md;
evaluations use no store.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
_RUNS = ROOT / "tests" / "oracles" / "epoch_chinchilla.csv"
_SCALING = ROOT / "tests" / "oracles" / "scaling"
_STRUCTURES = ROOT / "docs" / "structured-output.md"
_MARKED = re.compile(
    r"^<!-- (?P<kind>output|slow output of (?P<date>[\d-]+)): (?P<command>nextword .*) -->\n+```\n", re.M
)
_SESSION = re.compile(r"^```\n\$ (?P<command>nextword .*)\n", re.M)
_SLOW = ("plan laws --data",)  # sessions that take long: they carry no date, their numbers are tested elsewhere
_LEFT_OUT = "...\n"
_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")
_BARS = re.compile(r"[█▉▊▋▌▍▎▏░▸\-o]{2,}|[█▉▊▋▌▍▎▏░▸]")


@dataclass(frozen=True)
class Block:
    """A block of a page: its command, and where in the page's text its output begins and ends."""

    page: Path
    command: str
    start: int
    end: int
    slow: bool
    shown: str
    date_at: int | None = None  # where the date of a slow one begins


def blocks(page: Path) -> Iterator[Block]:
    """The blocks of a page that show a command's output, in order."""
    text = page.read_text(encoding="utf-8")
    for found in sorted([*_MARKED.finditer(text), *_SESSION.finditer(text)], key=lambda each: each.start()):
        end = text.index("```", found.end())
        groups = found.groupdict()
        slow = bool(groups.get("date")) or any(part in groups["command"] for part in _SLOW)
        at = found.start("date") if groups.get("date") else None
        yield Block(page, groups["command"], found.end(), end, slow, text[found.end() : end], at)


@cache
def output_of(command: str) -> str:
    """What a command prints, errors included where it fails, without spaces at line ends. Run once each."""
    with tempfile.TemporaryDirectory() as folder:
        write_files(Path(folder))
        return _output_in(Path(folder), command)


def write_files(folder: Path) -> None:
    """The files that commands of the pages read."""
    (folder / "runs.csv").write_bytes(_RUNS.read_bytes())
    (folder / "sweep.csv").write_bytes((_SCALING / "porian_isoflop_points.csv").read_bytes())
    (folder / "optima.csv").write_bytes((_SCALING / "nanochat_optima.csv").read_bytes())
    page = _STRUCTURES.read_text(encoding="utf-8")
    (folder / "person.json").write_text(page.split("```json\n")[1].split("```")[0], encoding="utf-8")


def _output_in(folder: Path, command: str) -> str:
    words = shlex.split(command)[1:]
    if words[0] == "eval" and words[1:2] != ["runs"]:
        words.append("--no-store")
    kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "FORCE_COLOR")}
    done = subprocess.run(
        [sys.executable, "-m", "nextword", *words], cwd=folder, env=kept | {"NO_COLOR": "1"}, text=True,
        encoding="utf-8", capture_output=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    printed = done.stdout if done.returncode == 0 else done.stdout + done.stderr
    return "".join(f"{line.rstrip()}\n" for line in printed.splitlines())


def alike(shown: str, printed: str) -> bool:
    """Whether a block shows what was printed; pieces between lines of "..." in their order."""
    if _LEFT_OUT not in shown:
        return _same(shown, printed)
    lines, place = printed.splitlines(keepends=True), 0
    for piece in (part.strip("\n").splitlines(keepends=True) for part in shown.split(_LEFT_OUT)):
        tries = range(place, len(lines) - len(piece) + 1)
        at = next((n for n in tries if _same("".join(piece), "".join(lines[n : n + len(piece)]))), None)
        if at is None:
            return False
        place = at + len(piece)
    return True


def _same(one: str, other: str) -> bool:
    """Equal but for the last place of numbers, the length of bars and the spaces that these move."""
    if one == other:
        return True
    plain = [_BARS.sub("", text) for text in (one, other)]
    words = [_NUMBER.sub("0", text).split() for text in plain]
    numbers = [_NUMBER.findall(text) for text in plain]
    return words[0] == words[1] and all(map(_close, *numbers))


def _close(one: str, other: str) -> bool:
    one, other = one.replace(",", ""), other.replace(",", "")
    places = len(one.partition(".")[2])
    return places == len(other.partition(".")[2]) and abs(float(one) - float(other)) <= 1.001 * 10**-places * (
        places > 0
    )


def stale(block: Block) -> str | None:
    """What the command prints now, if the block does not show it."""
    printed = output_of(block.command)
    return None if alike(block.shown, printed) else printed


def write(block: Block, printed: str) -> None:
    """Put what was printed into the page, with today's date where the block has one."""
    text = block.page.read_text(encoding="utf-8")
    text = text[: block.start] + printed + text[block.end :]
    if block.date_at is not None:
        text = text[: block.date_at] + date.today().isoformat() + text[block.date_at + 10 :]
    block.page.write_text(text, encoding="utf-8")


def main() -> int:
    """Write or compare; the exit code."""
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    options.add_argument("--check", action="store_true", help="compare, and write nothing")
    options.add_argument("--slow", action="store_true", help="also commands that take minutes")
    options.add_argument("--only", default="", metavar="TEXT", help="only commands that contain TEXT")
    options.add_argument("pages", nargs="*", type=Path, default=PAGES, help="default: README.md and docs/*.md")
    given = options.parse_args()
    wrong = 0
    for page in given.pages:
        for block in reversed(list(blocks(page))):  # from the end, so that places stay
            if given.only not in block.command or (block.slow and not given.slow):
                continue
            printed = stale(block)
            if printed is None:
                continue
            wrong += 1
            print(f"{page.name}: stale: {block.command}", file=sys.stderr)
            if not given.check and _LEFT_OUT not in block.shown:
                write(block, printed)
    return 1 if wrong and given.check else 0


if __name__ == "__main__":
    sys.exit(main())
