# SPDX-License-Identifier: Apache-2.0
"""Connections without an accepted signature: how long they may stay, how many there may be, and that they harm nobody else."""

from __future__ import annotations

import json
import os
import resource
import ssl
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import pytest

from tests.proxy.worker_process import running_worker
from tests.raw import RawConnection, signed
from tests.servers import wait_until
from tests.setups import Setup
from xksfast import messages
from xksfast.wire import limits

FOR_EVER_MS = 600_000


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    return Setup(tmp_path)


@pytest.fixture
def opened() -> Iterator[list[RawConnection]]:
    """Connections to be closed at the end."""
    made: list[RawConnection] = []
    yield made
    for connection in made:
        connection.sock.close()


def open_files(pid: int) -> tuple[int, int]:
    """(soft, hard) limit of a process."""
    (line,) = [line for line in Path(f"/proc/{pid}/limits").read_text().splitlines() if line.startswith("Max open files")]
    soft, hard = line.split()[3:5]
    return int(soft), int(hard)


def authenticated(setup: Setup) -> int:
    """Connections that the supervisor takes for such."""
    connection = HTTPConnection("127.0.0.1", setup.health_port, timeout=10)
    connection.request("GET", "/readyz")
    workers = json.load(connection.getresponse())["workers"]
    connection.close()
    return sum(worker["authenticated"] for worker in workers)


class TestDescriptors:
    """The limit of open files is used in full and respected."""

    def test_every_process_may_open_as_many_files_as_the_hard_limit_allows(self, setup: Setup) -> None:
        process = setup.start(wrapper=("prlimit", "--nofile=512:2048"))
        try:
            for pid in (process.pid, *process.children("_worker"), *process.children("_control")):
                assert open_files(pid) == (2048, 2048)
            assert process.events("max_connections_lowered") == []
        finally:
            assert process.stop() == 0

    def test_more_silent_connections_than_files_may_be_open_cost_nobody_else_anything(
        self, setup: Setup, opened: list[RawConnection]
    ) -> None:
        setup.config["proxy"]["header_timeout_ms"] = FOR_EVER_MS
        process = setup.start(wrapper=("prlimit", "--nofile=256:256"))
        try:
            client = setup.client()
            with RawConnection(client.address) as good:
                for _ in range(2):
                    good.send(signed(client))
                    answer = good.answer()
                    assert answer is not None
                    assert answer.status == 200
                    opened += [RawConnection(client.address) for _ in range(300)]
                assert client.call("health").status == 200, "a new connection is served"
            client.close()
            assert process.events("child_ended") == []
            (event,) = process.events("max_connections_lowered")
            assert event["max_connections"] == 1024
            assert 0 < event["served"] < 256
            assert "open files" in event["next"]
        finally:
            assert process.stop() == 0

    def test_a_connection_that_a_worker_has_no_number_for_costs_itself_only(self, opened: list[RawConnection]) -> None:
        with running_worker() as worker:
            worker.begin()
            client, pid = worker.client(), worker.process.pid
            with RawConnection(client.address) as kept:
                kept.send(signed(client))
                assert kept.answer() is not None
                former = resource.prlimit(pid, resource.RLIMIT_NOFILE)
                resource.prlimit(pid, resource.RLIMIT_NOFILE, (len(os.listdir(f"/proc/{pid}/fd")) + 2, former[1]))
                opened += [RawConnection(client.address) for _ in range(10)]

                def closed() -> int:
                    return max(message.closed for message in tuple(worker.told) if isinstance(message, messages.Heartbeat))

                wait_until(lambda: closed() >= 8, "the worker counts what it could not take")
                resource.prlimit(pid, resource.RLIMIT_NOFILE, former)
                kept.send(signed(client))
                answer = kept.answer()
                assert answer is not None
                assert answer.status == 200
            assert client.call("health").status == 200, "new ones are served again"
            client.close()
            assert worker.process.poll() is None

    def test_a_limit_that_leaves_no_room_for_connections_is_refused_with_what_to_do(self, setup: Setup) -> None:
        process = setup.start(wrapper=("prlimit", "--nofile=64:64"), ready=False)
        assert process.popen.wait(20) == 2
        assert "LimitNOFILE" in process.log_file.read_text()


