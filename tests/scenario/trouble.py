# SPDX-License-Identifier: Apache-2.0
"""What tests of databases in trouble have in common: file systems that are small, asking a node, and what it says of itself."""

from __future__ import annotations

import os
import shutil
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.scenario.nodes import Deployment, Node, Traffic
from tests.servers import wait_until


def made(proxies: Deployment) -> dict[str, Any]:
    """A store with two keys, served by every node; its credential."""
    store = proxies.shell(
        "store", "create", "pay", "--uri-path-prefix", "/pay", "--region", "us-east-1", "--key-source", "local"
    )
    for key in ("k1", "k2"):
        proxies.shell("key", "create", "pay", key)
    credential: dict[str, Any] = store["credential"]
    wait_until(lambda: answers(proxies, credential, "k2") == {"ok"}, "served by every node", 20)
    copies = [node.directory / "state" / "copy.jsonl" for node in proxies.nodes]
    wait_until(lambda: all(copy.exists() and '"k2"' in copy.read_text() for copy in copies), "copied by every node", 30)
    return credential


def answers(proxies: Deployment, credential: dict[str, Any], key: str) -> set[str]:
    """What each node says to an Encrypt."""
    return {client.call("encrypt").error or "ok" for client in proxies.clients(credential, "/pay", key)}


class Scene:
    """Nodes with a store "pay" and the keys k1 and k2, of which k2 is served whatever happens."""

    def __init__(self, proxies: Deployment) -> None:
        self.proxies = proxies
        self.credential = made(proxies)

    def served(self, key: str = "k2") -> set[str]:
        """What each node says to an Encrypt."""
        return answers(self.proxies, self.credential, key)

    @contextmanager
    def is_served(self) -> Iterator[None]:
        """Key k2 all the while, by every node, without a single refusal."""
        with Traffic(self.proxies.clients(self.credential, "/pay", "k2"), pause_s=0.1) as traffic:
            yield
        assert set(traffic.answers["served"]) == {"ok"}, traffic.answers


def may_mount() -> bool:
    """Whether this process may have a file system of its own."""
    return shutil.which("mount") is not None and os.geteuid() == 0 and subprocess.run(["unshare", "-m", "true"]).returncode == 0


@contextmanager
def small_file_system(directory: Path, mebibytes: int) -> Iterator[Path]:
    """In memory; its size is its limit."""
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m,mode=0777", "tmpfs", str(directory)], check=True)
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)
        directory.rmdir()


def read_only(directory: Path, yes: bool) -> None:
    """The whole file system, from now on."""
    subprocess.run(["mount", "-o", f"remount,{'ro' if yes else 'rw'}", str(directory)], check=True)


@contextmanager
def no_room(directory: Path) -> Iterator[None]:
    """Not a byte more finds a place on this file system."""
    filler = directory / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            pass
    try:
        yield
    finally:
        filler.unlink()


def run(proxies: Deployment, *arguments: str, node: int = 0) -> tuple[int, str, str]:
    """`xksfast …` against one node: exit code, stdout, stderr."""
    environment = {
        **os.environ,
        "XKSFAST_ADMIN_URL": proxies.nodes[node].admin_url,
        "XKSFAST_ADMIN_CA": proxies.ca_file,
        "XKSFAST_ADMIN_TOKEN": proxies.token(),
    }
    ran = subprocess.run(
        [sys.executable, "-m", "xksfast", *arguments], env=environment, capture_output=True, text=True, timeout=90
    )
    return ran.returncode, ran.stdout, ran.stderr


@contextmanager
def api(proxies: Deployment, node: int = 0) -> Iterator[httpx.Client]:
    """The REST interface of one node, for who may do everything."""
    with httpx.Client(
        base_url=proxies.nodes[node].admin_url,
        verify=ssl.create_default_context(cafile=proxies.ca_file),
        headers={"Authorization": f"Bearer {proxies.token()}"},
        timeout=30,
        trust_env=False,
    ) as client:
        yield client


def refused(answer: httpx.Response) -> dict[str, Any]:
    """A problem that says what is wrong and what to do next."""
    assert answer.status_code == 503, (answer.status_code, answer.text)
    assert answer.headers["content-type"] == "application/problem+json"
    document = answer.json()
    assert document["detail"]
    assert document["next"]
    return dict(document)


def status(node: Node) -> dict[str, Any]:
    """The status document."""
    return dict(httpx.get(f"http://127.0.0.1:{node.health_port}/status", trust_env=False, timeout=10).json())


def says(node: Node, *words: str) -> None:
    """Wait until the node's status names the problem in all of these words."""

    deadline = time.monotonic() + 30
    found: dict[str, Any] = {}
    while time.monotonic() < deadline:
        found = status(node)
        if found["status"] == "degraded" and all(word in " ".join(found["problems"]) for word in words):
            return
        time.sleep(0.1)
    raise AssertionError(f"{node.name} should say {words}, but says {found['problems']}")


def is_well(node: Node) -> None:
    """Wait until the node has nothing to complain of."""
    wait_until(lambda: status(node)["status"] == "ok", f"{node.name} is well", 30)


def logged(node: Node, event: str) -> list[dict[str, Any]]:
    """The log lines of one event."""
    assert node.process is not None
    return node.process.events(event)
