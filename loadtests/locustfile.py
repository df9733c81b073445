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
from collections.abc import Callable
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
from loadtests.profiles import DEFAULT_RPS, PROFILES, parse_duration
from loadtests.run import Generator, instructions
from loadtests.schedule import Arrivals, Due
from loadtests.series import KMS_LIMIT_MS, TOO_LATE, WRONG, Outcome, Series
from loadtests.slo import add_slo_options, slo_of
from loadtests.target import read_target

DRAIN_S = 0.5  # after the last arrival; what is under way then has the stop time-out
TIMEOUT_S = 2.0
DRAIN_INTERVAL_S = 1.0
# The master tells the start to workers whose users are there, until each has answered; in the end each tells its last outcomes by
# itself. For a message of the master may be noticed as late as with the worker's next heartbeat, a second later, and a shape that has
# ended makes locust judge (test_stop) before it says anything to the workers.
START_MESSAGE, STARTING_MESSAGE, FINISHED_MESSAGE = "xksfast_start", "xksfast_starting", "xksfast_finished"
START_DELAY_S = 1.0  # for users to open their connections
SPAWN_TIMEOUT_S, START_TIMEOUT_S, FINISH_TIMEOUT_S = 20.0, 3.0, 3.0
REPEAT_S = 0.5
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
    add("rps", "the highest rate of the profile", type=float, default=float(DEFAULT_RPS["locust"]))
    add("duration", "such as 45, 10m, 8h; the profile's own by default", default="")
    add("arrivals", "even gaps, or as of many independent callers", choices=["constant", "poisson"], default="poisson")
    add("schedule-seed", "of Poisson arrivals", type=int, default=1)
    add("connections", "users, each with one kept connection, over all workers", type=int, default=64)
    add("mix", "OPERATION=WEIGHT,…", default=",".join(f"{name}={weight}" for name, weight in DEFAULT_MIX.items()))
    add_slo_options(add)
    add("report-dir", "where report.html and series.json go", default="loadtests/results", include_in_web_ui=False)
    add("status-url", "the health listener, http://host:port, for the share of each partition", default="")
    add("server-pid", "a local worker whose memory is sampled", type=int, default=0)
    add("no-pictures", report.NO_PICTURES_HELP, action="store_true", include_in_web_ui=False)
    faults.add_options(add)


