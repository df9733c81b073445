# SPDX-License-Identifier: Apache-2.0
"""The speed table, goal and verdict beside each figure: python -m bench.speed [--seconds 4] [--rounds 3] [--only WORD]

Server on core 0, load generator (bench/open_loop.c) on core 1, HTTP over loopback, Encrypt of 48 bytes with 64 bytes of AAD.
Partitions are virtual slots of the fault shim over NSS softoken unless said otherwise. "closed": as many requests at a time as there
are connections, for capacity and CPU; "open": Poisson arrivals, latency from the moment a request was due. All cases of a round run one
after the other, so that a busy moment of a shared machine hits all; the table has medians. bench/results/speed.json keeps every round.

CPU per request is the worker's with all its threads; "requests/s per core" is its inverse, since the server has one core at most.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

from bench.fleet import Fleet, Plan, serving
from bench.open_loop import Call, Generator, Load, Run, make_calls, quantile
from bench.processes import nginx
from bench.requests import encrypt_document, prove_encrypt
from bench.tokens import Token, bare_loop, compile_with_product, make_token
from xksfast.rehearsal.control import FaultControl, shim_path
from xksfast.rehearsal.latency import fixed_ms

RESULTS = Path(__file__).parent / "results"
NAN = math.nan
NGINX_PORT = 18181
FAILED = "requests not answered rightly"


@dataclass
class Row:
    """One figure of the table. at_most/at_least: the goal; neither: told for comparison."""

    case: str
    figure: str
    at_most: float | None = None
    at_least: float | None = None
    values: list[float] = field(default_factory=list)

    @property
    def value(self) -> float:
        return statistics.median(self.values)

    @property
    def held(self) -> bool | None:
        if (self.at_most is None and self.at_least is None) or math.isnan(self.value):
            return None
        return self.value <= self.at_most if self.at_most is not None else self.value >= (self.at_least or 0)

    def as_json(self) -> dict[str, object]:
        return {
            "case": self.case, "figure": self.figure, "value": self.value, "at_most": self.at_most, "at_least": self.at_least,
            "held": self.held, "rounds": self.values,
        }  # fmt: skip


@dataclass
class Bench:
    """What the cases share."""

    directory: Path
    generator: Generator
    seconds: float
    program: Path


@dataclass
class Closed:
    """A closed loop: requests per second, CPU of the worker per request in us, requests that were not answered rightly."""

    rps: float
    cpu_us: float
    failed: int


class Loader(Protocol):
    """Who sends, and for how long."""

    generator: Generator
    seconds: float


class Loaded(Protocol):
    """Who answers."""

    def cpu_seconds(self) -> float:
        """Of the workers and their threads, so far."""


def closed(bench: Loader, fleet: Loaded, calls: list[Call], connections: int) -> Closed:
    """Keep `connections` requests on the way."""
    seconds, marks = bench.seconds, []

    def watch(start_ns: int) -> None:
        for at_s in (seconds * 0.1, seconds * 0.95):
            time.sleep(max(0.0, at_s - (time.monotonic_ns() - start_ns) / 1e9))
            marks.append((time.monotonic_ns(), fleet.cpu_seconds()))

    load = Load(0, seconds, "closed", connections, connections, spin=True)
    run = bench.generator.run(calls, load, watch)
    (began_ns, cpu_before), (ended_ns, cpu_after) = marks
    count = sum(1 for done in run.done if began_ns <= done < ended_ns)
    return Closed(count / (ended_ns - began_ns) * 1e9, (cpu_after - cpu_before) / count * 1e6, failed(run))


def opened(bench: Bench, fleet: Fleet, calls: list[Call], rate: float, *, warm: int = 64) -> Run:
    """Poisson arrivals; the first second does not count: it is a run of its own."""
    load = Load(rate, bench.seconds, "poisson", warm, spin=True)
    bench.generator.run(calls, replace(load, seconds=1.0))
    return bench.generator.run(calls, load)


def failed(run: Run) -> int:
    """Requests that were not answered rightly."""
    return len(run.due) - run.statuses()["ok"]


def _ms(run: Run, q: float) -> float:
    value = quantile(run.latencies_ms(), q)
    return NAN if value is None else value


Case = Callable[[], Iterator[tuple[Row, float]]]


def _no_latency(bench: Bench, stack: ExitStack, token: Token) -> Iterator[Case]:
    fleet = stack.enter_context(serving(Plan(sessions=16), token, bench.directory / "no-latency"))
    calls = make_calls(fleet.target(), fleet.key_ids(), {"encrypt": 1})
    name = "one partition, 0 ms"
    rows = {
        (connections, figure): Row(f"{name}, {connections} connections", figure, *goal)
        for connections in (32, 64)
        for figure, goal in (
            ("CPU us/request", (16.0, None)), ("requests/s per core", (None, 60_000.0)), ("requests/s", (None, None)),
            (FAILED, (0.0, None)),
        )
    }  # fmt: skip

    def case() -> Iterator[tuple[Row, float]]:
        for connections in (32, 64):
            result = closed(bench, fleet, calls, connections)
            yield rows[connections, "CPU us/request"], result.cpu_us
            yield rows[connections, "requests/s per core"], 1e6 / result.cpu_us
            yield rows[connections, "requests/s"], result.rps
            yield rows[connections, FAILED], result.failed

    yield case


def _softhsm(bench: Bench, stack: ExitStack, _: Token) -> Iterator[Case]:
    for keys in (1, 200):
        token = make_token("softhsm", bench.directory / f"softhsm-{keys}", keys, bench.program)
        fleet = stack.enter_context(serving(Plan(keys=keys, shim=False), token, bench.directory / f"serve-softhsm-{keys}"))
        calls = make_calls(fleet.target(), fleet.key_ids(), {"encrypt": 1})
        name = f"SoftHSM2, {keys} key{'s' if keys > 1 else ''}"
        per_core = Row(name, "requests/s per core", None, 40_000.0)
        cpu, rps = Row(name, "CPU us/request"), Row(name, "requests/s")
        bare, alone_cpu = (
            Row(name, "the token's own calls in a bare loop, one thread, ops/s"),
            Row(name, "CPU of a bare call, us"),
        )
        wrong = Row(name, FAILED, 0.0)

        def case(
            fleet: Fleet = fleet, calls: list[Call] = calls, keys: int = keys, token: Token = token,
            rows: tuple[Row, ...] = (per_core, cpu, rps, bare, alone_cpu, wrong),
        ) -> Iterator[tuple[Row, float]]:  # fmt: skip
            result = closed(bench, fleet, calls, 32)
            alone = bare_loop(token, bench.program, keys=keys, seconds=max(1.0, bench.seconds / 4))
            figures = (1e6 / result.cpu_us, result.cpu_us, result.rps, alone.ops_per_s, alone.cpu_us, result.failed)
            yield from zip(rows, figures, strict=True)

        yield case


def _round_trip(bench: Bench, stack: ExitStack, token: Token) -> Iterator[Case]:
    for ms, connections, rate, least_rps, most_p99 in ((1.0, 128, 10_000, 20_000.0, 5.0), (20.0, 96, 1_800, 2_900.0, 45.0)):
        fleet = stack.enter_context(serving(Plan(sessions=64), token, bench.directory / f"round-trip-{ms}"))
        assert fleet.control is not None
        calls = make_calls(fleet.target(), fleet.key_ids(), {"encrypt": 1})
        fleet.control.slot(0).latency(fixed_ms(ms))
        name = f"{ms:.0f} ms round trip, 64 sessions"
        rows = (
            Row(name, "requests/s, closed", None, least_rps), Row(name, "CPU us/request"),
            Row(name, f"p99 ms at {rate:,}/s, open", most_p99), Row(name, f"p50 ms at {rate:,}/s, open"),
            Row(name, FAILED, 0.0),
        )  # fmt: skip

        def case(
            fleet: Fleet = fleet,
            calls: list[Call] = calls,
            rows: tuple[Row, ...] = rows,
            rate: int = rate,
            many: int = connections,
        ) -> Iterator[tuple[Row, float]]:
            result = closed(bench, fleet, calls, many)
            run = opened(bench, fleet, calls, rate)
            figures = (result.rps, result.cpu_us, _ms(run, 0.99), _ms(run, 0.5), result.failed + failed(run))
            yield from zip(rows, figures, strict=True)

        yield case


def _four_servers(bench: Bench, stack: ExitStack, token: Token) -> Iterator[Case]:
    """At 4 ms a call the server's core is idle most of the time: what is slow then is a decision, not the machine."""
    for ms in (1.0, 4.0):
        fleet = stack.enter_context(serving(Plan(sessions=64), token, bench.directory / f"four-servers-{ms}"))
        assert fleet.control is not None
        calls = make_calls(fleet.target(), fleet.key_ids(), {"encrypt": 1})
        fleet.control.slot(0).latency(fixed_ms(ms)).servers(4)
        limit = 4000.0 / ms
        name = f"HSM with 4 servers of {ms:.0f} ms (limit {limit:,.0f}/s)"
        rows = (
            Row(name, "of the limit, closed, 64 connections", None, 0.95), Row(name, "goodput of the limit at 130 %, open", None, 0.95),
            Row(name, "p99 ms of what was admitted at 130 %", 200.0), Row(name, "p99 ms of refusals at 130 %", 5.0),
            Row(name, "refused or late at 130 %, share"), Row(name, "share of the server's core at 130 %"),
        )  # fmt: skip

        def case(
            fleet: Fleet = fleet, calls: list[Call] = calls, limit: float = limit, rows: tuple[Row, ...] = rows
        ) -> Iterator[tuple[Row, float]]:
            result = closed(bench, fleet, calls, 64)
            cpu_before, began = fleet.cpu_seconds(), time.monotonic()
            run = opened(bench, fleet, calls, 1.3 * limit, warm=256)
            busy = (fleet.cpu_seconds() - cpu_before) / (time.monotonic() - began)
            windows = run.windows()
            goodput = sum(window.finished_ok for window in windows) / (len(windows) * 0.1)
            refusal = quantile(run.refusal_ms(), 0.99)
            refused = 1 - run.statuses()["ok"] / len(run.due)
            figures = (result.rps / limit, goodput / limit, _ms(run, 0.99), NAN if refusal is None else refusal, refused, busy)
            yield from zip(rows, figures, strict=True)

        yield case


