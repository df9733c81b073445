# SPDX-License-Identifier: Apache-2.0
"""The proxies that a load test starts: `xksfast dev`, or `xksfast serve` over two partitions that can be made to fail."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.processes import SERVER_CORE, children, xksfast_dev

START_TIMEOUT_S = 30


@dataclass(frozen=True)
class Served:
    """target_file: what `xksfast dev --json` prints; status_url: the health listener; worker_pid: 0 for a server elsewhere.

    fault_control: the fault shim's control file, "" when there is none.
    """

    target_file: Path
    status_url: str = ""
    worker_pid: int = 0
    fault_control: str = ""


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
    """`xksfast serve` over `count` partitions with the same key: virtual slots of the fault shim, each call of `call_ms` median.

    Made by `xksfast dev` on NSS softoken, then its only partition is replaced by those of the shim over the same database.
    """
    from xksfast.rehearsal.control import FaultControl, shim_path
    from xksfast.rehearsal.latency import lognormal_ms

    with tempfile.TemporaryDirectory(prefix="xksfast-load-") as name:
        directory = Path(name)
        with xksfast_dev("nss", data=directory) as server:
            ready = server.ready
        control_file, config_file = directory / "faults", directory / "xksfast.toml"
        written = tomllib.loads(config_file.read_text())
        module, token = written["modules"]["hsm"], written["partitions"]["p0"]["token_label"]
        with FaultControl.create(control_file, slots=count) as control:
            for slot in control.slots():
                slot.named(f"p{slot.number}", real_label=token).latency(lognormal_ms(call_ms))
            environment = control.environment(module["path"])
        ports = [free_port() for _ in range(2)]
        config_file.write_text(_config(written, str(shim_path()), environment, count, ports))
        stores = directory / "stores.toml"
        stores.write_text(stores.read_text().replace("create = true\n", ""))  # they are there; all slots lead to the same token
        ready = {**ready, "url": f"http://127.0.0.1:{ports[0]}"}
        with _serve(config_file, f"http://127.0.0.1:{ports[1]}") as worker_pid:
            yield Served(write_target(directory, ready), f"http://127.0.0.1:{ports[1]}", worker_pid, str(control_file))


def _config(written: dict[str, Any], shim: str, environment: dict[str, str], count: int, ports: list[int]) -> str:
    names = [f"p{number}" for number in range(count)]
    variables = ", ".join(f"{name} = {json.dumps(value)}" for name, value in environment.items())
    lines = [
        "[proxy]",
        f'listen = ["127.0.0.1:{ports[0]}"]',
        "[proxy.health]",
        f'listen = "127.0.0.1:{ports[1]}"',
        "probe_interval_s = 1",
        "[state]",
        f"url = {json.dumps(written['state']['url'])}",
        f"master_key_file = {json.dumps(written['state']['master_key_file'])}",
        "[modules.hsm]",
        f"path = {json.dumps(shim)}",
        f"environment = {{ {variables} }}",
        f"parameters = {json.dumps(written['modules']['hsm']['parameters'])}",
    ]
    for name in names:
        lines += [f"[partitions.{name}]", 'module = "hsm"', f'token_label = "{name}"', 'profile = "nss"']
    return "\n".join([*lines, "[partition_groups.main]", f"partitions = {json.dumps(names)}"]) + "\n"


@contextmanager
def _serve(config_file: Path, health_url: str) -> Iterator[int]:
    """`xksfast serve` on the server core; the pid of its worker once /readyz says so."""
    command = ["taskset", "-c", str(SERVER_CORE), sys.executable, "-m", "xksfast", "serve", "--config", str(config_file)]
    log_file = config_file.parent / "serve.log"
    with log_file.open("wb") as log:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log)
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not _is_ready(health_url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"xksfast serve did not get ready:\n{log_file.read_text()[-2000:]}")
            time.sleep(0.05)
        yield children(process.pid, "_worker")[0]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def _is_ready(health_url: str) -> bool:
    try:
        with urllib.request.urlopen(health_url + "/readyz", timeout=1) as response:
            return bool(response.status == 200)
    except OSError:
        return False


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
