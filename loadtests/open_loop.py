# SPDX-License-Identifier: Apache-2.0
"""The open-loop generator: open_loop.c sends prepared, signed requests on the same schedules; here they are made and judged.

Why ours: of what Debian 12 has, wrk has no rate; h2load --rps lets all connections send at the same instants and times a request from
when it was really sent, as hey does; httperf opens a connection per session; vegeta and oha need newer compilers than Debian's.
"""

from __future__ import annotations

import argparse
import resource
import socket
import struct
import subprocess
import tempfile
from array import array
from pathlib import Path

from bench.requests import Target
from loadtests import report
from loadtests.connection import Connection
from loadtests.messages import DEFAULT_MIX, Conversation, Question, Refused, WrongAnswer
from loadtests.profiles import PROFILES, parse_duration
from loadtests.schedule import Arrivals
from loadtests.series import KMS_LIMIT_MS, TOO_LATE, WRONG, Outcome, Recorder, Series
from loadtests.servers import Served
from loadtests.signing import Signer
from loadtests.slo import Slo, add_slo_options, slo_of, table
from loadtests.target import read_target

SOURCE = Path(__file__).with_suffix(".c")
BINARY = Path(__file__).parent / "build" / "open_loop"
QUESTIONS, SEALED_BEFORE, OPENED_AFTER = 1000, 100, 100
MAX_SECONDS = 240  # a signature is valid for 5 minutes
LOST = {-1: "ConnectionClosed", -2: "NoAnswerWithin2s", -3: "MalformedAnswer"}
RECORD = struct.Struct("=qqq")  # sent_ns, done_ns, status


def run(served: Served, options: argparse.Namespace, rest: list[str]) -> int:
    """Load, judge, report; 0 when the objectives are met, else 1."""
    slo, arrivals = _options(options, rest)
    target, key = read_target(str(served.target_file))
    if not target.url.startswith("http://"):
        raise ValueError("the open-loop generator speaks plain HTTP only: use locust for TLS")
    profile = PROFILES[options.profile]
    if profile.fault is not None:
        raise ValueError("faults are the locust profile's: use --generator locust")
    conversation, connection, signer = Conversation(key), Connection(target, 2.0), Signer(target)

    def ask(question: Question) -> tuple[int, bytes]:
        path = target.prefix + question.path
        return connection.post(path, question.body, signer.sign(path, question.body))

    for _ in range(SEALED_BEFORE):
        question = conversation.ask("Encrypt")
        conversation.judge(question, *ask(question))
    questions = [conversation.ask() for _ in range(QUESTIONS)]
    build()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    outcomes, answers = _send(target, signer, questions, arrivals, options.connections)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    series = _series(questions, arrivals, outcomes)
    series.generator_cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    _judge(conversation, questions, outcomes, answers, series)
    try:
        for _ in range(OPENED_AFTER):  # a sample of what was sealed under load
            question = conversation.ask("Decrypt")
            conversation.judge(question, *ask(question))
    except WrongAnswer as wrong:
        _count_wrong(series, wrong)
    except (OSError, Refused) as error:
        print(f"the sample of sealed answers could not be decrypted after the run: {error}")
    connection.close()
    total = series.total
    verdicts = slo.judge(total)
    conditions = report.Conditions(
        profile=f"{options.profile}: {profile.text}",
        rps=options.rps,
        seconds=arrivals.seconds,
        arrivals="poisson" if arrivals.poisson else "constant",
        connections=options.connections,
        mix=",".join(f"{name}={weight}" for name, weight in DEFAULT_MIX.items()),
        target=target.url,
        generator="open loop",
        segments=[(segment.seconds, segment.from_rps, segment.to_rps) for segment in arrivals.segments],
    )
    files = report.write(Path(options.report_dir), series, verdicts, conditions)
    met = all(verdict.met for verdict in verdicts)
    print(table(verdicts, total))
    print(f"{'CPU of the generator':26} {series.generator_cpu_s / len(outcomes) * 1e6:.0f} us a request")
    print(f"{'the objectives are met' if met else 'OBJECTIVES MISSED'}; report: {files[0]}, all series: {files[1]}")
    return 0 if met else 1


