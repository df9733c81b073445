# SPDX-License-Identifier: Apache-2.0
"""What the engine's hand-off adds to a token call, in CPU time per job: python -m bench.micro_engine [--rounds 5] [--seconds 1]

Runs bench/micro_engine.c (32 jobs in flight, one core) and, just before, the bare loop of bench/token.c on the same token: the
difference is the hand-off, that is queue, wake, completion and routing. "loop work" stands for the HTTP work between two jobs. Medians
over rounds; bench/results/micro_engine.json keeps all.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.processes import SERVER_CORE
from bench.tokens import Token, bare_loop, compile_with_product, make_token

RESULTS = Path(__file__).parent / "results"
GOAL_HAND_OFF_US = 4.0
CASES = [(kind, keys, work_us) for work_us in (0, 15) for kind in ("nss", "softhsm") for keys in (1, 200)]


def measure(program: Path, token: Token, keys: int, loop_work_ns: int, seconds: int) -> dict[str, float]:
    """One run of the program."""
    command = ["taskset", "-c", str(SERVER_CORE), *token.command(program, keys, loop_work_ns, seconds)]
    done = subprocess.run(command, env={**os.environ, **token.environment}, check=True, capture_output=True, text=True)
    return {name: float(value) for name, value in (line.split() for line in done.stdout.splitlines())}


HEAD = ["32 in flight, one core", "bare call us", "through the engine us", "hand-off us", "p99 us", "context switches per job"]


def rows(samples: dict[str, list[dict[str, float]]]) -> list[list[str | float]]:
    """The table's rows: medians over the rounds of each case."""
    table: list[list[str | float]] = []
    for case, runs in samples.items():
        middle = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        hand_off_us = statistics.median(run["engine_ns"] - run["bare_ns"] for run in runs) / 1000
        bare_us, engine_us = round(middle["bare_ns"] / 1000, 2), round(middle["engine_ns"] / 1000, 2)
        table.append(
            [case, bare_us, engine_us, round(hand_off_us, 2), round(middle["p99_ns"] / 1000), round(middle["switches"], 3)]
        )
    return table


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=1)
    options = parser.parse_args()
    samples: dict[str, list[dict[str, float]]] = {}
    with TemporaryDirectory(prefix="xksfast-bench-") as name:
        bare_program, program = compile_with_product("token.c"), compile_with_product("micro_engine.c")
        tokens = {kind: make_token(kind, Path(name) / kind, 200, bare_program) for kind in ("nss", "softhsm")}
        for number in range(options.rounds):
            for kind, keys, work_us in CASES:
                bare = bare_loop(tokens[kind], bare_program, keys=keys, seconds=options.seconds / 2)
                run = measure(program, tokens[kind], keys, work_us * 1000, options.seconds)
                case = f"{kind}, {keys} key{'s' if keys > 1 else ''}, loop work {work_us} us"
                samples.setdefault(case, []).append({**run, "bare_ns": bare.cpu_us * 1000})
                print(
                    f"round {number + 1}/{options.rounds}  {case}: {run['engine_ns'] / 1000:.2f} us",
                    file=sys.stderr,
                    flush=True,
                )
    print("| " + " | ".join(HEAD) + " |\n" + "|---" * len(HEAD) + "|")
    for row in rows(samples):
        print("| " + " | ".join(str(value) for value in row) + " |")
    print(f"\nGoal: a hand-off of at most {GOAL_HAND_OFF_US:g} us.")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "micro_engine.json").write_text(json.dumps(samples, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
