# SPDX-License-Identifier: Apache-2.0
"""Discrete-event simulation of the engine in front of partitions that misbehave on schedule: the router against an oracle.

A partition is `servers` FIFO servers behind a round trip; service times are log-normal; calls cannot be cancelled. The engine is as
csrc/xks_engine.c drives the router: a central queue while all are full, at most two retries, one hedge looked for every 4 ms, the
first answer wins, a breaker with background probes. All times are integers of nanoseconds, all chance comes from the seed.

What is simulated is the choice, not the cost of choosing: no thread, no lock and no scheduler is in here.
"""

from __future__ import annotations

import gc
import heapq
import math
import random
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from xksfast.native.router import NEVER_NS, CallResult, Purpose, Router, Verdict

MS = 1_000_000
SECOND = 1_000_000_000
DEADLINE_NS = 200 * MS
RECEIVE_TIMEOUT_NS = 20 * SECOND
HEDGE_RECHECK_NS = 4 * MS
OVERDUE_EVERY_NS = 5 * MS
MAX_RETRIES = 2
PROBES_TO_RETURN = 3


@dataclass(frozen=True)
class Fault:
    """What is wrong with a partition from start_ns to end_ns.

    kind: "slow" (service times `factor`), "frozen" (nothing moves, nothing is lost), "erring" (each call fails at once; calls inside
    fail when it begins).
    """

    kind: str
    start_ns: int
    end_ns: int
    factor: float = 1.0


@dataclass(frozen=True)
class Setup:
    """A group of equal partitions, the load on it and what goes wrong."""

    partitions: int = 4
    load: float = 0.5  # of what all servers can do
    seconds: float = 3.0
    servers: int = 4
    sessions: int = 32
    service_ns: int = MS  # median
    sigma: float = 0.35
    round_trip_ns: int = MS // 2
    remote: dict[int, int] = field(default_factory=dict)  # partition -> further round trip in ns
    faults: dict[int, tuple[Fault, ...]] = field(default_factory=dict)
    retry_budget: float = 0.2
    hedge_budget: float = 0.05

    @property
    def capacity_per_s(self) -> float:
        """Calls per second that all servers can do, faults aside."""
        mean_ns = self.service_ns * math.exp(self.sigma**2 / 2)
        return self.partitions * self.servers * SECOND / mean_ns


def stalls(
    partitions: int, seconds: float, seed: int, length_s: float = 0.1, apart_s: float = 2.0
) -> dict[int, tuple[Fault, ...]]:
    """Freezes of length_s on every partition, independent, apart_s apart in the mean."""
    rng, found = random.Random(seed), {}
    for partition in range(partitions):
        faults, at = [], rng.expovariate(1 / apart_s)
        while at < seconds:
            faults.append(Fault("frozen", int(at * SECOND), int((at + length_s) * SECOND)))
            at += length_s + rng.expovariate(1 / apart_s)
        found[partition] = tuple(faults)
    return found