class TestTime:
    """The header deadline until a signature was accepted, the idle time-out after it."""

    @pytest.fixture
    def setup(self, tmp_path: Path) -> Iterator[Setup]:
        setup = Setup(tmp_path)
        setup.use_tls()
        setup.config["proxy"] |= {"header_timeout_ms": 300, "idle_timeout_s": 3600}
        with setup.running():
            yield setup

    def tls(self, setup: Setup) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(setup.directory / "dev-ca.pem"))

    @pytest.mark.parametrize("protocol", ["plain", "tls"])
    def test_a_silent_connection_is_let_go_at_the_header_deadline(self, setup: Setup, protocol: str) -> None:
        port, tls = (setup.port, None) if protocol == "plain" else (setup.tls_port, self.tls(setup))
        with RawConnection(("127.0.0.1", port), tls=tls) as connection:
            assert connection.answer() is None

    @pytest.mark.parametrize("status", [401, 404])
    def test_a_refused_stranger_is_let_go_at_the_header_deadline(self, setup: Setup, status: int) -> None:
        client = setup.client()
        request = signed(client)
        request = request.replace(b"Signature=", b"Signature=0", 1) if status == 401 else request.replace(b"/one/", b"/two/", 1)
        with RawConnection(client.address) as connection:
            connection.send(request)
            answer = connection.answer()
            assert answer is not None
            assert answer.status == status
            assert not answer.closes
            assert connection.answer() is None

    @pytest.mark.parametrize("protocol", ["plain", "tls"])
    def test_a_connection_with_an_accepted_signature_outlives_strangers(self, setup: Setup, protocol: str) -> None:
        client = setup.client()
        port, tls = (setup.port, None) if protocol == "plain" else (setup.tls_port, self.tls(setup))
        with RawConnection(("127.0.0.1", port), tls=tls) as known:
            for _ in range(3):
                known.send(signed(client))
                answer = known.answer()
                assert answer is not None
                assert answer.status == 200
                with RawConnection(client.address) as stranger:  # opened after it, gone before it
                    assert stranger.answer() is None

    def test_an_empty_line_is_no_request_and_gets_no_answer(self, setup: Setup) -> None:
        client = setup.client()
        with RawConnection(client.address) as known:
            known.send(signed(client))
            assert known.answer() is not None
            known.send(b"\r\n")
            with RawConnection(client.address) as stranger:  # as long as a header deadline
                assert stranger.answer() is None
            with RawConnection(client.address) as stranger:
                assert stranger.answer() is None
            known.send(signed(client))
            answer = known.answer()
            assert answer is not None
            assert answer.status == 200


class TestRefusals:
    """What refusals a stranger can bring about in one go, each of which takes time from those who are served."""

    @pytest.fixture
    def setup(self, tmp_path: Path) -> Iterator[Setup]:
        setup = Setup(tmp_path)
        with setup.running():
            yield setup

    @pytest.mark.parametrize("status", [401, 404])
    def test_a_stranger_that_is_refused_again_and_again_is_let_go(self, setup: Setup, status: int) -> None:
        client = setup.client()
        request = signed(client)
        request = request.replace(b"Signature=", b"Signature=0", 1) if status == 401 else request.replace(b"/one/", b"/two/", 1)
        with RawConnection(client.address) as connection:
            connection.send(request * 200)
            answers = []
            while (answer := connection.answer()) is not None:
                answers.append(answer)
        assert [answer.status for answer in answers] == [status] * limits.MAX_STRANGERS_REFUSALS
        assert [answer.closes for answer in answers] == [False] * (len(answers) - 1) + [True]

    def test_who_has_shown_a_valid_signature_may_be_refused_often(self, setup: Setup) -> None:
        client = setup.client()
        good = signed(client)
        with RawConnection(client.address) as connection:
            connection.send(good + good.replace(b"/one/", b"/two/", 1) * 50 + good)
            answers = [connection.answer() for _ in range(52)]
        assert [answer and answer.status for answer in answers] == [200] + [404] * 50 + [200]


class TestRoom:
    """At max_connections strangers make room for those who come."""

    @pytest.fixture(params=[1, 2])
    def setup(self, tmp_path: Path, request: pytest.FixtureRequest) -> Setup:
        setup = Setup(tmp_path)
        setup.config["proxy"] |= {"max_connections": 8, "header_timeout_ms": FOR_EVER_MS, "workers": request.param}
        return setup

    def test_strangers_that_come_again_and_again_keep_nobody_out(self, setup: Setup, opened: list[RawConnection]) -> None:
        with setup.running() as process:
            client = setup.client()
            kept = [RawConnection(client.address) for _ in range(4)]
            for connection in kept:
                connection.send(signed(client))
                assert connection.answer() is not None
            for number in range(20):
                opened += [RawConnection(client.address) for _ in range(10)]
                for connection in kept:
                    connection.send(signed(client))
                    answer = connection.answer()
                    assert answer is not None, f"an authenticated connection was closed in round {number}"
                    assert answer.status == 200
                with RawConnection(client.address) as fresh:
                    fresh.send(signed(client))
                    answer = fresh.answer()
                    assert answer is not None, f"round {number}"
                    assert answer.status == 200
            for connection in kept:
                connection.sock.close()
            client.close()
            assert process.events("child_ended") == []
            assert process.events("connection_cap")

    def test_authenticated_connections_are_not_closed_for_others_which_wait(
        self, setup: Setup, opened: list[RawConnection]
    ) -> None:
        with setup.running():
            client = setup.client()
            request = signed(client)
            opened += [RawConnection(client.address) for _ in range(8)]
            for connection in opened:
                connection.send(request)
                assert connection.answer() is not None
            wait_until(lambda: authenticated(setup) == 8, "the supervisor knows them")
            with RawConnection(client.address, timeout_s=1.5) as waiting:
                waiting.send(request)
                with pytest.raises(TimeoutError):
                    waiting.answer()
                for connection in opened:
                    connection.send(request)
                    answer = connection.answer()
                    assert answer is not None
                    assert answer.status == 200
                opened[0].sock.close()
                waiting.sock.settimeout(20)
                answer = waiting.answer()
                assert answer is not None
                assert answer.status == 200
