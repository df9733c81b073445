# SPDX-License-Identifier: Apache-2.0
"""Several nodes of one deployment: `xksfast serve` over one database and one SoftHSM token, and the shell to administer them."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.requests import Target
from tests.client import Answer, Client
from tests.servers import Process, free_port, wait_until
from tests.setups import SOFTHSM, toml
from xksfast.admin.dev_certificates import Authority, CertificateFiles

REGION = "us-east-1"


@dataclass
class Node:
    """One node. port: plain HTTP of its proxy."""

    name: str
    directory: Path
    port: int
    tls_port: int
    admin_port: int
    health_port: int
    process: Process | None = None

    @property
    def config(self) -> Path:
        return self.directory / "xksfast.toml"

    @property
    def admin_url(self) -> str:
        return f"https://localhost:{self.admin_port}"

    def start(self, environment: dict[str, str] | None = None, *arguments: str) -> None:
        """Serving when it returns."""
        process = self.process = Process(
            ["serve", "--config", str(self.directory / "xksfast.toml"), *arguments], self.directory, environment
        )

        def look() -> bool:
            assert process.popen.poll() is None, process.log_file.read_text()[-4000:]
            return bool(process.events("worker_ready")) and bool(process.events("admin_listening"))

        wait_until(look, f"node {self.name} serves", 60)


@dataclass
class Deployment:
    """Nodes that share a state. Commands go to the first one."""

    directory: Path
    nodes: list[Node]
    authority: Authority
    opened: list[Client] = field(default_factory=list)

    @property
    def ca_file(self) -> str:
        return str(self.authority.files.certificate)

    def token(self) -> str:
        """Of the operator "root", whichever node made it."""
        for node in self.nodes:
            path = node.directory / "admin.token"
            if path.exists():
                return path.read_text().strip()
        raise AssertionError("no node has written admin.token")

    def shell(self, *arguments: str, code: int = 0) -> Any:
        """`xksfast … --json`: what it printed; it must end with this exit code."""
        environment = {
            **os.environ,
            "XKSFAST_ADMIN_URL": self.nodes[0].admin_url,
            "XKSFAST_ADMIN_CA": self.ca_file,
            "XKSFAST_ADMIN_TOKEN": self.token(),
        }
        ran = subprocess.run(
            [sys.executable, "-m", "xksfast", *arguments, "--json"], env=environment, capture_output=True, text=True, timeout=90
        )
        assert ran.returncode == code, (arguments, ran.returncode, ran.stdout[-600:], ran.stderr[-1500:])
        return json.loads(ran.stdout) if ran.stdout.strip() else None

    def clients(self, credential: dict[str, Any], prefix: str, key: str) -> list[Client]:
        """One for each node; closed with the deployment."""
        made = [
            Client(
                {"keys": {"default": key}},
                Target(
                    f"http://127.0.0.1:{node.port}",
                    prefix,
                    REGION,
                    credential["access_key_id"],
                    credential["secret_access_key"],
                ),
            )
            for node in self.nodes
        ]
        self.opened += made
        return made

    def close_clients(self) -> None:
        """All that were opened so far."""
        for client in self.opened:
            client.close()
        self.opened.clear()

    def log(self) -> str:
        """What all nodes have logged."""
        return "".join(node.process.log_file.read_text() for node in self.nodes if node.process is not None)


@contextmanager
def deployment(
    directory: Path, url: str | Mapping[str, str], names: Sequence[str], hosts: Sequence[str] = (), workers: int = 1
) -> Iterator[Deployment]:
    """Nodes `names` on the database `url`, started one after the other; each must end with exit code 0.

    url: by which all of them reach it, or each by a way of its own, by name.
    """
    tokens, conf = directory / "tokens", directory / "softhsm2.conf"
    tokens.mkdir()
    conf.write_text(f"directories.tokendir = {tokens}\nlog.level = ERROR\n")
    environment = {"SOFTHSM2_CONF": str(conf)}
    subprocess.run(
        ["softhsm2-util", "--init-token", "--free", "--label", "t0", "--pin", "1234", "--so-pin", "12345678"],
        env={**os.environ, **environment},
        check=True,
        capture_output=True,
    )
    authority = Authority(directory)
    certificate = CertificateFiles(directory / "server.pem", directory / "server.key")
    authority.issue_server(certificate, (*hosts, "localhost", "127.0.0.1"))
    for name, text in (("pin", "1234"), ("master.key", os.urandom(32).hex())):
        (directory / name).write_text(text + "\n")
        (directory / name).chmod(0o600)
    nodes = [Node(name, directory / name, *(free_port() for _ in range(4))) for name in names]
    for node in nodes:
        node.directory.mkdir()
        (node.directory / "xksfast.toml").write_text(
            toml(_config(node, directory, url if isinstance(url, str) else url[node.name], environment, workers))
        )
    proxies = Deployment(directory, nodes, authority)
    try:
        for node in nodes:
            node.start()
        yield proxies
        for node in nodes:
            assert node.process is not None
            assert node.process.stop() == 0
    finally:
        proxies.close_clients()
        for node in nodes:
            if node.process is not None and node.process.popen.poll() is None:
                node.process.popen.kill()
                node.process.popen.wait(10)


def _config(node: Node, directory: Path, url: str, environment: dict[str, str], workers: int) -> dict[str, Any]:
    return {
        "proxy": {
            "workers": workers,
            "listen": [f"127.0.0.1:{node.tls_port}"],
            "plaintext_listen": [f"127.0.0.1:{node.port}"],
            "tls": {"certificate": str(directory / "server.pem"), "private_key": str(directory / "server.key")},
            "health": {"listen": f"127.0.0.1:{node.health_port}", "probe_interval_s": 1},
        },
        "admin": {
            "listen": f"127.0.0.1:{node.admin_port}",
            "node": node.name,
            "url": node.admin_url,
            "ca_file": str(directory / "dev-ca.pem"),
        },
        "state": {"url": url, "master_key_file": str(directory / "master.key")},
        "modules": {"hsm": {"path": SOFTHSM, "environment": environment}},
        "partitions": {
            "p0": {
                "module": "hsm", "token_label": "t0", "pin_file": str(directory / "pin"), "profile": "softhsm", "sessions": 2,
            }
        },
        "partition_groups": {"main": {"partitions": ["p0"]}},
    }  # fmt: skip


@dataclass
class Traffic:
    """Requests to every node all the while: what each was answered with, by phase."""

    clients: list[Client]
    answers: dict[str, Counter[str]] = field(default_factory=dict)
    phase: str = "served"
    pause_s: float = 0.02
    old: dict[str, Any] | None = None  # a ciphertext that must decrypt in every phase that serves

    def __enter__(self) -> Traffic:
        self._stop = threading.Event()
        self._in_use = self.clients
        self._thread = threading.Thread(target=self._run, name="traffic")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)

    def use(self, clients: list[Client]) -> None:
        """Sign with another credential from now on: no request with the former one is under way when this returns."""
        self.clients = clients
        wait_until(lambda: self._in_use is clients, "the other credential is used", 60)

    def begin(self, phase: str) -> None:
        """Answers from now on count for this phase; those to requests that are under way for none."""
        self.phase = phase

    def _run(self) -> None:
        while not self._stop.is_set():
            self._in_use = self.clients
            for client in self._in_use:
                phase = self.phase
                answer = _patiently(client, "encrypt")
                said = answer.error or "ok"
                if said == "ok":
                    opened = _patiently(client, "decrypt", client.decrypt_document(self.old or answer.document))
                    said = opened.error or "ok"
                if phase == self.phase:
                    self.answers.setdefault(phase, Counter())[said] += 1
            time.sleep(self.pause_s)


def served_everywhere(clients: Sequence[Client]) -> None:
    """A change is there on all nodes within a second, more on a busy machine. What one encrypts, each decrypts."""
    wait_until(lambda: all(client.call("encrypt").status == 200 for client in clients), "served by every node", 10)
    plain = base64.b64encode(b"Hello World!").decode()
    for client in clients:
        sealed = client.call("encrypt").document
        for other in clients:
            assert other.call("decrypt", other.decrypt_document(sealed)).document["plaintext"] == plain


def _patiently(client: Client, operation: str, document: dict[str, Any] | None = None) -> Answer:
    """Once more when the node could not answer within its deadline, as AWS's SDKs do: a machine may stand still for that long."""
    answer = client.call(operation, document)
    if answer.error in ("DependencyTimeoutException", "ThrottlingException"):
        answer = client.call(operation, document)
    return answer
