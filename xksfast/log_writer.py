# SPDX-License-Identifier: Apache-2.0
"""The one writer of a process's log: a bounded queue, and a thread that writes it.

Nobody who logs ever waits for the reader of stderr: when that stands still, lines are dropped, counted, and said as soon as one gets
through again. A newcomer's trap: stderr is one pipe for all processes, so a line must go into one write (see whole_lines.pyx); what
is longer is cut, and stays valid JSON.
"""

from __future__ import annotations

import atexit
import threading
from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from time import monotonic, time
from typing import Any

import orjson

from xksfast.whole_lines import MAX_LINE_BYTES, write_lines

MAX_LINES = 65536  # that wait
RESERVED_LINES = 1024  # beyond that for the events of the process: a flood of requests must not hide why
FLUSH_INTERVAL_S = 0.1
MAX_BATCH_LINES = 512
EXIT_PATIENCE_S = 2.0  # for what is queued when the process ends

Fields = dict[str, Any]


class LogWriter:
    """fd: where lines go. The thread is started with the first line."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._queue: deque[bytes | tuple[float, Mapping[str, Any], Fields] | threading.Event] = deque()
        self._process: Fields = {}
        self._thread: threading.Thread | None = None
        self._starting = threading.RLock()  # what is logged of garbage may come in the middle of it
        self._told = False  # the thread was told that something waits, and has not looked yet
        self._wake = threading.Event()
        self._at_once = threading.Event()
        # Each is counted by one side only, so that no count is lost between two threads.
        self._dropped_events = 0
        self._dropped_requests = 0
        self._not_written = 0
        self._dropped_said = 0
        self._exit_at = 0.0

    def identify(self, process: Fields) -> None:
        """These fields say whose lines were dropped."""
        self._process = process

    def event(self, fields: Fields) -> None:
        """Take a line and have it written at once. From any thread."""
        line = render({"ts": timestamp(time()), **fields})
        with self._starting:
            if len(self._queue) >= MAX_LINES + RESERVED_LINES:
                self._dropped_events += 1
                return
            self._queue.append(line)
        self._tell()
        self._at_once.set()

    def request(self, process: Mapping[str, Any], line: Fields) -> None:
        """Take a line, which the caller does not touch again, and have it written soon. From the event loop only."""
        if len(self._queue) >= MAX_LINES:
            self._dropped_requests += 1
            return
        self._queue.append((time(), process, line))
        if not self._told:
            self._tell()

    def flush(self, patience_s: float) -> bool:
        """Wait until all that is queued now is written, but no longer than this; whether it is."""
        if self._thread is None:
            return True
        written = threading.Event()
        self._queue.append(written)
        self._tell()
        self._at_once.set()
        return written.wait(patience_s)

    def finish(self) -> None:
        """Before the process ends: the same with a patience that all calls share."""
        self._exit_at = self._exit_at or monotonic() + EXIT_PATIENCE_S
        self.flush(max(self._exit_at - monotonic(), 0.0))

    # --- the thread

    def _tell(self) -> None:
        self._told = True
        if self._thread is None:
            self._start()
        self._wake.set()

    def _start(self) -> None:
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)
                self._thread.start()
                atexit.register(self.finish)

    def _run(self) -> None:
        while True:
            self._wake.wait()
            self._at_once.wait(FLUSH_INTERVAL_S)  # lines of requests are cheaper by the hundred
            self._wake.clear()
            self._at_once.clear()
            self._told = False
            while self._queue:
                self._write_batch()

    def _write_batch(self) -> None:
        lines: list[bytes] = []
        waiting: list[threading.Event] = []
        while self._queue and len(lines) < MAX_BATCH_LINES:
            item = self._queue.popleft()
            if isinstance(item, bytes):
                lines.append(item)
            elif isinstance(item, tuple):
                lines.append(_request_line(*item))
            else:
                waiting.append(item)
        if write_lines(self._fd, b"".join(lines)):
            self._not_written += len(lines)
        dropped = self._dropped_events + self._dropped_requests + self._not_written
        if dropped != self._dropped_said:
            count = dropped - self._dropped_said
            said = {"level": "error", "event": "log_lines_dropped", **self._process, "count": count}
            if write_lines(self._fd, render({"ts": timestamp(time()), **said})) == 0:
                self._dropped_said = dropped
        for each in waiting:
            each.set()


def timestamp(unix_s: float) -> str:
    """ISO 8601 in UTC, to the millisecond."""
    seconds = int(unix_s)
    return f"{_to_the_second(seconds)}.{int((unix_s - seconds) * 1000):03d}Z"


@lru_cache(4)
def _to_the_second(unix_s: int) -> str:
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _request_line(unix_s: float, process: Mapping[str, Any], line: Fields) -> bytes:
    level = "info" if line.get("result") == "ok" else "warning"
    return render({"ts": timestamp(unix_s), "level": level, **process, **line})


def render(fields: Fields) -> bytes:
    """One line of JSON of at most MAX_LINE_BYTES. Where values had to be cut for that, `cut` is true."""
    line = _dumps(fields)
    chars = 1024
    while len(line) > MAX_LINE_BYTES and chars >= 16:
        line = _dumps({**{name: _cut(value, chars) for name, value in fields.items()}, "cut": True})
        chars //= 2
    if len(line) <= MAX_LINE_BYTES:
        return line
    return _dumps({"ts": fields.get("ts"), "level": fields.get("level"), "event": _cut(fields.get("event"), 64), "cut": True})


def _dumps(fields: Fields) -> bytes:
    try:
        return orjson.dumps(fields, default=str, option=orjson.OPT_APPEND_NEWLINE)
    except TypeError:  # a text that is not Unicode, a name that is no text, a number of more than 64 bits
        plain = {
            _ascii(name): value if value is None or isinstance(value, bool) else _ascii(value) for name, value in fields.items()
        }
        return orjson.dumps(plain, option=orjson.OPT_APPEND_NEWLINE)


def _ascii(value: Any) -> str:
    return str(value).encode("ascii", "backslashreplace").decode("ascii")


def _cut(value: Any, chars: int) -> Any:
    """A text of at most so many characters, a list or an object of a sixteenth as many of such values."""
    if isinstance(value, str):
        return value if len(value) <= chars else value[:chars] + "…"
    if isinstance(value, list | tuple):
        return [_cut(each, chars) for each in value[: chars // 16]]
    if isinstance(value, Mapping):
        return {_cut(name, chars): _cut(each, chars) for name, each in list(value.items())[: chars // 16]}
    return value if value is None or isinstance(value, bool | int | float) else _cut(str(value), chars)
