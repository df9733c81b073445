# SPDX-License-Identifier: Apache-2.0
"""Tokens to measure on: NSS softoken and SoftHSM2 in a directory, with keys k0, k1, ..., bare or behind the fault shim.

bench/token.c makes the keys and runs the bare loops. A newcomer's trap: NSS takes 2.4 ms of CPU to make a key in its database, so
10,000 keys are half a minute; what needs more external key ids lets several share a key.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from bench.processes import SERVER_CORE
from xksfast.admin.dev import NSS_MODULES, SOFTHSM_MODULES

ROOT = Path(__file__).resolve().parents[1]
PIN = "12345678"


@dataclass(frozen=True)
class Token:
    """How a PKCS#11 module reaches a token. pin "": no login. environment: what the module reads when it is loaded."""

    kind: str
    module: str
    parameters: str
    label: str
    pin: str
    profile: str
    environment: dict[str, str] = field(default_factory=dict)

    def command(self, program: Path, *arguments: object) -> list[str]:
        """bench/token.c on this token."""
        fixed = [str(program), self.module, self.parameters or "-", self.label, self.pin or "-", self.profile]
        return fixed + [str(argument) for argument in arguments]


@dataclass(frozen=True)
class BareLoop:
    """Operations per second, CPU of the process per operation, and the call's own time, in microseconds."""

    ops_per_s: float
    cpu_us: float
    p50_us: float
    p99_us: float


def compile_with_product(source: str) -> Path:
    """A C file of bench/ with every C file of the product, as the product is compiled; build/bench/<name>, made when out of date."""
    program, main = ROOT / "build" / "bench" / source.removesuffix(".c"), ROOT / "bench" / source
    sources = [main, *sorted((ROOT / "csrc").glob("*.c"))]
    newest = max(path.stat().st_mtime for path in [*sources, *(ROOT / "csrc").glob("*.h")])
    if not program.exists() or program.stat().st_mtime < newest:
        program.parent.mkdir(parents=True, exist_ok=True)
        new = program.with_name(f"{program.name}.{os.getpid()}")
        subprocess.run(
            [
                "gcc", "-std=c11", "-O3", "-fvisibility=hidden", "-D_GNU_SOURCE", '-DXKS_VERSION="bench"', f"-I{ROOT / 'csrc'}",
                f"-I{ROOT / 'csrc/third_party/pkcs11-3.1'}", *map(str, sources), "-lssl", "-lcrypto", "-lpthread", "-ldl", "-lm",
                "-o", str(new),
            ],
            check=True,
        )  # fmt: skip
        new.replace(program)
    return program


def _module(paths: tuple[str, ...], package: str) -> str:
    found = next((path for path in paths if Path(path).exists()), None)
    if found is None:
        raise RuntimeError(f"there is none of {', '.join(paths)}: apt-get install {package}")
    return found


def nss_module() -> str:
    """The path of libsoftokn3.so."""
    return _module(NSS_MODULES, "libnss3")


def make_token(kind: str, directory: Path, keys: int, program: Path) -> Token:
    """A new token of kind "nss" or "softhsm" with `keys` keys. program: bench/token.c, compiled."""
    directory.mkdir(parents=True, exist_ok=True)
    if kind == "softhsm":
        conf, objects = directory / "softhsm2.conf", directory / "tokens"
        objects.mkdir()
        conf.write_text(f"directories.tokendir = {objects}\nobjectstore.backend = file\nlog.level = ERROR\n")
        environment = {"SOFTHSM2_CONF": str(conf)}
        token = Token(kind, _module(SOFTHSM_MODULES, "softhsm2"), "", "t0", PIN, "softhsm", environment)
        _run(["softhsm2-util", "--init-token", "--free", "--label", "t0", "--pin", PIN, "--so-pin", PIN], environment)
    else:
        database = directory / "nss"
        database.mkdir()
        _run(["certutil", "-N", "-d", f"sql:{database}", "--empty-password"], {})
        parameters = f"configdir='sql:{database}' certPrefix='' keyPrefix='' secmod='' dbTokenDescription='t0' flags="
        token = Token(kind, nss_module(), parameters, "t0", "", "nss")
    _run(token.command(program, "keys", 0, keys), token.environment, timeout_s=600)
    return token


def bare_loop(
    token: Token, program: Path, *, keys: int = 1, threads: int = 1, seconds: float = 1, rate: float = 0, messages: bool = True
) -> BareLoop:
    """The token's own limit: its calls in a loop, pinned to the core on which a proxy is measured."""
    command = ["taskset", "-c", str(SERVER_CORE), *token.command(program, "loop", keys, threads, seconds, rate, int(messages))]
    output = _run(command, token.environment, timeout_s=seconds + 60)
    values = {name: float(value) for name, value in (line.split() for line in output.splitlines())}
    return BareLoop(**values)


def _run(command: list[str], environment: dict[str, str], timeout_s: float = 60) -> str:
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=timeout_s, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]} failed: {done.stderr.strip()[:500]}")
    return done.stdout
