# SPDX-License-Identifier: Apache-2.0
"""`xksfast status` as people and scripts use it: tables, exit codes, and what it says when nothing answers."""

from __future__ import annotations

import http.server
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.console import Console

from tests.client import Client
from tests.reports import partition, report, view
from tests.servers import free_port, running_dev, wait_until
from xksfast.admin import status_view
from xksfast.errors import OperatorError
from xksfast.status import Counters, ServiceStatus, WorkerView, merge


def xksfast(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "xksfast", "status", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def merged(*views: WorkerView, names: tuple[str, ...] = ("p0", "p1"), now_unix_s: float = 160.0, pid: int = 1) -> ServiceStatus:
    return merge(
        views, Counters(), partition_names=names, version="1", pid=pid, started_unix_s=100.0, now_unix_s=now_unix_s
    )  # fmt: skip


def shown(now: ServiceStatus, former: ServiceStatus | None = None, *, partitions: bool = True) -> str:
    console = Console(width=200, no_color=True)
    with console.capture() as capture:
        console.print(status_view.view(now, former, partitions=partitions))
    return capture.get()


def row(text: str, name: str) -> list[str]:
    """The cells of the first row that begins with `name`."""
    return next(re.split(r"\s{2,}", line.strip()) for line in text.splitlines() if line.split()[:1] == [name])


@contextmanager
def served(status: ServiceStatus | bytes, code: int = 200) -> Iterator[str]:
    """A listener that answers every GET with this."""
    body = status if isinstance(status, bytes) else msgspec.json.encode(status)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


# --- what the tables say


def test_a_partition_row_tells_state_load_share_and_latency() -> None:
    text = shown(merged(view(0, report(1, p0=partition(), p1=partition(firsts=36, latency_counts=[0, 0, 39, 0])))))
    assert row(text, "p0")[:8] == ["p0", "ready", "eligible", "1/4", "4/4", "0", "13", "25.0%"]
    assert row(text, "p1")[6:8] == ["39", "75.0%"]
    assert "███████▌" in text
    assert "CKR_DEVICE_ERROR 2" in text


def test_shares_and_latencies_of_an_interval_are_those_between_two_readings() -> None:
    before = merged(view(0, report(1, 5, p0=partition(), p1=partition())))
    later = merged(
        view(0, report(2, 9, p0=partition(firsts=11, latency_counts=[0, 9, 2, 0]), p1=partition(firsts=13))), now_unix_s=162.0
    )
    text = shown(later, before)
    assert "in the last 2.0 s" in text
    assert row(text, "p0")[6:9] == ["1", "25.0%", "1 s"], "one call more, in the bucket of 1 ms to 1 s"
    assert row(text, "p1")[6:9] == ["3", "75.0%", "-"], "three handed over, none served yet"
    assert row(text, "Encrypt")[1:3] == ["4", "4"]


def test_another_process_is_not_subtracted_from() -> None:
    before = merged(view(0, report(1, 100, p0=partition())))
    text = shown(merged(view(0, report(2, 5, p0=partition())), pid=2), before)
    assert "since the start" in text
    assert row(text, "Encrypt")[1] == "8"


def test_a_breaker_that_opened_is_shown_with_time_and_reason() -> None:
    out = partition(
        state="recovering", in_service=False, route_reason="out_of_service", reason="C_Encrypt: CKR_DEVICE_REMOVED", opens=3,
        last_open_reason="three faults in a row", last_open_unix_s=1_700_000_000,
    )  # fmt: skip
    text = shown(merged(view(0, report(1, p0=out, p1=partition()))))
    assert text.startswith("DEGRADED")
    assert "partition p0 is not in service on worker 0: C_Encrypt: CKR_DEVICE_REMOVED" in text
    assert "breaker opened 2023-11-14 22:13:20 UTC" in text
    assert "three faults in a row" in text
    assert row(text, "p0")[1:3] == ["recovering", "out_of_service"]


def test_without_partitions_only_their_number_is_shown() -> None:
    text = shown(
        merged(view(0, report(1, p0=partition(), p1=partition(in_service=False, route_reason="full")))), partitions=False
    )
    assert "2 partitions, 1 not in service" in text
    assert "eligible" not in text


def test_a_worker_that_does_not_answer_is_named() -> None:
    text = shown(merged(view(0, report(1, p0=partition(), p1=partition())), view(1, report(2), answered=False)))
    assert row(text, "1")[:3] == ["1", "102", "does not answer"]
    assert "worker 1 (pid 102) does not answer" in text


def test_a_latency_above_all_buckets_is_said_to_be_more() -> None:
    text = shown(merged(view(0, report(1, p0=partition(latency_counts=[0, 0, 0, 5]))), names=("p0",)))
    assert "> 1 s" in text


@pytest.mark.parametrize(
    ("share", "cells"), [(0, ""), (1, "██████████"), (0.5, "█████"), (0.25, "██▌"), (0.0125, "▏"), (7, "█" * 10)]
)
def test_a_bar_is_as_long_as_the_share(share: float, cells: str) -> None:
    assert status_view.bar(share) == cells


# --- exit codes and what is said


def test_all_well_is_exit_code_0_and_out_of_the_box(tmp_path: Path) -> None:
    with running_dev(tmp_path, "softhsm", "--workers", "2") as (ready, _):
        client = Client(ready)
        for _ in range(3):
            assert client.call("encrypt").status == 200
        client.close()
        done = xksfast("--partitions", "--url", ready["health_url"])
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("ok  xksfast")
        assert row(done.stdout, "p0")[1:3] == ["ready", "eligible"]
        assert row(done.stdout, "Encrypt")[1:3] == ["3", "3"]
        assert "\x1b[" not in done.stdout
        done = xksfast("--json", "--url", ready["health_url"])
        assert done.returncode == 0
        assert json.loads(done.stdout)["partitions"][0]["calls"]["first"] == 3
        config = Path(ready["ca_file"]).parent / "xksfast.toml"
        text = re.sub(
            r"(\[proxy.health\]\nlisten = ).*", rf'\1"{ready["health_url"].removeprefix("http://")}"', config.read_text()
        )
        config.write_text(text)
        assert xksfast("--config", str(config), http_proxy="http://127.0.0.1:1").returncode == 0


def test_degraded_is_exit_code_4_with_the_reason_first() -> None:
    status = merged(view(0, report(1, p0=partition(), p1=partition(in_service=False, reason="no such token"))))
    with served(status) as url:
        done = xksfast("--url", url)
        assert done.returncode == 4
        assert done.stdout.splitlines()[1].strip() == "partition p1 is not in service on worker 0: no such token"
        assert xksfast("--json", "--url", url).returncode == 4


def test_nothing_there_is_exit_code_1_and_says_what_to_do() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    done = xksfast("--url", url)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"nothing answers at {url}" in done.stderr
    assert "proxy.health.listen" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        (b'{"status": "there are /ping"}', 404, "answers 404 for /status"),
        (b'{"a": 1}', 200, "this version"),
        (b"<html>", 200, "this version"),
    ],
)
def test_what_is_no_xksfast_of_this_version_is_exit_code_1(body: bytes, code: int, said: str) -> None:
    with served(body, code) as url:
        done = xksfast("--url", url)
    assert (done.returncode, done.stdout) == (1, "")
    assert said in done.stderr


