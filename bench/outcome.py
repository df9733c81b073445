# SPDX-License-Identifier: Apache-2.0
"""What came of a scenario's run, and the measures that its goals are set for: pure functions of an Outcome, NaN where there is nothing.

Requests come from the load generator's records, the partitions' part from the fault shim's counters, sampled every 100 ms. An oracle
that knows every queue is simulated here for comparison.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from bench.open_loop import Run, quantile

LATE_S = 0.25  # KMS has given up
NAN = math.nan


@dataclass(frozen=True)
class Sample:
    """The shim's counters at a time. operations: encryptions and decryptions; errors: those that failed; hung: calls that hang now."""

    at_s: float
    operations: tuple[int, ...]
    errors: tuple[int, ...]
    hung: tuple[int, ...]
    sessions: tuple[int, ...]
    logins: tuple[int, ...]
    refused_opens: tuple[int, ...]


@dataclass(frozen=True)
class Outcome:
    """before_s, until_s: where the fault begins and ends; steady: there is none. ill: the partitions that have one.

    capacity: requests per second of all partitions together. probes_per_s: operations of the server's own, of all partitions.
    """

    run: Run
    samples: tuple[Sample, ...]
    before_s: float
    until_s: float
    steady: bool
    ill: frozenset[int]
    partitions: int
    servers: int
    service_ms: float
    sigma: float
    rate: float
    capacity: float
    calls_per_request: float
    probes_per_s: float
    multipliers: tuple[float, ...]  # in the fault; inf: it does not answer
    opens: tuple[int, ...]  # of each partition's breaker, in the run


Measure = Callable[[Outcome], float]


def _fault(o: Outcome) -> tuple[float, float]:
    """The stretch that counts: the fault, or in a steady run all but the first tenth."""
    return (o.run.seconds * 0.1, o.run.seconds) if o.steady else (o.before_s, o.until_s)


def _quantile_ms(o: Outcome, q: float, since_s: float, until_s: float, kinds: Sequence[str] | None = None) -> float:
    value = quantile(o.run.latencies_ms(since_s=since_s, until_s=until_s, kinds=kinds), q)
    return NAN if value is None else value


def _ratio(a: float, b: float) -> float:
    return a / b if b else NAN


# --- requests


def failed(o: Outcome) -> float:
    """Requests that got something else than the right answer, or got it after KMS has given up."""
    late = sum(1 for value in o.run.latencies_ms() if value > LATE_S * 1000)
    return sum(count for name, count in o.run.statuses().items() if name != "ok") + late


def ok_share(o: Outcome) -> float:
    return _ratio(o.run.statuses()["ok"], len(o.run.due))


def lost(o: Outcome) -> float:
    """Neither answered nor refused."""
    statuses = o.run.statuses()
    return sum(count for name, count in statuses.items() if name not in ("ok", "429", "503"))


def unanswered(o: Outcome) -> float:
    """Got no answer at all: neither the right one nor an error."""
    statuses = o.run.statuses()
    return statuses["no answer"] + statuses["connection broken"]


def p99_all(o: Outcome) -> float:
    return _quantile_ms(o, 0.99, 0, math.inf)


def p99_ratio(o: Outcome) -> float:
    return _ratio(_quantile_ms(o, 0.99, *_fault(o)), _quantile_ms(o, 0.99, 0, o.before_s))


def p999_ratio(o: Outcome) -> float:
    return _ratio(p999_fault(o), _quantile_ms(o, 0.999, 0, o.before_s))


def p999_fault(o: Outcome) -> float:
    return _quantile_ms(o, 0.999, *_fault(o))


def p999_first_second(o: Outcome) -> float:
    return _quantile_ms(o, 0.999, o.before_s, o.before_s + 1)


def p999_ratio_after_first_second(o: Outcome) -> float:
    return _ratio(_quantile_ms(o, 0.999, o.before_s + 1, o.until_s), _quantile_ms(o, 0.999, 0, o.before_s))


def refusal_p99(o: Outcome) -> float:
    value = quantile(o.run.refusal_ms(), 0.99)
    return NAN if value is None else value


def error_p999(o: Outcome) -> float:
    """Of every answer that is an error."""
    value = quantile(o.run.error_ms(), 0.999)
    return NAN if value is None else value


def goodput_share(o: Outcome) -> float:
    """Right answers per second against what the partitions can do, without the first second."""
    windows = [window for window in o.run.windows() if window.start_s >= min(1.0, o.run.seconds / 5)]
    return _ratio(sum(window.finished_ok for window in windows) / (len(windows) * 0.1), o.capacity)


def seconds_to_all_right(o: Outcome) -> float:
    """From the fault's end to the first of five windows of 100 ms in a row in which everything due was answered rightly."""
    windows = o.run.windows()
    for i, window in enumerate(windows):
        if window.start_s >= o.until_s - 1e-6 and all(w.due == w.ok for w in windows[i : i + 5]):
            return window.start_s - o.until_s
    return math.inf


# --- partitions


def _between(o: Outcome, since_s: float, until_s: float, field: str = "operations") -> list[int]:
    """How much each partition's counter grew between the samples nearest to two times."""
    if not o.samples:
        return [0] * o.partitions
    first = min(o.samples, key=lambda sample: abs(sample.at_s - since_s))
    last = min(o.samples, key=lambda sample: abs(sample.at_s - until_s))
    return [after - before for before, after in zip(getattr(first, field), getattr(last, field), strict=True)]


