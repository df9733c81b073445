# SPDX-License-Identifier: Apache-2.0
"""Malformed, truncated, slow and oversized HTTP over real sockets: always one line of JSON or a close, never a crash or a hang."""

from __future__ import annotations

import json
import random
import socket
import time
from pathlib import Path

import pytest

from tests.adversity.http_cases import CASES, Case
from tests.client import Client
from tests.fix_proxy import RunningProxy
from tests.raw import RawConnection, signed
from tests.setups import Setup

requirement = pytest.mark.requirement


class Raw:
    """A socket that reads whole HTTP answers."""

    def __init__(self, address: tuple[str, int], timeout_s: float = 5) -> None:
        self.sock = socket.create_connection(address, timeout=timeout_s)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._rest = b""

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def answer(self) -> tuple[int, dict[str, object]] | None:
        """The next answer, interim ones included as (100, {}); None when the peer closed. Checks that it is proper JSON over HTTP."""
        while b"\r\n\r\n" not in self._rest:
            if not self._more():
                assert self._rest == b"", self._rest[:200]
                return None
        head, self._rest = self._rest.split(b"\r\n\r\n", 1)
        lines = head.decode("ascii").split("\r\n")
        version, status, _ = lines[0].split(" ", 2)
        assert version == "HTTP/1.1"
        if status == "100":
            return 100, {}
        headers = dict(line.lower().split(": ", 1) for line in lines[1:])
        assert headers["content-type"] == "application/json"
        length = int(headers["content-length"])
        while len(self._rest) < length:
            assert self._more(), "closed in the middle of an answer"
        body, self._rest = self._rest[:length], self._rest[length:]
        assert b"\n" not in body
        return int(status), json.loads(body)

    def _more(self) -> bool:
        try:
            data = self.sock.recv(65536)
        except ConnectionResetError:
            return False
        self._rest += data
        return bool(data)


@requirement(103)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_is_not_proper_http_is_refused_in_json(proxy: RunningProxy, local_client: Client, case: Case) -> None:
    raw = case.raw.replace("{p}", local_client.path("health")).encode("latin-1")
    with Raw(proxy.address) as connection:
        connection.send(raw)
        answer = connection.answer()
        assert answer is not None
        status, document = answer
        assert status in case.statuses, document
        assert document["errorName"]
        if case.closes:
            assert connection.answer() is None
        else:
            connection.send(signed(local_client))
            answer = connection.answer()
            assert answer is not None
            assert answer[0] == 200
    assert local_client.call("health").status == 200


def test_a_request_that_arrives_byte_by_byte_is_served(proxy: RunningProxy, local_client: Client) -> None:
    request = signed(local_client)
    with Raw(proxy.address) as connection:
        for byte in request:
            connection.send(bytes([byte]))
        answer = connection.answer()
    assert answer is not None
    assert answer[0] == 200


@pytest.mark.parametrize("pause_at", ["start line", "header", "blank line", "body"])
def test_a_request_in_two_halves_is_served(proxy: RunningProxy, local_client: Client, pause_at: str) -> None:
    request = signed(local_client)
    at = {"start line": 3, "header": 80, "blank line": request.index(b"\r\n\r\n") + 2, "body": len(request) - 5}[pause_at]
    with Raw(proxy.address) as connection:
        connection.send(request[:at])
        time.sleep(0.02)  # the point of the test: two segments
        connection.send(request[at:])
        answer = connection.answer()
    assert answer is not None
    assert answer[0] == 200


@pytest.mark.parametrize("fraction", [0.01, 0.3, 0.6, 0.99])
def test_a_truncated_request_gets_nothing_and_costs_nothing(proxy: RunningProxy, local_client: Client, fraction: float) -> None:
    request = signed(local_client)
    with Raw(proxy.address) as connection:
        connection.send(request[: int(len(request) * fraction)])
        connection.sock.shutdown(socket.SHUT_WR)
        assert connection.answer() is None
    assert local_client.call("health").status == 200