def test_a_url_that_is_none_is_wrong_usage() -> None:
    done = xksfast("--url", "localhost:8081")
    assert done.returncode == 2
    assert "such as http://127.0.0.1:8081" in done.stderr


def test_a_configuration_without_a_health_listener_is_told_what_to_do(tmp_path: Path) -> None:
    from xksfast.config import Config, Proxy, ProxyHealth

    def url(listen: str) -> str:
        return status_view.health_url(Config(proxy=Proxy(health=ProxyHealth(listen=listen))))

    with pytest.raises(OperatorError, match="give it an address"):
        url("")
    assert url("0.0.0.0:9000") == "http://127.0.0.1:9000"
    assert url("[::]:9000") == "http://[::1]:9000"
    assert url("127.0.0.1:8081") == "http://127.0.0.1:8081"


@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_watch_looks_again_until_ctrl_c(tmp_path: Path, arguments: list[str]) -> None:
    status = merged(view(0, report(1, p0=partition())), names=("p0",))
    out, error = tmp_path / "out", tmp_path / "error"
    with served(status) as url, out.open("wb") as stdout, error.open("wb") as stderr:
        process = subprocess.Popen(
            # A shell lets what it starts in the background ignore SIGINT, and so all of its children, this one too.
            [
                "env",
                "--default-signal=INT",
                sys.executable,
                "-m",
                "xksfast",
                "status",
                "--watch",
                "0.1",
                "--url",
                url,
                *arguments,
            ],
            stdout=stdout,
            stderr=stderr,
        )
        try:
            readings = "\n" if arguments else "in the last "
            wait_until(lambda: out.read_text().count(readings) >= 3, "three readings", 30)
            process.send_signal(signal.SIGINT)
            assert process.wait(10) == 0
            assert "Traceback" not in error.read_text()
        finally:
            process.kill()
            process.wait(10)
