# SPDX-License-Identifier: Apache-2.0
"""Who may know whom, where import-linter does not look: Cython modules and C. And rules that a grep can hold."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"

# Package rooms from the top; a module imports from rooms below its own, or from its own.
ROOMS = ["proxy", "ekm", "wire", "native", "errors"]

# Layers of csrc/ from the bottom. A file includes headers of its own or a lower layer.
C_LAYERS = [
    ["xks_status", "xks_bytes", "xks_clock", "xks_schedule", "xks_base64", "xks_hex"],
    ["xks_hash", "xks_random", "xks_secret"],
    ["xks_sigv4", "xks_aad", "xks_metadata", "xks_aes_gcm", "xks_json", "xks_subkey", "xks_seal", "xks_tls"],
    ["xks_job"],
    ["xks_local", "xks_pkcs11", "xks_ckr_name", "xks_ckr"],
    ["xks_router", "xks_router_internal", "xks_router_pick", "xks_router_estimate"],
    ["xks_p11_quirks", "xks_p11_module", "xks_p11_message", "xks_p11_token", "xks_p11_key", "xks_p11_gcm", "xks_p11_self_test",
     "xks_p11_provision", "xks_p11_login", "xks_p11_admin", "xks_p11_master", "xks_p11_measure", "xks_reference_store"],
    ["xks_engine", "xks_engine_internal", "xks_engine_key_types", "xks_engine_bring_up",
     "xks_engine_dispatch", "xks_engine_identity", "xks_engine_keeper", "xks_engine_keys", "xks_engine_lookup", "xks_engine_module",
     "xks_engine_place", "xks_engine_queue", "xks_engine_settle", "xks_engine_status", "xks_engine_verdict",
     "xks_engine_worker"],
    ["xks_api"],
]  # fmt: skip


def c_layer(stem: str) -> int:
    found = [i for i, layer in enumerate(C_LAYERS) if stem in layer]
    assert found, f"{stem} stands in no layer: add it to C_LAYERS, and to the right one"
    return found[0]


def c_files() -> list[Path]:
    return sorted([*CSRC.glob("*.c"), *CSRC.glob("*.h")])


def shim_files() -> list[Path]:
    return sorted([*(CSRC / "shim").glob("*.c"), *(CSRC / "shim").glob("*.h")])


def code_of(path: Path) -> str:
    """The file without comments and strings."""
    text = re.sub(r"/\*.*?\*/", "", path.read_text(), flags=re.S)
    return re.sub(r'"(\\.|[^"\\])*"', '""', text)


def test_import_linter_finds_nothing() -> None:
    linter = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run([str(linter), "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", sorted((ROOT / "xksfast").rglob("*.p[yx][xd]")), ids=lambda path: path.name)
def test_cython_modules_import_to_the_right_only(path: Path) -> None:
    room = path.relative_to(ROOT / "xksfast").parts[0]
    for imported in re.findall(r"^\s*(?:from|cimport|import) xksfast\.(\w+)", path.read_text(), flags=re.M):
        assert ROOMS.index(imported) >= ROOMS.index(room), f"{path.name} ({room}) imports {imported}"


@pytest.mark.parametrize("path", sorted((ROOT / "xksfast").rglob("*.pyx")), ids=lambda path: path.name)
def test_every_cython_module_that_python_uses_has_a_stub(path: Path) -> None:
    inner = {"exchange", "http_refusals", "http_rules", "refusals", "request_line"}  # used by other Cython modules only
    assert path.with_suffix(".pyi").exists() or path.stem in inner


@pytest.mark.parametrize("path", c_files(), ids=lambda path: path.name)
def test_c_files_include_their_own_or_lower_layers(path: Path) -> None:
    own = c_layer(path.stem)
    for included in re.findall(r'#include "(\w+)\.h"', path.read_text()):
        assert c_layer(included) <= own, f"{path.name} includes {included}.h, which is above it"


@pytest.mark.parametrize("path", [*c_files(), *shim_files()], ids=lambda path: path.name)
def test_c_files_keep_the_house_rules(path: Path) -> None:
    code = code_of(path)
    assert "Python.h" not in code
    assert path.read_text().startswith("/* SPDX-License-Identifier: Apache-2.0 */\n")
    mutable = [
        line
        for line in re.findall(r"^static [^(\n]*[;=]", code, flags=re.M)
        if " const " not in line and not line.startswith("static const ")
    ]
    # A PKCS#11 module is called through bare functions and must keep its state somewhere: in one file.
    assert mutable == [] or path.name == "shim_state.c", "no mutable file-scope variable"


@pytest.mark.parametrize("path", shim_files(), ids=lambda path: path.name)
def test_the_shim_knows_of_the_product_the_pkcs11_headers_only(path: Path) -> None:
    for included in re.findall(r'#include "([\w./]+)\.h"', path.read_text()):
        assert included.startswith(("shim_", "xksfault_control")) or included == "xks_pkcs11"


def test_secrets_are_not_compared_with_memcmp() -> None:
    for name in ("xks_sigv4.c", "xks_local.c", "xks_engine_worker.c", "xks_aes_gcm.c"):
        for call in re.findall(r"memcmp\(([^;]*)\)", code_of(CSRC / name)):
            assert not re.search(r"signature|expected|given|tag|plaintext|secret|->input|->output", call), (
                f"{name}: memcmp({call})"
            )


def test_ckr_values_stand_in_the_pkcs11_files_only() -> None:
    for path in c_files():
        if not path.stem.startswith(("xks_ckr", "xks_p11", "xks_engine", "xks_pkcs11")):
            assert not re.search(r"\bCKR_[A-Z]", code_of(path)), path.name


def test_http_statuses_of_the_api_stand_in_errors_and_wire_only() -> None:
    for path in (ROOT / "xksfast").rglob("*.py"):
        if path.name != "errors.py" and "wire" not in path.parts:
            assert not re.search(r"XksError\([^)]*\b[45]\d\d\b", path.read_text()), path


def test_no_room_is_crowded() -> None:
    """500 lines want a reason; it stands here."""
    reasons = {
        "xks_engine.c": "the handle's whole interface; splitting it would spread its locks over files",
        "xks_sigv4.c": "one algorithm, read from top to bottom",
    }
    for path in [*c_files(), *shim_files(), *(ROOT / "xksfast").rglob("*.py"), *(ROOT / "xksfast").rglob("*.pyx")]:
        if path.name not in reasons:
            assert len(path.read_text().splitlines()) <= 500, path