class Token:
    """One partition's HSM: when would a call return, and how."""

    def __init__(self, setup: Setup, index: int, rng: random.Random) -> None:
        self.faults = setup.faults.get(index, ())
        self.frozen = sorted((f.start_ns, f.end_ns) for f in self.faults if f.kind == "frozen")
        self.half_trip_ns = (setup.round_trip_ns + setup.remote.get(index, 0)) // 2
        self.free = [0] * setup.servers
        self._mu, self._sigma, self._rng = math.log(setup.service_ns), setup.sigma, rng

    def _at(self, kind: str, at: int) -> Fault | None:
        for fault in self.faults:
            if fault.kind == kind and fault.start_ns <= at < fault.end_ns:
                return fault
        return None

    def _work(self, at: int, service: float) -> tuple[int, int]:
        """(begin, end) of work that arrives at `at`: behind what is there, standing still while frozen."""
        begin = max(at, self.free[0])
        slow = self._at("slow", begin) if self.faults else None
        end = begin + int(service * slow.factor if slow else service)
        for start, stop in self.frozen:
            if start < end and stop > begin:
                end += stop - max(start, begin)
        return begin, end

    def expected_return(self, now: int) -> float:
        """When a call handed over now would return, knowing the whole schedule; infinite when it would fail."""
        at = now + self.half_trip_ns
        end = self._work(at, math.exp(self._mu))[1]
        fails = any(f.kind == "erring" and f.start_ns <= end and at < f.end_ns for f in self.faults)
        return math.inf if fails else end + self.half_trip_ns

    def call(self, now: int) -> tuple[int, bool]:
        """Hand a call over: (when it returns, whether it served)."""
        at = now + self.half_trip_ns
        if self._at("erring", at):
            return at + self.half_trip_ns, False
        _, end = self._work(at, self._rng.lognormvariate(self._mu, self._sigma))
        cut = None
        for fault in self.faults:
            if fault.kind == "erring" and at < fault.start_ns <= end:
                cut = fault.start_ns if cut is None else min(cut, fault.start_ns)
        heapq.heapreplace(self.free, end if cut is None else cut)
        returned = (end if cut is None else cut) + self.half_trip_ns
        if returned - now > RECEIVE_TIMEOUT_NS:
            return now + RECEIVE_TIMEOUT_NS, False
        return returned, cut is None


class Job:
    """One request."""

    __slots__ = ("answered_ns", "arrived_ns", "calls_out", "failed", "hedged", "refused_ns", "retries", "served_by", "tried")

    def __init__(self, arrived_ns: int) -> None:
        self.arrived_ns = arrived_ns
        self.answered_ns: int | None = None  # served
        self.refused_ns: int | None = None  # refused at once, or failed before the deadline
        self.failed = False
        self.served_by = -1
        self.tried = 0
        self.calls_out = 0
        self.retries = 0
        self.hedged = False

    @property
    def done(self) -> bool:
        """Answered, in one way or the other."""
        return self.answered_ns is not None or self.failed

    @property
    def latency_ns(self) -> int | None:
        """Until the good answer; None when there was none in time."""
        if self.answered_ns is None or self.answered_ns - self.arrived_ns > DEADLINE_NS:
            return None
        return self.answered_ns - self.arrived_ns


class Policy(Protocol):
    """What the simulated engine asks."""

    def pick(self, job: Job, purpose: Purpose, now: int) -> tuple[Verdict, int]: ...
    def begin(self, partition: int, purpose: Purpose, now: int) -> int: ...
    def end(self, partition: int, call: int, result: CallResult, took_ns: int, now: int) -> bool: ...
    def overdue(self, now: int) -> int: ...
    def hedge_delay_ns(self, partition: int) -> int | None: ...
    def wait_ns(self, waiting: int, now: int) -> int: ...
    def set_in_service(self, partition: int, in_service: bool, now: int) -> None: ...
    def set_sessions(self, partition: int, sessions: int) -> None: ...


class RouterPolicy:
    """The product's router."""

    def __init__(self, setup: Setup, tokens: list[Token], seed: int) -> None:
        self.router = Router(setup.partitions, seed=seed, retry_budget=setup.retry_budget, hedge_budget=setup.hedge_budget)
        self.members = (1 << setup.partitions) - 1
        self.begin, self.end, self.overdue = self.router.begin, self.router.end, self.router.overdue
        self.hedge_delay_ns = self.router.hedge_delay_ns
        self.set_in_service, self.set_sessions = self.router.set_in_service, self.router.set_sessions
        for partition in range(setup.partitions):
            self.router.set_sessions(partition, setup.sessions)
            self.router.set_in_service(partition, True, 0)

    def pick(self, job: Job, purpose: Purpose, now: int) -> tuple[Verdict, int]:
        """As the engine asks."""
        remaining = max(0, job.arrived_ns + DEADLINE_NS - now)
        return self.router.pick(now, members=self.members, tried=job.tried, remaining_ns=remaining, purpose=purpose)

    def wait_ns(self, waiting: int, now: int) -> int:
        """As the engine asks."""
        return self.router.wait_ns(self.members, waiting, now)


