# SPDX-License-Identifier: Apache-2.0
"""All benchmarks, short: python -m bench. Each prints a Markdown table and leaves its samples in bench/results/; then
docs/performance.md is written from these. Progress goes to standard error. Exit code 1 when a benchmark failed or a scenario missed a
goal, after the rest.
"""

import subprocess
import sys
import time

MODULES = (
    "bench.micro",
    "bench.micro_engine",
    "bench.end_to_end",
    "bench.memory",
    "bench.speed",
    "bench.scaling",
    "bench.administration",
    "bench.faults",
    "bench.performance",
)

failed, began = [], time.monotonic()
for number, module in enumerate(MODULES):
    print(f"[{(time.monotonic() - began) / 60:4.1f} min] {number + 1}/{len(MODULES)} {module}", file=sys.stderr, flush=True)
    print(f"\n## {module}\n", flush=True)
    if subprocess.run([sys.executable, "-m", module], check=False).returncode != 0:
        failed.append(module)
print(f"[{(time.monotonic() - began) / 60:4.1f} min] failed or missed a goal: {', '.join(failed) or 'none'}", file=sys.stderr)
sys.exit(1 if failed else 0)
