# SPDX-License-Identifier: Apache-2.0
"""The router under random histories: a model that knows every call says what may and what must not be answered."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from xksfast.errors import NativeError
from xksfast.native.router import MAX_CALLS, NEVER_NS, CallResult, Purpose, Reason, Router, Verdict

MS = 1_000_000
SECOND = 1_000_000_000
PARTITIONS = 4
ALL = (1 << PARTITIONS) - 1
RETRY_BUDGET, HEDGE_BUDGET, BURST = 0.2, 0.05, 10
sets = st.integers(0, ALL)
# Mostly everything, so that histories get somewhere.
groups = st.one_of(st.just(ALL), st.just(ALL), sets)


@dataclass
class Call:
    """One that is out."""

    partition: int
    handle: int
    began: int
    written_off: bool = False


@dataclass
class Partition:
    """What the model knows of one."""

    sessions: int = 0
    in_service: bool = False
    opened: bool = False
    opened_at: int = 0
    opens: int = 0
    faults_in_row: int = 0
    written_off_at: int = 0
    served_at: int = 0
    handed: dict[Purpose, int] = field(default_factory=lambda: dict.fromkeys(Purpose, 0))
    served: int = 0
    faults: int = 0

    @property
    def serves(self) -> bool:
        return self.in_service and self.sessions > 0


def members_of(partitions: int) -> list[int]:
    return [i for i in range(PARTITIONS) if partitions >> i & 1]


class RouterMachine(RuleBasedStateMachine):
    """Two routers of one seed get every call; the second exists to answer as the first does."""

    def __init__(self) -> None:
        super().__init__()
        self.routers = [Router(PARTITIONS, seed=5, retry_budget=RETRY_BUDGET, hedge_budget=HEDGE_BUDGET) for _ in range(2)]
        self.router = self.routers[0]
        self.now = 1000 * SECOND
        self.model = [Partition() for _ in range(PARTITIONS)]
        self.calls: list[Call] = []
        self.spent = {Purpose.RETRY: 0.0, Purpose.HEDGE: 0.0}
        for partition in range(PARTITIONS):
            self.set_sessions(partition, 3)
            self.set_in_service(partition, True)

    # --- the model

    def live(self, partition: int) -> list[Call]:
        return [call for call in self.calls if call.partition == partition and not call.written_off]

    def lost(self, partition: int) -> list[Call]:
        return [call for call in self.calls if call.partition == partition and call.written_off]

    def hangs(self, partition: int) -> bool:
        p = self.model[partition]
        hung = any(self.now - call.began >= SECOND for call in self.live(partition))
        return hung or (bool(self.lost(partition)) and p.served_at <= p.written_off_at)

    def has_room(self, partition: int) -> bool:
        view = self.router.view(partition, self.now)
        return view.in_flight < view.limit

    def has_budget(self, purpose: Purpose) -> bool:
        return purpose not in self.spent or self.spent[purpose] + 1 <= BURST + sum(p.sessions for p in self.model)

    # --- what happens

    @rule(step=st.sampled_from([1, 1000, MS // 2, MS, 5 * MS, 20 * MS, 100 * MS, 400 * MS, SECOND + 1, 3 * SECOND]))
    def time_passes(self, step: int) -> None:
        self.now += step

    @rule(partition=st.integers(0, PARTITIONS - 1), sessions=st.sampled_from([0, 1, 2, 3, 8, 40]))
    def set_sessions(self, partition: int, sessions: int) -> None:
        for router in self.routers:
            router.set_sessions(partition, sessions)
        self.model[partition].sessions = sessions

    @rule(partition=st.integers(0, PARTITIONS - 1), in_service=st.sampled_from([True, True, False]))
    def set_in_service(self, partition: int, in_service: bool) -> None:
        for router in self.routers:
            router.set_in_service(partition, in_service, self.now)
        p = self.model[partition]
        if in_service and not p.in_service:
            p.faults_in_row, p.opened = 0, False
        p.in_service = in_service

    @rule(
        members=groups,
        usable=groups,
        tried=st.one_of(st.just(0), sets),
        local=st.one_of(st.just(0), sets),
        remaining_ns=st.sampled_from([200 * MS, 200 * MS, 50 * MS, MS, 0]),
        purpose=st.sampled_from([Purpose.FIRST, *Purpose]),
        hand_over=st.booleans(),
    )
    def pick(
        self, members: int, usable: int, tried: int, local: int, remaining_ns: int, purpose: Purpose, hand_over: bool
    ) -> None:
        request = {"members": members, "usable": usable, "tried": tried, "local": local, "remaining_ns": remaining_ns}
        explained = [
            [router.explain(i, self.now, purpose=purpose, **request) for i in range(PARTITIONS)] for router in self.routers
        ]
        reasons = explained[0]
        before = [self.router.view(i, self.now) for i in range(PARTITIONS)]
        answers = [router.pick(self.now, purpose=purpose, **request) for router in self.routers]
        assert answers[0] == answers[1], "equal calls give equal answers"
        assert explained[0] == explained[1]
        assert before == [self.router.view(i, self.now) for i in range(PARTITIONS)], "pick changes nothing"
        verdict, partition = answers[0]
        usable &= members
        serving = [i for i in members_of(usable) if self.model[i].serves]
        untried = [i for i in serving if not tried >> i & 1]
        pool = untried if untried or purpose == Purpose.HEDGE else serving
        roomy = [i for i in pool if self.has_room(i)]
        if not self.has_budget(purpose):
            assert verdict == Verdict.NO_BUDGET
        elif not usable:
            any_serves = any(self.model[i].serves for i in members_of(members))
            assert verdict == (Verdict.NO_KEY if any_serves else Verdict.OUT)
        elif not serving:
            self.check_panic(verdict, partition, usable, tried, purpose)
        elif verdict == Verdict.CHOSEN:
            # A check decrypt goes to a tried partition when no other answers now.
            assert partition in roomy or (purpose == Purpose.CHECK and partition in serving and self.has_room(partition))
            assert reasons[partition] in (Reason.ELIGIBLE, Reason.REMOTE)
            if purpose == Purpose.HEDGE:
                assert before[partition].in_flight < 2 * before[partition].concurrency
                assert before[partition].oldest_call_ns < 60 * MS or self.lost(partition)
            if purpose in (Purpose.RETRY, Purpose.HEDGE):
                assert 3 * (before[partition].median_ns or 0) <= remaining_ns + 3
        elif verdict == Verdict.OUT:
            assert purpose == Purpose.HEDGE
            assert not pool
        elif verdict == Verdict.LATE:
            assert roomy or (purpose == Purpose.CHECK and any(self.has_room(i) for i in serving))
            assert remaining_ns < 200 * MS or any(view.median_ns > 60 * MS for view in before)
        else:
            assert verdict == Verdict.FULL
            assert not roomy or purpose == Purpose.HEDGE
        if verdict == Verdict.CHOSEN and hand_over:
            self.begin(partition, purpose)

    def check_panic(self, verdict: Verdict, partition: int, usable: int, tried: int, purpose: Purpose) -> None:
        pool = [i for i in members_of(usable) if not tried >> i & 1] or members_of(usable)
        sound = [i for i in pool if self.model[i].sessions > 0 and not self.hangs(i)]
        roomy = [i for i in sound if self.has_room(i)]
        if purpose == Purpose.HEDGE or not sound:
            assert verdict == Verdict.OUT
        elif not roomy:
            assert verdict == Verdict.FULL
        else:
            assert verdict == Verdict.CHOSEN
            assert partition in roomy
            assert self.model[partition].faults_in_row == min(self.model[i].faults_in_row for i in roomy)

    def begin(self, partition: int, purpose: Purpose) -> None:
        handles = [router.begin(partition, purpose, self.now) for router in self.routers]
        assert handles[0] == handles[1] < MAX_CALLS
        assert handles[0] not in [call.handle for call in self.calls if call.partition == partition]
        self.calls.append(Call(partition, handles[0], self.now))
        self.model[partition].handed[purpose] += 1
        if purpose in self.spent:
            self.spent[purpose] += 1
        elif purpose == Purpose.FIRST:
            for budget, earned in ((Purpose.RETRY, RETRY_BUDGET), (Purpose.HEDGE, HEDGE_BUDGET)):
                self.spent[budget] = max(0.0, self.spent[budget] - earned)

    @precondition(lambda self: self.calls)
    @rule(which=st.integers(0, 1 << 16), result=st.sampled_from([CallResult.SERVED, *CallResult]))
    def end(self, which: int, result: CallResult) -> None:
        call = self.calls.pop(which % len(self.calls))
        took = 0 if result == CallResult.NOT_MADE else self.now - call.began
        answers = [router.end(call.partition, call.handle, result, took, self.now) for router in self.routers]
        p = self.model[call.partition]
        opens = False
        if result == CallResult.SERVED:
            p.served += 1
            p.faults_in_row = 0
            p.served_at = p.served_at if call.written_off else self.now
        elif result == CallResult.FAULT:
            p.faults += 1
            p.faults_in_row += 1
            opens = p.faults_in_row >= 3 and self.open(p)
        assert answers == [opens, opens]

    def open(self, p: Partition) -> bool:
        if not p.in_service or p.opened:
            return False
        p.opened, p.opened_at = True, self.now
        p.opens += 1
        return True

    @rule()
    def overdue(self) -> None:
        told = [router.overdue(self.now) for router in self.routers]
        expected = 0
        for call in sorted(self.calls, key=lambda c: c.began):
            p = self.model[call.partition]
            if not call.written_off and self.now - call.began > SECOND:
                call.written_off, p.written_off_at = True, self.now
                if call.began >= p.opened_at and self.open(p):
                    expected |= 1 << call.partition
        assert told == [expected, expected]

    @rule(members=sets, waiting=st.integers(0, 2000))
    def wait(self, members: int, waiting: int) -> None:
        wait = self.router.wait_ns(members, waiting, self.now)
        serving = [i for i in members_of(members) if self.model[i].serves]
        room = sum(max(0, v.limit - v.in_flight) for v in (self.router.view(i, self.now) for i in serving))
        if not serving:
            assert wait == NEVER_NS
        else:
            assert wait == 0 or waiting >= room  # a wait of less than a nanosecond is none
            assert wait <= self.router.wait_ns(members, waiting + 100, self.now) < NEVER_NS

    # --- what always holds

    @invariant()
    def views_are_exact(self) -> None:
        for partition, p in enumerate(self.model):
            view = self.router.view(partition, self.now)
            assert view == self.routers[1].view(partition, self.now)
            assert view.in_service == p.in_service
            assert (view.reason == Reason.OUT_OF_SERVICE) == (not p.serves)
            assert view.in_flight == len(self.live(partition))
            assert view.written_off == len(self.lost(partition))
            began = [call.began for call in self.calls if call.partition == partition]
            assert view.oldest_call_ns == (self.now - min(began) if began else 0)
            assert view.faults_in_row == p.faults_in_row
            assert view.opens == p.opens
            assert (view.firsts, view.retries, view.hedges, view.checks) == tuple(p.handed[purpose] for purpose in Purpose)
            assert (view.served, view.faults) == (p.served, p.faults)
            assert (
                min(1, p.sessions) <= view.limit <= p.sessions + 256
            )  # fewer than sessions where calls would queue in the token
            assert view.limit == 0 or p.sessions > 0
            assert min(2, p.sessions) <= view.concurrency <= max(1, p.sessions)
            assert 1 <= view.slow_start <= 5
            assert math.isfinite(view.score)
            assert view.score > 0

    @invariant()
    def hedge_delays_stay_between_their_bounds(self) -> None:
        for partition in range(PARTITIONS):
            assert 8 * MS <= self.router.hedge_delay_ns(partition) <= 60 * MS


# Without the phase that explains: it traces every line, and a failure would end as a time-out.
RouterMachine.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=50,
    deadline=None,
    phases=[Phase.reuse, Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.too_slow],
)
test_router_answers_as_the_model_allows = RouterMachine.TestCase


@pytest.mark.parametrize("partitions", [0, 65])
def test_a_router_has_between_1_and_64_partitions(partitions: int) -> None:
    with pytest.raises(NativeError):
        Router(partitions)
    Router(1)
    Router(64)


def test_the_wrapper_refuses_a_partition_that_is_not_there() -> None:
    router = Router(2)
    with pytest.raises(IndexError):
        router.set_sessions(2, 1)
    with pytest.raises(IndexError):
        router.end(-1, 0, CallResult.SERVED, 0, 0)