class Control:
    """A policy to compare with: no breaker, no hedge, retries within the same budget."""

    def __init__(self, setup: Setup, tokens: list[Token], seed: int) -> None:
        self.setup, self.tokens, self.rng = setup, tokens, random.Random(seed)
        self.in_flight = [0] * setup.partitions
        self.retry_tokens = 10.0

    def order(self, job: Job, now: int) -> Iterable[int]:
        """Partitions, the preferred first."""
        raise NotImplementedError

    def pick(self, job: Job, purpose: Purpose, now: int) -> tuple[Verdict, int]:
        """The first of the order that has a session and was not tried."""
        if purpose == Purpose.HEDGE or (purpose == Purpose.RETRY and self.retry_tokens < 1):
            return Verdict.NO_BUDGET, 0
        for partition in self.order(job, now):
            if self.in_flight[partition] < self.setup.sessions and not job.tried >> partition & 1:
                return Verdict.CHOSEN, partition
        return Verdict.FULL, 0

    def begin(self, partition: int, purpose: Purpose, now: int) -> int:
        """Counts."""
        self.in_flight[partition] += 1
        self.retry_tokens += -1 if purpose == Purpose.RETRY else min(self.setup.retry_budget, 100 - self.retry_tokens)
        return 0

    def end(self, partition: int, call: int, result: CallResult, took_ns: int, now: int) -> bool:
        """Counts."""
        self.in_flight[partition] -= 1
        return False

    def overdue(self, now: int) -> int:
        """Never."""
        return 0

    def hedge_delay_ns(self, partition: int) -> int | None:
        """Never."""
        return None

    def wait_ns(self, waiting: int, now: int) -> int:
        """Nobody is refused."""
        return 0

    def set_in_service(self, partition: int, in_service: bool, now: int) -> None:
        """Not known here."""

    def set_sessions(self, partition: int, sessions: int) -> None:
        """Not known here."""


class RoundRobin(Control):
    """Each in turn."""

    turn = 0

    def order(self, job: Job, now: int) -> Iterable[int]:
        """From the next one."""
        self.turn += 1
        return [(self.turn + i) % self.setup.partitions for i in range(self.setup.partitions)]


class LeastOutstanding(Control):
    """The fewest calls in flight."""

    def order(self, job: Job, now: int) -> Iterable[int]:
        """Equals in random order."""
        return sorted(range(self.setup.partitions), key=lambda p: (self.in_flight[p], self.rng.random()))


class Oracle(Control):
    """Knows the schedule and the state of every server: the earliest expected return. Greedy, so not a strict bound."""

    def order(self, job: Job, now: int) -> Iterable[int]:
        """By expected return."""
        return sorted(range(self.setup.partitions), key=lambda p: (self.tokens[p].expected_return(now), self.in_flight[p]))


