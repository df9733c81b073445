# SPDX-License-Identifier: Apache-2.0
"""`xksfast status`: asks the health listener of a running proxy and shows people what it says.

Fetching, and turning two readings into tables. What must not live here: judging; whether all is well stands in the document.
"""

from __future__ import annotations

import http.client
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from xksfast import histogram
from xksfast.config import Address, Config, parse_address
from xksfast.errors import OperatorError
from xksfast.status import PartitionView, ServiceStatus, quantiles_s

TIMEOUT_S = 5.0
DEGRADED = 4
WIDTH_WITHOUT_TERMINAL = 200
BAR_CELLS = 10
_BAR = " ▏▎▍▌▋▊▉█"
_STYLES = {"ready": "green", "starting": "yellow", "recovering": "yellow", "refused": "red", "unknown": "red"}


class Unreachable(OperatorError):
    """No proxy tells of itself at that address."""

    exit_code = 1


def health_url(config: Config) -> str:
    """Where the proxy of this configuration tells of itself; OperatorError when it does nowhere."""
    listen = config.proxy.health.listen
    if not listen:
        raise OperatorError('proxy.health.listen: is "": give it an address such as 127.0.0.1:8081, and start the proxy again')
    address = parse_address(listen)
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address.host, address.host)
    return f"http://{Address(host, address.port)}"


def fetch(url: str) -> bytes:
    """The status document as served. Unreachable says what to do."""
    if not url.startswith(("http://", "https://")):
        raise OperatorError(f"--url: {url!r} is not a URL such as http://127.0.0.1:8081")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never by way of a web proxy
    try:
        with opener.open(url.rstrip("/") + "/status", timeout=TIMEOUT_S) as response:
            return bytes(response.read())
    except urllib.error.HTTPError as error:
        raise Unreachable(
            f"{url} answers {error.code} for /status: it is no xksfast, or one of an older version; "
            "--url names the address of proxy.health.listen"
        ) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise Unreachable(
            f"nothing answers at {url} ({reason}): is the proxy running? "
            "Say where its health listener (proxy.health.listen) is with --url, or name its file with --config"
        ) from None


def read(url: str) -> tuple[ServiceStatus, bytes]:
    """The document and its bytes."""
    body = fetch(url)
    try:
        return msgspec.json.decode(body, type=ServiceStatus), body
    except msgspec.MsgspecError as error:
        raise Unreachable(f"{url}/status is not of an xksfast of this version: {error}") from None


def exit_code(status: ServiceStatus) -> int:
    """0 all well, 4 degraded."""
    return 0 if status.status == "ok" else DEGRADED


def run(url: str, *, partitions: bool, json: bool, watch_s: float) -> int:
    """Show it once, or every `watch_s` seconds until Ctrl-C; the exit code of the last look."""
    status, body = read(url)
    if json:
        return _run_json(url, status, body, watch_s)
    console = Console(width=None if sys.stdout.isatty() else WIDTH_WITHOUT_TERMINAL)
    if not watch_s:
        console.print(view(status, None, partitions=partitions))
        return exit_code(status)
    try:
        if sys.stdout.isatty():
            with Live(view(status, None, partitions=partitions), console=console, auto_refresh=False) as live:
                while True:
                    time.sleep(watch_s)
                    former, (status, _) = status, read(url)
                    live.update(view(status, former, partitions=partitions), refresh=True)
        console.print(view(status, None, partitions=partitions))
        while True:
            time.sleep(watch_s)
            former, (status, _) = status, read(url)
            console.print(view(status, former, partitions=partitions))
    except KeyboardInterrupt:
        return exit_code(status)


def _run_json(url: str, status: ServiceStatus, body: bytes, watch_s: float) -> int:
    try:
        while True:
            print(body.decode(), flush=True)
            if not watch_s:
                return exit_code(status)
            time.sleep(watch_s)
            status, body = read(url)
    except KeyboardInterrupt:
        return exit_code(status)


# --- what people see


def view(status: ServiceStatus, former: ServiceStatus | None, *, partitions: bool) -> RenderableType:
    """The tables. former: an earlier reading; counts, shares and latencies are then those between the two."""
    if former is not None and (former.pid, former.started_unix_s) != (status.pid, status.started_unix_s):
        former = None  # another process counts anew
    since = "since the start" if former is None else f"in the last {status.uptime_s - former.uptime_s:.1f} s"
    parts: list[RenderableType] = [_headline(status), _workers(status), _requests(status, former, since)]
    if partitions:
        parts += [_partitions(status, former, since), _reasons(status)]
    elif status.partitions:
        out = sum(not partition.in_service for partition in status.partitions)
        parts.append(Text(f"{len(status.partitions)} partitions, {out} not in service; --partitions shows each", style="dim"))
    return Group(*parts)


def _headline(status: ServiceStatus) -> RenderableType:
    text = Text.assemble(
        ("ok" if status.status == "ok" else "DEGRADED", "bold green" if status.status == "ok" else "bold red"),
        f"  xksfast {status.version}, pid {status.pid}, up {_span(status.uptime_s)}",
    )
    for problem in status.problems:
        text.append(f"\n  {problem}", style="red")
    return text


def _table(title: str, *columns: str, right: Sequence[str] = ()) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 1), header_style="dim")
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", no_wrap=True)
    return table


