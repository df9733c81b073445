# SPDX-License-Identifier: Apache-2.0
"""wrk on the client core with one pre-signed request, and what it cost the server."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from bench.processes import CLIENT_CORE, cpu_seconds


@dataclass(frozen=True)
class Sample:
    """One run: requests answered, CPU microseconds of the server per request, requests per second, p50 and p99 in ms."""

    requests: int
    cpu_us: float
    rps: float
    p50_ms: float
    p99_ms: float


def _lua(headers: dict[str, str], path: str, body: bytes) -> str:
    lines = ['wrk.method = "POST"', f"wrk.body = {_quoted(body.decode())}", f"wrk.path = {_quoted(path)}"]
    lines += [f"wrk.headers[{_quoted(name)}] = {_quoted(value)}" for name, value in headers.items()]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def run_wrk(
    pid: int, url: str, path: str, headers: dict[str, str], body: bytes, *, seconds: float, connections: int = 32
) -> Sample:
    """Load `url` for `seconds` and charge the CPU time of `pid`. RuntimeError when any answer was not 200."""
    with tempfile.TemporaryDirectory() as directory:
        script = Path(directory) / "request.lua"
        script.write_text(_lua(headers, path, body))
        before = cpu_seconds(pid)
        done = subprocess.run(
            [
                "taskset",
                "-c",
                str(CLIENT_CORE),
                "wrk",
                "-t1",
                f"-c{connections}",
                f"-d{max(1, round(seconds))}s",
                "--latency",
                "-s",
                str(script),
                url,
            ],
            capture_output=True,
            text=True,
            check=True,
            timeout=seconds + 30,
        )
        used = cpu_seconds(pid) - before
    output = done.stdout
    if "Non-2xx" in output or "Socket errors" in output:
        raise RuntimeError(f"not every request was answered with 200:\n{output}")
    requests = int(_find(r"(\d+) requests in", output))
    return Sample(
        requests=requests,
        cpu_us=used / requests * 1e6,
        rps=float(_find(r"Requests/sec:\s+([\d.]+)", output)),
        p50_ms=_milliseconds(_find(r"50%\s+([\d.]+\w+)", output)),
        p99_ms=_milliseconds(_find(r"99%\s+([\d.]+\w+)", output)),
    )


def _find(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    if match is None:
        raise RuntimeError(f"wrk printed no {pattern}:\n{text}")
    return match.group(1)


def _milliseconds(text: str) -> float:
    number, unit = re.fullmatch(r"([\d.]+)(us|ms|s)", text).groups()  # type: ignore[union-attr]
    return float(number) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[unit]
