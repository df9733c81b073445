# SPDX-License-Identifier: Apache-2.0
"""What administration costs, at size and beside requests: python -m bench.administration [--stores 10000] [--only PART]

start: from the start of the program until the last key of the last store is served, and the memory that takes. change: from the moment
a key is disabled or enabled by REST until every worker of the node does so. cost: CPU of a request with one store and with all of them,
alternating. beside: latency of 1,800 requests/s with and without somebody administering all the time, alternating. block: three
nodes over one PostgreSQL server, each at half of the load it could carry; from asking to the confirmation of all nodes, after which
each node is asked at once: none may serve.

All processes of all nodes share the server core, the load generator has the other one; only a part of "start" and of "beside" (see
beside.py) lets a node use both.
Every store has 10 `local` keys and 2 credentials.
"""

from __future__ import annotations

import argparse
import datetime
import http.client
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx

from bench.administered import LOAD_KEY, Bench, Node, Place, Size, check, large, running, running_together, store_name, tell
from bench.beside import beside
from bench.open_loop import Call, Generator, Load, Run, make_calls, quantile_of
from bench.postgres import PostgresServer
from bench.processes import CLIENT_CORE, SERVER_CORE, cpu_seconds, nginx
from bench.requests import encrypt_document, prove_encrypt
from bench.speed import NGINX_PORT, Row, closed, failed

RESULTS = Path(__file__).parent / "results"
STARTS = 3
START_FIGURE, NGINX_FIGURE = "s from the start to serving all, one core", "CPU us/request"
CHANGES = 40
ROUNDS = 4
BLOCKS_TIMES = 8  # rounds of the other parts
LEAST_BLOCKS = 30
BLOCK_STORES = 100
BOTH_CORES = f"{SERVER_CORE},{CLIENT_CORE}"
PROBE_KEY = "k1"  # what is changed; the load is on LOAD_KEY


def fill(bench: Bench) -> None:
    """Write the large state."""
    began = time.monotonic()
    bench.place.fill(bench.size)
    tell(f"{bench.size.stores:,} stores written in {time.monotonic() - began:.0f} s")


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
    rows[1].values = [round(quantile_of(visible, 0.9), 1)]
    rows[2].values = [round(statistics.median(answered), 1)]
    tell("  ".join(f"{row.figure} {row.value}" for row in rows))
    return rows


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
        figures, (len(took), statistics.median(took), quantile_of(took, 0.99), quantile_of(last, 0.99)), strict=True
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
