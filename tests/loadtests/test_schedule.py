# SPDX-License-Identifier: Apache-2.0
"""The schedule is exact, the same for everybody, and honest about who is late."""

from __future__ import annotations

import itertools

import pytest

from loadtests.profiles import PROFILES, parse_duration
from loadtests.schedule import Arrivals, Due, Pacer, Segment


class Clock:
    """A clock that only sleeping moves. oversleep_s: how much later than asked a sleeper wakes."""

    def __init__(self, now: float = 100.0, oversleep_s: float = 0.0) -> None:
        self.now = now
        self.oversleep_s = oversleep_s

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds + self.oversleep_s


def test_a_constant_rate_gives_evenly_spaced_arrivals() -> None:
    due = list(Arrivals([Segment(2.0, 50, 50)]))
    assert len(due) == 100
    assert due[0] == pytest.approx(0.01)
    assert all(after - before == pytest.approx(0.02) for before, after in itertools.pairwise(due))


def test_a_ramp_has_the_area_below_its_line_and_grows_denser() -> None:
    due = list(Arrivals([Segment(10.0, 0, 100)]))
    assert len(due) == 500
    assert sum(1 for at in due if at <= 5.0) == pytest.approx(125, abs=1)
    assert due[-1] <= 10.0


def test_a_step_between_segments_happens_at_its_moment() -> None:
    due = list(Arrivals([Segment(1.0, 10, 10), Segment(1.0, 100, 100)]))
    assert sum(1 for at in due if at < 1.0) == 10
    assert sum(1 for at in due if at >= 1.0) == 100


def test_a_segment_without_requests_is_passed_over() -> None:
    assert list(Arrivals([Segment(3.0, 0, 0), Segment(1.0, 2, 2)])) == pytest.approx([3.25, 3.75])


def test_poisson_gaps_have_the_rate_as_mean_and_the_mean_as_deviation() -> None:
    due = list(Arrivals([Segment(100.0, 200, 200)], poisson=True, seed=7))
    gaps = [after - before for before, after in itertools.pairwise(due)]
    mean = sum(gaps) / len(gaps)
    deviation = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert len(due) == pytest.approx(20_000, rel=0.03)
    assert mean == pytest.approx(1 / 200, rel=0.03)
    assert deviation == pytest.approx(mean, rel=0.05)


@pytest.mark.parametrize("poisson", [False, True])
def test_the_shares_of_all_workers_are_the_schedule(poisson: bool) -> None:
    arrivals = Arrivals([Segment(2.0, 100, 300)], poisson, seed=3)
    shares = [list(arrivals.share(index, 3)) for index in range(3)]
    assert sorted(itertools.chain(*shares)) == list(arrivals)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_another_seed_gives_another_schedule() -> None:
    segments = [Segment(1.0, 100, 100)]
    assert list(Arrivals(segments, True, seed=1)) == list(Arrivals(segments, True, seed=1))
    assert list(Arrivals(segments, True, seed=1)) != list(Arrivals(segments, True, seed=2))


def test_due_by_counts_what_was_due_up_to_a_moment() -> None:
    arrivals = Arrivals([Segment(2.0, 10, 10)])
    assert [arrivals.due_by(at) for at in (0.0, 0.05, 1.0, 2.0)] == [0, 1, 10, 20]


def test_a_free_user_sleeps_until_its_request_is_due() -> None:
    clock = Clock(99.0)
    pacer = Pacer(iter([0.5, 0.6]), 100.0, clock, clock.sleep)
    assert pacer.next() == Due(0.5, 0.0)
    assert clock.now == pytest.approx(100.5)


def test_a_request_picked_late_is_as_late_as_it_was_picked() -> None:
    clock = Clock(100.0)
    pacer = Pacer(iter([0.1, 0.2, 5.0]), 100.0, clock, clock.sleep)
    clock.now = 103.0  # every user was waiting for slow answers
    assert [pacer.next() for _ in range(2)] == [Due(0.1, pytest.approx(2.9)), Due(0.2, pytest.approx(2.8))]
    assert pacer.next() == Due(5.0, pytest.approx(0.0, abs=1e-9))


def test_a_generator_that_oversleeps_owns_up_to_it() -> None:
    clock = Clock(100.0, oversleep_s=0.003)
    assert Pacer(iter([1.0]), 100.0, clock, clock.sleep).next() == Due(1.0, pytest.approx(0.003))


def test_no_arrival_is_left_out_however_late_the_users_are() -> None:
    clock = Clock()
    pacer = Pacer(iter(Arrivals([Segment(1.0, 100, 100)])), 100.0, clock, clock.sleep)
    clock.now = 1000.0
    assert sum(1 for _ in iter(pacer.next, None)) == 100
    assert pacer.next() is None


def test_a_pacer_that_is_stopped_hands_out_nothing_more() -> None:
    clock = Clock()
    pacer = Pacer(iter([0.1, 0.2]), 100.0, clock, clock.sleep)
    assert pacer.next() is not None
    assert not pacer.exhausted
    pacer.stop()
    assert pacer.next() is None
    assert pacer.exhausted


@pytest.mark.parametrize("name", list(PROFILES))
def test_every_profile_lasts_as_asked_and_never_exceeds_the_rate(name: str) -> None:
    segments = PROFILES[name].segments(1000, 60)
    assert sum(segment.seconds for segment in segments) == pytest.approx(60)
    assert max(max(segment.from_rps, segment.to_rps) for segment in segments) <= 1000


@pytest.mark.parametrize(("text", "seconds"), [("45", 45), ("45s", 45), ("10m", 600), ("1h30m", 5400), ("0.5s", 0.5)])
def test_durations_are_read(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "soon", "-3", "5x", "10m1h"])
def test_other_durations_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a duration"):
        parse_duration(text)
