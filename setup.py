"""Builds the optional compiled kernels; everything else about the package is in pyproject.toml.

Without a C compiler the install still succeeds, and models need torch (the extra `train`).
"""

import sys
from concurrent.futures import ThreadPoolExecutor
from glob import glob

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

FOLDER = "src/nextword/native"
kernels = Extension(
    "nextword.native._kernels",
    sources=sorted(glob(f"{FOLDER}/*.c")),
    depends=sorted(glob(f"{FOLDER}/*.h") + glob(f"{FOLDER}/*.inc")),
    define_macros=[("NW_WITH_PYTHON", "1"), ("Py_LIMITED_API", "0x030B0000")],
    py_limited_api=True,  # one wheel for every Python from 3.11 on
    extra_compile_args=[
        "-O3",
        "-g0",
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


class ParallelBuild(build_ext):
    """Compiles the files of an extension at the same time."""

    def build_extensions(self):
        compile_all = self.compiler.compile

        def compile_each(sources, **options):
            with ThreadPoolExecutor() as pool:
                objects = list(pool.map(lambda source: compile_all([source], **options), sources))
            return [path for paths in objects for path in paths]

        self.compiler.compile = compile_each
        super().build_extensions()


setup(
    cmdclass={"build_ext": ParallelBuild},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
    ext_modules=[] if sys.platform == "win32" else [kernels],
)
