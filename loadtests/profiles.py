# SPDX-License-Identifier: Apache-2.0
"""The profiles: rate over time as a share of --rps, which is always the highest rate of the run, and when a partition fails."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from loadtests.schedule import Segment

KEY_STORE_QUOTA_RPS = 1800  # AWS KMS: requests per second of one external key store
# What each generator can do beside a proxy on a laptop; locust is Python.
DEFAULT_RPS = {"locust": 300, "open-loop": KEY_STORE_QUOTA_RPS}


@dataclass(frozen=True)
class Profile:
    """shape: (share of the duration, rate at its start, rate at its end), rates as shares of --rps.

    fault: (from, to) as shares of the duration while one partition is out of order; None for none.
    """

    text: str
    default_seconds: float
    shape: Sequence[tuple[float, float, float]]
    fault: tuple[float, float] | None = None

    def segments(self, rps: float, seconds: float) -> list[Segment]:
        """The rate over time of a run."""
        return [Segment(share * seconds, first * rps, last * rps) for share, first, last in self.shape]


PROFILES = {
    "steady": Profile("one rate, without a break", 30, [(1, 1, 1)]),
    "ramp": Profile("from a tenth to the full rate, then held", 40, [(0.75, 0.1, 1), (0.25, 1, 1)]),
    "spike": Profile(
        "a quarter of the rate with two bursts of the full one, from one moment to the next",
        40,
        [(0.3, 0.25, 0.25), (0.1, 1, 1), (0.25, 0.25, 0.25), (0.1, 1, 1), (0.25, 0.25, 0.25)],
    ),
    "soak": Profile("half the rate for long (DURATION=8h): leaks and drift", 60, [(1, 0.5, 0.5)]),
    "partition-failure": Profile(
        "the full rate while one of the partitions fails for a third of the run", 45, [(1, 1, 1)], fault=(1 / 3, 2 / 3)
    ),
}

_DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s?)?")


def parse_duration(text: str) -> float:
    """ "90", "90s", "10m", "1h30m" -> seconds; ValueError for anything else or nothing."""
    match = _DURATION.fullmatch(text.strip())
    hours, minutes, seconds = (float(part or 0) for part in match.groups()) if match else (0.0, 0.0, 0.0)
    total = hours * 3600 + minutes * 60 + seconds
    if total <= 0:
        raise ValueError(f"expected a duration such as 45, 45s, 10m or 1h30m, got {text!r}")
    return total
