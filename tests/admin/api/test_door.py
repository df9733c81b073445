# SPDX-License-Identifier: Apache-2.0
"""A right token reaches the kill switch while connections that say nothing fill the listener, in a real proxy."""

from __future__ import annotations

import contextlib
import selectors
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.admin.api.rig import Rig, running
from tests.admin.api.test_stores import new_store
from tests.servers import running_dev, wait_until
from tests.shell.ran import Run, runner
from xksfast.admin.api import door

MANY = 300  # more than the listener keeps
PATIENCE_S = 60


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    with running_dev(tmp_path_factory.mktemp("door"), "local") as (said, _):
        yield said


class Crowd:
    """MANY connections, each made again as soon as it is closed. tls: they have shaken hands. seen_closed: how many were."""

    def __init__(self, address: tuple[str, int], *, tls: bool, source: str = "127.0.0.1", say: bytes = b"") -> None:
        self._address, self._tls, self._source, self._say = address, tls, source, say
        self._trust = ssl.create_default_context()
        self._trust.check_hostname, self._trust.verify_mode = False, ssl.CERT_NONE
        self._selector = selectors.DefaultSelector()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)
        self.seen_closed = 0

    def __enter__(self) -> Crowd:
        for _ in range(MANY):
            self._come()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(30)
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()

    def _come(self) -> None:
        sock = socket.create_connection(self._address, timeout=20, source_address=(self._source, 0))
        with contextlib.suppress(OSError):  # it may be closed for the next one while it shakes hands
            if self._tls:
                sock = self._trust.wrap_socket(sock, server_hostname="localhost")
            if self._say:
                sock.sendall(self._say)
        if sock.fileno() >= 0:
            sock.setblocking(False)
            self._selector.register(sock, selectors.EVENT_READ)

    def _renew(self) -> None:
        while not self._over.is_set():
            for key, _ in self._selector.select(0.05):
                sock = key.fileobj
                try:
                    gone = not sock.recv(65536)  # type: ignore[union-attr]
                except (BlockingIOError, ssl.SSLWantReadError):
                    continue
                except OSError:
                    gone = True
                if gone:
                    self._selector.unregister(sock)
                    sock.close()  # type: ignore[union-attr]
                    self.seen_closed += 1
                    if not self._over.is_set():
                        self._come()


def address_of(said: dict[str, Any]) -> tuple[str, int]:
    return "127.0.0.1", int(said["admin_url"].rpartition(":")[2])


def client_of(said: dict[str, Any]) -> httpx.Client:
    trust = ssl.create_default_context(cafile=said["ca_file"])
    headers = {"Authorization": f"Bearer {said['admin_token']}"}
    return httpx.Client(base_url=said["admin_url"], verify=trust, headers=headers, timeout=PATIENCE_S, trust_env=False)


@pytest.mark.parametrize("source", ["127.0.0.1", "127.0.0.2"])
@pytest.mark.parametrize(
    ("tls", "say"),
    [
        (True, b""),
        (False, b""),
        (True, b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        (True, b"POST /v1/bulk HTTP/1.1\r\n"),
    ],
    ids=["silent", "no-handshake", "unauthenticated", "half-a-request"],
)
def test_a_right_token_reaches_the_kill_switch_through_a_crowd(
    proxy: dict[str, Any], tls: bool, say: bytes, source: str
) -> None:
    with Crowd(address_of(proxy), tls=tls, say=say, source=source) as crowd:
        for action in ("block", "unblock"):
            with client_of(proxy) as client:  # a new connection each
                answer = client.post(f"/v1/stores/dev/{action}", json={} if action == "block" else None)
                assert answer.status_code == 200, answer.text
        wait_until(lambda: crowd.seen_closed > 0, "some of the crowd were let go")


def test_a_connection_that_has_authenticated_outlives_the_crowd(proxy: dict[str, Any]) -> None:
    with client_of(proxy) as client:
        assert client.get("/v1/whoami").status_code == 200
        (connection,) = client._transport._pool.connections  # type: ignore[attr-defined]
        with Crowd(address_of(proxy), tls=True):
            assert client.get("/v1/whoami").status_code == 200
        assert client._transport._pool.connections == [connection]  # type: ignore[attr-defined]


def test_the_shell_reaches_the_kill_switch_through_a_crowd(
    proxy: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    run = runner(monkeypatch, capfd, proxy["admin_url"], proxy["admin_token"], proxy["ca_file"])
    with Crowd(address_of(proxy), tls=True):
        for action in ("block", "unblock"):
            ran = run("store", action, "dev")
            assert ran.code == 0, ran.err


# --- when every connection is at work for somebody


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    """A listener that keeps two connections."""
    monkeypatch.setattr(door, "MAX_CONNECTIONS", 2)
    with running(tmp_path) as rig:
        yield rig


@contextlib.contextmanager
def at_work(rig: Rig) -> Iterator[Callable[[], None]]:
    """As many requests of a right token as there may be connections, until the function is called."""
    import asyncio
    from concurrent.futures import ThreadPoolExecutor

    arrived = threading.Semaphore(0)
    over = asyncio.Event()

    async def slow() -> list[object]:
        arrived.release()
        await over.wait()
        return []

    rig.parts.nodes = slow  # type: ignore[assignment]

    def ask() -> int:
        with rig.client() as client:
            return client.get("/v1/nodes").status_code

    async def end() -> None:
        over.set()

    with ThreadPoolExecutor(door.MAX_CONNECTIONS) as pool:
        asked = [pool.submit(ask) for _ in range(door.MAX_CONNECTIONS)]
        try:
            for _ in asked:
                assert arrived.acquire(timeout=PATIENCE_S)
            yield lambda: rig.call(end())
        finally:
            rig.call(end())
        assert [one.result(PATIENCE_S) for one in asked] == [200] * len(asked)


def test_who_comes_when_all_are_at_work_is_told_so_in_a_problem(small: Rig) -> None:
    with at_work(small), small.client() as client:
        answer = client.get("/v1/whoami")
        assert (answer.status_code, answer.json()["rule"]) == (503, "busy")
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["retry-after"] == "1"
    with small.client() as client:
        assert client.get("/v1/whoami").status_code == 200


def test_an_idle_connection_makes_room_for_a_new_one(small: Rig) -> None:
    with small.client() as first, small.client() as second, small.client() as third:
        for client in (first, second, third):
            assert client.get("/v1/whoami").status_code == 200


def raw(rig: Rig) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(rig.url.rpartition(":")[2])), timeout=PATIENCE_S)


