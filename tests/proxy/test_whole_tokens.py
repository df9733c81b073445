# SPDX-License-Identifier: Apache-2.0
"""However a start ends, every token is whole: SoftHSM rewrites a token during a login, and a process that ends there leaves half of it.

Fifty fresh tokens over the cases below. Each start has five at once, so that one of them is likely to be written when it ends.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench.processes import children
from tests.servers import Process, wait_until
from tests.setups import SOFTHSM, Setup
from xksfast.rehearsal.control import FaultControl, shim_path

TOKENS = 5
SEED = 20_26
DEADLINE_S = 30.0


class Tokens(Setup):
    """Five fresh tokens, t0 to t4, each a partition with its own PIN file; the key store's keys are local."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.use_softhsm()
        self.stores["key_stores"]["one"] = self.local_store("/one")
        for number in range(1, TOKENS):
            self.softhsm_util("--init-token", "--free", "--label", f"t{number}", "--pin", "1234", "--so-pin", "12345678")
            self.config["partitions"][f"p{number}"] = {**self.config["partitions"]["p0"], "token_label": f"t{number}"}
        self.config["partition_groups"]["main"]["partitions"] = list(self.config["partitions"])
        self.sizes = self._sizes()
        assert len(self.sizes) == TOKENS

    def _sizes(self) -> dict[Path, int]:
        return {path: path.stat().st_size for path in self.directory.glob("tokens/*/token.object")}

    def check(self) -> None:
        """Each token's own object has its bytes, and the token opens with its PIN."""
        assert self._sizes() == self.sizes
        for number in range(TOKENS):
            opened = subprocess.run(
                [
                    "pkcs11-tool",
                    "--module",
                    SOFTHSM,
                    "--token-label",
                    f"t{number}",
                    "--login",
                    "--pin",
                    "1234",
                    "--list-objects",
                ],
                env={**os.environ, **self.softhsm_environment},
                capture_output=True,
                text=True,
                check=False,
            )
            assert opened.returncode == 0, opened.stderr


@pytest.fixture
def tokens(tmp_path: Path) -> Tokens:
    return Tokens(tmp_path)


def refused(tokens: Tokens, words: str) -> None:
    process = tokens.start(ready=False)
    assert process.popen.wait(DEADLINE_S) == 2
    assert words in process.log_file.read_text()
    tokens.check()


@pytest.mark.parametrize("round_number", range(2))
def test_a_private_key_of_another_certificate(tokens: Tokens, tmp_path: Path, round_number: int) -> None:
    tokens.use_tls()
    other = Setup(tmp_path / "other")
    other.use_tls()
    (tokens.directory / "server.key").write_bytes((other.directory / "server.key").read_bytes())
    refused(tokens, "is not the private key of the certificate")


@pytest.mark.parametrize("round_number", range(2))
def test_a_certificate_that_is_none(tokens: Tokens, round_number: int) -> None:
    tokens.use_tls()
    (tokens.directory / "server.pem").write_text("garbage")
    refused(tokens, "is not a PEM certificate chain")


def test_a_port_in_use(tokens: Tokens) -> None:
    with socket.create_server(("127.0.0.1", tokens.port)):
        refused(tokens, f"127.0.0.1:{tokens.port}")


def test_a_wrong_pin_of_one_token_while_another_is_served(tokens: Tokens) -> None:
    tokens.write_secret("wrong", "9999")
    tokens.config["partitions"]["p1"]["pin_file"] = "wrong"
    process = tokens.start(ready=False)
    wait_until(lambda: process.events("worker_ready"), "the others are served", DEADLINE_S)
    assert process.stop() == 0
    tokens.check()


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("round_number", range(2))
def test_sigterm_at_a_random_moment_of_the_start(tokens: Tokens, round_number: int, again: bool) -> None:
    """again: a second one follows, of somebody who is impatient."""
    moments = random.Random(SEED + round_number + 10 * again)
    for _ in range(4):
        process = tokens.start(ready=False)
        time.sleep(moments.uniform(0.2, 1.0))
        process.popen.send_signal(signal.SIGTERM)
        if again:
            time.sleep(moments.uniform(0.0, 0.2))
            process.popen.send_signal(signal.SIGTERM)
        assert process.popen.wait(DEADLINE_S) in (0, -signal.SIGTERM)  # the latter: before Python had a handler
    tokens.check()


# --- the same without chance: a login that takes its time, and whether a process ended inside it


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[tuple[Setup, FaultControl]]:
    """A setup whose C_Login waits until it is released."""
    setup = Setup(tmp_path)
    with FaultControl.create(tmp_path / "faults") as control:
        setup.use_softhsm(module=str(shim_path()), environment=control.environment(SOFTHSM), sessions=1)
        setup.stores["key_stores"]["one"] = setup.local_store("/one")
        control.slot(0).hang(classes=("login",))
        yield setup, control
        control.slot(0).release()


