# SPDX-License-Identifier: Apache-2.0
"""`xksfast serve` over many partitions that can be made to fail: virtual slots of the fault shim over one token, so that all partitions
hold the same keys, as after a perfect replication.

What lives here: configuration, start, stop, and reading what the server and its partitions did. What must not: load, faults, goals.
A newcomer's trap: shares of the partitions are the shim's own counters, so they hold whatever the proxy says of itself, and count
health probes too.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.processes import SERVER_CORE, children, cpu_seconds, end
from bench.requests import Target, encrypt_document
from bench.tokens import Token
from xksfast.rehearsal.control import FaultControl, shim_path
from xksfast.rehearsal.latency import FUNCTION_CLASSES, OPERATIONS

REGION = "eu-central-1"
ACCESS_KEY_ID = "A" * 20
START_TIMEOUT_S = 60
_OPERATION_CLASSES = [FUNCTION_CLASSES[name] for name in OPERATIONS]


@dataclass(frozen=True)
class Plan:
    """partitions: 0 means `local` keys. keys: on the token, k0, k1, ...; key_ids: external key ids of each store, 0: one for each key,
    more: they share the keys. shim: partitions are virtual slots (else the token itself is the only one). login: C_Login is needed.
    """

    partitions: int = 1
    sessions: int = 16
    keys: int = 1
    key_ids: int = 0
    stores: int = 1
    shim: bool = True
    login: bool = False
    verify: str = "same"
    probe_interval_s: int = 1
    remote: tuple[int, ...] = ()  # partitions at another site than the proxy
    session_limit: int = 0  # that every partition allows; 0: none


@dataclass
class Fleet:
    """A running server. pid: its worker, whose CPU counts. control: the shim's; None without it."""

    plan: Plan
    pid: int
    url: str
    health_url: str
    secret_access_key: str
    control: FaultControl | None

    def target(self, store: int = 0) -> Target:
        """Where to send the requests of a key store."""
        return Target(self.url, f"/s{store}", REGION, ACCESS_KEY_ID, self.secret_access_key)

    def key_ids(self) -> list[str]:
        """The external key ids of each store."""
        return [f"k{number}" for number in range(self.plan.key_ids or self.plan.keys)]

    def cpu_seconds(self) -> float:
        """Of the worker and its threads, so far."""
        return cpu_seconds(self.pid)

    def operations(self) -> list[int]:
        """Encryptions and decryptions that reached each partition so far."""
        return self._counted("calls")

    def errors(self) -> list[int]:
        """Those of them that failed."""
        return self._counted("errors")

    def _counted(self, kind: str) -> list[int]:
        assert self.control is not None
        counters = self.control.words.counters
        return [sum(getattr(counters[i], kind)[k] for k in _OPERATION_CLASSES) for i in range(self.plan.partitions)]

    def wait_for_keys(self, *, timeout_s: float) -> None:
        """Until the first and the last key are served: a server is ready before its keepers have read every key of a large token."""
        deadline = time.monotonic() + timeout_s
        ids, target = self.key_ids(), self.target()
        for key in (ids[0], ids[-1]):
            while (answer := target.post(target.path(key, "encrypt"), encrypt_document()))[0] != 200:
                if time.monotonic() > deadline:
                    raise RuntimeError(f"{key} is not served within {timeout_s} s: {answer}")
                time.sleep(0.05)

    def status(self) -> dict[str, Any]:
        """GET /status of the health listener."""
        with urllib.request.urlopen(self.health_url + "/status", timeout=5) as response:
            document: dict[str, Any] = json.loads(response.read())
            return document

    def opens(self) -> list[int]:
        """How often the breaker of each partition has opened, as the proxy says."""
        by_name = {partition["name"]: int(partition["opens"]) for partition in self.status()["partitions"]}
        return [by_name[f"p{number}"] for number in range(self.plan.partitions)]


