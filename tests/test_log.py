# SPDX-License-Identifier: Apache-2.0
"""Log and RequestLog: every line is one JSON object, and a stuck reader costs lines, never time."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from xksfast import log, log_writer
from xksfast.log import Log, RequestLog
from xksfast.log_writer import LogWriter


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], list[dict[str, object]]]]:
    """Reads at least so many lines of what is written to stderr."""
    read, write = os.pipe()
    monkeypatch.setattr(log, "_writer", LogWriter(write))

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


@pytest.mark.parametrize(
    ("unix_s", "text"),
    [(0.0, "1970-01-01T00:00:00.000Z"), (1.9999, "1970-01-01T00:00:01.999Z"), (1.8e9, "2027-01-15T08:00:00.000Z")],
)
def test_the_time_of_a_line_is_utc_to_the_millisecond(unix_s: float, text: str) -> None:
    assert log_writer.timestamp(unix_s) == text


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
    monkeypatch.setattr(log_writer, "MAX_LINES", 100)
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


def test_events_never_wait_for_a_reader_that_stands_still(lines: Callable[[int], list[dict[str, object]]]) -> None:
    """More of them than a pipe and the queue hold; those left out are counted, and said when the reader goes on."""
    count = log_writer.MAX_LINES + log_writer.RESERVED_LINES + 2000
    events = Log("worker", worker=4)
    for number in range(count):
        events.warning("refused", number=number)
    seen = dropped = 0
    while seen + dropped < count:
        for line in lines(1):
            seen += line["event"] == "refused"
            if line["event"] == "log_lines_dropped":
                assert (line["process"], line["worker"], line["level"]) == ("worker", 4, "error")
                dropped += int(str(line["count"]))
    assert dropped > 0
    assert seen + dropped == count


def test_requests_that_nobody_reads_leave_room_for_the_events_of_the_process(
    lines: Callable[[int], list[dict[str, object]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_writer, "MAX_LINES", 100)
    requests = RequestLog(worker=1)
    for _ in range(2000):
        requests.record({"event": "request", "fill": "x" * 1000})
    Log("worker").error("token_lost")
    seen: list[object] = []
    while "token_lost" not in seen:
        seen += [line["event"] for line in lines(1)]


def test_what_cannot_be_written_is_counted_and_said_when_it_can(tmp_path: Any) -> None:
    fd = os.open("/dev/full", os.O_WRONLY)
    writer = LogWriter(fd)
    for number in range(10):
        writer.event({"event": "lost", "number": number})
    assert writer.flush(10)
    with (tmp_path / "log").open("wb") as there:
        os.dup2(there.fileno(), fd)
    writer.event({"event": "written"})
    assert writer.flush(10)
    os.close(fd)
    written, said = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert written["event"] == "written"
    assert (said["event"], said["count"]) == ("log_lines_dropped", 10)


def test_a_pipe_that_somebody_made_non_blocking_loses_nothing(lines: Callable[[int], list[dict[str, object]]]) -> None:
    os.set_blocking(log._writer._fd, False)
    requests = RequestLog(worker=1)
    for number in range(2000):
        requests.record({"event": "request", "number": number, "fill": "x" * 200})
    assert [line["number"] for line in lines(2000)] == list(range(2000))


@pytest.mark.parametrize(
    "fields",
    [
        {"problem": "x" * 100_000},
        {"problem": "\x00\x1b" * 5000},
        {"problem": "𝄞" * 5000},
        {"problems": ["what is wrong with it, and why " * 4] * 1000},
        {"problems": [["deep", {"x" * 5000: "y" * 5000}] * 50] * 50},
        {f"field {number}": "x" * 100 for number in range(1000)},
    ],
    ids=["text", "escapes", "wide", "list", "nested", "fields"],
)
def test_a_line_that_is_too_long_for_one_write_is_cut_and_stays_json(
    lines: Callable[[int], list[dict[str, object]]], fields: dict[str, Any]
) -> None:
    Log("control").error("refused", **fields)
    (line,) = lines(1)
    assert (line["level"], line["event"], line["cut"]) == ("error", "refused", True)
    assert len(log_writer.render({"ts": "", "level": "error", "event": "refused", **fields})) <= 4096


@pytest.mark.parametrize("value", ["\ud800", 2**70, {1: 2}, b"bytes", object()], ids=lambda value: type(value).__name__)
def test_whatever_is_logged_is_a_line(lines: Callable[[int], list[dict[str, object]]], value: object) -> None:
    Log("control").error("refused", value=value)
    (line,) = lines(1)
    assert line["event"] == "refused"


# --- processes


def run(script: str, stderr: int) -> subprocess.Popen[bytes]:
    """A process of its own that logs."""
    return subprocess.Popen([sys.executable, "-c", f"from xksfast.log import Log, RequestLog\n{script}"], stderr=stderr)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """(reading end, writing end) of a pipe of the usual size."""
    read, write = os.pipe()
    yield read, write
    os.close(read)


def test_lines_of_processes_that_share_a_pipe_are_never_torn(pipe: tuple[int, int]) -> None:
    read, write = pipe
    script = """
