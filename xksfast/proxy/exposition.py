# SPDX-License-Identifier: Apache-2.0
"""GET /metrics: the status document as Prometheus text. Pure.

Summed over workers; a `worker` label only where a sum would say nothing. Seconds throughout, counters end in _total. A newcomer's trap:
a histogram's bounds must never change between two scrapes of one process, so which of them are shown is decided by constants alone.
Source: Prometheus text-based format 0.0.4; metric and label names as in its naming practices.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from xksfast import histogram
from xksfast.status import STATES, PartitionView, ServiceStatus, WorkerStatus

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
LONGEST_BUCKET_NS = 2_200_000_000  # far above every deadline
BUCKET_STEP = 2  # every second bound: two per doubling

_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})

Sample = tuple[Mapping[str, object], float]


def escape(value: str) -> str:
    """A label value between its quotes."""
    return value.translate(_ESCAPES)


class Exposition:
    """Collects families; text() is the whole page."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def family(self, name: str, kind: str, text: str, samples: Iterable[Sample]) -> None:
        """One metric with its samples: (labels, value) each."""
        self._head(name, kind, text)
        for labels, value in samples:
            self._sample(name, labels, value)

    def gauge(self, name: str, text: str, samples: Iterable[Sample]) -> None:
        """A value that goes up and down."""
        self.family(name, "gauge", text, samples)

    def counter(self, name: str, text: str, samples: Iterable[Sample]) -> None:
        """A value that only grows; `name` ends in _total."""
        self.family(name, "counter", text, samples)

    def histogram(
        self,
        name: str,
        text: str,
        bounds_ns: Sequence[int],
        rows: Iterable[tuple[Mapping[str, object], Sequence[int], float]],
    ) -> None:
        """Durations in seconds. rows: (labels, counts by bucket, sum in seconds)."""
        self._head(name, "histogram", text)
        for labels, counts, sum_s in rows:
            for bound_ns, below in histogram.cumulative(bounds_ns, counts, up_to=LONGEST_BUCKET_NS, step=BUCKET_STEP):
                self._sample(f"{name}_bucket", {**labels, "le": f"{bound_ns / 1e9:.9g}"}, below)
            self._sample(f"{name}_bucket", {**labels, "le": "+Inf"}, sum(counts))
            self._sample(f"{name}_sum", labels, sum_s)
            self._sample(f"{name}_count", labels, sum(counts))

    def text(self) -> bytes:
        """The page."""
        return ("\n".join(self._lines) + "\n").encode("utf-8", "replace")

    def _head(self, name: str, kind: str, text: str) -> None:
        self._lines += (f"# HELP {name} {text}", f"# TYPE {name} {kind}")

    def _sample(self, name: str, labels: Mapping[str, object], value: float) -> None:
        shown = ",".join(f'{key}="{escape(str(item))}"' for key, item in labels.items())
        self._lines.append(f"{name}{{{shown}}} {_number(value)}" if shown else f"{name} {_number(value)}")


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(float(value))


def render(status: ServiceStatus) -> bytes:
    """The page of /metrics."""
    page = Exposition()
    page.gauge("xksfast_build_info", "Version of xksfast; always 1.", [({"version": status.version}, 1)])
    page.gauge("process_start_time_seconds", "Start of the supervisor, seconds since the epoch.", [({}, status.started_unix_s)])
    _workers(page, status.workers)
    _requests(page, status)
    _engine(page, status)
    _partition_states(page, status.partitions)
    _partition_load(page, status.partitions)
    _partition_calls(page, status)
    return page.text()


def _workers(page: Exposition, workers: Sequence[WorkerStatus]) -> None:
    def each(field: str) -> list[Sample]:
        return [({"worker": worker.worker}, getattr(worker, field)) for worker in workers]

    page.gauge(
        "xksfast_worker_up", "1 when the worker process answered this scrape; else its figures are old.", each("answered")
    )
    page.gauge("xksfast_worker_ready", "1 when the worker process serves requests.", each("ready"))
    page.counter("xksfast_worker_restarts_total", "Times that the worker process ended.", each("restarts"))
    page.gauge("xksfast_snapshot_seq", "Sequence number of the snapshot that the worker serves.", each("seq"))
    page.gauge(
        "xksfast_loop_lag_seconds", "Longest delay of the worker's event loop in the last 15 to 30 seconds.", each("loop_lag_s")
    )
    page.gauge("xksfast_connections", "Open client connections.", [({}, sum(worker.connections for worker in workers))])


