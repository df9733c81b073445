# SPDX-License-Identifier: Apache-2.0
"""What administration costs, at size and beside requests: python -m bench.administration [--stores 10000] [--only PART]

start: from the start of the program until the last key of the last store is served, and the memory that takes. change: from the moment
a key is disabled or enabled by REST until every worker of the node does so. cost: CPU of a request with one store and with all of them,
alternating. beside: latency of 1,800 requests/s with and without somebody administering all the time, alternating. block: three
nodes over one PostgreSQL server, each at half of the load it could carry; from asking to the confirmation of all nodes, after which
each node is asked at once: none may serve.

All processes of all nodes share the server core, the load generator has the other one; only one half of "start" lets the node use
both.
Every store has 10 `local` keys and 2 credentials.
"""

from __future__ import annotations

import argparse
import datetime
import http.client
import itertools
import json
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx

from bench.administered import Node, Place, Size, running, running_together, store_name
from bench.open_loop import Call, Generator, Load, Run, make_calls, quantile
from bench.postgres import PostgresServer
from bench.processes import CLIENT_CORE, SERVER_CORE, awake, cpu_seconds, nginx, stolen_seconds, threads
from bench.requests import encrypt_document, prove_encrypt
from bench.speed import NGINX_PORT, Row, closed, failed
from xksfast.native.schedule import set_slice
from xksfast.proxy.worker import SLICE_US

RESULTS = Path(__file__).parent / "results"
STARTS = 3
START_FIGURE, NGINX_FIGURE = "s from the start to serving all, one core", "CPU us/request"
CHANGES = 40
ROUNDS = 4
BESIDE_S = 1.0  # a run with or without administration; in longer ones the hypervisor takes something nearly always
BESIDE_ROUNDS, BESIDE_ROUNDS_AT_MOST = 30, 90
BESIDE_LEAST = 10  # runs that count
SETTLE_S = 15.0  # from the start of a node until its first local copy is written
STOLEN_AT_MOST = 0.03  # of the CPU, by the hypervisor
RATE = 1800  # requests/s: AWS's quota for one key store
ADMIN_PAUSE_S = 0.1  # between two calls of the one who administers: quicker than people are
BLOCKS_TIMES = 8  # rounds of the other parts
LEAST_BLOCKS = 30
BLOCK_STORES = 100
BOTH_CORES = f"{SERVER_CORE},{CLIENT_CORE}"
PROBE_KEY = "k1"  # what is changed; the load is on k0
LOAD_KEY = "k0"


@dataclass
class Bench:
    """size: of the large state. place: where it stands."""

    directory: Path
    generator: Generator
    seconds: float
    size: Size
    place: Place


def tell(text: str) -> None:
    """Progress."""
    print("        " + text, file=sys.stderr, flush=True)


def fill(bench: Bench) -> None:
    """Write the large state."""
    began = time.monotonic()
    bench.place.fill(bench.size)
    tell(f"{bench.size.stores:,} stores written in {time.monotonic() - began:.0f} s")


@contextmanager
def large(bench: Bench, *, workers: int = 1, cores: str = str(SERVER_CORE)) -> Iterator[Node]:
    """A node with the large state."""
    last = {"last_store": bench.size.stores - 1, "last_key": bench.size.keys_of_store - 1}
    with running(bench.place, workers=workers, cores=cores, **last) as node:
        yield node


def start(bench: Bench) -> list[Row]:
    """Seconds on one core and on both, alternating; MiB of a worker and of the process that administers."""
    name = f"{bench.size.stores:,} stores, {bench.size.keys:,} keys, {bench.size.credentials:,} credentials"
    one = Row(name, START_FIGURE, at_most=5)
    both = Row(name, "s from the start to serving all, both cores", at_most=5)
    worker = Row(name, "MiB of a worker", at_most=250)
    control = Row(name, "MiB of the control process")
    yardstick = Row("nginx return 200, between the starts", NGINX_FIGURE)
    for _ in range(STARTS):
        for ready, cores in ((one, str(SERVER_CORE)), (both, BOTH_CORES)):
            with large(bench, cores=cores) as node:
                ready.values.append(round(node.ready_s, 2))
                worker.values.append(round(node.worker_mib(), 1))
                control.values.append(round(node.control_mib(), 1))
                answer = prove_encrypt(node.target(), LOAD_KEY, encrypt_document())
                calls = make_calls(node.target(), [LOAD_KEY], {"encrypt": 1})
        yardstick.values.append(round(nginx_us(bench, answer, calls), 2))
        tell(
            f"ready in {one.values[-1]} s on one core, {both.values[-1]} s on both; "
            f"worker {worker.values[-1]} MiB, control {control.values[-1]} MiB; nginx {yardstick.values[-1]} us"
        )
    return [one, both, worker, control, yardstick]


