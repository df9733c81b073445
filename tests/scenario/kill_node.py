# SPDX-License-Identifier: Apache-2.0
"""A node whose processes are killed, and who watches it: requests that must be refused and such that must be served, all the while."""

from __future__ import annotations

import http.client
import os
import random
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx

from bench.postgres import PostgresServer
from bench.processes import children
from bench.requests import Target
from tests.client import Answer, Client
from tests.scenario.kill_model import REGION, Fact, Id, Use
from tests.scenario.nodes import deployment
from tests.servers import wait_until

NAME = "n1"
WORKERS = 2
BACK_S = 60.0
OURS_TO_MEND = ("secret_not_opened", "key_not_served", "request_failed", "state_went_back", "delta_refused", "admin_not_served")
PASSING = ("DependencyTimeoutException", "ThrottlingException")  # a machine that stands still; a token that is just found again
REFUSED_BY_BLOCK = "InvalidStateException"


class KillNode:
    """One node on a database. postgres: its server, None for SQLite; name: of the database there."""

    def __init__(self, directory: Path, url: str, postgres: PostgresServer | None) -> None:
        self._postgres = postgres
        self._database = url.rpartition("/")[2]
        self._ended: list[int] = []  # children of what was killed: they have to end by themselves
        with ExitStack() as stack:
            proxies = stack.enter_context(deployment(directory, url, (NAME,), workers=WORKERS))
            self._node = proxies.nodes[0]
            self.rest = httpx.Client(
                base_url=self._node.admin_url,
                verify=ssl.create_default_context(cafile=proxies.ca_file),
                headers={"Authorization": f"Bearer {proxies.token()}"},
                timeout=httpx.Timeout(30, connect=BACK_S),
                trust_env=False,
            )
            stack.callback(self.rest.close)
            self._sender = stack.enter_context(ThreadPoolExecutor(1))
            self.watcher = stack.enter_context(Watcher(self._node.port))
            self._stack = stack.pop_all()

    def close(self) -> None:
        """Ends with exit code 0, and leaves nothing."""
        self._stack.close()

    # --- asking

    def send(self, method: str, path: str, body: Any = None, key: str = "") -> Future[httpx.Response]:
        """In a thread. key: Idempotency-Key."""
        headers = {"Idempotency-Key": key} if key else {}
        return self._sender.submit(lambda: self.rest.request(method, path, json=body, headers=headers))

    def get(self, path: str) -> Any:
        """The document; asked again while the node comes back."""
        deadline = time.monotonic() + BACK_S
        while True:
            try:
                answer = self.rest.get(path)
                if answer.status_code == 200:
                    return answer.json()
                assert answer.status_code == 503, answer.text
                why = answer.text
            except httpx.TransportError as error:
                why = repr(error)
            assert time.monotonic() < deadline, f"GET {path} is not answered: {why}"
            time.sleep(0.05)

    def objects(self) -> dict[Id, Fact]:
        """Everything that administration shows."""
        found: dict[Id, Fact] = {}
        for store in self.get("/v1/stores")["items"]:
            name = store["name"]
            found[Id("store", name)] = Fact(blocked=store["blocked"])
            for key in self.get(f"/v1/stores/{name}/keys")["items"]:
                fact = Fact(blocked=key["blocked"], enabled=key["state"] == "ENABLED", version=key["version"])
                found[Id("key", name, key["external_key_id"])] = fact
            for each in self.get(f"/v1/stores/{name}/credentials")["items"]:
                found[Id("credential", name, each["access_key_id"])] = Fact()
        return found

    # --- killing

    def kill(self, what: str, number: int) -> None:
        """What, if it runs just now. number: chooses among several."""
        control = self._pids("_control")
        match what:
            case "control":
                self._kill(control)
            case "worker":
                workers = self._pids("_worker")
                self._kill([workers[number % len(workers)]] if workers else [])
            case "supervisor":
                self._kill_supervisor()
            case "tool":
                tools = [pid for parent in control for pid in children(parent, "tool")]
                for pid in tools:
                    os.kill(pid, signal.SIGKILL)
            case "backend":
                assert self._postgres is not None
                self._postgres.kill_backend(self._database, number)
            case "database":
                assert self._postgres is not None
                self._postgres.crash()
            case "everything":
                assert self._postgres is not None
                self._postgres.crash()
                self._kill_supervisor()

    def _pids(self, word: str) -> list[int]:
        return self._node.process.children(word) if self._node.process is not None else []

    def _kill(self, pids: list[int]) -> None:
        for pid in pids:
            self._ended += children(pid, "")
            os.kill(pid, signal.SIGKILL)

    def _kill_supervisor(self) -> None:
        process = self._node.process
        assert process is not None
        own = process.children("")
        self._ended += own + [pid for parent in own for pid in children(parent, "")]
        process.popen.kill()
        process.popen.wait(10)

    def revive(self, what: str, *, early: bool) -> bool:
        """Start again what was killed. early: the node before its database. False: it could not start so, which it has said."""
        if what in ("supervisor", "everything"):
            self._read_log()
        if what == "everything" and early:
            if not (self._node.directory / "state" / "copy.jsonl").exists():  # killed before it knew anything
                self.revive("everything", early=False)
                return False
            self._node.start()
            return True
        if what in ("database", "everything"):
            assert self._postgres is not None
            self._postgres.start()
        if what in ("supervisor", "everything"):
            self._node.start()
        return True

    def start_database(self) -> None:
        """For a node that serves its copy."""
        assert self._postgres is not None
        self._postgres.start()

    def follow(self) -> None:
        """Until the node serves what stands in its database now: one that was started may have found it away, and serve its copy.

        Answered by the database: where its log ends, and by a heart that beat later, how far the node is.
        """
        seq, since_ms = self.get("/v1/events/verification")["seq"], time.time() * 1000

        def is_there() -> bool:
            (row,) = self.get("/v1/nodes")["items"]
            return row["heartbeat_ms"] > since_ms and row["applied_seq"] >= seq

        wait_until(is_there, "the node follows its database", BACK_S)

    # --- what holds all the time

    def check_health(self) -> None:
        """No fault in the log; the children of killed processes are gone, too."""
        self._read_log()
        wait_until(lambda: not any(map(_runs, self._ended)), "the children of killed processes end", 20)
        self._ended.clear()
        assert not self.watcher.problems, self.watcher.problems[:5]

    def _read_log(self) -> None:
        assert self._node.process is not None
        faults = [line for line in self._node.process.log() if line.get("event") in OURS_TO_MEND]
        assert not faults, faults[:3]

    def verify_offline(self) -> None:
        """`xksfast state verify`."""
        ran = subprocess.run(
            [sys.executable, "-m", "xksfast", "state", "verify", "--config", str(self._node.directory / "xksfast.toml")],
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stdout + ran.stderr


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


class Watcher:
    """Sends the requests it is told to, in turn and without end; `problems`: answers that must not have been given.

    ivs: every initialization vector that any Encrypt of a key was answered with; sealed: some of the answers, which must decrypt.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self.uses: list[Use] = []
        self._only_blocks = False
        self._turn = threading.Lock()  # who sends; what is watched changes between two requests only
        self._clients: dict[tuple[str, str], Client] = {}
        self._ivs: dict[tuple[str, str], set[str]] = defaultdict(set)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watcher")
        self._random = random.Random(port)  # hypothesis wants the other one for itself
        self.secrets: dict[str, str] = {}
        self.sealed: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
        self.problems: list[str] = []
        self.refused = self.served = 0

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)
        for client in self._clients.values():
            client.close()

    def watch(self, uses: Iterable[Use], *, only_blocks: bool = False) -> None:
        """From now on. only_blocks: nothing but blocks is sure, since the database is away."""
        with self._turn:
            self.uses, self._only_blocks = list(uses), only_blocks

    def forget(self, store: str, key: str) -> None:
        """The key is gone, and what it encrypted with it."""
        self.sealed.pop((store, key), None)

    def _run(self) -> None:
        turn = 0
        while not self._stop.wait(0.01):
            with self._turn:
                uses = [use for use in self.uses if use.blocked or not self._only_blocks]
                if not uses:
                    continue
                turn += 1
                use = uses[turn % len(uses)]
                answer = self.encrypt(use)
                if answer is not None:
                    self.judge(use, answer)

    def client(self, store: str, access_key_id: str, key: str) -> Client:
        """With a connection that is kept; for one thread at a time."""
        name = (store, access_key_id)
        if name not in self._clients:
            target = Target(f"http://127.0.0.1:{self._port}", f"/{store}", REGION, access_key_id, self.secrets[access_key_id])
            self._clients[name] = Client({"keys": {"default": key}}, target)
        client = self._clients[name]
        client.key = key
        return client

    def encrypt(self, use: Use) -> Answer | None:
        """None: nobody answered."""
        client = self.client(use.store, use.access_key_id, use.key)
        try:
            return client.call("encrypt")
        except (OSError, http.client.HTTPException):
            client.close()
            return None

    def judge(self, use: Use, answer: Answer) -> None:
        """Whether this answer may be given."""
        said = answer.error or "ok"
        self.refused += said != "ok"
        self.served += said == "ok"
        if use.served and said not in ("ok", *PASSING):
            self.problems.append(f"{use} was refused: {said}")
        if not use.served and said == "ok":
            self.problems.append(f"{use} was served")
        if said == "ok":
            self._keep(use, answer.document)

    def _keep(self, use: Use, document: dict[str, Any]) -> None:
        ivs, iv = self._ivs[use.store, use.key], document["initializationVector"]
        if iv in ivs:
            self.problems.append(f"{use}: initialization vector {iv} came twice")
        ivs.add(iv)
        if use.served:
            kept = self.sealed[use.store, use.key]
            if len(kept) < 20:
                kept.append(document)
            else:
                kept[self._random.randrange(20)] = document

    def prove(self, use: Use, *, from_copy: bool = False) -> None:
        """Ask until it is answered for good: then it must be as the model says; what was encrypted before decrypts, too.

        from_copy: of a node that serves its local copy, which may be a second old. A block holds there, whatever else is not known yet.
        """

        def ask(operation: str, sealed: dict[str, Any] | None = None) -> Answer | None:
            with self._turn:
                client = self.client(use.store, use.access_key_id, use.key)
                try:
                    answer = client.call(operation, None if sealed is None else client.decrypt_document(sealed))
                except (OSError, http.client.HTTPException):
                    client.close()
                    return None
                if operation == "encrypt":
                    self.judge(use, answer)
            return None if answer.error in PASSING else answer

        answer = wait_until(lambda: ask("encrypt"), f"{use} is answered", BACK_S)
        if not use.served:
            assert answer.status in (400, 401, 404), (use, answer)
            assert from_copy or not use.blocked or answer.error == REFUSED_BY_BLOCK, (use, answer)
            return
        assert answer.status == 200, (use, answer)
        for sealed in (answer.document, self._random.choice(self.sealed[use.store, use.key])):
            opened = wait_until(lambda sealed=sealed: ask("decrypt", sealed), f"{use} is decrypted", BACK_S)
            assert opened.status == 200, (use, opened, sealed)


def pause(milliseconds: int) -> None:
    """Where in an operation a process is killed is a matter of time."""
    time.sleep(milliseconds / 1000)