def _requests(page: Exposition, status: ServiceStatus) -> None:
    page.counter(
        "xksfast_requests_total",
        'Requests by XKS operation ("none": no XKS path) and result ("ok" or the error name).',
        [({"operation": row.operation, "result": row.result}, row.count) for row in status.requests],
    )
    page.histogram(
        "xksfast_request_duration_seconds",
        "From a request's first byte to its answer.",
        status.request_bounds_ns,
        [({"operation": row.operation}, row.counts, row.sum_s) for row in status.request_durations],
    )


def _engine(page: Exposition, status: ServiceStatus) -> None:
    engine = status.engine
    page.counter("xksfast_engine_jobs_total", "Jobs handed to the PKCS#11 engine.", [({}, engine.jobs)])
    page.counter("xksfast_engine_answered_total", "Jobs that came back.", [({}, engine.answered)])
    page.counter(
        "xksfast_engine_refused_total",
        "Jobs refused at once: the proxy is overloaded (busy), or no partition can serve (unavailable).",
        [({"reason": "busy"}, engine.refused_busy), ({"reason": "unavailable"}, engine.refused_unavailable)],
    )
    page.counter("xksfast_engine_timeouts_total", "Jobs that ended by their deadline.", [({}, engine.timeouts)])
    page.counter("xksfast_engine_retries_total", "Second attempts on another partition.", [({}, engine.retries)])
    page.counter("xksfast_engine_hedges_total", "Second calls beside a slow one.", [({}, engine.hedges)])
    page.counter("xksfast_engine_hedge_wins_total", "Hedges that answered first.", [({}, engine.hedge_wins)])
    page.counter(
        "xksfast_engine_checks_elsewhere_total",
        "Check decrypts of data keys on another partition than the one that encrypted.",
        [({}, engine.checks_elsewhere)],
    )
    page.counter(
        "xksfast_engine_failed_checks_total",
        "Of these, those that did not give the plaintext back; their ciphertexts were not sent.",
        [({}, engine.failed_checks)],
    )
    page.counter(
        "xksfast_engine_late_results_wiped_total",
        "Results that came after the answer was due; wiped unseen.",
        [({}, engine.late_results_wiped)],
    )
    page.gauge("xksfast_engine_waiting_jobs", "Jobs that wait for a partition with room.", [({}, engine.waiting)])
    page.gauge("xksfast_engine_in_flight_jobs", "Jobs inside the engine.", [({}, engine.in_flight)])


def _of(partition: PartitionView, **labels: object) -> dict[str, object]:
    return {"partition": partition.name, **labels}


def _partition_states(page: Exposition, partitions: Sequence[PartitionView]) -> None:
    page.gauge(
        "xksfast_partition_info",
        "What the token says of itself; always 1.",
        [
            (
                _of(
                    p, token_label=p.token_label, manufacturer=p.manufacturer, model=p.model, serial=p.serial,
                    firmware=p.firmware, iv_mode=p.iv_mode,
                ),
                1,
            )
            for p in partitions
        ],
    )  # fmt: skip
    page.gauge(
        "xksfast_partition_state",
        "Worker processes that see the partition in this state.",
        [
            (_of(p, state=state), sum(at.state == state for at in p.workers))
            for p in partitions
            for state in (*STATES, *sorted({at.state for at in p.workers} - set(STATES)))
        ],
    )
    page.gauge(
        "xksfast_partition_in_service",
        "Worker processes whose router gives the partition work.",
        [(_of(p), sum(at.in_service for at in p.workers)) for p in partitions],
    )
    page.gauge(
        "xksfast_partition_route_reason",
        "Worker processes by why a job would or would not go to the partition now.",
        [
            (_of(p, reason=reason), sum(at.route_reason == reason for at in p.workers))
            for p in partitions
            for reason in sorted({at.route_reason for at in p.workers})
        ],
    )
    page.gauge(
        "xksfast_partition_slow_start_factor",
        "Factor on the router's score while a partition comes back; 1 when that is over.",
        [(_of(p, worker=at.worker), at.slow_start) for p in partitions for at in p.workers],
    )
    page.gauge(
        "xksfast_partition_last_good_probe_age_seconds",
        "Age of the last good health probe of the worker where it is oldest; absent when there was none.",
        [(_of(p), p.last_good_probe_age_s) for p in partitions if p.last_good_probe_age_s >= 0],
    )
    page.gauge(
        "xksfast_partition_probe_duration_seconds",
        "Duration of the last health probe, an encrypt and a decrypt.",
        [(_of(p), p.probe_duration_s) for p in partitions],
    )


