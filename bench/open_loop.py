# SPDX-License-Identifier: Apache-2.0
"""Open-loop load: a schedule decides when a request is due, and its latency counts from that moment.

    python -m bench.open_loop TARGET.json --rate 1800 --seconds 30 --arrivals poisson --mix encrypt=7,cdiv=1,decrypt=2 --json

TARGET.json is what `xksfast dev --json` prints, in a file, or - for standard input. bench/open_loop.c does the sending; what lives here
is what it sends (signed by botocore beforehand), what its records mean, and the proof that answers given under load were right.
A newcomer's trap: `--arrivals closed` is no open loop: every connection waits for its answer. It measures capacity, not latency.
"""

from __future__ import annotations

import argparse
import array
import base64
import datetime
import json
import math
import os
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.processes import CLIENT_CORE, goes_first
from bench.requests import Target, decrypt_document, encrypt_document, prove_answer, prove_encrypt
from xksfast.errors import NativeError
from xksfast.native.schedule import SHORTEST_US, set_slice

SOURCES = tuple(Path(__file__).with_name(name) for name in ("open_loop.c", "open_loop_connections.c"))
SIGNED_FOR_S = 240  # a signature is good for five minutes
NO_ANSWER, BROKEN = 0, 1
HEADER, RECORD, SAMPLE = struct.Struct("<8s5Q"), struct.Struct("<3Q2I"), struct.Struct("<2I")
SAMPLES_WANTED = 40
PROOF_PATIENCE_S = 5.0
KINDS = ("encrypt", "cdiv", "decrypt", "garbage")


@dataclass(frozen=True)
class Call:
    """One request of a mix. expect: the status that is right for it. document: Encrypt's, to prove its answers with; else None.

    sampled: answers are kept for whoever calls Generator.send; those with a document are kept anyway.
    """

    target: Target
    kind: str
    path: str
    body: bytes
    expect: int = 200
    weight: int = 1
    key: str = ""
    document: dict[str, object] | None = None
    sampled: bool = False


@dataclass(frozen=True)
class Load:
    """How much, when. arrivals: "constant", "poisson" or "closed". connections: open from the start; more are opened as needed.

    schedule: instead of rate and arrivals, the due times in seconds from the start, ascending. samples: answers to be kept, about.
    """

    rate: float
    seconds: float
    arrivals: str = "poisson"
    connections: int = 32
    max_connections: int = 1500
    seed: int = 1
    spin: bool = False
    schedule: Sequence[float] | None = None
    samples: int = SAMPLES_WANTED

    @property
    def expected(self) -> float:
        """Requests in all; "closed" knows no number."""
        return len(self.schedule) if self.schedule is not None else self.rate * self.seconds


@dataclass
class Window:
    """What was due in one stretch of time. Latencies are of right answers, in ms from the moment they were due."""

    start_s: float
    due: int = 0
    ok: int = 0
    refused: int = 0
    failed: int = 0
    finished_ok: int = 0  # right answers that arrived in it, whenever they were due
    latencies: list[float] = field(default_factory=list)

    def as_json(self) -> dict[str, float | None]:
        self.latencies.sort()
        return {
            "t": round(self.start_s, 3),
            "due": self.due,
            "ok": self.ok,
            "refused": self.refused,
            "failed": self.failed,
            "finished_ok": self.finished_ok,
            "p50_ms": _rounded(quantile(self.latencies, 0.5)),
            "p99_ms": _rounded(quantile(self.latencies, 0.99)),
        }


REFUSALS = (
    429,
    503,
)  # ThrottlingException and DependencyTimeoutException or KeyStoreUnavailable: refused, not answered wrongly


