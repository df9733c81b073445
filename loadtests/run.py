# SPDX-License-Identifier: Apache-2.0
"""One run: the same in a lone generator, in a worker, and (without users) in the master that writes the report."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import gevent

from bench.requests import Target
from loadtests.messages import Conversation
from loadtests.schedule import Arrivals, Pacer
from loadtests.series import Recorder
from loadtests.signing import Signer

START_DELAY_S = 2.0  # for users to be spawned and their connections to be opened


@dataclass(frozen=True)
class Start:
    """When a run starts, in seconds since the epoch, and which share of the arrivals this generator sends."""

    epoch_s: float
    index: int = 0
    count: int = 1

    def monotonic(self, clock: Callable[[], float] = time.perf_counter, wall: Callable[[], float] = time.time) -> float:
        """The start on this process's monotonic clock."""
        return clock() + (self.epoch_s - wall())


class Generator:
    """What the users of one process share."""

    def __init__(self, target: Target, key: str, mix: dict[str, int], arrivals: Arrivals, start: Start) -> None:
        self.target = target
        self.signer = Signer(target)
        self.conversation = Conversation(key, mix)
        self.recorder = Recorder()
        self.pacer = Pacer(arrivals.share(start.index, start.count), start.monotonic(), time.perf_counter, gevent.sleep)
