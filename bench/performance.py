# SPDX-License-Identifier: Apache-2.0
"""docs/performance.md and docs/pictures/ from bench/results/*.json: python -m bench.performance

What lives here: the words around the figures, and the conditions under which they were taken. What must not: a figure that is not in a
result file. What was not measured is left out, and said so.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import ssl
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench import micro_engine, pictures
from bench.administration import NGINX_FIGURE, PARTS, START_FIGURE
from xksfast._version import __version__

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
YARDSTICK_US = 7.4


def conditions() -> dict[str, str]:
    """Machine and versions."""
    model = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    return {
        "CPU": f"{model.group(1) if model else platform.machine()}, {os.cpu_count()} cores",
        "kernel": platform.release(),
        "system": platform.freedesktop_os_release().get("PRETTY_NAME", ""),
        "xksfast": __version__,
        "Python": platform.python_version(),
        "OpenSSL": ssl.OPENSSL_VERSION,
        **{package: _package(package) for package in ("libnss3", "softhsm2", "postgresql", "gcc", "wrk", "nginx-light")},
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _package(name: str) -> str:
    done = subprocess.run(["dpkg-query", "-W", "-f=${Version}", name], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "not installed"


def _load(name: str) -> Any:
    file = RESULTS / f"{name}.json"
    return json.loads(file.read_text()) if file.exists() else None


def _table(head: list[str], rows: list[list[Any]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return lines + ["| " + " | ".join(_shown(value) for value in row) + " |" for row in rows] + [""]


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else "" if value is None else str(value)


def _verdict(held: bool | None) -> str:
    return {True: "yes", False: "**no**", None: ""}[held]


def _absent(command: str) -> list[str]:
    return [f"Not measured yet. `{command}` does it.", ""]


def _command(command: str) -> list[str]:
    return [f"Again: `{command}`", ""]


def _goal(row: dict[str, Any]) -> str:
    if row["at_most"] is not None:
        return f"≤ {row['at_most']:,g}"
    return f"≥ {row['at_least']:,g}" if row["at_least"] is not None else ""


def speed() -> list[str]:
    document = _load("speed")
    lines = [
        "## Speed", "",
        "Server on core 0, load generator on core 1. *Closed*: as many requests at a time as there are connections; *open*:",
        "Poisson arrivals, latency counted from the moment a request was due. CPU is the worker's with all its threads.", "",
    ]  # fmt: skip
    if document is None:
        return lines + _absent(".venv/bin/python -m bench.speed")
    lines += _yardstick()
    rows = [[row["case"], row["figure"], float(row["value"]), _goal(row), _verdict(row["held"])] for row in document["rows"]]
    lines += _table(["case", "figure", "measured", "goal", "held"], rows)
    lines += [f"Medians of {document['rounds']} rounds of {document['seconds']:g} s each.", ""]
    return lines + _command(".venv/bin/python -m bench.speed")


def _yardstick() -> list[str]:
    """How fast this machine is, told by what nginx takes on it."""
    measured = [
        case["cpu_us"] for case in (_load("end_to_end") or {"cases": []})["cases"] if case["case"] == "nginx return 200"
    ]
    if not measured:
        return []
    return [
        f"The goals were set on a machine on which nginx's `return 200` takes {YARDSTICK_US} us of CPU. Here it takes",
        f"{measured[0]:.3g} us, {measured[0] / YARDSTICK_US:.2g} times as long: mind that where a figure is not a ratio.", "",
    ]  # fmt: skip


def end_to_end() -> list[str]:
    document = _load("end_to_end")
    lines = ["## Beside nginx", "", "nginx answers the same signed request with a fixed body of the same size.", ""]
    if document is None:
        return lines + _absent(".venv/bin/python -m bench.end_to_end")
    rows = [[case["case"], case["cpu_us"], case["ratio_to_nginx"], case["rss_mib"]] for case in document["cases"]]
    return [
        *lines,
        *_table(["case", "CPU us/request", "x nginx", "RSS MiB"], rows),
        *_command(".venv/bin/python -m bench.end_to_end"),
    ]


def pieces() -> list[str]:
    lines = ["## The pieces", ""]
    micro, engine = _load("micro"), _load("micro_engine")
    if micro:
        rows = [[name, statistics.median(values)] for name, values in micro.items()]
        lines += _table(["piece", "CPU ns/call"], rows) + _command(".venv/bin/python -m bench.micro")
    if engine:
        lines += ["What the engine adds to a token call: queue, wake, completion, routing.", ""]
        lines += _table(micro_engine.HEAD, micro_engine.rows(engine)) + _command(".venv/bin/python -m bench.micro_engine")
    return lines


def scaling(folder: Path) -> list[str]:
    document = _load("scaling")
    lines = ["## Scaling", ""]
    if document is None:
        return lines + _absent(".venv/bin/python -m bench.scaling")
    if rows := document.get("sessions"):
        groups = []
        for ms in sorted({row["call_ms"] for row in rows}):
            some = [row for row in rows if row["call_ms"] == ms]
            xs = [row["sessions"] for row in some]
            groups.append((f"{ms:g} ms", xs, [row["rps"] for row in some]))
            groups.append((f"{ms:g} ms limit", xs, [row["limit_rps"] for row in some]))
        pictures.curves(folder / "scaling-sessions.svg", groups, "sessions", "requests/s")
        lines += ["### Sessions", "", "Dashed: sessions / call time, what they could do at most.", ""]
        lines += _picture("scaling-sessions", "requests per second by sessions and call time")
        lines += _rows(rows) + _command(".venv/bin/python -m bench.scaling --only sessions")
    if rows := document.get("partitions"):
        xs = [row["partitions"] for row in rows]
        groups = [
            ("requests/s", xs, [row["rps"] for row in rows]),
            ("limit", xs, [row["limit_rps"] for row in rows]),
        ]
        pictures.curves(folder / "scaling-partitions.svg", groups, "partitions", "requests/s")
        lines += [
            "### Partitions",
            "",
            "Each with 4 servers of 1 ms: 4,000 calls a second. One worker on one core serves them all.",
            "",
        ]
        lines += _picture("scaling-partitions", "requests per second by partitions")
        lines += _rows(rows) + _command(".venv/bin/python -m bench.scaling --only partitions")
    for part, x, title in (("keys", "key_ids", "Keys"), ("stores", "stores", "Key stores")):
        if rows := document.get(part):
            pictures.curves(
                folder / f"scaling-{part}.svg",
                [("CPU us/request", [row[x] for row in rows], [row["cpu_us"] for row in rows])],
                title.lower(),
                "us",
                log_y=False,
            )
            lines += [f"### {title}", ""]
            if part == "keys":
                lines += [
                    "`key_ids`: external key ids; `token_keys`: keys on the token, which several key ids share beyond 10,000.",
                    "",
                ]
            lines += _picture(f"scaling-{part}", f"CPU per request by {title.lower()}")
            lines += _rows(rows) + _command(f".venv/bin/python -m bench.scaling --only {part}")
    return lines


def administration() -> list[str]:
    document = _load("administration")
    lines = [
        "## Administration", "",
        "One state of many key stores with 10 `local` keys and 2 credentials each; all processes of all nodes share one core, but for",
        "the rows that say otherwise.",
        "*start*: the last key of the last store is served. *change*: a key is disabled or enabled by REST, and every worker does so.",
        "*block*: three nodes over one PostgreSQL server; after each confirmation every node was asked, and none served.", "",
    ]  # fmt: skip
    if document is None:
        return lines + _absent(".venv/bin/python -m bench.administration")
    rows = [
        [row["case"], row["figure"], float(row["value"]), _goal(row), _verdict(row["held"])]
        for part in PARTS
        for row in document.get(part, [])
    ]
    return [
        *lines, *_table(["case", "figure", "measured", "goal", "held"], rows),
        *_start_elsewhere(document),
        "Beside administration, *two cores*: the process that administers may use another core than the worker; *one core for both*:",
        "not so. The worker asks the kernel for short slices; *the kernel's own slices*: the same node without. The load generator,",
        "in life on other machines, goes before all others. p99 wanders with what the hypervisor takes, so the rows without",
        "*all runs* are of those seconds in which it took less than 3% of the CPU.",
        "", f"Written {document['date']}.", "",
        *_command(".venv/bin/python -m bench.administration"),
    ]  # fmt: skip


def _start_elsewhere(document: dict[str, Any]) -> list[str]:
    """Seconds depend on the machine, and the rows say how fast it was just then."""
    by_figure = {row["figure"]: float(row["value"]) for row in document.get("start", [])}
    seconds, nginx_us = by_figure.get(START_FIGURE), by_figure.get(NGINX_FIGURE)
    if seconds is None or nginx_us is None:
        return []
    return [
        f"Computed: where nginx takes {YARDSTICK_US} us, the start on one core takes {seconds * YARDSTICK_US / nginx_us:.2g} s.", "",
    ]  # fmt: skip


def _rows(rows: list[dict[str, Any]]) -> list[str]:
    return _table(list(rows[0]), [list(row.values()) for row in rows])


def _picture(name: str, alternative: str) -> list[str]:
    return [f"![{alternative}](pictures/{name}.svg)", ""]


def faults(folder: Path) -> list[str]:
    document = _load("faults")
    lines = [
        "## When partitions fail", "",
        "Real requests against a real server; the partitions are virtual slots of the fault shim, and fail while the load runs.",
        "Grey: the fault. Points are windows of 100 ms by the moment requests were due; shares are the shim's own counts.", "",
    ]  # fmt: skip
    if document is None:
        return lines + _absent(".venv/bin/python -m bench.faults")
    for name, problem in document.get("broken", {}).items():
        lines += [f"**{name} could not be judged**: {problem}", ""]
    option = {"short": " --short", "long": " --long"}.get(document["size"]["name"], "")
    for report in document["scenarios"]:
        name = re.sub(r"[^a-z0-9]+", "-", f"fault-{report['name']}".lower())
        pictures.scenario(report, folder / f"{name}.svg")
        summary = report["summary"]
        not_ok = ", ".join(f"{count:,} x {status}" for status, count in summary["not_ok"].items()) or "none"
        servers = f"{report['servers']} servers" if report["servers"] else "no limit on calls at a time"
        lines += [
            f"### {report['name']}: {report['title']}", "",
            f"{report['partitions']} partition{'s' if report['partitions'] > 1 else ''} of {servers}, {report['service_ms']:g} ms, "
            f"{report['rate']:,.0f} requests/s; {summary['requests']:,} requests, not answered as expected: {not_ok}.", "",
        ]  # fmt: skip
        if report["disturbed"]:
            lines += ["The load generator itself came too late in this run: the machine was busy with something else.", ""]
        lines += _picture(name, f"throughput, latency and shares over time, {report['title']}")
        rows = [[check["goal"], check["value"], check["bound"], _verdict(check["held"])] for check in report["checks"]]
        lines += _table(["goal", "measured", "bound", "held"], rows)
        lines += _command(f'.venv/bin/python -m bench.faults{option} --only "{report["name"]}"')
    return lines


def write(document: Path) -> None:
    """The Markdown file, with its pictures in the folder pictures/ beside it."""
    folder = document.parent / "pictures"
    lines = [
        "# Performance", "",
        "Generated by `make bench`; do not edit. Each benchmark proves its answers right before and after it times them.", "",
        "## Conditions", "", *_table(["what", "version"], [[name, value] for name, value in conditions().items()]),
        *speed(), *end_to_end(), *pieces(), *scaling(folder), *administration(), *faults(folder),
    ]  # fmt: skip
    document.parent.mkdir(parents=True, exist_ok=True)
    document.write_text("\n".join(lines).rstrip() + "\n")


def main() -> int:
    """Write; 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, default=ROOT / "docs" / "performance.md")
    options = parser.parse_args()
    write(options.to)
    print(options.to)
    return 0


if __name__ == "__main__":
    sys.exit(main())