@dataclass
class Run:
    """What became of every request: parallel arrays, in the order in which they were due. Times in ns of CLOCK_MONOTONIC."""

    start_ns: int
    seconds: float
    due: array.array[int]
    sent: array.array[int]
    done: array.array[int]
    kind: array.array[int]
    status: array.array[int]
    calls: Sequence[Call]
    connections: int

    def expects(self, index: int) -> bool:
        """Whether request `index` was answered as it should be."""
        return self.status[index] == self.calls[self.kind[index]].expect

    def latencies_ms(self, *, since_s: float = 0, until_s: float = math.inf, kinds: Sequence[str] | None = None) -> list[float]:
        """Of right answers that were due in [since_s, until_s), sorted."""
        low, high = self.start_ns + since_s * 1e9, self.start_ns + until_s * 1e9
        wanted = {i for i, call in enumerate(self.calls) if kinds is None or call.kind in kinds}
        return sorted(
            (self.done[i] - self.due[i]) / 1e6
            for i in range(len(self.due))
            if low <= self.due[i] < high and self.kind[i] in wanted and self.expects(i)
        )

    def statuses(self, *, since_s: float = 0, until_s: float = math.inf, kinds: Sequence[str] | None = None) -> Counter[str]:
        """How many got what, of those due in [since_s, until_s): "ok", or the status that was not expected."""
        low, high = self.start_ns + since_s * 1e9, self.start_ns + until_s * 1e9
        wanted = {i for i, call in enumerate(self.calls) if kinds is None or call.kind in kinds}
        names = {NO_ANSWER: "no answer", BROKEN: "connection broken"}
        return Counter(
            "ok" if self.expects(i) else names.get(self.status[i], str(self.status[i]))
            for i in range(len(self.due))
            if low <= self.due[i] < high and self.kind[i] in wanted
        )

    def refusal_ms(self) -> list[float]:
        """From sending a request to its refusal, sorted."""
        return sorted((self.done[i] - self.sent[i]) / 1e6 for i in range(len(self.due)) if self.status[i] in REFUSALS)

    def error_ms(self) -> list[float]:
        """From sending a request to an answer that is an error, whichever, sorted."""
        errors = (i for i in range(len(self.due)) if self.status[i] >= 400 and not self.expects(i))
        return sorted((self.done[i] - self.sent[i]) / 1e6 for i in errors)

    def lateness_ms(self) -> list[float]:
        """How late the generator itself was, sorted; part of every latency."""
        return sorted((self.sent[i] - self.due[i]) / 1e6 for i in range(len(self.due)) if self.sent[i])

    def windows(self, width_s: float = 0.1) -> list[Window]:
        """The run in stretches of time."""
        found = [Window(i * width_s) for i in range(max(1, math.ceil(self.seconds / width_s - 1e-9)))]
        for i in range(len(self.due)):
            window = found[min(int((self.due[i] - self.start_ns) / 1e9 / width_s), len(found) - 1)]
            window.due += 1
            if self.expects(i):
                window.ok += 1
                window.latencies.append((self.done[i] - self.due[i]) / 1e6)
                at = int((self.done[i] - self.start_ns) / 1e9 / width_s)
                if at < len(found):
                    found[at].finished_ok += 1
            elif self.status[i] in REFUSALS:
                window.refused += 1
            else:
                window.failed += 1
        return found

    def summary(self) -> dict[str, Any]:
        """The figures that a table shows."""
        latencies, lateness, statuses = self.latencies_ms(), self.lateness_ms(), self.statuses()
        return {
            "requests": len(self.due),
            "seconds": self.seconds,
            "ok": statuses["ok"],
            "not_ok": {name: count for name, count in statuses.items() if name != "ok"},
            "ok_rps": round(statuses["ok"] / self.seconds, 1),
            **{f"p{name}_ms": _rounded(quantile(latencies, q)) for name, q in QUANTILES.items()},
            "max_ms": _rounded(latencies[-1]) if latencies else None,
            "generator_lateness_p99_ms": _rounded(quantile(lateness, 0.99)),
            "connections": self.connections,
        }


QUANTILES = {"50": 0.5, "90": 0.9, "99": 0.99, "99_9": 0.999}


def quantile(values: Sequence[float], q: float) -> float | None:
    """Of sorted values: the smallest that at least a share q does not exceed."""
    return values[max(0, math.ceil(q * len(values)) - 1)] if values else None


