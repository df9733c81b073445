# SPDX-License-Identifier: Apache-2.0
"""The real supervisor with the fake children. argv[1]: configuration file. stdout: one line, the ports, when ready.

<FAKE_DIR>/hung_after_s: after how long a worker counts as hung.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import uvloop

from xksfast.config import load_config
from xksfast.errors import OperatorError
from xksfast.log import finish
from xksfast.proxy.bound import Bound
from xksfast.proxy.supervisor import Supervisor
from xksfast.proxy.watchdog import HUNG_AFTER_S


def ready(bound: Bound) -> None:
    ports = {
        kind: [listener.address[1] for listener in bound.proxy if listener.tls == (kind == "tls")] for kind in ("plain", "tls")
    }
    print(json.dumps(ports), flush=True)


path = Path(sys.argv[1])
patience = Path(os.environ["FAKE_DIR"]) / "hung_after_s"
hung_after_s = float(patience.read_text()) if patience.exists() else HUNG_AFTER_S
command = (sys.executable, str(Path(__file__).parent / "fake_child.py"))
try:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        code = runner.run(Supervisor(load_config(path), path, ready, command=command, hung_after_s=hung_after_s).run())
except OperatorError as error:
    finish()
    print(error, file=sys.stderr)
    code = getattr(error, "exit_code", 2)
sys.exit(code)