def test_twenty_requests_in_one_segment_are_answered_in_order(proxy: RunningProxy, local_client: Client) -> None:
    wanted = []
    stream = b""
    for i in range(20):
        operation = ("encrypt", "metadata", "health")[i % 3]
        stream += signed(local_client, operation)
        wanted.append({"encrypt": "ciphertext", "metadata": "keySpec", "health": "ekmVendor"}[operation])
    with Raw(proxy.address) as connection:
        connection.send(stream)
        for member in wanted:
            answer = connection.answer()
            assert answer is not None
            assert answer[0] == 200
            assert member in answer[1]


@pytest.mark.parametrize("key_source", ["softhsm", "nss"])
def test_pipelined_requests_of_a_token_are_answered_in_order(proxies: dict[str, RunningProxy], key_source: str) -> None:
    proxy = proxies[key_source]
    client = proxy.client()
    stream, lengths = b"", []
    for i in range(100):
        document = client.valid("encrypt") | {"plaintext": "AAAA" * (i + 1)}
        stream += signed(client, "encrypt", document) + (signed(client, "metadata") if i % 7 == 0 else b"")
        lengths += [4 * (i + 1)] + ([0] if i % 7 == 0 else [])
    with Raw(proxy.address) as connection:
        connection.send(stream)
        for length in lengths:
            answer = connection.answer()
            assert answer is not None
            assert answer[0] == 200
            assert len(str(answer[1].get("ciphertext", ""))) == length
    client.close()


def test_a_refused_request_does_not_swallow_the_answers_before_it(proxy: RunningProxy, local_client: Client) -> None:
    with Raw(proxy.address) as connection:
        connection.send(signed(local_client, "encrypt") + signed(local_client) + b"NOT HTTP\r\n\r\n")
        statuses = [connection.answer(), connection.answer(), connection.answer()]
        assert [answer and answer[0] for answer in statuses] == [200, 200, 400]
        assert connection.answer() is None


def test_expect_100_continue_is_honoured(proxy: RunningProxy, local_client: Client) -> None:
    request = signed(local_client, Expect="100-continue")
    head_end = request.index(b"\r\n\r\n") + 4
    with Raw(proxy.address) as connection:
        connection.send(request[:head_end])
        assert connection.answer() == (100, {})
        connection.send(request[head_end:])
        answer = connection.answer()
    assert answer is not None
    assert answer[0] == 200


def test_expect_100_continue_is_not_invited_where_the_request_is_refused(proxy: RunningProxy, local_client: Client) -> None:
    with Raw(proxy.address) as connection:
        connection.send(
            f"POST {local_client.path('health')} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 70000\r\n\r\n".encode()
        )
        answer = connection.answer()
        assert answer is not None
        assert answer[0] == 413


