# SPDX-License-Identifier: Apache-2.0
"""`xksfast serve` with real children that refuse to work for a while: certificates, PINs, the master key; and what is said then."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.proxy.test_serve import health
from tests.scenario.nodes import deployment
from tests.servers import Process, free_port, wait_until
from tests.setups import SOFTHSM, Setup

DEADLINE_S = 40.0


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    return Setup(tmp_path)


def kill(process: Process, word: str) -> None:
    """End the child whose command line holds `word`, and wait until that is noticed."""
    ends = len(process.events("child_ended"))
    (pid,) = process.children(word)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: len(process.events("child_ended")) > ends, "its end is noticed", DEADLINE_S)


def status(config: Path) -> subprocess.CompletedProcess[str]:
    """`xksfast status`."""
    command = [sys.executable, "-m", "xksfast", "status", "--config", str(config)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)


@pytest.mark.parametrize("hangs_up", [False, True])
def test_a_certificate_that_was_bad_when_a_worker_was_started_is_read_again(setup: Setup, hangs_up: bool) -> None:
    setup.use_tls()
    good = (setup.directory / "server.pem").read_bytes()
    with setup.running() as process:
        (setup.directory / "server.pem").write_bytes(good[:200])
        kill(process, "_worker")
        wait_until(lambda: process.events("refused"), "the worker refuses", DEADLINE_S)
        shown = status(setup.directory / "xksfast.toml")
        assert shown.returncode == 4
        assert "is not a PEM certificate chain" in shown.stdout
        (setup.directory / "server.pem").write_bytes(good)
        if hangs_up:
            process.popen.send_signal(signal.SIGHUP)
        wait_until(lambda: len(process.events("worker_ready")) == 2, "it serves again", DEADLINE_S)
        client = setup.client()
        assert client.call("encrypt").status == 200
        client.close()
        assert status(setup.directory / "xksfast.toml").returncode == 0


def test_a_pin_that_was_refused_is_tried_when_somebody_says_so(setup: Setup) -> None:
    setup.use_softhsm()
    with setup.running() as process:
        setup.write_secret("pin", "9999")
        kill(process, "_worker")
        (event,) = wait_until(lambda: process.events("refused"), "the worker refuses", DEADLINE_S)
        assert "C_Login" in event["problem"]
        assert "send SIGHUP" in event["next"]
        wait_until(lambda: not process.children("_worker"), "no worker tries it again", DEADLINE_S)
        setup.write_secret("pin", "1234")
        with pytest.raises(AssertionError, match="by itself"):
            wait_until(lambda: process.children("_worker"), "by itself", 2)
        process.popen.send_signal(signal.SIGHUP)
        wait_until(lambda: len(process.events("worker_ready")) == 2, "it serves again", DEADLINE_S)
        client = setup.client()
        assert client.call("encrypt").status == 200
        client.close()


def test_a_worker_that_stands_still_is_replaced_and_requests_are_served(setup: Setup) -> None:
    with setup.running() as process:
        (hung,) = process.children("_worker")
        os.kill(hung, signal.SIGSTOP)
        wait_until(lambda: health(setup, "/ping")[0] == 503, "a balancer is told", DEADLINE_S)
        wait_until(lambda: process.events("worker_hangs"), "it is noticed", DEADLINE_S)
        wait_until(lambda: health(setup, "/ping")[0] == 200, "another one serves", DEADLINE_S)
        client = setup.client()
        assert client.call("encrypt").status == 200
        client.close()
        assert process.children("_worker") != [hung]


@pytest.mark.timeout(180)
def test_a_node_without_its_control_process_says_so_and_gets_one_by_itself(tmp_path: Path) -> None:
    with deployment(tmp_path, f"sqlite:///{tmp_path}/state.db", ("n1",)) as proxies:
        (node,) = proxies.nodes
        process = node.process
        assert process is not None
        master_key = next(tmp_path.rglob("master.key"))
        wait_until(lambda: status(node.config).returncode == 0, "all is well", DEADLINE_S)
        master_key.rename(tmp_path / "away")
        kill(process, "_control")
        wait_until(lambda: process.events("refused"), "it refuses", DEADLINE_S)
        shown = status(node.config)
        assert shown.returncode == 4
        assert "no control process: nothing is heard; " in shown.stdout
        assert "master.key" in shown.stdout
        with (
            socket.create_connection(("127.0.0.1", node.admin_port), timeout=DEADLINE_S) as waiting,
            pytest.raises(ConnectionError),
        ):
            waiting.recv(1)  # nobody waits for an answer that does not come
        (tmp_path / "away").rename(master_key)
        wait_until(lambda: status(node.config).returncode == 0, "it is tried again by itself", DEADLINE_S)
        wait_until(lambda: len(process.events("admin_listening")) == 2, "administration is served", DEADLINE_S)
        assert proxies.shell("node", "list")[0]["name"] == "n1"


@pytest.mark.timeout(180)
def test_administration_that_a_bad_certificate_kept_away_is_missed_and_comes_by_itself(tmp_path: Path) -> None:
    with deployment(tmp_path, f"sqlite:///{tmp_path}/state.db", ("n1",)) as proxies:
        (node,) = proxies.nodes
        process = node.process
        assert process is not None
        good = (tmp_path / "server.pem").read_bytes()
        (tmp_path / "server.pem").write_bytes(good[:200])
        kill(process, "_control")
        wait_until(lambda: process.events("admin_not_served"), "it is said", DEADLINE_S)
        wait_until(lambda: "administration is not served: " in status(node.config).stdout, "the status says so", DEADLINE_S)
        assert status(node.config).returncode == 4
        (tmp_path / "server.pem").write_bytes(good)
        wait_until(lambda: len(process.events("admin_listening")) == 2, "it is tried again by itself", DEADLINE_S)
        wait_until(lambda: status(node.config).returncode == 0, "all is well", DEADLINE_S)
        assert len(process.events("admin_not_served")) == 1, "the same words are said once"


def test_a_pin_of_the_master_key_s_partition_that_was_refused_is_not_tried_again_by_itself(setup: Setup) -> None:
    setup.use_softhsm()
    make = ["--keygen", "--key-type", "AES:32", "--label", "xksfast-master", "--sensitive"]
    subprocess.run(
        ["pkcs11-tool", "--module", SOFTHSM, "--token-label", "t0", "--login", "--pin", "1234", *make],
        env={**os.environ, **setup.softhsm_environment},
        check=True,
        capture_output=True,
    )
    setup.config["state"] = {"url": "sqlite:///x.db", "master_key_partition": "p0"}
    setup.config["admin"] = {"listen": f"127.0.0.1:{free_port()}"}
    with setup.running() as process:
        setup.write_secret("pin", "9999")
        kill(process, "_control")
        (event,) = wait_until(lambda: process.events("refused"), "the control process refuses", DEADLINE_S)
        assert event["by"] == "control"
        assert "send SIGHUP" in event["next"]
        wait_until(lambda: not process.children("_control"), "it has ended", DEADLINE_S)
        with pytest.raises(AssertionError, match="by itself"):
            wait_until(lambda: process.children("_control"), "by itself", 2)
        assert status(setup.directory / "xksfast.toml").returncode == 4
        setup.write_secret("pin", "1234")
        process.popen.send_signal(signal.SIGHUP)
        wait_until(lambda: status(setup.directory / "xksfast.toml").returncode == 0, "all is well", DEADLINE_S)
