# SPDX-License-Identifier: Apache-2.0
"""The acceptance scenarios T1 to T16 as data: partitions, load, when which partition does what, and the goals.

What lives here: what is to happen and how good is good enough. What must not: running anything (bench/faults.py) and the measures
behind the goals (bench/outcome.py). Unless said otherwise: 4 partitions of 4 servers each, log-normal service time (sigma 0.35) of 1 ms
median, Poisson arrivals at half the capacity, a fault of one partition between two healthy stretches.

A run has a size. SHORT is for CI on a busy machine: slow partitions and few requests, so that the proxy's own CPU hardly counts, and
goals that only a broken router misses. NORMAL is `make bench`, LONG the durations of the acceptance table.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from bench import outcome as measure
from bench.outcome import Measure

SIGMA = 0.35  # of the service time's logarithm
ALL = -1  # every partition


@dataclass(frozen=True)
class Size:
    """Seconds of the three stretches, the median service time, and a factor on the load."""

    name: str
    before_s: float
    fault_s: float
    after_s: float
    service_ms: float
    load_factor: float = 1.0

    @property
    def seconds(self) -> float:
        return self.before_s + self.fault_s + self.after_s

    @property
    def is_short(self) -> bool:
        return self.name == "short"

    @property
    def until_s(self) -> float:
        """The end of the fault."""
        return self.before_s + self.fault_s


SHORT = Size("short", 1.0, 2.0, 1.0, 8.0, 0.8)
NORMAL = Size("normal", 5.0, 9.0, 6.0, 1.0)
LONG = Size("long", 15.0, 20.0, 25.0, 1.0)
SIZES = {size.name: size for size in (SHORT, NORMAL, LONG)}


@dataclass(frozen=True)
class Event:
    """At at_s a partition (or ALL) changes. what: a name in bench/faults.py's ACTIONS."""

    at_s: float
    partition: int
    what: str
    value: float = 0


@dataclass(frozen=True)
class Goal:
    """A measure of the outcome and its bound; `short`: the bound in a short run, None: not looked at there."""

    text: str
    measure: Measure
    at_most: float | None = None
    at_least: float | None = None
    short: float | None = None

    def holds(self, value: float, size: Size) -> bool | None:
        """None: not looked at in this size."""
        bound = self.bound(size)
        if bound is None or math.isnan(value):
            return None
        return value <= bound if self.at_most is not None else value >= bound

    def bound(self, size: Size) -> float | None:
        if size.is_short:
            return self.short
        return self.at_most if self.at_most is not None else self.at_least


Timeline = Callable[[Size], list[Event]]


@dataclass(frozen=True)
class Scenario:
    """One row of the table. load: of the capacity of all partitions together. rate: instead of it, per second.

    short_after_s: a short run goes on for so long after the fault, if a goal there says how long recovery may take.
    """

    name: str
    title: str
    timeline: Timeline
    goals: tuple[Goal, ...]
    partitions: int = 4
    servers: int = 4
    sessions: int = 16
    load: float = 0.5
    rate: float = 0
    mix: dict[str, int] = field(default_factory=lambda: {"encrypt": 6, "cdiv": 1, "decrypt": 3})
    login: bool = False
    session_limit: int = 0
    fixed: bool = False  # the service time does not vary
    short_after_s: float = 0

    def sized(self, size: Size) -> Size:
        """The size of its own run."""
        return replace(size, after_s=max(size.after_s, self.short_after_s)) if size.is_short else size

    def capacity(self, service_ms: float) -> float:
        """Calls per second of all partitions together."""
        mean_ms = service_ms if self.fixed else service_ms * math.exp(SIGMA**2 / 2)
        return self.partitions * self.servers * 1000 / mean_ms if self.servers else math.inf

    def calls_per_request(self) -> float:
        """Calls that a request of the mix costs: a CDIV is proved by a second one."""
        return sum(weight * (2 if kind == "cdiv" else 1) for kind, weight in self.mix.items()) / sum(self.mix.values())

    def requests_per_s(self, size: Size) -> float:
        """The offered load."""
        if self.rate:
            return self.rate * (size.load_factor if not size.is_short else 1 / size.service_ms)
        overload = self.load > 1
        factor = 1 if overload else size.load_factor
        return self.load * factor * self.capacity(size.service_ms) / self.calls_per_request()


# --- timelines


def nothing(_: Size) -> list[Event]:
    return []


def one(what: str, value: float = 0, partition: int = 0) -> Timeline:
    """From the beginning of the fault to its end."""

    def timeline(size: Size) -> list[Event]:
        return [Event(size.before_s, partition, what, value), Event(size.until_s, partition, "healthy")]

    return timeline