def quantile_of(values: Sequence[float], q: float) -> float:
    """The same of values in any order, of which there are some."""
    value = quantile(sorted(values), q)
    assert value is not None
    return value


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def compile_generator(directory: Path) -> Path:
    """bench/open_loop.c and its connections, compiled into `directory` unless it is there."""
    program = directory / "open_loop"
    if not program.exists():
        subprocess.run(
            ["gcc", "-std=c11", "-O2", "-Wall", "-Wextra", *map(str, SOURCES), "-lm", "-o", str(program)], check=True
        )
    return program


def make_calls(target: Target, keys: Sequence[str], mix: dict[str, int]) -> list[Call]:
    """A call of each kind in `mix` (kind -> weight) for every key, each proved right by the server before it is used.

    kinds: "encrypt"; "cdiv" (Encrypt with the integrity value, as for GenerateDataKey); "decrypt"; "garbage" (a Decrypt whose tag is
    wrong: 400 is right).
    """
    calls = []
    for key in keys:
        for kind, weight in mix.items():
            if kind not in KINDS:
                raise ValueError(f"{kind}: a mix is of {', '.join(KINDS)}")
            document = encrypt_document(cdiv=kind == "cdiv")
            answer = prove_encrypt(target, key, document)
            expect, operation, proof = 200, "encrypt", document
            if kind in ("decrypt", "garbage"):
                operation, proof, document = "decrypt", None, decrypt_document(document, answer)
            if kind == "garbage":
                expect, tag = 400, bytearray(base64.b64decode(str(document["authenticationTag"])))
                tag[0] ^= 1
                document["authenticationTag"] = base64.b64encode(tag).decode()
            body = json.dumps(document, separators=(",", ":")).encode()
            calls.append(Call(target, kind, target.path(key, operation), body, expect, weight, key, proof))
    return calls


