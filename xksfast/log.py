# SPDX-License-Identifier: Apache-2.0
"""Structured log: one JSON object a line on stderr.

`Log` is for events of a process, `RequestLog` for requests: recorded on the event loop for the price of an append. All lines of a
process go through one writer, which drops and counts them when the reader of stderr is too slow: to log never takes time. Neither
is ever given a plaintext, an AAD, a key, a signature or a secret.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import traceback
from functools import partial
from typing import Any

from xksfast.log_writer import LogWriter

STDERR = 2

_writer = LogWriter(STDERR)


def frames_of(error: BaseException) -> list[str]:
    """ "file:line function" of each frame, the innermost last: what may be logged of a fault whose text could quote a secret."""
    frames = traceback.extract_tb(error.__traceback__)[-8:]
    return [f"{frame.filename.rpartition('/')[2]}:{frame.lineno} {frame.name}" for frame in frames]


def flush(patience_s: float) -> bool:
    """Wait until what was logged so far is written, but no longer than this; whether it is. Never for an event loop."""
    return _writer.flush(patience_s)


def finish() -> None:
    """Before the process ends: write what is left, in bounded time. Comes by itself at a regular exit."""
    _writer.finish()


class Log:
    """Events of one process. The fixed fields go into every line."""

    def __init__(self, process: str, **fixed: Any) -> None:
        self._fixed = {"process": process, **fixed}
        _writer.identify(self._fixed)

    def info(self, event: str, **fields: Any) -> None:
        """Something worth knowing."""
        self._line("info", event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        """Something that an operator may want to look at."""
        self._line("warning", event, fields)

    def error(self, event: str, **fields: Any) -> None:
        """Something that an operator must look at."""
        self._line("error", event, fields)

    def take_loop_faults(self, loop: asyncio.AbstractEventLoop) -> None:
        """Log what nobody catches in callbacks and tasks of `loop`, and what libraries say by `logging`.

        By themselves they would print it: not as JSON, and waiting for the reader of stderr.
        """
        loop.set_exception_handler(self._on_loop_fault)
        logging.lastResort = _LibraryLines(self)

    def take_process_faults(self) -> None:
        """Log what nobody catches at all: the fault that ends this process, or one of its threads."""
        sys.excepthook = lambda _kind, error, _trace: self._fault("process_fault", error)
        threading.excepthook = self._on_thread_fault
        sys.unraisablehook = lambda fault: self._fault("fault_passed_over", fault.exc_value)

    def _on_thread_fault(self, fault: threading.ExceptHookArgs) -> None:
        if fault.exc_type is not SystemExit:
            self._fault("thread_fault", fault.exc_value)

    def _on_loop_fault(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        said = str(context.get("message", "")).partition("(")[0]  # behind it are arguments, which may be secret
        self._fault("loop_fault", context.get("exception"), said=said)

    def _fault(self, event: str, error: BaseException | None, **fields: Any) -> None:
        """Without the text of the error, which could quote a secret."""
        if error is not None:
            fields |= {"problem": type(error).__name__, "where": frames_of(error)}
        self.error(event, **fields)

    def _line(self, level: str, event: str, fields: dict[str, Any]) -> None:
        _writer.event({"level": level, "event": event, **self._fixed, **fields})


class _LibraryLines(logging.Handler):
    """What a library warns of and nobody else takes."""

    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """No more than the library's own words: what it puts into them may be secret."""
        self._log.warning("library", name=record.name, said=str(record.msg)[:200])


class RequestLog:
    """Request lines of one worker.

    record(line): take a line, which the caller does not touch again. From the event loop only.
    """

    def __init__(self, worker: int) -> None:
        self.record = partial(_writer.request, {"process": "worker", "worker": worker})

    def close(self) -> None:
        """Write what is left, in bounded time."""
        finish()