def _workers(status: ServiceStatus) -> Table:
    table = _table("workers", "worker", "pid", "state", "connections", "requests", "snapshot", "loop lag", "restarts")
    for worker in status.workers:
        state = "serves" if worker.answered else "does not answer"
        if not worker.ready:
            state = "does not serve" if worker.problem else "starting"
        table.add_row(
            str(worker.worker),
            str(worker.pid or "-"),
            Text(state, style="green" if state == "serves" else "red"),
            str(worker.connections),
            f"{worker.requests:,}",
            str(worker.seq),
            _duration(worker.loop_lag_s),
            str(worker.restarts),
        )
    return table


def _requests(status: ServiceStatus, former: ServiceStatus | None, since: str) -> Table:
    names = ("requests", "ok", "p50", "p95", "p99", "p99.9")
    table = _table(f"requests, first byte to answer, {since}", "operation", *names, "refused", right=names)
    now, before = _results(status), _results(former)
    former_counts = {row.operation: row.counts for row in former.request_durations} if former else {}
    counts = {row.operation: row.counts for row in status.request_durations}
    for operation in sorted(now):
        results = {result: count - before.get(operation, {}).get(result, 0) for result, count in now[operation].items()}
        refused = ", ".join(f"{result} {count:,}" for result, count in sorted(results.items()) if result != "ok" and count)
        delta = histogram.subtract(counts.get(operation, []), former_counts.get(operation, []))
        table.add_row(
            operation,
            f"{sum(results.values()):,}",
            f"{results.get('ok', 0):,}",
            *_latencies(status.request_bounds_ns, delta),
            Text(refused, style="yellow"),
        )
    return table


def _results(status: ServiceStatus | None) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for row in status.requests if status else ():
        found.setdefault(row.operation, {})[row.result] = row.count
    return found


def _partitions(status: ServiceStatus, former: ServiceStatus | None, since: str) -> Table:
    numbers = (
        "in flight", "sessions", "lost", "calls", "share", "p50", "p95", "p99", "p99.9", "faults", "opens", "retries", "hedges",
    )  # fmt: skip
    table = _table(f"partitions, {since}", "partition", "state", "route", *numbers, "", right=numbers)
    earlier = {partition.name: partition for partition in former.partitions} if former else {}
    changes = {partition.name: _Change(partition, earlier.get(partition.name)) for partition in status.partitions}
    all_calls = sum(change.calls for change in changes.values())
    for partition in status.partitions:
        change = changes[partition.name]
        share = change.calls / all_calls if all_calls else 0.0
        state = partition.state if partition.in_service or partition.state != "ready" else "ready, out of service"
        table.add_row(
            partition.name,
            Text(state, style=_STYLES.get(partition.state, "") if partition.in_service else "red"),
            partition.route_reason,
            f"{partition.in_flight}/{partition.limit}",
            f"{partition.sessions_open}/{partition.sessions_wanted}",
            str(partition.lost_threads),
            f"{change.calls:,}",
            f"{share:.1%}",
            *_latencies(status.call_bounds_ns, change.latency_counts),
            f"{change.faults:,}",
            str(partition.opens),
            f"{change.retries:,}",
            f"{change.hedges:,}",
            bar(share),
        )
    return table


class _Change:
    """What a partition counted between two readings; all of it when there is no earlier one."""

    def __init__(self, now: PartitionView, earlier: PartitionView | None) -> None:
        before = earlier.calls if earlier else {}
        calls = {purpose: count - before.get(purpose, 0) for purpose, count in now.calls.items()}
        self.calls = sum(calls.values())
        self.retries, self.hedges = calls.get("retry", 0), calls.get("hedge", 0)
        self.faults = now.faults - (earlier.faults if earlier else 0)
        self.latency_counts = histogram.subtract(now.latency_counts, earlier.latency_counts if earlier else [])


def _reasons(status: ServiceStatus) -> RenderableType:
    """Why a partition is where it is: what each worker says, what its breaker last opened for, its errors by name."""
    table = _table("why", "partition", "what", "")
    table.columns[-1].no_wrap = False
    for partition in status.partitions:
        for at in partition.workers:
            if at.reason or not at.in_service:
                table.add_row(partition.name, f"worker {at.worker}: {at.state}, {at.route_reason}", at.reason)
        if partition.opens:
            when = datetime.fromtimestamp(partition.last_open_unix_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
            table.add_row(partition.name, f"breaker opened {when}", partition.last_open_reason)
        if partition.errors:
            named = ", ".join(f"{name} {count:,}" for name, count in sorted(partition.errors.items(), key=lambda row: -row[1]))
            table.add_row(partition.name, "errors since the start", named)
    return table if table.row_count else Text("no errors, no breaker opened", style="dim")


def bar(share: float) -> str:
    """A share of 0..1 as a bar of BAR_CELLS cells, in eighths."""
    eighths = round(min(max(share, 0.0), 1.0) * BAR_CELLS * 8)
    full, rest = divmod(eighths, 8)
    return _BAR[8] * full + (_BAR[rest] if rest else "")


def _latencies(bounds_ns: Sequence[int], counts: Sequence[int]) -> list[str]:
    found = quantiles_s(bounds_ns, counts)
    labels = {f"p{q * 100:g}": q for q in histogram.QUANTILES}
    return [
        ("> " if histogram.is_above_all(bounds_ns, counts, labels[name]) else "") + _duration(value)
        if value is not None
        else "-"
        for name, value in found.items()
    ]


def _duration(seconds: float) -> str:
    """Three digits and a unit."""
    for factor, unit in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= factor:
            return f"{seconds / factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def _span(seconds: float) -> str:
    """ "3 d 4 h", "12 min", "8 s"."""
    whole = int(seconds)
    if whole >= 86400:
        return f"{whole // 86400} d {whole % 86400 // 3600} h"
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 60} min" if whole >= 60 else f"{whole} s"
