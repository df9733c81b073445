# SPDX-License-Identifier: Apache-2.0
"""All benchmarks, short: python -m bench. Each prints a Markdown table and leaves its samples in bench/results/."""

import subprocess
import sys

for module in ("bench.micro", "bench.micro_router", "bench.end_to_end", "bench.memory"):
    print(f"\n## {module}\n", flush=True)
    subprocess.run([sys.executable, "-m", module], check=True)
