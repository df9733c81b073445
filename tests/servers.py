# SPDX-License-Identifier: Apache-2.0
"""Starting real servers for tests: `xksfast dev` and `xksfast serve` as child processes, with everything they print kept."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.processes import children

START_TIMEOUT_S = 30


def wait_until(condition: Callable[[], Any], what: str, timeout_s: float = 10) -> Any:
    """The first true value of `condition`; AssertionError after the deadline."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.01)


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


started: list[Process] = []  # every server of this run, so that a failed test leaves none behind


class Process:
    """A server process; output and log are files, so that nothing it prints is lost. wrapper: a command that becomes it."""

    def __init__(
        self,
        arguments: list[str],
        directory: Path,
        environment: dict[str, str] | None = None,
        wrapper: tuple[str, ...] = (),
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.stdout_file = directory / "stdout"
        self.log_file = directory / "stderr"
        for former in (self.stdout_file, self.log_file):  # children of one that was killed may still be writing
            former.unlink(missing_ok=True)
        with self.stdout_file.open("wb") as out, self.log_file.open("wb") as log:
            self.popen = subprocess.Popen(
                [*wrapper, sys.executable, "-m", "xksfast", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log,
                env={**os.environ, **(environment or {})},
            )
        started.append(self)

    @property
    def pid(self) -> int:
        return self.popen.pid

    def log(self) -> list[dict[str, Any]]:
        """Every complete line of the log."""
        text = self.log_file.read_text()
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines() if line.startswith("{")]

    def events(self, name: str) -> list[dict[str, Any]]:
        """The log lines of one event."""
        return [line for line in self.log() if line.get("event") == name]

    def first_line(self) -> str:
        """The first line on stdout; AssertionError with the log when the process ends without one."""

        def look() -> str:
            text = self.stdout_file.read_text()
            if "\n" in text:
                return text.split("\n", 1)[0]
            assert self.popen.poll() is None, f"ended with {self.popen.returncode}:\n{self.log_file.read_text()[-4000:]}"
            return ""

        return str(wait_until(look, "first line on stdout", START_TIMEOUT_S))

    def children(self, word: str) -> list[int]:
        """Pids of the child processes whose command line holds `word`."""
        return children(self.pid, word)

    def stop(self, number: int = signal.SIGTERM, timeout_s: float = 20) -> int:
        """Send a signal and wait; the exit code."""
        if self.popen.poll() is None:
            self.popen.send_signal(number)
        return self.popen.wait(timeout_s)


@contextmanager
def running_dev(
    directory: Path, key_source: str, *arguments: str, environment: dict[str, str] | None = None
) -> Iterator[tuple[dict[str, Any], Process]]:
    """`xksfast dev --json` with free ports; (what it said, the process). It must end with exit code 0."""
    process = Process(
        [
            "dev", "--json", "--data", str(directory / "data"), "--http", "127.0.0.1:0", "--tls", "127.0.0.1:0",
            "--admin", "127.0.0.1:0", "--health", "127.0.0.1:0", "--key-source", key_source, *arguments,
        ],
        directory,
        environment,
    )  # fmt: skip
    try:
        yield json.loads(process.first_line()), process
        assert process.stop() == 0
    finally:
        if process.popen.poll() is None:
            process.popen.kill()
            process.popen.wait(10)
