# SPDX-License-Identifier: Apache-2.0
"""What a delta forbids while answers are under way, and deltas that wait for a token.

Real SoftHSM behind the shim, which holds calls.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.client import Answer, Client
from tests.proxy.worker_process import State, Worker, running_worker
from tests.servers import wait_until
from tests.setups import ACCESS_KEY_IDS, SOFTHSM, Faults, Setup
from xksfast import messages
from xksfast.config import load_config
from xksfast.rehearsal.latency import OPERATIONS
from xksfast.rehearsal.slot import SlotControl

LABELS = ("k1-1", "k1-2", "k2-1", "k3-1", "k4-1")


class Token:
    """A worker whose keys are in SoftHSM behind the shim, with two sessions. `slot` sets its faults."""

    def __init__(self, directory: Path, labels: tuple[str, ...] = LABELS) -> None:
        setup = Setup(directory)
        setup.use_softhsm()
        self.environment = setup.softhsm_environment
        faults = Faults(directory)
        setup.use_softhsm(module=str(faults.module), environment=faults.environment, sessions=2)
        setup.config["proxy"]["health"]["probe_interval_s"] = 30  # a probe must not be held in place of a request
        setup.config["proxy"]["deadline_ms"] = 240
        setup.write()
        self.faults = faults
        self.slot: SlotControl = faults.control.slot(0)
        self.config = load_config(directory / "xksfast.toml")
        for label in labels:
            self.make_key(label)

    def make_key(self, label: str) -> None:
        subprocess.run(
            ["pkcs11-tool", "--module", SOFTHSM, "--token-label", "t0", "--login", "--pin", "1234", "--keygen", "--key-type",
             "AES:32", "--label", label, "--sensitive"],
            env={**os.environ, **self.environment}, check=True, capture_output=True,
        )  # fmt: skip

    def hold(self, classes: tuple[str, ...] = OPERATIONS) -> None:
        """Calls stay inside the token until let_go()."""
        self.slot.hang(classes=classes)

    def let_go(self) -> None:
        self.slot.release()

    def holds(self, calls: int = 1) -> bool:
        return self.slot.counters().hung >= calls


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> Token:
    return Token(tmp_path_factory.mktemp("token"))


@pytest.fixture(scope="module")
def running(token: Token) -> Iterator[Worker]:
    with running_worker(token.config) as worker:
        yield worker
        token.let_go()


@pytest.fixture
def worker(running: Worker, token: Token) -> Iterator[Worker]:
    """The worker of this module, with the store "one" and its keys k1 and k2 as at the beginning."""
    begin(running)
    running.usage()
    yield running
    token.let_go()


def begin(worker: Worker) -> None:
    worker.begin(key_source="pkcs11", keys=(worker.state.key(local=False), worker.state.key("k2", local=False)))


@pytest.fixture
def state(worker: Worker) -> State:
    return worker.state


class Flight:
    """One request in a thread; `answer` waits for it. when: its answer came, by time.monotonic()."""

    def __init__(self, client: Client, operation: str, document: dict[str, Any]) -> None:
        self.when = 0.0
        self._answer: Answer | None = None
        self._thread = threading.Thread(target=self._run, args=(client, operation, document))
        self._thread.start()

    def _run(self, client: Client, operation: str, document: dict[str, Any]) -> None:
        self._answer = client.call(operation, document)
        self.when = time.monotonic()

    @property
    def answer(self) -> Answer:
        self._thread.join(10)
        assert self._answer is not None
        return self._answer


def forbid_key(state: State, **changes: Any) -> dict[str, Any]:
    return {"keys": (state.key(local=False, **changes),)}


def forbid_store(state: State, **changes: Any) -> dict[str, Any]:
    return {"key_stores": (state.store(key_source="pkcs11", **changes),)}


FORBIDDING: dict[str, tuple[Callable[[State], dict[str, Any]], str]] = {
    "a blocked key": (lambda state: forbid_key(state, blocked=True), "InvalidStateException"),
    "a disabled key": (lambda state: forbid_key(state, enabled=False), "InvalidStateException"),
    "a key without usage": (lambda state: forbid_key(state, usage=()), "InvalidKeyUsageException"),
    "a removed version": (lambda state: forbid_key(state, versions=(2,)), "InvalidStateException"),
    "a removed key": (lambda state: {"removed_keys": (("one", "k1"),)}, "InvalidStateException"),
    "a blocked store": (lambda state: forbid_store(state, blocked=True), "InvalidStateException"),
    "a removed store": (lambda state: {"removed_stores": ("one",)}, "InvalidStateException"),
    "a narrowed store": (lambda state: forbid_store(state, allowed_principals=("nobody",)), "AccessDeniedException"),
    "a removed credential": (
        lambda state: {"removed_credentials": (("one", state.credential().access_key_id),)},
        "AuthenticationFailedException",
    ),
    "a state without the key": (
        lambda state: {
            "reset": True,
            "key_stores": (state.store(key_source="pkcs11"),),
            "credentials": (state.credential(),),
            "keys": (state.key("k2", local=False),),
        },
        "InvalidStateException",
    ),
}


@pytest.mark.parametrize("operation", ["encrypt", "decrypt"])
@pytest.mark.parametrize("what", FORBIDDING)
def test_an_answer_under_way_is_withheld_for(worker: Worker, state: State, token: Token, what: str, operation: str) -> None:
    forbidding, error = FORBIDDING[what]
    client, other = worker.client(), worker.client()
    document, same = client.valid(operation), other.valid(operation)
    token.hold()
    flights = [Flight(client, operation, document), Flight(other, operation, same)]
    wait_until(lambda: token.holds(2), "both calls are inside the token")
    restricted = worker.restricted(worker.tell(**forbidding(state)))
    token.let_go()
    for flight in flights:
        answer = flight.answer
        assert answer.error == error, answer
        assert not {"plaintext", "ciphertext"} & set(answer.document)
        assert flight.when > restricted
    client.close()
    other.close()


def test_what_is_not_forbidden_is_answered_though_other_things_are(worker: Worker, state: State, token: Token) -> None:
    client = worker.client()
    document = client.valid("decrypt")
    token.hold()
    flight = Flight(client, "decrypt", document)
    wait_until(token.holds, "the call is inside the token")
    worker.restricted(worker.tell(keys=(state.key("k2", local=False, blocked=True),)))
    worker.change(
        key_stores=(state.store(prefix="/elsewhere", key_source="pkcs11"),), credentials=(state.credential(number=1),)
    )
    token.let_go()
    assert flight.answer.status == 200
    client.close()


def test_an_answer_that_waits_for_those_before_it_is_withheld_too(worker: Worker, state: State, token: Token) -> None:
    """Two requests in one piece: the second, of k2, is answered while the first is still inside the token."""
    client = worker.client()
    slow, quick = client.valid("encrypt"), client.valid("metadata")
    requests = [(client.path("encrypt"), slow), (client.path("metadata", "k2"), quick), (client.path("metadata", "k2"), quick)]
    token.hold()
    with socket.create_connection(client.address, timeout=10) as line:
        line.sendall(b"".join(client.target.raw(path, json.dumps(document).encode()) for path, document in requests))
        wait_until(token.holds, "the first is inside the token")
        worker.restricted(worker.tell(keys=(state.key("k2", local=False, blocked=True),)))
        token.let_go()
        received = b""
        while received.count(b"HTTP/1.1 ") < 3 or not received.endswith(b"}"):
            received += line.recv(65536)
    first, second, third = received.split(b"HTTP/1.1 ")[1:]
    assert first.startswith(b"200")
    assert b"InvalidStateException" in second
    assert b"InvalidStateException" in third
    assert b"keySpec" not in received
    client.close()


# --- deltas that wait for a token

FIND = ("find",)


def test_a_later_delta_forbids_while_an_earlier_one_waits_and_outlasts_it(worker: Worker, state: State, token: Token) -> None:
    worker.change(keys=(state.key(local=False, blocked=True),))
    token.hold(FIND)
    waiting = worker.tell(keys=(state.key("k3", local=False), state.key(local=False), state.key("k2", local=False)))
    worker.restricted(waiting)
    wait_until(token.holds, "the new key is looked for")
    later = worker.tell(keys=(state.key("k3", local=False, enabled=False), state.key("k2", local=False, blocked=True)))
    worker.restricted(later)
    removing = worker.tell(removed_keys=(("one", "k3"),))
    worker.restricted(removing)
    again = worker.tell(keys=(state.key(local=False, blocked=True),))
    worker.restricted(again)
    assert not [said for said in worker.all_of(messages.DeltaApplied) if said.seq >= waiting]
    client = worker.client()
    assert client.call("encrypt", key="k2").error == "InvalidStateException"
    token.let_go()
    seen = set()
    while not [said for said in worker.all_of(messages.DeltaApplied) if said.seq == again]:
        seen |= {client.call("encrypt", key=key).error for key in ("k1", "k2")}
        seen.add(client.call("encrypt", key="k3").error.replace("KeyNotFound", "InvalidState"))
    assert seen == {"InvalidStateException"}
    assert client.call("encrypt", key="k3").error == "KeyNotFoundException"
    worker.change(keys=(state.key(local=False), state.key("k2", local=False)))
    assert client.call("encrypt").status == client.call("encrypt", key="k2").status == 200
    client.close()


def test_a_whole_state_that_waits_keeps_what_later_deltas_forbid(worker: Worker, state: State, token: Token) -> None:
    token.hold(FIND)
    waiting = worker.tell(
        reset=True,
        key_stores=(state.store(key_source="pkcs11"),),
        credentials=(state.credential(), state.credential(number=1)),
        keys=(state.key(local=False), state.key("k2", local=False), state.key("k4", local=False)),
    )
    worker.restricted(waiting)
    wait_until(token.holds, "the new key is looked for")
    seq = worker.tell(
        keys=(state.key(local=False, blocked=True),),
        removed_keys=(("one", "k2"),),
        removed_credentials=(("one", state.credential(number=1).access_key_id),),
    )
    worker.restricted(seq)
    client = worker.client()
    assert client.call("encrypt").error == "InvalidStateException"
    token.let_go()
    seen = set()
    while not [said for said in worker.all_of(messages.DeltaApplied) if said.seq == seq]:
        seen |= {client.call("encrypt").error, client.call("encrypt", key="k2").error}
    assert seen <= {"InvalidStateException", "KeyNotFoundException"}
    assert client.call("encrypt", key="k4").status == 200
    other = worker.client(credential=1)
    assert other.call("encrypt", key="k4").error == "AuthenticationFailedException"
    client.close()
    other.close()


def test_a_delta_without_new_keys_waits_for_no_token(worker: Worker, state: State, token: Token) -> None:
    token.hold(FIND)
    worker.change(keys=(state.key(local=False, usage=("DECRYPT",)),), credentials=(state.credential(number=1),))
    client = worker.client(credential=1)
    assert client.call("encrypt").error == "InvalidKeyUsageException"
    worker.change(keys=(state.key(local=False),))
    assert client.call("encrypt").status == 200
    client.close()


def test_a_new_key_that_the_token_does_not_have_is_told(worker: Worker, state: State) -> None:
    applied = worker.applied(worker.tell(keys=(state.key("k9", local=False),)))
    (problem,) = applied.problems
    assert "key k9" in problem
    assert "has no secret key with the label 'k9-1'" in problem
    client = worker.client()
    assert client.call("encrypt", key="k9").error == "KeyNotFoundException"
    client.close()


# --- usage


def test_encryptions_that_may_have_been_made_are_counted_though_nobody_got_them(
    worker: Worker, state: State, token: Token
) -> None:
    client = worker.client()
    document = client.valid("encrypt")
    assert client.call("encrypt", document).status == 200
    assert [(use.external_key_id, use.encryptions) for use in worker.usage().keys] == [("k1", 1)]
    token.hold()
    assert client.call("encrypt", document).error == "DependencyTimeoutException"
    token.let_go()
    uses = {(use.external_key_id, use.version): use.encryptions for use in worker.usage().keys}
    assert uses == {("k1", 1): 1}
    client.close()


def test_a_worker_that_ends_says_what_was_used_and_what_is_still_under_way(token: Token) -> None:
    with running_worker(token.config) as worker:
        begin(worker)
        client, gone = worker.client(), worker.client()
        for _ in range(3):
            assert client.call("encrypt").status == 200
        document = gone.valid("encrypt")
        token.hold()
        with socket.create_connection(gone.address, timeout=10) as line:
            line.sendall(gone.target.raw(gone.path("encrypt"), json.dumps(document).encode()))
            wait_until(token.holds, "it is inside the token")
        client.close()
        worker.drain()
        token.let_go()
        (report,) = wait_until(lambda: worker.all_of(messages.UsageReport), "its last words")
        assert [(use.store, use.external_key_id, use.version, use.encryptions) for use in report.keys] == [("one", "k1", 1, 4)]
        assert [(use.store, use.access_key_id) for use in report.credentials] == [("one", ACCESS_KEY_IDS[0])]