def _added_latency(bench: Bench, stack: ExitStack, token: Token) -> Iterator[Case]:
    """The same rate of the same calls: through the proxy, and by threads that do nothing else, one after the other in each round.

    The same requests for a `local` key tell how much of it is the way through sockets and event loop, how much the engine's; the same
    answered by nginx, how much is the machine's.
    """
    fleet = stack.enter_context(serving(Plan(sessions=64), token, bench.directory / "added-latency"))
    assert fleet.control is not None
    calls = make_calls(fleet.target(), fleet.key_ids(), {"encrypt": 1})
    fleet.control.slot(0).latency(fixed_ms(1))
    alone = stack.enter_context(FaultControl.create(bench.directory / "alone", slots=1))
    alone.slot(0).named("p0", real_label=token.label).latency(fixed_ms(1))
    behind = replace(token, module=str(shim_path()), label="p0", environment=alone.environment(token.module))
    local = stack.enter_context(serving(Plan(partitions=0), token, bench.directory / "no-engine"))
    local_calls = make_calls(local.target(), local.key_ids(), {"encrypt": 1})
    answer = prove_encrypt(local.target(), local.key_ids()[0], encrypt_document())
    stack.enter_context(nginx(NGINX_PORT, json.dumps(answer, separators=(",", ":")).encode()))
    yardstick = replace(local.target(), url=f"http://127.0.0.1:{NGINX_PORT}")
    nginx_calls = [replace(call, target=yardstick, document=None) for call in local_calls]
    name = "latency added to a 1 ms call at 1,800/s, open"
    rows = (
        Row(name, "p50 us", 80.0), Row(name, "p99 us", 400.0), Row(name, "through HTTP, p50 us"), Row(name, "through HTTP, p99 us"),
        Row(name, "through HTTP with a local key, p50 us"), Row(name, "through HTTP with a local key, p99 us"),
        Row(name, "nginx, p50 us"), Row(name, "nginx, p99 us"),
        Row(name, "the bare call, p50 us"), Row(name, "the bare call, p99 us"), Row(name, "lateness of the generator, p99 us"),
        Row(name, FAILED, 0.0),
    )  # fmt: skip

    def case() -> Iterator[tuple[Row, float]]:
        run = opened(bench, fleet, calls, 1800)
        inline = opened(bench, local, local_calls, 1800)
        outside = opened(bench, local, nginx_calls, 1800)
        bare = bare_loop(behind, bench.program, threads=16, seconds=bench.seconds, rate=1800)
        p50, p99, late = _ms(run, 0.5) * 1000, _ms(run, 0.99) * 1000, quantile(run.lateness_ms(), 0.99)
        figures = (
            p50 - bare.p50_us,
            p99 - bare.p99_us,
            p50,
            p99,
            _ms(inline, 0.5) * 1000,
            _ms(inline, 0.99) * 1000,
            _ms(outside, 0.5) * 1000,
            _ms(outside, 0.99) * 1000,
            bare.p50_us,
            bare.p99_us,
            NAN if late is None else late * 1000,
            failed(run) + failed(inline),
        )
        yield from zip(rows, figures, strict=True)

    yield case