class LoadTest:
    """Everything of one locust process beside its users. series and verdict: where the report is written only."""

    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        self.target, self.key = read_target(environment.parsed_options.target)
        self.generator: Generator | None = None
        self.started = gevent.event.Event()
        self.spawned = gevent.event.Event()
        self.series = Series()
        self.start_epoch_s = 0.0  # 0: not agreed yet
        self.starting: set[int] = set()  # workers that have answered the start message
        self.unfinished: dict[int, str] = {}  # index -> id of workers that have not told their last outcomes
        self.lost = ""  # why the run has failed, whatever was measured
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
            raise ValueError(faults.NEEDS_CONTROL)

    def begin_generating(self, told: dict[str, Any]) -> None:
        """Give the users of this process their share of the schedule; told twice, the second time is for nothing."""
        if self.generator is None or self.generator.epoch_s != told["epoch_s"]:
            self.generator = Generator(self.target, self.key, told)
            self.started.set()

    def begin_reporting(self) -> None:
        """In the process that writes the report: a new series, and the options as they are now."""
        self.configure()
        self.unjudged = True
        self.series = Series()
        self.start_epoch_s, self.lost = 0.0, ""
        self.starting, self.unfinished = set(), {}
        self._helpers = []

    def begin_schedule(self, epoch_s: float) -> None:
        """The start is agreed: samples of the server, faults on time."""
        self.start_epoch_s = epoch_s
        log.info("the schedule begins in %.1f s", epoch_s - time.time())
        self._helpers.append(
            gevent.spawn(sampling.sample, self.series, self.options.status_url, self.options.server_pid, epoch_s)
        )
        if self.profile.fault is not None:
            plan = faults.plan(self.options, self.profile.fault, self.seconds)
            self._helpers.append(gevent.spawn(faults.carry_out, plan, self.series, epoch_s))

    def begin_alone(self) -> None:
        """This process generates and reports."""
        epoch_s = time.time() + START_DELAY_S
        self.begin_schedule(epoch_s)
        self.begin_generating(instructions(epoch_s, 0, 1, self.arrivals, self.mix))
        self._helpers.append(gevent.spawn(self.collect_for_ever))

    def begin_workers(self, runner: MasterRunner) -> None:
        """Agree on the start with every worker, or end the run: a schedule of which a share is missing measures nothing."""
        if not self.spawned.wait(SPAWN_TIMEOUT_S):
            log.warning("not all users were there after %g s", SPAWN_TIMEOUT_S)
        workers = [worker.id for state in ("ready", "spawning", "running") for worker in getattr(runner.clients, state)]
        self.unfinished = dict(enumerate(workers))
        epoch_s = time.time() + START_TIMEOUT_S
        while len(self.starting) < len(workers) and time.time() < epoch_s:
            for index, worker in enumerate(workers):
                if index not in self.starting:
                    told = instructions(epoch_s, index, len(workers), self.arrivals, self.mix)
                    runner.send_message(START_MESSAGE, told, client_id=worker)
            self._wait(lambda: len(self.starting) == len(workers), REPEAT_S)
        silent = [worker for index, worker in enumerate(workers) if index not in self.starting]
        if silent or not workers:
            self.lost = f"workers that did not answer the start: {', '.join(silent) or 'there are none'}"
            log.error("%s", self.lost)
            return
        self.begin_schedule(epoch_s)

    def over(self) -> bool:
        """Whether locust may stop the users: the schedule is over, and every worker has told its outcomes or had time to."""
        if self.lost:
            return True
        if not self.start_epoch_s:
            return False
        late_s = time.time() - self.start_epoch_s - self.seconds - DRAIN_S
        return late_s > (TIMEOUT_S + FINISH_TIMEOUT_S if self.unfinished else 0.0)

    def collect(self) -> None:
        """Take what this process's own users recorded."""
        if self.generator is not None:
            self.series.merge(self.generator.recorder.drain())

    def collect_for_ever(self) -> None:
        """collect() again and again, so that a long run does not grow."""
        while True:
            gevent.sleep(DRAIN_INTERVAL_S)
            self.collect()

    def worker_starts(self, told: dict[str, Any]) -> None:
        """A worker's answer to the start message."""
        self.starting.add(int(told["index"]))

    def worker_finished(self, told: dict[str, Any]) -> None:
        """The last outcomes of a worker."""
        self.series.merge(told["drained"])
        self.unfinished.pop(int(told["index"]), None)

    def finish(self) -> None:
        """Judge, print, write the report, set the exit code."""
        self.unjudged = False
        if isinstance(self.environment.runner, MasterRunner):
            self._wait(lambda: not self.unfinished, 0.0 if self.over() else FINISH_TIMEOUT_S)
        gevent.killall(self._helpers)
        self.started.clear()
        self.spawned.clear()
        self.collect()
        if self.unfinished and not self.lost:
            self.lost = f"workers that did not tell their last outcomes: {', '.join(self.unfinished.values())}"
        ran_s = min(self.seconds, self.stopped_s or 0.0)
        self.series.count_unanswered(self.arrivals.due_by(ran_s), int(ran_s))
        self.environment.process_exit_code = report.conclude(
            Path(self.options.report_dir),
            self.series,
            self.slo,
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
            lost=self.lost,
            pictures=not self.options.no_pictures,
        )

    @staticmethod
    def _wait(condition: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not condition() and time.monotonic() < deadline:
            gevent.sleep(0.02)


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
        environment.runner.register_message(START_MESSAGE, answer_start)
    elif isinstance(environment.runner, MasterRunner):
        environment.runner.register_message(
            STARTING_MESSAGE, lambda environment, msg, **_: load_test(environment).worker_starts(msg.data)
        )
        environment.runner.register_message(
            FINISHED_MESSAGE, lambda environment, msg, **_: load_test(environment).worker_finished(msg.data)
        )


def answer_start(environment: Environment, msg: Any, **_: Any) -> None:
    """In a worker: begin, say so, and tell the last outcomes when the schedule is over, not when locust's stop comes."""
    test = load_test(environment)
    before = test.generator
    test.begin_generating(msg.data)
    assert test.generator is not None
    environment.runner.send_message(STARTING_MESSAGE, {"index": test.generator.index})  # type: ignore[union-attr]
    if test.generator is not before:
        gevent.spawn(tell_last, environment, test.generator)


def tell_last(environment: Environment, generator: Generator) -> None:
    """In a worker, once the schedule is over."""
    generator.finish(DRAIN_S, TIMEOUT_S)
    drained = {"index": generator.index, "drained": generator.recorder.drain()}
    environment.runner.send_message(FINISHED_MESSAGE, drained)  # type: ignore[union-attr]


@events.test_start.add_listener
def start(environment: Environment, **_: Any) -> None:
    """Agree on the schedule's start; a worker waits for the master's word."""
    test, runner = load_test(environment), environment.runner
    if isinstance(runner, WorkerRunner):
        return
    test.begin_reporting()
    if isinstance(runner, MasterRunner):
        gevent.spawn(test.begin_workers, runner)
    else:
        test.begin_alone()


@events.spawning_complete.add_listener
def spawned(user_count: int, **_: Any) -> None:
    """Every user is there."""
    if Shared.test is not None:
        Shared.test.spawned.set()


@events.test_stopping.add_listener
def stopping(environment: Environment, **_: Any) -> None:
    """What is due from now on is nobody's fault: somebody stopped the run, or it is over."""
    test = load_test(environment)
    test.stopped_s = max(0.0, time.time() - test.start_epoch_s) if test.start_epoch_s else 0.0


@events.test_stop.add_listener
def stop(environment: Environment, **_: Any) -> None:
    """A run with the web UI may be followed by another: each has its report."""
    test = load_test(environment)
    if not isinstance(environment.runner, WorkerRunner):
        test.finish()
        return
    test.started.clear()
    if test.generator is not None:
        test.generator.close()
        rest = {"index": test.generator.index, "drained": test.generator.recorder.drain()}
        environment.runner.send_message(FINISHED_MESSAGE, rest)


@events.quitting.add_listener
def judge_at_last(environment: Environment, **_: Any) -> None:
    """A run that ended in another way than it should, such as with the loss of its workers, is judged by what is known of it."""
    test = load_test(environment)
    if not isinstance(environment.runner, WorkerRunner) and test.unjudged:
        if test.stopped_s is None:
            test.stopped_s = test.seconds if test.start_epoch_s else 0.0
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
        if test.over():
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
        if not self.test.started.wait(SPAWN_TIMEOUT_S + START_TIMEOUT_S):
            raise StopUser
        self.generator = self.test.generator
        assert self.generator is not None
        self._ask(self.generator.conversation.ask("Encrypt"))

    @task
    def next_request(self) -> None:
        """One request of the schedule."""
        assert self.generator is not None
        self.generator.under_way += 1
        try:
            due = self.generator.pacer.next()
            if due is not None:
                self._carry_out(due)
        finally:
            self.generator.under_way -= 1
        if due is None:
            gevent.sleep(0.5)  # all is sent; the shape ends the run when the last answers are in

    def _carry_out(self, due: Due) -> None:
        assert self.generator is not None
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
        resent, began = self.connection.resent, time.perf_counter()
        try:
            status, body = self.connection.post(path, question.body, headers)
        except (OSError, HttpParserError) as error:
            return time.perf_counter() - began, type(error).__name__, 0
        finally:
            generator.recorder.resent += self.connection.resent - resent
        service_s = time.perf_counter() - began
        try:
            generator.conversation.judge(question, status, body)
        except Refused as refused:
            return service_s, str(refused), len(body)
        except WrongAnswer as wrong:
            return service_s, f"{WRONG}: {wrong}", len(body)
        return service_s, "", len(body)
