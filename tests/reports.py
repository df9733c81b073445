# SPDX-License-Identifier: Apache-2.0
"""Reports of workers as tests make them up."""

from __future__ import annotations

from typing import Any

from xksfast.messages import EngineReport, PartitionReport, RequestCount, RequestDurations, WorkerReport
from xksfast.status import WorkerView

BOUNDS = (1_000, 1_000_000, 1_000_000_000)
PARTITION: dict[str, Any] = {
    "state": "ready", "reason": "", "in_service": True, "route_reason": "eligible", "token_label": "t0", "manufacturer": "M",
    "model": "X", "serial": "1", "firmware_major": 2, "firmware_minor": 6, "iv_mode": "caller", "sessions_open": 4,
    "sessions_wanted": 4, "lost_threads": 0, "in_flight": 1, "limit": 4, "concurrency": 4.0, "median_ns": 500_000,
    "p95_ns": 900_000, "oldest_call_ns": 1_000, "slow_start": 1.0, "login_epoch": 1, "firsts": 10, "retries": 2, "hedges": 1,
    "checks": 0, "faults": 2, "opens": 0, "last_open_reason": "", "last_open_unix_s": 0, "errors": {"CKR_DEVICE_ERROR": 2},
    "latency_counts": [0, 9, 1, 0], "probe_duration_ns": 1_000_000, "last_good_probe_age_s": 3.0, "keys_refused": 0,
    "key_problem": "",
}  # fmt: skip


def partition(**changes: Any) -> PartitionReport:
    return PartitionReport(**{**PARTITION, **changes})


def report(number: int = 1, ok: int = 5, **partitions: PartitionReport) -> WorkerReport:
    """A worker with `ok` Encrypts served, three refused."""
    return WorkerReport(
        number=number,
        pid=100 + number,
        seq=7,
        connections=2,
        loop_lag_s=0.001,
        requests=(RequestCount("Encrypt", "ok", ok), RequestCount("Encrypt", "ThrottlingException", 3)),
        request_durations=(RequestDurations("Encrypt", [0, ok, 3, 0], ok * 500_000 + 30_000_000),),
        request_bounds_ns=BOUNDS,
        engine=EngineReport(jobs=ok + 1, answered=ok, in_flight=1),
        partitions=partitions,
        call_bounds_ns=BOUNDS if partitions else (),
    )


def view(worker: int, made: WorkerReport | None, **changes: Any) -> WorkerView:
    values: dict[str, Any] = {
        "ready": True, "healthy": True, "alive": True, "answered": made is not None, "restarts": 0, "connections": 2,
    }  # fmt: skip
    return WorkerView(worker=worker, report=made, **{**values, **changes})