def test_who_holds_every_connection_by_a_token_pushes_no_newcomer_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "MAX_CONNECTIONS", 8)
    head = "Host: localhost\r\nAuthorization: Bearer {}\r\n\r\n"
    with running(tmp_path) as rig, contextlib.ExitStack() as stack:
        for _ in range(8):
            sock = stack.enter_context(rig.trust.wrap_socket(raw(rig), server_hostname="localhost"))
            sock.sendall(f"GET /v1/whoami HTTP/1.1\r\n{head.format(rig.tokens['auditor'])}".encode())
            assert sock.recv(65536).startswith(b"HTTP/1.1 200")
        newcomer = raw(rig)  # and then shakes hands, while another one comes
        other = stack.enter_context(raw(rig))
        with rig.trust.wrap_socket(newcomer, server_hostname="localhost") as sock:
            sock.sendall(f"GET /v1/whoami HTTP/1.1\r\n{head.format(rig.tokens['admin'])}".encode())
            assert sock.recv(65536).startswith(b"HTTP/1.1 200")
        other.setblocking(False)
        with pytest.raises(BlockingIOError):  # nor was the other one closed
            other.recv(1)


def test_who_does_not_send_the_rest_of_a_request_makes_room(small: Rig) -> None:
    head = f"POST /v1/apply/plan HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {small.tokens['auditor']}\r\n"
    known = 0
    real = small.parts.authenticator.actor

    def counted(authorization: str, address: str) -> Any:
        nonlocal known
        actor = real(authorization, address)
        known += 1
        return actor

    small.parts.authenticator.actor = counted  # type: ignore[method-assign]
    with contextlib.ExitStack() as stack:
        for number in range(1, door.MAX_CONNECTIONS + 1):
            sock = stack.enter_context(small.trust.wrap_socket(raw(small), server_hostname="localhost"))
            sock.sendall(f"{head}Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{{".encode())
            wait_until(lambda number=number: known == number, "the token was looked at")
        with small.client() as client:
            assert client.get("/v1/whoami").status_code == 200


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("10.0.0.1", "10.0.0.2", False),
        ("2001:db8::1", "2001:db8::ffff:0:0:2", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("fe80::1%eth0", "fe80::2%eth0", True),
        ("::ffff:10.0.0.1", "::ffff:10.0.0.2", False),
        ("::ffff:10.0.0.1", "10.0.0.1", True),
    ],
)
def test_addresses_of_one_network_of_ipv6_count_as_one(one: str, other: str, same: bool) -> None:
    ours, theirs = (door.Visitor(None, None, address) for address in (one, other))  # type: ignore[arg-type]
    assert (ours.network == theirs.network) is same


def commands(rig: Rig, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    return runner(monkeypatch, capfd, rig.url, rig.tokens["admin"], str(rig.ca_file))


def test_the_shell_says_busy_and_tries_again(
    small: Rig, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with small.client() as admin:
        new_store(admin, "payments")
    run = commands(small, monkeypatch, capfd)
    waits: list[float] = []
    real = time.sleep
    with at_work(small) as end:
        monkeypatch.setattr(time, "sleep", lambda wait_s: waits.append(wait_s) or real(0.01))
        ran = run("store", "block", "payments")
        assert (ran.code, "[busy]" in ran.err) == (1, True), ran.err
        assert waits == [0.2, 0.5, 1.0, 2.0]
        ran = run("store", "block", "payments", "absent")  # JSON lines
        assert (ran.code, "[busy]" in ran.err) == (1, True), ran.err
        tried = iter([False, True])
        monkeypatch.setattr(time, "sleep", lambda _: (end() if next(tried, False) else None) or real(0.3))
        assert run("store", "block", "payments").code == 0


def test_the_shell_calls_a_503_of_something_in_between_busy(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    answer = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno"
    asked = []

    def serve(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = listener.accept()
                with sock:
                    asked.append(sock.recv(65536))
                    sock.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        monkeypatch.setattr("xksfast.shell.client.BUSY_WAITS_S", (0.01, 0.01))
        run = runner(monkeypatch, capfd, f"http://127.0.0.1:{listener.getsockname()[1]}", "xkt_x", "")
        ran = run("store", "list")
        listener.shutdown(socket.SHUT_RDWR)
    assert (ran.code, "is busy" in ran.err, len(asked)) == (1, True, 3), ran.err