@contextmanager
def serving(plan: Plan, token: Token | None, directory: Path) -> Iterator[Fleet]:
    """Write everything into `directory`, start on the server core, wait until every session of every partition is open."""
    directory.mkdir(parents=True, exist_ok=True)
    secret = secrets.token_urlsafe(40).replace("-", "+").replace("_", "/")
    write_secret(directory / "credential", secret)
    write_secret(directory / "master.key", secrets.token_hex(32))
    write_secret(directory / "pin", token.pin if token is not None and token.pin else "1234")
    control = FaultControl.create(directory / "faults", slots=plan.partitions) if plan.shim and plan.partitions else None
    for slot in control.slots() if control is not None and token is not None else []:
        slot.named(f"p{slot.number}", real_label=token.label)  # NSS has a token without a database before it in its list
        slot.max_sessions(plan.session_limit).login_with_any_pin(plan.login)
    port, health_port = free_port(), free_port()
    config = directory / "xksfast.toml"
    config.write_text(_config(plan, token, control, port, health_port))
    (directory / "stores.toml").write_text(_stores(plan))
    command = ["taskset", "-c", str(SERVER_CORE), sys.executable, "-m", "xksfast", "serve", "--config", str(config)]
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log)
    try:
        health_url = f"http://127.0.0.1:{health_port}"
        _wait_until_ready(process, health_url, plan, control, directory / "log")
        yield Fleet(plan, children(process.pid, "_worker")[0], f"http://127.0.0.1:{port}", health_url, secret, control)
    finally:
        if control is not None:
            control.reset()
        try:
            end(process)
        finally:
            if control is not None:
                control.close()


def _wait_until_ready(
    process: subprocess.Popen[bytes], health_url: str, plan: Plan, control: FaultControl | None, log: Path
) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S + (plan.keys + plan.stores * (plan.key_ids or plan.keys)) * 0.004
    while not (_answers(health_url + "/readyz") and _sessions_are_open(plan, control)):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"xksfast serve did not get ready:\n{log.read_text()[-1500:]}")
        time.sleep(0.05)


def _sessions_are_open(plan: Plan, control: FaultControl | None) -> bool:
    if control is None:
        return True
    wanted = min(plan.sessions, plan.session_limit or plan.sessions)
    return all(control.words.counters[i].sessions_open >= wanted for i in range(plan.partitions))


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def _config(plan: Plan, token: Token | None, control: FaultControl | None, port: int, health_port: int) -> str:
    lines = [
        "[proxy]", f'listen = ["127.0.0.1:{port}"]', "max_connections = 4096",
        "[proxy.health]", f'listen = "127.0.0.1:{health_port}"', f"probe_interval_s = {plan.probe_interval_s}",
        "[state]", 'url = "file:stores.toml"', 'master_key_file = "master.key"',
    ]  # fmt: skip
    if plan.partitions == 0 or token is None:
        return "\n".join(lines) + "\n"
    environment = {**token.environment, **(control.environment(token.module) if control is not None else {})}
    variables = ", ".join(f"{name} = {json.dumps(value)}" for name, value in environment.items())
    lines += [
        "[routing]", 'site = "here"',
        "[modules.hsm]", f"path = {json.dumps(token.module if control is None else str(shim_path()))}",
        f"environment = {{ {variables} }}", f"parameters = {json.dumps(token.parameters)}",
    ]  # fmt: skip
    for number in range(plan.partitions):
        label = token.label if control is None else f"p{number}"
        site = "elsewhere" if number in plan.remote else "here"
        lines += [
            f"[partitions.p{number}]", 'module = "hsm"', f"token_label = {json.dumps(label)}", f'profile = "{token.profile}"',
            f"sessions = {plan.sessions}", f'site = "{site}"',
        ]  # fmt: skip
        if plan.login or token.pin:
            lines.append('pin_file = "pin"')
    names = [f"p{number}" for number in range(plan.partitions)]
    lines += ["[partition_groups.main]", f"partitions = {json.dumps(names)}", f'verify = "{plan.verify}"']
    return "\n".join(lines) + "\n"


def _stores(plan: Plan) -> str:
    lines = []
    local = plan.partitions == 0
    for store in range(plan.stores):
        lines += [
            f"[key_stores.s{store}]", f'uri_path_prefix = "/s{store}"', f'region = "{REGION}"',
            'key_source = "local"' if local else 'partition_group = "main"',
            f'credentials = [{{ access_key_id = "{ACCESS_KEY_ID}", secret_access_key_file = "credential" }}]',
        ]  # fmt: skip
        for number in range(plan.key_ids or plan.keys):
            lines += [f"[key_stores.s{store}.keys.k{number}]", f'label = "k{number % plan.keys}"']
            if local:
                lines.append("create = true")
    return "\n".join(lines) + "\n"


def write_secret(path: Path, text: str) -> None:
    """A file that only its owner reads."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text + "\n")


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nobody uses now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
