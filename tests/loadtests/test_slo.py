# SPDX-License-Identifier: Apache-2.0
"""Verdicts at their boundaries, quantiles, and that a request nobody answered is a failure."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from loadtests import lag
from loadtests.histogram import Histogram
from loadtests.lag import INTERVAL_S, wanted_s, watch
from loadtests.series import TOO_LATE, UNANSWERED, WRONG, Bucket, Outcome, Recorder, Series
from loadtests.slo import Result, Slo, table


def bucket(latencies_us: list[int], failures: dict[str, int] | None = None) -> Bucket:
    """Requests with these scheduled latencies, the first ones failed as said."""
    names = [name for name, count in (failures or {}).items() for _ in range(count)]
    names += [""] * (len(latencies_us) - len(names))
    made = Bucket()
    for latency_us, name in zip(latencies_us, names, strict=True):
        made.record(Outcome(0, "Encrypt", 0, latency_us, name))
    return made


def met(slo: Slo, total: Bucket) -> dict[str, bool]:
    return {verdict.name: verdict.met for verdict in slo.judge(total)}


@pytest.mark.parametrize(("failed", "expected"), [(0, True), (1, True), (2, False)])
def test_availability_is_met_up_to_its_last_failure(failed: int, expected: bool) -> None:
    assert met(Slo(availability=0.999), bucket([1000] * 1000, {TOO_LATE: failed}))["availability"] is expected


@pytest.mark.parametrize(("wrong", "expected"), [(0, True), (1, False)])
def test_one_wrong_answer_misses_however_available_the_service_was(wrong: int, expected: bool) -> None:
    verdicts = met(Slo(availability=0.5), bucket([1000] * 1000, {f"{WRONG}: Decrypt: another plaintext": wrong}))
    assert verdicts["wrong answers"] is expected
    assert verdicts["availability"]


@pytest.mark.parametrize(("latency_us", "expected"), [(799, True), (800, True), (801, False)])
@pytest.mark.parametrize(("name", "slow", "option"), [("p50", 501, "p50_ms"), ("p99", 11, "p99_ms"), ("p99.9", 2, "p999_ms")])
def test_a_quantile_is_met_up_to_its_limit(name: str, slow: int, option: str, latency_us: int, expected: bool) -> None:
    slo = Slo(**{option: 0.8})
    assert met(slo, bucket([100] * (1000 - slow) + [latency_us] * slow))[name] is expected


@pytest.mark.parametrize(("name", "slow", "option"), [("p50", 500, "p50_ms"), ("p99", 10, "p99_ms"), ("p99.9", 1, "p999_ms")])
def test_what_lies_beyond_a_quantile_does_not_count_for_it(name: str, slow: int, option: str) -> None:
    assert met(Slo(**{option: 0.8}), bucket([100] * (1000 - slow) + [900] * slow))[name]


def result(failures: dict[str, int], *, latency_us: int = 1000, lag_us: int = 0, busy: float = 0.2) -> Result:
    """Of a thousand requests, the first ones failed as said, by a generator with this lag of its own that wanted so much of a CPU."""
    series, recorder, slo = Series(), Recorder(), Slo()
    names = [name for name, count in failures.items() for _ in range(count)]
    for number in range(1000):
        recorder.record(Outcome(0, "Encrypt", 0, latency_us, names[number] if number < len(names) else ""))
        recorder.lag.record(lag_us)
    recorder.busy(busy, 1.0)
    series.merge(recorder.drain())
    return slo.result(slo.judge(series.total), series)[0]


def test_promises_that_are_met_are_met_however_late_the_generator_was() -> None:
    assert result({}, lag_us=20_000, busy=0.99) is Result.MET


@pytest.mark.parametrize(("busy", "expected"), [(0.89, Result.MISSED), (0.9, Result.GENERATOR_LATE)])
def test_a_generator_that_had_no_cpu_left_cannot_blame_the_server_for_lateness(busy: float, expected: Result) -> None:
    assert result({}, latency_us=200_000, busy=busy) is expected
    assert result({UNANSWERED: 100}, busy=busy) is expected


@pytest.mark.parametrize(
    ("lag_us", "expected"), [(50_000, Result.MISSED), (125_000, Result.MISSED), (126_000, Result.GENERATOR_LATE)]
)
def test_a_lag_of_half_of_every_missed_limit_makes_a_run_say_nothing(lag_us: int, expected: Result) -> None:
    assert result({TOO_LATE: 100}, latency_us=260_000, lag_us=lag_us) is expected


@pytest.mark.parametrize("name", [f"{WRONG}: Decrypt", "DependencyTimeoutException", "ConnectionResetError"])
def test_wrong_answers_and_errors_are_the_servers_however_late_the_generator_was(name: str) -> None:
    assert result({name: 2}, lag_us=1_000_000, busy=1.0) is Result.MISSED


def test_a_generator_that_oversleeps_is_late_at_every_moment_that_it_slept_through() -> None:
    now, asleep = 100.0, []

    def sleep(seconds: float) -> None:
        nonlocal now
        asleep.append(seconds)
        now += seconds + (0.1 if len(asleep) == 3 else 0.0)

    recorder = Recorder()
    watch(recorder, 101.0, 0.2, lambda: now, sleep, wanted=lambda: (now - 101.0) / 2)
    moments = round(0.2 / INTERVAL_S)
    assert recorder.lag.total == moments
    assert recorder.lag.quantile_ms(1.0) == pytest.approx(100, rel=0.01)
    assert recorder.lag.quantile_ms(0.6) == pytest.approx(20, abs=1)
    series = Series()
    series.merge(recorder.drain())
    assert series.busiest() == pytest.approx(0.5)


def test_the_busiest_of_several_generators_counts() -> None:
    series = Series()
    for number, busy in enumerate((0.3, 0.8)):
        for _ in range(2):
            recorder = Recorder(number)
            recorder.busy(busy, 1.0)
            series.merge(recorder.drain())
    assert series.busiest() == pytest.approx(0.8)


def test_a_run_without_requests_meets_no_latency_and_no_availability() -> None:
    assert met(Slo(), Bucket()) == {"availability": False, "wrong answers": True, "p50": False, "p99": False, "p99.9": False}


def test_latency_is_judged_from_the_scheduled_start() -> None:
    late = Bucket()
    late.record(Outcome(0, "Encrypt", 90_000, 20_000, ""))
    assert late.histograms["service"].quantile_ms(0.5) == pytest.approx(20, rel=0.001)
    assert not met(Slo(p99_ms=100), late)["p99"]
    assert met(Slo(p99_ms=110), late)["p99"]


def test_requests_that_nobody_told_of_are_failures() -> None:
    series, recorder = Series(), Recorder()
    for second in (0, 1):
        recorder.record(Outcome(second, "Encrypt", 0, 1000, ""))
    series.merge(recorder.drain())
    series.count_unanswered(due=5, last_second=1)
    assert series.total.requests == 5
    assert series.total.failures == {UNANSWERED: 3}
    series.count_unanswered(due=5, last_second=1)
    assert series.total.requests == 5


def test_workers_add_up_to_what_one_generator_would_have_recorded() -> None:
    outcomes = [Outcome(n % 3, ("Encrypt", "Decrypt")[n % 2], n, 100 * n, TOO_LATE if n % 7 == 0 else "") for n in range(60)]
    alone, together = Series(), Series()
    one, workers = Recorder(), [Recorder(), Recorder()]
    for number, outcome in enumerate(outcomes):
        one.record(outcome)
        workers[number % 2].record(outcome)
        if number == 20:
            together.merge(workers[0].drain())
    alone.merge(one.drain())
    for worker in workers:
        together.merge(worker.drain())
    for ours, theirs in ((together.seconds, alone.seconds), (together.operations, alone.operations)):
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert (ours[key].requests, ours[key].failures) == (theirs[key].requests, theirs[key].failures)
            for kind, histogram in ours[key].histograms.items():
                assert sorted(histogram.pairs()) == sorted(theirs[key].histograms[kind].pairs())


@pytest.mark.parametrize("value", [0, 1, 1023, 1024, 1025, 123_456, 250_000, 60_000_000])
def test_a_histogram_is_at_most_a_thousandth_off_and_never_above(value: int) -> None:
    histogram = Histogram()
    histogram.record(value)
    assert value * 0.998 <= histogram.quantile_us(0.5) <= value


def test_a_long_run_keeps_the_quantiles_of_old_seconds_but_not_their_histograms() -> None:
    series, recorder = Series(), Recorder()
    for second in range(200):
        recorder.record(Outcome(second, "Encrypt", 0, 1000 + second, ""))
        series.merge(recorder.drain())
    assert [second for second, bucket in series.seconds.items() if not bucket.histograms] == list(range(139))
    assert series.seconds[20].quantiles()["scheduled"]["p99_ms"] == pytest.approx(1.02, rel=0.002)
    assert series.total.requests == sum(bucket.requests for bucket in series.seconds.values()) == 200
    assert series.total.quantiles()["service"]["p50_ms"] == pytest.approx(1.099, rel=0.002)


def test_shares_are_of_the_work_since_the_sample_before() -> None:
    series = Series()
    series.samples = [
        {"at_s": 0.0, "partitions": {"p0": 100, "p1": 100}},
        {"at_s": 0.5, "partitions": {}},
        {"at_s": 1.0, "partitions": {"p0": 130, "p1": 110}},
        {"at_s": 2.0, "partitions": {"p0": 130, "p1": 110}},
    ]
    assert series.shares() == {"p0": [(1.0, 0.75), (2.0, 0.0)], "p1": [(1.0, 0.25), (2.0, 0.0)]}


def test_the_table_names_verdicts_and_failures() -> None:
    total = bucket([1000] * 10, {"DependencyTimeoutException": 2})
    text = table(Slo().judge(total), total)
    assert "MISSED  availability" in text
    assert "2  DependencyTimeoutException" in text
    assert "10 requests, 2 failed" in text


def test_a_thread_that_never_sleeps_wants_a_cpu_however_little_of_it_it_gets() -> None:
    began, before = time.monotonic(), wanted_s()
    while time.monotonic() - began < 0.5:
        pass
    took_s, wanted = time.monotonic() - began, wanted_s() - before
    assert 0.6 * took_s < wanted < 1.6 * took_s


def test_what_the_hypervisor_takes_is_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in (("SCHEDSTAT", "1500000000 500000000 9\n"), ("STAT", "cpu  1 2 3 4 5 6 7 800 0 0\ncpu0 1 2 3\n")):
        (tmp_path / name).write_text(text)
        monkeypatch.setattr(lag, name, tmp_path / name)
    monkeypatch.setattr(lag, "TICKS_PER_S", 100)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert wanted_s() == 1.5 + 0.5 + 8 / 2
    (tmp_path / "STAT").unlink()
    assert wanted_s() == pytest.approx(time.thread_time(), abs=0.1)
