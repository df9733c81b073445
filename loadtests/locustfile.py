# SPDX-License-Identifier: Apache-2.0
"""The locust side: options, the user, the shape, and what master and workers tell each other.

    locust -f loadtests/locustfile.py --target dev.json --load-profile steady --rps 1800 [--headless] [--processes 2]

`python -m loadtests` (make loadtest) starts a server and then this. A newcomer's trap: the number of users is the number of
connections, not the load; the load is the schedule (schedule.py), of which each free user takes the next request that is due.
"""

from __future__ import annotations

import logging
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gevent
import gevent.event
from httptools import HttpParserError
from locust import LoadTestShape, User, constant, events, runners, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.exception import StopUser
from locust.runners import MasterRunner, WorkerRunner

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from loadtests import faults, report, sampling
from loadtests.connection import Connection
from loadtests.messages import DEFAULT_MIX, Question, Refused, WrongAnswer, parse_mix
from loadtests.profiles import KEY_STORE_QUOTA_RPS, PROFILES, parse_duration
from loadtests.run import START_DELAY_S, Generator, Start
from loadtests.schedule import Arrivals, Segment
from loadtests.series import KMS_LIMIT_MS, TOO_LATE, UNANSWERED, WRONG, Outcome, Series
from loadtests.slo import add_slo_options, slo_of, table
from loadtests.target import read_target

DRAIN_S = 0.5  # after the last arrival; what is under way then has the stop time-out
TIMEOUT_S = 2.0
DRAIN_INTERVAL_S = 1.0
START_MESSAGE, FINISHED_MESSAGE = "xksfast_start", "xksfast_finished"
FINISH_TIMEOUT_S = 10.0
# A worker on a busy machine is not dead after locust's 3 s: the master would end the run.
runners.HEARTBEAT_LIVENESS = 15
log = logging.getLogger("xksfast.load")


@events.init_command_line_parser.add_listener
def add_options(parser: LocustArgumentParser) -> None:
    """Our options. Each may also come from the environment, XKSFAST_LOAD_… of the same name."""

    def add(name: str, text: str, **more: Any) -> None:
        more.setdefault("include_in_web_ui", True)
        parser.add_argument(f"--{name}", help=text, env_var="XKSFAST_LOAD_" + name.upper().replace("-", "_"), **more)

    add("target", "JSON file with url, credential and key, as `xksfast dev --json` prints", default="", include_in_web_ui=False)
    add("load-profile", "rate over time: " + ", ".join(PROFILES), choices=list(PROFILES), default="steady")
    add("rps", "the highest rate of the profile", type=float, default=float(KEY_STORE_QUOTA_RPS))
    add("duration", "such as 45, 10m, 8h; the profile's own by default", default="")
    add("arrivals", "even gaps, or as of many independent callers", choices=["constant", "poisson"], default="poisson")
    add("schedule-seed", "of Poisson arrivals", type=int, default=1)
    add("connections", "users, each with one kept connection, over all workers", type=int, default=64)
    add("mix", "OPERATION=WEIGHT,…", default=",".join(f"{name}={weight}" for name, weight in DEFAULT_MIX.items()))
    add_slo_options(add)
    add("report-dir", "where report.html and series.json go", default="loadtests/results", include_in_web_ui=False)
    add("status-url", "the health listener, http://host:port, for the share of each partition", default="")
    add("server-pid", "a local worker whose memory is sampled", type=int, default=0)
    faults.add_options(add)


