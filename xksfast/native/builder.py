# SPDX-License-Identifier: Apache-2.0
"""Builds `xksfast.native._xks` with cffi in API mode from the C in csrc/.

The C headers are the only declaration: this module turns them into cffi's cdef by dropping what cffi cannot read (the
preprocessor's lines and our attribute macro). A newcomer's trap: a header listed in HEADERS must hold declarations only, no
`static inline` function and no macro with arguments.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from cffi import FFI

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"

# In the order in which they depend on each other: cffi needs a type before its use.
HEADERS = (
    "xks_status.h",
    "xks_bytes.h",
    "xks_clock.h",
    "xks_schedule.h",
    "xks_base64.h",
    "xks_hex.h",
    "xks_hash.h",
    "xks_random.h",
    "xks_secret.h",
    "xks_subkey.h",
    "xks_seal.h",
    "xks_sigv4.h",
    "xks_aad.h",
    "xks_metadata.h",
    "xks_aes_gcm.h",
    "xks_json.h",
    "xks_tls.h",
    "xks_job.h",
    "xks_local.h",
    "xks_router.h",
    "xks_ckr_name.h",
    "xks_engine.h",
    "xks_p11_provision.h",
    "xks_p11_admin.h",
    "xks_p11_master.h",
    "xks_p11_measure.h",
    "xks_api.h",
    "shim/xksfault_control.h",
)

WARNINGS = ("-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Wvla")
HARDENING = ("-fstack-protector-strong", "-D_FORTIFY_SOURCE=2", "-fPIC")


def sources() -> list[str]:
    """The C files of the product, relative to the root: everything directly in csrc/."""
    return sorted(str(path.relative_to(ROOT)) for path in CSRC.glob("*.c"))


def compile_args() -> list[str]:
    """Compiler flags of style.md. XKS_WERROR=1 (CI) makes a warning an error."""
    args = ["-std=c11", "-O3", "-fvisibility=hidden", *WARNINGS, *HARDENING]
    if os.environ.get("XKS_WERROR") == "1":
        args.append("-Werror")
    return args


def declarations(header: str) -> str:
    """The text of one header as cffi reads it: no preprocessor lines but integer #defines, no attribute macros."""
    kept = []
    for line in (CSRC / header).read_text().splitlines():
        if re.match(r"#define\s+XKS_\w+\s+\(?\d+\)?(\s|$)", line):
            kept.append(line.split("/*")[0])
        elif not line.lstrip().startswith("#"):
            kept.append(line.replace("XKS_MUST_CHECK ", ""))
    return "\n".join(kept)


def make_ffibuilder(version: str) -> FFI:
    """The cffi builder of the native module, carrying `version`."""
    builder = FFI()
    builder.cdef("\n".join(declarations(header) for header in HEADERS))
    builder.set_source(
        "xksfast.native._xks",
        "\n".join(f'#include "{header}"' for header in HEADERS),
        sources=sources(),
        include_dirs=["csrc", "csrc/third_party/pkcs11-3.1"],
        libraries=["ssl", "crypto", "pthread", "dl"],
        define_macros=[("XKS_VERSION", f'"{version}"'), ("_GNU_SOURCE", "1")],
        extra_compile_args=compile_args(),
    )
    return builder