def shares(o: Outcome, since_s: float, until_s: float) -> list[float]:
    """Each partition's part of all operations."""
    counts = _between(o, since_s, until_s)
    return [_ratio(count, sum(counts)) for count in counts]


def share_deviation(o: Outcome) -> float:
    """The largest, relative to an equal share."""
    return max(abs(share * o.partitions - 1) for share in shares(o, *_fault(o)))


def ill_share(o: Outcome) -> float:
    """From 200 ms after the fault began."""
    found = shares(o, o.before_s + 0.2, o.until_s)
    return sum(found[partition] for partition in o.ill)


def least_healthy_share(o: Outcome) -> float:
    """In any second of the fault, relative to what it would have if all healthy partitions shared equally."""
    since, until = _fault(o)
    least, at = math.inf, since
    while at + 1 <= until + 1e-6:
        found = shares(o, at, at + 1)
        healthy = [found[i] for i in range(o.partitions) if i not in o.ill]
        least = min(least, *(share * len(healthy) / sum(healthy) if sum(healthy) else 0 for share in healthy))
        at += 1
    return least


def healthy_opens(o: Outcome) -> float:
    """How often a breaker of a healthy partition opened."""
    return sum(count for partition, count in enumerate(o.opens) if partition not in o.ill)


def errors_beside_probes(o: Outcome) -> float:
    """Failed operations of the ill partitions in the fault, less ten a second for probes, at least 0."""
    errors = _between(o, o.before_s, o.until_s, "errors")
    return max(0.0, sum(errors[i] for i in o.ill) - 10 * (o.until_s - o.before_s))


def ill_rate(o: Outcome) -> float:
    """Operations per second that reach the ill partitions from 500 ms after the fault began."""
    counts = _between(o, o.before_s + 0.5, o.until_s)
    return sum(counts[i] for i in o.ill) / (o.until_s - o.before_s - 0.5)


def errors_per_request(o: Outcome) -> float:
    since, until = _fault(o)
    return _ratio(sum(_between(o, since, until, "errors")), sum(o.run.statuses(since_s=since, until_s=until).values()))


def extra_calls(o: Outcome) -> float:
    """Operations beyond one for each answered request (two for a CDIV) and the probes, per request."""
    answered = sum(1 for status in o.run.status if status in (200, 400))
    if not o.samples or not answered:
        return NAN
    seconds = o.samples[-1].at_s - o.samples[0].at_s
    done = sum(o.samples[-1].operations) - sum(o.samples[0].operations)
    wanted = sum(
        (2 if o.run.calls[kind].kind == "cdiv" else 1)
        for kind, status in zip(o.run.kind, o.run.status, strict=True)
        if status in (200, 400)
    )
    return max(0.0, (done - wanted - seconds * o.probes_per_s) / answered)


def most_hung(o: Outcome) -> float:
    return max((sum(sample.hung) for sample in o.samples), default=NAN)


def fewest_sessions(o: Outcome) -> float:
    return min(o.samples[-1].sessions) if o.samples else NAN


def refused_opens_per_s(o: Outcome) -> float:
    since, until = _fault(o)
    return max(_between(o, since, until, "refused_opens")) / (until - since)


def logins(o: Outcome) -> float:
    """Of the ill partitions, in the whole run."""
    return sum(o.samples[-1].logins[i] - o.samples[0].logins[i] for i in o.ill) if o.samples else NAN


def seconds_to_full_share(o: Outcome) -> float:
    """From the fault's end until the ill partition has 80 % of an equal share in half a second."""
    at = o.until_s
    while at + 0.5 <= o.run.seconds + 1e-6:
        found = shares(o, at, at + 0.5)
        if all(found[i] * o.partitions >= 0.8 for i in o.ill):
            return at - o.until_s
        at += 0.1
    return math.inf


# --- the oracle


def oracle_ratio(allowance_ms: float, kinds: Sequence[str] | None = None) -> Measure:
    """p99 in the fault, less what HTTP may add, against that of an oracle that sees all queues. A CDIV counts as two calls."""

    def ratio(o: Outcome) -> float:
        plain = ("encrypt", "decrypt") if kinds is None else tuple(kind for kind in kinds if kind != "cdiv")
        measured = _quantile_ms(o, 0.99, *_fault(o), plain)
        best = oracle_p99_ms(o.multipliers, o.servers, o.service_ms, o.sigma, round(o.rate * o.calls_per_request))
        return max(0.0, measured - allowance_ms) / best

    return ratio


@cache
def oracle_p99_ms(multipliers: tuple[float, ...], servers: int, service_ms: float, sigma: float, calls_per_s: int) -> float:
    """p99 of Poisson arrivals that each go where they will be finished first, as far as queues and medians tell."""
    chance, arrival, latencies = random.Random(11), 0.0, []
    queues = [([0.0] * servers, times) for times in multipliers if math.isfinite(times)]
    for _ in range(60_000):
        arrival += chance.expovariate(calls_per_s / 1000)
        free, times = min(queues, key=lambda queue: max(queue[0][0], arrival) + service_ms * queue[1])
        end = max(heapq.heappop(free), arrival) + times * service_ms * math.exp(chance.gauss(0, sigma))
        heapq.heappush(free, end)
        latencies.append(end - arrival)
    latencies.sort()
    value = quantile(latencies, 0.99)
    assert value is not None
    return value
