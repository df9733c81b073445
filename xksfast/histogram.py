# SPDX-License-Identifier: Apache-2.0
"""Durations counted in buckets: adding, subtracting and estimating quantiles. Pure; whoever counts decides on the bounds.

Shape: `bounds` are the finite upper bounds in ascending order, `counts` has one more entry: bucket i holds the durations in
(bounds[i-1], bounds[i]], bucket 0 those from 0 on, the last all above bounds[-1]. A newcomer's trap: a quantile is exact to within
its bucket only, and above the last bound there is nothing to say but "more than that".
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

QUANTILES = (0.5, 0.95, 0.99, 0.999)


def add(first: Sequence[int], second: Sequence[int]) -> list[int]:
    """The counts of both. An empty one stands for all zero."""
    if not first or not second:
        return list(first or second)
    return [a + b for a, b in zip(first, second, strict=True)]


def add_all(many: Iterable[Sequence[int]]) -> list[int]:
    """The counts of all together; [] when there are none."""
    total: list[int] = []
    for counts in many:
        total = add(total, counts)
    return total


def subtract(later: Sequence[int], earlier: Sequence[int]) -> list[int]:
    """What came between two readings of one histogram. A bucket that shrank means that counting began anew: all of `later`."""
    if not earlier or any(a < b for a, b in zip(later, earlier, strict=True)):
        return list(later)
    return [a - b for a, b in zip(later, earlier, strict=True)]


def quantile(bounds: Sequence[int], counts: Sequence[int], q: float) -> float | None:
    """The duration that a share `q` (0..1) of all stays at or below, interpolated within its bucket; None when nothing was counted.

    Off by at most the width of its bucket. In the last bucket, which has no upper bound: bounds[-1], which is then too low.
    """
    if not 0 <= q <= 1:
        raise ValueError(f"a quantile is from 0 to 1, got {q}")
    total = sum(counts)
    if total == 0:
        return None
    rank = max(q * total, 1.0)  # the duration of this rank, counted from the shortest
    below = 0
    for i, count in enumerate(counts):
        if count and below + count >= rank:
            if i == len(bounds):
                return float(bounds[-1])
            lower = bounds[i - 1] if i else 0
            return lower + (bounds[i] - lower) * (rank - below) / count
        below += count
    return float(bounds[-1])  # only by rounding of q * total


def is_above_all(bounds: Sequence[int], counts: Sequence[int], q: float) -> bool:
    """Whether the quantile lies above the last bound, so that it is only known to be more than that."""
    total = sum(counts)
    return total > 0 and sum(counts[: len(bounds)]) < max(q * total, 1.0)


def estimated_sum(bounds: Sequence[int], counts: Sequence[int]) -> float:
    """All durations together, each taken for the middle of its bucket."""
    middles = [((bounds[i - 1] if i else 0) + bound) / 2 for i, bound in enumerate(bounds)] + [float(bounds[-1])]
    return sum(middle * count for middle, count in zip(middles, counts, strict=True)) if counts else 0.0


def cumulative(bounds: Sequence[int], counts: Sequence[int], *, up_to: int, step: int = 1) -> list[tuple[int, int]]:
    """(bound, how many are at or below it) for every `step`th bound that is at most `up_to`."""
    rows = []
    below = 0
    for i, bound in enumerate(bounds):
        if bound > up_to:
            break
        below += counts[i] if counts else 0
        if i % step == step - 1:
            rows.append((bound, below))
    return rows