GROUPS = {
    "no latency": _no_latency,
    "softhsm": _softhsm,
    "round trip": _round_trip,
    "four servers": _four_servers,
    "added latency": _added_latency,
}


def router_row() -> Row | None:
    """What bench.micro_router says of a decision over 16 partitions; None where it is not there."""
    if importlib.util.find_spec("bench.micro_router") is None:
        return None
    subprocess.run([sys.executable, "-m", "bench.micro_router"], check=False, stdout=subprocess.DEVNULL)
    row = Row("routing over 16 partitions", "ns per decision", 300.0)
    row.values = [float(value) for value in json.loads((RESULTS / "micro_router.json").read_text())["decision_of_16"]]
    return row


def print_table(rows: list[Row]) -> None:
    print("| case | figure | measured | goal | held |\n|---|---|---|---|---|")
    for row in rows:
        goal = (
            f"<= {row.at_most:,g}" if row.at_most is not None else f">= {row.at_least:,g}" if row.at_least is not None else ""
        )
        held = "" if row.held is None else "yes" if row.held else "**NO**"
        print(f"| {row.case} | {row.figure} | {row.value:,.4g} | {goal} | {held} |")


def main() -> int:
    """Measure and print; 0 also when a goal was missed: the table says so."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help=f"one of {', '.join(GROUPS)}")
    options = parser.parse_args()
    rows: dict[int, Row] = {}
    with TemporaryDirectory(prefix="xksfast-bench-") as name, ExitStack() as stack:
        directory, program = Path(name), compile_with_product("token.c")
        bench = Bench(directory, Generator(directory), options.seconds, program)
        token = make_token("nss", directory / "nss-token", 1, program)
        cases = [case for key, group in GROUPS.items() if options.only in key for case in group(bench, stack, token)]
        for number in range(options.rounds):
            for case in cases:
                for row, value in case():
                    rows.setdefault(id(row), row).values.append(value)
                    print(
                        f"round {number + 1}/{options.rounds}  {row.case}: {row.figure}  {value:,.4g}",
                        file=sys.stderr,
                        flush=True,
                    )
    found = list(rows.values())
    router = router_row() if not options.only else None
    found += [router] if router is not None else []
    print_table(found)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "speed.json").write_text(
        json.dumps({"seconds": options.seconds, "rounds": options.rounds, "rows": [row.as_json() for row in found]}, indent=1)
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
