# SPDX-License-Identifier: Apache-2.0
"""Closing the engine while one of its threads is inside the module. In a child process: a module is initialised once in each."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.servers import wait_until
from tests.setups import Faults, Setup

CLOSES_TWICE = """
import sys
from xksfast.native.crypto import Secret
from xksfast.native.engine import Engine

engine = Engine(max_queued=10, probe_interval_s=10.0)
module = engine.add_module(sys.argv[1])
partition = engine.add_partition(name="p0", module=module, token_label="t0", pin=Secret.from_file(sys.argv[2]), sessions=1)
engine.add_group([partition])
engine.start()
sys.stdin.readline()
print(engine.close(0.05), flush=True)
sys.stdin.readline()
print(engine.close(60.0), engine.close(), flush=True)
"""


def test_close_says_how_many_threads_are_inside_the_module_and_can_wait_until_none_is(tmp_path: Path) -> None:
    setup, faults = Setup(tmp_path), Faults(tmp_path)
    setup.use_softhsm(module=str(faults.module), environment=faults.environment)
    slot = faults.control.slot(0).hang(classes=["login"])
    child = subprocess.Popen(
        [sys.executable, "-c", CLOSES_TWICE, str(faults.module), str(tmp_path / "pin")],
        env={**os.environ, **setup.softhsm_environment, **faults.environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with child:
        assert child.stdin
        assert child.stdout
        wait_until(lambda: slot.counters().hung == 1, "a thread inside C_Login", 20)
        child.stdin.write("\n")
        child.stdin.flush()
        assert child.stdout.readline() == "1\n"
        slot.release()
        child.stdin.write("\n")
        child.stdin.flush()
        assert child.stdout.readline() == "0 0\n"
    assert child.returncode == 0
