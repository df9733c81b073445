# SPDX-License-Identifier: Apache-2.0
"""A real PostgreSQL server, for tests too: its own directory and port on 127.0.0.1; it can be stopped, started and made to hang."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg

from bench.fleet import free_port
from bench.processes import children
from xksfast.state.database import Database

USER = "xksfast"
START_TIMEOUT_S = 30
PASSWORD = "geheim%2Fwort"  # as it stands in a URL; no message may show it


def binaries() -> Path:
    """Where initdb and postgres are; AssertionError says what to install."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    assert found, "these tests need a PostgreSQL server: apt-get install --no-install-recommends postgresql"
    return found[-1].parent


def _as_user() -> dict[str, Any]:
    """Arguments of Popen: postgres does not run as root."""
    if os.getuid() != 0:
        return {}
    try:
        entry = pwd.getpwnam("postgres")
    except KeyError:
        entry = pwd.getpwnam("nobody")
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


def _fast_directory() -> str | None:
    """Memory, where there is room for some dozens of databases: each has 300 files."""
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 2 * 1024**3
    return str(memory) if roomy else None


class PostgresServer:
    """One server; start() first. fsync is off: no test takes the machine's power away."""

    def __init__(self) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="xksfast-pg-", dir=_fast_directory()))
        self._user = _as_user()
        if self._user:
            os.chown(self._directory, self._user["user"], self._user["group"])
        self._data = self._directory / "data"
        self._port = free_port()
        self._databases = 0
        self._migrated = ""
        self._process: subprocess.Popen[bytes] | None = None
        password = self._directory / "password"
        password.write_text(PASSWORD.replace("%2F", "/"))
        password.chmod(0o644)
        self._run(
            "initdb", "-D", self._data, "-U", USER, "--pwfile", password, "--auth-local=trust", "--auth-host=scram-sha-256",
            "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync",
        )  # fmt: skip

    def _run(self, program: str, *arguments: object) -> None:
        done = subprocess.run(
            [str(binaries() / program), *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
            **self._user,
        )
        assert done.returncode == 0, done.stderr

    def start(self) -> None:
        """Until it answers. Nothing when it runs."""
        if self._process is not None and self._process.poll() is None:
            return
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": self._port,
            "unix_socket_directories": self._directory,
            "fsync": "off",
            "shared_buffers": "16MB",
            "max_connections": 60,
            "autovacuum": "off",
        }
        arguments = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(binaries() / "postgres"), "-D", str(self._data), *arguments],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", **self._user,
            )  # fmt: skip
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._answers():
            assert time.monotonic() < deadline, "PostgreSQL does not answer"
            time.sleep(0.02)

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self._directory / "log").read_text()
        try:
            psycopg.connect(self.admin_conninfo, connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def stop(self) -> None:
        """At once; every connection is lost."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(20)

    def crash(self) -> None:
        """As `pg_ctl stop -m immediate`: nothing is finished; the next start recovers from the log."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(20)

    def kill_backend(self, database: str, number: int) -> None:
        """SIGKILL to one of the processes that serve a database; the server then starts all of them anew. number: chooses."""
        query = f"SELECT pid FROM pg_stat_activity WHERE datname = '{database}' ORDER BY pid"
        try:
            pids = [int(row[0]) for row in self.execute(query)]
            if pids:
                os.kill(pids[number % len(pids)], signal.SIGKILL)
        except (psycopg.OperationalError, ProcessLookupError):  # it is just starting anew
            pass

    def close(self) -> None:
        """Stop, and leave nothing."""
        self.stop()
        shutil.rmtree(self._directory, ignore_errors=True)

    @property
    def admin_conninfo(self) -> str:
        return f"host={self._directory} port={self._port} user={USER} dbname=postgres"

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """Every process of the server stands still; the kernel still takes connections for it."""
        assert self._process is not None
        stopped = [self._process.pid, *children(self._process.pid, "")]
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)

    @contextmanager
    def away(self) -> Iterator[None]:
        """The server is not running."""
        self.stop()
        try:
            yield
        finally:
            self.start()

    def database(self, *, template: str = "template1") -> str:
        """The URL of a new database: empty, or a copy of one that nobody uses now."""
        self._databases += 1
        name = f"state_{self._databases}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
        return self.url(name)

    def migrated_database(self) -> str:
        """The URL of a new database with the schema and nothing in it; quicker than to make the schema each time."""
        if not self._migrated:
            url = self.database()
            Database.open(url).close()
            self._migrated = url.rpartition("/")[2]
        return self.database(template=self._migrated)

    def url(self, database: str) -> str:
        return f"postgresql://{USER}:{PASSWORD}@127.0.0.1:{self._port}/{database}"

    def execute(self, statement: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        """As the superuser, outside of any transaction; the rows, if any."""
        conninfo = self.admin_conninfo.replace("dbname=postgres", f"dbname={database}")
        with psycopg.connect(conninfo, autocommit=True) as connection:
            cursor = connection.execute(statement)  # type: ignore[call-overload]
            return cursor.fetchall() if cursor.description else []
