"""Kernels of instruction sets that this processor may lack: emulated, or run by qemu."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
X86_LEVELS = ("portable", "avx2", "avx-vnni", "avx512-vnni")
NATIVE = HERE.parents[1] / "src/nextword/native"
SOURCES = [HERE / "same_bits.c", *sorted(NATIVE.glob("matmul*.c")), NATIVE / "quant_types.c", NATIVE / "pool.c"]
FLAGS = ["-O1", "-std=gnu11", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-pthread", "-static"]


def compiled(folder: Path, compiler: str, *flags: str) -> Path:
    program = folder / "same_bits"
    subprocess.run([compiler, *FLAGS, *flags, f"-I{NATIVE}", *SOURCES, "-o", program, "-lm"], check=True)
    return program


@pytest.mark.skipif(platform.machine() != "x86_64" or not shutil.which("gcc"), reason="needs x86-64 and gcc")
def test_vnni_gives_the_bits_of_portable_code(tmp_path: Path) -> None:
    program = compiled(tmp_path, "gcc", "-DNW_EMULATE_VNNI")
    for level in ("avx-vnni", "avx512-vnni"):
        subprocess.run([program, str(X86_LEVELS.index(level))], check=True)


@pytest.mark.skipif(
    not shutil.which("aarch64-linux-gnu-gcc") or not shutil.which("qemu-aarch64"), reason="needs gcc and qemu for arm64"
)
@pytest.mark.parametrize("architecture", ["armv8-a", "armv8.2-a+dotprod"])
def test_neon_gives_the_bits_of_portable_code(tmp_path: Path, architecture: str) -> None:
    program = compiled(tmp_path, "aarch64-linux-gnu-gcc", f"-march={architecture}")
    subprocess.run(["qemu-aarch64", program, "1"], check=True)