import time
requests, log = RequestLog(worker={0}), Log("worker", worker={0})
for number in range(10000):
    requests.record({{"event": "request", "number": number, "fill": "x" * (number % 700)}})
    if number % 100 == 0:
        log.info("event", number=number, fill="y" * (number % 3000))
        time.sleep(0.002)
requests.close()
"""
    processes = [run(script.format(number), write) for number in range(3)]
    os.close(write)
    with os.fdopen(os.dup(read), "rb") as text:
        lines = [json.loads(line) for line in text]
    assert [process.wait(20) for process in processes] == [0, 0, 0]
    for worker in range(3):
        mine = [line["number"] for line in lines if line["worker"] == worker and line["event"] == "request"]
        assert mine == list(range(10000))


def test_a_process_ends_though_nobody_reads_its_log(pipe: tuple[int, int]) -> None:
    _, write = pipe
    process = run('for _ in range(2000): Log("worker").info("event", fill="x" * 1000)', write)
    os.close(write)
    assert process.wait(30) == 0


def test_what_is_logged_last_is_written_at_the_end_of_the_process(pipe: tuple[int, int]) -> None:
    read, write = pipe
    process = run('for number in range(1000): Log("worker").info("event", number=number)\nraise SystemExit(3)', write)
    os.close(write)
    with os.fdopen(os.dup(read), "rb") as text:
        assert [json.loads(line)["number"] for line in text] == list(range(1000))
    assert process.wait(20) == 3


@pytest.mark.parametrize(
    ("script", "event", "code"),
    [
        ("int('secret')", "process_fault", 1),
        ("import threading; t = threading.Thread(target=int, args=('secret',)); t.start(); t.join()", "thread_fault", 0),
        ("class A:\n def __del__(self): int('secret')\nA()", "fault_passed_over", 0),
    ],
)
def test_a_fault_that_nobody_catches_is_one_line_without_its_text(
    pipe: tuple[int, int], script: str, event: str, code: int
) -> None:
    read, write = pipe
    process = run(f'Log("worker", worker=1).take_process_faults()\n{script}', write)
    os.close(write)
    with os.fdopen(os.dup(read), "rb") as text:
        said = [json.loads(line) for line in text]
    assert process.wait(20) == code
    assert [(line["event"], line["problem"]) for line in said] == [(event, "ValueError")]
    assert "secret" not in str(said)


def test_what_a_library_warns_of_is_one_line_without_its_arguments(pipe: tuple[int, int]) -> None:
    read, write = pipe
    script = """
import asyncio, logging
async def live():
    Log("worker").take_loop_faults(asyncio.get_running_loop())
    logging.getLogger("asyncio").warning("socket.send() raised %s", "secret")
asyncio.run(live())
"""
    process = run(script, write)
    os.close(write)
    with os.fdopen(os.dup(read), "rb") as text:
        (line,) = [json.loads(line) for line in text]
    assert process.wait(20) == 0
    assert (line["event"], line["name"], line["said"]) == ("library", "asyncio", "socket.send() raised %s")


def test_a_fault_in_an_event_loop_is_one_line_without_its_arguments(lines: Callable[[int], list[dict[str, object]]]) -> None:
    async def live() -> None:
        loop = asyncio.get_running_loop()
        Log("worker").take_loop_faults(loop)
        loop.call_soon(int, "secret")
        await asyncio.sleep(0)

    asyncio.run(live())
    (line,) = lines(1)
    assert (line["event"], line["problem"], line["level"]) == ("loop_fault", "ValueError", "error")
    assert "Exception in callback" in str(line["said"])
    assert "secret" not in str(line)
