# SPDX-License-Identifier: Apache-2.0
"""The open-loop generator against servers of a few lines: that it keeps its schedule, and that its records tell what happened."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench.open_loop import Call, Generator, Load, quantile
from bench.requests import Target, encrypt_document, integrity_value

ANSWER = b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
Answer = Callable[[bytes, int], bytes | None]  # (request, its number) -> what to send; None: close


@contextmanager
def server(answer: Answer) -> Iterator[Target]:
    """An HTTP server with a thread for each connection."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)
    count = iter(range(10**9))
    open_connections: list[socket.socket] = []

    def serve(connection: socket.socket) -> None:
        data = b""
        while True:
            try:
                piece = connection.recv(65536)
            except OSError:
                return
            if not piece:
                return
            data += piece
            head, end, body = data.partition(b"\r\n\r\n")
            if not end:
                continue
            length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
            if len(body) < length:
                continue
            reply = answer(data, next(count))
            data = b""
            if reply is None:
                connection.close()
                return
            connection.sendall(reply)

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            open_connections.append(connection)
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield Target(f"http://127.0.0.1:{listener.getsockname()[1]}", "/s", "eu-central-1", "A" * 20, "secret")
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for connection in open_connections:
            connection.close()
        thread.join(5)


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Generator:
    return Generator(tmp_path_factory.mktemp("open-loop"))


def call(target: Target, kind: str = "encrypt", expect: int = 200, weight: int = 1) -> Call:
    return Call(target, kind, f"/s/{kind}", b"{}", expect, weight)


@pytest.mark.parametrize(("arrivals", "tolerance"), [("constant", 0.01), ("poisson", 0.2)])
def test_as_many_requests_are_due_as_the_rate_says(generator: Generator, arrivals: str, tolerance: float) -> None:
    with server(lambda *_: ANSWER % 200) as target:
        run = generator.run([call(target)], Load(200, 2, arrivals, connections=8))
    assert len(run.due) == pytest.approx(400, rel=tolerance)
    assert run.statuses() == {"ok": len(run.due)}
    assert list(run.due) == sorted(run.due)
    assert all(run.start_ns <= due < run.start_ns + 2_000_000_000 for due in run.due)


def test_the_same_seed_gives_the_same_schedule(generator: Generator) -> None:
    with server(lambda *_: ANSWER % 200) as target:
        runs = [generator.run([call(target)], Load(300, 1, seed=seed)) for seed in (1, 1, 2)]
    schedules = [[due - run.start_ns for due in run.due] for run in runs]
    assert schedules[0] == schedules[1]
    assert schedules[0] != schedules[2]


def test_a_server_that_stops_delays_all_that_was_due_meanwhile(generator: Generator) -> None:
    """What a closed loop hides: one connection, so all requests of the stall wait, and count from when they were due."""
    release = threading.Event()

    def answer(_: bytes, number: int) -> bytes:
        if number == 20:
            release.wait(0.5)
        return ANSWER % 200

    with server(answer) as target:
        run = generator.run([call(target)], Load(100, 1.5, "constant", connections=1, max_connections=1))
    latencies = run.latencies_ms()
    assert len(latencies) == 150
    assert latencies[-1] >= 490
    assert sum(1 for value in latencies if value > 100) >= 35  # those due in the first 0.4 s of the stall
    assert sum(1 for value in run.lateness_ms() if value > 100) >= 35  # they waited for the connection, unsent


def test_more_connections_are_opened_when_all_are_busy(generator: Generator) -> None:
    def answer(*_: object) -> bytes:
        time.sleep(0.2)  # the server's own time, not a wait of the test
        return ANSWER % 200

    with server(answer) as target:
        run = generator.run([call(target)], Load(100, 1, "constant", connections=1, max_connections=200))
    assert run.connections >= 20
    assert run.statuses() == {"ok": 100}


