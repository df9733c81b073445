# SPDX-License-Identifier: Apache-2.0
"""The state of one proxy as an operator sees it: what its workers report, added up. The document of GET /status. Pure.

Counters are summed over workers, those that have ended included, and so never go down; gauges come from the workers that answered just
now. What has no sum (medians, reasons) stands per worker inside each partition. A newcomer's trap: a partition's `state` is the worst
that any worker sees, since each worker logs in for itself.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec

from xksfast import histogram
from xksfast.messages import EngineReport, PartitionReport, RequestCount, WorkerReport

STATES = ("refused", "recovering", "starting", "ready")  # the worst first
ROUTE_REASONS = ("out_of_service", "stalled", "too_slow", "full", "busy", "remote", "eligible")  # the worst first
PURPOSES = ("first", "retry", "hedge", "check")
ENGINE_GAUGES = ("waiting", "in_flight")

Key = TypeVar("Key", bound=Hashable)


# --- what goes in


@dataclass(frozen=True)
class WorkerView:
    """One worker as the supervisor knows it. report: its newest; answered: that one is of now. problem: why it does not work."""

    worker: int
    ready: bool
    healthy: bool
    alive: bool
    answered: bool
    restarts: int
    connections: int
    report: WorkerReport | None
    problem: str = ""


@dataclass(frozen=True)
class PartitionCounters:
    """What only grows, of one partition."""

    logins: int = 0
    calls: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PURPOSES, 0))
    faults: int = 0
    opens: int = 0
    last_open_reason: str = ""
    last_open_unix_s: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    latency_counts: list[int] = field(default_factory=list)

    def plus(self, report: PartitionReport) -> PartitionCounters:
        """Both together."""
        reported = dict(zip(PURPOSES, (report.firsts, report.retries, report.hedges, report.checks), strict=True))
        newer = report.last_open_unix_s > self.last_open_unix_s
        return PartitionCounters(
            logins=self.logins + report.login_epoch,
            calls=_added(self.calls, reported),
            faults=self.faults + report.faults,
            opens=self.opens + report.opens,
            last_open_reason=report.last_open_reason if newer else self.last_open_reason,
            last_open_unix_s=report.last_open_unix_s if newer else self.last_open_unix_s,
            errors=_added(self.errors, report.errors),
            latency_counts=histogram.add(self.latency_counts, report.latency_counts),
        )


@dataclass(frozen=True)
class Counters:
    """What only grows, of all workers together. durations: operation -> (counts by bucket, sum in ns)."""

    requests: dict[tuple[str, str], int] = field(default_factory=dict)
    durations: dict[str, tuple[list[int], int]] = field(default_factory=dict)
    request_bounds_ns: tuple[int, ...] = ()
    engine: dict[str, int] = field(default_factory=dict)
    partitions: dict[str, PartitionCounters] = field(default_factory=dict)
    call_bounds_ns: tuple[int, ...] = ()

    def plus(self, report: WorkerReport) -> Counters:
        """With those of one more worker."""
        durations = dict(self.durations)
        for row in report.request_durations:
            counts, sum_ns = durations.get(row.operation, ([], 0))
            durations[row.operation] = (histogram.add(counts, row.counts), sum_ns + row.sum_ns)
        partitions = dict(self.partitions)
        for name, partition in report.partitions.items():
            partitions[name] = partitions.get(name, PartitionCounters()).plus(partition)
        return Counters(
            requests=_added(self.requests, {(row.operation, row.result): row.count for row in report.requests}),
            durations=durations,
            request_bounds_ns=self.request_bounds_ns or report.request_bounds_ns,
            engine=_added(self.engine, msgspec.structs.asdict(report.engine)) if report.engine else self.engine,
            partitions=partitions,
            call_bounds_ns=self.call_bounds_ns or report.call_bounds_ns,
        )


def _added(first: dict[Key, int], second: dict[Key, int]) -> dict[Key, int]:
    return {key: first.get(key, 0) + second.get(key, 0) for key in (*first, *second)}


# --- what comes out


class Document(msgspec.Struct, frozen=True):
    """Base of all parts of the status document."""


class WorkerStatus(Document):
    """One worker process. answered: it reported just now; figures of one that did not are those of its last report.

    problem: why it does not work.
    """

    worker: int
    pid: int | None
    ready: bool
    healthy: bool
    alive: bool
    answered: bool
    restarts: int
    connections: int
    seq: int
    loop_lag_s: float
    requests: int
    problem: str = ""


class OperationDurations(Document):
    """Requests of one operation, first byte to answer. counts: by bucket, bounds in ServiceStatus.request_bounds_ns."""

    operation: str
    count: int
    sum_s: float
    quantiles_s: dict[str, float | None]
    counts: list[int]


class PartitionAtWorker(Document):
    """A partition as one worker sees it now."""

    worker: int
    state: str
    in_service: bool
    route_reason: str
    reason: str
    in_flight: int
    median_s: float
    p95_s: float
    slow_start: float


class PartitionView(Document):
    """One partition, over all workers. share: of all calls handed to partitions, 0..1. Ages in seconds, -1: never.

    latency: quantiles of the calls served; latency_counts: by bucket, bounds in ServiceStatus.call_bounds_ns.
    keys_refused: keys that it has and that are not used, since each is another key, one of several, no AES-256 or not readable.
    """

    name: str
    state: str
    in_service: bool
    reason: str
    route_reason: str
    token_label: str
    manufacturer: str
    model: str
    serial: str
    firmware: str
    iv_mode: str
    sessions_open: int
    sessions_wanted: int
    lost_threads: int
    in_flight: int
    limit: int
    concurrency: float
    oldest_call_s: float
    logins: int
    calls: dict[str, int]
    share: float
    errors: dict[str, int]
    faults: int
    opens: int
    last_open_reason: str
    last_open_unix_s: int
    quantiles_s: dict[str, float | None]
    latency_counts: list[int]
    probe_duration_s: float
    last_good_probe_age_s: float
    workers: tuple[PartitionAtWorker, ...]
    keys_refused: int = 0
    key_problem: str = ""


class ServiceStatus(Document):
    """The whole document. status: "ok", or "degraded" with the reasons in `problems`, a sentence each."""

    status: str
    problems: tuple[str, ...]
    version: str
    pid: int
    started_unix_s: float
    uptime_s: float
    workers: tuple[WorkerStatus, ...]
    requests: tuple[RequestCount, ...]
    request_durations: tuple[OperationDurations, ...]
    request_bounds_ns: tuple[int, ...]
    engine: EngineReport
    partitions: tuple[PartitionView, ...]
    call_bounds_ns: tuple[int, ...]


def quantiles_s(bounds_ns: Sequence[int], counts: Sequence[int]) -> dict[str, float | None]:
    """ "p50" … "p99.9" in seconds; None when nothing was counted."""
    found = {}
    for q in histogram.QUANTILES:
        value = histogram.quantile(bounds_ns, counts, q) if bounds_ns else None
        found[f"p{q * 100:g}"] = None if value is None else value / 1e9
    return found


def merge(
    views: Sequence[WorkerView],
    ended: Counters,
    *,
    partition_names: Sequence[str],
    version: str,
    pid: int,
    started_unix_s: float,
    now_unix_s: float,
    state_problems: Sequence[str] = (),
) -> ServiceStatus:
    """The document. ended: counters of workers that are gone. partition_names: all that are configured, in their order.

    state_problems: how the control process stands with the state.
    """
    counters = ended
    for view in views:
        if view.report is not None:
            counters = counters.plus(view.report)
    partitions = _partitions(views, counters, partition_names)
    state = (f"the state: {problem}" for problem in state_problems)
    problems = (*state, *_worker_problems(views, partitions), *_partition_problems(partitions), *_key_problems(partitions))
    return ServiceStatus(
        status="degraded" if problems else "ok",
        problems=problems,
        version=version,
        pid=pid,
        started_unix_s=started_unix_s,
        uptime_s=max(0.0, now_unix_s - started_unix_s),
        workers=tuple(_worker_status(view) for view in views),
        requests=tuple(RequestCount(*key, count) for key, count in sorted(counters.requests.items())),
        request_durations=tuple(
            OperationDurations(operation, sum(counts), sum_ns / 1e9, quantiles_s(counters.request_bounds_ns, counts), counts)
            for operation, (counts, sum_ns) in sorted(counters.durations.items())
        ),
        request_bounds_ns=counters.request_bounds_ns,
        engine=_engine(views, counters),
        partitions=partitions,
        call_bounds_ns=counters.call_bounds_ns,
    )


def _worker_status(view: WorkerView) -> WorkerStatus:
    report = view.report
    return WorkerStatus(
        worker=view.worker,
        pid=report.pid if report else None,
        ready=view.ready,
        healthy=view.healthy,
        alive=view.alive,
        answered=view.answered,
        restarts=view.restarts,
        connections=view.connections,
        seq=report.seq if report else 0,
        loop_lag_s=report.loop_lag_s if report else 0.0,
        requests=sum(row.count for row in report.requests) if report else 0,
        problem=view.problem,
    )


def _engine(views: Sequence[WorkerView], counters: Counters) -> EngineReport:
    """Counters of all, gauges of those that answered."""
    now = [view.report.engine for view in views if view.answered and view.report and view.report.engine]
    gauges = {name: sum(getattr(engine, name) for engine in now) for name in ENGINE_GAUGES}
    return EngineReport(**{**counters.engine, **gauges})


def _partitions(views: Sequence[WorkerView], counters: Counters, names: Sequence[str]) -> tuple[PartitionView, ...]:
    every = [*names, *(name for name in counters.partitions if name not in names)]
    known = {name: counters.partitions.get(name, PartitionCounters()) for name in every}
    all_calls = sum(sum(partition.calls.values()) for partition in known.values())
    return tuple(_partition(name, known[name], views, counters.call_bounds_ns, all_calls) for name in every)


def _partition(
    name: str, counted: PartitionCounters, views: Sequence[WorkerView], bounds_ns: Sequence[int], all_calls: int
) -> PartitionView:
    reports = {view.worker: view.report.partitions[name] for view in views if _tells_of(view, name) and view.report}
    now = list(reports.values())
    newest = now[0] if now else None  # what is the same for every worker is read from the first
    state = _worst([report.state for report in now], STATES)
    return PartitionView(
        name=name,
        state=state,
        in_service=bool(now) and all(report.in_service for report in now),
        reason=next((report.reason for report in now if report.reason and report.state == state), ""),
        route_reason=_worst([report.route_reason for report in now], ROUTE_REASONS),
        token_label=newest.token_label.strip() if newest else "",
        manufacturer=newest.manufacturer.strip() if newest else "",
        model=newest.model.strip() if newest else "",
        serial=newest.serial.strip() if newest else "",
        firmware=f"{newest.firmware_major}.{newest.firmware_minor}" if newest else "",
        iv_mode=newest.iv_mode if newest else "",
        sessions_open=sum(report.sessions_open for report in now),
        sessions_wanted=sum(report.sessions_wanted for report in now),
        lost_threads=sum(report.lost_threads for report in now),
        in_flight=sum(report.in_flight for report in now),
        limit=sum(report.limit for report in now),
        concurrency=sum(report.concurrency for report in now),
        oldest_call_s=max((report.oldest_call_ns for report in now), default=0) / 1e9,
        logins=counted.logins,
        calls=counted.calls,
        share=sum(counted.calls.values()) / all_calls if all_calls else 0.0,
        errors=dict(sorted(counted.errors.items())),
        faults=counted.faults,
        opens=counted.opens,
        last_open_reason=counted.last_open_reason,
        last_open_unix_s=counted.last_open_unix_s,
        quantiles_s=quantiles_s(bounds_ns, counted.latency_counts),
        latency_counts=counted.latency_counts,
        probe_duration_s=max((report.probe_duration_ns for report in now), default=0) / 1e9,
        last_good_probe_age_s=_oldest_age([report.last_good_probe_age_s for report in now]),
        workers=tuple(_at_worker(worker, report) for worker, report in reports.items()),
        keys_refused=max((report.keys_refused for report in now), default=0),
        key_problem=next((report.key_problem for report in now if report.key_problem), ""),
    )


def _tells_of(view: WorkerView, partition: str) -> bool:
    return view.answered and view.report is not None and partition in view.report.partitions


def _at_worker(worker: int, report: PartitionReport) -> PartitionAtWorker:
    return PartitionAtWorker(
        worker=worker,
        state=report.state,
        in_service=report.in_service,
        route_reason=report.route_reason,
        reason=report.reason,
        in_flight=report.in_flight,
        median_s=report.median_ns / 1e9,
        p95_s=report.p95_ns / 1e9,
        slow_start=report.slow_start,
    )


def _worst(seen: Sequence[str], order: Sequence[str]) -> str:
    """The first of `order` that was seen; one that is not in it counts as the worst; "unknown" when nothing was."""
    strange = [word for word in seen if word not in order]
    return next(iter(strange), None) or next((word for word in order if word in seen), "unknown")


def _oldest_age(ages_s: Sequence[float]) -> float:
    return -1.0 if not ages_s or min(ages_s) < 0 else max(ages_s)


def _worker_problems(views: Sequence[WorkerView], partitions: Sequence[PartitionView]) -> list[str]:
    problems = []
    out = any(not partition.in_service for partition in partitions)
    for view in views:
        pid = f" (pid {view.report.pid})" if view.report else ""
        if not view.ready:
            why = view.problem or "it is starting, or its log says why not"
            problems.append(f"worker {view.worker}{pid} does not serve: {why}")
        elif not view.answered:
            problems.append(f"worker {view.worker}{pid} does not answer: what is shown of it is its last report")
        elif not view.healthy and not out:
            problems.append(f"worker {view.worker}{pid}: a key manager fails its health checks")
    return problems


def _key_problems(partitions: Sequence[PartitionView]) -> list[str]:
    problems = []
    for partition in partitions:
        if partition.keys_refused:
            which = partition.key_problem or "the log of its workers names them"
            count = f"{partition.keys_refused} keys are" if partition.keys_refused > 1 else "a key is"
            problems.append(f"partition {partition.name}: {count} not used there: {which}")
    return problems


def _partition_problems(partitions: Sequence[PartitionView]) -> list[str]:
    problems = []
    for partition in partitions:
        if partition.in_service:
            continue
        where = ", ".join(str(at.worker) for at in partition.workers if not at.in_service)
        silent = any(at.state == "starting" and not at.in_service for at in partition.workers)
        other = "its token has not answered since the start: a call into its PKCS#11 module does not return"
        why = next(
            (text for at in partition.workers if not at.in_service for text in (at.reason, partition.last_open_reason) if text),
            other if silent else partition.route_reason if partition.workers else "no worker tells of it",
        )
        problems.append(f"partition {partition.name} is not in service{f' on worker {where}' if where else ''}: {why}")
    return problems