class LoadTest:
    """Everything of one locust process beside its users. series and verdict: where the report is written only."""

    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        self.target, self.key = read_target(environment.parsed_options.target)
        self.generator: Generator | None = None
        self.started = gevent.event.Event()
        self.series = Series()
        self.start_epoch_s = 0.0
        self.workers_running = 0
        self.unjudged = False  # a run has begun and has no verdict yet
        self._helpers: list[gevent.Greenlet] = []
        self.configure()

    def configure(self) -> None:
        """Take the options as they are now: the web UI may have changed them since the last run. ValueError for impossible ones."""
        options: Any = self.environment.parsed_options
        self.options = options
        self.profile = PROFILES[options.load_profile]
        self.seconds = parse_duration(options.duration) if options.duration else self.profile.default_seconds
        self.arrivals = Arrivals(
            self.profile.segments(options.rps, self.seconds), options.arrivals == "poisson", options.schedule_seed
        )
        self.mix = parse_mix(options.mix)
        self.slo = slo_of(options)
        self.stopped_s: float | None = None
        if self.profile.fault is not None and not options.fault_control:
            raise ValueError("partition-failure needs --fault-control FILE, or the server that python -m loadtests starts")

    def instructions(self, index: int, count: int) -> dict[str, Any]:
        """What a worker has to know: the whole schedule and its share of it, so that its own options cannot differ."""
        return {
            "start": asdict(Start(self.start_epoch_s, index, count)),
            "segments": [asdict(segment) for segment in self.arrivals.segments],
            "poisson": self.arrivals.poisson,
            "seed": self.arrivals.seed,
            "mix": self.mix,
        }

    def begin_generating(self, instructions: dict[str, Any]) -> None:
        """Give the users of this process their share of the schedule."""
        segments = [Segment(**segment) for segment in instructions["segments"]]
        arrivals = Arrivals(segments, instructions["poisson"], instructions["seed"])
        self.generator = Generator(self.target, self.key, instructions["mix"], arrivals, Start(**instructions["start"]))
        self.started.set()

    def begin_reporting(self) -> None:
        """In the process that writes the report: a new series, samples of the server, faults on time."""
        self.configure()
        self.unjudged = True
        self.series = Series()
        self.start_epoch_s = time.time() + START_DELAY_S
        self._helpers = [
            gevent.spawn(sampling.sample, self.series, self.options.status_url, self.options.server_pid, self.start_epoch_s)
        ]
        if self.profile.fault is not None:
            plan = faults.plan(self.options, self.profile.fault, self.seconds)
            self._helpers.append(gevent.spawn(faults.carry_out, plan, self.series, self.start_epoch_s))

    def collect(self) -> None:
        """Take what this process's own users recorded."""
        if self.generator is not None:
            self.series.merge(self.generator.recorder.drain())

    def collect_for_ever(self) -> None:
        """collect() again and again, so that a long run does not grow."""
        while True:
            gevent.sleep(DRAIN_INTERVAL_S)
            self.collect()

    def wait_for_workers(self) -> None:
        """Until each has sent its last outcomes: locust itself ends a run while they may still be on their way."""
        deadline = time.monotonic() + FINISH_TIMEOUT_S
        while self.workers_running > 0 and time.monotonic() < deadline:
            gevent.sleep(0.05)
        if self.workers_running > 0:
            log.warning("%d workers did not say that they have finished", self.workers_running)

    def worker_finished(self, drained: dict[str, Any]) -> None:
        """The last outcomes of a worker."""
        self.series.merge(drained)
        self.workers_running -= 1

    def finish(self) -> None:
        """Judge, print, write the report, set the exit code."""
        self.unjudged = False
        gevent.killall(self._helpers)
        self.started.clear()
        if isinstance(self.environment.runner, MasterRunner):
            self.wait_for_workers()
        else:
            self.collect()
        ran_s = min(self.seconds, self.stopped_s or 0.0)
        self.series.count_unanswered(self.arrivals.due_by(ran_s), int(ran_s))
        total = self.series.total
        verdicts = self.slo.judge(total)
        met = all(verdict.met for verdict in verdicts)
        self.environment.process_exit_code = 0 if met else 1
        files = report.write(
            Path(self.options.report_dir),
            self.series,
            verdicts,
            report.Conditions(
                profile=f"{self.options.load_profile}: {self.profile.text}",
                rps=self.options.rps,
                seconds=ran_s,
                arrivals=self.options.arrivals,
                connections=self.options.connections,
                mix=self.options.mix,
                target=self.target.url,
                generator="locust",
                segments=[(segment.seconds, segment.from_rps, segment.to_rps) for segment in self.arrivals.segments],
            ),
        )
        print(table(verdicts, total))
        answered = total.requests - total.failures[UNANSWERED]
        print(f"{'CPU of the generator':26} {self.series.generator_cpu_s / max(1, answered) * 1e6:.0f} us a request")
        print(
            f"{'the objectives are met' if met else 'OBJECTIVES MISSED'}; report: {files[0]}, all series: {files[1]}",
            flush=True,
        )


class Shared:
    """For the two listeners that locust calls without an environment."""

    test: LoadTest | None = None


def load_test(environment: Environment) -> LoadTest:
    """The LoadTest that begin() hung on the environment."""
    return environment.xksfast  # type: ignore[attr-defined, no-any-return]


@events.init.add_listener
def begin(environment: Environment, **_: Any) -> None:
    """Read the options; connect master and workers."""
    try:
        test = LoadTest(environment)
    except (ValueError, OSError) as error:
        log.error("%s", error)
        environment.process_exit_code = 2
        sys.exit(2)
    if environment.parsed_options.headless and not isinstance(environment.runner, WorkerRunner):
        environment.process_exit_code = 1  # until there is a verdict
    environment.xksfast = test  # type: ignore[attr-defined]
    Shared.test = test
    environment.host = environment.host or test.target.url
    environment.stop_timeout = environment.stop_timeout or TIMEOUT_S
    if isinstance(environment.runner, WorkerRunner):
        environment.runner.register_message(
            START_MESSAGE, lambda environment, msg, **_: load_test(environment).begin_generating(msg.data)
        )
    elif isinstance(environment.runner, MasterRunner):
        environment.runner.register_message(
            FINISHED_MESSAGE, lambda environment, msg, **_: load_test(environment).worker_finished(msg.data)
        )