class Generator:
    """Runs bench/open_loop.c on the client core; one directory for program, requests and records."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.program = compile_generator(directory)

    def run(self, calls: Sequence[Call], load: Load, during: Callable[[int], None] | None = None) -> Run:
        """send(), then prove the sample: the server must decrypt it again. AssertionError when an answer was wrong."""
        run, samples = self.send(calls, load, during)
        for number, answer in samples:
            call = calls[number]
            assert call.document is not None
            prove_answer(call.target, call.key, call.document, json.loads(answer), patience_s=PROOF_PATIENCE_S)
        return run

    def send(
        self, calls: Sequence[Call], load: Load, during: Callable[[int], None] | None = None
    ) -> tuple[Run, list[tuple[int, bytes]]]:
        """Send `calls` as `load` says; what became of them, and a sample of (number of the call, body of a 200).

        during(start_ns) runs meanwhile and must be over when the load is. RuntimeError when nobody listened at the start.
        """
        requests, records, schedule = (self.directory / name for name in ("requests", "records", "schedule"))
        self._write_requests(requests, calls, load)
        arrivals = load.arrivals
        if load.schedule is not None:
            schedule.write_bytes(array.array("Q", (round(due * 1e9) for due in load.schedule)).tobytes())
            arrivals = f"@{schedule}"
        start_ns = time.monotonic_ns() + 400_000_000
        command = [
            "taskset", "-c", str(CLIENT_CORE), str(self.program), _address(calls[0].target), arrivals, str(load.rate),
            str(load.seconds), str(start_ns), str(load.connections), str(load.max_connections), str(load.seed), str(int(load.spin)),
            str(requests), str(records),
        ]  # fmt: skip
        # Its own waiting for the CPU would be told as latency.
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        goes_first(process.pid)
        with suppress(NativeError):
            set_slice(SHORTEST_US, process.pid)
        try:
            if during is not None:
                during(start_ns)
            _, problem = process.communicate(timeout=load.seconds + 30)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        if process.returncode != 0:
            raise RuntimeError(f"the load generator failed: {problem}")
        return _read_records(records, calls, load.seconds)

    def _write_requests(self, path: Path, calls: Sequence[Call], load: Load) -> None:
        """Every call, signed once for each stretch of time that a signature lasts."""
        now = datetime.datetime.now(datetime.UTC)
        every = max(1, math.ceil(load.expected / load.samples)) if load.arrivals != "closed" else 5000
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            for from_s in range(0, max(1, math.ceil(load.seconds)), SIGNED_FOR_S):
                at = now + datetime.timedelta(seconds=from_s)
                for number, call in enumerate(calls):
                    raw = call.target.raw(call.path, call.body, at)
                    sample = every if call.sampled or call.document is not None else 0
                    file.write(f"{number} {call.weight} {from_s} {sample} {len(raw)}\n".encode() + raw + b"\n")


def _address(target: Target) -> str:
    """ADDRESS:PORT of a plain HTTP key store, for the generator."""
    host, _, port = target.url.removeprefix("http://").partition(":")
    address = socket.getaddrinfo(host, int(port or 80), socket.AF_INET, socket.SOCK_STREAM)[0][4]
    return f"{address[0]}:{address[1]}"


def _read_records(path: Path, calls: Sequence[Call], seconds: float) -> tuple[Run, list[tuple[int, bytes]]]:
    data = path.read_bytes()
    magic, start_ns, _, count, sample_count, connections = HEADER.unpack_from(data)
    assert magic == b"xksopen1"
    end = HEADER.size + count * RECORD.size
    columns = [array.array(code) for code in "QQQII"]
    words = array.array("Q", data[HEADER.size : end])
    for column, offset in zip(columns[:3], range(3), strict=True):
        column.extend(words[offset::4])
    halves = array.array("I", words[3::4].tobytes())
    columns[3].extend(halves[0::2])
    columns[4].extend(halves[1::2])
    samples = []
    for _ in range(sample_count):
        request, length = SAMPLE.unpack_from(data, end)
        end += SAMPLE.size
        samples.append((request % len(calls), data[end : end + length]))
        end += length
    return Run(start_ns, seconds, *columns, calls, connections), samples


def main() -> int:
    """Load a running proxy; 1 when an answer was not the one expected."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", help="a file with the JSON object of xksfast dev --json; - reads standard input")
    parser.add_argument("--rate", type=float, default=1800, help="requests per second")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--arrivals", choices=("constant", "poisson", "closed"), default="poisson")
    parser.add_argument("--connections", type=int, default=32, help="open from the start; closed: all there are")
    parser.add_argument("--max-connections", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--spin", action="store_true", help="never sleep: exact to microseconds, at the cost of a core")
    parser.add_argument("--key", default="default", help="a name in the target's keys")
    parser.add_argument("--mix", default="encrypt=1", help=f"weights of {', '.join(KINDS)}: encrypt=7,cdiv=1,decrypt=2")
    parser.add_argument("--json", action="store_true", help="summary and time series as JSON")
    options = parser.parse_args()
    ready = json.loads(sys.stdin.readline() if options.target == "-" else Path(options.target).read_text())
    target, key = Target.from_dev(ready), ready["keys"].get(options.key, options.key)
    mix = {kind: int(weight) for kind, weight in (part.split("=") for part in options.mix.split(","))}
    closed = options.arrivals == "closed"
    load = Load(
        options.rate, options.seconds, options.arrivals, options.connections,
        options.connections if closed else options.max_connections, options.seed, options.spin,
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="xksfast-bench-") as directory:
        run = Generator(Path(directory)).run(make_calls(target, [key], mix), load)
    summary = run.summary()
    if options.json:
        print(json.dumps({"summary": summary, "windows": [window.as_json() for window in run.windows()]}))
    else:
        print("| " + " | ".join(summary) + " |\n" + "|---" * len(summary) + "|")
        print("| " + " | ".join(str(value) for value in summary.values()) + " |")
    return 1 if summary["not_ok"] else 0


if __name__ == "__main__":
    sys.exit(main())
