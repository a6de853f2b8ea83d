"""The same bits on Arm (NEON and plain C, in an emulator) as on this processor."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

import nextword.native

FOLDER = Path(nextword.native.__file__).parent
SOURCES = (
    "attention", "causal_attention", "cross_entropy", "elementwise", "f32_*", "layer_ops", "pool", "module", "matmul*",
    "quant_types",
)  # fmt: skip
FLAGS = ("-O1", "-std=gnu11", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", f"-I{FOLDER}", "-pthread")
NEEDED = ("cc", "aarch64-linux-gnu-gcc", "qemu-aarch64")

pytestmark = pytest.mark.skipif(not all(map(shutil.which, NEEDED)), reason=f"needs {', '.join(NEEDED)}")


def compiled(compiler: str, folder: Path, *flags: str) -> str:
    sources = [path for pattern in SOURCES for path in sorted(FOLDER.glob(f"{pattern}.c"))]
    program = folder / compiler
    main = Path(__file__).with_name("kernels_main.c")
    subprocess.run([compiler, *FLAGS, *flags, *sources, main, "-o", program, "-lm"], check=True)
    return str(program)


def hashes(*command: str) -> dict[str, list[str]]:
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    results: dict[str, list[str]] = {}
    for line in lines:
        name, value = line.rsplit(" ", 1)
        results.setdefault(name, []).append(value)
    return results


@pytest.mark.timeout(900)
def test_arm_gives_the_same_bits_with_and_without_neon(tmp_path: Path) -> None:
    expected = hashes(compiled("cc", tmp_path))
    assert len(expected) >= 22
    arm = compiled("aarch64-linux-gnu-gcc", tmp_path, "-static")
    for level in ("0", "1"):
        assert hashes("qemu-aarch64", arm, level) == expected
