# SPDX-License-Identifier: Apache-2.0
"""Structured log: one JSON object a line on stderr.

`Log` is for events of a process: rare, written at once. `RequestLog` is for requests: recorded on the event loop for the price
of an append, written by a thread, dropped and counted when the reader of stderr is too slow. Neither is ever given a plaintext,
an AAD, a key, a signature or a secret.
"""

from __future__ import annotations

import os
import threading
import traceback
from collections import deque
from datetime import UTC, datetime
from typing import Any

import orjson

STDERR = 2
RING_LINES = 65536
FLUSH_INTERVAL_S = 0.1
MAX_BATCH_LINES = 512


def frames_of(error: BaseException) -> list[str]:
    """ "file:line function" of each frame, the innermost last: what may be logged of a fault whose text could quote a secret."""
    frames = traceback.extract_tb(error.__traceback__)[-8:]
    return [f"{frame.filename.rpartition('/')[2]}:{frame.lineno} {frame.name}" for frame in frames]


def _render(fields: dict[str, Any]) -> bytes:
    return orjson.dumps(fields, default=str, option=orjson.OPT_APPEND_NEWLINE)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _write(data: bytes) -> None:
    try:
        while data:
            data = data[os.write(STDERR, data) :]
    except OSError:
        pass  # nobody reads our log: serving goes on


class Log:
    """Events of one process. The fixed fields go into every line."""

    def __init__(self, process: str, **fixed: Any) -> None:
        self._fixed = {"process": process, **fixed}

    def info(self, event: str, **fields: Any) -> None:
        """Something worth knowing."""
        self._line("info", event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        """Something that an operator may want to look at."""
        self._line("warning", event, fields)

    def error(self, event: str, **fields: Any) -> None:
        """Something that an operator must look at."""
        self._line("error", event, fields)

    def _line(self, level: str, event: str, fields: dict[str, Any]) -> None:
        _write(_render({"ts": _now(), "level": level, "event": event, **self._fixed, **fields}))


class RequestLog:
    """Request lines of one worker."""

    def __init__(self, worker: int) -> None:
        self._worker = worker
        self._ring: deque[tuple[str, dict[str, Any]]] = deque()
        self._dropped = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="request-log", daemon=True)
        self._thread.start()

    def record(self, line: dict[str, Any]) -> None:
        """Take a line; the caller does not touch it again."""
        if len(self._ring) >= RING_LINES:
            self._dropped += 1
            return
        self._ring.append((_now(), line))

    def close(self) -> None:
        """Write what is left and stop."""
        self._stop.set()
        self._thread.join(timeout=2)

    def _run(self) -> None:
        while not self._stop.wait(FLUSH_INTERVAL_S):
            self._flush()
        self._flush()

    def _flush(self) -> None:
        while self._ring:
            lines: list[bytes] = []
            while self._ring and len(lines) < MAX_BATCH_LINES:
                ts, line = self._ring.popleft()
                level = "info" if line.get("result") == "ok" else "warning"
                lines.append(_render({"ts": ts, "level": level, "process": "worker", "worker": self._worker, **line}))
            _write(b"".join(lines))
        if self._dropped:
            dropped, self._dropped = self._dropped, 0
            _write(
                _render(
                    {"ts": _now(), "level": "error", "event": "request_lines_dropped", "process": "worker", "count": dropped}
                )
            )
