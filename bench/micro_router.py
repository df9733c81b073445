# SPDX-License-Identifier: Apache-2.0
"""CPU time of a routing decision (pick, begin and end of one call): python -m bench.micro_router [--rounds 7]

Compiles bench/micro_router.c with the product's router at the product's optimisation, has it prove its choices, and prints medians
over rounds; bench/results/micro_router.json keeps all.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results"
GOALS_NS = {"decision_of_16": 300, "decision_of_16_with_4_slow": 300}


def compile_program(directory: Path) -> Path:
    """bench/micro_router.c and the router, as the product is compiled."""
    program = directory / "micro_router"
    sources = [str(path) for path in sorted((ROOT / "csrc").glob("xks_router*.c"))]
    command = ["gcc", "-std=c11", "-O3", "-fvisibility=hidden", "-D_GNU_SOURCE", f"-I{ROOT / 'csrc'}"]
    subprocess.run([*command, str(ROOT / "bench/micro_router.c"), *sources, "-o", str(program)], check=True)
    return program


def main() -> int:
    """Measure and print; 1 when a choice is wrong or a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    samples: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as directory:
        program = compile_program(Path(directory))
        for _ in range(options.rounds):
            done = subprocess.run([str(program)], capture_output=True, text=True, check=False)
            if done.returncode != 0:
                print(done.stderr, file=sys.stderr)
                return 1
            for line in done.stdout.splitlines():
                name, value = line.split()
                samples.setdefault(name, []).append(float(value))
    print("| piece | CPU ns/decision (median) | least | at most |\n|---|---|---|---|")
    for name, values in samples.items():
        print(f"| {name} | {statistics.median(values):.0f} | {min(values):.0f} | {GOALS_NS.get(name, '')} |")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "micro_router.json").write_text(json.dumps(samples, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
