# SPDX-License-Identifier: Apache-2.0
"""Nodes over a database, for the benchmarks of administration: a state of any size written at once, then `xksfast serve` on it.

What lives here: making and running. What must not: figures (administration.py, beside.py). All keys are `local`, so nothing waits
for a token.
"""

from __future__ import annotations

import json
import secrets
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from bench.fleet import free_port, write_secret
from bench.open_loop import Generator
from bench.processes import SERVER_CORE, children, cpu_seconds, end, resident_mib
from bench.requests import Target, encrypt_document
from xksfast.admin.actors import system_actor
from xksfast.admin.dev_certificates import Authority, CertificateFiles
from xksfast.config import State as StateConfig
from xksfast.native.crypto import Secret
from xksfast.state.database import Database
from xksfast.state.events import Change
from xksfast.state.master_key import configured_master_key
from xksfast.state.objects import Credential, Key, KeyStore, KeyVersion, SourceKey, Stored
from xksfast.state.records import SealedSecret
from xksfast.state.sealing import Sealer
from xksfast.state.store import Plan, StateStore

REGION = "eu-central-1"
ACCESS_KEY_IDS = ("A" * 20, "B" * 20)
STORES_AT_ONCE = 250  # in one transaction
START_TIMEOUT_S = 120
LOAD_KEY = "k0"  # of each store, for who loads a node


@dataclass(frozen=True)
class Size:
    """How much there is to administer."""

    stores: int
    keys_of_store: int = 10

    @property
    def keys(self) -> int:
        return self.stores * self.keys_of_store

    @property
    def credentials(self) -> int:
        return self.stores * len(ACCESS_KEY_IDS)


@dataclass
class Place:
    """What nodes share: the database, the master key, a CA, and the secret access key of every credential."""

    directory: Path
    url: str
    authority: Authority
    secret_access_key: str

    @classmethod
    def new(cls, directory: Path, url: str = "") -> Place:
        """url: "" is an SQLite file in `directory`."""
        directory.mkdir(parents=True, exist_ok=True)
        write_secret(directory / "master.key", secrets.token_hex(32))
        authority = Authority(directory)
        authority.issue_server(CertificateFiles(directory / "server.pem", directory / "server.key"))
        secret = secrets.token_urlsafe(40).replace("-", "+").replace("_", "/")
        return cls(directory, url or f"sqlite:///{directory}/xksfast.db", authority, secret)

    def fill(self, size: Size) -> None:
        """Write the whole state, as one operator's work of many days would have."""
        state = StateConfig(master_key_file=str(self.directory / "master.key"))
        master = configured_master_key(state, token=lambda *_: None)  # type: ignore[arg-type, return-value]
        database = Database.open(self.url)
        try:
            with database.write("bench") as writer:
                sealer, row = Sealer.new(master, now=int(time.time()))
                writer.put_data_key(row)
            store = StateStore(database, "bench")
            store.open()
            for first in range(0, size.stores, STORES_AT_ONCE):
                plan = self._plan(sealer, range(first, min(size.stores, first + STORES_AT_ONCE)), size.keys_of_store)
                store.transact(system_actor("bench").origin, lambda _, plan=plan: plan)
        finally:
            database.close()

    def _plan(self, sealer: Sealer, numbers: range, keys: int) -> Plan:
        values: list[Stored] = []
        sealed: list[SealedSecret] = []
        for number in numbers:
            name = store_name(number)
            values.append(KeyStore(name=name, uri_path_prefix=f"/{name}", region=REGION, key_source="local"))
            for access_key_id in ACCESS_KEY_IDS:
                secret_id = f"{name}/{access_key_id}"
                sealed.append(sealer.seal(Secret.from_bytes(self.secret_access_key.encode()), secret_id, "credential"))
                values.append(Credential(store=name, access_key_id=access_key_id, secret_id=secret_id))
            for key in range(keys):
                label = f"{name}-k{key}"
                sealed.append(sealer.new_local_key(label))
                values.append(SourceKey(place="local", label=label, secret_id=label, owned=True, ready=True))
                versions = (KeyVersion(number=1, label=label),)
                values.append(Key(store=name, external_key_id=f"k{key}", versions=versions))
        changes = [Change(f"{value.kind}.create", value.kind, value.id, None, value) for value in values]
        return Plan(changes=changes, new_secrets=sealed)


def store_name(number: int) -> str:
    """Of the key store with this number."""
    return f"s{number}"


