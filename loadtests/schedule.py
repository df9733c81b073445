# SPDX-License-Identifier: Apache-2.0
"""When each request is due, decided before the run and for all generators together; and who is how late.

What lives here: rates, arrivals, the pacer. What must not: locust, sockets, wall clocks. The trap that this module exists for is
coordinated omission: a generator that waits for a slow answer before it sends the next request leaves out exactly the requests that
would have been slow. Here a request is due when the schedule says so; picked late, its lateness is part of its latency.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Segment:
    """seconds long, the rate going in a straight line from `from_rps` to `to_rps`."""

    seconds: float
    from_rps: float
    to_rps: float

    @property
    def requests(self) -> float:
        """Expected arrivals: the area below the line."""
        return self.seconds * (self.from_rps + self.to_rps) / 2

    def time_of(self, requests: float) -> float:
        """Seconds from the segment's start until `requests` (0..self.requests) have arrived."""
        if requests <= 0:
            return 0.0
        slope = (self.to_rps - self.from_rps) / self.seconds
        # from_rps t + slope t^2 / 2 = requests, solved in the form that does not cancel for small slopes
        root = math.sqrt(max(0.0, self.from_rps**2 + 2 * slope * requests))
        return 2 * requests / (self.from_rps + root)


@dataclass(frozen=True)
class Arrivals:
    """The due times of a run, in seconds from its start.

    poisson: gaps are exponential (many callers that know nothing of each other) instead of even. The same seed gives the same times
    in every process, so `share(index, count)` splits one schedule among workers without a word between them.
    """

    segments: Sequence[Segment]
    poisson: bool = False
    seed: int = 1

    @property
    def seconds(self) -> float:
        """Length of the run."""
        return sum(segment.seconds for segment in self.segments)

    def __iter__(self) -> Iterator[float]:
        source = random.Random(self.seed)
        position = source.expovariate(1.0) if self.poisson else 0.5
        start = done = 0.0
        for segment in self.segments:
            while position < done + segment.requests:
                yield start + segment.time_of(position - done)
                position += source.expovariate(1.0) if self.poisson else 1.0
            start += segment.seconds
            done += segment.requests

    def share(self, index: int, count: int) -> Iterator[float]:
        """Every count-th arrival, from the index-th on."""
        return (due for number, due in enumerate(self) if number % count == index)

    def due_by(self, seconds: float) -> int:
        """How many were due within the first `seconds`."""
        return sum(1 for due in self if due <= seconds)


@dataclass(frozen=True)
class Due:
    """One request that is due. due_s: from the start of the run; late_s: how much later its sender was free and awake."""

    due_s: float
    late_s: float


class Pacer:
    """Hands the arrivals of one generator to its users: whoever is free takes the next one and sleeps until it is due.

    clock: seconds, monotonic; start: its value at which the run starts; sleep: callable(seconds).
    """

    def __init__(
        self, arrivals: Iterator[float], start: float, clock: Callable[[], float], sleep: Callable[[float], object]
    ) -> None:
        self._arrivals = arrivals
        self._start = start
        self._clock = clock
        self._sleep = sleep
        self.exhausted = False

    def next(self) -> Due | None:
        """The next request, at the moment it is to be sent; None when all have been handed out."""
        due = next(self._arrivals, None)
        if due is None:
            self.exhausted = True
            return None
        wait = self._start + due - self._clock()
        if wait > 0:
            self._sleep(wait)
        return Due(due, max(0.0, self._clock() - self._start - due))

    def stop(self) -> None:
        """Hand out nothing more."""
        self._arrivals = iter(())
