# SPDX-License-Identifier: Apache-2.0
"""Random operations on a real node, any process of which is killed (-9) in the middle of any of them, and what must hold afterwards.

What was acknowledged is there. What was not is there or not, but not by halves. A block that was acknowledged is in force from the
first request on that is served again. No initialization vector comes twice for a key. The log verifies, and never gets shorter.

KILL_SECONDS: how long each database is tried, with another seed every time (absent: once, a minute or so; `make soak`).
KILL_SEED: where to begin.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from bench.postgres import PostgresServer
from tests.fix_database import new_database
from tests.scenario.kill_model import REGION, Fact, Id, Intent, Outcome, World, settled
from tests.scenario.kill_node import NAME, KillNode, pause

STORES = {"s1": "local", "s2": "local", "h1": "hsm"}  # name -> where its keys live
KEYS = ("k1", "k2")
MAX_CREDENTIALS = 4
DECLARED_ID, DECLARED_SECRET = "D" * 20, "s" * 43
SLOW_MS = 2500  # how long an HSM may take to make a key
NOT_DONE = ("unavailable", "source-key-not-made", "trial-failed")  # rules of refusals by which nothing was changed
SECONDS = float(os.environ.get("KILL_SECONDS", "0"))
SEED = int(os.environ.get("KILL_SEED", "1"))

KILLS = {
    "sqlite": ("supervisor", "control", "worker", "nothing"),
    "postgresql": ("everything", "control", "backend", "database", "worker", "supervisor", "nothing"),
}


class KillMachine(RuleBasedStateMachine):
    """node: started by the first rule. world: what must be there."""

    kind: str
    make_node: Any
    failures: list[BaseException]

    def __init__(self) -> None:
        super().__init__()
        self.node: KillNode | None = None
        self.began = time.monotonic()
        self.world = World()
        self.secrets: dict[str, str] = {}
        self.number = 0
        self.seq, self.head = 0, ""
        self.labels = 0

    def teardown(self) -> None:
        if self.node is None:
            return
        try:
            if not self.failures:
                self.node.check_health()
                self.node.verify_offline()
        finally:
            watcher = self.node.watcher
            self._tell(f"{watcher.served} answers were served meanwhile, {watcher.refused} refused")
            self.node.close()

    # --- operations

    @initialize(luck=st.integers(0, 2**30))
    def begin(self, luck: int) -> None:
        """A store with a key and two credentials. luck 0: the dullest example of all, which is always tried first, is left out."""
        if luck == 0 or self.failures:  # hypothesis would like to see it fail again, which a matter of time does not do
            return
        node = self.node = self.make_node()
        node.watcher.secrets = self.secrets
        for path, body, intent in (
            ("/v1/stores", _store("s1"), Intent({Id("store", "s1"): Fact()}, new_credential="s1")),
            ("/v1/stores/s1/keys", {"external_key_id": "k1"}, Intent({Id("key", "s1", "k1"): Fact()})),
            ("/v1/stores/s1/credentials", None, Intent({}, new_credential="s1")),
        ):
            self._settle(intent, *_outcome(node.send("POST", path, body)))

    @precondition(lambda self: self.node is None)
    @rule()
    def stand_by(self) -> None:
        """Something must be possible."""

    @precondition(lambda self: self.node and STORES.keys() - self.world.stores())
    @rule(data=st.data())
    def create_store(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(STORES.keys() - self.world.stores())))
        intent = Intent({Id("store", name): Fact()}, new_credential=name)
        self._do(data, "POST", "/v1/stores", _store(name), intent, slow=name == "h1")

    @precondition(lambda self: self._missing_keys())
    @rule(data=st.data())
    def create_key(self, data: st.DataObject) -> None:
        id_ = data.draw(st.sampled_from(self._missing_keys()))
        body = {"external_key_id": id_.name}
        self._do(data, "POST", f"/v1/stores/{id_.store}/keys", body, Intent({id_: Fact()}), slow=id_.store == "h1")

    @precondition(lambda self: self._all("key"))
    @rule(data=st.data())
    def change_key(self, data: st.DataObject) -> None:
        id_ = data.draw(st.sampled_from(self._all("key")))
        fact, path = self.world.objects[id_], f"/v1/stores/{id_.store}/keys/{id_.name}"
        actions = ["rotate", "unblock" if fact.blocked else "block", "disable" if fact.enabled else "enable"]
        if fact.blocked or not fact.enabled:
            actions.append("delete")
        action = data.draw(st.sampled_from(actions))
        if action == "delete":
            self._do(data, "DELETE", path, None, Intent({id_: None}))
            return
        after = {
            "rotate": Fact(fact.blocked, fact.enabled, fact.version + 1),
            "block": Fact(True, fact.enabled, fact.version),
            "unblock": Fact(False, fact.enabled, fact.version),
            "disable": Fact(fact.blocked, False, fact.version),
            "enable": Fact(fact.blocked, True, fact.version),
        }[action]
        self._do(data, "POST", f"{path}/{action}", None, Intent({id_: after}), slow=action == "rotate" and id_.store == "h1")

    @precondition(lambda self: self.world.stores())
    @rule(data=st.data(), action=st.sampled_from(["block", "unblock"]))
    def block_store(self, data: st.DataObject, action: str) -> None:
        store = data.draw(st.sampled_from(self.world.stores()))
        intent = Intent({Id("store", store): Fact(blocked=action == "block")})
        self._do(data, "POST", f"/v1/stores/{store}/{action}", None, intent)

    @precondition(lambda self: any(not self.world.keys(store) for store in self.world.stores()))
    @rule(data=st.data())
    def delete_store(self, data: st.DataObject) -> None:
        store = data.draw(st.sampled_from([store for store in self.world.stores() if not self.world.keys(store)]))
        gone: dict[Id, Fact | None] = {id_: None for id_ in self.world.objects if id_.store == store}
        self._do(data, "DELETE", f"/v1/stores/{store}", None, Intent(gone))

    @precondition(lambda self: any(len(self.world.credentials(store)) < MAX_CREDENTIALS for store in self.world.stores()))
    @rule(data=st.data())
    def rotate_credential(self, data: st.DataObject) -> None:
        stores = [each for each in self.world.stores() if len(self.world.credentials(each)) < MAX_CREDENTIALS]
        store = data.draw(st.sampled_from(stores))
        self._do(data, "POST", f"/v1/stores/{store}/credentials", None, Intent({}, new_credential=store))

    @precondition(lambda self: any(len(self.world.credentials(store)) > 1 for store in self.world.stores()))
    @rule(data=st.data())
    def remove_credential(self, data: st.DataObject) -> None:
        store = data.draw(st.sampled_from([each for each in self.world.stores() if len(self.world.credentials(each)) > 1]))
        access_key_id = data.draw(st.sampled_from(self.world.credentials(store)))
        intent = Intent({Id("credential", store, access_key_id): None})
        self._do(data, "DELETE", f"/v1/stores/{store}/credentials/{access_key_id}", None, intent)

    @precondition(lambda self: self.node and ("d1", DECLARED_ID) not in self.world.removed)
    @rule(data=st.data(), enabled=st.booleans(), blocked=st.booleans())
    def apply(self, data: st.DataObject, enabled: bool, blocked: bool) -> None:
        """A store with a credential of ours; its key gets new material each time, and is blocked or stays as it is."""
        self.labels += 1
        store, key = Id("store", "d1"), Id("key", "d1", "k1")
        self.secrets[DECLARED_ID] = DECLARED_SECRET
        former = self.world.objects.get(key)
        declared: dict[str, Any] = {"label": f"d1-k1-{self.labels}", "create": True, "enabled": enabled}
        if blocked:
            declared["blocked"] = True
        fact = Fact(blocked or (former is not None and former.blocked), enabled, former.version + 1 if former else 1)
        body = {
            "region": REGION, "uri_path_prefix": "/d1", "key_source": "local", "keys": {"k1": declared},
            "credentials": [{"access_key_id": DECLARED_ID, "secret_access_key": DECLARED_SECRET}],
        }  # fmt: skip
        changes: dict[Id, Fact | None] = {key: fact, Id("credential", "d1", DECLARED_ID): Fact()}
        changes[store] = self.world.objects.get(store, Fact())
        self._do(data, "POST", "/v1/apply", {"key_stores": {"d1": body}}, Intent(changes, in_steps=True))

    # --- doing them

    def _tell(self, text: str) -> None:
        print(f"{time.monotonic() - self.began:6.1f} s  {text}", flush=True)

    def _missing_keys(self) -> list[Id]:
        wanted = {Id("key", store, key) for store in self.world.stores() for key in KEYS}
        return sorted(wanted - self.world.objects.keys())

    def _all(self, kind: str) -> list[Id]:
        return sorted(id_ for id_ in self.world.objects if id_.kind == kind)

    def _do(self, data: st.DataObject, method: str, path: str, body: Any, intent: Intent, *, slow: bool = False) -> None:
        """One operation, in which something is killed; then everything is looked at."""
        node = self.node
        assert node is not None
        kill = data.draw(st.sampled_from((*KILLS[self.kind], *(("tool",) * 2 if slow else ()))), label="kill")
        delay_ms = data.draw(st.integers(0, SLOW_MS if slow and kill != "nothing" else 30), label="after ms")
        chosen = data.draw(st.integers(0, 7), label="which")
        again = data.draw(st.booleans(), label="asked again")
        key = str(uuid.uuid4()) if method == "POST" and not path.endswith(("block", "able", "apply")) else ""
        self._tell(f"{method} {path}: {kill} killed after {delay_ms} ms")
        try:
            after = self.world.changed(intent.changes)
            node.watcher.watch(set(self.world.uses(self.secrets)) & set(after.uses(self.secrets)))
            sent = node.send(method, path, body, key)
            if kill != "nothing":
                pause(delay_ms)
                node.kill(kill, chosen)
                if _acknowledged(sent):  # before the kill, or by a process that was left over: from now on it must be so
                    node.watcher.watch(after.uses(self.secrets))
            self._recover(kill, early=bool(chosen % 2))
            outcome, document = _outcome(sent)
            if outcome == "unknown" and again and key:
                outcome, document = self._ask_again(method, path, body, key, intent)
            self._settle(intent, outcome, document)
        except BaseException as failure:
            self.failures.append(failure)
            raise

    def _recover(self, kill: str, *, early: bool) -> None:
        node = self.node
        assert node is not None
        if kill == "everything":
            node.watcher.watch(node.watcher.uses, only_blocks=True)
        if node.revive(kill, early=early) and kill == "everything" and early:
            node.check_health()  # it serves its copy now, without a database
            for use in node.watcher.uses:
                if use.blocked:
                    node.watcher.prove(use, from_copy=True)
            node.start_database()
        if kill != "nothing":
            node.follow()

    def _ask_again(self, method: str, path: str, body: Any, key: str, intent: Intent) -> tuple[Outcome, dict[str, Any]]:
        """With the same Idempotency-Key: it is carried out once, and answered."""
        assert self.node is not None
        for _ in range(20):
            outcome, document = _outcome(self.node.send(method, path, body, key))
            if outcome == "done":
                break
            time.sleep(0.5)
        self._tell(f"  asked again: {outcome}")
        return outcome, document

    def _settle(self, intent: Intent, outcome: Outcome, document: dict[str, Any]) -> None:
        node = self.node
        assert node is not None
        issued = document.get("credential") or document
        shown = issued.get("access_key_id", "") if intent.new_credential else ""
        former = self.world
        deadline = time.monotonic() + 15
        while True:  # a block that is in force is recorded when the database is back
            try:
                self.world = settled(former, intent, outcome, node.objects(), shown)
                break
            except AssertionError:
                if not document.get("confirmed") or document["recorded"] or time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
        self._tell(f"  {outcome}")
        if shown and "secret_access_key" in issued:
            self.secrets[shown] = issued["secret_access_key"]
        for id_ in former.objects.keys() - self.world.objects.keys():
            node.watcher.forget(id_.store, id_.name)
        uses = list(self.world.uses(self.secrets))
        node.watcher.watch(uses)
        for use in uses:
            node.watcher.prove(use)
        node.check_health()
        self._check_log()

    def _check_log(self) -> None:
        """It verifies, and goes on from where it was."""
        assert self.node is not None
        verdict = self.node.get("/v1/events/verification")
        assert verdict["ok"], verdict
        assert verdict["seq"] >= self.seq, (verdict, self.seq)
        if self.seq:
            (event,) = self.node.get(f"/v1/events?cursor={self.seq + 1}&limit=1")["items"]
            assert (event["seq"], event["hash"]) == (self.seq, self.head), "the log is another one than before"
        self.seq, self.head = verdict["seq"], verdict["head"]


def _store(name: str) -> dict[str, Any]:
    where = {"key_source": "local"} if STORES[name] == "local" else {"partition_group": "main"}
    return {"name": name, "uri_path_prefix": f"/{name}", "region": REGION, **where}


def _acknowledged(sent: Future[httpx.Response]) -> bool:
    """Whether it is, as far as one knows already."""
    wait((sent,), timeout=0.2)
    return sent.done() and _outcome(sent)[0] == "done"


def _outcome(sent: Future[httpx.Response]) -> tuple[Outcome, dict[str, Any]]:
    """What the answer says, and its document."""
    try:
        answer = sent.result(120)
    except httpx.TransportError:
        return "unknown", {}
    if answer.headers.get("content-type") == "application/x-ndjson":
        last = json.loads(answer.text.splitlines()[-1])
        assert last.get("status", 503) == 503, last
        return ("done" if last["event"] == "end" else "unknown"), {}
    document = answer.json() if answer.content else {}
    if answer.is_success:
        if "confirmed" in document and NAME not in [each["node"] for each in document["confirmed"]]:
            return "unknown", {}
        return "done", document
    assert answer.status_code == 503, answer.text
    return ("not done" if document["rule"] in NOT_DONE else "unknown"), {}


@pytest.mark.timeout(max(600, 2 * SECONDS + 600))
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_nothing_acknowledged_is_lost_whatever_is_killed(request: pytest.FixtureRequest, tmp_path: Path, kind: str) -> None:
    server: PostgresServer | None = request.getfixturevalue("postgres") if kind == "postgresql" else None
    made = 0
    failures: list[BaseException] = []

    def make_node() -> KillNode:
        nonlocal made
        made += 1
        directory = tmp_path / str(made)
        directory.mkdir()
        return KillNode(directory, new_database(request, kind, directory / "state.db"), server)

    limits = settings(
        max_examples=2,  # the first one is the dullest: see begin
        stateful_step_count=30 if SECONDS else 6,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    until = time.monotonic() + SECONDS
    number = SEED
    while True:
        print(f"KILL_SEED={number}")
        machine = type("Machine", (KillMachine,), {"kind": kind, "make_node": staticmethod(make_node), "failures": failures})
        try:
            run_state_machine_as_test(seed(number)(machine), settings=limits)
        except BaseException:
            if failures:
                raise failures[0] from None
            raise
        number += 1
        if time.monotonic() >= until:
            break
