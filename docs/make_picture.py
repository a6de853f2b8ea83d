"""Make docs/pictures: the plots of commands that the pages show, and the head of an evaluation's report.

python docs/make_picture.py plots           the plots, *.svg
python docs/make_picture.py                 eval.png: run the README's evaluation first (minutes)
python docs/make_picture.py out.html        eval.png from an existing report; eval.png needs Chromium and Pillow
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PICTURES = Path(__file__).resolve().parent / "pictures"
_ORACLES = PICTURES.parent.parent / "tests" / "oracles"
PLOTS = {
    "next": "next 'I like to eat' --dtype float32",
    "plan-inference": "plan inference llama-3-8b --context 8192 --devices rtx4090,rtx5090,h100",
    "plan-train": "plan train --params 1B --micro-batch 8 --context 2048 --price 2.5",
    "plan-budget": "plan budget --devices 8xh100 --days 3 --tokens-available 20B",
    "plan-fit": "plan fit --params 1B --devices rtx4090 --micro-batch 16 --context 2048",
    "plan-laws": f"plan laws --data {_ORACLES / 'epoch_chinchilla.csv'} --drop-highest 5",
    "plan-sweep": f"plan laws --data {_ORACLES / 'scaling/porian_isoflop_points.csv'} --method nnls",
}
COMMAND = "eval sentiment --shots 0,1,4 --limit 200 --dtype float32 --report"
_WIDE, _HIGH = 900, 1360  # CSS pixels: a README is about 850 wide; the height ends after the comparisons
_SCALE = 1.5
_COLOURS = 32


def main() -> int:
    """Write the pictures; the exit code."""
    if sys.argv[1:] == ["plots"]:
        for name, command in PLOTS.items():
            words = [*shlex.split(command), "--plot", str(PICTURES / f"{name}.svg")]
            subprocess.run([sys.executable, "-m", "nextword", *words], check=True, stdout=subprocess.DEVNULL)
        return 0
    from PIL import Image

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        print("needs chromium", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder:
        report, screenshot = Path(folder) / "out.html", Path(folder) / "eval.png"
        if len(sys.argv) > 1:
            report = Path(sys.argv[1]).resolve()
        else:
            subprocess.run([sys.executable, "-m", "nextword", *COMMAND.split(), str(report), "--no-store"], check=True)
        subprocess.run(
            [
                chromium, "--headless", "--hide-scrollbars", *["--no-sandbox"] * (os.geteuid() == 0),
                f"--force-device-scale-factor={_SCALE}", f"--window-size={_WIDE},{_HIGH}",
                f"--screenshot={screenshot}", report.as_uri(),
            ],
            check=True,
        )  # fmt: skip
        with Image.open(screenshot) as image:
            image.convert("RGB").quantize(_COLOURS).save(PICTURES / "eval.png", optimize=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
