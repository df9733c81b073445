# SPDX-License-Identifier: Apache-2.0
"""Native parts: the C of csrc/ through cffi, every .pyx of the package through Cython, and the fault shim libxksfault.so.

All else is in pyproject.toml.

XKS_ANNOTATE=1 also writes Cython's annotated HTML beside each .pyx.
"""

import os
import runpy
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
VERSION = runpy.run_path(str(ROOT / "xksfast" / "_version.py"))["__version__"]
SHIM = "libxksfault"
DECIDES = [
    Path(__file__),
    ROOT / "xksfast" / "_version.py",
    ROOT / "xksfast" / "native" / "builder.py",
]  # how each object is compiled
BUILDER = runpy.run_path(str(ROOT / "xksfast" / "native" / "builder.py"))


def native_module() -> Extension:
    """The cffi module. Its C headers count as dependencies, so a changed header compiles again."""
    extension = BUILDER["make_ffibuilder"](VERSION).distutils_extension(tmpdir="build/cffi", verbose=False)
    headers = [*(ROOT / "csrc").glob("*.h"), *(ROOT / "csrc" / "shim").glob("*.h")]
    extension.depends = sorted(str(path.relative_to(ROOT)) for path in headers)
    return extension


def fault_shim() -> Extension:
    """csrc/shim as xksfast/native/libxksfault.so: no Python module, a PKCS#11 module that is loaded by its path."""
    shim = ROOT / "csrc" / "shim"
    return Extension(
        f"xksfast.native.{SHIM}",
        sorted(str(path.relative_to(ROOT)) for path in shim.glob("*.c")),
        include_dirs=["csrc", "csrc/third_party/pkcs11-3.1"],
        depends=sorted(str(path.relative_to(ROOT)) for path in [*shim.glob("*.h"), ROOT / "csrc" / "xks_pkcs11.h"]),
        define_macros=[("_GNU_SOURCE", "1")],
        libraries=["pthread", "dl", "m"],
        extra_compile_args=BUILDER["compile_args"](),
    )


class BuildNative(build_ext):
    """Gives the shim the name of a library, without Python's ABI tag; compiles on every core, and only what is out of date."""

    def build_extensions(self) -> None:
        compiler: Any = self.compiler

        def compile_what_changed(
            sources: Any,
            output_dir: Any = None,
            macros: Any = None,
            include_dirs: Any = None,
            debug: Any = False,
            extra_preargs: Any = None,
            extra_postargs: Any = None,
            depends: Any = None,
        ) -> list[str]:
            macros, objects, extra, options, build = compiler._setup_compile(
                output_dir, macros, include_dirs, sources, depends, extra_postargs
            )
            arguments = compiler._get_cc_args(options, debug, extra_preargs)
            newest = max(os.path.getmtime(path) for path in [*DECIDES, *(depends or [])])

            def compile_one(target: str) -> None:
                source, suffix = build[target]
                built = os.path.getmtime(target) if os.path.exists(target) else 0.0
                if self.force or built <= max(newest, os.path.getmtime(source)):
                    compiler._compile(target, source, suffix, arguments, extra, options)

            with ThreadPoolExecutor(os.cpu_count()) as pool:
                list(pool.map(compile_one, build))
            return list(objects)

        compiler.compile = compile_what_changed
        super().build_extensions()

    def get_ext_filename(self, fullname: str) -> str:
        *packages, name = fullname.split(".")
        return os.path.join(*packages, f"{SHIM}.so") if name == SHIM else super().get_ext_filename(fullname)


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


setup(ext_modules=[native_module(), fault_shim(), *cython_modules()], cmdclass={"build_ext": BuildNative})