@dataclass
class _Nginx:
    """As closed() wants it."""

    pid: int

    def cpu_seconds(self) -> float:
        """So far."""
        return cpu_seconds(self.pid)


def nginx_us(bench: Bench, answer: dict[str, str], calls: list[Call]) -> float:
    """How fast the machine is just now, on which seconds depend: what nginx takes for a fixed answer to the same requests."""
    url = f"http://127.0.0.1:{NGINX_PORT}"
    calls = [replace(call, target=replace(call.target, url=url), document=None) for call in calls]
    with nginx(NGINX_PORT, json.dumps(answer, separators=(",", ":")).encode()) as server:
        result = closed(bench, _Nginx(server.pid), calls, 32)
    check(result.failed)
    return result.cpu_us


class Watch:
    """A connection to each worker of a node, and what each of them says about one key, asked again and again."""

    def __init__(self, node: Node, workers: int) -> None:
        self._target = node.target()
        self._path = self._target.path(PROBE_KEY, "encrypt")
        self._body = json.dumps(encrypt_document()).encode()
        self._headers = self._target.sign(self._path, self._body)
        # The supervisor gives a connection to the worker that has the fewest, so each gets one.
        self._connections = [http.client.HTTPConnection(self._target.url.removeprefix("http://")) for _ in range(workers)]
        for connection in self._connections:
            connection.connect()
            assert self._ask(connection) == 200

    def _ask(self, connection: http.client.HTTPConnection) -> int:
        connection.request("POST", self._path, self._body, self._headers)
        answer = connection.getresponse()
        answer.read()
        return answer.status

    def until(self, served: bool) -> float:
        """The moment (time.monotonic) at which the last worker served the key, or did not serve it any more."""
        waiting = list(self._connections)
        while waiting:
            waiting = [connection for connection in waiting if (self._ask(connection) == 200) is not served]
        return time.monotonic()

    def close(self) -> None:
        """All connections."""
        for connection in self._connections:
            connection.close()


def change(bench: Bench) -> list[Row]:
    """Milliseconds until a change is served by every worker."""
    name = f"one change among {bench.size.keys:,} keys, 2 workers"
    rows = [
        Row(name, "ms from asking to being served by all, median", at_most=50),
        Row(name, "ms from asking to being served by all, p90"),
        Row(name, "ms from asking to the answer, median"),
    ]
    visible, answered = [], []
    with large(bench, workers=2) as node, node.client() as client, ThreadPoolExecutor(1) as pool:
        watch = Watch(node, len(node.workers))

        def ask(action: str, asked: float) -> float:
            client.post(f"/v1/stores/s0/keys/{PROBE_KEY}/{action}").raise_for_status()
            return (time.monotonic() - asked) * 1000

        for action in itertools.islice(itertools.cycle(("disable", "enable")), CHANGES):
            asked = time.monotonic()
            answer = pool.submit(ask, action, asked)
            visible.append((watch.until(served=action == "enable") - asked) * 1000)
            answered.append(answer.result())
        watch.close()
    rows[0].values = [round(statistics.median(visible), 1)]
    rows[1].values = [round(_quantile(visible, 0.9), 1)]
    rows[2].values = [round(statistics.median(answered), 1)]
    tell("  ".join(f"{row.figure} {row.value}" for row in rows))
    return rows


def check(wrong: int) -> None:
    """RuntimeError unless every request was answered rightly."""
    if wrong:
        raise RuntimeError(f"{wrong} requests were not answered rightly")


def cost(bench: Bench) -> list[Row]:
    """CPU of a request by the size of the state."""
    alone, among = Row("1 store, 1 key asked for", "CPU us/request"), Row("all stores, 1 key asked for", "CPU us/request")
    ratio = Row("all stores against 1", "ratio of CPU/request", at_most=1.10)
    small = Place.new(bench.directory / "small")
    small.fill(Size(1, 1))
    with running(small) as one, large(bench) as many:
        pairs = [
            (row, node, make_calls(node.target(), [LOAD_KEY], {"encrypt": 1})) for row, node in ((alone, one), (among, many))
        ]
        for _ in range(ROUNDS):
            for row, node, calls in pairs:
                result = closed(bench, node, calls, 32)
                check(result.failed)
                row.values.append(round(result.cpu_us, 2))
            tell(f"1 store {alone.values[-1]} us, all {among.values[-1]} us")
    ratio.values = [round(statistics.median(a / b for a, b in zip(among.values, alone.values, strict=True)), 3)]
    return [alone, among, ratio]


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
            if stop.wait(ADMIN_PAUSE_S):
                return calls
            client.request(method, path, json=body).raise_for_status()
            calls += 1
    return calls


