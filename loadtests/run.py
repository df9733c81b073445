# SPDX-License-Identifier: Apache-2.0
"""One run in one process: the same in a lone generator and in a worker."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import gevent
import gevent.event

from bench.requests import Target
from loadtests import lag
from loadtests.messages import Conversation
from loadtests.schedule import Arrivals, Pacer, Segment
from loadtests.series import Recorder
from loadtests.signing import Signer


def on_monotonic_clock(
    epoch_s: float, clock: Callable[[], float] = time.perf_counter, wall: Callable[[], float] = time.time
) -> float:
    """A moment, in seconds since the epoch, on this process's monotonic clock."""
    return clock() + (epoch_s - wall())


def instructions(epoch_s: float, index: int, count: int, arrivals: Arrivals, mix: dict[str, int]) -> dict[str, Any]:
    """What a generator has to know, for transport: the start, the whole schedule and which share of it is its own."""
    segments = [(segment.seconds, segment.from_rps, segment.to_rps) for segment in arrivals.segments]
    return {
        "epoch_s": epoch_s,
        "index": index,
        "count": count,
        "segments": segments,
        "poisson": arrivals.poisson,
        "seed": arrivals.seed,
        "mix": mix,
    }


class Generator:
    """What the users of one process share. told: instructions()."""

    def __init__(self, target: Target, key: str, told: dict[str, Any]) -> None:
        arrivals = Arrivals([Segment(*segment) for segment in told["segments"]], told["poisson"], told["seed"])
        self.epoch_s, self.index, self.seconds = float(told["epoch_s"]), int(told["index"]), arrivals.seconds
        self.target = target
        self.signer = Signer(target)
        self.conversation = Conversation(key, told["mix"])
        self.recorder = Recorder(self.index)
        start = on_monotonic_clock(self.epoch_s)
        self.pacer = Pacer(arrivals.share(self.index, told["count"]), start, time.perf_counter, gevent.sleep)
        self.under_way = 0  # users that wait for a request of the schedule, or for its answer
        self._watch = gevent.spawn(lag.watch, self.recorder, start, self.seconds, time.perf_counter, gevent.sleep)

    def finish(self, drain_s: float, timeout_s: float) -> None:
        """Return when the schedule is over and all is recorded: nothing is sent from drain_s after its end, or waited for longer."""
        end_s = self.epoch_s + self.seconds
        gevent.sleep(max(0.0, end_s - time.time()))
        while not (self.pacer.exhausted and self.under_way == 0) and time.time() < end_s + drain_s + timeout_s:
            if time.time() >= end_s + drain_s:
                self.pacer.stop()
            gevent.sleep(0.02)
        self.close()

    def close(self) -> None:
        """Send nothing more."""
        self.pacer.stop()
        self._watch.kill(block=False)