def _options(options: argparse.Namespace, rest: list[str]) -> tuple[Slo, Arrivals]:
    parser = argparse.ArgumentParser(prog="python -m loadtests --generator open-loop … --")
    add_slo_options(lambda name, text, **more: parser.add_argument(f"--{name}", help=text, **more))
    parser.add_argument("--arrivals", choices=["constant", "poisson"], default="poisson")
    parser.add_argument("--schedule-seed", type=int, default=1)
    more = parser.parse_args(rest)
    profile = PROFILES[options.profile]
    seconds = parse_duration(options.duration) if options.duration else profile.default_seconds
    if seconds > MAX_SECONDS:
        raise ValueError(f"requests are signed beforehand: at most {MAX_SECONDS} s")
    return slo_of(more), Arrivals(profile.segments(options.rps, seconds), more.arrivals == "poisson", more.schedule_seed)


def build() -> Path:
    """The generator, compiled when it is older than its source."""
    if not BINARY.exists() or BINARY.stat().st_mtime < SOURCE.stat().st_mtime:
        BINARY.parent.mkdir(exist_ok=True)
        warnings = ("-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Wvla", "-Werror")
        subprocess.run(
            ["gcc", "-std=c11", "-D_GNU_SOURCE", "-O2", *warnings, str(SOURCE), "-o", str(BINARY)], check=True, timeout=120
        )
    return BINARY


def _send(
    target: Target, signer: Signer, questions: list[Question], arrivals: Arrivals, connections: int
) -> tuple[list[tuple[int, int, int]], list[bytes]]:
    """((sent ns or -1, done ns or -1, status) of every arrival, the last answer to every question)."""
    binary = build()
    host, _, port = target.url.removeprefix("http://").rpartition(":")
    address = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0][4][0]
    with tempfile.TemporaryDirectory(prefix="xksfast-load-") as name:
        files = [Path(name) / part for part in ("requests", "schedule", "outcomes", "answers")]
        files[1].write_bytes(array("Q", (int(due * 1e9) for due in arrivals)).tobytes())
        files[0].write_bytes(b"".join(_prepared(target, signer, question) for question in questions))
        command = [str(binary), str(address), port, str(connections), *map(str, files)]
        subprocess.run(command, check=True, timeout=arrivals.seconds + 60)
        return list(RECORD.iter_unpack(files[2].read_bytes())), _split(files[3].read_bytes())


def _prepared(target: Target, signer: Signer, question: Question) -> bytes:
    """u32 length | request."""
    path = target.prefix + question.path
    head = "".join(f"{name}: {value}\r\n" for name, value in signer.sign(path, question.body).items())
    request = f"POST {path} HTTP/1.1\r\n{head}Content-Length: {len(question.body)}\r\n\r\n".encode("ascii") + question.body
    return struct.pack("=I", len(request)) + request


def _split(packed: bytes) -> list[bytes]:
    parts, at = [], 0
    while at < len(packed):
        (length,) = struct.unpack_from("=I", packed, at)
        parts.append(packed[at + 4 : at + 4 + length])
        at += 4 + length
    return parts


def _series(questions: list[Question], arrivals: Arrivals, outcomes: list[tuple[int, int, int]]) -> Series:
    recorder, series = Recorder(), Series()
    for number, (due_s, (sent_ns, done_ns, status)) in enumerate(zip(arrivals, outcomes, strict=True)):
        if done_ns < 0:
            continue  # counted below
        due_ns = int(due_s * 1e9)
        failure = "" if status == 200 else LOST.get(status, f"HTTP {status}")
        if not failure and done_ns - due_ns > KMS_LIMIT_MS * 1_000_000:
            failure = TOO_LATE
        operation = questions[number % len(questions)].operation
        lateness_us = max(0, sent_ns - due_ns) // 1000
        recorder.record(Outcome(int(due_s), operation, lateness_us, (done_ns - sent_ns) // 1000, failure))
    series.merge(recorder.drain())
    series.count_unanswered(len(outcomes), int(arrivals.seconds))
    return series


def _judge(
    conversation: Conversation,
    questions: list[Question],
    outcomes: list[tuple[int, int, int]],
    answers: list[bytes],
    series: Series,
) -> None:
    """The last answer to every question, as locust's users judge theirs. Failed requests have been counted by their status."""
    for first, (question, answer) in enumerate(zip(questions, answers, strict=True)):
        statuses = {status for _, _, status in outcomes[first :: len(questions)]}
        if statuses == {200} and answer:
            try:
                conversation.judge(question, 200, answer)
            except (WrongAnswer, Refused) as wrong:
                _count_wrong(series, wrong)


def _count_wrong(series: Series, wrong: Exception) -> None:
    series.count_failure(max(series.seconds), f"{WRONG}: {wrong}")
