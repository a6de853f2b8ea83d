"""Builds the optional compiled kernels; everything else about the package is in pyproject.toml.

Without a C compiler the install still succeeds and nextword computes with torch alone.
"""

import sys
from glob import glob

from setuptools import Extension, setup

FOLDER = "src/nextword/native"
kernels = Extension(
    "nextword.native._kernels",
    sources=sorted(glob(f"{FOLDER}/*.c")),
    depends=sorted(glob(f"{FOLDER}/*.h") + glob(f"{FOLDER}/*.inc")),
    define_macros=[("NW_WITH_PYTHON", "1")],
    extra_compile_args=[
        "-O3",
        "-std=gnu11",
        "-fno-math-errno",
        "-fno-trapping-math",
        "-ffp-contract=off",
        "-fvisibility=hidden",
        "-pthread",
    ],
    extra_link_args=["-pthread"],
    optional=True,  # instructions beyond the baseline are chosen at run time, so one build is right everywhere
)

setup(ext_modules=[] if sys.platform == "win32" else [kernels])
