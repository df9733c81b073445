# SPDX-License-Identifier: Apache-2.0
"""The open-loop generator of bench/ under the profiles, the judge and the report of the load tests.

What lives here: what is sent, and what the records mean for a Series. What must not: sending (bench/open_loop.c) and schedules. A
newcomer's trap: its lateness is always its own, for it opens a connection when all are busy, where locust's users wait for one.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import gevent

from bench.open_loop import BROKEN, NO_ANSWER, SIGNED_FOR_S, Call, Generator, Load, Run
from bench.requests import Target
from loadtests import faults, report, sampling
from loadtests.connection import Connection
from loadtests.messages import DEFAULT_MIX, Conversation, Question, Refused, WrongAnswer, parse_mix
from loadtests.profiles import PROFILES, Profile, parse_duration
from loadtests.schedule import Arrivals
from loadtests.series import KMS_LIMIT_MS, TOO_LATE, WRONG, Outcome, Recorder, Series
from loadtests.servers import Served
from loadtests.signing import Signer
from loadtests.slo import Slo, add_slo_options, slo_of
from loadtests.target import read_target

QUESTIONS, LEAST_QUESTIONS, SEALED_BEFORE, OPENED_AFTER, SAMPLES = 1000, 100, 100, 100, 1000
FILE_LIMIT = 4095  # requests that bench/open_loop.c takes, each question once per signature
MAX_SECONDS = SIGNED_FOR_S * (FILE_LIMIT // LEAST_QUESTIONS)
MAX_CONNECTIONS = 1500
LOST = {NO_ANSWER: "NoAnswer", BROKEN: "ConnectionClosed"}


@dataclass(frozen=True)
class _Plan:
    """The options as they are used."""

    profile: Profile
    arrivals: Arrivals
    slo: Slo
    mix: dict[str, int]
    more: argparse.Namespace  # fault, fault_slot, fault_control, no_pictures


def run(served: Served, options: argparse.Namespace, rest: list[str]) -> int:
    """Load, judge, report; the exit code."""
    plan = _plan(served, options, rest)
    target, key = read_target(served.target_argument)
    if not target.url.startswith("http://"):
        raise ValueError("the open-loop generator speaks plain HTTP only: use locust for TLS")
    conversation, connection, signer = Conversation(key, plan.mix), Connection(target, 2.0), Signer(target)

    def ask(question: Question) -> tuple[int, bytes]:
        path = target.prefix + question.path
        return connection.post(path, question.body, signer.sign(path, question.body))

    try:
        for _ in range(SEALED_BEFORE):
            question = conversation.ask("Encrypt")
            conversation.judge(question, *ask(question))
    except (Refused, WrongAnswer) as error:
        raise RuntimeError(f"the server is not fit to be loaded: {error}") from None
    sets = int(plan.arrivals.seconds / SIGNED_FOR_S) + 1
    questions = [conversation.ask() for _ in range(min(QUESTIONS, FILE_LIMIT // sets))]
    series = Series()
    ran, answers = _send(target, questions, plan, options.connections, series, served)
    _record(ran, questions, plan.arrivals, series)
    for number, answer in answers:
        try:
            conversation.judge(questions[number], 200, answer)
        except (WrongAnswer, Refused) as wrong:
            _count_wrong(series, wrong)
    try:
        for _ in range(OPENED_AFTER):  # a sample of what was sealed under load
            question = conversation.ask("Decrypt")
            conversation.judge(question, *ask(question))
    except WrongAnswer as wrong:
        _count_wrong(series, wrong)
    except (OSError, Refused) as error:
        print(f"the sample of sealed answers could not be decrypted after the run: {error}")
    connection.close()
    conditions = report.Conditions(
        profile=f"{options.profile}: {plan.profile.text}",
        rps=options.rps,
        seconds=plan.arrivals.seconds,
        arrivals="poisson" if plan.arrivals.poisson else "constant",
        connections=ran.connections,
        mix=",".join(f"{name}={weight}" for name, weight in plan.mix.items()),
        target=target.url,
        generator="open loop",
        segments=[(segment.seconds, segment.from_rps, segment.to_rps) for segment in plan.arrivals.segments],
    )
    return report.conclude(Path(options.report_dir), series, plan.slo, conditions, pictures=not plan.more.no_pictures)


def _plan(served: Served, options: argparse.Namespace, rest: list[str]) -> _Plan:
    parser = argparse.ArgumentParser(prog="python -m loadtests --generator open-loop … --")

    def add(name: str, text: str, *, include_in_web_ui: bool = False, **more: object) -> None:
        parser.add_argument(f"--{name}", help=text, **more)  # type: ignore[arg-type]

    add_slo_options(add)
    add("no-pictures", report.NO_PICTURES_HELP, action="store_true")
    faults.add_options(add)
    add("arrivals", "as with locust", choices=["constant", "poisson"], default="poisson")
    add("schedule-seed", "of Poisson arrivals", type=int, default=1)
    add("mix", "OPERATION=WEIGHT,…", default=",".join(f"{name}={weight}" for name, weight in DEFAULT_MIX.items()))
    more = parser.parse_args(rest)
    profile = PROFILES[options.profile]
    seconds = parse_duration(options.duration) if options.duration else profile.default_seconds
    if seconds > MAX_SECONDS:
        raise ValueError(f"all requests are signed beforehand: at most {MAX_SECONDS} s, or use locust")
    more.fault_control = more.fault_control or served.fault_control
    if profile.fault is not None and not more.fault_control:
        raise ValueError(faults.NEEDS_CONTROL)
    arrivals = Arrivals(profile.segments(options.rps, seconds), more.arrivals == "poisson", more.schedule_seed)
    return _Plan(profile, arrivals, slo_of(more), parse_mix(more.mix), more)


def _send(
    target: Target, questions: list[Question], plan: _Plan, connections: int, series: Series, served: Served
) -> tuple[Run, list[tuple[int, bytes]]]:
    """What became of every arrival, and a sample of (number of the question, body of a 200). Samples and marks go into the series."""
    calls = [
        Call(target, question.operation, target.prefix + question.path, question.body, sampled=True) for question in questions
    ]
    load = Load(
        rate=0,
        seconds=plan.arrivals.seconds,
        connections=connections,
        max_connections=max(MAX_CONNECTIONS, connections),
        schedule=list(plan.arrivals),
        samples=SAMPLES,
    )
    with tempfile.TemporaryDirectory(prefix="xksfast-load-") as name:
        generator = Generator(Path(name))
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        sent = generator.send(calls, load, _meanwhile(plan, series, served))
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    series.generator_cpu_s = cpu_s
    series.busy[0] = [cpu_s, plan.arrivals.seconds]
    return sent


def _meanwhile(plan: _Plan, series: Series, served: Served) -> Callable[[int], None]:
    """Samples of the server, and faults on time, while the generator runs."""

    def during(start_ns: int) -> None:
        start_epoch_s = time.time() + (start_ns - time.monotonic_ns()) / 1e9
        helpers = [gevent.spawn(sampling.sample, series, served.status_url, served.worker_pid, start_epoch_s)]
        if plan.profile.fault is not None:
            steps = faults.plan(plan.more, plan.profile.fault, plan.arrivals.seconds)
            helpers.append(gevent.spawn(faults.carry_out, steps, series, start_epoch_s))
        gevent.sleep(max(0.0, start_epoch_s + plan.arrivals.seconds - time.time()))
        gevent.killall(helpers)

    return during


def _record(ran: Run, questions: list[Question], arrivals: Arrivals, series: Series) -> None:
    recorder = Recorder()
    own = ran.connections < MAX_CONNECTIONS  # else requests may have waited for a connection, as the server was slow
    for due_ns, sent_ns, done_ns, number, status in zip(ran.due, ran.sent, ran.done, ran.kind, ran.status, strict=True):
        if not done_ns:
            continue  # counted below
        due_s = (due_ns - ran.start_ns) / 1e9
        failure = "" if status == 200 else LOST.get(status, f"HTTP {status}")
        if not failure and done_ns - due_ns > KMS_LIMIT_MS * 1_000_000:
            failure = TOO_LATE
        lateness_us = max(0, sent_ns - due_ns) // 1000
        recorder.record(
            Outcome(int(due_s), questions[number].operation, lateness_us, (done_ns - (sent_ns or due_ns)) // 1000, failure)
        )
        if own and sent_ns:
            recorder.lag.record(lateness_us)
    series.merge({**recorder.drain(), "cpu_s": 0.0})  # of this process, which does not generate
    series.count_unanswered(arrivals.due_by(arrivals.seconds), int(arrivals.seconds))


def _count_wrong(series: Series, wrong: Exception) -> None:
    series.count_failure(max(series.seconds), f"{WRONG}: {wrong}")
