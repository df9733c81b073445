# SPDX-License-Identifier: Apache-2.0
"""/status and /metrics of real servers with two workers: the numbers are those of what was asked, and nobody is silently missing."""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.client import Client
from tests.servers import Process, running_dev, wait_until
from tests.setups import Faults, Setup

CKR_DEVICE_REMOVED = 0x32
WORKERS = 2


class Pages:
    """The health listener of a server."""

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str) -> tuple[bytes, str]:
        with urllib.request.urlopen(self.url + path, timeout=10) as response:
            return response.read(), response.headers["Content-Type"]

    def status(self) -> dict[str, Any]:
        return dict(json.loads(self.get("/status")[0]))

    def metric(self, name: str, **labels: str) -> float:
        """The sum of all samples of this name that carry these labels."""
        return sum(
            sample.value
            for family in text_string_to_metric_families(self.get("/metrics")[0].decode())
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )


def serve_some(clients: list[Client]) -> dict[tuple[str, str], int]:
    """Requests over all connections; what was asked and answered, by (operation, result)."""
    expected: dict[tuple[str, str], int] = {}

    def count(operation: str, result: str) -> None:
        expected[operation, result] = expected.get((operation, result), 0) + 1

    for client in clients:
        encrypted = client.call("encrypt")
        count("Encrypt", "ok")
        for _ in range(4):
            assert client.call("decrypt", client.decrypt_document(encrypted.document)).status == 200
            count("Decrypt", "ok")
        assert client.call("metadata").status == 200
        count("GetKeyMetadata", "ok")
        assert client.call("health").status == 200
        count("GetHealthStatus", "ok")
        assert client.call("encrypt", plaintext="?").error == "ValidationException"
        count("Encrypt", "ValidationException")
        assert client.call("encrypt", key="nobody").error == "KeyNotFoundException"
        count("Encrypt", "KeyNotFoundException")
        assert client.send("POST", "/nowhere", b"{}", {"Host": "x"}).error == "InvalidUriPathException"
        count("none", "InvalidUriPathException")
    return expected


def as_shown(status: dict[str, Any]) -> dict[tuple[str, str], int]:
    return {(row["operation"], row["result"]): row["count"] for row in status["requests"] if row["count"]}


@pytest.mark.parametrize("key_source", ["local", "softhsm"])
def test_the_numbers_shown_are_those_of_the_requests_made(tmp_path: Path, key_source: str) -> None:
    with running_dev(tmp_path, key_source, "--workers", str(WORKERS)) as (ready, _):
        pages, clients = Pages(ready["health_url"]), [Client(ready) for _ in range(4)]
        assert as_shown(pages.status()) == {}
        expected = serve_some(clients)
        status = pages.status()
        assert (status["status"], status["problems"]) == ("ok", [])
        assert as_shown(status) == expected
        assert all(worker["requests"] > 0 for worker in status["workers"]), "the connections are spread over the workers"
        for (operation, result), count in expected.items():
            assert pages.metric("xksfast_requests_total", operation=operation, result=result) == count
        for row in status["request_durations"]:
            answered = sum(count for (operation, _), count in expected.items() if operation == row["operation"])
            assert row["count"] == sum(row["counts"]) == answered
            assert 0 < row["quantiles_s"]["p50"] <= row["quantiles_s"]["p99.9"] < 5
            assert pages.metric("xksfast_request_duration_seconds_count", operation=row["operation"]) == answered
        assert pages.metric("xksfast_connections") == len(clients)
        assert pages.metric("xksfast_worker_up") == WORKERS
        assert pages.metric("xksfast_build_info") == 1
        if key_source == "softhsm":
            (partition,) = status["partitions"]
            calls = sum(
                count
                for (operation, result), count in expected.items()
                if operation in ("Encrypt", "Decrypt") and result == "ok"
            )
            assert partition["calls"]["first"] == sum(partition["latency_counts"]) == calls
            assert (partition["state"], partition["route_reason"], partition["share"]) == ("ready", "eligible", 1.0)
            assert 0 < partition["quantiles_s"]["p50"] < 1
            assert pages.metric("xksfast_partition_calls_total", partition="p0", purpose="first") == calls
            assert pages.metric("xksfast_partition_call_duration_seconds_count", partition="p0") == calls
            assert pages.metric("xksfast_partition_state", partition="p0", state="ready") == WORKERS
            assert 0 <= partition["last_good_probe_age_s"] < 60
        else:
            assert status["partitions"] == []
        for client in clients:
            client.close()