class Simulation:
    """One run. `jobs` has every request afterwards, `handed` every call as (time, partition, purpose), `opened` the breaker."""

    def __init__(self, setup: Setup, policy: Callable[[Setup, list[Token], int], Policy], seed: int = 1) -> None:
        self.setup, self.rng = setup, random.Random(seed)
        self.tokens = [Token(setup, i, self.rng) for i in range(setup.partitions)]
        self.policy = policy(setup, self.tokens, seed)
        self.jobs: list[Job] = []
        self.handed: list[tuple[int, int, Purpose]] = []
        self.opened: list[tuple[int, int]] = []
        self.returned: list[tuple[int, int]] = []
        self.probes: list[tuple[int, int]] = []
        self.lost = [0] * setup.partitions
        self.in_flight = [0] * setup.partitions
        self.peak_in_flight = [0] * setup.partitions
        self.peak_queue = 0
        self._queue: deque[tuple[Job, Purpose]] = deque()
        self._events: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._sequence = 0
        self.now = 0

    def _later(self, at: int, what: Callable[..., None], *arguments: Any) -> None:
        self._sequence += 1
        heapq.heappush(self._events, (at, self._sequence, what, arguments))

    def run(self) -> Simulation:
        """Arrivals for `seconds`, then until everything in time is answered."""
        end = int(self.setup.seconds * SECOND)
        per_ns = self.setup.load * self.setup.capacity_per_s / SECOND
        self._later(int(self.rng.expovariate(per_ns)), self._arrive, per_ns, end)
        self._later(OVERDUE_EVERY_NS, self._look_for_overdue)
        last = end + DEADLINE_NS
        collecting = gc.isenabled()
        gc.disable()  # nothing here is cyclic, and a hundred thousand requests stay until the end
        while self._events and self._events[0][0] <= last:
            self.now, _, what, arguments = heapq.heappop(self._events)
            what(*arguments)
        if collecting:
            gc.enable()
        return self

    # --- requests

    def _arrive(self, per_ns: float, end: int) -> None:
        at = self.now + max(1, int(self.rng.expovariate(per_ns)))
        if at < end:
            self._later(at, self._arrive, per_ns, end)
        job = Job(self.now)
        self.jobs.append(job)
        if not self._queue and self._hand(job, Purpose.FIRST) != Verdict.FULL:
            return
        if self.policy.wait_ns(len(self._queue), self.now) > DEADLINE_NS // 2:
            self._fail(job)
            return
        self._queue.append((job, Purpose.FIRST))
        self.peak_queue = max(self.peak_queue, len(self._queue))

    def _fail(self, job: Job) -> None:
        if not job.done and job.calls_out == 0:
            job.failed, job.refused_ns = True, self.now

    def _hand(self, job: Job, purpose: Purpose) -> Verdict:
        """Pick and hand over; a verdict that is final fails the job."""
        verdict, partition = self.policy.pick(job, purpose, self.now)
        if verdict != Verdict.CHOSEN:
            if verdict != Verdict.FULL and purpose != Purpose.HEDGE:
                self._fail(job)
            return verdict
        call = self.policy.begin(partition, purpose, self.now)
        returns, served = self.tokens[partition].call(self.now)
        self.handed.append((self.now, partition, purpose))
        job.tried |= 1 << partition
        job.calls_out += 1
        self.in_flight[partition] += 1
        self.peak_in_flight[partition] = max(self.peak_in_flight[partition], self.in_flight[partition])
        self._later(returns, self._return, job, partition, call, self.now, served)
        if purpose != Purpose.HEDGE and not job.hedged:
            delay = self.policy.hedge_delay_ns(partition)
            if delay is not None:
                self._later(self.now + delay, self._consider_hedge, job, call, partition)
        return verdict

    def _return(self, job: Job, partition: int, call: int, began: int, served: bool) -> None:
        job.calls_out -= 1
        self.in_flight[partition] -= 1
        took = self.now - began
        if took > SECOND and self.lost[partition] > 0:
            self._set_lost(partition, self.lost[partition] - 1)
        result = CallResult.SERVED if served else CallResult.FAULT
        if self.policy.end(partition, call, result, took, self.now):
            self._open(partition)
        if not job.done:
            if served:
                job.answered_ns, job.served_by = self.now, partition
            elif job.calls_out == 0:
                self._retry(job)
        self._drain()

    def _retry(self, job: Job) -> None:
        job.retries += 1
        if job.retries > MAX_RETRIES or self.now > job.arrived_ns + DEADLINE_NS:
            self._fail(job)
        elif self._hand(job, Purpose.RETRY) == Verdict.FULL:
            self._queue.appendleft((job, Purpose.RETRY))

    def _drain(self) -> None:
        while self._queue:
            job, purpose = self._queue[0]
            if job.done or self.now > job.arrived_ns + DEADLINE_NS:
                self._fail(job)
            elif self._hand(job, purpose) == Verdict.FULL:
                return
            self._queue.popleft()

    def _consider_hedge(self, job: Job, call: int, partition: int) -> None:
        if job.done or job.hedged or job.calls_out == 0 or self.now > job.arrived_ns + DEADLINE_NS:
            return
        if self._hand(job, Purpose.HEDGE) == Verdict.CHOSEN:
            job.hedged = True
        else:
            self._later(self.now + HEDGE_RECHECK_NS, self._consider_hedge, job, call, partition)

    # --- breaker, probes, lost threads

    def _set_lost(self, partition: int, lost: int) -> None:
        """A lost thread is replaced until there are twice as many threads as sessions."""
        self.lost[partition] = lost
        self.policy.set_sessions(partition, max(0, min(self.setup.sessions, 2 * self.setup.sessions - lost)))

    def _look_for_overdue(self) -> None:
        told = self.policy.overdue(self.now)
        for partition in range(self.setup.partitions):
            if told >> partition & 1:
                self._open(partition)
        self._later(self.now + OVERDUE_EVERY_NS, self._look_for_overdue)
        self._drain()

    def _open(self, partition: int) -> None:
        self.opened.append((self.now, partition))
        self.policy.set_in_service(partition, False, self.now)
        self._later(self.now + 100 * MS, self._probe, partition, 100 * MS, 0)

    def _probe(self, partition: int, delay: int, good: int) -> None:
        self.probes.append((self.now, partition))
        returns, served = self.tokens[partition].call(self.now)
        self._later(returns, self._probed, partition, delay, good, served)

    def _probed(self, partition: int, delay: int, good: int, served: bool) -> None:
        good = good + 1 if served else 0
        if good == PROBES_TO_RETURN:
            self.returned.append((self.now, partition))
            self.policy.set_in_service(partition, True, self.now)
            self._drain()
            return
        delay = 100 * MS if served else min(2 * delay, SECOND)
        self._later(self.now + int(delay * self.rng.uniform(0.8, 1.2)), self._probe, partition, delay, good)


