# SPDX-License-Identifier: Apache-2.0
"""Nobody reads the log: a pager was stopped, a disk is full. Every process goes on, and ends when it is told to."""

from __future__ import annotations

import fcntl
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.servers import wait_until
from tests.setups import Setup

PIPE_BYTES = 4096  # the smallest there is: it is full after some twenty lines


@dataclass
class Stalled:
    """A `serve` whose stderr is a full pipe that nobody reads."""

    setup: Setup
    popen: subprocess.Popen[bytes]
    reading_end: int

    def health(self, path: str) -> int:
        """The status of a page of the supervisor; 0: there is no answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.setup.health_port, timeout=10)
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        except ConnectionError:
            return 0
        finally:
            connection.close()

    def refuse_handshakes(self, count: int) -> None:
        """What a stranger can do: plain HTTP to the TLS port, over and over."""
        for _ in range(count):
            with socket.create_connection(("127.0.0.1", self.setup.tls_port), timeout=10) as connection:
                connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
                while connection.recv(4096):
                    pass

    def read_all(self) -> list[dict[str, object]]:
        """Every line from now on, until all processes have ended."""
        with os.fdopen(os.dup(self.reading_end), "rb") as text:
            return [json.loads(line) for line in text]


@pytest.fixture
def stalled(tmp_path: Path) -> Iterator[Stalled]:
    setup = Setup(tmp_path)
    setup.use_tls()
    setup.write()
    reading_end, writing_end = os.pipe()
    fcntl.fcntl(writing_end, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    popen = subprocess.Popen(
        [sys.executable, "-m", "xksfast", "serve", "--config", str(tmp_path / "xksfast.toml")],
        stdin=subprocess.DEVNULL,
        stderr=writing_end,
    )
    os.close(writing_end)
    it = Stalled(setup, popen, reading_end)
    try:
        wait_until(lambda: it.health("/readyz") == 200, "ready", 30)
        client = setup.client()
        for _ in range(50):  # lines of requests that are signed are not limited
            assert client.call("encrypt", key="unknown").status == 404
        client.close()
        yield it
    finally:
        popen.kill()
        popen.wait(10)
        os.close(reading_end)


def test_strangers_and_a_stalled_log_keep_nobody_from_being_served(stalled: Stalled) -> None:
    client = stalled.setup.client()
    for _ in range(5):
        stalled.refuse_handshakes(200)
        assert client.call("encrypt").status == 200
    client.close()


def test_the_supervisor_and_control_go_on_with_a_stalled_log(stalled: Stalled) -> None:
    for _ in range(20):  # each is some lines of both of them
        stalled.popen.send_signal(signal.SIGHUP)
        assert stalled.health("/readyz") == 200
    stalled.setup.stores["key_stores"]["two"] = stalled.setup.local_store("/two")
    stalled.setup.write()
    stalled.popen.send_signal(signal.SIGHUP)
    client = stalled.setup.client("two")
    wait_until(lambda: client.call("encrypt").status == 200, "what is new is served", 20)
    client.close()


def test_it_ends_when_it_is_told_to_though_nobody_reads_its_log(stalled: Stalled) -> None:
    stalled.popen.send_signal(signal.SIGTERM)
    assert stalled.popen.wait(40) == 0


def test_lines_that_waited_are_written_whole_when_the_reader_goes_on(stalled: Stalled) -> None:
    stalled.refuse_handshakes(50)
    lines: list[dict[str, object]] = []
    reader = threading.Thread(target=lambda: lines.extend(stalled.read_all()))
    reader.start()
    stalled.popen.send_signal(signal.SIGTERM)
    assert stalled.popen.wait(40) == 0
    reader.join(20)
    requests = [line for line in lines if line["event"] == "request"]
    assert [line["result"] for line in requests] == ["KeyNotFoundException"] * 50
    refused = [line for line in lines if line["event"] == "tls_handshake_refused"]
    left_out = [line for line in lines if line.get("of") == "tls_handshake_refused"]
    assert len(refused) + sum(int(str(line["suppressed"])) for line in left_out) == 50
    assert lines[-1]["event"] == "ended"
