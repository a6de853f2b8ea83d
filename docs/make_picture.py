"""Make docs/pictures/eval.png, the head of the report that the README's command writes. Needs Chromium and Pillow.

python docs/make_picture.py                 run the README's evaluation first (minutes)
python docs/make_picture.py out.html        of a report that is there
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PICTURE = Path(__file__).resolve().parent / "pictures" / "eval.png"
COMMAND = "eval sentiment --shots 0,1,4 --limit 200 --dtype float32 --report"
_WIDE, _HIGH = 900, 1455  # CSS pixels: a README is about 850 wide; the height ends after the comparisons
_SCALE = 1.5
_COLOURS = 32


def main() -> int:
    """Write the picture; the exit code."""
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
            image.convert("RGB").quantize(_COLOURS).save(PICTURE, optimize=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