def to_the_supervisor(process: Process) -> None:
    process.popen.send_signal(signal.SIGTERM)


def to_the_supervisor_twice(process: Process) -> None:
    to_the_supervisor(process)
    wait_until(lambda: process.events("draining"), "it drains")
    to_the_supervisor(process)


def to_every_process(process: Process) -> None:
    """As a service manager does."""
    for pid in (process.pid, *process.children("_worker"), *process.children("_control")):
        os.kill(pid, signal.SIGTERM)


def to_the_worker(process: Process) -> None:
    for pid in process.children("_worker"):
        os.kill(pid, signal.SIGTERM)


def death_of_the_supervisor(process: Process) -> None:
    process.popen.send_signal(signal.SIGKILL)


ENDS: list[Callable[[Process], None]] = [
    to_the_supervisor, to_the_supervisor_twice, to_every_process, to_the_worker, death_of_the_supervisor,
]  # fmt: skip


@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.__name__)
def test_a_worker_does_not_end_inside_a_login(slow: tuple[Setup, FaultControl], end: Callable[[Process], None]) -> None:
    setup, control = slow
    process = setup.start(ready=False)
    wait_until(lambda: control.slot(0).counters().hung, "the login is under way", DEADLINE_S)
    workers = process.children("_worker")
    end(process)
    time.sleep(1.0)  # it has had the time to end in the wrong way
    assert all(Path(f"/proc/{pid}/exe").exists() for pid in workers), "it waits for the call"
    control.slot(0).release()
    wait_until(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in workers), "it ends when the call has", DEADLINE_S)
    process.stop()
    assert control.slot(0).counters().in_flight == 0, "no call was cut"
    assert not process.events("child_does_not_end")


def in_words(number: int) -> str:
    return {1: "a key tool", 2: "partition tools"}[number]


@pytest.mark.parametrize("partitions", [1, 2], ids=in_words)
@pytest.mark.parametrize("end", [to_the_supervisor, to_the_supervisor_twice, to_every_process], ids=lambda end: end.__name__)
def test_a_tool_that_makes_keys_does_not_end_inside_a_login(
    slow: tuple[Setup, FaultControl], partitions: int, end: Callable[[Process], None]
) -> None:
    setup, control = slow
    if partitions == 2:
        setup.softhsm_util("--init-token", "--free", "--label", "t1", "--pin", "1234", "--so-pin", "12345678")
        setup.config["partitions"]["p1"] = {**setup.config["partitions"]["p0"], "token_label": "t1"}
        setup.config["partition_groups"]["main"]["partitions"] = ["p0", "p1"]
        control.slot(1).hang(classes=("login",))
    store = setup.stores["key_stores"]["one"]
    store.pop("key_source")
    store["partition_group"] = "main"
    process = setup.start(ready=False)
    slots = [control.slot(number) for number in range(partitions)]
    wait_until(lambda: all(slot.counters().hung for slot in slots), "the logins are under way", DEADLINE_S)
    (parent,) = process.children("_control")
    tools = children(parent, "tool")
    assert len(tools) == partitions
    end(process)
    if end is to_every_process:
        for pid in tools:
            os.kill(pid, signal.SIGTERM)
    time.sleep(1.0)  # they have had the time to end in the wrong way
    assert all(Path(f"/proc/{pid}/exe").exists() for pid in tools), "they wait for their calls"
    for slot in slots:
        slot.release()
    wait_until(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in tools), "they end when these have", DEADLINE_S)
    assert process.popen.wait(DEADLINE_S) == 0
    assert not any(slot.counters().in_flight for slot in slots), "no call was cut"
    assert not process.events("tool_killed_inside_token")


def test_a_login_that_never_returns_is_waited_for_in_vain_only_so_long_and_named(slow: tuple[Setup, FaultControl]) -> None:
    setup, control = slow
    process = setup.start(ready=False)
    wait_until(lambda: control.slot(0).counters().hung, "the login is under way", DEADLINE_S)
    assert process.stop(timeout_s=DEADLINE_S) == 0
    (event,) = process.events("ended_inside_token")
    assert event["calls"] == 1


def test_a_login_that_does_not_return_at_the_start_is_named(slow: tuple[Setup, FaultControl]) -> None:
    setup, control = slow
    process = setup.start(ready=False)
    (event, *_) = wait_until(lambda: process.events("token_slow"), "the log says what is waited for", DEADLINE_S)
    assert event["partition"] == "p0"
    assert "has not returned" in event["problem"]
    shown = subprocess.run(
        [sys.executable, "-m", "xksfast", "status", "--config", str(setup.directory / "xksfast.toml")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert shown.returncode == 4
    assert "partition p0 is not in service on worker 0: its token has not answered since the start" in shown.stdout
    control.slot(0).release()
    wait_until(lambda: process.events("worker_ready"), "it is served", DEADLINE_S)
    assert process.stop() == 0