def flapping(what: str) -> Timeline:
    """A second ill, a second well; half of that in a short run."""

    def timeline(size: Size) -> list[Event]:
        half = min(1.0, size.fault_s / 4)
        times = round(size.fault_s / (2 * half))
        ill = [Event(size.before_s + 2 * half * i, 0, what) for i in range(times)]
        well = [Event(size.before_s + 2 * half * i + half, 0, "healthy") for i in range(times)]
        return sorted(ill + well, key=lambda event: event.at_s)

    return timeline


def stalls(size: Size) -> list[Event]:
    """Each partition stands still for 100 ms, two seconds apart on average."""
    chance, events = random.Random(7), []
    for partition in range(4):
        at = size.before_s + chance.expovariate(0.5)
        while at + 0.1 < size.until_s:
            events += [Event(at, partition, "hang"), Event(at + 0.1, partition, "healthy")]
            at += 0.1 + chance.expovariate(0.5)
    return sorted(events, key=lambda event: event.at_s)


def restart(size: Size) -> list[Event]:
    """Dead for half of the time, then its sessions, login and handles are gone, and it is five times as slow for the other half."""
    back = size.before_s + size.fault_s / 2
    return [
        Event(size.before_s, 0, "dead"),
        Event(back, 0, "restart"),
        Event(back, 0, "slow", 5),
        Event(size.until_s, 0, "healthy"),
    ]


def two_faults(size: Size) -> list[Event]:
    return [*one("hang", partition=0)(size), *one("slow", 10, partition=1)(size)]


def all_dead(size: Size) -> list[Event]:
    """The first comes back at the end of the fault, the others half a second later."""
    back = [Event(size.until_s + (0.5 if partition else 0), partition, "healthy") for partition in range(4)]
    return [Event(size.before_s, ALL, "dead"), *back]


# --- goals

OVERHEAD_MS = 0.4  # what the path through HTTP may add to an oracle's p99

NOTHING_FAILS = Goal("failed requests", measure.failed, at_most=0)
ALL_RIGHT = Goal("answered rightly", measure.ok_share, at_least=1.0, short=0.97)
FOUR_NINES = Goal("answered rightly", measure.ok_share, at_least=0.9999, short=0.95)
FEW_EXTRA = Goal("extra calls per request", measure.extra_calls, at_most=0.05, short=0.25)
NO_HEALTHY_ONE_OUT = Goal("least share of a healthy partition in any second, of its fair share", measure.least_healthy_share,
                          at_least=0.5, short=0.1)  # fmt: skip


NO_HEALTHY_BREAKER = Goal("breakers of healthy partitions that opened", measure.healthy_opens, at_most=0, short=1)


def p99_times(factor: float) -> Goal:
    return Goal("p99 in the fault / healthy p99", measure.p99_ratio, at_most=factor)


def p999_times(factor: float) -> Goal:
    return Goal("p99.9 in the fault / healthy p99.9", measure.p999_ratio, at_most=factor)


def near_oracle(factor: float, kinds: tuple[str, ...] | None = None) -> Goal:
    return Goal(f"(p99 - {OVERHEAD_MS} ms) / p99 of an oracle", measure.oracle_ratio(OVERHEAD_MS, kinds), at_most=factor)


HEALED = Goal("seconds from the fault's end to its full share", measure.seconds_to_full_share, at_most=5)


LOGGED_IN = Goal("logins of the restarted partition, at least", measure.logins, at_least=1, short=1)
STEADY = (
    ALL_RIGHT,
    near_oracle(1.2),
    Goal("largest deviation from an equal share", measure.share_deviation, at_most=0.10, short=0.6),
)
SLOW = (
    ALL_RIGHT,
    p99_times(1.5),
    p999_times(3.0),
    Goal("its share from 200 ms on", measure.ill_share, at_most=0.02, short=0.15),
    FEW_EXTRA,
)
ERRING = (
    ALL_RIGHT,
    Goal("errors that it gave, less 10 probes a second", measure.errors_beside_probes, at_most=7, short=40),
    Goal("operations that reach it per second once it is out", measure.ill_rate, at_most=10, short=40),
    FEW_EXTRA,
)
HANGING = (
    ALL_RIGHT,
    Goal("threads lost", measure.most_hung, at_most=8, short=32),
    Goal("p99.9 in the first second, ms", measure.p999_first_second, at_most=60),
    Goal("p99.9 after the first second / healthy p99.9", measure.p999_ratio_after_first_second, at_most=1.5),
    FEW_EXTRA,
)


def for_two(goals: tuple[Goal, ...]) -> tuple[Goal, ...]:
    """The same with one healthy partition left: latency may double, nothing may fail."""
    doubled = [replace(goal, at_most=2.0) if goal.measure is measure.p99_ratio else goal for goal in goals]
    return (NOTHING_FAILS, *(goal for goal in doubled if goal.measure is not measure.p999_ratio_after_first_second))


T14 = {"partitions": 2, "load": 0.4}

