# SPDX-License-Identifier: Apache-2.0
"""A label stands for one key, over partitions, workers and restarts. A key that cannot be asked for now is not one that is absent.

Real SoftHSM tokens, on which keys are deleted, made and put back behind the proxy's back; faults by the shim.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import stat
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.client import Answer, Client
from tests.servers import Process, wait_until
from tests.setups import SOFTHSM, Setup
from xksfast.rehearsal.control import FaultControl, shim_path

CKR_DEVICE_ERROR = 0x30
REFERENCES = "key-references"


class Token:
    """A SoftHSM token, changed by another program."""

    def __init__(self, conf: str, label: str = "t0") -> None:
        self._environment = {**os.environ, "SOFTHSM2_CONF": conf}
        self._label = label

    def tool(self, *arguments: str) -> None:
        subprocess.run(
            ["pkcs11-tool", "--module", SOFTHSM, "--token-label", self._label, "--login", "--pin", "1234", *arguments],
            env=self._environment, check=True, capture_output=True,
        )  # fmt: skip

    def make(self, label: str = "k1", kind: str = "AES:32") -> None:
        self.tool("--keygen", "--key-type", kind, "--label", label, "--sensitive")

    def put(self, file: Path, label: str = "k1") -> None:
        self.tool("--write-object", str(file), "--type", "secrkey", "--key-type", "AES:32", "--label", label)

    def delete(self, label: str = "k1") -> None:
        self.tool("--delete-object", "--type", "secrkey", "--label", label)


def token_of(setup: Setup, label: str = "t0") -> Token:
    return Token(setup.softhsm_environment["SOFTHSM2_CONF"], label)


@pytest.fixture
def material(tmp_path: Path) -> Path:
    """The bytes of a key, for putting it back."""
    file = tmp_path / "material"
    file.write_bytes(secrets.token_bytes(32))
    return file


@pytest.fixture
def one(tmp_path: Path, material: Path) -> Setup:
    """One partition whose key k1 is of known material, two workers."""
    setup = Setup(tmp_path / "one")
    setup.use_softhsm()
    setup.config["proxy"]["workers"] = 2
    setup.stores["key_stores"]["one"]["keys"]["k1"]["create"] = False
    token_of(setup).put(material)
    return setup


@pytest.fixture
def shimmed(tmp_path: Path) -> Iterator[tuple[Setup, FaultControl]]:
    """Partitions p0 and p1, slots of the shim before the tokens t0, which has k1, and t1, which is empty. Swept each 30 s only."""
    setup = Setup(tmp_path / "shimmed")
    setup.use_softhsm()
    setup.softhsm_util("--init-token", "--free", "--label", "t1", "--pin", "1234", "--so-pin", "12345678")
    setup.config["proxy"]["health"]["probe_interval_s"] = 30
    setup.stores["key_stores"]["one"]["keys"]["k1"]["create"] = False
    token_of(setup).make()
    with FaultControl.create(tmp_path / "faults", slots=2) as control:
        for number in range(2):
            control.slot(number).named(f"p{number}", real_label=f"t{number}")
        setup.config["modules"]["hsm"] = {
            "path": str(shim_path()),
            "environment": {**setup.softhsm_environment, **control.environment(SOFTHSM)},
        }
        first = setup.config["partitions"]["p0"]
        setup.config["partitions"] = {f"p{number}": {**first, "token_label": f"p{number}"} for number in range(2)}
        yield setup, control


@contextmanager
def clients_of_every_worker(setup: Setup) -> Iterator[list[Client]]:
    """A connection goes to the worker with the fewest, so that twice as many as workers reach each of them."""
    with ExitStack() as stack:
        clients = []
        for _ in range(2 * setup.config["proxy"].get("workers", 1)):
            clients.append(stack.enter_context(closing(setup.client())))
            clients[-1].call("health")
        yield clients


def answers(clients: list[Client], operation: str, document: Any = None) -> set[str]:
    return {answer.error or str(answer.status) for answer in (client.call(operation, document) for client in clients)}


def until(setup: Setup, expected: str, operation: str = "encrypt", document: Any = None) -> None:
    """Every worker answers so."""
    with clients_of_every_worker(setup) as clients:
        wait_until(lambda: answers(clients, operation, document) == {expected}, f"every worker answers {expected}", 25)


def status(setup: Setup) -> dict[str, Any]:
    with urllib.request.urlopen(f"http://127.0.0.1:{setup.health_port}/status") as answer:
        return dict(json.load(answer))


def refused_key(process: Process) -> list[dict[str, Any]]:
    return process.events("key_refused")


# --- which key it is


def test_every_worker_takes_the_same_of_two_keys_under_one_label_and_so_after_a_restart(tmp_path: Path) -> None:
    setup, other = Setup(tmp_path / "one"), Setup(tmp_path / "two")
    setup.use_softhsm()
    other.use_softhsm()
    setup.config["proxy"]["workers"] = 4
    setup.config["modules"]["second"] = {"path": SOFTHSM, "environment": other.softhsm_environment}
    setup.config["partitions"]["p1"] = {**setup.config["partitions"]["p0"], "module": "second"}
    setup.config["partition_groups"]["main"]["partitions"] = ["p0", "p1"]
    setup.stores["key_stores"]["one"]["keys"]["k1"]["create"] = False
    token_of(setup).make()
    token_of(other).make()
    sealed: list[dict[str, Any]] = []
    for _ in range(3):
        with setup.running() as process, clients_of_every_worker(setup) as clients:
            sealed += [client.decrypt_document(client.call("encrypt").document) for client in clients for _ in range(4)]
            opened = [client.call("decrypt", document) for client in clients for document in sealed]
            assert {answer.error or answer.status for answer in opened} == {200}
            notes = {line["note"] for line in process.events("key_served_in_part")}
            assert len(notes) == 1
            (note,) = notes
            assert "partition p" in note
            assert "'k1'" in note
            assert "is another key than the one" in note
            shown = wait_until(lambda: [p for p in status(setup)["problems"] if "'k1'" in p], "shown in the status")
            assert "is another key than the one" in shown[0]


def test_a_key_replaced_while_it_is_served_is_refused_and_the_right_one_serves_again(one: Setup, material: Path) -> None:
    with one.running() as process, closing(one.client()) as client:
        sealed = client.decrypt_document(client.call("encrypt").document)
        token_of(one).delete()
        token_of(one).make()
        until(one, "InternalException")
        until(one, "InternalException", "decrypt", sealed)
        line = wait_until(lambda: [at for at in refused_key(process) if "another key" in at["problem"]], "named in the log")[0]
        assert line["partition"] == "p0"
        assert "'k1'" in line["problem"]
        assert "--label" in line["problem"]
        shown = wait_until(lambda: status(one)["problems"], "named in the status")
        assert "partition p0" in shown[0]
        assert "'k1'" in shown[0]
        assert "another key" in shown[0]
        token_of(one).delete()
        token_of(one).put(material)
        until(one, "200")
        until(one, "200", "decrypt", sealed)
        wait_until(lambda: process.events("key_used_again"), "told in the log")
        wait_until(lambda: status(one)["status"] == "ok", "nothing left in the status")


def test_a_key_replaced_while_xksfast_was_stopped_is_refused_and_the_right_one_serves_again(one: Setup, material: Path) -> None:
    with one.running(), closing(one.client()) as client:
        sealed = client.decrypt_document(client.call("encrypt").document)
    token_of(one).delete()
    token_of(one).make()
    with one.running() as process:
        until(one, "InternalException")
        until(one, "InternalException", "decrypt", sealed)
        assert "another key" in process.events("key_not_served")[0]["problem"]
        token_of(one).delete()
        token_of(one).put(material)
        until(one, "200", "decrypt", sealed)


def test_references_are_kept_for_their_owner_alone_and_damage_is_named_and_left_as_it_is(one: Setup) -> None:
    file = one.directory / "state" / REFERENCES
    with one.running():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    whole = file.read_bytes()
    file.write_bytes(b"?" + whole[1:])
    process = one.start(ready=False)
    assert process.popen.wait(20) == 2
    log = process.log_file.read_text()
    assert str(file) in log
    assert "restore it from a backup" in log
    assert file.read_bytes() == b"?" + whole[1:]
    file.write_bytes(whole + b"torn")
    with one.running():
        until(one, "200")


def test_a_node_that_has_no_place_for_references_does_not_start_and_says_what_to_do(one: Setup) -> None:
    (one.directory / "state").write_text("a file where the directory should be")
    process = one.start(ready=False)
    assert process.popen.wait(20) == 2
    assert "state.directory: " in process.log_file.read_text()
    assert "name a directory that this user may write in" in process.log_file.read_text()


def test_a_new_key_after_the_references_were_moved_away_is_taken_for_right(one: Setup) -> None:
    """What the documentation says to do when a key was replaced on purpose."""
    with one.running():
        until(one, "200")
    token_of(one).delete()
    token_of(one).make()
    (one.directory / "state" / REFERENCES).rename(one.directory / "former-references")
    with one.running():
        until(one, "200")


# --- an outage is not a key that is not there


def test_a_passing_error_while_a_key_is_looked_for_is_never_told_as_key_not_found(shimmed: tuple[Setup, FaultControl]) -> None:
    setup, control = shimmed
    with setup.running(), closing(setup.client()) as client:
        assert client.call("encrypt").status == 200
        control.slot(0).error(CKR_DEVICE_ERROR, classes=("find",), times=3)
        control.slot(0).restart()
        seen: list[Answer] = []

        def again() -> bool:
            seen.append(client.call("encrypt"))
            return seen[-1].status == 200 and int(control.slot(0).words.error_rv) == 0

        wait_until(again, "served again, before the next sweep", 20)
        assert {answer.error for answer in seen} <= {"", "InternalException", "DependencyTimeoutException"}


def test_an_error_at_the_start_does_not_refuse_the_key_for_good(shimmed: tuple[Setup, FaultControl]) -> None:
    setup, control = shimmed
    control.slot(0).error(CKR_DEVICE_ERROR, classes=("find",), times=1)
    with setup.running():
        until(setup, "200")


def test_an_outage_of_the_only_partition_that_has_the_key_is_not_key_not_found(shimmed: tuple[Setup, FaultControl]) -> None:
    setup, control = shimmed
    setup.config["partition_groups"]["main"]["partitions"] = ["p0", "p1"]
    with setup.running(), closing(setup.client()) as client:
        assert client.call("encrypt").status == 200
        control.slot(0).dead(CKR_DEVICE_ERROR)
        control.slot(0).restart()  # its handles are forgotten with the next login
        seen = set()
        wait_until(lambda: seen.add(client.call("encrypt").error) or _state(setup, "p0") == "recovering", "it is out", 15)
        seen.update(client.call("encrypt").error for _ in range(50))
        control.slot(0).reset()
        wait_until(lambda: seen.add((at := client.call("encrypt")).error) or at.status == 200, "back", 20)
        assert "KeyNotFoundException" not in seen
        assert "InternalException" in seen


def _state(setup: Setup, partition: str) -> str:
    return next(str(at["state"]) for at in status(setup)["partitions"] if at["name"] == partition)


def test_a_key_that_every_partition_lacks_is_key_not_found(shimmed: tuple[Setup, FaultControl]) -> None:
    setup, _ = shimmed
    setup.config["partition_groups"]["main"]["partitions"] = ["p0", "p1"]
    setup.stores["key_stores"]["one"]["keys"]["k2"] = {"label": "k2"}
    with setup.running(), closing(setup.client()) as client:
        for operation in ("encrypt", "metadata"):
            answer = client.call(operation, key="k2")
            assert (answer.status, answer.error) == (404, "KeyNotFoundException")


def test_a_key_made_on_the_token_after_the_start_is_served(one: Setup) -> None:
    one.stores["key_stores"]["one"]["keys"]["k2"] = {"label": "k2"}
    with one.running(), closing(one.client()) as client:
        assert client.call("encrypt", key="k2").error == "KeyNotFoundException"
        assert client.call("encrypt").status == 200
        token_of(one).make("k2")
        wait_until(lambda: client.call("encrypt", key="k2").status == 200, "served", 20)
        assert client.call("metadata", key="k2").status == 200


def test_a_token_whose_objects_all_vanish_is_an_outage_and_serves_again_when_they_are_back(one: Setup) -> None:
    tokens = one.directory / "tokens"
    with one.running(), closing(one.client()) as client:
        sealed = client.decrypt_document(client.call("encrypt").document)
        shutil.move(tokens, one.directory / "gone")
        seen = set()
        wait_until(lambda: seen.add((at := client.call("encrypt")).error) or at.error, "it is out", 20)
        seen.update(client.call("encrypt").error for _ in range(100))
        wait_until(lambda: status(one)["status"] == "degraded", "told in the status", 10)
        shutil.move(one.directory / "gone", tokens)
        wait_until(lambda: seen.add((at := client.call("encrypt")).error) or at.status == 200, "back", 30)
        assert client.call("decrypt", sealed).status == 200
        assert "KeyNotFoundException" not in seen
