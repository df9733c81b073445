# SPDX-License-Identifier: Apache-2.0
"""SIGTERM loses no request that has arrived: clients here never send one again."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path

import pytest

from tests.raw import RawConnection, signed
from tests.servers import Process, wait_until
from tests.setups import Setup

CLIENTS = 16


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    return Setup(tmp_path)


@pytest.fixture
def server(setup: Setup) -> Iterator[Process]:
    process = setup.start()
    yield process
    if process.popen.poll() is None:
        process.stop(signal.SIGKILL)


def ping(setup: Setup) -> int:
    connection = HTTPConnection("127.0.0.1", setup.health_port, timeout=10)
    try:
        connection.request("GET", "/ping")
        return connection.getresponse().status
    finally:
        connection.close()


class ClosedLoop:
    """A client that sends its next request when it has its answer, until it is told that the connection ends."""

    def __init__(self, address: tuple[str, int], request: bytes) -> None:
        self.answered = 0
        self.lost = 0
        self.other: list[int] = []
        self._connection = RawConnection(address)
        self._request = request
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while True:
            try:
                self._connection.send(self._request)
                answer = self._connection.answer()
            except OSError:
                answer = None
            if answer is None:
                self.lost += 1
                return
            self.answered += 1
            if answer.status != 200:
                self.other.append(answer.status)
            if answer.closes:
                self._connection.sock.close()
                return


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("round_number", range(3))
def test_busy_clients_that_never_resend_lose_nothing(setup: Setup, workers: int, round_number: int) -> None:
    setup.config["proxy"]["workers"] = workers
    process = setup.start()
    client = setup.client()
    clients = [ClosedLoop(client.address, signed(client, "encrypt")) for _ in range(CLIENTS)]
    for each in clients:
        each.thread.start()
    wait_until(lambda: all(each.answered > 20 for each in clients), "all are served", 30)
    assert process.stop() == 0
    for each in clients:
        each.thread.join(20)
    assert sum(each.lost for each in clients) == 0
    assert [status for each in clients for status in each.other] == []
    client.close()


class NewConnections(ClosedLoop):
    """The same, and then a new connection, until it is told to stop."""

    def __init__(self, address: tuple[str, int], request: bytes) -> None:
        super().__init__(address, request)
        self.over = False
        self._address = address

    def _run(self) -> None:
        super()._run()
        while not self.over:
            self._connection.sock.close()
            self._connection = RawConnection(self._address)
            super()._run()
        self._connection.sock.close()


def test_a_worker_that_alone_is_told_to_end_loses_no_request(setup: Setup) -> None:
    setup.config["proxy"]["workers"] = 2
    process = setup.start()
    client = setup.client()
    clients = [NewConnections(client.address, signed(client, "encrypt", Connection="close")) for _ in range(CLIENTS)]
    for each in clients:
        each.thread.start()
    wait_until(lambda: all(each.answered > 5 for each in clients), "all are served", 30)
    for pid in process.children("_worker"):
        os.kill(pid, signal.SIGTERM)
    wait_until(lambda: len(process.events("worker_ready")) == 4, "both are replaced", 30)
    for each in clients:
        each.over = True
        each.thread.join(20)
    assert sum(each.lost for each in clients) == 0
    assert [status for each in clients for status in each.other] == []
    assert process.stop() == 0
    client.close()


def tell_every_process_to_end(process: Process) -> None:
    """As a service manager does that is not told otherwise."""
    for pid in (*process.children("_worker"), *process.children("_control"), process.pid):
        os.kill(pid, signal.SIGTERM)


def test_a_service_manager_that_tells_every_process_to_end_loses_no_request(setup: Setup) -> None:
    setup.config["proxy"]["workers"] = 2
    process = setup.start()
    client = setup.client()
    clients = [ClosedLoop(client.address, signed(client, "encrypt")) for _ in range(CLIENTS)]
    for each in clients:
        each.thread.start()
    wait_until(lambda: all(each.answered > 5 for each in clients), "all are served", 30)
    tell_every_process_to_end(process)
    assert process.popen.wait(30) == 0
    for each in clients:
        each.thread.join(20)
    assert sum(each.lost for each in clients) == 0
    client.close()


def test_a_service_manager_that_tells_every_process_to_end_loses_none_in_the_drain_delay(setup: Setup) -> None:
    setup.config["proxy"] |= {"workers": 2, "drain_delay_s": 600}
    process = setup.start()
    client = setup.client()
    requests = [signed(client, "encrypt"), signed(client, "encrypt", Connection="close")]
    clients = [NewConnections(client.address, request) for request in requests * (CLIENTS // 2)]
    for each in clients:
        each.thread.start()
    wait_until(lambda: all(each.answered > 5 for each in clients), "all are served", 30)
    tell_every_process_to_end(process)
    wait_until(lambda: process.events("draining"), "it drains")
    so_far = [each.answered for each in clients]
    for each in clients[::2]:
        each.over = True  # these keep their connections until somebody says close
    wait_until(lambda: all(each.answered > was + 5 for each, was in zip(clients[1::2], so_far[1::2], strict=True)), "on", 30)
    for each in clients:
        each.over = True
    for each in clients[1::2]:
        each.thread.join(20)
    process.popen.send_signal(signal.SIGTERM)  # impatience
    assert process.popen.wait(30) == 0
    for each in clients:
        each.thread.join(20)
    assert sum(each.lost for each in clients[1::2]) == 0
    client.close()


def test_a_worker_whose_supervisor_was_killed_ends_though_a_stranger_goes_on_sending(setup: Setup) -> None:
    setup.use_tls()
    setup.config["proxy"] |= {"handshake_timeout_ms": 1000, "drain_timeout_s": 60}
    process = setup.start()
    (worker,) = process.children("_worker")
    over = threading.Event()
    client_hello_without_end = b"\x16\x03\x01\x40\x00\x01\x00\x3f\xfc" + bytes(16000)
    with socket.create_connection(("127.0.0.1", setup.tls_port)) as stranger:

        def trickle() -> None:
            for byte in client_hello_without_end:
                try:
                    stranger.send(bytes([byte]))
                except OSError:
                    return
                if over.wait(0.05):
                    return

        thread = threading.Thread(target=trickle)
        thread.start()
        try:
            process.stop(signal.SIGKILL)
            wait_until(lambda: not Path(f"/proc/{worker}/cmdline").exists(), "the worker ends", 30)
        finally:
            over.set()
            thread.join()
            if Path(f"/proc/{worker}").exists():
                os.kill(worker, signal.SIGKILL)


@pytest.fixture
def stopped(server: Process) -> Iterator[Callable[[int], None]]:
    """Stops a process, which goes on after the test whatever happens."""
    pids: list[int] = []

    def stop(pid: int) -> None:
        pids.append(pid)
        os.kill(pid, signal.SIGSTOP)

    yield stop
    for pid in pids:
        if Path(f"/proc/{pid}").exists():
            os.kill(pid, signal.SIGCONT)


def test_requests_that_lie_in_the_socket_are_answered(setup: Setup, server: Process, stopped: Callable[[int], None]) -> None:
    client = setup.client()
    request = signed(client)
    (worker,) = server.children("_worker")
    with RawConnection(client.address) as one, RawConnection(client.address) as five:
        for connection in (one, five):
            connection.send(request)
            answer = connection.answer()
            assert answer is not None
            assert (answer.status, answer.closes) == (200, False)
        stopped(worker)
        one.send(request)
        five.send(request * 5)
        server.popen.send_signal(signal.SIGTERM)
        wait_until(lambda: server.events("draining"), "it drains")
        os.kill(worker, signal.SIGCONT)
        answer = one.answer()
        assert answer is not None, "the request was lost"
        assert answer.status == 200
        assert one.answer() is None
        answers = [five.answer() for _ in range(5)]
        assert [answer and answer.status for answer in answers] == [200] * 5
        assert [answer and answer.closes for answer in answers[:4]] == [False] * 4
        assert five.answer() is None
    assert server.popen.wait(20) == 0


def test_a_request_on_a_connection_that_nobody_has_accepted_yet_is_answered(
    setup: Setup, server: Process, stopped: Callable[[int], None]
) -> None:
    client = setup.client()
    stopped(server.pid)
    waiting = [RawConnection(client.address) for _ in range(40)]
    for connection in waiting:
        connection.send(signed(client))
    server.popen.send_signal(signal.SIGTERM)
    os.kill(server.pid, signal.SIGCONT)
    for connection in waiting:
        answer = connection.answer()
        assert answer is not None, "the connection was reset"
        assert answer.status == 200
        connection.sock.close()
    assert server.popen.wait(20) == 0


def test_a_request_whose_second_half_comes_while_draining_is_answered(setup: Setup, server: Process) -> None:
    client = setup.client()
    request = signed(client)
    with RawConnection(client.address) as connection, RawConnection(client.address) as silent:
        connection.send(request[:-5])
        server.popen.send_signal(signal.SIGTERM)
        assert silent.answer() is None, "a silent one is let go"
        connection.send(request[-5:])
        answer = connection.answer()
        assert answer is not None
        assert (answer.status, answer.closes) == (200, True)
    assert server.popen.wait(20) == 0


def test_an_answer_to_a_client_that_wants_to_close_says_close(setup: Setup, server: Process) -> None:
    client = setup.client()
    with RawConnection(client.address) as connection:
        connection.send(signed(client, Connection="close"))
        answer = connection.answer()
        assert answer is not None
        assert (answer.status, answer.closes) == (200, True)
        assert connection.answer() is None
    assert server.stop() == 0


def test_with_a_drain_delay_it_says_unready_and_goes_on_accepting_until_it_is_over(setup: Setup) -> None:
    setup.config["proxy"]["drain_delay_s"] = 600
    process = setup.start()
    client = setup.client()
    process.popen.send_signal(signal.SIGTERM)
    wait_until(lambda: ping(setup) == 503, "/ping says so")
    with RawConnection(client.address) as connection:
        connection.send(signed(client))
        answer = connection.answer()
        assert answer is not None
        assert (answer.status, answer.closes) == (200, False)
        process.popen.send_signal(signal.SIGTERM)  # impatience
        assert connection.answer() is None
    assert process.popen.wait(20) == 0
    with pytest.raises(ConnectionRefusedError), socket.create_connection(client.address, 5):
        pass


def test_a_drain_delay_ends_by_itself(setup: Setup) -> None:
    setup.config["proxy"]["drain_delay_s"] = 1
    process = setup.start()
    process.popen.send_signal(signal.SIGTERM)
    assert process.popen.wait(20) == 0