@dataclass(frozen=True)
class Summary:
    """Of the requests that arrived in a window."""

    requests: int
    served: int  # within the deadline
    refused: int  # told so before the deadline
    p50_ms: float
    p99_ms: float
    p999_ms: float
    shares: tuple[float, ...]  # of first attempts and retries handed over, by partition
    retry_rate: float
    hedge_rate: float

    @property
    def success(self) -> float:
        """Served of all."""
        return self.served / self.requests if self.requests else 1.0


def quantile(values: list[float], q: float) -> float:
    """Of sorted values; 0 when there is none."""
    return values[min(len(values) - 1, int(q * len(values)))] if values else 0.0


def summarise(run: Simulation, start_s: float = 0.0, end_s: float = math.inf) -> Summary:
    """What happened to requests that arrived from start_s to end_s."""
    jobs = [job for job in run.jobs if start_s <= job.arrived_ns / SECOND < end_s]
    latencies = sorted(job.latency_ns / MS for job in jobs if job.latency_ns is not None)
    handed = [(p, purpose) for at, p, purpose in run.handed if start_s <= at / SECOND < end_s]
    counts = [sum(1 for p, purpose in handed if p == i and purpose != Purpose.HEDGE) for i in range(run.setup.partitions)]
    total = max(1, len(jobs))
    return Summary(
        requests=len(jobs),
        served=len(latencies),
        refused=sum(1 for job in jobs if job.refused_ns is not None and job.refused_ns - job.arrived_ns < DEADLINE_NS),
        p50_ms=quantile(latencies, 0.5),
        p99_ms=quantile(latencies, 0.99),
        p999_ms=quantile(latencies, 0.999),
        shares=tuple(count / max(1, sum(counts)) for count in counts),
        retry_rate=sum(1 for _, purpose in handed if purpose == Purpose.RETRY) / total,
        hedge_rate=sum(1 for _, purpose in handed if purpose == Purpose.HEDGE) / total,
    )


__all__ = [
    "MS", "NEVER_NS", "SECOND", "Fault", "Job", "LeastOutstanding", "Oracle", "RoundRobin", "RouterPolicy", "Setup", "Simulation",
    "Summary", "stalls", "summarise",
]  # fmt: skip
