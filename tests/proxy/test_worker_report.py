# SPDX-License-Identifier: Apache-2.0
"""What a worker tells of itself: the engine's words as they travel, and how late its loop is."""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict
from typing import Any

import msgspec
import pytest

from tests.reports import PARTITION
from xksfast import messages
from xksfast.native.engine import LATENCY_BOUNDS_NS, PartitionStatus, ckr_name
from xksfast.native.loader import ffi, lib
from xksfast.proxy.worker_report import LAG_WINDOW_S, LoopLag, partition_report

ENGINE_ONLY = {
    "operations": 1, "failures": 0, "last_probe_ns": 1, "last_good_probe_ns": 0, "tag_failure_ckr": 0x40,
    "latency_counts": (0, 9, 1, 0),
}  # fmt: skip


def status(**changes: Any) -> PartitionStatus:
    values = {**PARTITION, **ENGINE_ONLY, **changes}
    del values["last_good_probe_age_s"]
    return PartitionStatus(**values)


def test_a_partition_report_says_what_the_engine_said() -> None:
    told = status(route_reason="stalled", errors={"CKR_GENERAL_ERROR": 7}, slow_start=0.25)
    report = msgspec.structs.asdict(partition_report(told))
    assert report.pop("last_good_probe_age_s") == -1.0
    for name, value in report.items():
        expected = asdict(told)[name]
        assert value == (list(expected) if isinstance(expected, tuple) else expected), name


def test_the_age_of_the_last_good_probe_is_counted_from_it() -> None:
    report = partition_report(status(last_good_probe_ns=time.monotonic_ns() - 5_000_000_000))
    assert 5.0 <= report.last_good_probe_age_s < 15.0


def test_a_report_survives_the_journey() -> None:
    sent = messages.WorkerReport(number=1, pid=2, partitions={"p0": partition_report(status())})
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(sent), type=messages.FromWorker) == sent


@pytest.mark.parametrize(
    ("ckr", "name"),
    [
        (0x30, "CKR_DEVICE_ERROR"),
        (0x80000042, "CKR_VENDOR_DEFINED_0x80000042"),
        (0x7FFFFFF0, "CKR_UNKNOWN_0x7ffffff0"),
        (0xFFFFFFFF, "other"),
    ],
)
def test_errors_are_named_so_that_no_two_are_taken_for_one(ckr: int, name: str) -> None:
    assert ckr_name(ckr) == name


def test_the_bounds_of_the_engine_ascend_and_end_with_everything() -> None:
    assert len(LATENCY_BOUNDS_NS) == lib.XKS_LATENCY_BUCKETS - 1
    assert list(LATENCY_BOUNDS_NS) == sorted(set(LATENCY_BOUNDS_NS))
    assert lib.xks_engine_latency_bound_ns(lib.XKS_LATENCY_BUCKETS - 1) == 2**64 - 1
    out = ffi.new("xks_partition_status *")
    assert len(out.latency_counts) == len(LATENCY_BOUNDS_NS) + 1


def test_the_longest_lag_is_remembered_for_one_to_two_windows() -> None:
    lag = LoopLag(asyncio.new_event_loop())
    now = time.monotonic()
    lag.note(0.5, now)
    lag.note(0.1, now + 1)
    assert lag.longest_s == lag.longest_s == 0.5, "reading changes nothing"
    lag.note(0.1, now + LAG_WINDOW_S + 1)
    assert lag.longest_s == 0.5
    lag.note(0.2, now + 2 * LAG_WINDOW_S + 3)
    assert lag.longest_s == 0.2
    lag._loop.close()


def test_a_loop_that_was_held_up_shows_it() -> None:
    async def live() -> float:
        lag = LoopLag(asyncio.get_running_loop())
        lag.start()
        await asyncio.sleep(0)
        time.sleep(0.3)  # holds the loop up: this is what is measured
        deadline = time.monotonic() + 10
        while lag.longest_s < 0.1 and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        return lag.longest_s

    assert 0.15 < asyncio.run(live()) < 5
