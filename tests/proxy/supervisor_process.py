# SPDX-License-Identifier: Apache-2.0
"""The supervisor as a process, with children of tests/proxy/fakes/ that speak its messages and need no native code."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from tests.servers import free_port, wait_until
from xksfast.config import load_config

RUNNER = Path(__file__).parent / "fakes" / "run_supervisor.py"
ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 20.0

until = partial(wait_until, timeout_s=DEADLINE_S)


def process_exists(pid: int) -> bool:
    """Whether it runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Running:
    """One supervisor process."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config = directory / "xksfast.toml"
        self.health_port = load_config(self.config).proxy.health.listen.rpartition(":")[2]
        self.errors = directory / "stderr"
        environment = {**os.environ, "FAKE_DIR": str(directory), "PYTHONPATH": str(ROOT)}
        with self.errors.open("w") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, str(RUNNER), str(self.config)],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                process_group=0,
            )
        self.sockets: list[socket.socket] = []
        self.ports: dict[str, Any] = {"health": self.health_port}

    def wait_ready(self) -> None:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.errors.read_text()
        self.ports = {**json.loads(line), "health": self.health_port}

    def connect(self, kind: str = "plain") -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", self.ports[kind][0]), timeout=DEADLINE_S)
        self.sockets.append(sock)
        return sock

    def events(self, name: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.errors.read_text().splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == name]

    def health(self, path: str, method: str = "GET") -> tuple[int, dict[str, Any]]:
        request = urllib.request.Request(f"http://127.0.0.1:{self.ports['health']}{path}", method=method)
        try:
            with urllib.request.urlopen(request, timeout=DEADLINE_S) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def listening_port(self) -> int:
        """Of the proxy, before it has said so."""
        rows = [line.split() for line in Path(f"/proc/{self.process.pid}/net/tcp").read_text().splitlines()[1:]]
        inodes = {os.readlink(path) for path in Path(f"/proc/{self.process.pid}/fd").iterdir()}
        ports = {int(row[1].split(":")[1], 16) for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in inodes}
        (port,) = ports - {int(self.health_port)}
        return port

    def children(self) -> list[int]:
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                state, parent = path.read_text().rpartition(")")[2].split()[:2]
            except OSError:
                continue
            if int(parent) == self.process.pid and state != "Z":
                found.append(int(path.parent.name))
        return found

    def stop(self) -> int:
        for sock in self.sockets:
            sock.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(DEADLINE_S)


def ask(sock: socket.socket, line: str) -> str:
    sock.sendall(line.encode() + b"\n")
    return answer(sock)


def answer(sock: socket.socket) -> str:
    data = b""
    while not data.endswith(b"\n"):
        part = sock.recv(4096)
        if not part:
            return data.decode()
        data += part
    return data.decode().strip()


def write_config(directory: Path, *, workers: int = 2, proxy: str = "", tls: str = "", health: int = 0) -> None:
    (directory / "xksfast.toml").write_text(
        f'[proxy]\nlisten = ["127.0.0.1:0"]\nworkers = {workers}\n{proxy}\n{tls}\n'
        f'[proxy.health]\nlisten = "127.0.0.1:{health or free_port()}"\n[state]\nurl = "file:stores.toml"\n'
    )


@contextmanager
def supervisors(directory: Path) -> Iterator[Callable[..., Running]]:
    """Starts a supervisor with what it is given for write_config(); ready=False: does not wait for it. All end with the block."""
    made: list[Running] = []

    def start(*, ready: bool = True, **config: Any) -> Running:
        write_config(directory, **config)
        running = Running(directory)
        made.append(running)
        if ready:
            running.wait_ready()
        return running

    try:
        yield start
    finally:
        for running in made:
            (directory / "go").touch()
            children = running.children()
            running.stop()
            assert running.process.stdout is not None
            running.process.stdout.close()
            until(lambda pids=children: not any(process_exists(pid) for pid in pids), "no child outlives the supervisor")