@dataclass
class Node:
    """One running node. workers: pids, whose CPU counts. ready_s: from the start of the program to the first right answer."""

    place: Place
    name: str
    url: str
    health_url: str
    admin_url: str
    process: subprocess.Popen[bytes]
    workers: list[int] = field(default_factory=list)
    ready_s: float = 0.0

    def target(self, store: int = 0) -> Target:
        """Where to send the requests of a key store."""
        return Target(self.url, f"/{store_name(store)}", REGION, ACCESS_KEY_IDS[0], self.place.secret_access_key)

    def cpu_seconds(self) -> float:
        """Of the workers and their threads, so far."""
        return sum(cpu_seconds(pid) for pid in self.workers)

    def worker_mib(self) -> float:
        """Resident memory of the largest worker."""
        return max(resident_mib(pid) for pid in self.workers)

    @property
    def control(self) -> int:
        """Pid of the process that administers."""
        return children(self.process.pid, "_control")[0]

    def control_mib(self) -> float:
        """Resident memory of the process that administers."""
        return resident_mib(self.control)

    def client(self) -> httpx.Client:
        """For REST, as the operator "root"."""
        tokens = list(self.place.directory.glob("*/admin.token"))
        headers = {"authorization": f"Bearer {tokens[0].read_text().strip()}"}
        trust = ssl.create_default_context(cafile=self.place.authority.files.certificate)
        return httpx.Client(
            base_url=self.admin_url,
            verify=trust,
            headers=headers,
            timeout=30,
            trust_env=False,
        )


@contextmanager
def running(
    place: Place, name: str = "n1", *, workers: int = 1, last_store: int = 0, last_key: int = 0, cores: str = str(SERVER_CORE)
) -> Iterator[Node]:
    """A node on the server core; it answers for the last key of the last store when it is yielded. cores: as taskset takes them."""
    directory = place.directory / name
    directory.mkdir(exist_ok=True)
    port, health_port, admin_port = free_port(), free_port(), free_port()
    config = directory / "xksfast.toml"
    config.write_text(_config(place, name, port, health_port, admin_port, workers))
    command = ["taskset", "-c", cores, sys.executable, "-m", "xksfast", "serve", "--config", str(config)]
    began = time.monotonic()
    with (directory / "log").open("ab") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log)
    node = Node(
        place, name, f"http://127.0.0.1:{port}", f"http://127.0.0.1:{health_port}", f"https://localhost:{admin_port}", process
    )
    try:
        _wait_until_served(node, last_store, f"k{last_key}", began)
        node.ready_s = time.monotonic() - began
        node.workers = children(process.pid, "_worker")
        _wait_until_administered(node)
        yield node
    finally:
        end(process)


@contextmanager
def running_together(place: Place, names: Sequence[str]) -> Iterator[list[Node]]:
    """Several nodes that share the state."""
    with ExitStack() as stack:
        yield [stack.enter_context(running(place, name)) for name in names]


def _wait_until_served(node: Node, store: int, key: str, began: float) -> None:
    target = node.target(store)
    while True:
        if node.process.poll() is not None or time.monotonic() - began > START_TIMEOUT_S:
            log = (node.place.directory / node.name / "log").read_text()
            raise RuntimeError(f"xksfast serve did not get ready:\n{log[-1500:]}")
        try:
            with urllib.request.urlopen(node.health_url + "/readyz", timeout=1):
                pass
            status, answer = target.post(target.path(key, "encrypt"), encrypt_document())
        except OSError:
            time.sleep(0.05)
            continue
        if status != 200:
            raise RuntimeError(f"a node that says it is ready answered {status} {answer.get('errorName')}")
        return


def _wait_until_administered(node: Node) -> None:
    with node.client() as client:
        for _ in range(500):
            try:
                client.get("/v1/whoami").raise_for_status()
                return
            except httpx.TransportError:
                time.sleep(0.05)
    raise RuntimeError("the admin listener does not answer")


def _config(place: Place, name: str, port: int, health_port: int, admin_port: int, workers: int) -> str:
    tables: dict[str, dict[str, Any]] = {
        "proxy": {"listen": [f"127.0.0.1:{port}"], "max_connections": 4096, "workers": workers},
        "proxy.health": {"listen": f"127.0.0.1:{health_port}"},
        "admin": {
            "listen": f"127.0.0.1:{admin_port}",
            "certificate": str(place.directory / "server.pem"),
            "private_key": str(place.directory / "server.key"),
            "node": name,
            "url": f"https://localhost:{admin_port}",
            "ca_file": str(place.authority.files.certificate),
        },
        "state": {"url": place.url, "master_key_file": str(place.directory / "master.key")},
    }
    lines = []
    for table, values in tables.items():
        lines += [f"[{table}]", *(f"{option} = {json.dumps(value)}" for option, value in values.items())]
    return "\n".join(lines) + "\n"


@dataclass
class Bench:
    """size: of the large state. place: where it stands."""

    directory: Path
    generator: Generator
    seconds: float
    size: Size
    place: Place


def tell(text: str) -> None:
    """Progress."""
    print("        " + text, file=sys.stderr, flush=True)


@contextmanager
def large(bench: Bench, *, workers: int = 1, cores: str = str(SERVER_CORE)) -> Iterator[Node]:
    """A node with the large state."""
    last = {"last_store": bench.size.stores - 1, "last_key": bench.size.keys_of_store - 1}
    with running(bench.place, workers=workers, cores=cores, **last) as node:
        yield node


def check(wrong: int) -> None:
    """RuntimeError unless every request was answered rightly."""
    if wrong:
        raise RuntimeError(f"{wrong} requests were not answered rightly")