@dataclass(frozen=True)
class _Beside:
    """A case of `beside`. busy: somebody administers. ordinary: the worker has the kernel's own slices, else those that it asks for."""

    busy: bool
    ordinary: bool


_AS_IT_IS = (_Beside(busy=False, ordinary=False), _Beside(busy=True, ordinary=False))
_ORDINARY = (_Beside(busy=False, ordinary=True), _Beside(busy=True, ordinary=True))


def beside(bench: Bench) -> list[Row]:
    """p99 with and without administration, which shares the worker's core: the hardest case.

    Many short runs that alternate, and the latencies of all of a case together. In a virtual machine p99 wanders by a factor of ten
    with what the hypervisor takes, so the cores are kept awake, and a run in which it was more than STOLEN_AT_MOST of the CPU is in the
    rows of "all runs" only; rounds go on until enough runs of each case count. For comparison the same without short slices of the
    worker. The process that administers is not nice: with that, blocks took four times as long on busy cores.
    """
    load = Load(RATE, BESIDE_S, "poisson", 64, spin=False)
    cases = _AS_IT_IS + _ORDINARY
    all_runs, quiet_runs = ({case: list[list[float]]() for case in cases} for _ in range(2))
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
            assert count >= BESIDE_S * 2, "nobody administered"
            pace.append(round(count / load.seconds, 1))
            return run

        for number in range(BESIDE_ROUNDS_AT_MOST):
            if number >= BESIDE_ROUNDS and min(map(len, quiet_runs.values())) >= BESIDE_LEAST:
                break
            calls = make_calls(node.target(), [LOAD_KEY], {"encrypt": 1})
            for case in cases if number % 2 == 0 else reversed(cases):
                _schedule(node, ordinary=case.ordinary)
                before, began = stolen_seconds(), time.monotonic()
                run = administered(calls) if case.busy else bench.generator.run(calls, load)
                check(failed(run))
                stolen = (stolen_seconds() - before) / (time.monotonic() - began) / len((SERVER_CORE, CLIENT_CORE))
                all_runs[case].append(run.latencies_ms())
                if stolen <= STOLEN_AT_MOST:
                    quiet_runs[case].append(run.latencies_ms())
            tell(f"round {number + 1}: of the runs of each case, {[len(runs) for runs in quiet_runs.values()]} count")
    rows = _rows_beside("", quiet_runs)
    figure = "share of the runs that count, in which the hypervisor took little"
    share = sum(map(len, quiet_runs.values())) / sum(map(len, all_runs.values()))
    rows.append(Row(f"{RATE:,} requests/s beside administration", "calls of administration/s", values=pace))
    rows.append(Row("administration against none", figure, values=[round(share, 2)]))
    return rows + _rows_beside(", all runs", all_runs)


def _give_way() -> None:
    """This thread to the generator, beside which it belongs."""
    os.nice(10)
    os.sched_setaffinity(0, {CLIENT_CORE})


def _schedule(node: Node, *, ordinary: bool) -> None:
    """Take from the worker's threads the short slices that they have asked the kernel for, or give them back."""
    for worker in node.workers:
        for thread in threads(worker):
            set_slice(0 if ordinary else SLICE_US, thread)


def _rows_beside(which: str, runs: dict[_Beside, list[list[float]]]) -> list[Row]:
    """p99 of all requests of a case together, and how much administration moves it. Nothing without enough runs."""
    if min(map(len, runs.values())) < BESIDE_LEAST:
        tell(f"too few runs count{which}: there is nothing to compare")
        return []
    p99 = {case: _quantile([ms for run in of_case for ms in run], 0.99) for case, of_case in runs.items()}
    rows = []
    for (quiet, busy), how in ((_AS_IT_IS, ""), (_ORDINARY, ", the kernel's own slices")):
        goal = 1.10 if not how and not which else None
        rows += [
            Row(f"{RATE:,} requests/s, nobody administers{how}", f"p99 ms{which}", values=[round(p99[quiet], 3)]),
            Row(f"{RATE:,} requests/s beside administration{how}", f"p99 ms{which}", values=[round(p99[busy], 3)]),
            Row(f"administration against none{how}", f"ratio of p99{which}", goal, values=[round(p99[busy] / p99[quiet], 3)]),
        ]
    return rows