SCENARIOS: tuple[Scenario, ...] = (
    Scenario("T1", "steady, 50 % load", nothing, STEADY),
    Scenario("T1b", "steady, 70 % load", nothing, STEADY, load=0.7),
    Scenario("T2", "one partition ten times as slow", one("slow", 10), SLOW),
    Scenario("T3", "one partition answers CKR_DEVICE_ERROR at once", one("error"), ERRING),
    Scenario("T4", "one partition hangs", one("hang"), HANGING),
    Scenario(
        "T5", "one partition hangs every other second", flapping("hang"),
        (FOUR_NINES, NO_HEALTHY_ONE_OUT, NO_HEALTHY_BREAKER, FEW_EXTRA),
    ),
    Scenario(
        "T6", "one partition errs every other second", flapping("error"),
        (ALL_RIGHT, Goal("failed calls per request", measure.errors_per_request, at_most=0.01, short=0.10)),
    ),
    Scenario(
        "T7", "each partition stalls for 100 ms now and then", stalls,
        (ALL_RIGHT, p99_times(2.0), Goal("p99.9 in the fault, ms", measure.p999_fault, at_most=20), FEW_EXTRA),
    ),
    Scenario("T7b", "the same stalls at 70 % load", stalls, (ALL_RIGHT, FEW_EXTRA), load=0.7),
    Scenario(
        "T8", "one partition restarts: dead, sessions and login lost, then five times as slow", restart,
        (ALL_RIGHT, HEALED, Goal("logins of the restarted partition", measure.logins, at_most=1, short=1), LOGGED_IN, FEW_EXTRA),
        login=True,
    ),
    Scenario("T9", "one partition is 8 ms further away", one("network_ms", 8), (ALL_RIGHT, p99_times(1.5), FEW_EXTRA)),
    Scenario("T10", "one partition hangs, another is ten times as slow", two_faults, (FOUR_NINES, near_oracle(2.0), FEW_EXTRA)),
    Scenario(
        "T11", "all partitions dead", all_dead,
        (
            Goal("p99.9 of errors, ms", measure.error_p999, at_most=20),
            Goal("requests without any answer", measure.unanswered, at_most=0, short=0),
            Goal("seconds until all is right again", measure.seconds_to_all_right, at_most=1.5, short=6),
        ),
        load=0.2,
        short_after_s=7,
    ),
    Scenario(
        "T12", "30 % more than one partition can do", nothing,
        (
            Goal("goodput / capacity", measure.goodput_share, at_least=0.95, short=0.5),
            Goal("p99 of what was admitted, ms", measure.p99_all, at_most=200),
            Goal("p99 of refusals, ms", measure.refusal_p99, at_most=5),
            Goal("neither answered nor refused", measure.lost, at_most=0, short=0),
        ),
        partitions=1, sessions=64, load=1.3, mix={"encrypt": 1}, fixed=True,
    ),
    Scenario(
        "T13", "a client sends garbage to decrypt, a fifth of all", nothing,
        (ALL_RIGHT, near_oracle(1.2, ("encrypt", "cdiv", "decrypt")), NO_HEALTHY_BREAKER, FEW_EXTRA),
        mix={"encrypt": 6, "cdiv": 1, "decrypt": 1, "garbage": 2},
    ),
    Scenario("T14 slow", "one of two ten times as slow", one("slow", 10), for_two(SLOW), **T14),  # type: ignore[arg-type]
    Scenario("T14 error", "one of two errs", one("error"), for_two(ERRING), **T14),  # type: ignore[arg-type]
    Scenario("T14 hang", "one of two hangs", one("hang"), for_two(HANGING), **T14),  # type: ignore[arg-type]
    Scenario("T14 flap", "one of two hangs every other second", flapping("hang"), (NOTHING_FAILS, ALL_RIGHT), **T14),  # type: ignore[arg-type]
    Scenario(
        "T14 restart", "one of two restarts", restart, (NOTHING_FAILS, ALL_RIGHT, HEALED), login=True, **T14,  # type: ignore[arg-type]
    ),
    Scenario(
        "T14 pulled", "one of two is pulled at 1,800 requests a second", one("removed"), (NOTHING_FAILS, ALL_RIGHT, HEALED),
        partitions=2, servers=0, rate=1800,
    ),
    Scenario(
        "T15", "partitions allow 8 sessions, 16 are wanted", nothing,
        (
            ALL_RIGHT,
            Goal("sessions that each partition has in the end, at least", measure.fewest_sessions, at_least=8, short=8),
            Goal("refused C_OpenSession per partition and second", measure.refused_opens_per_s, at_most=1, short=5),
        ),
        session_limit=8,
    ),
    Scenario("T16", "the cost of hedging, 50 % load", nothing, (ALL_RIGHT, replace(FEW_EXTRA, at_most=0.01))),
)  # fmt: skip

# What CI runs: the others are one of these at another load.
IN_CI = tuple(scenario for scenario in SCENARIOS if scenario.name not in ("T1b", "T7b", "T16"))
BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}