def _partition_load(page: Exposition, partitions: Sequence[PartitionView]) -> None:
    page.gauge(
        "xksfast_partition_in_flight", "Calls handed over and not yet back.", [(_of(p), p.in_flight) for p in partitions]
    )
    page.gauge("xksfast_partition_limit", "Calls that may be in flight.", [(_of(p), p.limit) for p in partitions])
    page.gauge(
        "xksfast_partition_concurrency",
        "Calls that the partition works on at once without queueing, estimated by the router.",
        [(_of(p), p.concurrency) for p in partitions],
    )
    page.gauge(
        "xksfast_partition_sessions",
        "PKCS#11 sessions: open, and wanted by the configuration.",
        [
            (_of(p, kind=kind), value)
            for p in partitions
            for kind, value in (("open", p.sessions_open), ("wanted", p.sessions_wanted))
        ],
    )
    page.gauge(
        "xksfast_partition_lost_threads",
        "Threads hung in a call for longer than a second.",
        [(_of(p), p.lost_threads) for p in partitions],
    )
    page.gauge(
        "xksfast_partition_oldest_call_seconds",
        "Age of the oldest call in flight; 0 when there is none.",
        [(_of(p), p.oldest_call_s) for p in partitions],
    )
    for quantity, field in (("median", "median_s"), ("p95", "p95_s")):
        page.gauge(
            f"xksfast_partition_{quantity}_seconds",
            f"Duration of a call as the router of a worker tracks it: {quantity}.",
            [(_of(p, worker=at.worker), getattr(at, field)) for p in partitions for at in p.workers],
        )


def _partition_calls(page: Exposition, status: ServiceStatus) -> None:
    partitions, bounds_ns = status.partitions, status.call_bounds_ns
    page.counter(
        "xksfast_partition_calls_total",
        "Calls handed over: first attempts, retries, hedges, check decrypts.",
        [(_of(p, purpose=purpose), count) for p in partitions for purpose, count in p.calls.items()],
    )
    page.gauge(
        "xksfast_partition_share",
        "Share of all calls since the start that this partition was given, 0 to 1.",
        [(_of(p), p.share) for p in partitions],
    )
    page.counter(
        "xksfast_partition_errors_total",
        "Errors by the name of the CK_RV.",
        [(_of(p, ckr=name), count) for p in partitions for name, count in p.errors.items()],
    )
    page.counter("xksfast_partition_faults_total", "Faults of the partition itself.", [(_of(p), p.faults) for p in partitions])
    page.counter("xksfast_partition_breaker_opens_total", "Times the breaker opened.", [(_of(p), p.opens) for p in partitions])
    page.gauge(
        "xksfast_partition_breaker_last_open_timestamp_seconds",
        "When the breaker last opened, seconds since the epoch; the reason is at /status. Absent when it never did.",
        [(_of(p), p.last_open_unix_s) for p in partitions if p.last_open_unix_s],
    )
    page.counter("xksfast_partition_logins_total", "Logins to the token.", [(_of(p), p.logins) for p in partitions])
    page.histogram(
        "xksfast_partition_call_duration_seconds",
        "Calls served, by duration. The sum is estimated from finer buckets than are shown.",
        bounds_ns,
        [
            (_of(p), p.latency_counts, histogram.estimated_sum(bounds_ns, p.latency_counts) / 1e9)
            for p in partitions
            if bounds_ns
        ],
    )
