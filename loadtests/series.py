# SPDX-License-Identifier: Apache-2.0
"""What happened in each second of a run: recorded in every generator, drained into one Series where the report is written.

A request belongs to the second in which it was due, whatever became of it, so that a stall stands where it began.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from loadtests.histogram import Histogram

KINDS = ("scheduled", "service", "lateness")
QUANTILES = {"p50_ms": 0.5, "p99_ms": 0.99, "p999_ms": 0.999}
OPEN_SECONDS = 60  # older seconds keep their quantiles only, or an eight-hour run would not fit into memory
KMS_LIMIT_MS = 250  # KMS gives a request up after that
TOO_LATE = f"LaterThan{KMS_LIMIT_MS}ms"
UNANSWERED = "NotSentOrNotAnswered"
WRONG = "WrongAnswer"


@dataclass
class Outcome:
    """One request. scheduled latency is lateness + service time; failure: "" for a right answer in time."""

    second: int
    operation: str
    lateness_us: int
    service_us: int
    failure: str

    @property
    def scheduled_us(self) -> int:
        """From the moment it was due to the answer."""
        return self.lateness_us + self.service_us


@dataclass
class Bucket:
    """The requests of one second, or of one operation."""

    requests: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    histograms: dict[str, Histogram] = field(default_factory=lambda: {kind: Histogram() for kind in KINDS})
    frozen: dict[str, dict[str, float]] = field(default_factory=dict)

    def record(self, outcome: Outcome) -> None:
        """Count one request."""
        self.requests += 1
        if outcome.failure:
            self.failures[outcome.failure] += 1
        self.histograms["scheduled"].record(outcome.scheduled_us)
        self.histograms["service"].record(outcome.service_us)
        self.histograms["lateness"].record(outcome.lateness_us)

    def packed(self) -> dict[str, Any]:
        """For transport: plain dictionaries, lists and numbers."""
        return {
            "requests": self.requests,
            "failures": dict(self.failures),
            **{kind: histogram.pairs() for kind, histogram in self.histograms.items()},
        }

    def quantiles(self) -> dict[str, dict[str, float]]:
        """kind -> name -> milliseconds."""
        return self.frozen or {
            kind: {name: histogram.quantile_ms(share) for name, share in QUANTILES.items()}
            for kind, histogram in self.histograms.items()
        }

    def freeze(self) -> None:
        """Keep counts and quantiles, drop the histograms."""
        self.frozen = self.quantiles()
        self.histograms = {}

    def merge(self, packed: dict[str, Any]) -> None:
        """Add what another bucket's packed() gave."""
        self.requests += packed["requests"]
        self.failures.update(packed["failures"])
        for kind, histogram in self.histograms.items():
            histogram.add(packed[kind])


class Recorder:
    """One generator's outcomes, its own lag (lag.py) and CPU time since the last drain. number: of the generator."""

    def __init__(self, number: int = 0) -> None:
        self._number = number
        self._cpu_s = time.process_time()
        self._begin()

    def record(self, outcome: Outcome) -> None:
        """Count one request."""
        self._seconds[outcome.second].record(outcome)
        self._operations[outcome.operation].record(outcome)

    def busy(self, wanted_s: float, wall_s: float) -> None:
        """It wanted a CPU for wanted_s of the wall_s that have passed."""
        self._busy[0] += wanted_s
        self._busy[1] += wall_s

    def drain(self) -> dict[str, Any]:
        """Everything recorded so far, for Series.merge; the recorder is empty afterwards."""
        cpu_s, self._cpu_s = self._cpu_s, time.process_time()
        drained = {
            "cpu_s": self._cpu_s - cpu_s,
            "number": self._number,
            "busy": self._busy,
            "resent": self.resent,
            "lag": self.lag.pairs(),
            "seconds": [[second, bucket.packed()] for second, bucket in self._seconds.items()],
            "operations": [[operation, bucket.packed()] for operation, bucket in self._operations.items()],
        }
        self._begin()
        return drained

    def _begin(self) -> None:
        self._seconds: defaultdict[int, Bucket] = defaultdict(Bucket)
        self._operations: defaultdict[str, Bucket] = defaultdict(Bucket)
        self.lag = Histogram()
        self._busy = [0.0, 0.0]
        self.resent = 0  # requests that a closed connection left without an answer and that were sent again


@dataclass
class Mark:
    """Something that happened to the server at a moment of the run."""

    at_s: float
    text: str


class Series:
    """The whole run, of all generators."""

    def __init__(self) -> None:
        self.seconds: dict[int, Bucket] = {}
        self.operations: dict[str, Bucket] = {}
        self.total = Bucket()
        self._oldest_open = 0
        self.generator_cpu_s = 0.0
        self.resent = 0  # requests that were sent again, since the server had closed their connection
        self.lag = Histogram()  # of all generators together, in microseconds
        self.busy: dict[int, list[float]] = {}  # generator -> [seconds for which it wanted a CPU, of how many]
        self.marks: list[Mark] = []
        self.samples: list[dict[str, Any]] = []  # of the server: {"at_s", "memory_mib", "partitions": {name: completed jobs}}

    def merge(self, drained: dict[str, Any]) -> None:
        """Add what a Recorder gave."""
        self.generator_cpu_s += drained["cpu_s"]
        self.resent += drained["resent"]
        self.lag.add(drained["lag"])
        busy = self.busy.setdefault(drained["number"], [0.0, 0.0])
        for index, seconds in enumerate(drained["busy"]):
            busy[index] += seconds
        for second, packed in drained["seconds"]:
            self.seconds.setdefault(int(second), Bucket()).merge(packed)
            self.total.merge(packed)
        for operation, packed in drained["operations"]:
            self.operations.setdefault(operation, Bucket()).merge(packed)
        newest = max(self.seconds, default=0)
        while self._oldest_open < newest - OPEN_SECONDS:  # arrivals are handed out in order, so nothing comes for older ones
            if self._oldest_open in self.seconds:
                self.seconds[self._oldest_open].freeze()
            self._oldest_open += 1

    def count_failure(self, second: int, name: str, count: int = 1, *, more_requests: bool = False) -> None:
        """Failures without a latency; more_requests: of requests that have not been counted."""
        for bucket in (self.seconds.setdefault(second, Bucket()), self.total):
            bucket.failures[name] += count
            bucket.requests += count if more_requests else 0

    def count_unanswered(self, due: int, last_second: int) -> None:
        """Requests that were due but of which no generator told anything are failures of the last second."""
        missing = due - self.total.requests
        if missing > 0:
            self.count_failure(last_second, UNANSWERED, missing, more_requests=True)

    def busiest(self) -> float:
        """The share of a CPU that the busiest generator wanted."""
        return max((wanted_s / wall_s for wanted_s, wall_s in self.busy.values() if wall_s > 0), default=0.0)

    def shares(self) -> dict[str, list[tuple[float, float]]]:
        """partition -> (seconds, share of the jobs completed since the sample before)."""
        shares: dict[str, list[tuple[float, float]]] = {}
        usable = [sample for sample in self.samples if sample.get("partitions")]
        for before, after in pairwise(usable):
            done = {name: max(0, jobs - before["partitions"].get(name, 0)) for name, jobs in after["partitions"].items()}
            total = sum(done.values())
            for name, jobs in done.items():
                shares.setdefault(name, []).append((after["at_s"], jobs / total if total else 0.0))
        return shares