def test_each_call_of_a_mix_comes_as_often_as_its_weight_and_has_its_own_right_status(generator: Generator) -> None:
    def answer(request: bytes, _: int) -> bytes:
        return ANSWER % (400 if b"/s/garbage" in request else 200)

    with server(answer) as target:
        calls = [call(target, weight=3), call(target, "garbage", 400)]
        run = generator.run(calls, Load(1000, 1, connections=8))
        assert run.statuses() == {"ok": len(run.due)}
        garbage = sum(run.statuses(kinds=["garbage"]).values())
        assert garbage == pytest.approx(250, rel=0.25)
        wrong = generator.run([call(target, "garbage", 200)], Load(100, 0.5))
    assert wrong.statuses() == {"400": len(wrong.due)}


def test_a_connection_that_the_server_closes_is_a_failure_and_opened_again(generator: Generator) -> None:
    with server(lambda _, number: None if number % 10 == 9 else ANSWER % 200) as target:
        run = generator.run([call(target)], Load(200, 1, "constant", connections=4))
    assert run.statuses()["connection broken"] == pytest.approx(20, abs=2)
    assert run.statuses()["ok"] == 200 - run.statuses()["connection broken"]


def test_refusals_are_told_from_failures_in_the_time_series(generator: Generator) -> None:
    with server(lambda _, number: ANSWER % (200, 429, 500)[number % 3]) as target:
        windows = generator.run([call(target)], Load(300, 1, "constant")).windows()
    assert len(windows) == 10
    assert sum(window.due for window in windows) == 300
    assert [sum(getattr(window, name) for window in windows) for name in ("ok", "refused", "failed")] == [100, 100, 100]


def test_an_answer_that_cannot_be_decrypted_again_stops_the_run(generator: Generator) -> None:
    """Sampled answers are proved: here the server gives back something else than what was encrypted."""
    document = encrypt_document()
    answers = {
        b"encrypt": {"ciphertext": "AAAA", "initializationVector": "AAAA", "authenticationTag": "AAAA"},
        b"decrypt": {"plaintext": "AAAA"},
    }

    def answer(request: bytes, _: int) -> bytes:
        operation = b"encrypt" if request.split(b" ")[1].endswith(b"encrypt") else b"decrypt"
        body = json.dumps(answers[operation]).encode()
        return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body

    with server(answer) as target:
        calls = [Call(target, "encrypt", target.path("k", "encrypt"), b"{}", key="k", document=document)]
        with pytest.raises(AssertionError):
            generator.run(calls, Load(100, 0.5))
        answers[b"decrypt"]["plaintext"] = str(document["plaintext"])
        assert generator.run(calls, Load(100, 0.5)).statuses()["ok"] > 0


def test_requests_of_a_long_run_are_signed_anew_before_the_signature_ends(
    generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.open_loop.SIGNED_FOR_S", 1)
    dates: set[bytes] = set()

    def answer(request: bytes, _: int) -> bytes:
        dates.add(request.lower().split(b"x-amz-date: ")[1].split(b"\r\n")[0])
        return ANSWER % 200

    with server(answer) as target:
        generator.run([call(target)], Load(50, 2.5, "constant"))
    assert len(dates) == 3


def test_nobody_listening_is_an_error_and_no_result(generator: Generator, tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        target = Target(f"http://127.0.0.1:{unused.getsockname()[1]}", "/s", "eu-central-1", "A" * 20, "secret")
        with pytest.raises(RuntimeError, match="nobody listens"):
            generator.run([call(target)], Load(100, 1))


@pytest.mark.parametrize(("q", "expected"), [(0.5, 5), (0.9, 9), (0.91, 10), (1.0, 10), (0.0, 1)])
def test_a_quantile_is_a_value_that_was_measured(q: float, expected: int) -> None:
    assert quantile(list(range(1, 11)), q) == expected


def test_there_is_no_quantile_of_nothing() -> None:
    assert quantile([], 0.5) is None


def test_the_integrity_value_depends_on_every_part() -> None:
    document = encrypt_document(cdiv=True)
    answer = {"ciphertext": "AAAA", "initializationVector": "AAAB", "authenticationTag": "AAAC"}
    value = integrity_value(document, answer)
    assert value != integrity_value(document, {**answer, "authenticationTag": "AAAD"})
    assert value != integrity_value({**document, "additionalAuthenticatedData": "AAAA"}, answer)
