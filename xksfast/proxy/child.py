# SPDX-License-Identifier: Apache-2.0
"""A child process of the supervisor: started, watched, started again with a back-off, for ever.

A newcomer's trap: each child leads a session of its own, or a Ctrl-C in the terminal would reach it beside the supervisor and
cut off the requests that a drain is there to finish.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any

from xksfast.channel import Channel
from xksfast.log import STDERR, Log

FIRST_BACKOFF_S = 0.1
LONGEST_BACKOFF_S = 10.0
FORGIVEN_AFTER_S = 30.0
HURRY_PATIENCE_S = 8.0  # above that for calls inside a PKCS#11 module, which a child that hurries still waits for
KILLED_PATIENCE_S = 5.0


def exit_cause(code: int) -> str:
    """ "exit code 3" or "killed by SIGSEGV"."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


class Child:
    """One child, over all its restarts.

    command: what it runs; the number of its end of the socketpair is appended. accepts, on_message: of its channel. on_started:
    called each time a new process is there; on_ended(cause): after it is gone, unless it was told to stop. hurry: the message
    that tells the process to end at once.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        accepts: Any,
        *,
        on_message: Callable[[Any, int | None], None],
        on_started: Callable[[], None],
        on_ended: Callable[[str], None],
        log: Log,
        hurry: Any = None,
    ) -> None:
        self.name = name
        self.channel: Channel | None = None
        self.process: asyncio.subprocess.Process | None = None
        self._command = command
        self._accepts = accepts
        self._on_message = on_message
        self._on_started = on_started
        self._on_ended = on_ended
        self._log = log
        self._hurry = hurry
        self._stopping = False
        self._refused = False  # by the process that runs, or ran last
        self._held = False
        self._next_backoff_s = FIRST_BACKOFF_S
        self._again = asyncio.Event()

    async def run(self) -> None:
        """Keep it running until stop() was called."""
        while not self._stopping:
            self._refused = self._held = False
            self._again.clear()
            started = monotonic()
            try:
                cause = exit_cause(await self._run_once())
            except OSError as error:  # out of memory, processes or descriptors
                cause = f"not started: {error}"
            if self._stopping:
                return
            lived = monotonic() - started
            backoff = FIRST_BACKOFF_S if lived > FORGIVEN_AFTER_S and not self._refused else self._next_backoff_s
            self._next_backoff_s = min(backoff * 2, LONGEST_BACKOFF_S)
            if not self._refused:  # else its own words were logged
                self._log.error("child_ended", child=self.name, cause=cause, lived_s=round(lived, 1), restart_in_s=backoff)
            self._on_ended(cause)
            await self._wait_for_retry(backoff)

    async def _wait_for_retry(self, backoff_s: float) -> None:
        """Until the time has come, or retry() is called; one that is held waits for that alone."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._again.wait(), None if self._held else backoff_s)

    def refused(self, *, final: bool) -> None:
        """The process has said why it will not work, and ends. final: another one is started by retry() only."""
        self._refused = True
        self._held = self._held or final

    def hold(self) -> None:
        """Start no other process after this one, which has ended, until retry() is called from now on."""
        self._held = True
        self._again.clear()

    def retry(self) -> None:
        """Start the next process now, or as soon as one that is just ending has ended. One that serves is left alone."""
        self._next_backoff_s = FIRST_BACKOFF_S
        self._again.set()

    async def _run_once(self) -> int:
        ours, theirs = socket.socketpair()
        try:
            self.process = await asyncio.create_subprocess_exec(
                *self._command,
                str(theirs.fileno()),
                pass_fds=(theirs.fileno(),),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=STDERR,  # stdout is the supervisor's alone: scripts read it, and vendor libraries print
                start_new_session=True,
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        if self._stopping:  # stop() came while the process was being started
            self.terminate()
        self.channel = Channel(ours, self._accepts, on_message=self._on_message)
        self._on_started()
        code = await self.process.wait()
        self.channel.poll()  # its last words: why it refuses to work
        self.channel.close()
        self.channel = None
        return code

    @property
    def congested(self) -> bool:
        """Whether it reads its messages too slowly."""
        return self.channel is not None and self.channel.congested

    def send(self, message: Any, sock: socket.socket | None = None) -> bool:
        """To the process; False when there is none now."""
        return self.channel is not None and self.channel.send(message, sock.fileno() if sock is not None else None)

    def stop(self) -> None:
        """Do not start it again."""
        self._stopping = True

    async def end(self, patience_s: float) -> None:
        """Wait for the process to end by itself; then ask, then kill, by its own pid."""
        for wait_s, number in ((patience_s, signal.SIGTERM), (HURRY_PATIENCE_S, signal.SIGKILL), (KILLED_PATIENCE_S, None)):
            process = self.process
            if process is None or process.returncode is not None:
                return
            try:
                await asyncio.wait_for(process.wait(), wait_s)
            except TimeoutError:
                if number is not None:
                    self._log.warning("child_does_not_end", child=self.name, after_s=wait_s, sent=number.name)
                    self.hurry() if number == signal.SIGTERM else self.terminate(number)

    def hurry(self) -> None:
        """Have the process end without waiting for requests, as soon as no call of it is inside a PKCS#11 module."""
        if self._hurry is not None:
            self.send(self._hurry)
        self.terminate()

    def terminate(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Send a signal, if there is a process."""
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(number)
