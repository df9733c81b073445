# SPDX-License-Identifier: Apache-2.0
"""Once a second beside the load: what each partition has done, from the health listener's /status, and a local worker's memory."""

from __future__ import annotations

import json
import time
import urllib.request
from typing import Any

import gevent

from bench.processes import resident_mib
from loadtests.series import Series

INTERVAL_S = 1.0


def sample(series: Series, status_url: str, server_pid: int, start_epoch_s: float) -> None:
    """Append to series.samples until killed. status_url "" and server_pid 0: nothing of that kind."""
    if not (status_url or server_pid):
        return
    while True:
        facts: dict[str, Any] = {"at_s": round(time.time() - start_epoch_s, 3)}
        if status_url:
            facts["partitions"] = completed_jobs(_status(status_url))
        if server_pid:
            try:
                facts["memory_mib"] = round(resident_mib(server_pid), 2)
            except OSError:
                server_pid = 0  # the worker has ended
        series.samples.append(facts)
        gevent.sleep(INTERVAL_S)


def completed_jobs(status: dict[str, Any]) -> dict[str, int]:
    """partition -> calls served since the start, over all workers; {} for a listener without /status."""
    completed: dict[str, int] = {}
    for partition in status.get("partitions", []):
        completed[partition["name"]] = sum(partition["latency_counts"])
    return completed


def _status(url: str) -> dict[str, Any]:
    try:
        with urllib.request.urlopen(url.rstrip("/") + "/status", timeout=1) as response:
            document = json.load(response)
            return document if isinstance(document, dict) else {}
    except (OSError, ValueError):
        return {}
