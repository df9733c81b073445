# SPDX-License-Identifier: Apache-2.0
"""Histograms against the durations that went into them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xksfast import histogram

BOUNDS = tuple((5 + (i & 3)) << (8 + (i >> 2)) for i in range(79))  # as the proxy counts
durations = st.lists(st.integers(0, BOUNDS[-1]), min_size=1, max_size=200)


def counted(values: list[int], bounds: tuple[int, ...] = BOUNDS) -> list[int]:
    counts = [0] * (len(bounds) + 1)
    for value in values:
        counts[next((i for i, bound in enumerate(bounds) if value <= bound), len(bounds))] += 1
    return counts


def exact(values: list[int], q: float) -> int:
    """The shortest duration that at least a share q stays at or below."""
    return sorted(values)[max(math.ceil(q * len(values)), 1) - 1]


@given(durations, st.sampled_from((0.0, *histogram.QUANTILES, 1.0)))
def test_a_quantile_is_off_by_at_most_the_width_of_its_bucket(values: list[int], q: float) -> None:
    truth = exact(values, q)
    bucket = next(i for i, bound in enumerate(BOUNDS) if truth <= bound)
    lower = BOUNDS[bucket - 1] if bucket else 0
    estimate = histogram.quantile(BOUNDS, counted(values), q)
    assert estimate is not None
    assert lower < estimate <= BOUNDS[bucket]
    if bucket:
        assert abs(estimate - truth) <= truth * 0.25  # four buckets per doubling


@given(durations, st.floats(0, 1), st.floats(0, 1))
def test_a_higher_quantile_is_never_shorter(values: list[int], one: float, other: float) -> None:
    low, high = (histogram.quantile(BOUNDS, counted(values), q) for q in sorted((one, other)))
    assert low is not None
    assert high is not None
    assert low <= high


@given(st.lists(durations, max_size=4), st.sampled_from(histogram.QUANTILES))
def test_merged_histograms_are_the_histogram_of_all(parts: list[list[int]], q: float) -> None:
    merged = histogram.add_all(counted(part) for part in parts)
    together = counted([value for part in parts for value in part])
    assert merged == (together if parts else [])
    assert histogram.quantile(BOUNDS, merged, q) == histogram.quantile(BOUNDS, together, q)


@given(durations, durations)
def test_the_difference_of_two_readings_is_what_came_between(first: list[int], second: list[int]) -> None:
    earlier, later = counted(first), counted(first + second)
    assert histogram.subtract(later, earlier) == counted(second)
    assert histogram.subtract(later, []) == later


def test_a_histogram_that_began_anew_is_not_subtracted_from() -> None:
    assert histogram.subtract([1, 0, 5], [2, 0, 0]) == [1, 0, 5]


def test_nothing_counted_has_no_quantile() -> None:
    assert histogram.quantile(BOUNDS, [0] * 80, 0.5) is None
    assert histogram.quantile(BOUNDS, [], 0.5) is None
    with pytest.raises(ValueError, match="from 0 to 1"):
        histogram.quantile(BOUNDS, [1] * 80, 1.5)


def test_what_is_above_the_last_bound_is_said_to_be_so() -> None:
    counts = counted([2000] * 98 + [BOUNDS[-1] + 1] * 2)
    assert histogram.quantile(BOUNDS, counts, 0.99) == BOUNDS[-1]
    assert histogram.is_above_all(BOUNDS, counts, 0.99)
    assert not histogram.is_above_all(BOUNDS, counts, 0.95)
    assert not histogram.is_above_all(BOUNDS, [], 0.95)


@given(durations)
def test_the_estimated_sum_is_within_an_eighth_or_half_the_first_bucket(values: list[int]) -> None:
    slack = len(values) * BOUNDS[0] / 2
    assert abs(histogram.estimated_sum(BOUNDS, counted(values)) - sum(values)) <= sum(values) / 8 + slack


@given(durations)
def test_cumulative_rows_hold_what_is_at_or_below_their_bound(values: list[int]) -> None:
    rows = histogram.cumulative(BOUNDS, counted(values), up_to=1_000_000, step=2)
    assert [bound for bound, _ in rows] == [bound for bound in BOUNDS[1::2] if bound <= 1_000_000]
    assert all(below == sum(value <= bound for value in values) for bound, below in rows)
