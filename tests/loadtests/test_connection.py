# SPDX-License-Identifier: Apache-2.0
"""The kept connection of the load tests: what it sends twice is counted and shown."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest

from bench.requests import Target
from loadtests.connection import Connection
from loadtests.report import Conditions, conclude, document
from loadtests.series import Outcome, Recorder, Series
from loadtests.slo import Slo

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


def serve(listener: socket.socket, answers: list[int]) -> None:
    """One connection after the other: so many answers each, then one more request is read and the connection closed."""
    for count in answers:
        connected, _ = listener.accept()
        with connected:
            for _ in range(count):
                connected.recv(65536)
                connected.sendall(ANSWER)
            connected.recv(65536)


@pytest.mark.parametrize(("answers", "expected"), [([3], 0), ([1, 2], 1), ([1, 1, 1], 2)])
def test_requests_that_are_sent_again_are_counted(answers: list[int], expected: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=serve, args=(listener, answers))
        server.start()
        connection = Connection(Target(f"http://127.0.0.1:{listener.getsockname()[1]}", "", "r", "a", "s"), 10.0)
        for _ in range(3):
            assert connection.post("/", b"{}", {"Host": "x"}) == (200, b"{}")
        connection.close()
        server.join(10)
    assert connection.resent == expected


def test_the_report_says_how_many_requests_were_sent_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    series = Series()
    for number in (2, 3):
        recorder = Recorder(number)
        recorder.record(Outcome(0, "Encrypt", 0, 1000, ""))
        recorder.resent += number
        series.merge(recorder.drain())
        series.merge(recorder.drain())
    conditions = Conditions("steady", 1, 1, "constant", 1, "", "", "locust", [])
    assert document(series, [], conditions)["resent"] == 5
    conclude(tmp_path, series, Slo(), conditions, pictures=False)
    assert "5 requests, whose connection the server had closed" in capsys.readouterr().out
    assert "Sent again: 5 requests" in (tmp_path / "report.html").read_text()
