# SPDX-License-Identifier: Apache-2.0
"""Workers added up: what is a sum, what is the worst, what stays per worker, and what is called a problem."""

from __future__ import annotations

from typing import Any

from tests.reports import partition, report, view
from xksfast.status import Counters, ServiceStatus, WorkerView, merge


def merged(*views: WorkerView, ended: Counters | None = None, names: tuple[str, ...] = ("p0",)) -> ServiceStatus:
    return merge(views, ended or Counters(), partition_names=names, version="1", pid=1, started_unix_s=100.0, now_unix_s=160.0)


def requests(status: ServiceStatus) -> dict[tuple[str, str], int]:
    return {(row.operation, row.result): row.count for row in status.requests}


def only(status: ServiceStatus) -> Any:
    (found,) = status.partitions
    return found


def test_counters_and_loads_are_summed_over_workers() -> None:
    status = merged(view(0, report(1, 5, p0=partition())), view(1, report(2, 7, p0=partition(errors={"CKR_GENERAL_ERROR": 1}))))
    assert requests(status) == {("Encrypt", "ok"): 12, ("Encrypt", "ThrottlingException"): 6}
    (durations,) = status.request_durations
    assert (durations.count, durations.counts) == (18, [0, 12, 6, 0])
    p0 = only(status)
    assert p0.calls == {"first": 20, "retry": 4, "hedge": 2, "check": 0}
    assert p0.errors == {"CKR_DEVICE_ERROR": 2, "CKR_GENERAL_ERROR": 1}
    assert (p0.in_flight, p0.limit, p0.sessions_open, p0.faults) == (2, 8, 8, 4)
    assert p0.latency_counts == [0, 18, 2, 0]
    assert (status.engine.jobs, status.engine.in_flight) == (14, 2)
    assert (status.status, status.problems, status.uptime_s) == ("ok", (), 60.0)


def test_what_has_no_sum_stays_with_its_worker() -> None:
    status = merged(view(0, report(1, p0=partition())), view(1, report(2, p0=partition(median_ns=2_000_000))))
    assert [(at.worker, at.median_s) for at in only(status).workers] == [(0, 0.0005), (1, 0.002)]


def test_a_partition_is_in_the_worst_state_that_any_worker_sees_and_says_why() -> None:
    out = partition(state="recovering", in_service=False, route_reason="out_of_service", reason="C_Encrypt: CKR_DEVICE_REMOVED")
    status = merged(view(0, report(1, p0=partition())), view(1, report(2, p0=out)))
    p0 = only(status)
    assert (p0.state, p0.in_service, p0.route_reason, p0.reason) == (
        "recovering", False, "out_of_service", "C_Encrypt: CKR_DEVICE_REMOVED",
    )  # fmt: skip
    assert status.status == "degraded"
    assert status.problems == ("partition p0 is not in service on worker 1: C_Encrypt: CKR_DEVICE_REMOVED",)


def test_a_partition_out_by_its_breaker_says_what_opened_it_last() -> None:
    out = partition(in_service=False, route_reason="out_of_service", opens=2, last_open_reason="hung", last_open_unix_s=9)
    older = partition(opens=1, last_open_reason="older", last_open_unix_s=5)
    p0 = only(status := merged(view(0, report(1, p0=out)), view(1, report(2, p0=older))))
    assert (p0.opens, p0.last_open_reason, p0.last_open_unix_s) == (3, "hung", 9)
    assert status.problems == ("partition p0 is not in service on worker 0: hung",)


def test_keys_that_a_partition_refuses_are_a_problem_that_names_the_last_of_them() -> None:
    refused = partition(keys_refused=1, key_problem="the key 'k1' on token 't0' is another key")
    status = merged(view(0, report(1, p0=partition())), view(1, report(2, p0=refused)))
    assert only(status).keys_refused == 1
    assert status.status == "degraded"
    assert status.problems == ("partition p0: a key is not used there: the key 'k1' on token 't0' is another key",)
    more = merged(
        view(0, report(1, p0=partition(keys_refused=3, key_problem=refused.key_problem))), view(1, report(2, p0=refused))
    )
    assert more.problems == ("partition p0: 3 keys are not used there: the key 'k1' on token 't0' is another key",)


def test_a_worker_that_does_not_answer_is_named_and_still_counts_but_is_no_gauge() -> None:
    status = merged(view(0, report(1, 5, p0=partition())), view(1, report(2, 7, p0=partition()), answered=False))
    assert requests(status)["Encrypt", "ok"] == 12, "a sum that went down would look like a restart"
    assert only(status).in_flight == 1, "nobody knows what the silent one does now"
    assert [worker.answered for worker in status.workers] == [True, False]
    assert status.problems == ("worker 1 (pid 102) does not answer: what is shown of it is its last report",)


def test_a_worker_that_never_reported_is_not_missing() -> None:
    status = merged(view(0, report(1, p0=partition())), view(1, None, ready=False))
    assert [(worker.worker, worker.pid) for worker in status.workers] == [(0, 101), (1, None)]
    assert status.status == "degraded"


def test_what_ended_workers_counted_stays_counted() -> None:
    ended = Counters().plus(report(1, 5, p0=partition()))
    status = merged(view(0, report(2, 1, p0=partition(firsts=1))), ended=ended)
    assert requests(status)["Encrypt", "ok"] == 6
    assert only(status).calls["first"] == 11
    assert only(status).in_flight == 1
    assert status.engine.in_flight == 1


def test_a_configured_partition_that_no_worker_tells_of_is_shown_as_unknown() -> None:
    status = merged(view(0, None, ready=False))
    p0 = only(status)
    assert (p0.name, p0.state, p0.in_service, p0.last_good_probe_age_s) == ("p0", "unknown", False, -1.0)
    assert status.problems[-1] == "partition p0 is not in service: no worker tells of it"


def test_the_share_is_of_all_calls() -> None:
    status = merged(view(0, report(1, p0=partition(), p1=partition(firsts=36, retries=2, hedges=1))), names=("p0", "p1"))
    assert [p.share for p in status.partitions] == [0.25, 0.75]
    assert [p.share for p in merged(view(0, None), names=("p0",)).partitions] == [0.0]


def test_a_worker_whose_key_manager_fails_its_health_checks_is_a_problem() -> None:
    status = merged(view(0, report(1, p0=partition()), healthy=False))
    assert status.problems == ("worker 0 (pid 101): a key manager fails its health checks",)
