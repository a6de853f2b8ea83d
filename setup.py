"""Builds the optional compiled kernels; everything else about the package is in pyproject.toml.

Without a C compiler the install still succeeds and nextword computes with torch alone.
"""

import sys

from setuptools import Extension, setup

kernels = Extension(
    "nextword.native._kernels",
    sources=["src/nextword/native/kernels.c"],
    extra_compile_args=["-O3", "-std=gnu11", "-fno-math-errno", "-pthread"],
    extra_link_args=["-pthread"],
    optional=True,
)

setup(ext_modules=[] if sys.platform == "win32" else [kernels])