@events.test_start.add_listener
def start(environment: Environment, **_: Any) -> None:
    """The schedule's start and everybody's share of it."""
    test, runner = load_test(environment), environment.runner
    if isinstance(runner, WorkerRunner):
        return
    test.begin_reporting()
    if isinstance(runner, MasterRunner):
        workers = [worker.id for worker in runner.clients.ready] or list(runner.clients)
        test.workers_running = len(workers)
        for index, worker in enumerate(workers):
            runner.send_message(START_MESSAGE, test.instructions(index, len(workers)), client_id=worker)
    else:
        test.begin_generating(test.instructions(0, 1))
        test._helpers.append(gevent.spawn(test.collect_for_ever))


@events.test_stopping.add_listener
def stopping(environment: Environment, **_: Any) -> None:
    """What is due from now on is nobody's fault: somebody stopped the run, or it is over."""
    test = load_test(environment)
    test.stopped_s = max(0.0, time.time() - test.start_epoch_s)


@events.test_stop.add_listener
def stop(environment: Environment, **_: Any) -> None:
    """A run with the web UI may be followed by another: each has its report."""
    test = load_test(environment)
    if isinstance(environment.runner, WorkerRunner):
        test.started.clear()
        if test.generator is not None:
            environment.runner.send_message(FINISHED_MESSAGE, test.generator.recorder.drain())
    else:
        test.finish()


@events.quitting.add_listener
def judge_at_last(environment: Environment, **_: Any) -> None:
    """A run that ended in another way than it should, such as with the loss of its workers, is judged by what is known of it."""
    test = load_test(environment)
    if not isinstance(environment.runner, WorkerRunner) and test.unjudged:
        test.stopped_s = test.seconds if test.stopped_s is None else test.stopped_s
        test.finish()


@events.report_to_master.add_listener
def tell_master(client_id: str, data: dict[str, Any]) -> None:
    """A worker's outcomes since its last report travel with locust's own statistics."""
    if Shared.test is not None and Shared.test.generator is not None:
        data["xksfast"] = Shared.test.generator.recorder.drain()


@events.worker_report.add_listener
def hear_worker(client_id: str, data: dict[str, Any]) -> None:
    """The master's side of tell_master."""
    if Shared.test is not None and "xksfast" in data:
        Shared.test.series.merge(data["xksfast"])


class ProfileShape(LoadTestShape):
    """Every connection from the start until the schedule is over: rates are the schedule's, not the number of users."""

    def tick(self) -> tuple[int, float] | None:
        assert self.runner is not None
        test = load_test(self.runner.environment)
        if self.get_run_time() > START_DELAY_S + test.seconds + DRAIN_S:
            return None
        return test.options.connections, float(test.options.connections)


class KmsUser(User):
    """One connection of KMS: takes the next due request of the schedule, sends it signed, judges the answer."""

    wait_time = constant(0)

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self.test = load_test(environment)
        self.connection = Connection(self.test.target, TIMEOUT_S)

    def on_start(self) -> None:
        """Open the connection, and have something to decrypt, before the schedule starts."""
        if not self.test.started.wait(START_DELAY_S + 5):
            raise StopUser
        self.generator = self.test.generator
        assert self.generator is not None
        self._ask(self.generator.conversation.ask("Encrypt"))

    @task
    def next_request(self) -> None:
        """One request of the schedule."""
        assert self.generator is not None
        due = self.generator.pacer.next()
        if due is None:
            gevent.sleep(0.5)  # all is sent; the shape ends the run when the last answers are in
            return
        question = self.generator.conversation.ask()
        service_s, failure, length = self._ask(question)
        outcome = Outcome(int(due.due_s), question.operation, round(due.late_s * 1e6), round(service_s * 1e6), failure)
        if not failure and outcome.scheduled_us > KMS_LIMIT_MS * 1000:
            outcome.failure = failure = TOO_LATE
        self.generator.recorder.record(outcome)
        self.environment.events.request.fire(
            request_type="XKS",
            name=question.operation,
            response_time=outcome.scheduled_us / 1000,
            response_length=length,
            exception=RuntimeError(failure) if failure else None,
            context={},
        )

    def _ask(self, question: Question) -> tuple[float, str, int]:
        """(service time in seconds, "" or the name of the failure, bytes of the answer)."""
        generator = self.generator
        assert generator is not None
        path = generator.target.prefix + question.path
        headers = generator.signer.sign(path, question.body)
        began = time.perf_counter()
        try:
            status, body = self.connection.post(path, question.body, headers)
        except (OSError, HttpParserError) as error:
            return time.perf_counter() - began, type(error).__name__, 0
        service_s = time.perf_counter() - began
        try:
            generator.conversation.judge(question, status, body)
        except Refused as refused:
            return service_s, str(refused), len(body)
        except WrongAnswer as wrong:
            return service_s, f"{WRONG}: {wrong}", len(body)
        return service_s, "", len(body)
