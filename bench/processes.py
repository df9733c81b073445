# SPDX-License-Identifier: Apache-2.0
"""Starting what is measured, and reading what it used: CPU time and memory of a process with all its threads."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec

from xksfast.admin.partitions.keytool import KeyRequest, KeyToolAnswer, KeyToolRequest
from xksfast.admin.partitions.link import partition_target
from xksfast.admin.partitions.tool_process import tool_start
from xksfast.config import load_config

SERVER_CORE, CLIENT_CORE = 0, 1
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Server:
    """A running server: the pid whose CPU counts, and what `xksfast dev --json` said ({} for nginx)."""

    pid: int
    ready: dict[str, str]


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and its threads, in seconds.

    From /proc/PID/schedstat's sum over threads where there is one (nanoseconds), since the clock ticks of /proc/PID/stat are 10 ms.
    """
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def threads(pid: int) -> list[int]:
    """Ids of the threads of a process."""
    return [int(task.name) for task in Path(f"/proc/{pid}/task").iterdir()]


@contextmanager
def awake() -> Iterator[None]:
    """Keeps the two cores from going to sleep, by a loop on each that gives way to everything else.

    A virtual CPU that sleeps must be woken by the hypervisor, in its own time. A newcomer's trap: where the kernel weighs sessions
    (autogroup), SCHED_IDLE gives way to its own session only.
    """

    def prepare(core: int) -> None:
        os.setsid()
        with suppress(OSError):
            _weigh_session(0, 19)
        os.sched_setaffinity(0, {core})
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))

    loops = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"], preexec_fn=partial(prepare, core))
        for core in (SERVER_CORE, CLIENT_CORE)
    ]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def goes_first(pid: int) -> None:
    """Let a process, the only one of its session, go before all others, as far as we may (root): it stands for other machines."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, -20)
        _weigh_session(pid, -20)


def _weigh_session(pid: int, nice: int) -> None:
    """Of a process, 0: this one; where the kernel weighs sessions (autogroup). OSError: it does not, or we may not."""
    Path(f"/proc/{pid or 'self'}/autogroup").write_text(str(nice))


def stolen_seconds() -> float:
    """What the hypervisor took of all CPUs since the machine's start, while there was work for them: "steal" of /proc/stat."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    return int(fields[8]) / TICKS_PER_S


def resident_mib(pid: int) -> float:
    """Resident memory in MiB."""
    text = Path(f"/proc/{pid}/status").read_text()
    match = re.search(r"VmRSS:\s+(\d+) kB", text)
    assert match is not None
    return int(match.group(1)) / 1024


def children(pid: int, word: str) -> list[int]:
    """The child processes of `pid` whose command line holds `word`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except (OSError, IndexError):
                continue
            if parent == pid and word in command:
                found.append(int(entry.name))
    return sorted(found)


def end(process: subprocess.Popen[bytes]) -> None:
    """Ask a server to end, and see to it that it has. TimeoutExpired when it had to be killed."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise


@contextmanager
def xksfast_dev(key_source: str, *arguments: str, data: Path | None = None, tree: Path | None = None) -> Iterator[Server]:
    """`xksfast dev` on the server core with free ports, in a temporary directory or in `data`.

    tree: another checkout of this project, built by `make build`; None: this one.
    """
    directory = data or Path(tempfile.mkdtemp(prefix="xksfast-bench-"))
    python = str(tree / ".venv" / "bin" / "python") if tree else sys.executable
    command = [
        "taskset", "-c", str(SERVER_CORE), python, "-m", "xksfast", "dev", "--json", "--data", str(directory),
        "--http", "127.0.0.1:0", "--tls", "127.0.0.1:0", "--key-source", key_source, *arguments,
    ]  # fmt: skip
    process = subprocess.Popen(command, cwd=tree, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"xksfast dev --key-source {key_source} did not start (exit code {process.wait()})")
        yield Server(children(process.pid, "_worker")[0], json.loads(line))
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
        if data is None:
            shutil.rmtree(directory, ignore_errors=True)


def fill_softhsm(data: Path, count: int) -> None:
    """Put `count` further AES-256 keys on the SoftHSM token of a directory that `xksfast dev` made and left."""
    target = partition_target(load_config(data / "xksfast.toml"), "p0")
    keys = [KeyRequest(label=f"further-{i}", encrypt=True, decrypt=True) for i in range(count)]
    request = KeyToolRequest(**msgspec.structs.asdict(target), keys=keys)
    command, environment = tool_start("_keytool", request)
    done = subprocess.run(
        command, input=msgspec.json.encode(request), capture_output=True, env=environment, check=True, timeout=300
    )
    answer = msgspec.json.decode(done.stdout, type=KeyToolAnswer)
    assert len(answer.created) == count, answer.problem


@contextmanager
def nginx(port: int, answer: bytes, tls: tuple[int, Path, Path] | None = None) -> Iterator[Server]:
    """nginx with one worker on the server core that answers everything with `answer` as JSON. tls: port, certificate, private key."""
    binary = shutil.which("nginx") or "/usr/sbin/nginx"
    directory = Path(tempfile.mkdtemp(prefix="xksfast-nginx-"))
    text = answer.decode().replace("'", "")
    secure = "" if tls is None else f"listen 127.0.0.1:{tls[0]} ssl; ssl_certificate {tls[1]}; ssl_certificate_key {tls[2]};"
    (directory / "nginx.conf").write_text(
        f"""
worker_processes 1; daemon off; pid {directory}/pid; error_log stderr crit;
events {{ worker_connections 1024; }}
http {{
  access_log off; keepalive_requests 100000000; keepalive_timeout 600s; default_type application/json;
  client_body_temp_path {directory}/b; proxy_temp_path {directory}/p; fastcgi_temp_path {directory}/f; uwsgi_temp_path {directory}/u;
  scgi_temp_path {directory}/s; client_body_buffer_size 128k; tcp_nodelay on;
  ssl_protocols TLSv1.2 TLSv1.3;
  ssl_conf_command Ciphersuites TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256;
  server {{ listen 127.0.0.1:{port}; {secure} location / {{ return 200 '{text}'; }} }}
}}
"""
    )
    process = subprocess.Popen(
        ["taskset", "-c", str(SERVER_CORE), binary, "-c", str(directory / "nginx.conf"), "-p", str(directory)]
    )
    try:
        for _ in range(100):
            workers = children(process.pid, "worker process")
            if workers:
                break
            if process.poll() is not None:
                raise RuntimeError("nginx did not start")
            time.sleep(0.05)
        yield Server(workers[0], {})
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(10)
        shutil.rmtree(directory, ignore_errors=True)
