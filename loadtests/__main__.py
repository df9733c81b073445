# SPDX-License-Identifier: Apache-2.0
"""make loadtest: start a proxy (or take one that runs elsewhere), load it, write the report; the exit code is the verdict.

    python -m loadtests [--profile steady] [--rps 300] [--duration 30s] [--generator locust|open-loop] [-- LOCUST OPTIONS]

0: the objectives were met. 1: missed. 2: wrong usage, or the server did not start. 3: missed, but the generator itself came too late:
the run says nothing about the server.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from loadtests import servers
from loadtests.profiles import DEFAULT_RPS, PROFILES, parse_duration
from loadtests.target import ENVIRONMENT

LOCUSTFILE = Path(__file__).parent / "locustfile.py"


def main(arguments: list[str] | None = None) -> int:
    """Run one load test; its exit code."""
    options = _parser().parse_args(arguments)
    rest = options.locust_options[1:] if options.locust_options[:1] == ["--"] else options.locust_options
    if options.rps is None:
        options.rps = float(DEFAULT_RPS[options.generator])
    try:
        if options.duration:
            parse_duration(options.duration)
        with _server(options) as served:
            if options.generator == "open-loop":
                from loadtests import open_loop

                return open_loop.run(served, options, rest)
            return subprocess.run(_locust_command(served, options, rest), env=_environment(), check=False).returncode
    except (ValueError, RuntimeError, OSError) as error:
        print(f"loadtests: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m loadtests", description="Load a proxy as KMS does and judge it.")
    parser.add_argument("--profile", choices=list(PROFILES), default="steady")
    parser.add_argument("--rps", type=float, help=f"the highest rate of the profile; by default {_defaults()}")
    parser.add_argument("--duration", default="", help="45, 10m, 8h; the profile's own by default")
    parser.add_argument("--generator", choices=["locust", "open-loop"], default="locust", help="open-loop: for the true tail")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--target", default="", help="JSON file of a proxy that runs; by default one is started")
    parser.add_argument("--status-url", default="", help="with --target: its health listener")
    parser.add_argument(
        "--key-source", choices=["auto", "local", "softhsm", "nss"], default="auto", help="of the started proxy"
    )
    parser.add_argument("--processes", type=int, default=0, help="locust workers beside the master; 0: one process does both")
    parser.add_argument(
        "--web", action="store_true", help="locust's web UI on http://127.0.0.1:8089 instead of starting at once"
    )
    parser.add_argument("--report-dir", default="loadtests/results")
    parser.add_argument("locust_options", nargs=argparse.REMAINDER, help="after --: further options of locust")
    return parser


def _defaults() -> str:
    return ", ".join(f"{rps} with {generator}" for generator, rps in DEFAULT_RPS.items())


@contextmanager
def _server(options: argparse.Namespace) -> Iterator[servers.Served]:
    if options.target or ENVIRONMENT["url"] in os.environ:
        yield servers.Served(Path(options.target) if options.target else None, options.status_url)
    elif PROFILES[options.profile].fault is not None:
        with servers.partitions() as served:
            yield served
    else:
        with servers.development(options.key_source) as served:
            yield served


def _locust_command(served: servers.Served, options: argparse.Namespace, rest: list[str]) -> list[str]:
    command = [
        sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--target", served.target_argument, "--load-profile", options.profile,
        "--rps", str(options.rps), "--duration", options.duration, "--connections", str(options.connections),
        "--report-dir", options.report_dir, "--status-url", served.status_url, "--server-pid", str(served.worker_pid),
    ]  # fmt: skip
    if served.fault_control:
        command += ["--fault-control", served.fault_control]
    command += ["--web-host", "127.0.0.1"] if options.web else ["--headless", "--only-summary"]
    if options.processes:
        port = str(servers.free_port())  # locust's own would be another run's
        command += ["--processes", str(options.processes), "--master-bind-port", port, "--master-port", port]
    return [*command, *rest]


def _environment() -> dict[str, str]:
    """The repository's root on the path, for the locustfile's imports in every process that locust forks."""
    root = str(Path(__file__).resolve().parents[1])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))}


if __name__ == "__main__":
    sys.exit(main())