def test_metrics_say_that_they_are_prometheus_text(tmp_path: Path) -> None:
    with running_dev(tmp_path, "local") as (ready, _):
        pages = Pages(ready["health_url"])
        assert pages.get("/metrics")[1] == "text/plain; version=0.0.4; charset=utf-8"
        assert pages.get("/status")[1] == "application/json"


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_worker_that_hangs_is_named_and_the_answer_comes_in_time(tmp_path: Path) -> None:
    with running_dev(tmp_path, "local", "--workers", str(WORKERS)) as (ready, _):
        pages, clients = Pages(ready["health_url"]), [Client(ready) for _ in range(4)]
        expected = serve_some(clients)
        hung = pages.status()["workers"][1]["pid"]
        with stopped(hung):
            for _ in range(3):
                began = time.monotonic()
                status = pages.status()
                assert time.monotonic() - began < 2.0
                assert [worker["answered"] for worker in status["workers"]] == [True, False]
                assert status["status"] == "degraded"
                assert f"worker 1 (pid {hung}) does not answer" in status["problems"][0]
                assert as_shown(status) == expected, "counters do not go down"
            assert pages.metric("xksfast_worker_up", worker="1") == 0
            assert pages.metric("xksfast_worker_up", worker="0") == 1
        wait_until(lambda: pages.status()["status"] == "ok", "it answers again")
        for client in clients:
            client.close()


def test_requests_of_a_worker_that_died_stay_counted(tmp_path: Path) -> None:
    with running_dev(tmp_path, "local", "--workers", str(WORKERS)) as (ready, _):
        pages, clients = Pages(ready["health_url"]), [Client(ready) for _ in range(4)]
        expected = serve_some(clients)
        first = pages.status()
        assert as_shown(first) == expected
        victim = first["workers"][0]["pid"]
        os.kill(victim, signal.SIGKILL)

        def back() -> dict[str, Any] | None:
            status = pages.status()
            assert as_shown(status) == expected
            return status if status["status"] == "ok" and status["workers"][0]["pid"] != victim else None

        status = wait_until(back, "the worker is back", 20)
        assert (status["workers"][0]["restarts"], status["workers"][0]["requests"]) == (1, 0)
        assert pages.metric("xksfast_worker_restarts_total", worker="0") == 1
        client = Client(ready)
        assert client.call("encrypt").status == 200
        assert as_shown(pages.status())["Encrypt", "ok"] == expected["Encrypt", "ok"] + 1
        for each in (client, *clients):
            each.close()


@pytest.fixture
def token(tmp_path: Path) -> Iterator[tuple[Setup, Faults, Process, Pages]]:
    """Two workers over one SoftHSM token whose calls can be made to fail."""
    setup = Setup(tmp_path)
    setup.use_softhsm()
    faults = Faults(setup.directory)
    setup.use_softhsm(module=str(faults.module), environment=faults.environment)
    setup.config["proxy"]["workers"] = WORKERS
    with setup.running() as process:
        yield setup, faults, process, Pages(f"http://127.0.0.1:{setup.health_port}")
        faults.set()


def test_a_partition_that_fails_says_why_and_by_which_name(token: tuple[Setup, Faults, Process, Pages]) -> None:
    setup, faults, _, pages = token
    client = setup.client()
    assert client.call("encrypt").status == 200
    assert pages.status()["status"] == "ok"
    faults.set(rv=CKR_DEVICE_REMOVED)

    def out() -> dict[str, Any] | None:
        client.call("encrypt")
        status = pages.status()
        (partition,) = status["partitions"]
        return status if not partition["in_service"] and partition["reason"] and partition["errors"] else None

    status = wait_until(out, "it is out of service", 20)
    (partition,) = status["partitions"]
    assert partition["state"] == "recovering"
    assert partition["route_reason"] == "out_of_service"
    assert "CKR_DEVICE_REMOVED" in partition["reason"]
    assert partition["errors"]["CKR_DEVICE_REMOVED"] >= 1
    assert partition["faults"] >= 1
    assert any(problem.startswith("partition p0 is not in service on worker") for problem in status["problems"])
    assert pages.metric("xksfast_partition_errors_total", partition="p0", ckr="CKR_DEVICE_REMOVED") >= 1
    assert pages.metric("xksfast_partition_in_service", partition="p0") < WORKERS
    faults.set()
    wait_until(lambda: pages.status()["status"] == "ok", "it is back", 20)
    assert client.call("encrypt").status == 200
    client.close()


def test_a_token_that_blocks_does_not_hold_up_the_status(token: tuple[Setup, Faults, Process, Pages]) -> None:
    setup, faults, _, pages = token
    client = setup.client()
    assert client.call("encrypt").status == 200
    faults.set(delay_ms=1500)
    assert client.call("encrypt").error == "DependencyTimeoutException"
    began = time.monotonic()
    status = pages.status()
    assert time.monotonic() - began < 0.5
    assert all(worker["answered"] for worker in status["workers"])
    assert status["partitions"][0]["in_flight"] >= 1
    assert as_shown(status)["Encrypt", "DependencyTimeoutException"] == 1
    client.close()
