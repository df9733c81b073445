# SPDX-License-Identifier: Apache-2.0
"""The proxies that a load test starts: `xksfast dev`, or `xksfast serve` over two partitions that can be made to fail."""

from __future__ import annotations

import json
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.processes import xksfast_dev


@dataclass(frozen=True)
class Served:
    """target_file: what `xksfast dev --json` prints, None when the environment says it all (target.py).

    status_url: the health listener; worker_pid: 0 for a server elsewhere.

    fault_control: the fault shim's control file, "" when there is none.
    """

    target_file: Path | None
    status_url: str = ""
    worker_pid: int = 0
    fault_control: str = ""

    @property
    def target_argument(self) -> str:
        """For --target and read_target."""
        return str(self.target_file or "")


@contextmanager
def development(key_source: str) -> Iterator[Served]:
    """`xksfast dev` on the server core (bench/processes.py) with everything in a temporary directory."""
    health = f"127.0.0.1:{free_port()}"
    with (
        tempfile.TemporaryDirectory(prefix="xksfast-load-") as directory,
        xksfast_dev(key_source, "--health", health) as server,
    ):
        yield Served(write_target(Path(directory), server.ready), f"http://{health}", server.pid)


@contextmanager
def partitions(count: int = 2, call_ms: float = 1.0) -> Iterator[Served]:
    """`xksfast serve` over `count` partitions with the same key (bench/fleet.py), each call of them of call_ms median."""
    from bench.fleet import Plan, serving  # these need the native module, which a generator for a server elsewhere does not
    from bench.tokens import compile_with_product, make_token
    from xksfast.rehearsal.latency import lognormal_ms

    with tempfile.TemporaryDirectory(prefix="xksfast-load-") as name:
        directory = Path(name)
        token = make_token("nss", directory / "token", 1, compile_with_product("token.c"))
        with serving(Plan(partitions=count), token, directory / "serve") as fleet:
            assert fleet.control is not None
            for slot in fleet.control.slots():
                slot.latency(lognormal_ms(call_ms))
            facts = {**asdict(fleet.target()), "uri_path_prefix": fleet.target().prefix, "key": fleet.key_ids()[0]}
            target = write_target(directory, facts)
            yield Served(target, fleet.health_url, fleet.pid, str(directory / "serve" / "faults"))


def write_target(directory: Path, ready: dict[str, Any]) -> Path:
    """The target file, for the owner's eyes only: it holds the secret access key."""
    path = directory / "target.json"
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(ready, file)
    return path


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
