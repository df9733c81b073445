# SPDX-License-Identifier: Apache-2.0
"""p99 of requests with and without somebody administering all the time; a part of bench.administration.

The worker has a core for itself, and the process that administers may use another one, as on any machine with two; then, the hardest
case, both share one core, with the worker's short slices and with the kernel's own. Whatever sends and administers stands for other
machines: the load generator goes before all others, the one who administers after all others. The process that administers is not
nice: with that, blocks took four times as long on busy cores.

Runs are short and alternate, and the latencies of all of a case are taken together. In a virtual machine p99 wanders by a factor of ten
with what the hypervisor takes, so the cores are kept awake, and a run in which it was more than STOLEN_AT_MOST of the CPU is in the
rows of "all runs" only; rounds go on until enough runs of each case count.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import httpx

from bench.administered import LOAD_KEY, Bench, Node, check, large, tell
from bench.open_loop import Call, Load, Run, make_calls, quantile_of
from bench.processes import CLIENT_CORE, SERVER_CORE, awake, stolen_seconds, threads
from bench.speed import Row, failed
from xksfast.native.schedule import SHORTEST_US, set_slice

RUN_S = 1.0  # a run with or without administration; in longer ones the hypervisor takes something nearly always
ROUNDS, ROUNDS_AT_MOST = 30, 90
LEAST_RUNS = 10  # runs that count
SETTLE_S = 15.0  # from the start of a node until its first local copy is written
STOLEN_AT_MOST = 0.03  # of the CPU, by the hypervisor
RATE = 1800  # requests/s: AWS's quota for one key store
AT_MOST = 1.10  # times the p99 without administration
PAUSE_S = 0.1  # between two calls of the one who administers: quicker than people are


def administer(client: httpx.Client, stop: threading.Event, numbers: Iterator[int]) -> int:
    """What somebody does all day: keys made, changed, listed and deleted in a store that nobody asks for; how many calls it were.

    numbers: of the keys, none of them twice.
    """
    calls = 0
    for number in numbers:
        key = f"bench-{number}"
        for method, path, body in (
            ("POST", "/v1/stores/s1/keys", {"external_key_id": key}),
            ("POST", f"/v1/stores/s1/keys/{key}/disable", None),
            ("GET", "/v1/stores?limit=100", None),
            ("POST", f"/v1/stores/s1/keys/{key}/enable", None),
            ("GET", "/v1/stores/s1/keys", None),
            ("POST", f"/v1/stores/s1/keys/{key}/disable", None),
            ("DELETE", f"/v1/stores/s1/keys/{key}", None),
        ):
            if stop.wait(PAUSE_S):
                return calls
            client.request(method, path, json=body).raise_for_status()
            calls += 1
    return calls


class _Case(NamedTuple):
    """apart: administration may use the other core. ordinary: the worker has the kernel's own slices. busy: somebody administers."""

    apart: bool
    ordinary: bool
    busy: bool


# What each case is called, whether administration is held to a goal there.
_SETTINGS = {
    (True, False): ("two cores", AT_MOST),
    (False, False): ("one core for both", AT_MOST),
    (False, True): ("one core for both, the kernel's own slices", None),
}
_CASES = [_Case(*setting, busy) for setting in _SETTINGS for busy in (False, True)]


def beside(bench: Bench) -> list[Row]:
    """See above."""
    load = Load(RATE, RUN_S, "poisson", 64, spin=False)
    all_runs, quiet_runs = ({case: list[list[float]]() for case in _CASES} for _ in range(2))
    numbers = itertools.count()
    pace: list[float] = []
    with (
        awake(),
        large(bench) as node,
        node.client() as client,
        ThreadPoolExecutor(1, initializer=_give_way) as pool,
    ):
        time.sleep(SETTLE_S)

        def administered(calls: list[Call]) -> Run:
            stop = threading.Event()
            administration = pool.submit(administer, client, stop, numbers)
            try:
                run = bench.generator.run(calls, load)
            finally:
                stop.set()
            count = administration.result()
            assert count >= RUN_S * 2, "nobody administered"
            pace.append(round(count / load.seconds, 1))
            return run

        for number in range(ROUNDS_AT_MOST):
            if number >= ROUNDS and min(map(len, quiet_runs.values())) >= LEAST_RUNS:
                break
            calls = make_calls(node.target(), [LOAD_KEY], {"encrypt": 1})
            for case in _CASES if number % 2 == 0 else reversed(_CASES):
                _arrange(node, case)
                before, began = stolen_seconds(), time.monotonic()
                run = administered(calls) if case.busy else bench.generator.run(calls, load)
                check(failed(run))
                stolen = (stolen_seconds() - before) / (time.monotonic() - began) / len((SERVER_CORE, CLIENT_CORE))
                all_runs[case].append(run.latencies_ms())
                if stolen <= STOLEN_AT_MOST:
                    quiet_runs[case].append(run.latencies_ms())
            tell(f"round {number + 1}: of the runs of each case, {[len(runs) for runs in quiet_runs.values()]} count")
    rows = _rows("", quiet_runs)
    figure = "share of the runs that count, in which the hypervisor took little"
    share = sum(map(len, quiet_runs.values())) / sum(map(len, all_runs.values()))
    rows.append(Row(f"{RATE:,} requests/s beside administration", "calls of administration/s", values=pace))
    rows.append(Row("administration against none", figure, values=[round(share, 2)]))
    return rows + _rows(", all runs", all_runs)


def _give_way() -> None:
    """This thread to the generator, beside which it belongs."""
    os.nice(10)
    os.sched_setaffinity(0, {CLIENT_CORE})


def _arrange(node: Node, case: _Case) -> None:
    """Who may use which core; and take from the worker's threads the short slices that they asked the kernel for, or give them back."""
    for thread in threads(node.control):
        os.sched_setaffinity(thread, {SERVER_CORE, CLIENT_CORE} if case.apart else {SERVER_CORE})
    for worker in node.workers:
        for thread in threads(worker):
            set_slice(0 if case.ordinary else SHORTEST_US, thread)


def _rows(which: str, runs: dict[_Case, list[list[float]]]) -> list[Row]:
    """p99 of all requests of a case together, and how much administration moves it. Nothing without enough runs."""
    if min(map(len, runs.values())) < LEAST_RUNS:
        tell(f"too few runs count{which}: there is nothing to compare")
        return []
    p99 = {case: quantile_of([ms for run in of_case for ms in run], 0.99) for case, of_case in runs.items()}
    rows = []
    for setting, (name, at_most) in _SETTINGS.items():
        quiet, busy = (p99[_Case(*setting, busy)] for busy in (False, True))
        rows += [
            Row(f"{RATE:,} requests/s, nobody administers, {name}", f"p99 ms{which}", values=[round(quiet, 3)]),
            Row(f"{RATE:,} requests/s beside administration, {name}", f"p99 ms{which}", values=[round(busy, 3)]),
            Row(
                f"administration against none, {name}", f"ratio of p99{which}",
                None if which else at_most, values=[round(busy / quiet, 3)],
            ),
        ]  # fmt: skip
    return rows
