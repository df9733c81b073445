# SPDX-License-Identifier: Apache-2.0
"""Groups of two partitions behind `xksfast serve`: two SoftHSM directories as two HSMs, and one going wrong. Faults by the shim."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.client import Client, b64
from tests.servers import wait_until
from tests.setups import SOFTHSM, Setup
from xksfast.rehearsal.control import FaultControl, shim_path
from xksfast.rehearsal.latency import fixed_ms

CKR_DEVICE_ERROR = 0x30


@pytest.fixture
def two(tmp_path: Path) -> Setup:
    """Partitions p0 and p1, each a token in a directory of its own, with the transport key by which keys are replicated."""
    setup, other = Setup(tmp_path / "one"), Setup(tmp_path / "two")
    setup.use_softhsm()
    other.use_softhsm()
    setup.config["modules"]["second"] = {"path": SOFTHSM, "environment": other.softhsm_environment}
    setup.config["partitions"]["p1"] = {**setup.config["partitions"]["p0"], "module": "second"}
    setup.config["partition_groups"]["main"]["partitions"] = ["p0", "p1"]
    return setup


def replicate(setup: Setup, *arguments: str) -> dict[str, Any]:
    setup.write()
    command = [
        "-m", "xksfast", "partition", "replicate", "main", "--config", str(setup.directory / "xksfast.toml"), "--json", *arguments,
    ]  # fmt: skip
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def partitions(setup: Setup) -> dict[str, dict[str, Any]]:
    with urllib.request.urlopen(f"http://127.0.0.1:{setup.health_port}/status") as answer:
        document = json.load(answer)
    return {partition["name"]: partition for partition in document["partitions"]}


def test_keys_of_a_group_are_made_on_both_and_each_opens_what_the_other_sealed(two: Setup) -> None:
    replicate(two, "--make-transport-key")
    with two.running() as process:
        client = two.client()
        sealed = [client.call("encrypt").document for _ in range(40)]
        opened = [client.call("decrypt", client.decrypt_document(document)).status for document in sealed]
        assert set(opened) == {200}
        shown = partitions(two)
        assert all(shown[name]["state"] == "ready" for name in ("p0", "p1"))
        assert process.events("key_served_in_part") == []
        client.close()


def test_a_key_that_only_one_partition_has_is_served_there_and_told(two: Setup) -> None:
    two.stores["key_stores"]["one"]["keys"]["k1"]["create"] = False
    subprocess.run(
        ["pkcs11-tool", "--module", SOFTHSM, "--token-label", "t0", "--login", "--pin", "1234", "--keygen", "--key-type", "AES:32",
         "--label", "k1", "--sensitive"],
        env={**os.environ, **two.softhsm_environment}, check=True, capture_output=True,
    )  # fmt: skip
    with two.running() as process:
        client = two.client()
        assert {client.call("encrypt").status for _ in range(20)} == {200}
        (line,) = process.events("key_served_in_part")
        assert "partition p1" in line["note"]
        assert "has no secret key with the label 'k1'" in line["note"]
        client.close()


def test_a_key_of_the_same_label_that_is_another_key_is_not_used(two: Setup, tmp_path: Path) -> None:
    two.stores["key_stores"]["one"]["keys"]["k1"]["create"] = False
    for conf in (tmp_path / "one" / "softhsm2.conf", tmp_path / "two" / "softhsm2.conf"):
        subprocess.run(
            ["pkcs11-tool", "--module", SOFTHSM, "--token-label", "t0", "--login", "--pin", "1234", "--keygen", "--key-type",
             "AES:32", "--label", "k1", "--sensitive"],
            env={**os.environ, "SOFTHSM2_CONF": str(conf)}, check=True, capture_output=True,
        )  # fmt: skip
    with two.running() as process:
        client = two.client()
        sealed = [client.call("encrypt").document for _ in range(20)]
        assert {client.call("decrypt", client.decrypt_document(document)).status for document in sealed} == {200}
        (line,) = process.events("key_served_in_part")
        assert "is another key than the one" in line["note"]
        client.close()


def test_a_wrong_pin_on_one_of_two_takes_that_one_out_and_the_other_serves(two: Setup) -> None:
    replicate(two, "--make-transport-key")
    with two.running():
        pass
    two.stores["key_stores"]["one"]["keys"]["k1"]["create"] = False
    two.write_secret("wrong", "9999")
    two.config["partitions"]["p1"]["pin_file"] = "wrong"
    with two.running():
        client = two.client()
        assert {client.call("encrypt").status for _ in range(20)} == {200}
        shown = partitions(two)
        assert (shown["p0"]["state"], shown["p1"]["state"]) == ("ready", "refused")
        assert "CKR_PIN_INCORRECT" in shown["p1"]["reason"]
        client.close()


def test_a_wrong_pin_on_every_partition_ends_the_start(two: Setup) -> None:
    two.stores["key_stores"]["one"]["keys"]["k1"]["create"] = False
    two.write_secret("pin", "9999")
    two.config["partitions"]["p1"]["pin_file"] = str(two.directory / "pin")
    process = two.start(ready=False)
    assert process.popen.wait(30) == 2
    assert process.log_file.read_text().count("CKR_PIN_INCORRECT") >= 2


def test_an_hsm_that_is_away_at_the_start_comes_into_service_and_the_other_serves_meanwhile(two: Setup, tmp_path: Path) -> None:
    """Its library cannot even be initialised: there is no directory of tokens."""
    replicate(two, "--make-transport-key")
    with two.running():
        pass
    two.stores["key_stores"]["one"]["keys"]["k1"]["create"] = False
    tokens = tmp_path / "two" / "tokens"
    tokens.rename(tmp_path / "gone")
    with two.running() as process:
        client = two.client()
        assert {client.call("encrypt").status for _ in range(20)} == {200}
        assert partitions(two)["p1"]["state"] == "recovering"
        reason = partitions(two)["p1"]["reason"]
        assert "C_Initialize" in reason or "there is no token" in reason
        (line,) = wait_until(lambda: process.events("key_manager_health"), "named in the log")
        assert (line["key_manager"], line["status"], line["former"]) == ("p1", "UNAVAILABLE", None)
        assert line["reason"]
        (tmp_path / "gone").rename(tokens)
        wait_until(lambda: partitions(two)["p1"]["state"] == "ready", "in service", 40)
        wait_until(lambda: [x for x in process.events("key_manager_health") if x["status"] == "ACTIVE"], "said in the log", 20)
        assert {client.call("encrypt").status for _ in range(20)} == {200}
        client.close()


def test_two_partitions_that_are_one_token_are_told_so(two: Setup) -> None:
    two.config["partitions"]["p1"] = {**two.config["partitions"]["p0"]}
    two.config["partitions"]["p1"].pop("token_label")
    listed = subprocess.run(
        ["pkcs11-tool", "--module", SOFTHSM, "--list-token-slots"],
        env={**os.environ, **two.softhsm_environment}, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    serial = next(line.split(":")[1].strip() for line in listed.splitlines() if "serial num" in line)
    two.config["partitions"]["p1"]["serial"] = serial
    two.stores["key_stores"]["one"]["keys"]["k1"]["create"] = False
    with two.running():
        shown = partitions(two)
        out = [partition for partition in shown.values() if partition["state"] == "recovering"]
        assert len(out) == 1
        assert "is the same token as partition" in out[0]["reason"]


# --- under load, over the shim


class Load:
    """Clients that encrypt (every third with a CDIV) until stopped; what they were answered, and how long the slowest took."""

    def __init__(self, setup: Setup, clients: int = 4) -> None:
        self.answers: Counter[str] = Counter()
        self.slowest_s = 0.0
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(setup.client(), i)) for i in range(clients)]
        for thread in self._threads:
            thread.start()

    def _run(self, client: Client, number: int) -> None:
        count = number
        while not self._stop.is_set():
            count += 1
            more = {"ciphertextDataIntegrityValueAlgorithm": "SHA_256"} if count % 3 == 0 else {}
            began = time.monotonic()
            answer = client.call("encrypt", plaintext=b64(b"x" * 48), **more)
            self.slowest_s = max(self.slowest_s, time.monotonic() - began)
            self.answers[answer.error or str(answer.status)] += 1
        client.close()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(20)


@pytest.fixture
def shimmed(tmp_path: Path) -> Iterator[tuple[Setup, FaultControl]]:
    """Two virtual slots of the shim before one SoftHSM token: two HSMs with the same keys."""
    setup = Setup(tmp_path)
    setup.use_softhsm()
    with FaultControl.create(tmp_path / "faults", slots=2) as control:
        for number in range(2):
            control.slot(number).named(f"p{number}", real_label="t0")
            control.slot(number).latency(fixed_ms(1))
        setup.config["modules"]["hsm"] = {
            "path": str(shim_path()),
            "environment": {**setup.softhsm_environment, **control.environment(SOFTHSM)},
        }
        first = setup.config["partitions"]["p0"]
        setup.config["partitions"] = {
            f"p{number}": {**first, "token_label": f"p{number}", "sessions": 8} for number in range(2)
        }
        setup.config["partition_groups"]["main"]["partitions"] = ["p0", "p1"]
        setup.stores["key_stores"]["one"]["keys"]["k1"]["create"] = False
        subprocess.run(
            ["pkcs11-tool", "--module", SOFTHSM, "--token-label", "t0", "--login", "--pin", "1234", "--keygen", "--key-type",
             "AES:32", "--label", "k1", "--sensitive"],
            env={**os.environ, **setup.softhsm_environment}, check=True, capture_output=True,
        )  # fmt: skip
        yield setup, control


@pytest.mark.parametrize("fault", ["errs", "hangs", "dies", "restarts", "is slow", "flips bits"])
@pytest.mark.parametrize("verify", ["same", "other"])
def test_nothing_fails_while_one_of_two_partitions(shimmed: tuple[Setup, FaultControl], fault: str, verify: str) -> None:
    """Once more when something did: a machine that stands still for a deadline fails what no proxy can save, but not twice in a row."""
    answers = _load_while(*shimmed, fault, verify)
    if set(answers) != {"200"}:
        answers = _load_while(*shimmed, fault, verify)
    assert set(answers) == {"200"}
    assert sum(answers.values()) > 100


def _load_while(setup: Setup, control: FaultControl, fault: str, verify: str) -> Counter[str]:
    """What requests were answered with while partition p1 was ill and after."""
    setup.config["partition_groups"]["main"]["verify"] = verify
    ill = control.slot(1)
    with setup.running() as process:
        load = Load(setup)
        try:
            wait_until(lambda: partitions(setup)["p1"]["calls"]["first"] > 50, "both are used")
            match fault:
                case "errs":
                    ill.error(CKR_DEVICE_ERROR)
                case "hangs":
                    ill.hang()
                case "dies":
                    ill.dead(CKR_DEVICE_ERROR)
                case "restarts":
                    ill.restart()
                case "is slow":
                    ill.multiplier(50)
                case _:
                    ill.flip_bits(encrypt_ppm=200_000)
            if fault not in ("restarts", "is slow"):
                wait_until(lambda: partitions(setup)["p1"]["opens"] > 0, "its breaker opened", 15)
            time.sleep(0.5)  # goes on for a while: nothing to wait for is meant to happen
            ill.reset()
            wait_until(lambda: partitions(setup)["p1"]["state"] == "ready", "back in service", 15)
        finally:
            load.stop()
        if set(load.answers) != {"200"}:
            print(process.events("request")[:3])
        return Counter(load.answers)
