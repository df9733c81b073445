# SPDX-License-Identifier: Apache-2.0
"""A command of the shell, run in this process, and what it left behind."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from xksfast import cli

Run = Callable[..., "Ran"]


@dataclass
class Ran:
    """code: its exit code. err: without the log of a listener in this process."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Its only line on stdout."""
        (line,) = self.out.splitlines()
        return json.loads(line)


def runner(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], url: str, token: str, ca_file: str) -> Run:
    """Runs commands that administer what answers at `url`."""
    for name, value in (("URL", url), ("TOKEN", token), ("CA", ca_file)):
        monkeypatch.setenv(f"XKSFAST_ADMIN_{name}", value)

    def run(*arguments: str) -> Ran:
        monkeypatch.setattr(sys, "argv", ["xksfast", *arguments])
        capfd.readouterr()
        code = cli.main()
        said = capfd.readouterr()
        lines = [line for line in said.err.splitlines(keepends=True) if not line.startswith('{"ts":')]
        return Ran(code, said.out, "".join(lines))

    return run
