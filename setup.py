# SPDX-License-Identifier: Apache-2.0
"""Native parts: the C of csrc/ through cffi, and every .pyx of the package through Cython. All else is in pyproject.toml.

XKS_ANNOTATE=1 also writes Cython's annotated HTML beside each .pyx.
"""

import os
import runpy
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

ROOT = Path(__file__).resolve().parent
VERSION = runpy.run_path(str(ROOT / "xksfast" / "_version.py"))["__version__"]
BUILDER = runpy.run_path(str(ROOT / "xksfast" / "native" / "builder.py"))


def native_module() -> Extension:
    """The cffi module. Its C headers count as dependencies, so a changed header compiles again."""
    extension = BUILDER["make_ffibuilder"](VERSION).distutils_extension(tmpdir="build/cffi", verbose=False)
    extension.depends = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").glob("*.h"))
    return extension


def cython_modules() -> list[Extension]:
    """One extension per .pyx; they reach the C through the function table and link nothing of it."""
    found = sorted(path.relative_to(ROOT) for path in (ROOT / "xksfast").rglob("*.pyx"))
    extensions = [
        Extension(
            ".".join(path.with_suffix("").parts),
            [str(path)],
            include_dirs=["csrc"],
            depends=sorted(str(header.relative_to(ROOT)) for header in (ROOT / "csrc").glob("*.h")),
            extra_compile_args=["-O3", "-fvisibility=hidden"],
        )
        for path in found
    ]
    return cythonize(
        extensions,
        language_level=3,
        annotate=os.environ.get("XKS_ANNOTATE") == "1",
        build_dir="build/cython",
        compiler_directives={"boundscheck": False, "wraparound": False, "initializedcheck": False},
    )


setup(ext_modules=[native_module(), *cython_modules()])