def block(bench: Bench) -> list[Row]:
    """Milliseconds until all of three nodes have confirmed a block, under load."""
    name = "block, 3 nodes, PostgreSQL, half load"
    server = PostgresServer()
    try:
        server.start()
        place = Place.new(bench.directory / "three", server.database())
        place.fill(Size(BLOCK_STORES))
        with running_together(place, ("n1", "n2", "n3")) as nodes, nodes[0].client() as client:
            return _block_under_load(bench, name, nodes, client)
    finally:
        server.close()


def _block_under_load(bench: Bench, name: str, nodes: list[Node], client: httpx.Client) -> list[Row]:
    loads = []
    for node in nodes:
        directory = bench.directory / f"load-{node.name}"
        directory.mkdir()
        loads.append((Generator(directory), make_calls(node.target(), [LOAD_KEY], {"encrypt": 1})))
    full = _together(loads, Load(0, bench.seconds, "closed", 16, 16))
    rate = min(len(run.done) / bench.seconds for run in full) / 2
    tell(f"{rate:,.0f} requests/s to each node, half of what each does while the others do as much")
    took: list[float] = []
    last: list[float] = []  # of what the nodes said, the slowest one

    def block_one_after_the_other(start_ns: int) -> None:
        ends = start_ns / 1e9 + bench.seconds * BLOCKS_TIMES - 2
        for number in range(BLOCK_STORES * (Size(1).keys_of_store - 1)):
            if time.monotonic() > ends:
                return
            store, key = number % BLOCK_STORES, f"k{1 + number // BLOCK_STORES}"  # k0 has the load
            began = time.monotonic()
            answer = client.post(f"/v1/stores/{store_name(store)}/keys/{key}/block", json={"reason": "bench"})
            took.append((time.monotonic() - began) * 1000)
            answer.raise_for_status()
            said = answer.json()
            assert len(said["confirmed"]) == len(nodes), said
            last.append(max(node["ms"] for node in said["confirmed"]))
            for node in nodes:
                target = node.target(store)
                status, _ = target.post(target.path(key, "encrypt"), encrypt_document())
                assert status != 200, "a key was served after its block was confirmed"

    for run in _together(loads, Load(rate, bench.seconds * BLOCKS_TIMES, "poisson", 32), block_one_after_the_other):
        check(failed(run))
    assert len(took) >= LEAST_BLOCKS, f"only {len(took)} blocks in the time there was"
    figures = [
        Row(name, "blocks"),
        Row(name, "ms from asking to the answer, median"),
        Row(name, "ms from asking to the answer, p99", at_most=1000),
        Row(name, "ms until the slowest node confirmed, as it says, p99"),
    ]
    for row, value in zip(
        figures, (len(took), statistics.median(took), _quantile(took, 0.99), _quantile(last, 0.99)), strict=True
    ):
        row.values = [round(value, 1)]
    tell("  ".join(f"{row.figure} {row.value}" for row in figures))
    return figures


def _together(loads: list[tuple[Generator, list[Call]]], load: Load, during: Callable[[int], None] | None = None) -> list[Run]:
    """The same load on several nodes at the same time."""
    with ThreadPoolExecutor(len(loads)) as pool:
        first, *others = loads
        running = [pool.submit(generator.run, calls, load) for generator, calls in others]
        return [first[0].run(first[1], load, during), *(future.result() for future in running)]


def _quantile(values: list[float], q: float) -> float:
    value = quantile(sorted(values), q)
    assert value is not None
    return value


PARTS: dict[str, Callable[[Bench], list[Row]]] = {
    "start": start, "change": change, "cost": cost, "beside": beside, "block": block,
}  # fmt: skip


def main() -> int:
    """Measure and print; 1 when a goal was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stores", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--only", choices=tuple(PARTS))
    options = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / "administration.json"
    document: dict[str, Any] = json.loads(file.read_text()) if options.only and file.exists() else {}
    with TemporaryDirectory(prefix="xksfast-bench-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as name:
        directory = Path(name)
        bench = Bench(directory, Generator(directory), options.seconds, Size(options.stores), Place.new(directory / "large"))
        if options.only != "block":
            fill(bench)
        for part, measure in PARTS.items():
            if options.only in (None, part):
                print(part, file=sys.stderr, flush=True)
                document[part] = [row.as_json() for row in measure(bench)]
                document["stores"], document["seconds"] = options.stores, options.seconds
                document["date"] = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
                file.write_text(json.dumps(document, indent=1))
    rows = [row for part in PARTS for row in document.get(part, [])]
    print("| case | figure | measured | at most | held |\n|---|---|---|---|---|")
    for row in rows:
        print(f"| {row['case']} | {row['figure']} | {row['value']:g} | {row['at_most'] or ''} | {row['held']} |")
    return 1 if any(row["held"] is False for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
