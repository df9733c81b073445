# SPDX-License-Identifier: Apache-2.0
"""How throughput and CPU grow: python -m bench.scaling [--seconds 1.5] [--only sessions|partitions|keys|stores]

sessions: 1 to 128 with calls of 0.1, 1, 5 and 20 ms, beside what so many sessions could do at most. partitions: 1 to 16 HSMs of
4 servers of 1 ms. keys: 1 to 10,000 on the token and 100,000 external key ids, requests spread over 200 of them. stores: 1 to 10,000
with `local` keys, requests spread over 200. All by closed loops, so CPU per request is the figure that holds on a shared machine; a
look-up that cost more with more keys would show in it. NSS makes keys at 2.4 ms of CPU each, so beyond 10,000 several external key ids
share a key on the token: the proxy's tables are as long, the token's are not. Every kind of request is proved right before it is timed.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench.fleet import Plan, serving
from bench.open_loop import Call, Generator, make_calls
from bench.speed import Bench, closed
from bench.tokens import compile_with_product, make_token
from xksfast.rehearsal.latency import fixed_ms

RESULTS = Path(__file__).parent / "results"
SESSIONS = (1, 2, 4, 8, 16, 32, 64, 128)
CALLS_MS = (0.1, 1.0, 5.0, 20.0)
PARTITIONS = (1, 2, 4, 8, 16)
KEYS = (1, 100, 1_000, 10_000, 100_000)
STORES = (1, 10, 100, 1_000, 10_000)
MOST_TOKEN_KEYS = 10_000
SPREAD = 200  # different keys or stores that requests are for

Row = dict[str, Any]


def _tell(row: Row) -> Row:
    print("        " + "  ".join(f"{name} {value}" for name, value in row.items()), file=sys.stderr, flush=True)
    return row


def sessions(bench: Bench) -> list[Row]:
    """Requests per second and CPU per request by sessions and call time. limit_rps: sessions / call time."""
    token = make_token("nss", bench.directory / "nss-sessions", 1, bench.program)
    rows = []
    for count in SESSIONS:
        with serving(Plan(sessions=count), token, bench.directory / f"sessions-{count}") as fleet:
            assert fleet.control is not None
            calls = make_calls(fleet.target(), fleet.key_ids(), {"encrypt": 1})
            for ms in CALLS_MS:
                fleet.control.slot(0).latency(fixed_ms(ms))
                result = closed(bench, fleet, calls, max(8, count + count // 2))
                rows.append(
                    _tell(
                        {
                            "sessions": count,
                            "call_ms": ms,
                            "rps": round(result.rps),
                            "limit_rps": round(count * 1000 / ms),
                            "cpu_us": round(result.cpu_us, 2),
                            "failed": result.failed,
                        }
                    )
                )
    return rows


def partitions(bench: Bench) -> list[Row]:
    """Requests per second by partitions, each with 4 servers of 1 ms and 16 sessions."""
    token = make_token("nss", bench.directory / "nss-partitions", 1, bench.program)
    rows = []
    for count in PARTITIONS:
        with serving(Plan(partitions=count), token, bench.directory / f"partitions-{count}") as fleet:
            assert fleet.control is not None
            for slot in fleet.control.slots():
                slot.latency(fixed_ms(1)).servers(4)
            calls = make_calls(fleet.target(), fleet.key_ids(), {"encrypt": 1})
            before = fleet.operations()
            result = closed(bench, fleet, calls, 8 * count)
            done = [after - former for former, after in zip(before, fleet.operations(), strict=True)]
            rows.append(
                _tell(
                    {
                        "partitions": count,
                        "rps": round(result.rps),
                        "limit_rps": 4000 * count,
                        "cpu_us": round(result.cpu_us, 2),
                        "least_share": round(min(done) * count / sum(done), 3),
                        "failed": result.failed,
                    }
                )
            )
    return rows


def _chosen(count: int) -> list[int]:
    return sorted(random.Random(5).sample(range(count), min(SPREAD, count)))


def keys(bench: Bench) -> list[Row]:
    """CPU per request by the number of external key ids; seconds from the start until all of them were served."""
    rows = []
    token, on_token = None, 0
    for count in KEYS:
        if token is None or min(count, MOST_TOKEN_KEYS) != on_token:
            on_token = min(count, MOST_TOKEN_KEYS)
            token = make_token("nss", bench.directory / f"nss-keys-{count}", on_token, bench.program)
        began = time.monotonic()
        plan = Plan(sessions=4, keys=on_token, key_ids=count)
        with serving(plan, token, bench.directory / f"keys-{count}") as fleet:
            fleet.wait_for_keys(timeout_s=120)
            ready_s = time.monotonic() - began
            calls = make_calls(fleet.target(), [f"k{number}" for number in _chosen(count)], {"encrypt": 1})
            result = closed(bench, fleet, calls, 32)
            rows.append(
                _tell(
                    {
                        "key_ids": count,
                        "token_keys": on_token,
                        "cpu_us": round(result.cpu_us, 2),
                        "rps": round(result.rps),
                        "ready_s": round(ready_s, 1),
                        "failed": result.failed,
                    }
                )
            )
    return rows


def stores(bench: Bench) -> list[Row]:
    """CPU per request by the number of key stores, each with a `local` key."""
    rows = []
    for count in STORES:
        began = time.monotonic()
        with serving(Plan(partitions=0, stores=count), None, bench.directory / f"stores-{count}") as fleet:
            ready_s = time.monotonic() - began
            calls: Sequence[Call] = [
                call for store in _chosen(count) for call in make_calls(fleet.target(store), fleet.key_ids(), {"encrypt": 1})
            ]
            result = closed(bench, fleet, list(calls), 32)
            rows.append(
                _tell(
                    {
                        "stores": count,
                        "cpu_us": round(result.cpu_us, 2),
                        "rps": round(result.rps),
                        "ready_s": round(ready_s, 1),
                        "failed": result.failed,
                    }
                )
            )
    return rows


PARTS: dict[str, Callable[[Bench], list[Row]]] = {
    "sessions": sessions,
    "partitions": partitions,
    "keys": keys,
    "stores": stores,
}


def main() -> int:
    """Measure and print; 0 unless something was answered wrongly."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.5)
    parser.add_argument("--only", choices=tuple(PARTS))
    options = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / "scaling.json"
    document: dict[str, Any] = json.loads(file.read_text()) if options.only and file.exists() else {}
    with TemporaryDirectory(prefix="xksfast-bench-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as name:
        bench = Bench(Path(name), Generator(Path(name)), options.seconds, compile_with_product("token.c"))
        for part, measure in PARTS.items():
            if options.only in (None, part):
                print(part, file=sys.stderr, flush=True)
                document[part] = measure(bench)
                document["seconds"] = options.seconds
                file.write_text(json.dumps(document, indent=1))
    for part in PARTS:
        rows = document.get(part, [])
        if rows:
            print("| " + " | ".join(rows[0]) + " |\n" + "|---" * len(rows[0]) + "|")
            for row in rows:
                print("| " + " | ".join(f"{value:,}" for value in row.values()) + " |")
            print()
    return 0 if all(row["failed"] == 0 for part in PARTS for row in document.get(part, [])) else 1


if __name__ == "__main__":
    sys.exit(main())