@pytest.mark.parametrize(("path", "status"), [("/one/two", 404), ("{p}", 405)])
def test_head_is_answered_without_a_body_on_a_connection_that_ends(
    proxy: RunningProxy, local_client: Client, path: str, status: int
) -> None:
    path = path.replace("{p}", local_client.path("health"))
    with RawConnection(proxy.address) as connection:
        connection.send(f"HEAD {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode() + signed(local_client))
        answer = connection.answer(of_head=True)
        assert answer is not None
        assert answer.status == status
        assert answer.closes
        assert int(answer.headers["content-length"]) > 0, "of the body that another method would get"
        assert connection.answer() is None, "nothing follows: no body, no further answer"


def test_a_broken_head_request_gets_no_body_either(proxy: RunningProxy) -> None:
    with RawConnection(proxy.address) as connection:
        connection.send(b"HEAD / HTTP/1.1\r\nContent-Length: 1, 2\r\n\r\n")
        answer = connection.answer(of_head=True)
        assert answer is not None
        assert answer.status == 400
        assert connection.answer() is None


@pytest.mark.parametrize(("path", "status"), [("/one/two", 404), ("{p}", 405)])
def test_who_expects_100_continue_and_is_refused_is_told_at_once(
    proxy: RunningProxy, local_client: Client, path: str, status: int
) -> None:
    path, method = path.replace("{p}", local_client.path("health")), "POST" if status == 404 else "PUT"
    with RawConnection(proxy.address) as connection:
        connection.send(f"{method} {path} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 70\r\n\r\n".encode())
        answer = connection.answer()
        assert answer is not None
        assert answer.status == status
        assert answer.closes
        assert connection.answer() is None


def test_connection_close_is_honoured(proxy: RunningProxy, local_client: Client) -> None:
    with Raw(proxy.address) as connection:
        connection.send(signed(local_client, Connection="close"))
        answer = connection.answer()
        assert answer is not None
        assert answer[0] == 200
        assert connection.answer() is None


def test_a_body_of_exactly_the_bound_is_read(proxy: RunningProxy, local_client: Client) -> None:
    document = local_client.valid("health")
    document["padding"] = ""
    document["padding"] = "x" * (65536 - len(json.dumps(document)))
    assert len(json.dumps(document)) == 65536
    assert local_client.call("health", document).status == 200


class TestSlowClients:
    """Deadlines against clients that hold a connection without asking anything."""

    @pytest.fixture
    def setup(self, tmp_path: Path) -> Setup:
        setup = Setup(tmp_path)
        setup.config["proxy"] |= {
            "header_timeout_ms": 300,
            "request_timeout_ms": 600,
            "idle_timeout_s": 1,
            "max_connections": 300,
        }
        return setup

    @pytest.mark.parametrize(("what", "status"), [("head", 408), ("body", 408), ("idle", None)])
    def test_a_slow_client_is_let_go(self, setup: Setup, what: str, status: int | None) -> None:
        with setup.running():
            client = setup.client()
            request = signed(client)
            with Raw(client.address) as connection:
                began = time.monotonic()
                connection.send({"head": request[:20], "body": request[:-5], "idle": b""}[what])
                answer = connection.answer()
                assert (answer and answer[0]) == status
                assert connection.answer() is None
                assert 0.25 < time.monotonic() - began < 3
            client.close()

    def test_three_hundred_slow_connections_do_not_keep_others_out(self, setup: Setup) -> None:
        with setup.running():
            client = setup.client()
            slow = []
            for _ in range(299):  # each begins at once: a silent one is let go without an answer
                slow.append(Raw(client.address, 10))
                slow[-1].send(b"POST /one/kms/xks/v1/health HTTP/1.1\r\nHo")
            assert client.call("health").status == 200
            for connection in slow:
                answer = connection.answer()
                assert (answer and answer[0]) == 408
                connection.sock.close()
            client.close()


MUTATIONS = 10_000


@pytest.mark.timeout(300)
def test_ten_thousand_mutations_of_a_valid_request_never_break_anything(proxies: dict[str, RunningProxy]) -> None:
    """Seeded. Every answer is JSON over HTTP, none but the allowed statuses, and the server still serves."""
    proxy = proxies["softhsm"]
    client = proxy.client()
    chance = random.Random(20260101)
    allowed = {200, 400, 401, 404, 405, 408, 411, 413, 417, 431, 501, 505}
    originals = [signed(client, operation) for operation in ("health", "metadata", "encrypt", "decrypt")]
    seen: dict[int, int] = {}
    connection = Raw(proxy.address)
    for i in range(MUTATIONS):
        if i % 500 == 0:
            originals = [signed(client, operation) for operation in ("health", "metadata", "encrypt", "decrypt")]
        data = bytearray(chance.choice(originals))
        for _ in range(chance.choice((1, 1, 1, 2, 5, 20))):
            at = chance.randrange(len(data))
            match chance.randrange(4):
                case 0:
                    data[at] = chance.randrange(256)
                case 1:
                    data[at] ^= 1 << chance.randrange(8)
                case 2:
                    del data[at : at + chance.choice((1, 1, 3, 40))]
                case _:
                    data[at:at] = bytes(chance.randrange(256) for _ in range(chance.choice((1, 1, 3, 40))))
            if not data:
                data = bytearray(b"x")
        try:
            connection.send(bytes(data))
            connection.sock.shutdown(socket.SHUT_WR)  # so that a request that lacks bytes ends, too
            while (answer := connection.answer()) is not None:
                seen[answer[0]] = seen.get(answer[0], 0) + 1
        except (BrokenPipeError, ConnectionResetError):
            pass
        connection.sock.close()
        connection = Raw(proxy.address)
    connection.sock.close()
    assert set(seen) <= allowed | {100}, seen
    assert seen[400] > 100
    assert seen[401] > 1000
    assert client.call("encrypt").status == 200
    assert proxy.process.events("child_ended") == []
    assert proxy.process.events("connection_failed") == []
    client.close()
