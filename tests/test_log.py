# SPDX-License-Identifier: Apache-2.0
"""Log and RequestLog: every line is one JSON object, and a stuck reader costs lines, never time."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator

import pytest

from xksfast import log
from xksfast.log import Log, RequestLog


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], list[dict[str, object]]]]:
    """Reads at least so many lines of what is written to stderr."""
    read, write = os.pipe()
    monkeypatch.setattr(log, "STDERR", write)

    def read_lines(count: int) -> list[dict[str, object]]:
        data = b""
        while data.count(b"\n") < count or not data.endswith(b"\n"):
            data += os.read(read, 65536)
        return [json.loads(line) for line in data.splitlines()]

    yield read_lines
    os.close(read)
    os.close(write)


def test_an_event_is_one_json_line_with_time_level_event_and_process(lines: Callable[[int], list[dict[str, object]]]) -> None:
    Log("worker", worker=3).warning("token_lost", reason="a\nb\x1b[31m")
    (line,) = lines(1)
    assert str(line.pop("ts")).endswith("Z")
    assert line == {"level": "warning", "event": "token_lost", "process": "worker", "worker": 3, "reason": "a\nb\x1b[31m"}


def test_request_lines_are_written_in_order_with_the_worker_number(lines: Callable[[int], list[dict[str, object]]]) -> None:
    requests = RequestLog(worker=1)
    for number in range(2000):
        requests.record({"event": "request", "result": "ok", "number": number})
    got = lines(2000)
    requests.close()
    assert [line["number"] for line in got] == list(range(2000))
    assert {line["worker"] for line in got} == {1}


def test_close_writes_what_is_left(lines: Callable[[int], list[dict[str, object]]]) -> None:
    requests = RequestLog(worker=1)
    requests.record({"event": "request", "number": 7})
    requests.close()
    assert lines(1)[0]["number"] == 7


def test_a_reader_that_stands_still_costs_lines_that_are_counted_and_no_time(
    lines: Callable[[int], list[dict[str, object]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "RING_LINES", 100)
    requests = RequestLog(worker=1)
    began = time.monotonic()
    for _ in range(5000):
        requests.record({"event": "request", "fill": "x" * 1000})
    assert time.monotonic() - began < 1.0
    seen = 0
    dropped: object = None
    while dropped is None:
        for line in lines(1):
            if line["event"] == "request":
                seen += 1
            else:
                dropped = line["count"]
    requests.close()
    assert isinstance(dropped, int)
    assert dropped > 0
    assert seen + dropped == 5000


def test_close_does_not_wait_for_a_reader_that_stands_still(lines: Callable[[int], list[dict[str, object]]]) -> None:
    requests = RequestLog(worker=1)
    for _ in range(500):
        requests.record({"event": "request", "fill": "x" * 1000})
    began = time.monotonic()
    requests.close()
    assert time.monotonic() - began < 5.0
    lines(500)  # so that the writer's thread ends
